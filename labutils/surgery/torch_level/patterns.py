"""Several operations as a forward writes them: what the graph forms of rules look for.

They are traced, never run. Rules name them by strings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def hardswish_before_division(x: torch.Tensor) -> torch.Tensor:
    """Hardswish from a ReLU6, the product first."""
    return x * F.relu6(x + 3.0) / 6.0


def hardswish_after_division(x: torch.Tensor) -> torch.Tensor:
    """Hardswish from a ReLU6, the division first."""
    return x * (F.relu6(x + 3.0) / 6.0)


def hardswish_by_gate(x: torch.Tensor) -> torch.Tensor:
    """Hardswish from a Hardsigmoid."""
    return x * F.hardsigmoid(x)


def silu_by_gate(x: torch.Tensor) -> torch.Tensor:
    """SiLU from a sigmoid."""
    return x * torch.sigmoid(x)


def focus(x: torch.Tensor) -> torch.Tensor:
    """Focus of YOLOv5: the four phases of every 2x2 block as channels."""
    return torch.cat(
        [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1
    )


class _SqueezeExcitation(nn.Module):
    """Two 1x1 convolutions there and back, or one where `act` is empty."""

    act, gate = "", ""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 1, 1) if self.act else None
        self.up = nn.Conv2d(1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        if self.down is not None:
            squeezed = getattr(F, self.act)(self.down(squeezed))
        return x * getattr(F, self.gate)(self.up(squeezed))


class ReluSigmoid(_SqueezeExcitation):
    """``x * sigmoid(conv(relu(conv(mean(x)))))``."""

    act, gate = "relu", "sigmoid"


class ReluHardsigmoid(_SqueezeExcitation):
    """``x * hardsigmoid(conv(relu(conv(mean(x)))))``."""

    act, gate = "relu", "hardsigmoid"


class SiluSigmoid(_SqueezeExcitation):
    """``x * sigmoid(conv(silu(conv(mean(x)))))``."""

    act, gate = "silu", "sigmoid"


class SiluHardsigmoid(_SqueezeExcitation):
    """``x * hardsigmoid(conv(silu(conv(mean(x)))))``."""

    act, gate = "silu", "hardsigmoid"


class HardswishSigmoid(_SqueezeExcitation):
    """``x * sigmoid(conv(hardswish(conv(mean(x)))))``."""

    act, gate = "hardswish", "sigmoid"


class HardswishHardsigmoid(_SqueezeExcitation):
    """``x * hardsigmoid(conv(hardswish(conv(mean(x)))))``."""

    act, gate = "hardswish", "hardsigmoid"


class Sigmoid(_SqueezeExcitation):
    """``x * sigmoid(conv(mean(x)))``."""

    gate = "sigmoid"


class Hardsigmoid(_SqueezeExcitation):
    """``x * hardsigmoid(conv(mean(x)))``."""

    gate = "hardsigmoid"
