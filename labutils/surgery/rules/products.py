"""Exact rules for products of matrices: Einstein sums and fused attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..rule import NOT_MINE, OnnxForm, Rule
from .smooth_activations import one_node

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from ..onnx_level.builder import Builder


def _einsum(*args: Any) -> torch.Tensor:
    from ..layers.products import einsum_by_matmul

    return einsum_by_matmul(*args)


def _einsum_check(*args: Any) -> str:
    from ..layers.products import einsum_objection

    return einsum_objection(*args)


def _attention(*args: Any, **kwargs: Any) -> torch.Tensor:
    from ..layers.products import attention_by_matmul

    return attention_by_matmul(*args, **kwargs)


def _attention_check(*args: Any, **kwargs: Any) -> str:
    from ..layers.products import attention_objection

    return attention_objection(*args, **kwargs)


def _gemm_objection(node: ir.Node, _: frozenset[str]) -> str:
    given = node.attributes
    transposes = given.get_int("transA", 0), given.get_int("transB", 0)
    factors = given.get_float("alpha", 1.0), given.get_float("beta", 1.0)
    if (transposes, factors) == ((0, 1), (1.0, 1.0)):
        return NOT_MINE
    if transposes[0]:
        return "transA = 1: its input would have to be transposed"
    constants = [v for v in node.inputs[1:] if v is not None]
    return "" if all(v.const_value is not None for v in constants) else "its weights are computed"


def _build_gemm(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    """Write the transpose and the factors into the weights."""
    weight = node.inputs[1].const_value.numpy() * node.attributes.get_float("alpha", 1.0)
    weight = weight if node.attributes.get_int("transB", 0) else weight.T
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        bias = bias.const_value.numpy() * node.attributes.get_float("beta", 1.0)
    inputs = (x, weight.copy()) if bias is None else (x, weight.copy(), bias)
    return g.op("Gemm", *inputs, elementwise=False, transB=1)


EINSUM = Rule(
    name="einsum",
    exact=True,
    error="float32: within 1e-5 of the largest output (the order of the sums); float16: 1e-2",
    source="a batched matrix product of permuted operands",
    keeps="there are no weights",
    functions=("torch.functional.einsum",),
    function=_einsum,
    function_check=_einsum_check,
)

ATTENTION = Rule(
    name="attention",
    exact=True,
    error="float32: within 1e-5 of the largest output; float16: 1e-2",
    source="softmax(q k^T / sqrt(d) + mask) v (Vaswani et al. 2017)",
    keeps="mask, causality, scale, the dropout's probability",
    functions=("torch.nn.functional.scaled_dot_product_attention",),
    function=_attention,
    function_check=_attention_check,
)

GEMM = Rule(
    name="plain-gemm",
    exact=True,
    error="float32: within 1e-5 of the largest output; float16: 1e-2",
    source="y = alpha x W + beta b with alpha, beta and the transpose in W and b",
    keeps="the weights' values, up to the factors",
    onnx=(OnnxForm("Gemm", ("Gemm",), one_node("Gemm"), _build_gemm, _gemm_objection),),
)

RULES = (EINSUM, ATTENTION, GEMM)
