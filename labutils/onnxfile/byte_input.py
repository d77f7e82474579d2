"""NV12 bytes as the input of an ONNX file: what an input is called that has such, and what it is.

The facts stand in the file's metadata, as JSON, because a shape of (1, 3h/2, w) does not say which
range the bytes have, nor the order of the chroma.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from .. import untrusted
from . import graph

if TYPE_CHECKING:
    import onnx

KEY = "labutils.input"
_RANGES, _ORDERS = ("video", "full"), ("nv12", "nv21")


@dataclass(frozen=True)
class ByteInput:
    """An input that takes a picture as NV12.

    Attributes
    ----------
    height, width
        Of the picture.
    kind
        ``video`` (luma 16 to 235) or ``full`` (0 to 255); "" where the file does not say.
    order
        ``nv12`` (U, V) or ``nv21`` (V, U); "" where the file does not say.
    """

    height: int
    width: int
    kind: Literal["", "video", "full"] = ""
    order: Literal["", "nv12", "nv21"] = ""

    def __str__(self) -> str:
        kind = f", {self.kind} range" if self.kind else ", range not stated"
        return f"{(self.order or 'nv12').upper()} bytes of {self.height} x {self.width}{kind}"


def read(model: onnx.ModelProto) -> ByteInput | None:
    """Return what picture the one input of a model takes as NV12 bytes, None where it takes none.

    It is uint8, and (1, 3h/2, w) with or without another axis of one.
    """
    from onnx import TensorProto

    entries = graph.inputs(model)
    tensor = entries[0].type.tensor_type if len(entries) == 1 else None
    if tensor is None or tensor.elem_type != TensorProto.UINT8:
        return None
    sides = [dim.dim_value for dim in tensor.shape.dim if dim.dim_value != 1]
    if len(sides) != 2 or sides[0] % 3 or sides[1] % 2:
        return None
    said = _stated(model)
    kind, order = said.get("kind"), said.get("order")
    return ByteInput(
        sides[0] // 3 * 2, sides[1],
        kind if kind in _RANGES else "", order if order in _ORDERS else "",
    )  # fmt: skip


def state_(model: onnx.ModelProto, taken: ByteInput) -> None:
    """Write into a model's metadata what its input takes, in place."""
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=KEY, value=json.dumps(asdict(taken)))


def _stated(model: onnx.ModelProto) -> dict[str, Any]:
    for entry in model.metadata_props:
        if entry.key == KEY:
            try:
                found = untrusted.json_value(entry.value)
            except (ValueError, TypeError, RecursionError):
                return {}
            return found if isinstance(found, dict) else {}
    return {}
