"""Pooling from smaller pools and from convolutions: layers and functions, exact replacements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Stage:
    """One pool of a chain; height and width."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of a setting that may be one number."""
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[-1]))


def chain(
    kernel: int | Sequence[int], stride: int | Sequence[int] | None, padding: int | Sequence[int]
) -> list[Stage]:
    """Return max pools of at most 3x3 that together cover a larger kernel.

    n pools of 3 see 2 n + 1 positions, one of 2 adds one: an odd kernel is (k - 1) / 2 pools of
    3, an even one (k - 2) / 2 and one of 2. All but the last have stride 1. Padding is -inf, so
    it does not matter which of the pools pads: one position each, on as many as are needed.
    """
    kernel, stride = pair(kernel), pair(kernel if stride in (None, ()) else stride)
    ways = [_one_way(k, p) for k, p in zip(kernel, pair(padding), strict=True)]
    length = max(map(len, ways))
    high, wide = ([(1, 0)] * (length - len(way)) + way for way in ways)
    return [
        Stage((h[0], w[0]), stride if last else (1, 1), (h[1], w[1]))
        for last, h, w in zip([False] * (length - 1) + [True], high, wide, strict=True)
    ]


def _one_way(kernel: int, padding: int) -> list[tuple[int, int]]:
    """Return (kernel, padding) of the pools along one axis."""
    sizes = [3] * ((kernel - 1) // 2) + [2] * (1 - kernel % 2) if kernel > 1 else [1]
    return [(size, int(n < padding)) for n, size in enumerate(sizes)]


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
    for stage in chain(kernel_size, stride, padding):
        input = F.max_pool2d(input, stage.kernel, stage.stride, stage.padding)
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
