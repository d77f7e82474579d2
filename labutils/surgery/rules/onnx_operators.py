"""Exact rules that express one ONNX operator by others, for targets that lack it or limit it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..forms import NOT_MINE, Leave, OnnxPass
from ..onnx_level.nodes import optional_input, required_input
from ..report import Left, Match
from ..rule import Rule

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..onnx_level.writing import Writer

MOST_DIMENSIONS = 5

Rewrite = Callable[["ir.Node", "Writer"], "list[ir.Node] | Leave"]
"""node, writer -> the nodes that take its place, or why it is left."""


def _rewrite_each(
    model: ir.Model, rule: Rule, op_type: str, rewrite: Rewrite
) -> tuple[list[Match], list[Left]]:
    from ..onnx_level.writing import Writer, label

    writer = Writer(model)
    matches: list[Match] = []
    left: list[Left] = []
    for node in [node for node in model.graph.all_nodes() if node.op_type == op_type]:
        new = rule.excludes(node.name) or rewrite(node, writer)
        if isinstance(new, Leave):
            left += [Left(label(node), op_type, new.why)] if new.reported else []
            continue
        writer.replace(node, new)
        became = ", ".join(n.op_type for n in new)
        matches.append(Match(rule.name, "onnx", label(node), op_type, became))
    return matches, left


def make_pass(op_type: str, rewrite: Rewrite, also: Iterable[str] = ()) -> OnnxPass:
    """Return the pass that rewrites every node of one operator; `also` are others it removes."""
    run = functools.partial(_rewrite_each, op_type=op_type, rewrite=rewrite)
    return OnnxPass(run, frozenset({op_type, *also}))


def _sub(node: ir.Node, writer: Writer) -> list[ir.Node] | Leave:
    from ..onnx_level.writing import array_of

    if any(array_of(value) is not None for value in node.inputs):
        return Leave("one operand is a constant")
    one, other = required_input(node, 0), required_input(node, 1)
    dtype = other.dtype or one.dtype or node.outputs[0].dtype
    if dtype is None:
        return Leave("the type of its input is unknown: run onnx.shape_inference first")
    minus = writer.constant(np.asarray(-1, dtype.numpy()), f"{node.outputs[0].name}.minus_one")
    negative = writer.node("Mul", [other, minus], node)
    return [negative, writer.node("Add", [one, negative.outputs[0]], node)]


def _clip(node: ir.Node, writer: Writer) -> list[ir.Node] | Leave:
    from ..onnx_level.writing import array_of

    low, high = (array_of(optional_input(node, n)) for n in (1, 2))
    open_above = optional_input(node, 2) is None
    if low is None or not (open_above or (high is not None and high >= np.finfo(high.dtype).max)):
        return Leave("it has an upper bound, or no lower one")
    if float(low) <= 0:
        return Leave("its lower bound is one that targets accept")
    return [writer.node("Max", [node.inputs[0], node.inputs[1]], node)]


def _computed_clip(node: ir.Node, writer: Writer) -> list[ir.Node] | Leave:
    """Write ``min(max(x, low), high)``, in this order: ONNX's Clip of crossed bounds gives high."""
    from ..onnx_level.writing import array_of

    bounds = [(op, optional_input(node, n)) for n, op in ((1, "Max"), (2, "Min"))]
    given = [(op, bound) for op, bound in bounds if bound is not None]
    if all(array_of(bound) is not None for _, bound in given):
        return NOT_MINE
    x, made = required_input(node), list["ir.Node"]()
    for op, bound in given:
        made.append(writer.node(op, [made[-1].outputs[0] if made else x, bound], node))
        made[-1].outputs[0].shape, made[-1].outputs[0].type = x.shape, x.type
    return made


