"""The schedule of a training run in a loop of your own: what stops following the data, and when.

A range that follows every batch, or statistics of BatchNorm that do, make the last steps of a run
train a network that keeps changing under them. So both stop before its end: first the ranges, so
that the weights learn to live with them, then the statistics (Krishnamoorthi, "Quantizing deep
convolutional networks for efficient inference" (2018), section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from ...errors import UsageError, counted
from ...train import norms
from ..recipe import Qat, Recipe
from .fake_quant import quantizers

FREEZE_BATCH_NORM_AT = 0.75
"""Share of a run after which BatchNorm keeps its statistics, where nothing else is said."""

_STATE = ("done", "steps", "freeze_observers_at", "freeze_batch_norm_at")


class Schedule:
    """Freezes observers and later BatchNorm, in a loop that is not ours.

    For example::

        schedule = qat.Schedule(model, steps=epochs * len(loader))
        for epoch in range(epochs):
            for images, labels in loader:
                ...  # forward, backward, optimizer.step()
                schedule.step()

    It serves a network after surgery, which has BatchNorm and no observers, and a network from
    `qat.prepare`, which has observers, and BatchNorm only where it could not be folded. What a
    network does not have is left out. The fake quantizers of torch and torchao are frozen, too
    (`quantize.pt2e`). Where the recipe's scales are ``learned``, the optimizer moves the ranges
    from calibration on, and there is no observer to freeze.

    Parameters
    ----------
    model
        What is trained. Wrapped in ``DistributedDataParallel`` it is the same; every process then
        has its own schedule, and takes the same steps.
    steps
        How often `step` will be called: optimizer steps, or epochs.
    freeze_observers_at
        Share of the run, 0 to 1, after which ranges stay; None: what the recipe says
        (`Qat.freeze_at`).
    freeze_batch_norm_at
        Share of the run after which BatchNorm keeps its statistics, also after ``model.train()``
        (`train.freeze_batch_norm_`); None: never.

    Attributes
    ----------
    done
        Steps taken.

    Raises
    ------
    UsageError
        The network is prepared and not calibrated; or a number makes no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        *,
        freeze_observers_at: float | None = None,
        freeze_batch_norm_at: float | None = FREEZE_BATCH_NORM_AT,
    ) -> None:
        if freeze_observers_at is None:
            recipe = recipe_of(model) or Recipe()
            freeze_observers_at = (recipe.qat or Qat()).freeze_at
        self.model, self.done, self.steps = model, 0, steps
        self.freeze_observers_at = freeze_observers_at
        self.freeze_batch_norm_at = freeze_batch_norm_at
        self._check()
        require_calibration(model)
        self._freeze()

    def _check(self) -> None:
        if self.steps < 1:
            raise UsageError(f"steps={self.steps}: pass how many steps the run has.")
        for name in ("freeze_observers_at", "freeze_batch_norm_at"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise UsageError(f"{name} is a share between 0 and 1, got {share}.")

    def step(self) -> tuple[str, ...]:
        """Be told that a step is done; return what was frozen by it: "observers", "BatchNorm"."""
        return self.reach(self.done + 1)

    def reach(self, done: int, steps: int | None = None) -> tuple[str, ...]:
        """Be told how many steps are done, and of how many; return what was frozen by it."""
        self.done, self.steps = done, self.steps if steps is None else steps
        return self._freeze()

    def _freeze(self) -> tuple[str, ...]:
        frozen = []
        if self._is_due(self.freeze_observers_at) and (freezes := _observers(self.model)):
            for freeze in freezes:
                freeze()
            frozen.append("observers")
        if self._is_due(self.freeze_batch_norm_at) and norms.moving_norms(self.model):
            norms.freeze_batch_norm_(self.model)
            frozen.append("BatchNorm")
        return tuple(frozen)

    def _is_due(self, share: float | None) -> bool:
        return share is not None and self.done >= _step_at(share, self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Return where the schedule is, for a checkpoint: plain values."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, and freeze again what was frozen there.

        Load the network's own state first: it has the ranges.

        Raises
        ------
        UsageError
            This is not the state of a schedule.
        """
        if not isinstance(state, dict) or set(state) != set(_STATE):
            raise UsageError(
                f"This is not the state of a schedule, which has {', '.join(_STATE)}: pass what "
                "its state_dict() returned."
            )
        for name in _STATE:
            setattr(self, name, state[name])
        self._check()
        self._freeze()

    def __repr__(self) -> str:
        plans = [
            f"{what} {'frozen' if self._is_due(share) else 'freeze'} at step "
            f"{_step_at(share, self.steps)}"
            for what, share, there in (
                ("observers", self.freeze_observers_at, _has_observers(self.model)),
                ("BatchNorm", self.freeze_batch_norm_at, bool(norms.with_statistics(self.model))),
            )
            if there and share is not None
        ]
        said = ", ".join(plans) or "nothing to freeze"
        return f"Schedule: {self.done} of {counted(self.steps, 'step')}; {said}"


def _step_at(share: float, steps: int) -> int:
    return math.ceil(share * steps - 1e-9)  # 0.1 of 30 is 3, not what its binary fraction gives


def _observers(model: nn.Module) -> list[Callable[[], object]]:
    """Return what freezes each range that follows the data: ours, torch's and torchao's."""
    ours = [quantizer.freeze_ for quantizer in quantizers(model).values() if quantizer.follows]
    return [*ours, *(m.disable_observer for m in _of_torch(model) if m.observer_enabled.any())]


def _of_torch(model: nn.Module) -> list[Any]:
    """Return the fake quantizers of torch and of torchao, which have one interface."""
    return [m for m in model.modules() if hasattr(m, "disable_observer")]


def _has_observers(model: nn.Module) -> bool:
    return bool(_of_torch(model)) or any(not q.learned for q in quantizers(model).values())


def require_calibration(model: nn.Module) -> None:
    """Refuse a prepared network whose ranges were never set.

    Raises
    ------
    UsageError
        It was not calibrated (or not to the end), and no state was loaded.
    """
    activations = [q for q in quantizers(model).values() if not q.grid.signed]
    unset = bool(activations) and all(q.exponent.abs().max() == 0 for q in activations)
    if unset or any(q.phase == "observing" for q in activations):
        raise UsageError(
            "The network is not calibrated: call calibrate_ with images first, or load the state "
            "of one that was."
        )


def recipe_of(model: nn.Module) -> Recipe | None:
    """Return the recipe that a network was prepared with; None for another network."""
    return facts_of(model).get("recipe")


def facts_of(model: nn.Module) -> dict[str, Any]:
    """Return what `qat.prepare` noted: ``recipe``, ``channels``; nothing for another network."""
    graphs = (module for module in model.modules() if isinstance(module, fx.GraphModule))
    return next((graph.meta for graph in graphs if "recipe" in graph.meta), {})
