"""Exact rules for SiLU, GELU and Mish: the same functions from Sigmoid, Erf, Tanh and products."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..rule import OnnxForm, Rule, activation_names

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

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
_KEEPS = (
    "names, aliases, hooks, train/eval state; the new layer works out of place; there are no "
    "weights"
)


def _silu_layer(_: nn.Module) -> nn.Module:
    from ..layers.activations import SiluBySigmoid

    return SiluBySigmoid()


def _gelu_layer(old: nn.Module) -> nn.Module:
    from ..layers.activations import GeluByErf

    tanh = type(old).__name__ == "GELUTanh"
    return GeluByErf("tanh" if tanh else getattr(old, "approximate", "none"))


def _mish_layer(_: nn.Module) -> nn.Module:
    from ..layers.activations import MishBySigmoid

    return MishBySigmoid()


def _silu(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    from ..layers.activations import silu_by_sigmoid

    return silu_by_sigmoid(input)


def _gelu(input: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    from ..layers.activations import gelu_by_erf

    return gelu_by_erf(input, approximate)


def _mish(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    from ..layers.activations import mish_by_sigmoid

    return mish_by_sigmoid(input)


def _build_gelu(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    if node.attributes.get_string("approximate", "none") == "tanh":
        cube = g.mul(g.mul(g.mul(x, x), x), 0.044715)
        inner = g.mul(g.add(x, cube), math.sqrt(2 / math.pi))
        return g.mul(g.mul(x, g.add(g.op("Tanh", inner), 1.0)), 0.5)
    return g.mul(g.mul(x, g.add(g.op("Erf", g.div(x, math.sqrt(2))), 1.0)), 0.5)


def _build_mish(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    s, q = g.op("Sigmoid", x), g.op("Sigmoid", g.op("Neg", x))
    return g.div(g.mul(g.mul(x, s), g.add(q, 1.0)), g.add(g.mul(q, q), 1.0))


def one_node(op_type: str) -> Any:
    """Return the pattern of a single node, whatever its attributes and further inputs."""

    def pattern(op: Any, x: Any) -> Any:
        return getattr(op, op_type)(
            x, _allow_other_attributes=True, _allow_other_inputs=True, _outputs=["y"]
        )

    return pattern


SILU = Rule(
    name="silu",
    exact=True,
    error="float32: within 5e-7 of max(1, |x|); float16: 2e-3",
    source="definition: x * sigmoid(x) (Elfwing et al. 2018)",
    keeps=_KEEPS,
    modules=SILU_CLASSES,
    module=_silu_layer,
    functions=activation_names("silu"),
    function=_silu,
    onnx=(
        OnnxForm("Swish", ("Swish",), one_node("Swish"),
                 lambda g, x, node: g.mul(x, g.op("Sigmoid", _scaled(g, x, node)))),
    ),
)  # fmt: skip


def _scaled(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    alpha = node.attributes.get_float("alpha", 1.0)
    return x if alpha == 1.0 else g.mul(x, alpha)


GELU = Rule(
    name="gelu",
    exact=True,
    error="float32: within 1e-6 of max(1, |x|); float16: 5e-3",
    source="definition: x * (1 + erf(x / sqrt(2))) / 2 (Hendrycks and Gimpel 2016)",
    keeps=_KEEPS,
    modules=GELU_CLASSES,
    module=_gelu_layer,
    functions=activation_names("gelu")[1:],  # F.gelu is torch._C._nn.gelu itself
    function=_gelu,
    onnx=(OnnxForm("Gelu", ("Gelu",), one_node("Gelu"), _build_gelu),),
)

MISH = Rule(
    name="mish",
    exact=True,
    error="float32: within 1e-6 of max(1, |x|); float16: 5e-3",
    source="x * tanh(softplus(x)) (Misra 2019) = x * s * (1 + q) / (1 + q * q), s = sigmoid(x), "
    "q = sigmoid(-x)",
    keeps=_KEEPS,
    modules=MISH_CLASSES,
    module=_mish_layer,
    functions=activation_names("mish"),
    function=_mish,
    onnx=(OnnxForm("Mish", ("Mish",), one_node("Mish"), _build_mish),),
)

RULES = (SILU, GELU, MISH)
