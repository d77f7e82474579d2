"""Normalization from means, products and square roots, and BatchNorm in the place of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

InstanceNorm: TypeAlias = nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d
_BatchNorm = TypeVar("_BatchNorm", bound=nn.modules.batchnorm._BatchNorm)


def _standardized(x: torch.Tensor, dims: tuple[int, ...], eps: float) -> torch.Tensor:
    """Return (x - mean) / sqrt(variance + eps), over `dims`; the variance is the mean square."""
    centred = x - x.mean(dims, keepdim=True)
    variance = (centred * centred).mean(dims, keepdim=True)
    return centred / torch.sqrt(variance + eps)


def layer_norm_in_steps(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    """Return `torch.nn.functional.layer_norm`: mean, difference, mean square, root, quotient."""
    x = _standardized(input, tuple(range(-len(normalized_shape), 0)), eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def group_norm_in_steps(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> torch.Tensor:
    """Return `torch.nn.functional.group_norm`, over a reshaped tensor of three dimensions."""
    x = input.reshape(input.shape[0], num_groups, -1)
    x = _standardized(x, (2,), eps).reshape(input.shape)
    shape = (1, -1, *[1] * (input.ndim - 2))
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def instance_norm_in_steps(
    input: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return `torch.nn.functional.instance_norm` with the statistics of its input."""
    x = _standardized(input, tuple(range(2, input.ndim)), eps)
    shape = (1, -1, *[1] * (input.ndim - 2))
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def aten_instance_norm_in_steps(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> torch.Tensor:
    """Return `torch.instance_norm`, which takes its arguments in another order."""
    return instance_norm_in_steps(input, weight=weight, bias=bias, eps=eps)


class LayerNormInSteps(nn.Module):
    """`layer_norm_in_steps` with the weights of a LayerNorm, under the same names."""

    def __init__(self, old: nn.LayerNorm) -> None:
        super().__init__()
        self.normalized_shape, self.eps = tuple(old.normalized_shape), old.eps
        self.weight, self.bias = old.weight, old.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize over the last dimensions."""
        return layer_norm_in_steps(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``."""
        return f"{self.normalized_shape}, eps={self.eps}"


class GroupNormInSteps(nn.Module):
    """`group_norm_in_steps` with the weights of a GroupNorm, under the same names."""

    def __init__(self, old: nn.GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.eps = old.num_groups, old.eps
        self.weight, self.bias = old.weight, old.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize each group of channels of each image."""
        return group_norm_in_steps(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``."""
        return f"{self.num_groups}, eps={self.eps}"


class InstanceNormInSteps(nn.Module):
    """`instance_norm_in_steps` with the weights of an InstanceNorm, under the same names."""

    def __init__(self, old: InstanceNorm) -> None:
        super().__init__()
        self.num_features, self.eps = old.num_features, old.eps
        self.weight, self.bias = old.weight, old.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize each channel of each image."""
        return instance_norm_in_steps(x, weight=self.weight, bias=self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``."""
        return f"{self.num_features}, eps={self.eps}"


class BatchNormLast(nn.BatchNorm1d):
    """BatchNorm over the last dimension, whatever the others are: (n, tokens, c), (n, h, w, c)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize each of the last dimension's entries over all others."""
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def make_batch_norm_last(old: nn.LayerNorm) -> BatchNormLast:
    """Return a BatchNorm in the place of a LayerNorm over the last dimension."""
    affine = old.weight is not None
    return _copy_affine_(BatchNormLast(old.normalized_shape[0], old.eps, affine=affine), old)


def make_batch_norm_2d(old: Any) -> nn.BatchNorm2d:
    """Return a BatchNorm in the place of another normalization of an image's channels."""
    names = ("num_features", "num_channels", "normalized_shape")
    given = next(getattr(old, name) for name in names if hasattr(old, name))
    features = given if isinstance(given, int) else given[0]
    return _copy_affine_(nn.BatchNorm2d(features, old.eps, affine=old.weight is not None), old)


def _copy_affine_(new: _BatchNorm, old: Any) -> _BatchNorm:
    """Copy the weight and the bias of any other normalization."""
    if old.weight is not None:
        with torch.no_grad():
            new.weight.copy_(old.weight)
            new.bias.copy_(torch.zeros_like(old.weight) if old.bias is None else old.bias)
    return new
