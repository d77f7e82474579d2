"""Read a DLC without Qualcomm's SDK: a zip of two FlatBuffers, JSON metadata and raw weights.

The layout is undocumented; it was read off files that QNN 2.51 wrote (archive version 4: an
eight-byte head, then FlatBuffers "NETD" for the graph and "NETP" for where the weights lie) and
is checked against what it must say. The zip has no checksums (CRC fields are 0), so the standard
reader refuses it unless told not to check.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ... import untrusted
from ...errors import LimitError, ModelFileError

# QNN's data type codes (QnnTypes.h) with the numpy type of their bytes.
DTYPES: dict[int, tuple[str, str]] = {
    0x232: ("float32", "<f4"),
    0x216: ("float16", "<f2"),
    0x408: ("uint8 q", "|u1"),
    0x416: ("uint16 q", "<u2"),
    0x308: ("int8 q", "|i1"),
    0x316: ("int16 q", "<i2"),
    0x332: ("int32 q", "<i4"),
    0x008: ("int8", "|i1"),
    0x032: ("int32", "<i4"),
    0x064: ("int64", "<i8"),
    0x108: ("uint8", "|u1"),
    0x132: ("uint32", "<u4"),
    0x508: ("bool", "|b1"),
}
# The meaning of the attribute "operation", as far as it was seen beside QNN's own JSON dump.
_NEURONS = {
    0: "Elu",
    1: "Gelu",
    2: "HardSigmoid",
    3: "HardSwish",
    4: "Relu",
    5: "ReluMinMax",
    6: "Sigmoid",
    7: "Softplus",
    8: "Tanh",
}
_OPERATIONS: dict[str, dict[int, str]] = {
    "Neuron": _NEURONS,
    "ElementWiseNeuron": _NEURONS,
    "Eltwise_Binary": {
        0: "Add",
        2: "Divide",
        10: "Maximum",
        11: "Minimum",
        13: "Multiply",
        16: "Power",
        18: "Subtract",
    },
    "Eltwise_Unary": {0: "Abs", 5: "Exp", 8: "Neg", 15: "SquareRoot"},
}
_TEXT, _BOOL, _FLOAT = 0x608, 0x508, 0x232
_HEAD = 8  # bytes before the FlatBuffer
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph; `kind` is input, output, native or static (a weight)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None
    axis: int | None = None  # of per-channel scales
    channels: int = 0


@dataclass(frozen=True)
class Op:
    """A QNN operator: its tensors by name, its plain attributes, its multiply-accumulates."""

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    macs: int = 0


@dataclass(frozen=True)
class Contents:
    """All that a DLC says: operators in order, tensors by name, weights by name."""

    ops: tuple[Op, ...]
    tensors: dict[str, Tensor]
    weights: dict[str, np.ndarray]
    writer: str
    written: str

    @property
    def quantized(self) -> bool:
        """Whether the tensors between the operators are integers."""
        return any(t.dtype.endswith(" q") for t in self.tensors.values() if t.kind == "native")


def image_shape(path: str | Path) -> tuple[int, int, int] | None:
    """Return (channels, height, width) of a DLC's one image input, which is NCHW or NHWC.

    None for other inputs, and for a file that cannot be read: running it says what is wrong.
    """
    try:
        inputs = [t.shape for t in read(path).tensors.values() if t.kind == "input"]
    except ModelFileError:
        return None
    if len(inputs) != 1 or len(inputs[0]) != 4:
        return None
    a, b, c = inputs[0][1:]
    return (c, a, b) if c in (1, 3) and a not in (1, 3) else (a, b, c)


def read(path: str | Path) -> Contents:
    """Return the contents of the DLC at `path`.

    Raises
    ------
    ModelFileError
        The file is missing, truncated, not a DLC, or of a layout that we do not know.
    """
    parts = members(path)
    try:
        graph = _root(parts["model"], b"NETD").tables(0)[0]
        tensors = {t.name: t for t in map(_tensor, graph.tables(2))}
        ops = tuple(_op(table, tensors) for table in graph.tables(1))
        weights = _weights(parts, tensors)
        history = untrusted.json_value(parts.get("dlc.metadata.history.2.3.0", b"{}"))
        made = history.get("dlcGenerationInfo", [{}])[0].get("converterCommand", {})
        writer = f"QNN {made.get('converterVersion', 'of unknown version')}"
        written = str(history.get("header", {}).get("timestamp", "unknown"))
    except (
        KeyError, IndexError, AttributeError, TypeError, struct.error, ValueError, RecursionError
    ) as error:  # fmt: skip
        raise ModelFileError(
            f"{path} is a DLC, but its layout is not known here ({error!r}); that of QNN 2.51 is."
        ) from None
    return Contents(
        ops,
        tensors,
        weights,
        writer=writer,
        written=written,
    )


def members(path: str | Path) -> dict[str, bytes]:
    """Return the members of a DLC's zip; ModelFileError when it is missing, truncated, foreign."""
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"There is no file {path}.")
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            untrusted.refuse_bomb(path, archive)
            for entry in archive.infolist():
                found[entry.filename] = untrusted.member(archive, entry, checked=False)
    except LimitError as error:
        raise ModelFileError(str(error)) from None
    except _UNREADABLE as error:
        raise ModelFileError(
            f"{path} is not a DLC, or it is truncated ({error}). Convert the model again."
        ) from None
    if "model" not in found or "model.params" not in found:
        raise ModelFileError(
            f"{path} is a zip, but not a DLC: it has no members model, model.params."
        )
    return found


