"""The rule for ConvNeXt blocks, of torchvision and timm; it goes before those for their layers."""

from __future__ import annotations

from ..forms import Leave, ModuleForm, Site
from ..rule import Rule


def _check_kernel(site: Site) -> Leave | None:
    depthwise = getattr(site.module, "conv_dw", None) or site.module.block[0]
    if depthwise.kernel_size != (7, 7) or depthwise.dilation != (1, 1):
        return Leave(
            f"its depthwise kernel is {depthwise.kernel_size}, dilation {depthwise.dilation}"
        )
    return None


CONVNEXT = Rule(
    name="convnext-block",
    exact=False,
    error="other kernels, BatchNorm for LayerNorm, ReLU for GELU: it must be trained again",
    needs_training=True,
    source="TI's lite models (edgeai-modeloptimization)",
    keeps="the middle of the 7x7 kernels, the pointwise weights, the layer scale, stochastic "
    "depth, stride and shortcut, names, hooks, train/eval state",
    modules=(
        ModuleForm(
            ("torchvision.models.convnext.CNBlock",),
            build="labutils.surgery.layers.convnext.from_torchvision",
            check=_check_kernel,
        ),
        ModuleForm(
            ("timm.models.convnext.ConvNeXtBlock",),
            build="labutils.surgery.layers.convnext.from_timm",
            check=_check_kernel,
        ),
    ),
)

RULES = (CONVNEXT,)
