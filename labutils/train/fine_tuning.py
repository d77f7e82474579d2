"""Fine-tuning: bring a network back that surgery or quantization has changed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import typesetting
from ..errors import TrainingError, UsageError
from ..images import data
from ..tracking import Progress, tracked
from . import in_place, run_state
from .batches import Batches
from .config import FineTuningConfig, TrainConfig, cosine
from .loop import parameter_groups
from .loss import Loss
from .ranks import RESUMES, Ranks
from .run_state import Resumable, Run, RunState

WARMUP_SHARE = 0.05  # of the run
SOURCE_SIZE = TrainConfig.source_size  # the images that training has rendered already
MOMENTUM = TrainConfig.momentum  # of BatchNorm statistics; torchvision's 0.01 never catches up

OnStep = Callable[[int, int, nn.Module], None]


@dataclass(frozen=True, repr=False)
class FineTuning(typesetting.Paragraph):
    """What a fine-tuning did.

    Attributes
    ----------
    steps
        Optimizer steps taken.
    seconds
        Wall time of the steps; rendering the images is not counted.
    images
        Images seen, repeats counted.
    losses
        The loss of every step.
    settings
        What was asked for, by parameter name; `teacher` is the class's name, or None.
    resumed_at
        Steps that were done when an earlier process was stopped; 0 for a run in one go.
    """

    steps: int
    seconds: float
    images: int
    losses: tuple[float, ...]
    settings: dict[str, Any]
    resumed_at: int = 0

    @property
    def first_loss(self) -> float:
        """Mean loss of the first tenth of the steps."""
        return self._mean(self.losses[: self._tenth])

    @property
    def last_loss(self) -> float:
        """Mean loss of the last tenth of the steps."""
        return self._mean(self.losses[-self._tenth :])

    @property
    def _tenth(self) -> int:
        return max(1, self.steps // 10)

    @staticmethod
    def _mean(losses: tuple[float, ...]) -> float:
        return sum(losses) / len(losses)

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return asdict(self) | {"first_loss": self.first_loss, "last_loss": self.last_loss}

    def __str__(self) -> str:
        teacher = self.settings["teacher"]
        taught = f", with a {teacher} as teacher" if teacher else ""
        resumed = f", resumed at step {self.resumed_at:,}" if self.resumed_at else ""
        rate = self.images / self.seconds
        return (
            f"Fine-tuned for {self.steps:,} steps in {self.seconds:.1f} s{taught}{resumed} "
            f"({self.images:,} "
            f"images at {self.settings['size']} px, {rate:,.0f} per second): "
            f"loss {self.first_loss:.3f} in the first tenth, {self.last_loss:.3f} in the last."
        )


def fine_tune(
    model: nn.Module,
    *,
    config: FineTuningConfig | None = None,
    teacher: nn.Module | None = None,
    image_set: data.ImageSource = data.THINGS16,
    on_step: OnStep | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
    state: str | Path | Resumable | None = None,
    **settings: Any,
) -> FineTuning:
    """Train a network a little further, in place; return what was done.

    AdamW on the parameters that the model has when this is called (wrap first, then call), with a
    short warm-up and a cosine rate. Given `steps`, the result is a function of the arguments (on
    the same machine with the same number of threads).

    Parameters
    ----------
    model
        Any module that takes (n, 3, size, size) normalised float32 and returns (n, classes)
        logits. It is trained in train mode; afterwards every part has the mode that it had before.
        Where no parameter asks for a gradient (as `zoo.load` gives it), all are trained; where
        some do, those.
    config
        How long, how fast, with which augmentation; the defaults of `FineTuningConfig` without.
    teacher
        A network whose outputs are to be matched as well, e.g. a copy of the original from before
        the surgery. It is run in eval mode and not changed.
    image_set
        What is learned: one of `data.DRAWN`, or a folder of pictures (`labutils.images.folder`).
    on_step
        Called as ``on_step(step, steps, model)`` after every step, `step` counting from 1. With
        `seconds` alone `steps` is the estimate at that moment. It may change modes and buffers
        (freeze observers, for instance), but must not replace parameters. An object that has
        ``state_dict`` and ``load_state_dict`` keeps its own state in `state`.
    progress
        Called as ``progress(iterable, description)`` around the steps.
    ranks
        The processes that share every batch (`train.joined`); each must call this. Afterwards all
        have the same network.
    state
        A file, or a folder for one, in which the run is saved now and then, and from which the same
        call resumes after a kill: with the same number of processes to the same weights, bit by
        bit. It is left there, and the call returns at once what it holds when the run is over:
        ``Resumable(path).remove()`` deletes it.
    **settings
        Fields of `FineTuningConfig` that replace those of `config`: ``steps=200``, ``size=128``.
        One of `steps` and `seconds` is needed.

    Raises
    ------
    TrainingError
        The loss is no longer finite, the network cannot be differentiated, or another process of
        the run was lost.
    UsageError
        The arguments contradict each other, or the network has other inputs or outputs.
    ModelFileError
        `state` is that of another run.

    Notes
    -----
    For the run, in-place layers compute out of place (an in-place dropout after a ReLU overwrites
    what the ReLU's gradient needs), but those whose input is read again: out of place, the network
    would be another function. BatchNorm statistics move with momentum 0.1: with
    torchvision's 0.01 those of a changed network would not arrive within a short run.

    Distillation: the KL divergence of softened outputs, times temperature squared, as in Hinton,
    Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015).
    """
    config = (config or FineTuningConfig()).replaced(**settings)
    kept = Resumable(state) if isinstance(state, str | Path) else state
    group = ranks or Ranks()
    _check(config, group, kept)
    _check_teacher(model, teacher)
    train = data.load("train", config.images, max(SOURCE_SIZE, config.size), image_set)
    _check_batch(config.batch_size, len(train))
    said = asdict(config) | {
        "teacher": type(teacher).__name__ if teacher is not None else None,
        "images": len(train),
        "image_set": image_set if isinstance(image_set, str) else image_set.title,
    }
    batches = Batches(train, config.batch_size, config.seed, config.augmentation)
    with (
        _training(model), _evaluating(teacher), _placed(ranks, model, teacher),
        torch.random.fork_rng(), torch.enable_grad(),
    ):  # fmt: skip
        groups = parameter_groups(model, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99))
        run = Run(model, optimizer, on_step)
        saved = RunState(kept, _facts(config, train, run, teacher), group) if kept else None
        with saved.claimed() if saved is not None else contextlib.nullcontext():
            if saved is not None:
                saved.resume(run)
            resumed_at = len(run.losses)
            loss_of = Loss(model, teacher, config, image_set, group)

            def shown() -> torch.Tensor:  # the same in every process
                return loss_of.placed(batches.at(0, config.size, slice(0, 2))[0])

            with in_place.avoided(model, shown):
                _take_steps(run, loss_of, batches, saved, progress)
        group.share_buffers_(model)
    steps = len(run.losses)
    seen = steps * config.batch_size
    return FineTuning(steps, run.seconds, seen, tuple(run.losses), said, resumed_at)


def _facts(
    config: FineTuningConfig, train: data.ImageSet, run: Run, teacher: nn.Module | None
) -> dict[str, Any]:
    """Return what decides a run, for the file of its state."""
    return asdict(config) | {
        "the pictures": run_state.pictures_digest(train),
        "the weights that it began with": run_state.digest(run.model),
        "the teacher": run_state.digest(teacher) if teacher is not None else None,
        "a state of on_step": run_state.keeps(run.on_step),
    }


def _take_steps(
    run: Run, loss_of: Loss, batches: Batches, saved: RunState | None, progress: Progress | None
) -> None:
    """Take the steps that are left, and save what a resumed run needs."""
    config, ranks = loss_of.config, loss_of.ranks
    part = ranks.part(config.batch_size)
    clock = _Clock(config.steps, config.seconds, run.seconds)
    advice = RESUMES if saved else "Start again, with state=FILE for a run that can be resumed."
    for step in tracked(clock.steps_after(len(run.losses)), "fine-tuning", "steps", progress):
        share = clock.share(step)
        if config.freeze_batch_norm_at is not None and share >= config.freeze_batch_norm_at:
            _freeze_batch_norm(run.model)
        seed = config.seed * 1_000_003 + step
        torch.manual_seed(seed * ranks.size + ranks.rank)  # dropout
        for group in run.optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, share / WARMUP_SHARE) * cosine(share)
        with ranks.explaining_losses(step, advice):
            loss = _step(run.optimizer, loss_of, batches.at(step, config.size, part), step)
        run.losses.append(loss)
        run.seconds = clock.elapsed()
        if run.on_step is not None:
            run.on_step(step + 1, clock.expected(step + 1), run.model)
        if saved and ((step + 1) % saved.every == 0 or step + 1 == config.steps):
            saved.save(run)


class _Clock:
    """The steps of a run that ends after a number of steps or of seconds.

    Time counts from the first step on, and begins with what an earlier process took.
    """

    def __init__(self, steps: int | None, seconds: float | None, before: float = 0.0) -> None:
        self.steps, self.before, self.start = steps, before, time.perf_counter()
        self.seconds = math.inf if seconds is None else seconds

    def elapsed(self) -> float:
        return self.before + time.perf_counter() - self.start

    def share(self, step: int) -> float:
        """Return how much of the run lies behind the middle of `step`, 0 to 1."""
        if self.steps is not None:
            return (step + 0.5) / self.steps
        at = self.elapsed() * (step + 0.5) / step if step else 0.0
        return min(1.0, at / self.seconds)

    def expected(self, done: int) -> int:
        """Return the number of steps of the whole run, estimated where the clock ends it."""
        if self.steps is not None:
            return self.steps
        return max(done, round(done * self.seconds / self.elapsed()))

    def steps_after(self, done: int) -> Iterable[int]:
        """Return the numbers of the steps that are left; a range where nothing but they end it."""
        if self.steps is not None and self.seconds == math.inf:
            return range(done, self.steps)
        return self._until_the_end(done)

    def _until_the_end(self, step: int) -> Iterator[int]:
        self.start, first = time.perf_counter(), step
        while (self.steps is None or step < self.steps) and (
            step == first or self.elapsed() < self.seconds
        ):
            yield step
            step += 1


def _step(
    optimizer: torch.optim.Optimizer,
    loss_of: Loss,
    batch: tuple[torch.Tensor, torch.Tensor],
    step: int,
) -> float:
    loss = loss_of(*batch)
    value = loss_of.ranks.mean(loss.item())  # not finite in one is not finite in all
    if not math.isfinite(value):
        raise TrainingError(
            f"The loss is {value} at step {step}: the network computes no finite numbers, or the "
            "learning rate is too high. Check its outputs before, or lower learning_rate."
        )
    optimizer.zero_grad(set_to_none=True)
    try:
        loss.backward()
    except RuntimeError as error:
        if loss_of.ranks.is_lost(error):
            raise
        raise TrainingError(
            f"The network has no gradient: {str(error).splitlines()[0]} If it computes something "
            "in place (F.relu(x, inplace=True), x.add_(y)), write that without inplace; if it was "
            "traced under torch.no_grad(), trace it again without."
        ) from error
    optimizer.step()
    return value


@contextlib.contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Put a model into train mode, with quick statistics; then undo that."""
    modules: list[Any] = list(model.modules())
    parameters = list(model.parameters())
    if not parameters:
        raise UsageError(
            f"{type(model).__name__} has no parameters, so there is nothing to train. Fine-tune "
            "before the weights become constants."
        )
    chosen = any(p.requires_grad for p in parameters)
    frozen = [] if chosen else [p for p in parameters if p.is_floating_point()]
    modes = [(m, m.training) for m in modules]
    norms = [(m, m.momentum) for m in modules if _is_batch_norm(m) and m.momentum is not None]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module, _ in norms:
            module.momentum = MOMENTUM
        with contextlib.suppress(NotImplementedError):  # an exported program has no modes
            model.train()
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, momentum in norms:
            module.momentum = momentum
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _evaluating(teacher: nn.Module | None) -> Iterator[None]:
    modes = [(m, m.training) for m in teacher.modules()] if teacher is not None else []
    try:
        if teacher is not None and any(mode for _, mode in modes):
            with contextlib.suppress(NotImplementedError):
                teacher.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _placed(ranks: Ranks | None, model: nn.Module, teacher: nn.Module | None) -> Iterator[None]:
    """Have both networks where this process computes; afterwards, where they were.

    A BatchNorm layer that has the whole batch's statistics is one of another class: what it learned
    is in the same tensors.
    """
    if ranks is None:
        yield
        return
    networks = [network for network in (model, teacher) if network is not None]
    places = [next(network.parameters(), torch.zeros(())).device for network in networks]
    for network in networks:
        network.to(ranks.device)
    norms = {name: m for name, m in model.named_modules() if name and _is_batch_norm(m)}
    ranks.placed(model)
    try:
        yield
    finally:
        for name, norm in norms.items():
            if model.get_submodule(name) is not norm:
                model.set_submodule(name, norm)
        for network, place in zip(networks, places, strict=True):
            network.to(place)


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _freeze_batch_norm(model: nn.Module) -> None:
    for module in model.modules():
        if _is_batch_norm(module):
            module.eval()


def _check(config: FineTuningConfig, ranks: Ranks, kept: Resumable | None) -> None:
    seconds = config.seconds
    if config.steps is None and seconds is None:
        raise UsageError("Pass steps=200 or seconds=30, to say how long.")
    _check_batch(config.batch_size, config.images)
    if kept is not None and ranks.first:
        kept.refuse_unwritable()
    if seconds is not None and (ranks.size > 1 or kept is not None):
        raise UsageError(
            "seconds end a run of one process, in one go: another process, or the same one when it "
            "resumes, would end at another step. Pass steps instead."
        )


def _check_batch(batch_size: int, images: int) -> None:
    if batch_size > images:
        raise UsageError(f"batch_size ({batch_size}) must be at most images ({images}).")


def _check_teacher(model: nn.Module, teacher: nn.Module | None) -> None:
    if teacher is None:
        return
    shared = {id(p) for p in model.parameters()} & {id(p) for p in teacher.parameters()}
    if teacher is model or shared:
        raise UsageError(
            "The teacher shares parameters with the model, so it would change while it teaches. "
            "Keep a copy from before the surgery: teacher = copy.deepcopy(model)."
        )
