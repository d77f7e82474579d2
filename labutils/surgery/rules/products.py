"""Exact rules for products of matrices: Einstein sums and fused attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..forms import NOT_MINE, FunctionForm, Leave, OnnxForm
from ..onnx_level.nodes import constant_of, optional_input
from ..rule import Rule

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..onnx_level.builder import Builder

_LAYERS = "labutils.surgery.layers.products"


def _check_gemm(node: ir.Node, _: frozenset[str]) -> Leave | None:
    given = node.attributes
    transposes = given.get_int("transA", 0), given.get_int("transB", 0)
    factors = given.get_float("alpha", 1.0), given.get_float("beta", 1.0)
    bias = constant_of(optional_input(node, 2))
    if (transposes, factors) == ((0, 1), (1.0, 1.0)) and (
        bias is None or bias.ndim == 1 < bias.size
    ):
        return NOT_MINE
    if transposes[0]:
        return Leave("transA = 1: its input would have to be transposed")
    constants = [v for v in node.inputs[1:] if v is not None]
    if not all(v.const_value is not None for v in constants):
        return Leave("its weights are computed")
    if bias is not None and bias.size > 1 and bias.shape[-1] != bias.size:
        return Leave("its C has a value per row, so it is not a bias")
    return None


def _build_gemm(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    """Write the transpose and the factors into the weights, and the bias as a vector."""
    given, bias = constant_of(node.inputs[1]), constant_of(optional_input(node, 2))
    assert given is not None  # the check leaves a node without
    weight = given * node.attributes.get_float("alpha", 1.0)
    weight = weight if node.attributes.get_int("transB", 0) else weight.T
    if bias is not None:
        bias = np.asarray(bias * node.attributes.get_float("beta", 1.0), weight.dtype)
        bias = np.broadcast_to(bias.reshape(-1), weight.shape[:1])
    inputs = (x, weight.copy()) if bias is None else (x, weight.copy(), bias.copy())
    return g.op("Gemm", *inputs, elementwise=False, transB=1)


EINSUM = Rule(
    name="einsum",
    exact=True,
    error="float32: within 1e-5 of the largest output (the order of the sums); float16: 1e-2",
    source="a batched matrix product of permuted operands",
    keeps="there are no weights",
    functions=(
        FunctionForm(
            ("torch.functional.einsum",),
            f"{_LAYERS}.einsum_by_matmul",
            f"{_LAYERS}.check_einsum",
        ),
    ),
)

ATTENTION = Rule(
    name="attention",
    exact=True,
    error="float32: within 1e-5 of the largest output; float16: 1e-2",
    source="softmax(q k^T / sqrt(d) + mask) v (Vaswani et al. 2017)",
    keeps="mask, causality, scale, the dropout's probability",
    functions=(
        FunctionForm(
            ("torch.nn.functional.scaled_dot_product_attention",),
            f"{_LAYERS}.attention_by_matmul",
            f"{_LAYERS}.check_attention",
        ),
    ),
)

GEMM = Rule(
    name="plain-gemm",
    exact=True,
    error="float32: within 1e-5 of the largest output; float16: 1e-2",
    source="y = alpha x W + beta b with alpha, beta and the transpose in W and b",
    keeps="the weights' values, up to the factors",
    onnx=(OnnxForm.of_node("Gemm", _build_gemm, _check_gemm),),
)

RULES = (EINSUM, ATTENTION, GEMM)
