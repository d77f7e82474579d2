"""Which channels a network can spare: one group at a time is masked, and the answers compared."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import metrics, tabular
from ..errors import UsageError
from ..models import modes
from ..tracking import Progress, tracked
from . import criteria
from .criteria import Criterion
from .masks import remove_, set_masks_
from .planning import Rated
from .report import Channels, channel_masks

RATIOS = (0.25, 0.5, 0.75)
_BATCH = 64


@dataclass(frozen=True)
class Reading:
    """A network with some channels of one group masked.

    Attributes
    ----------
    group
        The group's name.
    ratio
        Share of its channels that are masked.
    sqnr_db
        Of the logits against those of the whole network.
    agreement
        Share of images with the same first class as the whole network.
    top1
        Share of images that are right; None without labels.
    """

    group: str
    ratio: float
    sqnr_db: float
    agreement: float
    top1: float | None


@dataclass(frozen=True, repr=False)
class Sensitivity(tabular.Table):
    """What each group of channels costs at each ratio, without training.

    Attributes
    ----------
    network
        Its class.
    criterion
        What chose the channels.
    n
        Number of images.
    top1
        Of the whole network; None without labels.
    ratios
        That were asked for; a group masks the nearest number of its channels.
    readings
        Group by group in the network's order, ratios rising.
    """

    network: str
    criterion: str
    n: int
    top1: float | None
    ratios: tuple[float, ...]
    readings: tuple[Reading, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups' names, in the network's order."""
        return tuple(dict.fromkeys(reading.group for reading in self.readings))

    def of(self, group: str) -> tuple[Reading, ...]:
        """Return the readings of a group."""
        return tuple(reading for reading in self.readings if reading.group == group)

    def at(self, *ratios: float) -> Sensitivity:
        """Return the readings at some of the ratios.

        Raises
        ------
        UsageError
            The scan has no reading at one of them.
        """
        if missing := [ratio for ratio in ratios if ratio not in self.ratios]:
            raise UsageError(f"The scan has no reading at {missing}, only at {list(self.ratios)}.")
        kept = sorted(ratios)
        places = [self.ratios.index(ratio) for ratio in kept]
        readings = [self.of(group)[i] for group in self.groups for i in places]
        return replace(self, ratios=tuple(kept), readings=tuple(readings))

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return asdict(self)

    def _parts(self) -> tuple[str, Sequence[str], tabular.Rows, Iterable[str]]:
        title = (
            f"{self.network}: {'top-1' if self.top1 is not None else 'agreement'} in % (logit SQNR "
            f"in dB) with a share of one group's channels masked, by {self.criterion}, without "
            f"training; {self.n} images"
        )
        columns = ("group", *(f"{100 * ratio:.0f} %" for ratio in self.ratios))
        rows = [(group, *(_cell(r) for r in self.of(group))) for group in self.groups]
        worst = sorted(self.groups, key=lambda g: self.of(g)[-1].sqnr_db)[:3]
        notes = [f"Costliest: {', '.join(worst)}. An interval of n images is wide: small steps "
                 "between neighbours say nothing."]  # fmt: skip
        if self.top1 is not None:
            notes.insert(0, f"The whole network: {100 * self.top1:.1f} %.")
        return title, columns, rows, notes


def sensitivity(
    model: nn.Module,
    inputs: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    ratios: Sequence[float] = RATIOS,
    criterion: str | Criterion = "l1",
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure what masking each group of channels costs, one at a time, without training.

    Parameters
    ----------
    model
        The network; it is left as it is.
    inputs
        (n, channels, height, width) float32, as the network takes them.
    labels
        (n,) classes; without, agreement with the whole network is measured.
    ratios
        Shares of a group's channels, above 0 and below 1.
    criterion, exclude
        As for `plan`.
    progress
        Called as ``progress(iterable, description)`` around the groups.

    Raises
    ------
    PruningError
        The network has no groups.
    UsageError
        A ratio outside of 0 to 1, no images, or another number of labels.
    """
    ratios = tuple(sorted(ratios))
    _check(inputs, labels, ratios)
    rated = Rated(model, criteria.find(criterion), tuple(inputs.shape), exclude)
    network = copy.deepcopy(model)
    remove_(network, zeros=False)
    reference = logits_of(network, inputs)
    whole = [Channels(g, (), g.units) for g in rated.groups]
    ones = channel_masks(whole, rated.weights, progress=0)
    set_masks_(network, ones)
    readings: list[Reading] = []
    groups = list(zip(rated.groups, rated.scores, strict=True))
    for group, scores in tracked(groups, "sensitivity", "groups", progress):
        order = tuple(torch.argsort(scores, stable=True).tolist())
        for ratio in ratios:
            count = min(group.units - 1, max(1, round(ratio * group.units)))
            masks = channel_masks([Channels(group, order, count)], rated.weights)
            set_masks_(network, masks)
            found = compared(logits_of(network, inputs), reference, labels)
            readings.append(Reading(group.name, count / group.units, *found))
        set_masks_(network, {name: ones[name] for name in masks})
    name = criteria.name_of(criterion)
    top1 = None if labels is None else metrics.accuracy(reference, labels).value
    return Sensitivity(type(model).__name__, name, len(inputs), top1, ratios, tuple(readings))


def logits_of(network: nn.Module, inputs: np.ndarray) -> np.ndarray:
    """Return what a network answers in evaluation mode, (n, classes)."""
    some = next(network.parameters())
    with modes.evaluating(network), torch.inference_mode():
        parts = [
            network(torch.from_numpy(inputs[start : start + _BATCH]).to(some)).cpu().float()
            for start in range(0, len(inputs), _BATCH)
        ]
    return torch.cat(parts).numpy()


def compared(
    logits: np.ndarray, reference: np.ndarray, labels: np.ndarray | None
) -> tuple[float, float, float | None]:
    """Return logit SQNR in dB, agreement, and top-1 where there are labels."""
    return (
        metrics.sqnr_db(reference, logits),
        metrics.agreement(reference, logits).value,
        None if labels is None else metrics.accuracy(logits, labels).value,
    )


def _check(inputs: np.ndarray, labels: np.ndarray | None, ratios: Sequence[float]) -> None:
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise UsageError(f"Ratios lie above 0 and below 1, not {list(ratios)}.")
    if not len(inputs):
        raise UsageError("Sensitivity is measured on images; there are none.")
    if labels is not None and len(labels) != len(inputs):
        raise UsageError(f"{len(labels)} labels for {len(inputs)} images.")


def _cell(reading: Reading) -> str:
    share = reading.agreement if reading.top1 is None else reading.top1
    return f"{100 * share:.1f} ({reading.sqnr_db:.1f})"
