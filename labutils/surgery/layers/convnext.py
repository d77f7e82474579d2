"""Blocks of TI's lite models: ConvNeXt with BatchNorm and small kernels."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn

from .pool_chain import pair

Pointwise: TypeAlias = nn.Linear | nn.Conv2d


class LiteConvNeXtBlock(nn.Module):
    """A ConvNeXt block of depthwise 5x5 and 3x3, two pointwise, BatchNorm and ReLU throughout.

    The 7x7 kernel is cut to its middle 5x5, the 3x3 starts as the identity, the linear layers'
    weights become the pointwise convolutions', the layer scale the last BatchNorm's weight.

    Parameters
    ----------
    depthwise, expand, project
        The block's layers: a depthwise Conv2d, and two of Linear or 1x1 Conv2d.
    scale
        The layer scale, one number per channel, or None.
    drop
        The block's own stochastic depth.
    shortcut
        What the residual passes through.
    """

    def __init__(
        self, depthwise: nn.Conv2d, expand: Pointwise, project: Pointwise,
        scale: torch.Tensor | None, drop: nn.Module, shortcut: nn.Module,
    ) -> None:  # fmt: skip
        super().__init__()
        width, wide = depthwise.out_channels, expand.weight.shape[0]
        self.deep5 = nn.Conv2d(depthwise.in_channels, width, 5, pair(depthwise.stride), padding=2,
                               groups=depthwise.groups, bias=False)  # fmt: skip
        self.deep3 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.expand = nn.Conv2d(width, wide, 1, bias=False)
        self.project = nn.Conv2d(wide, width, 1, bias=False)
        norms = [nn.BatchNorm2d(n) for n in (width, width, wide, width)]
        self.norms = nn.ModuleList(norms)
        self.act = nn.ReLU()
        self.drop, self.shortcut = drop, shortcut
        nn.init.dirac_(self.deep3.weight, groups=width)
        with torch.no_grad():
            self.deep5.weight.copy_(depthwise.weight[..., 1:-1, 1:-1])
            self.expand.weight.copy_(expand.weight.reshape(self.expand.weight.shape))
            self.project.weight.copy_(project.weight.reshape(self.project.weight.shape))
            if scale is not None:
                norms[3].weight.copy_(scale.flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform a tensor of shape (n, channels, height, width)."""
        y = self.act(self.norms[0](self.deep5(x)))
        y = self.act(self.norms[1](self.deep3(y)))
        y = self.act(self.norms[2](self.expand(y)))
        return self.drop(self.norms[3](self.project(y))) + self.shortcut(x)


def from_torchvision(old: Any) -> LiteConvNeXtBlock:
    """Return the lite block of a torchvision ``CNBlock``."""
    depthwise, _, _, expand, _, project, _ = old.block
    return LiteConvNeXtBlock(
        depthwise, expand, project, old.layer_scale, old.stochastic_depth, nn.Identity()
    )


def from_timm(old: Any) -> LiteConvNeXtBlock:
    """Return the lite block of a timm ``ConvNeXtBlock``."""
    return LiteConvNeXtBlock(
        old.conv_dw, old.mlp.fc1, old.mlp.fc2, old.gamma, old.drop_path, old.shortcut
    )
