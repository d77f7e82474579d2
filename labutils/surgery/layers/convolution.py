"""Convolutions in other shapes: layers with the weights of the convolution that they replace."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .pool_chain import pair

Pads = tuple[int, int, int, int]  # left, right, top, bottom, as torch.nn.functional.pad takes them


def pads_of(conv: nn.Conv2d) -> Pads:
    """Return what a convolution pads, ``"same"`` and ``"valid"`` in numbers."""
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding == "same":
        high, wide = (d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
        return wide // 2, wide - wide // 2, high // 2, high - high // 2
    assert not isinstance(conv.padding, str)  # "valid" and "same" are all that there are
    high, wide = pair(conv.padding)
    return wide, wide, high, high


class PaddedConv2d(nn.Conv2d):
    """A Conv2d that pads each side by its own number; negative numbers crop."""

    def __init__(self, *args: Any, pads: Pads, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pads = pads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad with zeros and convolve."""
        return super().forward(F.pad(x, self.pads) if any(self.pads) else x)

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``."""
        return f"{super().extra_repr()}, pads={self.pads}"


def like(conv: nn.Conv2d, kernel: tuple[int, int], pads: Pads, weight: torch.Tensor) -> nn.Conv2d:
    """Return a convolution with another kernel: stride, dilation, groups and bias are kept."""
    settings: dict[str, Any] = {
        "stride": conv.stride,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
    }
    left, right, top, bottom = pads
    if left == right and top == bottom and left >= 0 and top >= 0:
        sizes = (conv.in_channels, conv.out_channels, kernel)
        new = nn.Conv2d(*sizes, padding=(top, left), **settings)
    else:
        new = PaddedConv2d(conv.in_channels, conv.out_channels, kernel, pads=pads, **settings)
    new.weight = nn.Parameter(weight.detach().clone(), requires_grad=conv.weight.requires_grad)
    if conv.bias is not None:
        new.bias = conv.bias
    return new


def make_odd_kernel(conv: nn.Conv2d) -> nn.Conv2d:
    """Return the convolution with a row or column of zeros before each even side: the same sums."""
    more = tuple(1 - k % 2 for k in conv.kernel_size)
    kernel = (conv.kernel_size[0] + more[0], conv.kernel_size[1] + more[1])
    left, right, top, bottom = pads_of(conv)
    pads = (left + more[1] * conv.dilation[1], right, top + more[0] * conv.dilation[0], bottom)
    return like(conv, kernel, pads, F.pad(conv.weight, (more[1], 0, more[0], 0)))


def make_five_by_five(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a 6x6 convolution without its last row and column, of the same output size.

    A stride of 2 on an even image with symmetric padding needs no separate padding per side;
    otherwise less is padded on the right and below: one position, times the dilation.
    """
    left, right, top, bottom = pads_of(conv)
    less = (0, 0) if (conv.stride, conv.dilation) == ((2, 2), (1, 1)) else conv.dilation
    pads = (left, right - less[1], top, bottom - less[0])
    return like(conv, (5, 5), pads, conv.weight[..., :5, :5])


class SmallKernels(nn.Sequential):
    """3x3 convolutions with BatchNorm and ReLU, and then a convolution of at most 7x7."""


def make_small_kernels(conv: nn.Conv2d, largest: int = 7) -> SmallKernels:
    """Return a stack that sees what a convolution of a large kernel sees.

    Each 3x3 convolution keeps the channels (it is depthwise where the large one is) and starts
    as the identity; the last one starts as the middle of the large kernel.
    """
    size, layers = conv.kernel_size[0], []
    padding = pads_of(conv)[0]
    depthwise = conv.groups if conv.groups == conv.in_channels else 1
    while size > largest:
        pad = int(padding > 0)
        layer = nn.Conv2d(conv.in_channels, conv.in_channels, 3, padding=pad, groups=depthwise,
                          bias=False)  # fmt: skip
        nn.init.dirac_(layer.weight, groups=depthwise)
        layers += [layer, nn.BatchNorm2d(conv.in_channels), nn.ReLU()]
        size, padding = size - 2, padding - pad
    crop = (conv.kernel_size[0] - size) // 2
    middle = conv.weight[..., crop : crop + size, crop : crop + size]
    return SmallKernels(*layers, like(conv, (size, size), (padding,) * 4, middle))


class Separable(nn.Sequential):
    """A depthwise and a pointwise convolution."""


def make_separable(conv: nn.Conv2d) -> Separable:
    """Return the nearest depthwise and pointwise convolution, in least squares.

    For each input channel the kernels to all outputs are a matrix (outputs x positions); its best
    product of two vectors (Eckart and Young 1936) is a pointwise column and a depthwise kernel.
    """
    out, channels, high, wide = conv.weight.shape
    matrices = conv.weight.detach().permute(1, 0, 2, 3).reshape(channels, out, high * wide)
    u, s, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    root = s[:, :1].sqrt()
    column, kernel = u[:, :, 0] * root, v[:, 0] * root  # (channels, out), (channels, positions)
    padding = conv.padding if isinstance(conv.padding, str) else pair(conv.padding)
    deep = nn.Conv2d(channels, channels, pair(conv.kernel_size), pair(conv.stride), padding,
                     pair(conv.dilation), channels, bias=False,
                     padding_mode=conv.padding_mode)  # fmt: skip
    point = nn.Conv2d(channels, out, 1, bias=conv.bias is not None)
    with torch.no_grad():
        deep.weight.copy_(kernel.reshape(channels, 1, high, wide))
        point.weight.copy_(column.T.reshape(out, channels, 1, 1))
    if conv.bias is not None:
        point.bias = conv.bias
    return Separable(deep, point)


def space_to_depth(x: torch.Tensor) -> torch.Tensor:
    """Return Focus: the four phases of every 2x2 block as channels, by a constant convolution.

    The order is that of YOLOv5 and YOLOX for ``cat([x[..., ::2, ::2], x[..., 1::2, ::2],
    x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)``. Every sum has one term: bit-equal.
    """
    channels = x.shape[1]
    eye = torch.eye(channels, dtype=x.dtype, device=x.device)
    phases = [(0, 0), (1, 0), (0, 1), (1, 1)]
    taps = torch.zeros(4, channels, channels, 2, 2, dtype=x.dtype, device=x.device)
    for n, (row, column) in enumerate(phases):
        taps[n, :, :, row, column] = eye
    return F.conv2d(x, taps.reshape(4 * channels, channels, 2, 2), stride=2)
