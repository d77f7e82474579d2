"""Exact rules for operators that ONNX defines as functions of others, for targets without them.

ONNX has the bodies of some (`onnx.defs.OpSchema.function_body`), at opset 18 alone; these serve
every opset from 11 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..forms import Leave, OnnxForm
from ..onnx_level.nodes import constant_of, optional_input
from ..rule import Rule
from .normalization import reduce_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from ..onnx_level.builder import Builder

_AXES_AS_INPUT = 13  # the opset of ReduceSum's
_EPSILON = 1e-9  # of ONNX's MeanVarianceNormalization, beside the deviation


def _build_softsign(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return g.div(x, g.add(g.op("Abs", x), 1.0))


def _exponentials(g: Builder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    return g.op("Exp", x), g.op("Exp", g.op("Neg", x))


def _build_sinh(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return g.mul(g.sub(*_exponentials(g, x)), 0.5)


def _build_cosh(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return g.mul(g.add(*_exponentials(g, x)), 0.5)


def _build_shrink(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    import onnx_ir as ir

    edge, bias = (node.attributes.get_float(n, v) for n, v in (("lambd", 0.5), ("bias", 0.0)))
    above, below = g.op("Greater", x, edge), g.op("Less", x, -edge)
    for compared in (above, below):
        compared.type = ir.TensorType(ir.DataType.BOOL)
    zero = np.zeros(1)
    lower = g.op("Where", below, g.add(x, bias), zero)
    return g.op("Where", above, g.sub(x, bias), lower)


def _check_reduction(node: ir.Node, _: frozenset[str]) -> Leave | None:
    given = optional_input(node, 1)
    if given is not None and constant_of(given) is None:
        return Leave("its axes are computed")
    if given is None and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return Leave("it reduces no axis")
    return None


def _sum(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    """Write a sum over the axes of a reduction: an attribute of it, or an input."""
    stated = node.attributes.get("axes")
    axes = constant_of(optional_input(node, 1)) if stated is None else np.array(stated.as_ints())
    keep = node.attributes.get_int("keepdims", 1)
    if axes is None or not axes.size:
        return g.op("ReduceSum", x, elementwise=False, keepdims=keep)
    if g.opset < _AXES_AS_INPUT:
        listed = [int(axis) for axis in axes.ravel()]
        return g.op("ReduceSum", x, elementwise=False, axes=listed, keepdims=keep)
    return g.op("ReduceSum", x, axes.astype(np.int64).ravel(), elementwise=False, keepdims=keep)


def _build_l1(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return _sum(g, g.op("Abs", x), node)


def _build_sum_square(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return _sum(g, g.mul(x, x), node)


def _build_log_sum(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return g.op("Log", _sum(g, x, node), elementwise=False)


def _build_mean_variance(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    stated = node.attributes.get("axes")
    axes = [0, 2, 3] if stated is None else [int(axis) for axis in stated.as_ints()]
    centred = g.sub(x, reduce_mean(g, x, axes))
    variance = reduce_mean(g, g.mul(centred, centred), axes)
    root = g.op("Sqrt", variance, elementwise=False)
    return g.div(centred, g.op("Add", root, _EPSILON, elementwise=False))


def _rule(
    name: str,
    formula: str,
    forms: dict[str, Callable[[Builder, ir.Value, ir.Node], ir.Value]],
    check: Callable[[ir.Node, frozenset[str]], Leave | None] | None = None,
) -> Rule:
    return Rule(
        name=name,
        exact=True,
        error="float32: within 1e-5 of the largest output; float16: 1e-2",
        source=f"definition in ONNX: {formula}",
        keeps="everything",
        onnx=tuple(OnnxForm.of_node(op, build, check) for op, build in forms.items()),
    )


RULES = (
    _rule("softsign", "x / (1 + |x|)", {"Softsign": _build_softsign}),
    _rule(
        "hyperbolic",
        "(exp(x) -+ exp(-x)) / 2",
        {"Sinh": _build_sinh, "Cosh": _build_cosh},
    ),
    _rule(
        "shrink",
        "x - bias above lambd, x + bias below -lambd, else 0",
        {"Shrink": _build_shrink},
    ),
    _rule(
        "reduction-to-sum",
        "sums of |x| and of x * x; the logarithm of the sum",
        {
            "ReduceL1": _build_l1,
            "ReduceSumSquare": _build_sum_square,
            "ReduceLogSum": _build_log_sum,
        },
        _check_reduction,
    ),
    _rule(
        "mean-variance",
        "(x - mean) / (deviation + 1e-9)",
        {"MeanVarianceNormalization": _build_mean_variance},
    ),
)
