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

import torch
from torch import nn

from ..errors import UnknownNameError, UsageError
from . import criteria
from .masks import masks_of, set_masks_, weights_of
from .report import ChannelPlan, Channels, Plan, channel_masks

KINDS: Mapping[str, str] = {
    "one-shot": "all at the start",
    "incremental": "in equal stages",
    "cubic": "fast at first, then slower (Zhu and Gupta 2017)",
    "blend": "all at the start, but soft; they harden in a straight line (TI's toolkit)",
}
"""How masks come into force, by name."""


class Schedule:
    """Brings the masks of a plan into force step by step.

    Channels are rated again at every stage by the plan's criterion, if that needs no data, and
    single weights by their magnitude; what is masked stays masked. From the end of the ramp on the
    masks are hard and complete.

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
        The ramp does not lie in the run.
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
        if self.kind == "one-shot" or share >= self.end:
            return 1.0
        if share < self.start:
            return 0.0
        ramp = (share - self.start) / (self.end - self.start)
        if self.kind == "blend":
            return ramp
        ramp = math.floor(ramp * self.stages) / self.stages
        return 1 - (1 - ramp) ** 3 if self.kind == "cubic" else ramp

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed run needs besides the network's state."""
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue a run whose network has been loaded, masks included."""
        self.taken = state["taken"]
        self._stage = None

    def _set(self, share: float) -> None:
        progress = self.progress(share)
        if progress == self._stage:
            return
        if self.kind == "blend":
            if self._stage is None:
                set_masks_(self.model, self.plan.masks(self.model), progress)
            for mask in masks_of(self.model).values():
                mask.strength.fill_(progress)
        else:
            set_masks_(self.model, _masks(self.plan, self.model, progress))
        self._stage = progress


def _masks(plan: Plan, model: nn.Module, progress: float) -> dict[str, torch.Tensor]:
    """Return the masks of a stage, by what the weights are now; those in force stay."""
    known = criteria.CRITERIA.get(str(plan.settings.get("criterion")))
    if not isinstance(plan, ChannelPlan) or known is None:
        return plan.masks(model, progress)
    weights = {name: p.detach() for name, p in weights_of(model).items()}
    masks = masks_of(model)
    parts = []
    for part in plan.parts:
        group = part.group
        scores = criteria.scores(known, group, weights)
        if group.slices and all(s.parameter in masks for s in group.slices):
            keep = [group.rows(s, masks[s.parameter].keep).amax(1) for s in group.slices]
            scores = scores.where(torch.stack(keep).amax(0).cpu() > 0, -torch.inf)
        order = tuple(torch.argsort(scores, stable=True).tolist())
        parts.append(Channels(group, order, part.removed))
    return channel_masks(parts, weights, progress)
