"""A plan: what goes where, and what it saves. It is printed, and it makes the masks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import tabular
from ..errors import UnknownNameError, UsageError
from . import single_weights
from .cost import Cost
from .criteria import Criterion
from .groups import Group, Refusal
from .masks import weights_of
from .single_weights import Layer

_MOST = 0.8  # of the MACs, which a mask of single weights is to reach


@dataclass(frozen=True, repr=False)
class Plan(tabular.Table):
    """What a network loses; `apply_masks_` and a `Schedule` carry it out.

    Attributes
    ----------
    network
        Class of the network that it was made for.
    method
        ``channels``, ``unstructured`` or ``n:m``.
    settings
        What was asked for, by parameter of `plan`.
    cost
        The network as it was.
    stays
        By parameter: elements that stay, where some go.
    left
        Layers that stay as they are, and why.
    """

    network: str
    method: str
    settings: Mapping[str, Any]
    cost: Cost
    stays: Mapping[str, int]
    left: tuple[Refusal, ...]

    def masks(self, model: nn.Module, progress: float = 1.0) -> dict[str, torch.Tensor]:
        """Return the masks (uint8; 1 stays) for a network with these layers.

        Parameters
        ----------
        model
            The network that was planned for, a copy of it, or one with fake quantization.
        progress
            How much of the plan, 0 to 1; a channel that is masked early stays so.

        Raises
        ------
        UnknownNameError
            The network lacks a layer of the plan.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON but the masks."""
        (macs, parameters), (fewer, smaller) = self.cost.total(), self.cost.total(self.stays)
        return {
            "network": self.network, "method": self.method, "settings": dict(self.settings),
            "input_shape": list(self.cost.shape), "macs": macs, "parameters": parameters,
            "macs_left": fewer, "parameters_left": smaller,
            "left": [{"layers": list(r.layers), "reason": r.reason} for r in self.left],
        }  # fmt: skip

    def digest(self) -> str:
        """Return 12 hexadecimal digits for what goes, whatever made the plan."""
        told = {k: v for k, v in self.to_dict().items() if k not in ("settings", "left")}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def macs_share(self) -> float:
        """MACs that stay, as a share of those of the whole network."""
        return self.cost.total(self.stays)[0] / max(1, self.cost.total()[0])

    def _title(self) -> str:
        size = "x".join(map(str, self.cost.shape[2:]))
        return f"{self.network} at {size}, {self.method}"

    def _savings(self) -> str:
        (macs, parameters), (fewer, smaller) = self.cost.total(), self.cost.total(self.stays)
        return (
            f"{macs / 1e6:,.1f} to {fewer / 1e6:,.1f} M MACs ({_change(macs, fewer)}), "
            f"{parameters:,} to {smaller:,} parameters ({_change(parameters, smaller)})"
        )

    def _remarks(self) -> list[str]:
        reasons: dict[str, list[str]] = {}
        for refusal in self.left:
            reasons.setdefault(refusal.reason, []).extend(refusal.layers)
        return [f"Stays: {_listed(layers)}: {reason}." for reason, layers in reasons.items()]


@dataclass(frozen=True)
class Channels:
    """What a group of channels loses.

    Attributes
    ----------
    group
        The layers that share the channels.
    order
        Units from the least to the most important.
    removed
        How many units go, from the front of `order`.
    """

    group: Group
    order: tuple[int, ...]
    removed: int

    @property
    def kept(self) -> int:
        """Channels that stay."""
        return self.group.channels - self.removed * self.group.parts


@dataclass(frozen=True, repr=False)
class ChannelPlan(Plan):
    """Channels that are masked while the network trains, and then removed.

    Attributes
    ----------
    parts
        One per group of coupled layers.
    criterion
        What rates them again at each stage of a `Schedule`; without, they go in the plan's order.
    """

    parts: tuple[Channels, ...]
    criterion: Criterion | None = None

    def masks(self, model: nn.Module, progress: float = 1.0) -> dict[str, torch.Tensor]:
        """Return the masks, as `Plan.masks` says."""
        return channel_masks(self.parts, weights_of(model), progress)

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON but the masks."""
        rows = [
            {"group": p.group.name, "layers": list(p.group.makers), "channels": p.group.channels,
             "kept": p.kept, "removed": p.group.channels_of(p.order[: p.removed])}
            for p in self.parts
        ]  # fmt: skip
        return super().to_dict() | {"groups": rows}

    def _parts(self) -> tuple[str, Sequence[str], tabular.Rows, Iterable[str]]:
        columns = ("group", "layers", "channels", "stay", "M MACs", "left")
        rows = []
        for part in self.parts:
            layers = part.group.makers
            before, after = (
                sum(self.cost.of(layer, stays) for layer in layers) for stays in ({}, self.stays)
            )
            rows.append(
                (part.group.name, str(len(layers)), str(part.group.channels), str(part.kept),
                 f"{before / 1e6:.2f}", f"{after / 1e6:.2f}")
            )  # fmt: skip
        there = sum(part.group.channels for part in self.parts)
        kept = sum(part.kept for part in self.parts)
        title = f"{self._title()}: {there:,} to {kept:,} channels ({_change(there, kept)}), "
        return title + self._savings(), columns, rows, self._remarks()


