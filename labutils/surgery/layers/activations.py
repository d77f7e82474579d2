"""Activations made of the operators that every converter knows.

All but ReLU compute the same as what they replace. Nothing happens in place; gradients are those
of the originals.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ...layers import VENDOR_SLOPE, CustomHardsigmoid, custom_hardsigmoid, custom_hardswish


def hardsigmoid_by_clamp(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """Return ``clamp(x + 3, 0, 6) / 6`` with the signature of `torch.nn.functional.hardsigmoid`."""
    return custom_hardsigmoid(input)


def vendor_hardsigmoid(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """Return ``clamp(0.167 * x + 0.5, 0, 1)``, Qualcomm's approximation of hard-sigmoid."""
    return custom_hardsigmoid(input, VENDOR_SLOPE)


def make_vendor_hardsigmoid(_: nn.Module) -> CustomHardsigmoid:
    """Return `vendor_hardsigmoid` as a layer."""
    return CustomHardsigmoid(VENDOR_SLOPE)


def hardswish_by_clamp(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """Return ``x * clamp(x + 3, 0, 6) / 6``: `torch.nn.functional.hardswish`."""
    return custom_hardswish(input)


def relu(input: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """Return ReLU in the place of any activation; its further arguments do not count."""
    return torch.relu(input)


def silu_by_sigmoid(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """Return ``x * sigmoid(x)``, which is `torch.nn.functional.silu` (any shape, any float)."""
    return x * torch.sigmoid(x)


def gelu_by_erf(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """Return GELU from ``Erf``, or from ``Tanh`` when `approximate` is ``"tanh"``.

    ``x * (1 + erf(x / sqrt(2))) / 2`` is the definition (Hendrycks and Gimpel 2016); the form with
    tanh is the paper's approximation, which some models are trained with.
    """
    if approximate == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * (torch.tanh(inner) + 1.0) * 0.5
    return x * (torch.erf(x / math.sqrt(2)) + 1.0) * 0.5


def mish_by_sigmoid(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """Return ``x * tanh(softplus(x))`` from sigmoids alone.

    With s = sigmoid(x) and q = 1 - s = sigmoid(-x): tanh(log(1 + e**x)) = s (1 + q) / (1 + q * q).
    Nothing overflows, and nothing cancels.
    """
    s, q = torch.sigmoid(x), torch.sigmoid(-x)
    return x * s * (q + 1.0) / (q * q + 1.0)


class SiluBySigmoid(nn.Module):
    """`silu_by_sigmoid` as a layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to a tensor of any shape."""
        return silu_by_sigmoid(x)


class GeluByErf(nn.Module):
    """`gelu_by_erf` as a layer; `approximate` as in `torch.nn.GELU`."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to a tensor of any shape."""
        return gelu_by_erf(x, self.approximate)

    def extra_repr(self) -> str:
        """Show the form in ``print(model)``."""
        return f"approximate={self.approximate!r}"


def make_gelu_by_erf(old: nn.Module) -> GeluByErf:
    """Return the layer for ``nn.GELU``, or for timm's ``GELU`` and ``GELUTanh``."""
    tanh = type(old).__name__ == "GELUTanh"
    return GeluByErf("tanh" if tanh else getattr(old, "approximate", "none"))


class MishBySigmoid(nn.Module):
    """`mish_by_sigmoid` as a layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to a tensor of any shape."""
        return mish_by_sigmoid(x)
