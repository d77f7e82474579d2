"""Resizing by a scale factor, in place of a fixed size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..forms import NOT_MINE, Leave


def scales(input: torch.Tensor, size: int | Sequence[int]) -> tuple[float, ...] | None:
    """Return the factor of each axis; None where ``floor(input * factor)`` is another size."""
    given = input.shape[2:]
    wanted = [size] * len(given) if isinstance(size, int) else list(size)
    factors = tuple(out / had for out, had in zip(wanted, given, strict=True))
    fits = all(math.floor(had * f) == out
               for had, f, out in zip(given, factors, wanted, strict=True))  # fmt: skip
    return factors if fits else None


def interpolate_by_scale(
    input: torch.Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> torch.Tensor:
    """Return `torch.nn.functional.interpolate` to a size, by the factor that gives this size.

    Where rounding leaves no factor that gives it, the size itself is used.
    """
    factors = None if size is None else scales(input, size)
    if factors is None:
        return F.interpolate(input, size, scale_factor, mode, align_corners,
                             recompute_scale_factor, antialias)  # fmt: skip
    return F.interpolate(input, None, factors, mode, align_corners, False, antialias)


def check_size(
    input: torch.Tensor,
    size: int | Sequence[int] | None = None,
    *_: object,
    **__: object,
) -> Leave | None:
    """Leave a call of `torch.nn.functional.interpolate` whose size no factor gives."""
    if size is None:
        return NOT_MINE
    if scales(input, size) is None:
        return Leave(f"no scale gives {size} from {tuple(input.shape[2:])}: it would be rounded")
    return None


class ResizeByScale(nn.Module):
    """`interpolate_by_scale` as a layer; the settings are those of `torch.nn.Upsample`."""

    def __init__(
        self, size: int | Sequence[int], mode: str = "nearest", align_corners: bool | None = None
    ) -> None:
        super().__init__()
        self.size, self.mode, self.align_corners = size, mode, align_corners

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Resize a tensor of shape (n, channels, ...)."""
        return interpolate_by_scale(x, self.size, None, self.mode, self.align_corners)

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``."""
        return f"size={self.size}, mode={self.mode!r}"


def make_resize_by_scale(old: nn.Upsample) -> ResizeByScale:
    """Return an upsampling to a fixed size as one by a factor."""
    assert old.size is not None  # the rule's check leaves it
    return ResizeByScale(old.size, old.mode, old.align_corners)
