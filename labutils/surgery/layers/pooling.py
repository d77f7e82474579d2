"""Pooling from smaller pools and from convolutions: layers and functions, exact replacements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .pool_chain import chain, pair


def max_pool_chain(
    input: torch.Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> torch.Tensor:
    """Return ``F.max_pool2d`` from pools of at most 3x3: bit-equal."""
    for pool in chain(kernel_size, stride, padding):
        input = F.max_pool2d(input, pool.kernel, pool.stride, pool.padding)
    return input


def avg_pool_by_conv(
    input: torch.Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> torch.Tensor:
    """Return ``F.avg_pool2d`` as a depthwise convolution with the constant weight 1 / (k * k)."""
    kernel = pair(kernel_size)
    stride = kernel if stride in (None, (), []) else pair(stride)
    channels = input.shape[-3]
    value = 1.0 / (divisor_override or kernel[0] * kernel[1])
    weight = torch.full((channels, 1, *kernel), value, dtype=input.dtype, device=input.device)
    return F.conv2d(input, weight, None, stride, pair(padding), 1, channels)


def global_pool(
    input: torch.Tensor, dim: Sequence[int], keepdim: bool = False, *, dtype: object = None
) -> torch.Tensor:
    """Return the mean over height and width as a global average pool."""
    pooled = F.adaptive_avg_pool2d(input, 1)
    return pooled if keepdim else pooled.flatten(1)


class AvgPoolByConv(nn.Module):
    """`avg_pool_by_conv` as a layer; the settings are those of `torch.nn.AvgPool2d`."""

    def __init__(
        self, kernel_size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
        divisor_override: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.divisor_override = divisor_override

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool a tensor of shape (n, channels, height, width)."""
        return avg_pool_by_conv(
            x, self.kernel_size, self.stride, self.padding, False, True, self.divisor_override
        )

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


def make_max_pool_chain(old: nn.MaxPool2d) -> nn.Sequential:
    """Return a large max pool as a chain of layers of at most 3x3."""
    pools = chain(old.kernel_size, old.stride, old.padding)
    return nn.Sequential(*(nn.MaxPool2d(p.kernel, p.stride, p.padding) for p in pools))


def make_avg_pool_by_conv(old: nn.AvgPool2d) -> AvgPoolByConv:
    """Return an average pool as a convolution with its settings."""
    kernel, stride = pair(old.kernel_size), pair(old.stride or old.kernel_size)
    return AvgPoolByConv(kernel, stride, pair(old.padding), old.divisor_override)
