"""An exact rule for nearest Resizes of ONNX graphs, which Qualcomm's HTP reads in its own way.

The HTP has three nearest Resizes and takes every other for one of them. Which elements are read
follows from the lengths alone, so it can be compared: a Resize that reads what one of the three
does is written as that one, with its sizes; any other one selects its elements by Gather.
"""

from __future__ import annotations

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
        return Leave(f"{coordinates} reads a region that is given at run time")
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
    from ..onnx_level.writing import array_of

    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if "axes" in node.attributes or policy != "stretch":
        return Leave("it names axes, or keeps the ratio of the sides (opset 18)")
    if node.attributes.get_int("antialias", 0):
        return Leave("it smooths (antialias)")
    shape = required_input(node).shape
    known = None if shape is None else [n if isinstance(n, int) else None for n in shape]
    scales, sizes = (array_of(optional_input(node, n)) for n in (2, 3))
    return axes(known, scales, sizes) or Leave("its size or that of its input is not known")


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
    """Return a Gather for each axis that changes; it reads the same elements by their numbers."""
    import onnx_ir as ir

    x, new = required_input(node), []
    sizes = [axis.length for axis in axes]
    for number, (axis, read) in enumerate(zip(axes, reads, strict=True)):
        if read == tuple(range(axis.length)):
            continue
        indices = writer.constant(np.array(read), f"{node.outputs[0].name}.axis{number}")
        new.append(writer.node("Gather", [x, indices], node, axis=number))
        sizes[number] = axis.resized
        made = new[-1].outputs[0]
        made.shape, made.type = ir.Shape(sizes), x.type
        x = made
    return new or [writer.node("Identity", [x], node)]


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
