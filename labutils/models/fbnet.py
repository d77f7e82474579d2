"""FBNet-A, written from its published table of blocks.

Wu et al. 2019, "FBNet: Hardware-Aware Efficient ConvNet Design via Differentiable Neural
Architecture Search", searched the blocks; the table below is that of FBNet-A as it was released.
Only these facts are taken: the reference program is licensed for non-commercial use. Its published
figures, 4.27029 million weights of convolutions and 244.53 million multiplications with those of
the pooling, are what this network has, and its modules are called as there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..images import data

PREPROCESSING = data.Preprocessing(
    224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "FBNet-A: as torchvision's ImageNet models"
)


@dataclass(frozen=True)
class Block:
    """One row of the table.

    Attributes
    ----------
    kind
        ``conv``: convolution, BatchNorm and ReLU; ``ir``: inverted residual; ``skip``: identity.
    channels, stride
        Of the output.
    expansion, kernel, groups
        Of an inverted residual: how many times wider its middle is, the side of the depthwise
        kernel, and the groups of its 1x1 convolutions. `kernel` also of a ``conv``.
    """

    kind: str
    channels: int
    stride: int = 1
    expansion: int = 1
    kernel: int = 3
    groups: int = 1


def _ir(channels: int, kernel: int, expansion: int, stride: int = 1, groups: int = 1) -> Block:
    return Block("ir", channels, stride, expansion, kernel, groups)


STAGES = (
    (Block("conv", 16, 2),),
    (Block("skip", 16),),
    (_ir(24, 3, 3, 2), _ir(24, 3, 1), Block("skip", 24), Block("skip", 24)),
    (_ir(32, 5, 6, 2), _ir(32, 3, 3), _ir(32, 5, 1), _ir(32, 3, 3)),
    (
        _ir(64, 5, 6, 2), _ir(64, 5, 3), _ir(64, 5, 1, groups=2), _ir(64, 5, 6),
        _ir(112, 3, 6), _ir(112, 5, 1, groups=2), _ir(112, 5, 3), _ir(112, 3, 1, groups=2),
    ),
    (_ir(184, 5, 6, 2), _ir(184, 5, 6), _ir(184, 5, 3), _ir(184, 5, 6), _ir(352, 5, 6)),
    (Block("conv", 1504, kernel=1),),
)  # fmt: skip
"""The table, stage by stage."""


class ConvBNRelu(nn.Sequential):
    """Convolution with a bias, BatchNorm, and ReLU unless it is the last of a block."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1,
        relu: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        self.bn = nn.BatchNorm2d(outputs)
        if relu:
            self.relu = nn.ReLU(inplace=True)


class ChannelShuffle(nn.Module):
    """Channels of all groups in turns, such that the next grouped convolution mixes them."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`, (n, channels, height, width), with its channels in another order."""
        n, channels, height, width = x.shape
        grouped = x.view(n, self.groups, channels // self.groups, height, width)
        return grouped.permute(0, 2, 1, 3, 4).reshape(n, channels, height, width)

    def extra_repr(self) -> str:
        """Return what is printed between the parentheses."""
        return f"groups={self.groups}"


class IRFBlock(nn.Module):
    """Inverted residual: 1x1 to a wider middle, depthwise, 1x1 without an activation.

    Without a wider middle the first 1x1 is left out. The input is added where it has the shape of
    the output.
    """

    def __init__(self, inputs: int, block: Block) -> None:
        super().__init__()
        middle = inputs * block.expansion
        self.residual = block.stride == 1 and inputs == block.channels
        if middle != inputs:
            self.pw = ConvBNRelu(inputs, middle, 1, groups=block.groups)
        if block.groups > 1:
            self.shuffle = ChannelShuffle(block.groups)
        self.dw = ConvBNRelu(middle, middle, block.kernel, block.stride, middle)
        self.pwl = ConvBNRelu(middle, block.channels, 1, groups=block.groups, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output, (n, channels, height, width)."""
        y = x
        for part in self.children():
            y = part(y)
        return x + y if self.residual else y


class FBNetBackbone(nn.Module):
    """All blocks; ``xif2_1`` is the second one of stage 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        channels = 3
        for number, stage in enumerate(STAGES):
            for index, block in enumerate(stage):
                self.stages.add_module(f"xif{number}_{index}", _module(channels, block))
                channels = block.channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features, (n, 1504, height / 32, width / 32)."""
        return self.stages(x)


def _module(inputs: int, block: Block) -> nn.Module:
    if block.kind == "skip":
        return nn.Identity()
    if block.kind == "conv":
        return ConvBNRelu(inputs, block.channels, block.kernel, block.stride)
    return IRFBlock(inputs, block)


class ClsConvHead(nn.Module):
    """Mean over the picture, and a 1x1 convolution that makes the logits."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.conv = nn.Conv2d(inputs, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, (n, classes)."""
        return self.conv(self.avg_pool(x)).flatten(1)


class FBNet(nn.Module):
    """FBNet-A.

    Parameters
    ----------
    classes
        The number of logits.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.backbone = FBNetBackbone()
        self.head = ClsConvHead(STAGES[-1][-1].channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, (n, classes), for images, (n, 3, height, width)."""
        return self.head(self.backbone(x))
