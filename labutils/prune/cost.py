"""What a network costs layer by layer, and what it costs under masks.

Multiply-accumulates of a convolution or a linear layer are proportional to the weights that are
left, because every weight is used at every place of the output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ..measure import complexity
from .coupling import unmasked


@dataclass(frozen=True)
class Cost:
    """Parameters and MACs of the layers of a network, for one image.

    Attributes
    ----------
    shape
        Of the input.
    macs
        By layer: multiply-accumulates.
    elements
        By parameter: its elements.
    """

    shape: tuple[int, ...]
    macs: Mapping[str, int]
    elements: Mapping[str, int]

    def of(self, layer: str, stays: Mapping[str, int] | None = None) -> int:
        """Return the MACs of a layer, where `stays` has the elements that stay, by parameter."""
        weight = f"{layer}.weight" if layer else "weight"
        count = self.elements.get(weight, 0)
        share = (stays or {}).get(weight, count) / count if count else 1.0
        return round(self.macs.get(layer, 0) * share)

    def total(self, stays: Mapping[str, int] | None = None) -> tuple[int, int]:
        """Return (MACs, parameters)."""
        parameters = sum((stays or {}).get(name, n) for name, n in self.elements.items())
        return sum(self.of(layer, stays) for layer in self.macs), parameters


def measured(model: nn.Module, shape: Sequence[int]) -> Cost:
    """Return what a network costs, its masks looked through."""
    plain = unmasked(model)
    shape = (1, *shape[1:])
    rows = complexity.count(plain, shape).rows
    return Cost(
        shape,
        {row.name: row.macs for row in rows if row.macs},
        {name: p.numel() for name, p in plain.named_parameters()},
    )
