"""Normalizations that learn from their first input how many channels they have.

PyTorch has lazy ones of BatchNorm alone, and those are of one rank. Each becomes an ordinary layer.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin


class LazyBatchNorm(nn.LazyBatchNorm2d):
    """Becomes a BatchNorm1d or a BatchNorm2d."""

    def __init__(self, eps: float) -> None:
        super().__init__(eps)

    def initialize_parameters(self, input: torch.Tensor) -> None:
        """Take the number of channels, and the rank, from the first input."""
        becomes = nn.BatchNorm2d if input.ndim == 4 else nn.BatchNorm1d
        self.cls_to_become = becomes  # type: ignore[assignment]
        super().initialize_parameters(input)


class LazyLayerNorm(LazyModuleMixin, nn.LayerNorm):
    """Becomes a LayerNorm over the last dimension."""

    cls_to_become = nn.LayerNorm

    def __init__(self, eps: float) -> None:
        super().__init__(0, eps, elementwise_affine=False)
        self.elementwise_affine = True
        _lay_out_(self)

    def initialize_parameters(self, input: torch.Tensor) -> None:
        """Take the number of channels from the first input."""
        self.normalized_shape = (input.shape[-1],)
        _begin_(self, input.shape[-1])


class LazyGroupNorm(LazyModuleMixin, nn.GroupNorm):
    """Becomes a GroupNorm."""

    cls_to_become = nn.GroupNorm

    def __init__(self, groups: int, eps: float) -> None:
        super().__init__(groups, groups, eps, affine=False)
        self.affine = True
        _lay_out_(self)

    def initialize_parameters(self, input: torch.Tensor) -> None:
        """Take the number of channels from the first input."""
        self.num_channels = input.shape[1]
        _begin_(self, input.shape[1])


def _lay_out_(norm: nn.Module) -> None:
    for name in ("weight", "bias"):
        setattr(norm, name, nn.UninitializedParameter())


def _begin_(norm: nn.Module, channels: int) -> None:
    """Give a normalization a scale of 1 and a shift of 0 for each channel."""
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        parameter = norm.get_parameter(name)
        assert isinstance(parameter, nn.UninitializedParameter)
        parameter.materialize((channels,))
        nn.init.constant_(parameter, value)
