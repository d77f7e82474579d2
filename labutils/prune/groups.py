"""Groups of channels that layers share, what each owns of every parameter, and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Slice:
    """What a group's channels own of one parameter.

    Attributes
    ----------
    parameter
        Its name, as ``features.0.0.weight``.
    layer
        The name of its module.
    kind
        ``out``: filters that make the channels; ``in``: the part of a filter that reads them;
        ``norm``: scales of a normalization; ``bias``; ``scale``: a parameter of another kind.
    dim
        The axis along which the channels lie.
    channels, places
        Channel of the group, and index along `dim`, pairwise. A linear layer after a flattening
        has several places for a channel.
    """

    parameter: str
    layer: str
    kind: str
    dim: int
    channels: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Channels that layers share, so that they are removed together.

    Attributes
    ----------
    name
        The first layer that makes these channels.
    root
        The layer that Torch-Pruning starts from.
    channels
        How many.
    parts
        Into how many equal parts a grouped convolution divides them; each part must lose as many
        as every other. 1 without one.
    slices
        What the channels own of each parameter.
    """

    name: str
    root: str
    channels: int
    parts: int
    slices: tuple[Slice, ...]

    @property
    def units(self) -> int:
        """How many can be removed one by one: a unit has one channel of each part."""
        return self.channels // self.parts

    @property
    def makers(self) -> tuple[str, ...]:
        """The layers that make the channels, in the network's order."""
        return tuple(dict.fromkeys(s.layer for s in self.slices if s.kind == "out"))

    def channels_of(self, units: Sequence[int]) -> list[int]:
        """Return the channels of these units."""
        return sorted(part * self.units + unit for part in range(self.parts) for unit in units)

    def rows(self, part: Slice, values: torch.Tensor) -> torch.Tensor:
        """Return what each unit owns of a tensor shaped as the parameter, (units, elements).

        Where one owns less than another, as after a slice, zeros fill its row.
        """
        owned: list[list[int]] = [[] for _ in range(self.units)]
        for channel, place in zip(part.channels, part.places, strict=True):
            owned[channel % self.units].append(place)
        width = max(map(len, owned))
        at = torch.tensor([places + [0] * (width - len(places)) for places in owned])
        there = torch.tensor([[i < len(places) for i in range(width)] for places in owned])
        rows = values.movedim(part.dim, 0).reshape(values.shape[part.dim], -1)
        found = rows[at.to(values.device)] * there.to(values.device)[..., None]
        return found.reshape(self.units, -1)

    def mask_(self, masks: dict[str, torch.Tensor], units: Sequence[int]) -> None:
        """Set what these units own to 0 in `masks`, (parameter name -> tensor of its shape)."""
        removed = set(self.channels_of(units))
        for part in self.slices:
            places = [p for c, p in zip(part.channels, part.places, strict=True) if c in removed]
            index = torch.tensor(places, dtype=torch.long, device=masks[part.parameter].device)
            masks[part.parameter].index_fill_(part.dim, index, 0)


@dataclass(frozen=True)
class Refusal:
    """Layers that are left as they are, and why."""

    layers: tuple[str, ...]
    reason: str
