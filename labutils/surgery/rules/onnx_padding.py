"""Exact rules for padding that Qualcomm's HTP does not write, or does not read, as ONNX says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...targets import htp
from ..forms import NOT_MINE, Leave, OnnxPass
from ..onnx_level.nodes import optional_input, required_input, shape_of
from ..report import Left, Match
from ..rule import Rule
from .onnx_operators import make_pass, static_shape

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..onnx_level.writing import Writer

_UNKNOWN = "the shape or the type of its input is unknown: run onnx.shape_inference"


def _pad(node: ir.Node, writer: Writer) -> list[ir.Node] | Leave:
    """Join constants to the tensor, one axis after the other."""
    from ..onnx_level.writing import array_of

    x, pads = required_input(node), array_of(optional_input(node, 1))
    if node.attributes.get_string("mode", "constant") != "constant":
        return NOT_MINE
    value = optional_input(node, 2)
    filling = np.zeros((), np.float32) if value is None else array_of(value)
    if pads is None or filling is None or optional_input(node, 3) is not None:
        return Leave("what it adds is computed")
    counts = [int(n) for n in pads]
    if not htp.pads_at_the_end(counts, zero=not filling.any()):
        return NOT_MINE
    if min(counts) < 0:
        return Leave("it takes elements away")
    joined = _joined(node, writer, x, counts, filling)
    return Leave(_UNKNOWN) if joined is None else joined


def _joined(
    node: ir.Node, writer: Writer, x: ir.Value, counts: list[int], filling: np.ndarray
) -> list[ir.Node] | None:
    """Return the Concat nodes that pad a tensor; None where its shape or type is unknown."""
    import onnx_ir as ir

    shape, dtype = static_shape(x), x.dtype or node.outputs[0].dtype
    if shape is None or dtype is None:
        return None
    new: list[ir.Node] = []
    for axis in (a for a in range(len(shape)) if counts[a] or counts[a + len(shape)]):
        parts: list[ir.Value] = [x]
        for count, place in ((counts[axis], 0), (counts[axis + len(shape)], len(parts) + 1)):
            if count:
                sizes = [*shape[:axis], count, *shape[axis + 1 :]]
                added = np.full(sizes, filling.reshape(()), dtype.numpy())
                parts.insert(place, writer.constant(added, f"{node.outputs[0].name}.{axis}"))
        new.append(writer.node("Concat", parts, node, axis=axis))
        shape[axis] += counts[axis] + counts[axis + len(shape)]
        x = new[-1].outputs[0]
        x.shape, x.dtype = ir.Shape(shape), dtype
    return new


def _conv(node: ir.Node, writer: Writer) -> list[ir.Node] | Leave:
    """Write zeros at the end of a kernel, and as many elements of padding more behind them."""
    from ..onnx_level.writing import array_of

    shape = shape_of(node, 1)
    if shape is None or len(shape) < 3:
        return NOT_MINE
    pads, dilations, strides = _settings(node)
    axes = len(dilations)
    sides = [side if isinstance(side, int) else 0 for side in shape[2:]]
    before = [one + two for one, two in zip(pads, _merged(node, axes), strict=False)]
    if not htp.reads_before(before, sides, dilations, strides):
        return NOT_MINE
    kernel = required_input(node, 1)
    weights = array_of(kernel)
    if weights is None:
        return Leave("its weights are computed")
    more = [max(0, pad - side + 1) if dilation == stride == 1 and side > 1 else 0
            for pad, side, dilation, stride in
            zip(before, sides, dilations, strides, strict=True)]  # fmt: skip
    longer = np.pad(weights, [(0, 0), (0, 0), *((0, n) for n in more)])
    attributes = {name: a.value for name, a in node.attributes.items() if name != "pads"}
    attributes["kernel_shape"] = list(longer.shape[2:])
    behind = [pad + n for pad, n in zip(pads[axes:], more, strict=True)]
    inputs = [node.inputs[0], writer.constant(longer, f"{kernel.name}.longer")]
    whole = [*inputs, *node.inputs[2:]]
    return [writer.node("Conv", whole, node, pads=[*pads[:axes], *behind], **attributes)]


def _merged(node: ir.Node, axes: int) -> list[int]:
    """Return what a Pad of zeros adds before a Conv, which ONNX Runtime makes a part of it."""
    from ..onnx_level.writing import array_of

    pad = required_input(node).producer()
    if pad is None or pad.op_type != "Pad":
        return [0] * axes
    pads, value = array_of(optional_input(pad, 1)), optional_input(pad, 2)
    filling = np.zeros(1) if value is None else array_of(value)
    constant = pad.attributes.get_string("mode", "constant") == "constant"
    if not constant or pads is None or filling is None or filling.any():
        return [0] * axes
    return [int(n) for n in pads[2 : 2 + axes]]


def _settings(node: ir.Node) -> tuple[list[int], list[int], list[int]]:
    """Return pads, dilations and strides of a Conv, written or by default."""
    from ..onnx_level.writing import numbers, rank_of

    axes = (rank_of(node.inputs[1]) or 2) - 2
    dilations, strides = (numbers(node, name, [1] * axes) for name in ("dilations", "strides"))
    return numbers(node, "pads", [0] * (2 * axes)), dilations, strides


def _lengthen(model: ir.Model, rule: Rule) -> tuple[list[Match], list[Left]]:
    import onnx_ir.passes.common as common

    matches, left = make_pass("Conv", _conv).run(model, rule)
    if matches:
        common.RemoveUnusedNodesPass()(model)  # takes the shorter kernels away as well
    return matches, left


PAD_TO_CONCAT = Rule(
    name="pad-to-concat",
    exact=True,
    error="none: the same constants, joined to the tensor",
    source="definition; QNN 2.51's HTP does not write what a Pad adds at the end alone (measured)",
    keeps="everything",
    onnx_passes=(make_pass("Pad", _pad),),
)
LONGER_KERNEL = Rule(
    name="longer-kernel",
    exact=True,
    error="float32: within 1e-6 of the largest output: a backend may add in another order",
    source="a kernel's zeros add nothing; QNN 2.51's HTP reads past the tensor where the padding "
    "before it is as long as the kernel (measured)",
    keeps="the bias and the attributes; the weights get zeros at the end",
    onnx_passes=(OnnxPass(_lengthen, frozenset({"Conv"})),),
)

RULES = (PAD_TO_CONCAT, LONGER_KERNEL)