@dataclass(frozen=True, repr=False)
class WeightPlan(Plan):
    """Single weights that are masked; the layers keep their shapes.

    Attributes
    ----------
    layers
        Those under a mask.
    ratios
        Share of zeros by layer.
    pattern
        n and m; None for unstructured.
    together
        Whether one threshold holds for all layers of the same ratio.
    """

    layers: tuple[Layer, ...]
    ratios: Mapping[str, float]
    pattern: tuple[int, int] | None
    together: bool

    def masks(self, model: nn.Module, progress: float = 1.0) -> dict[str, torch.Tensor]:
        """Return the masks, as `Plan.masks` says; by the magnitudes that the network has now."""
        return weight_masks(self, weights_of(model), progress)

    @property
    def masked_macs_share(self) -> float:
        """MACs of the layers under a mask, as a share of those of the whole network."""
        under = sum(self.cost.macs.get(layer.parameter, 0) for layer in self.layers)
        return under / max(1, self.cost.total()[0])

    @property
    def zeros_share(self) -> float:
        """Zeros among the weights under a mask."""
        all_of = sum(layer.weights for layer in self.layers)
        return 1 - sum(self.stays[layer.parameter] for layer in self.layers) / all_of

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON but the masks."""
        rows = [
            {"layer": x.name, "weights": x.weights, "stay": self.stays[x.parameter]}
            for x in self.layers
        ]
        return super().to_dict() | {
            "layers": rows, "zeros_share": self.zeros_share,
            "masked_macs_share": self.masked_macs_share,
        }  # fmt: skip

    def _parts(self) -> tuple[str, Sequence[str], tabular.Rows, Iterable[str]]:
        columns = ("layer", "weights", "zeros", "M MACs")
        rows = [
            (x.name, f"{x.weights:,}", f"{100 * (1 - self.stays[x.parameter] / x.weights):.1f} %",
             f"{self.cost.macs.get(x.parameter, 0) / 1e6:.2f}")
            for x in self.layers
        ]  # fmt: skip
        title = (
            f"{self._title()}: {100 * self.zeros_share:.1f} % zeros in {len(self.layers)} layers, "
            f"which have {100 * self.masked_macs_share:.1f} % of the MACs"
        )
        dense = (
            "The tensors stay dense: a runtime gains from their zeros only where its kernels skip "
            "them. With all of them skipped: " + self._savings() + "."
        )
        return title, columns, rows, [dense, *self._uncovered(), *self._remarks()]

    def _uncovered(self) -> list[str]:
        """Say what most of the MACs have, where less than 80 % of them are under a mask."""
        if self.masked_macs_share >= _MOST:
            return []
        rest = self.cost.rest / max(1, self.cost.total()[0])
        others = 1 - self.masked_macs_share - rest
        return [
            f"Less than {100 * _MOST:.0f} % of the MACs are under a mask: {100 * rest:.1f} % are "
            "products of activations with each other (attention), which have no weights, and "
            f"{100 * others:.1f} % are in the layers that stay."
        ]


def channel_masks(
    parts: Sequence[Channels], there: Mapping[str, torch.Tensor], progress: float = 1.0
) -> dict[str, torch.Tensor]:
    """Return the masks of groups of channels for the weights of a network."""
    some = [part for part in parts if part.removed]
    names = dict.fromkeys(s.parameter for part in some for s in part.group.slices)
    refuse_missing(names, there)
    masks = {name: torch.ones_like(there[name], dtype=torch.uint8) for name in names}
    for part in some:
        part.group.mask_(masks, part.order[: round(part.removed * progress)])
    return masks


def weight_masks(
    plan: WeightPlan,
    there: Mapping[str, torch.Tensor],
    progress: float = 1.0,
    gone: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the masks of single weights for the weights of a network.

    What is `gone` already, True by parameter, is masked first.
    """
    names = [layer.parameter for layer in plan.layers]
    refuse_missing(names, there)
    sizes = {name: there[name].detach().abs() for name in names}
    for name, masked in (gone or {}).items():
        sizes[name] = sizes[name].masked_fill(masked, -1)  # less than any magnitude
    if plan.pattern is None:
        shares = {x.parameter: plan.ratios[x.name] * progress for x in plan.layers}
        return single_weights.magnitude_masks(sizes, shares, together=plan.together)
    n, m = plan.pattern
    zeros = round(n * progress)
    return {
        x.parameter: single_weights.pattern_mask(sizes[x.parameter], zeros, m, x.dim, x.groups)
        for x in plan.layers
    }


def refuse_missing(names: Iterable[str], there: Mapping[str, torch.Tensor]) -> None:
    """Refuse a network that lacks a parameter of a plan; one in a wrapper is told so."""
    for name in names:
        if f"module.{name}" in there and name not in there:
            raise UsageError(
                f"The plan names {name}, and this network has module.{name}: it is wrapped, as by "
                "DistributedDataParallel. Pass the network inside, model.module."
            )
        if name not in there:
            raise UnknownNameError("parameter", name, there)


def _change(before: int, after: int) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before else "0"


def _listed(names: Sequence[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