def _transpose(node: ir.Node, writer: Writer) -> list[ir.Node] | Leave:
    """Drop axes of size 1, and join axes that stay adjacent, between two Reshapes."""
    import onnx_ir as ir

    from ..onnx_level.writing import array_of, numbers

    x = required_input(node)
    shape = static_shape(x)
    if shape is None or len(shape) <= MOST_DIMENSIONS:
        return NOT_MINE
    uses = [use.node for use in node.outputs[0].uses()]
    if [u.op_type for u in uses] != ["Reshape"] or node.outputs[0].is_graph_output():
        return Leave("its output does not go into one Reshape")
    wanted = array_of(uses[0].inputs[1])
    if wanted is None or 0 in wanted:
        return Leave("the Reshape after it takes over dimensions of its input")
    order = numbers(node, "perm", tuple(reversed(range(len(shape)))))
    groups = _groups(shape, order)
    if len(groups) > MOST_DIMENSIONS:
        return Leave(f"{len(groups)} dimensions move independently")
    ordered = sorted(groups)
    sizes = np.array([int(np.prod([shape[a] for a in group])) for group in ordered], np.int64)
    name = node.outputs[0].name
    first = writer.node("Reshape", [x, writer.constant(sizes, f"{name}.shape")], node)
    perm = [ordered.index(group) for group in groups]
    second = writer.node("Transpose", first.outputs, node, perm=perm)
    first.outputs[0].shape, first.outputs[0].type = ir.Shape(sizes.tolist()), x.type
    second.outputs[0].shape = ir.Shape(sizes[perm].tolist())
    return [first, second]


def static_shape(value: ir.Value | None) -> list[int] | None:
    """Return the shape of a value, None where the file leaves a part of it open."""
    if value is None or value.shape is None:
        return None
    sizes = [n for n in value.shape if isinstance(n, int)]
    return sizes if len(sizes) == len(value.shape) else None


def _groups(shape: list[int], order: list[int]) -> list[list[int]]:
    """Return the axes that move as one, in the order after the transposition.

    Examples
    --------
    >>> _groups([1, 3, 3, 7, 7, 96], [0, 1, 3, 2, 4, 5])
    [[1], [3], [2], [4, 5]]
    """
    groups: list[list[int]] = []
    kept = [axis for axis in order if shape[axis] != 1] or [0]
    for axis in kept:
        before = groups[-1][-1] if groups else None
        gap = range(before + 1, axis) if before is not None and before < axis else None
        if gap is not None and all(shape[a] == 1 for a in gap):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def _merge_reshapes_(model: ir.Model) -> None:
    """Let a Reshape of a Reshape read what the first one reads: its shape is not needed."""
    import onnx_ir.passes.common as common

    from ..onnx_level.writing import array_of

    for node in [n for n in model.graph if n.op_type == "Reshape"]:
        before, wanted = required_input(node).producer(), array_of(node.inputs[1])
        plain = wanted is not None and 0 not in wanted
        if plain and before is not None and before.op_type == "Reshape":
            node.replace_input_with(0, before.inputs[0])
    common.RemoveUnusedNodesPass()(model)


def _few_dimensions(model: ir.Model, rule: Rule) -> tuple[list[Match], list[Left]]:
    matches, left = _rewrite_each(model, rule, "Transpose", _transpose)
    if matches:
        _merge_reshapes_(model)
    return matches, left


def _softmax(node: ir.Node, writer: Writer) -> list[ir.Node] | Leave:
    """Compute at three dimensions what is before the axis, the axis, and what is after it."""
    import onnx_ir as ir

    x = required_input(node)
    shape = static_shape(x)
    if shape is None or len(shape) < MOST_DIMENSIONS:
        return NOT_MINE
    if writer.opset < 13:
        return Leave("before opset 13 it normalizes every axis from the given one on")
    axis = node.attributes.get_int("axis", -1) % len(shape)
    before = x.producer()
    if before is not None and before.op_type in ("Reshape", "Unsqueeze"):
        flat = static_shape(before.inputs[0])  # two Reshapes in a row do not compile either
        x = required_input(before) if flat is not None else x
    name, sides = node.outputs[0].name, [shape[:axis], shape[axis : axis + 1], shape[axis + 1 :]]
    sizes = np.array([int(np.prod(side)) for side in sides], np.int64)
    first = writer.node("Reshape", [x, writer.constant(sizes, f"{name}.three")], node)
    second = writer.node("Softmax", first.outputs, node, axis=1)
    whole = writer.constant(np.array(shape, np.int64), f"{name}.shape")
    third = writer.node("Reshape", [second.outputs[0], whole], node)
    for made in (first, second):
        made.outputs[0].shape, made.outputs[0].type = ir.Shape(sizes.tolist()), x.type
    third.outputs[0].shape = ir.Shape(shape)
    return [first, second, third]


