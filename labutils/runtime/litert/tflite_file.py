"""What is in a ``.tflite``: tensors, operators, quantization; and the layout of its image.

The file is a FlatBuffer; its schema comes with Google's wheel ai-edge-litert, and is read in plain
Python: nothing native runs. The layout is in no such file: the lab's manifest beside it has it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ... import manifests, typesetting, untrusted
from ...errors import MissingToolError, ModelFileError, counted

IDENTIFIER = b"TFL3"
LAYOUTS = ("nhwc", "nchw")
_WEIGHTED = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1}
"""Operator -> which of its inputs has the weights."""
_READ = ("float32", "float16", "int8", "uint8", "int16", "int32")


@dataclass(frozen=True)
class Tensor:
    """One tensor.

    Attributes
    ----------
    name, shape, type
        As the file has them; ``float32``, ``int8``, ...
    scales, zeros
        Of its quantization, one or one per channel; empty for floats.
    is_constant
        Whether its values are in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    scales: tuple[float, ...] = ()
    zeros: tuple[int, ...] = ()
    is_constant: bool = False


@dataclass(frozen=True)
class Operator:
    """One operator: its type, and the numbers of the tensors that it reads and writes."""

    type: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Contents(typesetting.Paragraph):
    """What a ``.tflite`` holds.

    Attributes
    ----------
    file
        Where it is.
    tensors, operators
        Of the main subgraph, in the file's order.
    inputs, outputs
        Numbers of the tensors that it takes and gives.
    output_names
        What its signature calls the outputs; the tensors' own names without one.
    layout
        Of the image that it takes, as a manifest of the lab says; "" leaves it to the shape.
    """

    file: Path
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    output_names: tuple[str, ...] = field(default=())
    layout: str = ""

    @property
    def counts(self) -> Counter[str]:
        """Operators by type."""
        return Counter(operator.type for operator in self.operators)

    @property
    def precision(self) -> str:
        """fp32, fp16, int8, int16x8 or w8, after the weights and what flows.

        Codes of 8 bits without a sign, of TensorFlow 1, are int8 as well.
        """
        flowing = Counter(_kind(tensor) for tensor in self._flowing())
        weights = {_kind(self.tensors[number]) for number in self._weights()}
        if flowing["int16"]:
            return "int16x8" if flowing["int16"] > flowing["int8"] else "mixed"
        if flowing["int8"]:
            return "int8"
        if any(tensor.type == "float16" for tensor in self.tensors if tensor.is_constant):
            return "fp16"
        return "w8" if {"int8", "int4"} & weights or self._dequantized_weights() else "fp32"

    @property
    def in_float(self) -> Counter[str]:
        """Operators that compute in float32, by type; all of them in a float file."""
        found = [
            o.type for o in self.operators
            if o.type not in ("QUANTIZE", "DEQUANTIZE") and o.outputs
            and self.tensors[o.outputs[0]].type == "float32"
        ]  # fmt: skip
        return Counter(found)

    @property
    def image(self) -> tuple[str, tuple[int, int, int]] | None:
        """Layout (``nhwc`` or ``nchw``) and (channels, height, width) of the image it takes."""
        if len(self.inputs) != 1:
            return None
        return layout_of(self.tensors[self.inputs[0]].shape, self.layout)

    def _flowing(self) -> list[Tensor]:
        return [self.tensors[n] for o in self.operators for n in o.outputs]

    def _weights(self) -> list[int]:
        found = []
        for operator in self.operators:
            at = _WEIGHTED.get(operator.type, len(operator.inputs))
            found += [n for n in operator.inputs[at : at + 1] if n >= 0]
        return found

    def _dequantized_weights(self) -> bool:
        return any(
            o.type == "DEQUANTIZE" and o.inputs and self.tensors[o.inputs[0]].is_constant
            for o in self.operators
        )

    def summary(self) -> str:
        """Return the file in one line."""
        ends = [
            ", ".join(f"{self.tensors[n].type} {list(self.tensors[n].shape)}" for n in numbers)
            for numbers in (self.inputs, self.outputs)
        ]
        layout = f" ({self.image[0].upper()})" if self.image else ""
        return (
            f"{self.file.name}: {self.precision}, {counted(len(self.operators), 'operator')}, "
            f"{self.file.stat().st_size:,} bytes; takes {ends[0]}{layout}, gives {ends[1]}"
        )

    def __str__(self) -> str:
        listed = ", ".join(f"{n} {kind}" for kind, n in self.counts.most_common())
        lines = [self.summary(), f"operators: {listed}"]
        if self.precision in ("int8", "int16x8", "mixed") and self.in_float:
            floats = ", ".join(f"{n} {kind}" for kind, n in self.in_float.most_common())
            lines.append(f"computed in float32: {floats}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for ``--json``."""
        return {
            **asdict(self), "file": str(self.file), "precision": self.precision,
            "counts": dict(self.counts), "in_float": dict(self.in_float),
        }  # fmt: skip


def _kind(tensor: Tensor) -> str:
    return "int8" if tensor.type == "uint8" and tensor.scales else tensor.type


def layout_of(shape: tuple[int, ...], stated: str = "") -> tuple[str, tuple[int, int, int]] | None:
    """Return the layout of an image's shape, and its (channels, height, width); None for others.

    Where it is not stated: a picture has at most four channels and more rows than that, so one end
    tells; where both do, it is NHWC, as TensorFlow writes it.

    Examples
    --------
    >>> layout_of((1, 96, 160, 3)), layout_of((1, 3, 96, 160))
    (('nhwc', (3, 96, 160)), ('nchw', (3, 96, 160)))
    """
    if len(shape) != 4:
        return None
    _, first, second, last = shape
    if (stated or ("nhwc" if last <= 4 or first > 4 else "nchw")) == "nhwc":
        return "nhwc", (last, first, second)
    return "nchw", (first, second, last)


def contents(file: str | Path) -> Contents:
    """Return what the ``.tflite`` at `file` holds.

    Raises
    ------
    ModelFileError
        The file is missing, truncated, or not a ``.tflite``.
    MissingToolError
        Google's wheel, whose schema is needed, is not here.
    """
    file = Path(file)
    data = checked(file)
    schema = _schema()
    damaged = (struct.error, IndexError, TypeError, ValueError, KeyError, AttributeError)
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
        return dataclasses.replace(_read(file, model, schema), layout=_stated_layout(file))
    except (*damaged, MemoryError, OverflowError, RecursionError):
        raise ModelFileError(
            f"{file} begins like a .tflite and cannot be read: it was cut short or changed."
        ) from None


def _stated_layout(file: Path) -> str:
    """Return the layout that the manifest beside a file of the lab says; "" for other files."""
    try:
        layout = manifests.read(file).get("layout")
    except ModelFileError:
        return ""
    return layout if layout in LAYOUTS else ""


def checked(file: str | Path) -> bytes:
    """Return the bytes of a file that begins like a ``.tflite``.

    Raises
    ------
    ModelFileError
        The file is missing, or not a ``.tflite``.
    """
    try:
        data = untrusted.content(file, untrusted.MAX_MODEL_BYTES)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise ModelFileError(f"There is no model file {file}. Check the path.") from None
        raise ModelFileError(f"Cannot read {file}: {error.strerror}.") from None
    if data[4:8] != IDENTIFIER:
        raise ModelFileError(f"{file} is not a .tflite file (it does not say {IDENTIFIER!r}).")
    return data


@functools.cache
def _schema() -> ModuleType:
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:
        from .availability import require

        require()
        raise MissingToolError("ai-edge-litert has no schema: install it again.") from None
    found: ModuleType = schema_py_generated
    return found


def _named(enumeration: type) -> dict[int, str]:
    return {v: name for name, v in vars(enumeration).items() if isinstance(v, int)}


def _read(file: Path, model: Any, schema: ModuleType) -> Contents:
    kinds, types = _named(schema.BuiltinOperator), _named(schema.TensorType)
    graph = model.subgraphs[0]
    codes = [_code(entry, kinds) for entry in model.operatorCodes or ()]
    tensors = tuple(_tensor(entry, model, types) for entry in graph.tensors)
    operators = tuple(
        Operator(codes[o.opcodeIndex], _numbers(o.inputs), _numbers(o.outputs))
        for o in graph.operators
    )
    inputs, outputs = _numbers(graph.inputs), _numbers(graph.outputs)
    _refuse_strays(operators, inputs, outputs, len(tensors))
    known: dict[int, str] = {}
    for signature in (model.signatureDefs or ())[:1]:
        known = {entry.tensorIndex: _text(entry.name) for entry in signature.outputs or ()}
    names = tuple(known.get(n, tensors[n].name) for n in outputs)
    return Contents(file, tensors, operators, inputs, outputs, names)


def _refuse_strays(
    operators: tuple[Operator, ...], inputs: tuple[int, ...], outputs: tuple[int, ...], most: int
) -> None:
    """Raise IndexError where a number names no tensor; -1 is an input that is left out."""
    used = [n for o in operators for n in (*o.inputs, *o.outputs) if n != -1]
    if any(not 0 <= n < most for n in (*used, *inputs, *outputs)):
        raise IndexError("a number that names no tensor")


def _code(entry: Any, kinds: dict[int, str]) -> str:
    code = max(entry.builtinCode, entry.deprecatedBuiltinCode)
    own = _text(entry.customCode) if entry.customCode else ""
    return own or kinds.get(code, f"operator {code}")


def _tensor(entry: Any, model: Any, types: dict[int, str]) -> Tensor:
    quantization = entry.quantization
    scales = getattr(quantization, "scale", None)
    zeros = getattr(quantization, "zeroPoint", None)
    stored = model.buffers[entry.buffer]
    there = stored.data is not None and len(stored.data) > 0
    return Tensor(
        _text(entry.name),
        _numbers(entry.shape),
        types.get(entry.type, f"type {entry.type}").lower(),
        tuple(float(s) for s in (() if scales is None else scales)),
        _numbers(zeros),
        there or (stored.offset or 0) > 1,
    )


def _numbers(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(value) for value in values)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def values(file: str | Path, number: int) -> np.ndarray:
    """Return the stored values of a constant tensor, dequantized where it is quantized.

    Raises
    ------
    ModelFileError
        The file is damaged, or the tensor is not a constant.
    """
    found = contents(file).tensors[number]
    data = checked(file)
    schema = _schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    stored = model.buffers[model.subgraphs[0].tensors[number].buffer].data
    if stored is None or found.type not in _READ:
        raise ModelFileError(f"{file}: tensor {number} has no stored values that are read here.")
    raw = np.frombuffer(bytes(stored), np.dtype(found.type))
    if raw.size != math.prod(found.shape):
        raise ModelFileError(f"{file}: tensor {number} was cut short.")
    shaped = raw.reshape(found.shape)
    if not found.scales:
        return shaped.astype(np.float32)
    axis = model.subgraphs[0].tensors[number].quantization.quantizedDimension
    size = [1] * shaped.ndim
    if len(found.scales) > 1:
        size[axis] = len(found.scales)
    steps, origins = (np.array(v, np.float32).reshape(size) for v in (found.scales, found.zeros))
    return ((shaped.astype(np.float32) - origins) * steps).astype(np.float32)
