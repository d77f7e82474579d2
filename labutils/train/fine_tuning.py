"""Fine-tuning: bring a network back that surgery or quantization has changed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .. import typesetting
from ..errors import TrainingError, UsageError
from ..images import data
from ..tracking import Progress, tracked
from .batches import Batches
from .config import TrainConfig, cosine
from .loop import parameter_groups

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
    """

    steps: int
    seconds: float
    images: int
    losses: tuple[float, ...]
    settings: dict[str, Any]

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
        rate = self.images / self.seconds
        return (
            f"Fine-tuned for {self.steps:,} steps in {self.seconds:.1f} s{taught} ({self.images:,} "
            f"images at {self.settings['size']} px, {rate:,.0f} per second): "
            f"loss {self.first_loss:.3f} in the first tenth, {self.last_loss:.3f} in the last."
        )


def fine_tune(
    model: nn.Module,
    *,
    teacher: nn.Module | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    size: int = 96,
    batch_size: int = 64,
    learning_rate: float = 5e-4,
    images: int = 8000,
    image_set: data.ImageSource = data.THINGS16,
    seed: int = 0,
    label_smoothing: float = 0.05,
    weight_decay: float = 0.02,
    temperature: float = 2.0,
    distillation_weight: float = 0.5,
    freeze_batch_norm_at: float | None = None,
    on_step: OnStep | None = None,
    progress: Progress | None = None,
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
    teacher
        A network whose outputs are to be matched as well, e.g. a copy of the original from before
        the surgery. It is run in eval mode and not changed.
    steps, seconds
        How long; at least one of the two. With `seconds` alone the rate follows the clock, and
        the report says how many steps that were; with both, whichever ends first ends the run.
    size
        Side of the training images, in pixels.
    batch_size
        Images per step.
    learning_rate
        The highest, after the warm-up.
    images
        How many of the training images are used, at most.
    image_set
        What is learned: one of `data.DRAWN`, or a folder of pictures (`labutils.images.folder`).
    seed
        Of the order, the augmentation and dropout.
    label_smoothing
        Of the cross-entropy.
    weight_decay
        Of matrices and filters; vectors (biases, norms, scales) do not decay.
    temperature
        Of both softmaxes in the distillation term.
    distillation_weight
        Share of the distillation term in the loss, 0 to 1; the labels have the rest.
    freeze_batch_norm_at
        Share of the run (0 to 1) from which BatchNorm keeps its statistics; 0 for all of it.
    on_step
        Called as ``on_step(step, steps, model)`` after every step, `step` counting from 1. With
        `seconds` alone `steps` is the estimate at that moment. It may change modes and buffers
        (freeze observers, for instance), but must not replace parameters.
    progress
        Called as ``progress(iterable, description)`` around the steps.

    Raises
    ------
    TrainingError
        The loss is no longer finite, or the network cannot be differentiated.
    UsageError
        The arguments contradict each other, or the network has other inputs or outputs.

    Notes
    -----
    For the run, in-place layers compute out of place (an in-place dropout after a ReLU overwrites
    what the ReLU's gradient needs), and BatchNorm statistics move with momentum 0.1: with
    torchvision's 0.01 those of a changed network would not arrive within a short run.

    Distillation: the KL divergence of softened outputs, times temperature squared, as in Hinton,
    Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015).
    """
    _check(steps, seconds, distillation_weight, freeze_batch_norm_at)
    _check_teacher(model, teacher)
    train = data.load("train", images, max(SOURCE_SIZE, size), image_set)
    _check_batch(batch_size, len(train))
    settings = {
        "teacher": type(teacher).__name__ if teacher is not None else None,
        "size": size,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "images": len(train),
        "image_set": image_set if isinstance(image_set, str) else image_set.title,
        "seed": seed,
        "label_smoothing": label_smoothing,
        "weight_decay": weight_decay,
        "temperature": temperature,
        "distillation_weight": distillation_weight,
        "freeze_batch_norm_at": freeze_batch_norm_at,
    }
    batches = Batches(train, batch_size, seed)
    losses: list[float] = []
    with _training(model), _evaluating(teacher), torch.random.fork_rng(), torch.enable_grad():
        groups = parameter_groups(model, weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99))
        weights = (label_smoothing, temperature, distillation_weight)
        loss_of = _Loss(model, teacher, *weights, image_set)
        clock = _Clock(steps, seconds)
        for step in tracked(clock, "fine-tuning", "steps", progress):
            share = clock.share(step)
            if freeze_batch_norm_at is not None and share >= freeze_batch_norm_at:
                _freeze_batch_norm(model)
            torch.manual_seed(seed * 1_000_003 + step)  # dropout
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, share / WARMUP_SHARE) * cosine(share)
            losses.append(_step(optimizer, loss_of, batches.at(step, size), step))
            if on_step is not None:
                on_step(step + 1, clock.expected(step + 1), model)
        elapsed = clock.elapsed()
    return FineTuning(len(losses), elapsed, len(losses) * batch_size, tuple(losses), settings)


class _Clock:
    """The steps of a run that ends after a number of steps or of seconds.

    Time counts from the first step on.
    """

    def __init__(self, steps: int | None, seconds: float | None) -> None:
        self.steps, self.start = steps, time.perf_counter()
        self.seconds = math.inf if seconds is None else seconds

    def elapsed(self) -> float:
        return time.perf_counter() - self.start

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

    def __iter__(self) -> Iterator[int]:
        self.start, step = time.perf_counter(), 0
        while (self.steps is None or step < self.steps) and (
            step == 0 or self.elapsed() < self.seconds
        ):
            yield step
            step += 1


class _Loss:
    """The loss of a batch: cross-entropy, and the distance to what the teacher says."""

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        label_smoothing: float,
        temperature: float,
        weight: float,
        image_set: data.ImageSource,
    ) -> None:
        self.image_set = image_set
        self.model, self.teacher = model, teacher
        self.label_smoothing, self.temperature, self.weight = label_smoothing, temperature, weight
        self.device = next(p for p in model.parameters() if p.requires_grad).device
        # An exported graph was traced on contiguous tensors, and may reshape them without a copy.
        traced = any(isinstance(m, torch.fx.GraphModule) for m in (model, teacher) if m is not None)
        self.memory_format = torch.contiguous_format if traced else torch.channels_last

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        inputs = inputs.to(self.device).contiguous(memory_format=self.memory_format)
        labels = labels.to(self.device)
        logits = _logits(self.model, inputs, self.image_set)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = _logits(self.teacher, inputs, self.image_set)
        t = self.temperature
        distance = F.kl_div(
            F.log_softmax(logits / t, 1),
            F.log_softmax(taught / t, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.weight) * loss + self.weight * t * t * distance


def _step(
    optimizer: torch.optim.Optimizer,
    loss_of: _Loss,
    batch: tuple[torch.Tensor, torch.Tensor],
    step: int,
) -> float:
    loss = loss_of(*batch)
    if not math.isfinite(value := loss.item()):
        raise TrainingError(
            f"The loss is {value} at step {step}: the network computes no finite numbers, or the "
            "learning rate is too high. Check its outputs before, or lower learning_rate."
        )
    optimizer.zero_grad(set_to_none=True)
    try:
        loss.backward()
    except RuntimeError as error:
        raise TrainingError(
            f"The network has no gradient: {str(error).splitlines()[0]} If it computes something "
            "in place (F.relu(x, inplace=True), x.add_(y)), write that without inplace; if it was "
            "traced under torch.no_grad(), trace it again without."
        ) from error
    optimizer.step()
    return value


def _logits(model: nn.Module, inputs: torch.Tensor, image_set: data.ImageSource) -> torch.Tensor:
    try:
        logits = model(inputs)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"{type(model).__name__} does not take inputs {tuple(inputs.shape)}: "
            f"{(str(error).strip() or type(error).__name__).splitlines()[0]} A program that was "
            "exported with a fixed batch or size needs the same batch_size and size here."
        ) from error
    expected = (len(inputs), len(data.classes_of(image_set)))
    if not isinstance(logits, torch.Tensor) or logits.shape != expected:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UsageError(
            f"{type(model).__name__} returns {got} for inputs {tuple(inputs.shape)}; "
            f"{data.title_of(image_set)} needs logits of shape {expected}. Build it with "
            f"{expected[1]} classes."
        )
    return logits


@contextlib.contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Put a model into train mode, out of place and with quick statistics; then undo that."""
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
    in_place = [m for m in modules if getattr(m, "inplace", None) is True]
    norms = [(m, m.momentum) for m in modules if _is_batch_norm(m) and m.momentum is not None]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module in in_place:
            module.inplace = False
        for module, _ in norms:
            module.momentum = MOMENTUM
        with contextlib.suppress(NotImplementedError):  # an exported program has no modes
            model.train()
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module in in_place:
            module.inplace = True
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


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _freeze_batch_norm(model: nn.Module) -> None:
    for module in model.modules():
        if _is_batch_norm(module):
            module.eval()


def _check(
    steps: int | None,
    seconds: float | None,
    distillation_weight: float,
    freeze_batch_norm_at: float | None,
) -> None:
    if steps is None and seconds is None:
        raise UsageError("Pass steps=200 or seconds=30, to say how long.")
    if (steps is not None and steps < 1) or (seconds is not None and not seconds > 0):
        raise UsageError(f"steps ({steps}) and seconds ({seconds}) must be above zero.")
    for name, value in (
        ("distillation_weight", distillation_weight),
        ("freeze_batch_norm_at", freeze_batch_norm_at),
    ):
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"{name} is a share between 0 and 1, got {value}.")


def _check_batch(batch_size: int, images: int) -> None:
    if not 1 < batch_size <= images:
        raise UsageError(
            f"batch_size ({batch_size}) must be at least 2 (BatchNorm needs more than one image) "
            f"and at most images ({images})."
        )


def _check_teacher(model: nn.Module, teacher: nn.Module | None) -> None:
    if teacher is None:
        return
    shared = {id(p) for p in model.parameters()} & {id(p) for p in teacher.parameters()}
    if teacher is model or shared:
        raise UsageError(
            "The teacher shares parameters with the model, so it would change while it teaches. "
            "Keep a copy from before the surgery: teacher = copy.deepcopy(model)."
        )