class _Buffer(bytes):
    """A FlatBuffer, and how many bytes of vectors may still be read from it.

    Tables that all point at the same vectors could stand for any number of operators.
    """

    left = 0


class _Table:
    """One FlatBuffer table: fields by number, absent ones give a default."""

    def __init__(self, data: _Buffer, offset: int) -> None:
        self.data, self.offset = data, offset
        (back,) = struct.unpack_from("<i", data, offset)
        (size,) = struct.unpack_from("<H", data, offset - back)
        self.slots = struct.unpack_from(f"<{(size - 4) // 2}H", data, offset - back + 4)

    def number(self, slot: int, code: str = "I", default: Any = 0) -> Any:
        if slot >= len(self.slots) or not self.slots[slot]:
            return default
        return struct.unpack_from("<" + code, self.data, self.offset + self.slots[slot])[0]

    def _follow(self, slot: int) -> int | None:
        if slot >= len(self.slots) or not self.slots[slot]:
            return None
        place = self.offset + self.slots[slot]
        return place + struct.unpack_from("<I", self.data, place)[0]

    def text(self, slot: int) -> str:
        return bytes(self.numbers(slot, "B")).decode()

    def numbers(self, slot: int, code: str = "I") -> tuple:
        place = self._follow(slot)
        if place is None:
            return ()
        (count,) = struct.unpack_from("<I", self.data, place)
        self.data.left -= 4 + count * struct.calcsize("<" + code)
        if self.data.left < 0:
            raise ValueError("its tables share their contents")
        return struct.unpack_from(f"<{count}{code}", self.data, place + 4)

    def table(self, slot: int) -> _Table | None:
        place = self._follow(slot)
        return None if place is None else _Table(self.data, place)

    def _elements(self, slot: int) -> list[int]:
        first = (self._follow(slot) or 0) + 4
        return [first + 4 * i + step for i, step in enumerate(self.numbers(slot))]

    def tables(self, slot: int) -> list[_Table]:
        return [_Table(self.data, place) for place in self._elements(slot)]

    def texts(self, slot: int) -> tuple[str, ...]:
        found = []
        for place in self._elements(slot):
            (count,) = struct.unpack_from("<I", self.data, place)
            found.append(self.data[place + 4 : place + 4 + count].decode())
        return tuple(found)


