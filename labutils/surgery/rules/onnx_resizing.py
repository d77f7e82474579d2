"""An exact rule for nearest Resizes of ONNX graphs, which Qualcomm's HTP reads in its own way.

The HTP has three nearest Resizes and takes every other for one of them. Which elements are read
follows from the lengths alone, so it can be compared: a Resize that reads what one of the three
does is written as that one, with its sizes; any other one selects its elements by Gather.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..forms import NOT_MINE, Leave
from ..onnx_level.nodes import optional_input, required_input
from ..rule import Rule
from .onnx_operators import make_pass

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...targets.resampling import Axis
    from ..onnx_level.writing import Writer

Reads = list[tuple[int, ...]]


def _nearest(node: ir.Node, writer: Writer) -> list[ir.Node] | Leave:
    from ...targets.resampling import HTP_NEAREST, htp_nearest, nearest

    if node.attributes.get_string("mode", "nearest") != "nearest" or writer.opset < 11:
        return NOT_MINE
    axes = _axes(node)
    if isinstance(axes, Leave):
        return axes
    coordinates = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    found = [nearest(axis, coordinates or "", rounding or "") for axis in axes]
    reads = [read for read in found if read is not None]
    if len(reads) < len(axes):
        if coordinates == "tf_crop_and_resize":
            return Leave(f"{coordinates} reads a region that is given at run time")
        return Leave("it keeps the ratio of the sides, and rounds a side up")
    takes = (coordinates, rounding) in HTP_NEAREST.items()
    if takes and reads == [htp_nearest(axis, coordinates or "") for axis in axes]:
        return NOT_MINE
    for name, rounded in HTP_NEAREST.items():
        sized = [_sized(axis) for axis in axes]
        if (
            reads
            == [nearest(axis, name, rounded) for axis in sized]
            == [htp_nearest(axis, name) for axis in sized]
        ):
            return [_resize(node, writer, sized, name, rounded)]
    return _gather(node, writer, axes, reads)


def _axes(node: ir.Node) -> list[Axis] | Leave:
    from ...targets.resampling import axes
    from ..onnx_level.writing import array_of, numbers

    if node.attributes.get_int("antialias", 0):
        return Leave("it smooths (antialias)")
    shape = required_input(node).shape
    known = None if shape is None else [n if isinstance(n, int) else None for n in shape]
    scales, sizes = (array_of(optional_input(node, n)) for n in (2, 3))
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch") or "stretch"
    return axes(known, scales, sizes, numbers(node, "axes", ()), policy) or Leave(
        "its size or that of its input is not known"
    )


def _sized(axis: Axis) -> Axis:
    from ...targets.resampling import Axis, ratio

    return Axis(axis.length, axis.resized, ratio(axis.resized, axis.length), sized=True)


def _resize(
    node: ir.Node, writer: Writer, axes: list[Axis], coordinates: str, rounding: str
) -> ir.Node:
    """Return the Resize that the HTP has, with sizes: it takes the factor from them anyway."""
    name = node.outputs[0].name
    sizes = writer.constant(np.array([axis.resized for axis in axes]), f"{name}.sizes")
    empty = None  # opsets 11 and 12 demand both inputs
    if writer.opset < 13:
        empty = writer.constant(np.zeros(0, np.float32), f"{name}.none")
    return writer.node(
        "Resize", [required_input(node), empty, empty, sizes], node, mode="nearest",
        coordinate_transformation_mode=coordinates, nearest_mode=rounding,
    )  # fmt: skip


def _gather(node: ir.Node, writer: Writer, axes: list[Axis], reads: Reads) -> list[ir.Node]:
    """Return nodes that read the same elements by their numbers, along one last axis.

    The HTP gathers integers wrongly along other axes (measured with QNN 2.51: 16 rows doubled), so
    the axes from the first that changes on become one.
    """
    import onnx_ir as ir

    x, name = required_input(node), node.outputs[0].name
    first = next((k for k, r in enumerate(reads) if r != tuple(range(axes[k].length))), None)
    if first is None:
        return [writer.node("Identity", [x], node)]
    before = [axis.length for axis in axes[:first]]
    inner = np.arange(math.prod(axis.length for axis in axes[first:]))
    picked = inner.reshape([axis.length for axis in axes[first:]])[np.ix_(*reads[first:])]
    indices = writer.constant(picked.ravel(), f"{name}.elements")
    if first == len(axes) - 1:
        return [writer.node("Gather", [x, indices], node, axis=first)]
    flat = writer.constant(np.array([*before, inner.size]), f"{name}.flat")
    whole = writer.constant(np.array([axis.resized for axis in axes]), f"{name}.shape")
    new = [writer.node("Reshape", [x, flat], node)]
    new.append(writer.node("Gather", [new[0].outputs[0], indices], node, axis=first))
    new.append(writer.node("Reshape", [new[1].outputs[0], whole], node))
    for made, size in zip(new, (inner.size, picked.size), strict=False):
        made.outputs[0].shape, made.outputs[0].type = ir.Shape([*before, size]), x.type
    new[2].outputs[0].shape = ir.Shape([axis.resized for axis in axes])
    return new


NEAREST_RESIZE = Rule(
    name="nearest-resize",
    exact=True,
    error="none: the same elements are read",
    source="positions of ONNX Runtime against those of QNN 2.51's HTP (measured; "
    "labutils.targets.resampling)",
    keeps="everything; sizes instead of factors where the Resize stays one",
    onnx_passes=(make_pass("Resize", _nearest),),
)

RULES = (NEAREST_RESIZE,)
