"""The layers that stand in for Hardsigmoid and Hardswish where a converter has no translation.

They consist of additions, multiplications, divisions and one clamp, so every ONNX opset writes
them as ``Add``, ``Mul``, ``Div`` and ``Clip``. Nothing happens in place. Gradients are those of the
originals, except in the kinks themselves: at exactly -3 and 3 the clamp passes the gradient on.
"""

from __future__ import annotations

import torch
from torch import nn

VENDOR_SLOPE = 0.167
"""The slope in the vendor's MobileNetV3 example: 1/6, rounded to three decimals.

The curve then reaches 0 and 1 at x = -+0.5 / 0.167 = -+2.994 and not at -+3, and there it is off
by its maximum, 0.5 * (1 - 1 / (6 * 0.167)) = 9.98e-4.
"""


def custom_hardsigmoid(x: torch.Tensor, slope: float = 1 / 6) -> torch.Tensor:
    """Return ``clamp(slope * x + 0.5, 0, 1)``, from operators that every converter knows.

    With the default slope it is computed as ``clamp(x + 3, 0, 6) / 6``, which in float32 is bit
    for bit what `torch.nn.functional.hardsigmoid` computes; in half precision PyTorch works in
    float32 inside, and the two differ by at most 5e-4 (float16).

    Parameters
    ----------
    x
        Any shape, any floating dtype; the result has the same, on the same device.
    slope
        1/6 is Hardsigmoid; `VENDOR_SLOPE` is the vendor's rounding of it (maximum error 9.98e-4).
    """
    if slope == 1 / 6:
        return torch.clamp(x + 3.0, 0.0, 6.0) / 6.0
    return torch.clamp(x * slope + 0.5, 0.0, 1.0)


def custom_hardswish(x: torch.Tensor) -> torch.Tensor:
    """Return ``x * clamp(x + 3, 0, 6) / 6``, from operators that every converter knows.

    In float32 it is bit for bit what `torch.nn.functional.hardswish` computes. In float16 PyTorch
    works in float32 inside: the two differ by at most 2e-3 of max(1, abs(x)), and here the
    intermediate ``6 * x`` overflows from about x = 10,900.

    Parameters
    ----------
    x
        Any shape, any floating dtype; the result has the same, on the same device.
    """
    return x * torch.clamp(x + 3.0, 0.0, 6.0) / 6.0


class CustomHardsigmoid(nn.Module):
    """Hardsigmoid as ``Add``, ``Clip``, ``Div`` (exact), or ``Mul``, ``Add``, ``Clip`` (a slope).

    Parameters
    ----------
    slope
        See `custom_hardsigmoid`.

    Examples
    --------
    >>> CustomHardsigmoid()(torch.tensor([-4.0, 0.0, 3.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """

    def __init__(self, slope: float = 1 / 6) -> None:
        super().__init__()
        self.slope = float(slope)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply `custom_hardsigmoid` to a tensor of any shape."""
        return custom_hardsigmoid(x, self.slope)

    def extra_repr(self) -> str:
        """Show the slope in ``print(model)``."""
        return "slope=1/6" if self.slope == 1 / 6 else f"slope={self.slope}"


class CustomHardswish(nn.Module):
    """Hardswish as ``Add``, ``Clip``, ``Mul``, ``Div``: bit-equal to `torch.nn.Hardswish`.

    Examples
    --------
    >>> CustomHardswish()(torch.tensor([-4.0, 0.0, 3.0]))
    tensor([-0., 0., 3.])
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply `custom_hardswish` to a tensor of any shape."""
        return custom_hardswish(x)
