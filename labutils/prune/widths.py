"""Widths within a budget: channels go step by step where a MAC saved costs the least noise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .groups import Group
from .planning import Rated, rounded
from .scan import Sensitivity

Saved = Literal["macs", "parameters"]
_SCALES = {"macs": 0, "parameters": 1}  # places in `Costs.total`


@dataclass(frozen=True)
class State:
    """How many units of each group are gone, and what is left.

    Attributes
    ----------
    removed
        By group's name.
    macs, parameters
        That stay.
    noise
        What the sensitivities of the groups add up to: noise power relative to the logits'.
    """

    removed: Mapping[str, int]
    macs: int
    parameters: int
    noise: float


class Costs:
    """MACs and parameters for widths, without a network: shares of each weight's axes multiply."""

    def __init__(self, rated: Rated) -> None:
        self.cost = rated.cost
        self.shapes = {name: tuple(weight.shape) for name, weight in rated.weights.items()}
        self.lost: dict[str, dict[str, dict[int, int]]] = {}  # group, parameter, axis: per unit
        for group in rated.groups:
            per_unit: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
            for part in group.slices:
                per_unit[part.parameter][part.dim] += len(part.places) // group.units
            self.lost[group.name] = per_unit
        self.gone: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        total = self.cost.total()
        self.macs, self.parameters = float(total[0]), float(total[1])

    def saving(self, group: Group, units: int) -> tuple[float, float]:
        """Return the MACs and parameters that go with more units of a group."""
        macs = parameters = 0.0
        for name, axes in self.lost[group.name].items():
            now, then = self._share(name, {}, 0), self._share(name, axes, units)
            parameters += (now - then) * self.cost.elements[name]
            macs += (now - then) * self.cost.macs.get(name, 0)
        return macs, parameters

    def take_(self, group: Group, units: int) -> None:
        """Remove units of a group."""
        macs, parameters = self.saving(group, units)
        for name, axes in self.lost[group.name].items():
            for axis, count in axes.items():
                self.gone[name][axis] += count * units
        self.macs -= macs
        self.parameters -= parameters

    def _share(self, name: str, axes: Mapping[int, int], units: int) -> float:
        share, gone = 1.0, self.gone.get(name, {})
        for axis in {*gone, *axes}:
            share *= 1 - (gone.get(axis, 0) + axes.get(axis, 0) * units) / self.shapes[name][axis]
        return share


def path(
    rated: Rated,
    scan: Sensitivity,
    multiple: int,
    saved: Saved = "macs",
    limits: tuple[float, float] | None = None,
) -> Iterator[State]:
    """Yield the states of a greedy descent, from the whole network to the narrowest.

    Every step takes one multiple of channels from the group where that costs the least noise per
    MAC (or parameter) saved, by straight lines between the points of a sensitivity scan.

    Parameters
    ----------
    rated
        The groups.
    scan
        Their sensitivities.
    multiple
        Widths are multiples of this.
    saved
        What is bought with the noise.
    limits
        (MACs, parameters) that are wanted, in place of `saved`: what is bought is the share of
        those that are still too many; of both, once neither is.
    """
    costs, curves = Costs(rated), {group.name: _curve(scan, group) for group in rated.groups}
    removed = {group.name: 0 for group in rated.groups}
    noise, whole, place = 0.0, (costs.macs, costs.parameters), _SCALES[saved]
    weights = [float(i == place) for i in (0, 1)]
    yield State(dict(removed), round(costs.macs), round(costs.parameters), noise)
    while True:
        if limits is not None:
            over = [costs.macs > limits[0], costs.parameters > limits[1]]
            weights = [float(o or not any(over)) / w for o, w in zip(over, whole, strict=True)]
        best: tuple[float, Group, int, float] | None = None
        for group in rated.groups:
            there = removed[group.name]
            step = _step(group, there, multiple)
            if not step:
                continue
            more = _noise(curves[group.name], group, there + step) - _noise(
                curves[group.name], group, there
            )
            saving = costs.saving(group, step)
            price = more / max(sum(w * s for w, s in zip(weights, saving, strict=True)), 1e-12)
            if best is None or price < best[0]:
                best = price, group, step, more
        if best is None:
            return
        _, group, step, more = best
        costs.take_(group, step)
        removed[group.name] += step
        noise += more
        yield State(dict(removed), round(costs.macs), round(costs.parameters), noise)


def _step(group: Group, removed: int, multiple: int) -> int:
    """Return the units of the next step of a group; 0 where it is as narrow as it may be."""
    for wanted in range(removed + 1, group.units):
        found = rounded(group, wanted, multiple)
        if found > removed:
            return found - removed
    return 0


def _curve(scan: Sensitivity, group: Group) -> tuple[Sequence[float], Sequence[float]]:
    """Return ratios and noise powers of a group, made to rise: less cannot cost more."""
    readings = scan.of(group.name)
    ratios = [0.0, *(r.ratio for r in readings), 1.0]
    noise = [0.0, *(10 ** (-r.sqnr_db / 10) for r in readings)]
    noise.append(max(2 * noise[-1], 1.0))
    return ratios, np.maximum.accumulate(noise).tolist()


def _noise(curve: tuple[Sequence[float], Sequence[float]], group: Group, removed: int) -> float:
    return float(np.interp(removed / group.units, *curve))
