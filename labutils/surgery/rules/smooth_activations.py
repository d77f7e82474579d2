"""Exact rules for SiLU, GELU and Mish: the same functions from Sigmoid, Erf, Tanh and products."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..forms import FunctionForm, ModuleForm, OnnxForm
from ..naming import activation_names
from ..rule import Rule

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..onnx_level.builder import Builder

SILU_CLASSES = (
    "torch.nn.modules.activation.SiLU",
    "timm.layers.activations.Swish",
    "timm.layers.activations_me.SwishMe",
)
GELU_CLASSES = (
    "torch.nn.modules.activation.GELU",
    "timm.layers.activations.GELU",
    "timm.layers.activations.GELUTanh",
)
MISH_CLASSES = (
    "torch.nn.modules.activation.Mish",
    "timm.layers.activations.Mish",
    "timm.layers.activations_me.MishMe",
)
_LAYERS = "labutils.surgery.layers.activations"
_KEEPS = (
    "names, aliases, hooks, train/eval state; the new layer works out of place; there are no "
    "weights"
)


def _build_gelu(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    if node.attributes.get_string("approximate", "none") == "tanh":
        cube = g.mul(g.mul(g.mul(x, x), x), 0.044715)
        inner = g.mul(g.add(x, cube), math.sqrt(2 / math.pi))
        return g.mul(g.mul(x, g.add(g.op("Tanh", inner), 1.0)), 0.5)
    return g.mul(g.mul(x, g.add(g.op("Erf", g.div(x, math.sqrt(2))), 1.0)), 0.5)


def _build_mish(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    s, q = g.op("Sigmoid", x), g.op("Sigmoid", g.op("Neg", x))
    return g.div(g.mul(g.mul(x, s), g.add(q, 1.0)), g.add(g.mul(q, q), 1.0))


def _build_silu(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    alpha = node.attributes.get_float("alpha", 1.0)
    return g.mul(x, g.op("Sigmoid", x if alpha == 1.0 else g.mul(x, alpha)))


SILU = Rule(
    name="silu",
    exact=True,
    error="float32: within 5e-7 of max(1, |x|); float16: 2e-3",
    source="definition: x * sigmoid(x) (Elfwing et al. 2018)",
    keeps=_KEEPS,
    modules=(ModuleForm(SILU_CLASSES, f"{_LAYERS}.SiluBySigmoid"),),
    functions=(FunctionForm(activation_names("silu"), f"{_LAYERS}.silu_by_sigmoid"),),
    onnx=(OnnxForm.of_node("Swish", _build_silu),),
)

GELU = Rule(
    name="gelu",
    exact=True,
    error="float32: within 1e-6 of max(1, |x|); float16: 5e-3",
    source="definition: x * (1 + erf(x / sqrt(2))) / 2 (Hendrycks and Gimpel 2016)",
    keeps=_KEEPS,
    modules=(ModuleForm(GELU_CLASSES, build=f"{_LAYERS}.make_gelu_by_erf"),),
    functions=(
        FunctionForm(  # F.gelu is torch._C._nn.gelu itself
            activation_names("gelu")[1:], f"{_LAYERS}.gelu_by_erf"
        ),
    ),
    onnx=(OnnxForm.of_node("Gelu", _build_gelu),),
)

MISH = Rule(
    name="mish",
    exact=True,
    error="float32: within 1e-6 of max(1, |x|); float16: 5e-3",
    source="x * tanh(softplus(x)) (Misra 2019) = x * s * (1 + q) / (1 + q * q), s = sigmoid(x), "
    "q = sigmoid(-x)",
    keeps=_KEEPS,
    modules=(ModuleForm(MISH_CLASSES, f"{_LAYERS}.MishBySigmoid"),),
    functions=(FunctionForm(activation_names("mish"), f"{_LAYERS}.mish_by_sigmoid"),),
    onnx=(OnnxForm.of_node("Mish", _build_mish),),
)

RULES = (SILU, GELU, MISH)