def _celu(node: ir.Node, writer: Writer) -> list[ir.Node] | Leave:
    """Write ``alpha * Elu(x / alpha)``, which is what Celu is."""
    x = required_input(node)
    dtype = x.dtype or node.outputs[0].dtype
    if dtype is None:
        return Leave("the type of its input is unknown: run onnx.shape_inference first")
    alpha = np.asarray(node.attributes.get_float("alpha", 1.0), dtype.numpy())
    name, made = node.outputs[0].name, []
    if alpha != 1:
        made.append(writer.node("Div", [x, writer.constant(alpha, f"{name}.alpha")], node))
    made.append(writer.node("Elu", made[-1].outputs if made else [x], node))
    if alpha != 1:
        scale = writer.constant(alpha, f"{name}.alpha")
        made.append(writer.node("Mul", [made[-1].outputs[0], scale], node))
    for new in made:
        new.outputs[0].shape, new.outputs[0].dtype = x.shape, dtype
    return made


def _three_dimensions(model: ir.Model, rule: Rule) -> tuple[list[Match], list[Left]]:
    import onnx_ir.passes.common as common

    matches, left = _rewrite_each(model, rule, "Softmax", _softmax)
    if matches:
        common.RemoveUnusedNodesPass()(model)  # the Reshape that nobody reads any more
    return matches, left


SUB_TO_ADD = Rule(
    name="sub-to-add",
    exact=True,
    error="none: a - b and a + (-1) * b are bit-equal in IEEE 754",
    source="definition; for TIDL 11, which subtracts constants only",
    keeps="everything",
    onnx_passes=(make_pass("Sub", _sub),),
)
CLIP_TO_MAX = Rule(
    name="clip-to-max",
    exact=True,
    error="none: max(x, low) is the definition of a Clip without an upper bound",
    source="ONNX operator Clip; for targets whose Clip must hold zero",
    keeps="everything",
    onnx_passes=(make_pass("Clip", _clip),),
)
COMPUTED_CLIP = Rule(
    name="clip-of-computed-bounds",
    exact=True,
    error="none: min(max(x, low), high) is the definition of Clip",
    source="ONNX operator Clip; QNN 2.51 refuses bounds that are computed (measured)",
    keeps="everything",
    onnx_passes=(make_pass("Clip", _computed_clip),),
)
FIVE_DIMENSIONS = Rule(
    name="five-dimensions",
    exact=True,
    error="none: the same elements in the same order",
    source="axes that stay adjacent are one axis; QNN 2.51's HTP takes five at most (measured)",
    keeps="everything",
    onnx_passes=(OnnxPass(_few_dimensions, frozenset({"Transpose", "Reshape"})),),
)

THREE_DIMENSIONS = Rule(
    name="softmax-of-three-dimensions",
    exact=True,
    error="none: the same sums, over the same elements in the same order",
    source="the other axes are independent; QNN 2.51's HTP compiler fails at a Reshape of one "
    "point to five dimensions (measured)",
    keeps="everything",
    onnx_passes=(OnnxPass(_three_dimensions, frozenset({"Softmax", "Reshape", "Unsqueeze"})),),
)

CELU = Rule(
    name="celu",
    exact=True,
    error="float32: within 1e-6 of the largest input",
    source="definition: Celu(x) = alpha * Elu(x / alpha)",
    keeps="everything",
    onnx_passes=(make_pass("Celu", _celu),),
)

RULES = (FIVE_DIMENSIONS, SUB_TO_ADD, CLIP_TO_MAX, COMPUTED_CLIP, THREE_DIMENSIONS, CELU)
