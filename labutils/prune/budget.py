"""The widest network within a budget: widths by sensitivity, and the front of what was measured."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import export, paths, runtime, tabular
from ..errors import PruningError, UsageError
from ..tracking import Progress, tracked
from . import criteria
from .criteria import Criterion
from .masks import remove_, set_masks_
from .planning import Rated, refuse_multiple
from .removal import removed
from .report import ChannelPlan, Channels, channel_masks
from .scan import Sensitivity, compared, logits_of, sensitivity
from .widths import State, path

_BYTES = 4  # of a float32 parameter
_TURNS = 15
_RATIOS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.9375)
"""Where each group's sensitivity is read. Between readings noise is taken to rise in a straight
line: with few of them, the wide groups of MobileNetV3-Large stop at the last one."""


@dataclass(frozen=True)
class Budget:
    """What a pruned network may cost; all that is given holds.

    Attributes
    ----------
    macs, parameters
        At most this share of the whole network's, above 0 and at most 1.
    megabytes
        At most this many for the float32 parameters (1 MB is 1e6 bytes).
    latency
        At most this share of the whole network's time on ONNX Runtime: one image, one thread, in
        turns.
    """

    macs: float | None = None
    parameters: float | None = None
    megabytes: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in asdict(self).items() if v is not None}
        if not given:
            raise UsageError("A budget is at least one of macs, parameters, megabytes and latency.")
        for name, value in given.items():
            if not value > 0 or (name != "megabytes" and value > 1):
                unit = "a number above 0" if name == "megabytes" else "a share above 0, at most 1"
                raise UsageError(f"{name} is {unit}, not {value}.")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Return the budget that ``macs=0.5,latency=0.7`` says.

        Raises
        ------
        UsageError
            It is not of that form.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, float] = {}
        for item in text.split(","):
            name, _, value = item.partition("=")
            try:
                values[name.strip()] = float(value)
            except ValueError:
                values[name.strip()] = -1
            if name.strip() not in known or values[name.strip()] < 0:
                raise UsageError(
                    f"The budget {item!r} is not NAME=NUMBER with a name of {', '.join(known)}, "
                    "such as macs=0.5,latency=0.7."
                )
        return cls(**values)

    def __str__(self) -> str:
        words = {
            "macs": lambda v: f"at most {100 * v:g} % of the MACs",
            "parameters": lambda v: f"at most {100 * v:g} % of the parameters",
            "megabytes": lambda v: f"parameters of at most {v:g} MB",
            "latency": lambda v: f"at most {100 * v:g} % of the time on ONNX Runtime",
        }
        return ", ".join(words[k](v) for k, v in asdict(self).items() if v is not None)

    def holds(self, state: State, whole: State) -> bool:
        """Return whether widths keep to it, the latency aside."""
        return (
            state.macs <= (self.macs or 1) * whole.macs
            and state.parameters <= (self.parameters or 1) * whole.parameters
            and state.parameters * _BYTES <= (self.megabytes or np.inf) * 1e6
        )


@dataclass(frozen=True)
class Point:
    """A pruned network, measured without training.

    Attributes
    ----------
    macs, parameters
        That stay.
    sqnr_db, agreement, top1
        As in a `Reading` of a sensitivity scan.
    latency
        Time on ONNX Runtime as a share of the whole network's; None where it was not measured.
    widths
        By group: channels that stay.
    """

    macs: int
    parameters: int
    sqnr_db: float
    agreement: float
    top1: float | None
    latency: float | None
    widths: Mapping[str, int]


@dataclass(frozen=True)
class Step:
    """A state on the way from the whole network to the narrowest, predicted.

    Attributes
    ----------
    widths
        By group: channels that stay.
    macs, parameters
        That stay.
    predicted_db
        Logit SQNR without training, from the sum of the groups' own noises: each was measured
        alone, so it is too good for many at once.
    """

    widths: Mapping[str, int]
    macs: int
    parameters: int
    predicted_db: float


@dataclass(frozen=True, repr=False)
class Search(tabular.Table):
    """What a search found within a budget.

    Attributes
    ----------
    budget
        What was asked for.
    n
        Images that the points were measured on.
    whole
        The whole network.
    points
        Measured, from the largest to the smallest; the one of `plan` is `chosen`.
    chosen
        Its place among the points.
    plan
        What to mask; train it, then remove. Nothing, where the whole network keeps to the budget.
    scan
        The sensitivities that the widths follow.
    short
        Why the budget is not kept to, and what would help; empty where it is. Only `nearest`
        returns such a search.
    steps
        All states that the search went through, the whole network first.
    """

    budget: Budget
    n: int
    whole: Point
    points: tuple[Point, ...]
    chosen: int
    plan: ChannelPlan
    scan: Sensitivity
    short: str = ""
    steps: tuple[Step, ...] = ()

    def within(self, share: float) -> int:
        """Return the number of the first of `steps` with at most this share of the MACs.

        The last one, where none has so few.
        """
        most = share * self.steps[0].macs
        found = (i for i, step in enumerate(self.steps) if step.macs <= most)
        return next(found, len(self.steps) - 1)

    @property
    def front(self) -> tuple[Point, ...]:
        """The points that no other beats in both MACs and accuracy (or agreement)."""
        rated = [(p.macs, -_quality(p), p) for p in self.points]
        return tuple(
            p for macs, cost, p in rated
            if not any(m <= macs and c <= cost and (m, c) != (macs, cost) for m, c, _ in rated)
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "budget": asdict(self.budget), "n": self.n, "whole": asdict(self.whole),
            "points": [asdict(point) for point in self.points], "chosen": self.chosen,
            "plan": self.plan.to_dict(), "sensitivity": self.scan.to_dict(), "short": self.short,
        }  # fmt: skip

    def _parts(self) -> tuple[str, Sequence[str], tabular.Rows, Iterable[str]]:
        measure = "agreement" if self.whole.top1 is None else "top-1"
        columns = ("MACs left", "parameters left", "MB", f"{measure} %", "SQNR dB", "time", "")
        title = f"{self.plan.network} within {self.budget}; without training, {self.n} images"
        rows = [
            (f"{100 * p.macs / self.whole.macs:.1f} %",
             f"{100 * p.parameters / self.whole.parameters:.1f} %",
             f"{p.parameters * _BYTES / 1e6:.2f}", f"{100 * _quality(p):.1f}", f"{p.sqnr_db:.1f}",
             "-" if p.latency is None else f"{p.latency:.2f}",
             " ".join(filter(None, ("front" if p in self.front else "",
                                    "chosen" if i == self.chosen else ""))))
            for i, p in enumerate(self.points)
        ]  # fmt: skip
        whole = f"The whole network: {100 * _quality(self.whole):.1f} % {measure}"
        return title, columns, rows, [
            f"{whole}, {self.whole.macs / 1e6:,.1f} M MACs, {self.whole.parameters:,} parameters.",
            *filter(None, [self.short]),
            "Accuracy returns with fine-tuning: train under the masks of the plan, then remove.",
        ]  # fmt: skip


def search(
    model: nn.Module,
    budget: Budget,
    inputs: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    criterion: str | Criterion = "l1",
    exclude: Sequence[str] = (),
    multiple: int = 8,
    progress: Progress | None = None,
) -> Search:
    """Find the widths that keep to a budget at the least noise, and measure points on the way.

    Each group's sensitivity is measured; then channels go step by step where a saved MAC (a saved
    parameter, if the budget has no MACs and no latency) costs least.

    Parameters
    ----------
    model
        The network; it is left as it is.
    budget
        What it may cost.
    inputs, labels, criterion, exclude, progress
        As for `sensitivity`.
    multiple
        As for `plan`.

    Raises
    ------
    PruningError
        Not even the narrowest network keeps to the budget; the message says what it costs.
    """
    found = nearest(
        model, budget, inputs, labels,
        criterion=criterion, exclude=exclude, multiple=multiple, progress=progress,
    )  # fmt: skip
    if found.short:
        raise PruningError(found.short)
    return found


def nearest(
    model: nn.Module,
    budget: Budget,
    inputs: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    criterion: str | Criterion = "l1",
    exclude: Sequence[str] = (),
    multiple: int = 8,
    progress: Progress | None = None,
) -> Search:
    """Do as `search`; where no widths keep to the budget, return the narrowest ones.

    `Search.short` says then what they cost, and what would help.
    """
    refuse_multiple(multiple)
    scan = sensitivity(
        model, inputs, labels,
        ratios=_RATIOS, criterion=criterion, exclude=exclude, progress=progress,
    )  # fmt: skip
    rated = Rated(model, criteria.find(criterion), tuple(inputs.shape), exclude)
    states = list(_states(rated, scan, multiple, budget))
    judge = _Judge(model, rated, budget, inputs, labels)
    end, short = _first_within(states, budget, judge.latency)
    share = [state.macs / states[0].macs for state in states]
    wanted = [*np.linspace(1, share[end], 5)[1:-1].tolist(), share[end], share[end] ** 1.5]
    places = sorted(
        {min(range(len(share)), key=lambda i: abs(share[i] - w)) for w in wanted} | {end}
    )
    places = [i for i in places if i] or [0]
    points = [judge(states[i]) for i in tracked(places, "budget", "points", progress)]
    settings = {
        "budget": str(budget), "multiple": multiple, "exclude": list(exclude),
        "criterion": criteria.name_of(criterion),
    }  # fmt: skip
    plan = judge.plan(states[end], settings)
    whole, chosen = judge(states[0]), places.index(end)
    steps = tuple(_step(rated, state) for state in states)
    return Search(budget, len(inputs), whole, tuple(points), chosen, plan, scan, short, steps)


def _states(rated: Rated, scan: Sensitivity, multiple: int, budget: Budget) -> Iterator[State]:
    """Yield the descent that buys what the budget wants: MACs, parameters, or both in turn."""
    of_work = budget.macs is not None or budget.latency is not None
    of_size = budget.parameters is not None or budget.megabytes is not None
    if not (of_work and of_size):
        return path(rated, scan, multiple, "macs" if of_work else "parameters")
    macs, parameters = rated.cost.total()
    most = min((budget.parameters or 1) * parameters, (budget.megabytes or np.inf) * 1e6 / _BYTES)
    share = min(x for x in (budget.macs, budget.latency) if x is not None)
    return path(rated, scan, multiple, limits=(share * macs, most))


def _step(rated: Rated, state: State) -> Step:
    widths = {g.name: g.channels - g.parts * state.removed[g.name] for g in rated.groups}
    db = -10 * np.log10(max(state.noise, 1e-12))
    return Step(widths, state.macs, state.parameters, float(db))


def _first_within(
    states: Sequence[State], budget: Budget, latency: Callable[[State], float]
) -> tuple[int, str]:
    """Return the first state that keeps to the budget; else the narrowest, and what it costs.

    For latency what is left is halved.
    """
    within = [i for i, state in enumerate(states) if budget.holds(state, states[0])]
    end, last = len(states) - 1, states[-1]
    least = (
        f"The narrowest network that was planned has {100 * last.macs / states[0].macs:.0f} % of "
        f"the MACs and {last.parameters * _BYTES / 1e6:.2f} MB of parameters"
    )
    advice = "Raise the budget, exclude fewer layers, or pass a smaller multiple."
    if not within:
        return end, f"{budget}: no widths keep to it. {least}. {advice}"
    low, high = within[0], within[-1]
    if budget.latency is None or latency(states[low]) <= budget.latency:
        return low, ""
    if (found := latency(states[high])) > budget.latency:
        return end, (
            f"{budget}: no widths keep to it. {least}, and takes {100 * found:.0f} % of the time. "
            f"{advice}"
        )
    while high - low > max(1, len(states) // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if latency(states[middle]) <= budget.latency else (middle, high)
    return high, ""


class _Judge:
    """Measures states of the descent; each latency is measured once."""

    def __init__(
        self,
        model: nn.Module,
        rated: Rated,
        budget: Budget,
        inputs: np.ndarray,
        labels: np.ndarray | None,
    ) -> None:
        self.rated, self.budget, self.inputs, self.labels = rated, budget, inputs, labels
        self.network = copy.deepcopy(model)
        remove_(self.network, zeros=False)
        self.reference = logits_of(self.network, inputs)
        self.orders = {
            group.name: tuple(torch.argsort(scores, stable=True).tolist())
            for group, scores in zip(rated.groups, rated.scores, strict=True)
        }
        self.measured: dict[tuple[int, ...], float] = {}

    def plan(self, state: State, settings: Mapping[str, Any]) -> ChannelPlan:
        """Return the plan of a state."""
        parts = tuple(
            Channels(g, self.orders[g.name], state.removed[g.name]) for g in self.rated.groups
        )
        masks = channel_masks(parts, self.rated.weights)
        stays = {name: int(mask.sum()) for name, mask in masks.items()}
        rated = self.rated
        left = tuple(rated.left)
        return ChannelPlan(
            rated.network, "channels", settings, rated.cost, stays, left, parts, rated.criterion
        )

    def __call__(self, state: State) -> Point:
        """Return the point of a state."""
        plan = self.plan(state, {})
        masked = self._masked(plan)
        found = compared(logits_of(masked, self.inputs), self.reference, self.labels)
        latency = None if self.budget.latency is None else self.latency(state)
        widths = {part.group.name: part.kept for part in plan.parts}
        macs, parameters = plan.cost.total(plan.stays)
        return Point(macs, parameters, *found, latency, widths)

    def _masked(self, plan: ChannelPlan) -> nn.Module:
        masked = copy.deepcopy(self.network)
        set_masks_(masked, plan.masks(masked))
        return masked

    def latency(self, state: State) -> float:
        """Return the time of a state's network on ONNX Runtime, relative to the whole network's."""
        key = tuple(state.removed.values())
        if not any(key):
            return 1.0
        if key not in self.measured:
            shape = tuple(self.inputs.shape)
            smaller = removed(self._masked(self.plan(state, {})), size=shape).network
            self.measured[key] = latency_ratio(smaller, self.network, self.inputs[:1])
        return self.measured[key]


def latency_ratio(smaller: nn.Module, whole: nn.Module, image: np.ndarray) -> float:
    """Return the time of a network on ONNX Runtime as a share of another's.

    One image, one thread, medians of runs in turns, so that what else the machine does disturbs
    both alike.
    """
    with paths.scratch() as folder:
        files = {"smaller": Path(folder, "smaller.onnx"), "whole": Path(folder, "whole.onnx")}
        for network, file in ((smaller, files["smaller"]), (whole, files["whole"])):
            plain = copy.deepcopy(network).cpu().float()
            export.to_onnx(plain, file, example=torch.from_numpy(image))
        runners = {name: runtime.connect(file, threads=1) for name, file in files.items()}
        try:
            seconds = runtime.seconds_in_turns(runners, image, _TURNS)
        finally:
            for runner in runners.values():
                runner.close()
    return seconds["smaller"] / seconds["whole"]


def _quality(point: Point) -> float:
    return point.agreement if point.top1 is None else point.top1