def _root(member: bytes, magic: bytes) -> _Table:
    data = _Buffer(member[_HEAD:])
    data.left = 8 * len(data)  # each vector is read once or twice
    if data[4:8] != magic:
        raise ValueError(f"magic {data[4:8]!r} instead of {magic!r}")
    return _Table(data, struct.unpack_from("<I", data, 0)[0])


def _tensor(table: _Table) -> Tensor:
    # slots: 1 name, 2 kind, 3 shape, 5 quantization, 6 data type
    kinds = {0: "input", 1: "output", 3: "native", 4: "static"}
    code = table.number(6)
    quantization = table.table(5)
    scale = zero_point = axis = None
    channels = 0
    if quantization is not None and quantization.number(1, "B"):
        per_tensor, per_axis = quantization.table(2), quantization.table(3)
        if per_tensor is not None:
            scale = per_tensor.number(3, "f", 0.0)
            zero_point = -per_tensor.number(4, "i")  # QNN: real = (q + offset) * scale
        elif per_axis is not None:
            axis, channels = per_axis.number(0), len(per_axis.tables(1))
    return Tensor(
        table.text(1),
        kinds.get(table.number(2), "other"),
        table.numbers(3),
        DTYPES[code][0] if code in DTYPES else hex(code),
        scale,
        zero_point,
        axis,
        channels,
    )


def _op(table: _Table, tensors: dict[str, Tensor]) -> Op:
    # slots: 0 name, 1 type, 2 inputs, 3 outputs, 4 attributes (0 name, 3 scalar)
    attributes = {}
    for attribute in table.tables(4):
        scalar = attribute.table(3)
        if scalar is not None and scalar.number(0) != _TEXT:  # the package's name
            attributes[attribute.text(0)] = _scalar(scalar)
    kind = table.text(1)
    if kind in _OPERATIONS:
        code = int(attributes.get("operation", 0))
        kind = _OPERATIONS[kind].get(code, f"{kind}({code})")
    inputs, outputs = table.texts(2), table.texts(3)
    return Op(
        table.text(0), kind, inputs, outputs, attributes, _macs(kind, inputs, outputs, tensors)
    )


def _scalar(table: _Table) -> float | int | bool:
    # slots: 0 data type, 1 integer or boolean, 2 double; a value of 0 is left out
    code = table.number(0)
    if code == _FLOAT:
        return float(np.float32(table.number(2, "d", 0.0)))
    return bool(table.number(1)) if code == _BOOL else table.number(1)


def _macs(
    kind: str, inputs: tuple[str, ...], outputs: tuple[str, ...], tensors: dict[str, Tensor]
) -> int:
    weights = [tensors[n].shape for n in inputs if n in tensors and tensors[n].kind == "static"]
    if not weights:
        return 0
    out, kernel = tensors[outputs[0]].shape, weights[0]
    if kind in ("Conv2d", "DepthWiseConv2d"):
        return math.prod(out) * math.prod(kernel[:-1])  # kernel is height, width, in, out
    if kind in ("FullyConnected", "MatMul"):
        return math.prod(kernel) * math.prod(out[:-1])
    return 0


def _weights(parts: dict[str, bytes], tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    # NETP, per graph: slot 1 the tensors; 0 name, 3 place (0 offset, 1 size)
    numpy_of = dict(DTYPES.values())
    raw = memoryview(parts.get("model.params.bin", b""))
    found = {}
    for entry in _root(parts["model.params"], b"NETP").tables(0)[0].tables(1):
        name, place = entry.text(0), entry.table(3)
        if place is None:
            raise KeyError(f"the place of {name}")
        tensor = tensors[name]
        start, size = place.number(0, "Q"), place.number(1, "Q")
        values = np.frombuffer(raw[start : start + size], numpy_of[tensor.dtype])
        found[name] = values.reshape(tensor.shape)
    return found
