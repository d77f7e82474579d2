"""Exact rules that write one ONNX operator with others, for targets that lack it or limit it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .report import Left, Match
from .rule import Rule

if TYPE_CHECKING:
    import onnx_ir as ir

    from .onnx_writing import Writer

MOST_DIMENSIONS = 5

# node, writer -> the nodes that take its place, or the reason why it is left
Rewrite = Callable[["ir.Node", "Writer"], "list[ir.Node] | str"]


def _rewrite_each(
    model: ir.Model, rule: Rule, op_type: str, rewrite: Rewrite
) -> tuple[list[Match], list[Left]]:
    from .onnx_convolutions import rule_excludes
    from .onnx_writing import Writer, label

    writer, matches, left = Writer(model), [], []
    for node in [node for node in model.graph.all_nodes() if node.op_type == op_type]:
        why = rule_excludes(rule, node)
        new = why or rewrite(node, writer)
        if isinstance(new, str):
            left.append(Left(label(node), op_type, new))
            continue
        writer.replace(node, new)
        became = ", ".join(n.op_type for n in new)
        matches.append(Match(rule.name, "onnx", label(node), op_type, became))
    return matches, left


def _pass(op_type: str, rewrite: Rewrite) -> dict:
    """Return the fields of a rule that rewrites every node of one operator."""
    run = functools.partial(_rewrite_each, op_type=op_type, rewrite=rewrite)
    return {"onnx_pass": run, "onnx_ops": frozenset({op_type})}


def _layer_norm(node: ir.Node, writer: Writer) -> list[ir.Node] | str:
    """Write ``(x - mean) / sqrt(variance + epsilon) * scale + bias``."""
    from .onnx_writing import array_of, rank_of

    rank, axis = rank_of(node.inputs[0]), node.attributes.get_int("axis", -1)
    if len([out for out in node.outputs if out.uses()]) > 1:
        return "its mean or deviation is used too"
    if axis != -1 and (rank is None or axis != rank - 1):
        return "not over the last axis alone"
    scale = array_of(node.inputs[1])
    if scale is None:
        return "its scale is computed"
    epsilon = np.asarray(node.attributes.get_float("epsilon", 1e-5), scale.dtype)
    new: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        new.append(writer.node(op, inputs, node, **attributes))
        return new[-1].outputs[0]

    def mean(x: ir.Value) -> ir.Value:
        if writer.opset < 18:
            return add("ReduceMean", x, axes=[-1], keepdims=1)
        axes = writer.constant(np.array([-1], np.int64), f"{node.outputs[0].name}.axes")
        return add("ReduceMean", x, axes, keepdims=1)

    centred = add("Sub", node.inputs[0], mean(node.inputs[0]))
    small = writer.constant(epsilon, f"{node.outputs[0].name}.epsilon")
    deviation = add("Sqrt", add("Add", mean(add("Mul", centred, centred)), small))
    y = add("Mul", add("Div", centred, deviation), node.inputs[1])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        add("Add", y, node.inputs[2])
    return new


def _global_pool(node: ir.Node, writer: Writer) -> list[ir.Node] | str:
    from .onnx_writing import array_of, numbers, rank_of

    rank = rank_of(node.inputs[0])
    axes = numbers(node, "axes", ())
    if not axes and len(node.inputs) > 1:
        given = array_of(node.inputs[1])
        axes = [] if given is None else [int(a) for a in given.ravel()]
    if rank != 4 or sorted(a % 4 for a in axes) != [2, 3]:
        return "not the mean of height and width of a 4-D tensor"
    pool = writer.node("GlobalAveragePool", node.inputs[:1], node)
    if node.attributes.get_int("keepdims", 1):
        return [pool]
    return [pool, writer.node("Flatten", pool.outputs, node, axis=1)]


def _sub(node: ir.Node, writer: Writer) -> list[ir.Node] | str:
    from .onnx_writing import array_of

    if any(array_of(value) is not None for value in node.inputs):
        return "one operand is a constant"
    dtype = node.inputs[1].dtype or node.inputs[0].dtype or node.outputs[0].dtype
    if dtype is None:
        return "the type of its input is unknown: run onnx.shape_inference first"
    minus = writer.constant(np.asarray(-1, dtype.numpy()), f"{node.outputs[0].name}.minus_one")
    negative = writer.node("Mul", [node.inputs[1], minus], node)
    return [negative, writer.node("Add", [node.inputs[0], negative.outputs[0]], node)]


def _clip(node: ir.Node, writer: Writer) -> list[ir.Node] | str:
    from .onnx_writing import array_of

    low = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    high = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    open_above = len(node.inputs) < 3 or node.inputs[2] is None
    if low is None or not (open_above or (high is not None and high >= np.finfo(high.dtype).max)):
        return "it has an upper bound, or no lower one"
    if float(low) <= 0:
        return "a lower bound that targets take"
    return [writer.node("Max", [node.inputs[0], node.inputs[1]], node)]


def _transpose(node: ir.Node, writer: Writer) -> list[ir.Node] | str:
    """Drop axes of size 1, and join axes that stay neighbours, between two Reshapes."""
    import onnx_ir as ir

    from .onnx_writing import array_of, numbers

    shape = _static(node.inputs[0])
    if shape is None or len(shape) <= MOST_DIMENSIONS:
        return f"it has at most {MOST_DIMENSIONS} dimensions, or its shape is not known"
    uses = [use.node for use in node.outputs[0].uses()]
    if [u.op_type for u in uses] != ["Reshape"] or node.outputs[0].is_graph_output():
        return "its output does not go into one Reshape"
    if array_of(uses[0].inputs[1]) is None or any(n <= 0 for n in array_of(uses[0].inputs[1])):
        return "the Reshape after it takes over dimensions of its input"
    order = numbers(node, "perm", tuple(reversed(range(len(shape)))))
    groups = _groups(shape, order)
    if len(groups) > MOST_DIMENSIONS:
        return f"{len(groups)} dimensions move independently"
    ordered = sorted(groups)
    sizes = np.array([int(np.prod([shape[a] for a in group])) for group in ordered], np.int64)
    name = node.outputs[0].name
    first = writer.node("Reshape", [node.inputs[0], writer.constant(sizes, f"{name}.shape")], node)
    perm = [ordered.index(group) for group in groups]
    second = writer.node("Transpose", first.outputs, node, perm=perm)
    first.outputs[0].shape, first.outputs[0].type = ir.Shape(sizes.tolist()), node.inputs[0].type
    second.outputs[0].shape = ir.Shape(sizes[perm].tolist())
    return [first, second]


def _static(value: ir.Value | None) -> list[int] | None:
    if value is None or value.shape is None:
        return None
    sizes = list(value.shape)
    return sizes if all(isinstance(n, int) for n in sizes) else None


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


def _merge_reshapes(model: ir.Model) -> None:
    """Let a Reshape of a Reshape read what the first one reads: the shape between is not needed."""
    import onnx_ir.passes.common as common

    from .onnx_writing import array_of

    for node in [n for n in model.graph if n.op_type == "Reshape"]:
        before, wanted = node.inputs[0].producer(), array_of(node.inputs[1])
        plain = wanted is not None and all(n > 0 for n in wanted)
        if plain and before is not None and before.op_type == "Reshape":
            node.replace_input_with(0, before.inputs[0])
    common.RemoveUnusedNodesPass()(model)


def _few_dimensions(model: ir.Model, rule: Rule) -> tuple[list[Match], list[Left]]:
    matches, left = _rewrite_each(model, rule, "Transpose", _transpose)
    if matches:
        _merge_reshapes(model)
    return matches, [item for item in left if "at most" not in item.why]


LAYER_NORM = Rule(
    name="layernorm",
    exact=True,
    error="rounding: float32 within 1e-5 of the largest value; float16: x * x overflows above 255",
    source="definition (Ba et al. 2016, Layer Normalization, equation 4; ONNX LayerNormalization)",
    keeps="scale, bias, epsilon",
    **_pass("LayerNormalization", _layer_norm),
)
GLOBAL_POOL = Rule(
    name="global-pool",
    exact=True,
    error="rounding: the same mean, summed in another order",
    source="definition: ONNX GlobalAveragePool is the mean of height and width",
    keeps="the shape, with a Flatten where the axes were dropped",
    **_pass("ReduceMean", _global_pool),
)
SUB_TO_ADD = Rule(
    name="sub-to-add",
    exact=True,
    error="none: a - b and a + (-1) * b are bit-equal in IEEE 754",
    source="definition; for TIDL 11, which subtracts constants only",
    keeps="everything",
    **_pass("Sub", _sub),
)
CLIP_TO_MAX = Rule(
    name="clip-to-max",
    exact=True,
    error="none: max(x, low) is the definition of a Clip without an upper bound",
    source="ONNX operator Clip; for targets whose Clip must hold zero",
    keeps="everything",
    **_pass("Clip", _clip),
)
FIVE_DIMENSIONS = Rule(
    name="five-dimensions",
    exact=True,
    error="none: the same elements in the same order",
    source="axes that stay neighbours are one axis; QNN's HTP takes five at most (measured, QNN 2.51)",
    keeps="everything",
    onnx_pass=_few_dimensions,
    onnx_ops=frozenset({"Transpose", "Reshape"}),
)

RULES = (FIVE_DIMENSIONS, LAYER_NORM, GLOBAL_POOL, SUB_TO_ADD, CLIP_TO_MAX)
