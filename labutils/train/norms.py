"""BatchNorm statistics and averaged weights: PyTorch's own tools, with a report.

`torch.optim.swa_utils` re-estimates statistics (`update_bn`) and averages weights
(`AveragedModel`); here they get the lab's images, and say what they did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from .. import typesetting
from ..errors import UsageError, counted
from ..images import data

BATCH = 64
BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, repr=False)
class NormReport(typesetting.Paragraph):
    """What was done to which BatchNorm layers.

    Attributes
    ----------
    done
        In words.
    layers
        Their paths.
    images
        How many images the statistics come from; 0 where none were needed.
    largest_shift
        Largest change of a channel's mean, in its new standard deviations; None without images.
    """

    done: str
    layers: tuple[str, ...]
    images: int = 0
    largest_shift: float | None = None

    def to_dict(self) -> dict:
        """Return everything as plain values."""
        return {**vars(self), "layers": list(self.layers)}

    def __str__(self) -> str:
        some = ", ".join(self.layers[:3]) + (", ..." if len(self.layers) > 3 else "")
        text = f"{counted(len(self.layers), 'BatchNorm layer')} {self.done} ({some})"
        if self.largest_shift is None:
            return text
        return (
            f"{text}, from {counted(self.images, 'image')}; the largest mean moved by "
            f"{self.largest_shift:.2f} standard deviations"
        )


def freeze_batch_norm_(model: nn.Module, *, weights: bool = False) -> NormReport:
    """Let every BatchNorm layer keep its statistics, also in train mode.

    The layers stay in evaluation mode when ``model.train()`` is called later, until
    `unfreeze_batch_norm_`. A deep copy is frozen, too.

    Parameters
    ----------
    model
        Any module.
    weights
        Also stop the gradients of scale and shift.

    Raises
    ------
    UsageError
        The model has no BatchNorm layer.
    """
    norms = _norms(model)
    norm: Any  # an instance gets a `train` that its class has as a method
    for norm in norms.values():
        norm.eval()
        norm.train = _Frozen(norm)  # model.train() calls it, on every layer
        if weights:
            _require_gradients(norm, False)
    return NormReport("keep their statistics", tuple(norms))


class _Frozen:
    """A ``train`` that does nothing; an object, so that it can be copied and pickled."""

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm

    def __call__(self, mode: bool = True) -> nn.Module:
        return self.norm


def unfreeze_batch_norm_(model: nn.Module) -> NormReport:
    """Take `freeze_batch_norm_` back; the layers get the model's own mode.

    Raises
    ------
    UsageError
        No layer is frozen.
    """
    frozen = {path: norm for path, norm in _norms(model).items() if _is_frozen(norm)}
    if not frozen:
        raise UsageError(f"No BatchNorm layer of {type(model).__name__} is frozen.")
    for norm in frozen.values():
        del norm.train
        norm.train(model.training)
        _require_gradients(norm, True)
    return NormReport("move their statistics again", tuple(frozen))


def estimate_batch_norm_(
    model: nn.Module, images: data.ImageSet, preprocessing: data.Preprocessing
) -> NormReport:
    """Measure the statistics of every BatchNorm layer again, in place, with plain averages.

    After surgery, pruning or averaging of weights the stored statistics belong to another network.

    Parameters
    ----------
    model
        Takes (n, 3, size, size) float32.
    images, preprocessing
        What it is measured on, e.g. ``data.calibration(512)``; never validation images.

    Raises
    ------
    UsageError
        The model has no BatchNorm layer.
    """
    norms = _norms(model)
    before = {path: _mean(norm).clone() for path, norm in norms.items()}
    modes = [(part, part.training) for part in model.modules()]
    device = next(model.parameters()).device

    def batches() -> Iterator[torch.Tensor]:
        for inputs, _ in images.batches(BATCH, preprocessing):
            yield torch.from_numpy(inputs)

    try:
        model.eval()  # dropout and stochastic depth would add noise to the statistics
        with _only_norms_train(model, norms), torch.no_grad():
            update_bn(batches(), model, device=device)
    finally:
        for part, mode in modes:
            part.training = mode
    shift = max(_shift(before[path], norm) for path, norm in norms.items())
    return NormReport("have new statistics", tuple(norms), len(images.images), shift)


@contextmanager
def _only_norms_train(model: nn.Module, norms: dict[str, BatchNorm]) -> Iterator[None]:
    """Make ``model.train()``, which `update_bn` calls, reach the BatchNorm layers alone."""
    own: Any = model  # an instance gets a `train` that its class has as a method

    def train(mode: bool = True) -> nn.Module:
        for norm in norms.values():
            norm.training = mode
        return model

    own.train = train
    try:
        yield
    finally:
        del own.train


def _mean(norm: BatchNorm) -> torch.Tensor:
    assert norm.running_mean is not None  # `_norms` took only layers with statistics
    return norm.running_mean


def _shift(before: torch.Tensor, norm: BatchNorm) -> float:
    assert norm.running_var is not None
    spread = (norm.running_var + norm.eps).sqrt()
    return ((_mean(norm) - before).abs() / spread).max().item()


def averaged(
    model: nn.Module, decay: float | None = None
) -> tuple[AveragedModel, Callable[[int, int, nn.Module], None]]:
    """Return a running average of `model`'s weights, and the function that updates it.

    The function fits ``train.fine_tune(on_step=...)``, which keeps the average in the state of the
    run. The average's network is ``average.module``; re-estimate its BatchNorm statistics before
    use (`estimate_batch_norm_`).

    Parameters
    ----------
    model
        What is trained.
    decay
        Of an exponential average, 0 to 1, e.g. 0.998; None: the plain mean of all steps.

    Notes
    -----
    Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization".
    """
    if decay is not None and not 0 < decay < 1:
        raise UsageError(f"decay={decay}: an exponential average needs 0 < decay < 1.")
    function = {} if decay is None else {"multi_avg_fn": get_ema_multi_avg_fn(decay)}
    average = AveragedModel(model, **function)
    return average, _Averaging(average)


class _Averaging:
    """Takes the weights of every step into an average, which is its state."""

    def __init__(self, average: AveragedModel) -> None:
        self.state_dict, self.load_state_dict = average.state_dict, average.load_state_dict
        self.update = average.update_parameters

    def __call__(self, step: int, steps: int, trained: nn.Module) -> None:
        self.update(trained)


def moving_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """Return the BatchNorm layers of a model that move their statistics in training, by path."""
    return {path: norm for path, norm in with_statistics(model).items() if not _is_frozen(norm)}


def _is_frozen(norm: nn.Module) -> bool:
    return "train" in vars(norm)


def with_statistics(model: nn.Module) -> dict[str, BatchNorm]:
    """Return the BatchNorm layers of a model that have statistics, by path."""
    return {
        path: part
        for path, part in model.named_modules()
        if isinstance(part, BatchNorm) and part.running_mean is not None
    }


def _norms(model: nn.Module) -> dict[str, BatchNorm]:
    norms = with_statistics(model)
    if not norms:
        raise UsageError(f"{type(model).__name__} has no BatchNorm layer with statistics.")
    return norms


def _require_gradients(norm: nn.Module, required: bool) -> None:
    for parameter in norm.parameters(recurse=False):
        parameter.requires_grad_(required)
