"""Recovery: train under masks that come into force by a schedule, then measure BatchNorm again."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import train
from ..errors import UsageError
from ..images import data
from ..models import modes
from .masks import set_masks_
from .planning import DEFAULT_SIZE, Size
from .removal import Removal, removed
from .report import ChannelPlan, Plan
from .schedule import ONE_SHOT, Schedule

_CALIBRATION = 256  # images
_BATCH = 64


def recover_(
    model: nn.Module,
    plan: Plan,
    *,
    teacher: nn.Module | None = None,
    schedule: str = "cubic",
    end: float = 0.5,
    config: train.FineTuningConfig | None = None,
    **settings: Any,
) -> train.FineTuning:
    """Train a network while it is masked by a plan, in place; return what was done.

    Afterwards the masks are hard and complete, and BatchNorm has the statistics of training images
    under them. `removed` comes next.

    Parameters
    ----------
    model
        The network that was planned for.
    plan
        What it loses.
    teacher
        The network as it was (a copy), whose answers are asked for as well.
    schedule, end
        How the masks come into force, and after which share of the run they are complete; see
        `Schedule`.
    config, **settings
        Passed on to `train.fine_tune`: ``steps=``, ``size=``, ``image_set=``, ...

    Raises
    ------
    TrainingError, UsageError, UnknownNameError
        As for `Schedule` and `train.fine_tune`.
    """
    if "on_step" in settings:
        raise UsageError("recover_ uses on_step for the schedule: call train.fine_tune yourself.")
    masks = Schedule(model, plan, schedule, end=end)
    done = train.fine_tune(model, config=config, teacher=teacher, on_step=masks, **settings)
    masks(done.steps, done.steps, model)  # a run that the clock ended may have expected more
    _reestimate_as_trained_(model, done, settings)
    return done


def recovered(
    model: nn.Module,
    plan: ChannelPlan,
    *,
    input_size: Size = DEFAULT_SIZE,
    teacher: nn.Module | None = None,
    schedule: str = ONE_SHOT,
    end: float = 0.5,
    config: train.FineTuningConfig | None = None,
    **settings: Any,
) -> tuple[Removal, train.FineTuning]:
    """Return a trained network without the channels of a plan, and what its training did.

    One-shot, the channels are removed first and the smaller network is trained, which takes less
    time than training under masks. With other schedules it is trained under masks
    (`recover_`), and then they are removed.

    Parameters
    ----------
    model
        The network that was planned for; it is left as it is.
    plan
        What it loses.
    input_size
        As `size` of `removed`.
    teacher, schedule, end, config, **settings
        As for `recover_`.

    Raises
    ------
    PruningError
        As for `removed`.
    TrainingError, UsageError, UnknownNameError
        As for `recover_`.
    """
    student = copy.deepcopy(model)
    if schedule != ONE_SHOT:
        done = recover_(
            student, plan, teacher=teacher, schedule=schedule, end=end, config=config, **settings
        )
        return removed(student, size=input_size), done
    set_masks_(student, plan.masks(student))
    removal = removed(student, size=input_size)
    done = train.fine_tune(removal.network, config=config, teacher=teacher, **settings)
    _reestimate_as_trained_(removal.network, done, settings)
    return removal, done


def _reestimate_as_trained_(
    model: nn.Module, done: train.FineTuning, settings: Mapping[str, Any]
) -> None:
    """Measure BatchNorm again on images that a network was trained on, at their side."""
    size, n = max(done.settings["size"], 32), min(_CALIBRATION, done.settings["images"])
    images = data.load("train", n, size, settings.get("image_set", data.THINGS16))
    reestimate_(model, [x for x, _ in images.batches(_BATCH, data.Preprocessing(size))])


@torch.no_grad()
def reestimate_(model: nn.Module, batches: Iterable[np.ndarray]) -> None:
    """Measure the BatchNorm statistics of a network again, in place: the mean over batches.

    Parameters
    ----------
    model
        The network; the modes of its parts stay.
    batches
        (n, channels, height, width) float32 each, as the network takes them in training. One that
        is smaller than the one before it is joined to that: a single image may have no variance.

    Raises
    ------
    UsageError
        There are no images, or too few for a variance; the network has the statistics it had.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, dict(norm.named_buffers(recurse=False))) for norm in norms]
    before = [(momentum, copy.deepcopy(buffers)) for momentum, buffers in before]
    some, seen = next(model.parameters()), 0
    try:
        with modes.evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum, norm.training = None, True
            for batch in _joined(batches):
                seen += len(batch)
                model(torch.from_numpy(batch).to(some))
        if norms and not seen:
            raise ValueError("there are none")
    except ValueError as error:
        for norm, (_, buffers) in zip(norms, before, strict=True):
            for name, values in buffers.items():
                norm.get_buffer(name).copy_(values)
        raise UsageError(
            f"{seen} images are too few to measure the statistics of BatchNorm ({error}). Pass "
            "batches of several."
        ) from None
    finally:
        for norm, (momentum, _) in zip(norms, before, strict=True):
            norm.momentum = momentum


def _joined(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield batches; one that is smaller than the one before comes together with that."""
    held: np.ndarray | None = None
    for batch in batches:
        if held is not None and len(batch) < len(held):
            held = np.concatenate([held, batch])
        else:
            if held is not None:
                yield held
            held = batch
    if held is not None:
        yield held
