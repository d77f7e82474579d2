"""Quantization-aware training: prepare, calibrate, train, and write the QDQ file.

    quantized = qat.prepare(model, "w4a8", size=96)
    qat.calibrate_(quantized, data.calibration(256, 96), preprocessing)
    qat.fit_(quantized, teacher=model)
    qat.to_qdq(quantized, "w4a8.onnx", size=96)

`prepare` returns an ordinary module, which `copy.deepcopy`, `state_dict`, `DistributedDataParallel`
and any training loop take. It is a copy with its own parameters: build the optimizer
afterwards. An optimizer from before would train nothing, silently; here its first step raises.

**The official route** is torchao's PT2E (`quantize.pt2e`), with the same recipes and gate::

    pt2e.write_qdq(model, "q.onnx", inputs, "int8_qat", teacher=model)

Take it where a team trains with torchao already, or to have this module checked by an
implementation that is not ours. It stores 4-bit weights in 8-bit containers and leaves the biases
in float (they are rounded when the file is written); `QdqReport.ignored` names what else of a
recipe it does not do. On the command line: ``labutils train MODEL --recipe int8_qat -o q.onnx``,
with ``--route pt2e`` for the official one.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from ... import train, typesetting
from ...errors import StaleOptimizerError, UsageError
from ...images.data import ImageSet, Preprocessing
from ...tracking import Progress, tracked
from ...train.fine_tuning import OnStep
from .. import recipe as recipes
from ..recipe import Qat, Recipe
from . import corrections
from . import graph as qat_graph
from .fake_quant import quantizers
from .qdq_export import to_qdq

__all__ = ["QatReport", "calibrate_", "describe", "fit_", "freeze_", "prepare", "to_qdq"]


_CANDIDATES = 40  # steps tried for a weight of few bits
_wrapped = (
    WeakTensorKeyDictionary()
)  # parameters of float networks that were prepared -> their names


@dataclass(frozen=True, repr=False)
class QatReport(typesetting.Paragraph):
    """What `prepare` put into a network.

    Attributes
    ----------
    recipe
        Its name.
    activations, weights, biases
        How many quantizers, by number of bits.
    phase
        How many quantizers are in which phase.
    left
        Convolutions and linear layers that stay in float.
    """

    recipe: str
    activations: Counter
    weights: Counter
    biases: int
    phase: Counter
    left: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        def counted(counter: Counter) -> str:
            return ", ".join(f"{n} of {bits} bits" for bits, n in sorted(counter.items())) or "none"

        phases = ", ".join(f"{n} {phase}" for phase, n in self.phase.most_common())
        left = ", ".join(self.left[:4]) + (" ..." if len(self.left) > 4 else "")
        return (
            f"Fake quantization by recipe {self.recipe}: {counted(self.activations)} for "
            f"activations, {counted(self.weights)} for weights, {self.biases} of 32 bits for "
            f"biases; {phases}. In float: {left or 'none'}."
        )


def prepare(model: nn.Module, recipe: str | Recipe = "int8", *, size: int = 96) -> fx.GraphModule:
    """Return a copy of a network that rounds where its QDQ file will round.

    BatchNorm is folded into the convolutions first, as it will be on the device: what is rounded
    in training is what is stored. `calibrate_` comes next.

    Parameters
    ----------
    model
        A float network whose forward `torch.fx` can trace; it is left as it is.
    recipe
        Its name, a YAML file, or a `Recipe`; `Recipe.qat` says how to train.
    size
        Side of the input in pixels, for the one run that finds the float tensors.

    Returns
    -------
    torch.fx.GraphModule
        In evaluation mode; `describe` tells what is in it.

    Raises
    ------
    SurgeryError
        The forward method cannot be traced.
    UnknownNameError
        The recipe, or a node that it names.
    UsageError
        The recipe asks for something that training replaces or that is not written: other
        calibration than min-max, equalization, adaptive rounding, asymmetric weights, integer ends.
    """
    recipe = recipes.load(recipe)
    _refuse_untrainable(recipe)
    graph = qat_graph.trace(model)
    qat_graph.insert_(graph, recipe, torch.zeros(1, 3, size, size))
    graph.requires_grad_(True)
    for quantizer in quantizers(graph).values():
        quantizer.exponent.requires_grad_(False)
    graph.meta["recipe"] = recipe
    _watch_optimizers()
    for name, parameter in model.named_parameters():
        _wrapped[parameter] = name
    return graph


def _refuse_untrainable(recipe: Recipe) -> None:
    calibration = recipe.calibration.method
    methods = {o.method for o in recipe.overrides if o.method} - {"minmax"}
    reasons = {
        f"calibration by {calibration}: training starts from min-max (outliers may be left out), "
        "and learns the ranges": calibration != "minmax",
        f"overrides with the method {' or '.join(sorted(methods))}: training starts from min-max, "
        "and learns the ranges": bool(methods),
        "room: training learns the ranges": recipe.calibration.room != 1,
        "rounding: adaptive rounding is for a network that is not trained": (
            recipe.rounding != "nearest"
        ),
        "equalize: scales per channel make it needless here": recipe.equalize,
        "asymmetric weights: no device of the lab takes them per channel": (
            not recipe.weights.symmetric
        ),
        "integer input or output: fake quantization ends in float": (
            "quantized" in (recipe.input, recipe.output)
        ),
    }
    for reason, asked in reasons.items():
        if asked:
            raise UsageError(f"Recipe {recipe.name} cannot be trained with {reason}.")


def describe(model: fx.GraphModule) -> QatReport:
    """Return what a prepared network holds."""
    found, weights = quantizers(model), qat_graph.weights_of(model)
    carriers = [n for n, m in model.named_modules() if isinstance(m, tuple(qat_graph.CARRIERS))]
    return QatReport(
        _recipe(model).name,
        Counter(q.grid.bits for q in found.values() if not q.grid.signed and not q.constant),
        Counter(q.grid.bits for q in found.values() if q.grid.signed or q.constant),
        len(qat_graph.biases_of(model)),
        Counter(q.phase for q in found.values()),
        tuple(n for n in carriers if n not in weights),
    )


@torch.no_grad()
def calibrate_(
    model: fx.GraphModule,
    calibration: np.ndarray | ImageSet,
    preprocessing: Preprocessing | None = None,
    progress: Progress | None = None,
) -> QatReport:
    """Set every grid from calibration images and from the weights, in evaluation mode.

    Parameters
    ----------
    model
        What `prepare` returned.
    calibration
        (n, 3, size, size) float32, normalized; or an `ImageSet` with `preprocessing`.
    preprocessing
        What turns an `ImageSet` into inputs.
    progress
        Called as ``progress(iterable, description)`` around the batches.
    """
    if not len(calibration):
        raise UsageError("Calibration needs images; there were none.")
    recipe, activations = _recipe(model), qat_graph.activations_of(model)

    def prepared(part: slice) -> np.ndarray:
        if not isinstance(calibration, ImageSet):
            return np.asarray(calibration[part], np.float32)
        if preprocessing is None:
            raise UsageError("An ImageSet holds pixels: pass preprocessing= as well.")
        return preprocessing(calibration.images[part])

    prepared(slice(1))  # refused before anything changes
    model.eval()
    for quantizer in activations.values():
        quantizer.observe_()
    starts = range(0, len(calibration), 32)
    for start in tracked(starts, "calibration", "batches", progress):
        part = slice(start, start + 32)
        batch = prepared(part)
        model(torch.from_numpy(batch).to(_device(model)))
    for quantizer in activations.values():  # as in `static`: 16 bits reach over the outliers
        wider = quantizer.grid.bits > recipe.activations.bits
        quantizer.settle_(0.0 if wider else recipe.calibration.outliers)
    module: Any  # what `parametrize` adds is not in its type
    for module, quantizer in qat_graph.weights_of(model).values():
        few = quantizer.grid.bits < 8 or recipe.weights.mse
        quantizer.fit_weight_(module.parametrizations.weight.original, _CANDIDATES if few else 1)
    if _settings(model).scales == "learned":
        freeze_(model)
    if recipe.correct_bias:
        corrections.calibrate_bias_(model, prepared(slice(128)))
    return describe(model)


def freeze_(model: nn.Module) -> None:
    """Stop all grids from following the data; learned steps are still trained.

    In a distributed run every process must call it at the same step.
    """
    for quantizer in quantizers(model).values():
        quantizer.freeze_()


def fit_(
    model: fx.GraphModule,
    *,
    teacher: nn.Module | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    size: int | None = None,
    on_step: OnStep | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> train.FineTuning:
    """Train a calibrated network on drawn pictures, with the schedule of its recipe.

    Parameters
    ----------
    model
        What `prepare` returned, calibrated.
    teacher
        The float network, whose answers are asked for as well (`Qat.distillation`).
    steps, seconds
        Length of the run; by default the recipe's steps.
    size
        Side of the training images in pixels; by default the recipe's, or 96.
    on_step, progress, **settings
        Passed on to `train.fine_tune`, e.g. ``images=``, ``image_set=``, ``seed=``.

    Raises
    ------
    UsageError
        The network was not calibrated.
    """
    chosen = _settings(model)
    if all(q.exponent.abs().max() == 0 for q in qat_graph.activations_of(model).values()):
        raise UsageError("The network is not calibrated: call calibrate_ with images first.")
    freeze_from = chosen.freeze_at if chosen.scales == "observed" else 0.0

    def after(step: int, last: int, trained: nn.Module) -> None:
        if step == max(1, math.ceil(freeze_from * last)):
            freeze_(trained)
        if on_step is not None:
            on_step(step, last, trained)

    options = {
        "batch_size": chosen.batch_size,
        "learning_rate": chosen.learning_rate,
        "temperature": chosen.temperature,
        "distillation_weight": chosen.distillation,
        "weight_decay": 0.0,
    } | settings
    done = train.fine_tune(
        model, teacher=teacher, steps=chosen.steps if steps is seconds is None else steps,
        seconds=seconds, size=size or chosen.size or 96, on_step=after, progress=progress,
        **options,
    )  # fmt: skip
    freeze_(model)
    model.eval()
    return done


def _recipe(model: nn.Module) -> Recipe:
    found = getattr(model, "meta", {}).get("recipe")
    if found is None:
        raise UsageError(f"{type(model).__name__} is not prepared: call qat.prepare first.")
    return found


def _settings(model: nn.Module) -> Qat:
    return _recipe(model).qat or Qat()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@functools.cache
def _watch_optimizers() -> None:
    """Have every optimizer's step checked, from the first `prepare` of a process on."""
    register_optimizer_step_pre_hook(_refuse_stale)


def _refuse_stale(optimizer: Optimizer, *_: object) -> None:
    """Raise when an optimizer holds only what was wrapped, and none of it has a gradient."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if any(p not in _wrapped for p in parameters):
        return
    if any(p.grad is not None and p.grad.any() for p in parameters):
        return  # the float network itself is being trained
    names = [_wrapped[p] for p in parameters]
    raise StaleOptimizerError(
        f"This {type(optimizer).__name__} was built before qat.prepare: its {len(names)} "
        f"parameters ({', '.join(names[:3])}, ...) belong to the float network, get no gradient, "
        "and the prepared one would not be trained. Build it again from the prepared network's "
        "parameters().",
        names,
    )
