"""Quantization-aware training: prepare, calibrate, train, and write the QDQ file.

    quantized = qat.prepare(model, "w4a8", size=96)
    qat.calibrate_(quantized, data.calibration(256, 96), preprocessing)
    qat.fit_(quantized, teacher=model)
    qat.to_qdq(quantized, "w4a8.onnx", size=96)

`prepare` returns an ordinary module, which `copy.deepcopy`, `state_dict`, `DistributedDataParallel`
and any training loop take; a `Schedule` freezes its ranges there, and `parameter_groups` keeps
weight decay away from the steps. It is a copy with its own parameters: build the optimizer
afterwards. An optimizer from before would train nothing, silently;
here its first step raises.

**The official route** is torchao's PT2E (`quantize.pt2e`), with the same recipes and gate::

    pt2e.write_qdq(model, "q.onnx", inputs, "int8_qat", teacher=model)

Take it where a team trains with torchao already, or to have this module checked by an
implementation that is not ours. It stores 4-bit weights in 8-bit containers and leaves the biases
in float (they are rounded when the file is written); `QdqReport.ignored` names what else of a
recipe it does not do. On the command line: ``labutils train MODEL --recipe int8_qat -o q.onnx``,
with ``--route pt2e`` for the official one.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ... import train, typesetting
from ...errors import UsageError
from ...images.data import ImageSet, Preprocessing, Size
from ...tracking import Progress, tracked
from ...train import run_state
from ...train.fine_tuning import OnStep
from ...train.loop import parameter_groups
from .. import presets
from ..recipe import Qat, Recipe
from . import corrections, equalized_gates, fidelity, loaders, refusals, stale_optimizers, tracing
from . import graph as qat_graph
from .fake_quant import FakeQuant, full_precision, quantizers
from .qdq_export import to_qdq
from .schedule import Schedule, facts_of, recipe_of

__all__ = [
    "QatReport",
    "Schedule",
    "calibrate_",
    "describe",
    "fit_",
    "freeze_",
    "parameter_groups",
    "prepare",
    "to_qdq",
    "training_config",
]


_CANDIDATES = 40  # steps tried for a weight of few bits


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
    equalized
        Convolutions whose channels were equalized, because a gate follows.
    """

    recipe: str
    activations: Counter
    weights: Counter
    biases: int
    phase: Counter
    left: tuple[str, ...]
    equalized: tuple[str, ...] = ()

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
            + (f" Equalized before gates: {', '.join(self.equalized)}." if self.equalized else "")
        )


def prepare(
    model: nn.Module,
    recipe: str | Recipe = "int8",
    *,
    size: Size = 96,
    images: np.ndarray | None = None,
) -> fx.GraphModule:
    """Return a copy of a network that rounds where its QDQ file will round.

    BatchNorm is folded into the convolutions first, as it will be on the device: what is rounded
    in training is what is stored. `calibrate_` comes next.

    Parameters
    ----------
    model
        A float network of RGB or gray images whose forward `torch.fx` can trace; it is left as it
        is. Where some of its parameters ask for a gradient, only what is made of them is trained:
        a frozen layer stays frozen, its weight's steps included. Where none does, all are.
    recipe
        Its name, a YAML file, or a `Recipe`; `Recipe.qat` says how to train. Its `flat_ends` are
        left out, because training moves the ranges.
    size
        Side of the input in pixels, or (height, width), for the run that finds the float tensors.
    images
        (n, channels, height, width) float32, normalized; some of those that `calibrate_` gets. A
        recipe with `equalize_gates` needs them to measure how far channels reach; without them the
        gates stay as they are.

    Returns
    -------
    torch.fx.GraphModule
        In evaluation mode; `describe` tells what is in it.

    Raises
    ------
    SurgeryError
        The forward method cannot be traced; it writes in place into what is read under another
        name; a layer with a rounded weight is used twice; or what was prepared computes, with
        the rounding switched off, something other than the network.
    UnknownNameError
        The recipe, or a node that it names.
    UsageError
        The network takes no such images, or its weights are not float32.
        The recipe asks for something that training replaces or that is not written: other
        calibration than min-max, equalization, adaptive rounding, asymmetric weights, integer ends.
        Or the network's weights are computed by masks.
    """
    recipe = presets.trainable(presets.load(recipe))
    if images is None or not recipe.equalize_gates:
        recipe, images = presets.with_gates_as_they_are(recipe), None
    refusals.refuse_untrainable(recipe)
    refusals.refuse_parametrized(model)
    example = fidelity.example_for(model, size)
    equalized: tuple[str, ...] = ()
    with full_precision():
        graph = tracing.trace(model, example)
        qat_graph.lower_(graph, example)
        if images is not None:
            images = _checked(images, example.shape[1])
            equalized = equalized_gates.equalize_(graph, images, recipe)
            recipe = equalized_gates.known(recipe, graph)
        qat_graph.insert_(graph, recipe, example)
        fidelity.check(model, graph, example)
    graph.meta |= {"recipe": recipe, "channels": example.shape[1], "equalized": equalized}
    stale_optimizers.watch(model, graph)
    return graph


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
        model.meta.get("equalized", ()),
    )


