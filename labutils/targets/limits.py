"""The limits of an operator table that a machine can check, by the name that the tables use.

Each check takes a node and the table's argument, and answers True (the limit is met), False (it is
missed) or None (the file does not say, or the source itself is unclear).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from . import htp

if TYPE_CHECKING:
    from .onnx_nodes import Node

Check = Callable[["Node", Any], bool | None]
Span = Mapping[str, float]  # {min: .., max: ..}


def _within(value: float | None, span: Span) -> bool | None:
    """Whether `value` lies in ``{min: .., max: ..}``, both inclusive and optional."""
    if value is None:
        return None
    return span.get("min", -math.inf) <= value <= span.get("max", math.inf)


def _all(answers: Iterable[bool | None]) -> bool | None:
    answers = list(answers)
    if False in answers:
        return False
    return None if None in answers else True


def _attribute(node: Node, rule: dict[str, Any]) -> bool | None:
    """One attribute, or each element of a list: equals, one_of, min, max."""
    value = node.attribute(rule["name"], rule.get("default"))
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    return _all(_value_fits(v, rule) for v in values)


def _value_fits(value: Any, rule: dict[str, Any]) -> bool | None:
    if "equals" in rule:
        wanted = rule["equals"]
        if isinstance(wanted, (int, float)) and isinstance(value, (int, float)):
            return math.isclose(value, wanted, rel_tol=1e-5, abs_tol=1e-7)
        return value == wanted
    if "one_of" in rule:
        return value in rule["one_of"]
    return _within(value, rule)


def _absent_attributes(node: Node, names: list[str]) -> bool:
    return not any(attribute.name in names for attribute in node.proto.attribute)


def _rank(node: Node) -> int | None:
    shape = node.shape(0)
    return None if shape is None else len(shape)


def _input_rank(node: Node, span: Span) -> bool | None:
    return _within(_rank(node), span)


def _input_dims(node: Node, span: Span) -> bool | None:
    """Dimensions other than 1, in every variable input."""
    shapes = [node.shape(i) for i in node.variable_inputs]
    # A dimension of unknown size counts: the limit is then an upper bound on the safe side.
    return _all(None if s is None else _within(sum(d != 1 for d in s), span) for s in shapes)


def _plane_sides(node: Node) -> list[int] | None:
    shape = node.shape(0)
    if shape is None or len(shape) < 3 or None in shape[2:]:
        return None
    return [side for side in shape[2:] if side is not None]


def _plane(node: Node, span: Span) -> bool | None:
    sides = _plane_sides(node)
    return None if sides is None else _within(math.prod(sides), span)


def _plane_side(node: Node, span: Span) -> bool | None:
    sides = _plane_sides(node)
    return None if sides is None else _all(_within(side, span) for side in sides)


def _channels(node: Node, span: Span) -> bool | None:
    shape = node.shape(0)
    return _within(shape[1], span) if shape is not None and len(shape) > 1 else None


def _group_channels(node: Node, span: Span) -> bool | None:
    weights = node.shape(1)
    return None if not weights else _within(weights[1], span)


def _inputs(node: Node, span: Span) -> bool | None:
    return _within(sum(bool(name) for name in node.proto.input), span)


def _outputs(node: Node, span: Span) -> bool | None:
    return _within(sum(bool(name) for name in node.proto.output), span)


def _constant_inputs(node: Node, positions: list[int]) -> bool:
    return not set(positions) & set(node.variable_inputs)


def _variable_inputs(node: Node, span: Span) -> bool | None:
    return _within(len(node.variable_inputs), span)


def _constant_rank(node: Node, span: Span) -> bool | None:
    shapes = [node.shape(i) for i in range(len(node.proto.input)) if node.is_constant(i)]
    return _all(None if s is None else _within(len(s), span) for s in shapes)


def _kernel_sides(node: Node) -> list[int] | None:
    sides = node.attribute("kernel_shape")
    if sides is not None:
        return sides
    weights = node.shape(1)
    if weights is None or None in weights[2:]:
        return None
    return [side for side in weights[2:] if side is not None]


def _kernel(node: Node, span: Span) -> bool | None:
    sides = _kernel_sides(node)
    return None if sides is None else _all(_within(side, span) for side in sides)


def _kernel_volume(node: Node, span: Span) -> bool | None:
    weights = node.shape(1)
    if weights is None or None in weights[1:]:
        return None
    return _within(math.prod(side for side in weights[1:] if side is not None), span)


def _kernel_matches_weights(node: Node, _: bool) -> bool | None:
    stated, weights = node.attribute("kernel_shape"), node.shape(1)
    if stated is None:
        return True  # nothing stated, so nothing to disagree
    return None if weights is None else list(weights[2:]) == stated


def _strides(node: Node) -> list[int]:
    return node.attribute("strides", [1])


def _depthwise(node: Node) -> bool | None:
    weights = node.shape(1)
    if weights is None:
        return None
    group = node.attribute("group", 1)
    return group > 1 and weights[1] == 1


def _depthwise_kernel(node: Node, span: Span) -> bool | None:
    depthwise = _depthwise(node)
    return _kernel(node, span) if depthwise else (True if depthwise is False else None)


def _forms(node: Node, rule: dict[str, Any]) -> bool | None:
    """Kernel and stride as ``5x5s2``: met when listed, open when unclear, else missed.

    With ``validated`` instead of ``listed``, what is not in the list is open, not missed.
    """
    if rule.get("depthwise"):
        depthwise = _depthwise(node)
        if not depthwise:
            return True if depthwise is False else None
    sides, strides = _kernel_sides(node), _strides(node)
    if sides is None:
        return None
    form = "x".join(map(str, sides)) + "s" + "x".join(map(str, dict.fromkeys(strides)))
    if form in rule.get("unclear", ()):
        return None
    if "validated" in rule:
        return True if form in rule["validated"] else None
    return form in rule["listed"] if "listed" in rule else True


def _kernel_limit_at_stride(node: Node, rule: dict[str, int]) -> bool | None:
    if rule["stride"] not in _strides(node):
        return True
    return _kernel(node, {"max": rule["max"]})


def _kernel_at_stride(node: Node, rule: dict[str, int]) -> bool | None:
    if rule["stride"] not in _strides(node):
        return True
    return _kernel(node, {"min": rule["kernel"], "max": rule["kernel"]})


def _equal_strides(node: Node, _: bool) -> bool:
    return len(set(_strides(node))) == 1


def _dilated_stride(node: Node, stride: int) -> bool:
    dilated = any(d > 1 for d in node.attribute("dilations", [1]))
    return not dilated or set(_strides(node)) == {stride}


def _padding_within_width(node: Node, _: bool) -> bool | None:
    if node.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    pads, sides = node.attribute("pads", [0]), _plane_sides(node)
    if sides is None:
        return None
    half = len(pads) // 2
    across = max(pads[half - 1], pads[-1]) if half else max(pads)
    return sides[-1] >= across


def _clip_bounds(node: Node, rule: dict[str, float]) -> bool | None:
    """Bounds of a Clip: low_max and high_above, or exactly low and high."""
    low, high = (_bound(node, i, name) for i, name in ((1, "min"), (2, "max")))
    if low is None or high is None:
        return None
    if "low" in rule:
        return math.isclose(low, rule["low"]) and math.isclose(high, rule["high"])
    return low <= rule["low_max"] and high > rule["high_above"]


def _bound(node: Node, index: int, name: str) -> float | None:
    """One bound of a Clip: an input since version 11, an attribute before, else infinite."""
    if index in node.variable_inputs:
        return None
    if node.is_constant(index):
        value = node.value(index)
        return None if value is None or value.size != 1 else float(value.reshape(-1)[0])
    return float(node.attribute(name, -math.inf if name == "min" else math.inf))


def _from_end(node: Node) -> list[int] | None:
    """Axis (or all axes from it) counted from the end, e.g. -1 for the last."""
    axis, rank = node.attribute("axis"), _rank(node)
    if axis is None:
        return None
    return [axis] if axis < 0 else (None if rank is None else [axis - rank])


def _axis_from_end(node: Node, allowed: list[int]) -> bool | None:
    axes, rank = _from_end(node), _rank(node)
    if axes is None:
        return None
    not_batch = rank is None or axes[0] != -rank
    return axes[0] in allowed and not_batch


def _axis_is(node: Node, allowed: list[int]) -> bool | None:
    axes, rank = _from_end(node), _rank(node)
    return None if axes is None or rank is None else axes[0] + rank in allowed


def _axis_not(node: Node, refused: list[int]) -> bool | None:
    answer = _axis_is(node, refused)
    return None if answer is None else not answer


def _one_axis_or_hw(node: Node, _: bool) -> bool | None:
    axes, rank = node.attribute("axes"), _rank(node)
    if axes is None and node.is_constant(1):
        value = node.value(1)
        axes = None if value is None else [int(a) for a in value.reshape(-1)]
    if axes is None or rank is None:
        return None
    axes = sorted(a % rank for a in axes)
    return len(axes) == 1 or (rank == 4 and axes == [2, 3])


def _gemm_bias(node: Node, _: bool) -> bool | None:
    bias, weights = node.shape(2), node.shape(1)
    if len(node.proto.input) < 3 or not node.proto.input[2]:
        return True
    if bias is None or weights is None or len(weights) != 2:
        return None
    width = weights[0] if node.attribute("transB", 0) else weights[1]
    return bias in ((width,), (1, width))


def _zero_free_if_allowzero(node: Node, _: bool) -> bool | None:
    if not node.attribute("allowzero", 0):
        return True
    shape = node.value(1)
    return None if shape is None else bool((shape != 0).all())


def _batch_not_broadcast(node: Node, _: bool) -> bool | None:
    shapes = [node.shape(i) for i in node.variable_inputs]
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes):
        return None
    if len(known) < 2 or len(known[0]) != len(known[1]) or not known[0]:
        return True  # a constant, or a lower rank, which has no batch axis
    return known[0][0] == known[1][0]


def _graph_boundary(node: Node, _: bool) -> bool:
    return node.at_boundary


def _of_a_weight(node: Node, _: bool) -> bool | None:
    """Whether a QuantizeLinear or DequantizeLinear reads a constant; open where it does not."""
    return node.is_constant(0) or None


def _within_gelu(node: Node, wanted: bool) -> bool:
    """Whether an Erf reads ``x / sqrt(2)``, and one is added to what it gives (or a half)."""
    divided = node.producer(0)
    factors = []
    if divided is not None and divided.op_type in ("Div", "Mul"):
        factors = [divided.value(i) for i in (0, 1)]
    root = any(f is not None and f.size == 1 and _is_root(float(f.ravel()[0])) for f in factors)
    return (root and "Add" in [user.op_type for user in node.users()]) == wanted


def _is_root(factor: float) -> bool:
    return any(math.isclose(factor, root, rel_tol=1e-3) for root in (math.sqrt(2), math.sqrt(0.5)))


CHECKS: dict[str, Check] = {
    "attribute": _attribute,
    "absent_attributes": _absent_attributes,
    "input_rank": _input_rank,
    "input_dims": _input_dims,
    "plane": _plane,
    "plane_side": _plane_side,
    "channels": _channels,
    "group_channels": _group_channels,
    "inputs": _inputs,
    "outputs": _outputs,
    "constant_inputs": _constant_inputs,
    "variable_inputs": _variable_inputs,
    "constant_rank": _constant_rank,
    "kernel": _kernel,
    "kernel_volume": _kernel_volume,
    "kernel_matches_weights": _kernel_matches_weights,
    "kernel_limit_at_stride": _kernel_limit_at_stride,
    "kernel_at_stride": _kernel_at_stride,
    "depthwise_kernel": _depthwise_kernel,
    "forms": _forms,
    "equal_strides": _equal_strides,
    "dilated_stride": _dilated_stride,
    "padding_within_width": _padding_within_width,
    "clip_bounds": _clip_bounds,
    "axis_from_end": _axis_from_end,
    "axis_is": _axis_is,
    "axis_not": _axis_not,
    "one_axis_or_hw": _one_axis_or_hw,
    "gemm_bias": _gemm_bias,
    "zero_free_if_allowzero": _zero_free_if_allowzero,
    "batch_not_broadcast": _batch_not_broadcast,
    "graph_boundary": _graph_boundary,
    "within_gelu": _within_gelu,
    "of_a_weight": _of_a_weight,
    "htp_resize": htp.resize,
    "htp_resize_coordinates": htp.resize_coordinates,
    "htp_nearest_mode": htp.nearest_mode,
    "htp_pad": htp.pad,
    "htp_conv": htp.conv,
    "htp_cast": htp.cast,
    "htp_hard_swish_of_two": htp.hard_swish_of_two,
    "htp_point": htp.point,
}
