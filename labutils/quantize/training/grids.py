"""The integers that a tensor is rounded to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """The integers that a tensor is rounded to.

    Attributes
    ----------
    bits
        4, 8 or 16.
    signed
        Weights are signed, and leave out the most negative integer so that the grid is
        symmetric; activations are unsigned.
    symmetric
        Zero lies in the middle of the integers (or at 0, for a tensor that is never negative).
    axis
        One step per slice along this axis; None is one step for the tensor.
    power_of_two
        Steps are powers of two, rounded up when observed, so that nothing is clipped by it.
    range
        (low, high) that the grid spans whatever was observed, and that is not trained; a tensor
        that was never seen on one side of zero takes the other side alone where `whole` is False.
    whole
        Whether a fixed range is taken as it is.
    limit
        No step is so long that the integers reach further than this.
    """

    bits: int = 8
    signed: bool = False
    symmetric: bool = False
    axis: int | None = None
    power_of_two: bool = False
    range: tuple[float, float] | None = None
    whole: bool = True
    limit: float | None = None

    @property
    def lowest(self) -> int:
        """The least integer."""
        return 1 - (1 << self.bits - 1) if self.signed else 0

    @property
    def highest(self) -> int:
        """The greatest integer."""
        return (1 << self.bits - 1) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def longest_step(self) -> float | None:
        """The step with which the integers reach the limit."""
        if self.limit is None:
            return None
        if not self.power_of_two:
            return self.limit / self.highest
        return 2.0 ** math.floor(math.log2(self.limit / (self.highest + 1)) + 1e-9)

    def numbers(self) -> torch.Tensor:
        """Return the grid for a state dict: (10,) float64, -1 and zeros for what it has not."""
        span = (0.0, 0.0, 0.0) if self.range is None else (1.0, *self.range)
        axis, limit = (-1.0 if value is None else value for value in (self.axis, self.limit))
        flags = (self.signed, self.symmetric, self.power_of_two, self.whole)
        return torch.tensor([self.bits, *flags, axis, limit, *span], dtype=torch.float64)

    @classmethod
    def of_numbers(cls, numbers: torch.Tensor) -> Grid:
        """Return the grid that `numbers` was made of."""
        bits, signed, symmetric, pow2, whole, axis, limit, fixed, low, high = numbers.tolist()
        return cls(
            int(bits), bool(signed), bool(symmetric), None if axis < 0 else int(axis), bool(pow2),
            (low, high) if fixed else None, bool(whole), None if limit < 0 else limit,
        )  # fmt: skip

    def ends(self, low: float, high: float) -> tuple[float, float]:
        """Return the ends of the grid for a tensor that was seen between `low` and `high`."""
        low, high = min(low, 0.0), max(high, 0.0)
        if self.range is None:
            return low, high
        if self.whole:
            return self.range
        return (self.range[0] if low < 0 else 0.0), (self.range[1] if high > 0 else 0.0)
