"""The rule for ConvNeXt blocks, of torchvision and timm; it goes before those for their layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..rule import Rule, Site

if TYPE_CHECKING:
    from torch import nn

_TORCHVISION, _TIMM = "torchvision.models.convnext.CNBlock", "timm.models.convnext.ConvNeXtBlock"


def _lite(old: nn.Module) -> nn.Module:
    from ..layers import convnext

    timm = type(old).__module__.startswith("timm")
    return (convnext.from_timm if timm else convnext.from_torchvision)(old)


def _objection(site: Site) -> str:
    depthwise = getattr(site.module, "conv_dw", None) or site.module.block[0]
    if depthwise.kernel_size != (7, 7) or depthwise.dilation != (1, 1):
        return f"its depthwise kernel is {depthwise.kernel_size}, dilation {depthwise.dilation}"
    return ""


CONVNEXT = Rule(
    name="convnext-block",
    exact=False,
    error="other kernels, BatchNorm for LayerNorm, ReLU for GELU: it must be trained again",
    needs_training=True,
    source="TI's lite models (edgeai-modeloptimization)",
    keeps="the middle of the 7x7 kernels, the pointwise weights, the layer scale, stochastic "
    "depth, stride and shortcut, names, hooks, train/eval state",
    modules=(_TORCHVISION, _TIMM),
    module=_lite,
    module_check=_objection,
)

RULES = (CONVNEXT,)