@torch.no_grad()
@full_precision()
def calibrate_(
    model: fx.GraphModule,
    calibration: np.ndarray | torch.Tensor | ImageSet | Iterable[Any],
    preprocessing: Preprocessing | None = None,
    progress: Progress | None = None,
) -> QatReport:
    """Set every grid from calibration images and from the weights, in evaluation mode.

    Parameters
    ----------
    model
        What `prepare` returned.
    calibration
        (n, 3, size, size) float32, normalized; or an `ImageSet` with `preprocessing`; or your own
        ``DataLoader``, of which the first images are taken (`loaders.first_images`).
    preprocessing
        What turns an `ImageSet` into inputs.
    progress
        Called as ``progress(iterable, description)`` around the batches.

    Warns
    -----
    UserWarning
        No value of the images is below 0: they are not normalized, it seems.

    Raises
    ------
    UsageError
        There are no images, or they, the weights or what a layer gives are not all finite numbers;
        the network is then as it was.
    """
    if isinstance(calibration, torch.Tensor):
        calibration = calibration.detach().cpu().numpy()
    images = calibration
    if not isinstance(images, (np.ndarray, ImageSet)):
        images = loaders.first_images(images)
    if not len(images):
        raise UsageError("Calibration needs images; there were none.")
    recipe, activations = _recipe(model), qat_graph.activations_of(model)

    def prepared(part: slice) -> np.ndarray:
        if not isinstance(images, ImageSet):
            return np.asarray(images[part], np.float32)
        if preprocessing is None:
            raise UsageError("An ImageSet holds pixels: pass preprocessing= as well.")
        return preprocessing(images.images[part])

    if isinstance(images, np.ndarray):
        loaders.warn_of_pixels(images)
    prepared(slice(1))  # refused before anything changes
    _check_weights(model)
    model.eval()
    with _observing(activations):
        starts = range(0, len(images), 32)
        for start in tracked(starts, "calibration", "batches", progress):
            batch = prepared(slice(start, start + 32))
            _check_batch(batch, start, facts_of(model).get("channels", 3))
            model(torch.from_numpy(batch).to(_device(model)))
        _check_seen(activations)
    shares = recipe.calibration.outliers, recipe.calibration.vector_outliers
    for quantizer in activations.values():  # as in `static`: 16 bits reach over the outliers
        wider = quantizer.grid.bits > recipe.activations.bits
        quantizer.settle_(*((0.0, None) if wider else shares))
    module: Any  # what `parametrize` adds is not in its type
    for module, quantizer in qat_graph.weights_of(model).values():
        few = quantizer.grid.bits < 8 or recipe.weights.mse
        quantizer.fit_weight_(module.parametrizations.weight.original, _CANDIDATES if few else 1)
    if _settings(model).scales == "learned":
        freeze_(model)
    if recipe.correct_bias and qat_graph.biases_of(model):
        corrections.calibrate_bias_(model, prepared(slice(128)))
    return describe(model)


@contextlib.contextmanager
def _observing(activations: dict[str, FakeQuant]) -> Iterator[None]:
    """Let quantizers record ranges; after an error they are in the phase from before."""
    phases = {name: quantizer.phase for name, quantizer in activations.items()}
    for quantizer in activations.values():
        quantizer.observe_()
    try:
        yield
    except BaseException:
        for name, quantizer in activations.items():
            quantizer.seen, quantizer.phase = [], phases[name]
        raise


def _checked(images: np.ndarray, channels: int) -> np.ndarray:
    """Return images for measuring reaches, float32; UsageError for what is none."""
    if isinstance(images, ImageSet):
        raise UsageError("An ImageSet holds pixels: pass images=preprocessing(image_set.images).")
    images = np.asarray(images, np.float32)
    if not len(images):
        raise UsageError("Gates are equalized by images; there were none (images=None: leave them)")
    _check_batch(images, 0, channels)
    return images


