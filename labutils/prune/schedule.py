"""Schedules: how the masks of a plan come into force while a network is trained.

A schedule is one line in any loop::

    schedule = prune.Schedule(model, plan, steps=1000)   # also puts the masks on
    for inputs, labels in batches:
        ...
        optimizer.step()
        schedule.step()

and the `on_step` of `train.fine_tune`::

    train.fine_tune(model, steps=300, on_step=prune.Schedule(model, plan))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UnknownNameError, UsageError
from . import criteria
from .criteria import Criterion
from .masks import Mask, masks_of, set_masks_, weights_of
from .report import (
    ChannelPlan,
    Channels,
    Plan,
    WeightPlan,
    channel_masks,
    refuse_missing,
    weight_masks,
)

ONE_SHOT = "one-shot"
KINDS: Mapping[str, str] = {
    ONE_SHOT: "all at the start",
    "incremental": "in equal stages",
    "cubic": "fast at first, then slower (Zhu and Gupta 2017)",
    "blend": "all at the start, but soft; they harden, fast at first (TI's toolkit, p = 2)",
}
"""How masks come into force, by name."""

_POWERS = {"incremental": 1, "cubic": 3, "blend": 2}


class Schedule:
    """Brings the masks of a plan into force step by step.

    Channels are rated again at every stage by the plan's criterion, and single weights by their
    magnitude; what is masked stays masked. From the end of the ramp on the masks are hard and
    complete.

    Parameters
    ----------
    model
        The network; masks are put on at once.
    plan
        What it loses.
    kind
        One of `KINDS`.
    steps
        Length of the run in optimizer steps; without, `on_step` says it.
    start, end
        Where the ramp begins and ends, as shares of the run. The rest is for recovery.
    stages
        How often the masks change on the ramp, for ``incremental`` and ``cubic``.

    Raises
    ------
    UnknownNameError
        A kind that is not known.
    UsageError
        The ramp does not lie in the run, or the network is wrapped (`DistributedDataParallel`).
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        kind: str = "cubic",
        *,
        steps: int | None = None,
        start: float = 0.0,
        end: float = 0.5,
        stages: int = 10,
    ) -> None:
        if kind not in KINDS:
            raise UnknownNameError("schedule", kind, KINDS)
        if not 0 <= start <= end <= 1 or stages < 1 or (steps is not None and steps < 1):
            raise UsageError(
                f"A ramp from {start} to {end} in {stages} stages of {steps} steps is impossible: "
                "0 <= start <= end <= 1, stages and steps of at least 1."
            )
        self.model, self.plan, self.kind, self.steps = model, plan, kind, steps
        self.start, self.end, self.stages = start, end, stages
        self.taken = 0
        self._stage: float | None = None
        self._set(0.0)

    def step(self) -> None:
        """Count an optimizer step, and change the masks if it is time."""
        if self.steps is None:
            raise UsageError("Say how long the run is: prune.Schedule(..., steps=1000).")
        self.taken += 1
        self._set(self.taken / self.steps)

    def __call__(self, step: int, steps: int, model: nn.Module) -> None:
        """Do the same as the `on_step` of `train.fine_tune`, whose model may be a copy."""
        self.taken, self.model = step, model
        self._set(step / (self.steps or steps))

    def progress(self, share: float) -> float:
        """Return how much of the plan is in force after a share of the run, 0 to 1."""
        if self.kind == ONE_SHOT or share >= self.end:
            return 1.0
        if share < self.start:
            return 0.0
        ramp = (share - self.start) / (self.end - self.start)
        if self.kind != "blend":
            ramp = math.floor(ramp * self.stages) / self.stages
        return 1 - (1 - ramp) ** _POWERS[self.kind]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the network's state."""
        return {"taken": self.taken, "stage": self._stage, "of": self._content()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a run whose network has been loaded, masks included.

        Raises
        ------
        ValueError
            It is the state of another plan or schedule.
        """
        if state["of"] != self._content():
            raise ValueError("it is the state of another pruning plan or schedule")
        self.taken, self._stage = state["taken"], state["stage"]

    def _content(self) -> str:
        return f"{self.kind} {self.start} {self.end} {self.stages} {self.plan.digest()}"

    def _set(self, share: float) -> None:
        progress = self.progress(share)
        if progress == self._stage:
            return
        there = {} if self._stage is None else masks_of(self.model)  # those of this schedule
        if self.kind != "blend":
            set_masks_(self.model, _masks(self.plan, self.model, progress, there))
        elif there:
            for name in self.plan.stays:
                there[name].strength.fill_(progress)
        else:
            set_masks_(self.model, self.plan.masks(self.model), progress)
        self._stage = progress


def _masks(
    plan: Plan, model: nn.Module, progress: float, there: Mapping[str, Mask]
) -> dict[str, torch.Tensor]:
    """Return the masks of a stage, by what the weights are now; those in force stay."""
    weights = {name: p.detach().float() for name, p in weights_of(model).items()}
    gone = {name: there[name].keep == 0 for name in plan.stays if name in there}
    if isinstance(plan, WeightPlan):
        return weight_masks(plan, weights, progress, gone)
    if not isinstance(plan, ChannelPlan) or plan.criterion is None:
        return plan.masks(model, progress)
    parts = [_rated_again(plan.criterion, part, weights, gone) for part in plan.parts]
    return channel_masks(parts, weights, progress)


def _rated_again(
    criterion: Criterion,
    part: Channels,
    weights: Mapping[str, torch.Tensor],
    gone: Mapping[str, torch.Tensor],
) -> Channels:
    """Return what a group loses, the channels that are gone first."""
    group = part.group
    refuse_missing((s.parameter for s in group.slices), weights)
    scores = criteria.scores(criterion, group, weights)
    if group.slices and all(s.parameter in gone for s in group.slices):
        kept = [group.rows(s, ~gone[s.parameter]).any(1) for s in group.slices]
        scores = scores.where(torch.stack(kept).any(0).cpu(), -torch.inf)
    order = tuple(torch.argsort(scores, stable=True).tolist())
    return Channels(group, order, part.removed)
