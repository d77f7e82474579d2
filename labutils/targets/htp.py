"""What Qualcomm's HTP computes otherwise, or does not compile, although QNN takes the node.

Every limit here was measured with QNN 2.51 on its simulator; none is documented. The checks answer
as those of `limits` do: True where the limit is met, False where it is missed, None where the file
does not say.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from . import resampling

if TYPE_CHECKING:
    from .onnx_nodes import Node

_WHOLE = {"Floor", "Ceil", "Round", "Sign", "Shape", "ArgMax", "ArgMin", "Size", "NonZero"}
_MERGED = {"Conv", "AveragePool", "MaxPool"}  # ONNX Runtime makes a Pad of zeros part of these


def resize(node: Node, _: Any) -> bool | None:
    """Whether the HTP reads what ONNX says: the same elements, or the same factor of each axis."""
    mode, coordinates = node.attribute("mode"), node.attribute("coordinate_transformation_mode")
    axes = resize_axes(node)
    if axes is None:
        return None
    changed = [axis for axis in axes if axis.changes]
    if mode == "nearest":
        rounding = node.attribute("nearest_mode")
        pairs = [(resampling.nearest(axis, coordinates, rounding),
                  resampling.htp_nearest(axis, coordinates)) for axis in changed]  # fmt: skip
        if any(theirs is None for _, theirs in pairs):
            return None
        return all(ours == theirs for ours, theirs in pairs)
    if coordinates == "pytorch_half_pixel" and any(axis.resized == 1 for axis in changed):
        return False  # ONNX reads the first element then, the HTP the middle
    ends_fixed = mode == "linear" and coordinates == "align_corners"  # the lengths alone count
    return ends_fixed or all(axis.whole_ratio for axis in changed)


def resize_axes(node: Node) -> list[resampling.Axis] | None:
    """Return the axes of a Resize; None where it has no fixed factor."""
    if node.version is None or node.version < 11:
        return None
    policy = node.attribute("keep_aspect_ratio_policy", "stretch")
    named = node.attribute("axes", [])
    return resampling.axes(node.shape(0), node.value(2), node.value(3), named, policy)


def resize_coordinates(node: Node, _: Any) -> bool:
    """Whether the HTP has the coordinates of a nearest Resize; QNN refuses others by name."""
    stated = node.attribute("mode"), node.attribute("coordinate_transformation_mode")
    return stated != ("nearest", "tf_half_pixel_for_nn")


def pad(node: Node, _: Any) -> bool | None:
    """Whether the HTP writes every element that a Pad adds.

    After an activation it does not write what is added at the end of the last axis alone; after a
    convolution it writes zeros at the end of the channels, whatever the value.
    """
    if node.attribute("mode", "constant") != "constant":
        return True
    shape, pads, value = node.shape(0), node.value(1), node.value(2)
    zero = value is None or not value.any()
    if node.producer(0) is None:
        return True
    if shape is None or pads is None or len(pads) != 2 * len(shape):
        return None
    users = {user.op_type for user in node.users()}
    if zero and users and users <= _MERGED:
        return True
    return not pads_at_the_end([int(n) for n in pads], zero)


def pads_at_the_end(pads: list[int], zero: bool) -> bool:
    """Whether a Pad adds at the end of the last axis alone, or of the channels what is not zero.

    Examples
    --------
    >>> pads_at_the_end([0, 0, 0, 0, 0, 0, 0, 1], zero=True)
    True
    >>> pads_at_the_end([0, 0, 1, 1, 0, 0, 1, 1], zero=False)
    False
    """
    rank = len(pads) // 2
    last = pads[rank - 1] <= 0 < pads[-1]
    channels = rank > 2 and pads[1] <= 0 < pads[rank + 1] and not zero
    return last or channels


def conv(node: Node, _: Any) -> bool | None:
    """Whether the HTP reads what is padded before a Conv, by itself or by the Pad that it reads."""
    weights = node.shape(1)
    if weights is None or None in weights:
        return None
    axes, pad = len(weights) - 2, node.producer(0)
    before = [int(n) for n in node.attribute("pads", [0] * axes)[:axes]]
    if pad is not None and pad.op_type == "Pad" and pad.attribute("mode", "constant") == "constant":
        pads, value = pad.value(1), pad.value(2)
        if pads is not None and (value is None or not value.any()):
            before = [one + int(two) for one, two in zip(before, pads[2:], strict=False)]
    sides = [side or 0 for side in weights[2:]]
    dilations, strides = (node.attribute(name, [1] * axes) for name in ("dilations", "strides"))
    return not reads_before(before, sides, dilations, strides)


def reads_before(
    pads: list[int], kernel: list[int], dilations: list[int], strides: list[int]
) -> bool:
    """Whether the first positions of a convolution lie in its padding alone.

    The HTP then reads what was in memory before the tensor, or the process dies: with a kernel of
    more than one element, and without dilation and stride.

    Examples
    --------
    >>> reads_before([3, 1], [3, 3], [1, 1], [1, 1]), reads_before([2, 2], [3, 3], [1, 1], [1, 1])
    (True, False)
    """
    each = zip(pads, kernel, dilations, strides, strict=True)
    return any(pad >= side > 1 and dilation == stride == 1 for pad, side, dilation, stride in each)


def cast(node: Node, _: Any) -> bool | None:
    """Whether a Cast gives what ONNX says: the HTP rounds to integers, ONNX cuts off."""
    from onnx import TensorProto

    if node.attribute("to") in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL):
        return True
    before = node.producer(0)
    if before is None:
        return None
    return True if before.op_type in _WHOLE else None


def hard_swish_of_two(node: Node, _: Any) -> bool:
    """Whether a HardSigmoid is not the half of a HardSwish, which QNN makes one operator of.

    That operator computes another function in an ONNX session, and does not compile in a DLC.
    """
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    if not (math.isclose(alpha, 1 / 6, rel_tol=1e-4) and math.isclose(beta, 0.5, rel_tol=1e-4)):
        return True
    users = (user for user in node.users() if user.op_type == "Mul")
    return not any(node.proto.input[0] in user.proto.input for user in users)


def point(node: Node, _: Any) -> bool | None:
    """Whether a tensor that gets five dimensions is not what a convolution makes of one point."""
    before, made = node.producer(0), node.output_shape
    if before is None or before.op_type not in ("Conv", "ConvTranspose"):
        return True
    shape = node.shape(0)
    if shape is None or made is None:
        return None
    return len(made) < 5 or any(side != 1 for side in shape[2:])


def nearest_mode(node: Node, _: Any) -> bool:
    """Whether QNN takes the rounding of a nearest Resize; it refuses others by name."""
    stated = node.attribute("mode"), node.attribute("coordinate_transformation_mode")
    rounding = node.attribute("nearest_mode")
    return stated != ("nearest", "asymmetric") or rounding in ("floor", "round_prefer_ceil")