def _check_batch(batch: np.ndarray, start: int, channels: int) -> None:
    if batch.ndim != 4 or batch.shape[1] != channels:
        raise UsageError(
            f"Calibration images of shape {batch.shape}: the network takes (n, {channels}, height, "
            "width) float32."
        )
    found = np.flatnonzero(~np.isfinite(batch).reshape(len(batch), -1).all(1))
    if len(found):
        raise UsageError(
            f"Image {start + found[0]} of the calibration (from 0) holds NaN or infinity, and no "
            "range can be taken from it. Look at what prepares the images, or leave it out."
        )


def _check_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            called = name.replace(".parametrizations", "").removesuffix(".original")
            raise UsageError(
                f"'{called}' holds NaN or infinity: training has diverged, or the file of the "
                "weights is damaged. Prepare the network again from weights that are numbers."
            )


def _check_seen(activations: dict[str, FakeQuant]) -> None:
    for name, quantizer in activations.items():
        if not quantizer.sees_finite:
            raise UsageError(
                f"'{name.removeprefix('quantizers.')}' gives NaN or infinity on the calibration "
                "images, though these and all weights are finite: look at what it computes."
            )


def freeze_(model: nn.Module) -> None:
    """Stop all grids from following the data; learned steps are still trained.

    In a distributed run every process must call it at the same step.
    """
    for quantizer in quantizers(model).values():
        quantizer.freeze_()


def training_config(recipe: str | Recipe) -> train.FineTuningConfig:
    """Return how a recipe trains, as `train.fine_tune` takes it.

    Raises
    ------
    UnknownNameError
        There is no such recipe.
    """
    chosen = presets.load(recipe).qat or Qat()
    return train.FineTuningConfig(
        steps=chosen.steps,
        size=chosen.size or 96,
        batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        temperature=chosen.temperature,
        distillation_weight=chosen.distillation,
        weight_decay=0.0,
    )


def fit_(
    model: fx.GraphModule,
    *,
    config: train.FineTuningConfig | None = None,
    teacher: nn.Module | None = None,
    on_step: OnStep | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> train.FineTuning:
    """Train a calibrated network with the schedule of its recipe.

    Parameters
    ----------
    model
        What `prepare` returned, calibrated.
    config
        How long, how fast, with which augmentation; by default as the recipe says
        (`training_config`).
    teacher
        The float network, whose answers are asked for as well (`Qat.distillation`).
    on_step, progress, **settings
        Passed on to `train.fine_tune`: what is learned (``image_set=``), the processes that share
        the work (``ranks=``), the file to resume from (``state=``), and fields of the
        configuration, e.g. ``steps=``, ``seconds=``, ``size=``, ``images=``, ``seed=``. With
        ``seconds=`` alone the recipe's steps do not count.

    Raises
    ------
    UsageError
        The network was not calibrated.
    """
    if config is None:
        config = training_config(_recipe(model))
        if settings.get("seconds") is not None:
            config = config.replaced(steps=None)
    settings = {  # None: what the configuration says
        name: value for name, value in settings.items()
        if value is not None or name not in ("steps", "seconds", "size")
    }  # fmt: skip
    following = Schedule(model, config.steps or 1, freeze_batch_norm_at=None)
    done = train.fine_tune(
        model, config=config, teacher=teacher, on_step=_Following(following, on_step),
        progress=progress, **settings,
    )  # fmt: skip
    freeze_(model)
    model.eval()
    return done


class _Following:
    """Tells a schedule of every step; its state is that of what else is told."""

    def __init__(self, schedule: Schedule, on_step: OnStep | None) -> None:
        self.schedule, self.on_step = schedule, on_step

    def __call__(self, step: int, steps: int, trained: nn.Module) -> None:
        self.schedule.reach(step, steps)
        if self.on_step is not None:
            self.on_step(step, steps, trained)

    def state_dict(self) -> dict[str, Any]:
        own: Any = self.on_step  # ranges and phases are in the network's state
        return own.state_dict() if run_state.keeps(own) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own: Any = self.on_step
        if run_state.keeps(own):
            own.load_state_dict(state)


def _recipe(model: nn.Module) -> Recipe:
    found = recipe_of(model)
    if found is None:
        raise UsageError(f"{type(model).__name__} is not prepared: call qat.prepare first.")
    return found


def _settings(model: nn.Module) -> Qat:
    return _recipe(model).qat or Qat()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
