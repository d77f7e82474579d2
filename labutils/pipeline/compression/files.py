"""The stages as files: float ONNX, mixed precision, and the file that was trained with rounding."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ... import compare, export, paths, quantize, runtime
from ...errors import ParityError
from ...images import data
from ...images.folder import ImageFolder
from ...measure import complexity
from ...quantize import gates, mixed, presets
from ...quantize.training import qat
from ...train import run_state
from .networks import Job, fitted, quantized_steps

if TYPE_CHECKING:
    from torch import nn

GATE_IMAGES = 32
_RANGES_FROM = 8  # images: enough to see how large a file becomes
_ROOM = 0.005  # MB: biases and scales that training adds


@dataclass(frozen=True)
class Stage:
    """A stage that has a file.

    Attributes
    ----------
    name
        For the ladder.
    file
        ONNX or DLC.
    macs, parameters
        Of the network in it.
    gate
        The comparison with the network that the file was made from; None for the original.
    recipe
        Of a quantized file.
    """

    name: str
    file: Path
    macs: int
    parameters: int
    gate: compare.GateReport | None = None
    recipe: quantize.Recipe | None = None


def exported(job: Job, name: str, network: nn.Module) -> Stage:
    """Write a network, in evaluation mode, as float ONNX, compared with PyTorch."""
    place = job.store.place("float", ".onnx", network=run_state.digest(network))
    prepared = job.model.known_preprocessing()
    job.store.make(
        place, lambda draft: export.to_onnx(copy.deepcopy(network), draft, preprocessing=prepared)
    )
    counted = complexity.count(place)
    with runtime.connect(network) as ours, runtime.connect(place) as theirs:
        gate = _judged(ours, theirs, gate_inputs(job), "ort_fp32", job.model.trained)
    parameters = sum(p.numel() for p in network.parameters())
    return Stage(name, place, counted.macs, parameters, gate)


def gate_inputs(job: Job) -> np.ndarray:
    """Return the images of every gate, (n, 3, size, size) float32: validation images."""
    images = job.images(_held_out(job.source) or "val", GATE_IMAGES)
    inputs: np.ndarray = job.model.known_preprocessing()(images.images)
    return inputs


def evaluated_part(job: Job) -> str:
    """Return the part of the pictures that accuracy is measured on."""
    return _held_out(job.source) or job.plan.evaluation.part


def _held_out(source: data.ImageSource) -> str | None:
    """Return the part of a folder that nothing is learned from; None for a drawn set."""
    return source.evaluation if isinstance(source, ImageFolder) else None


def searched(job: Job, source: Stage) -> tuple[Stage, str]:
    """Quantize a float file by the mixed recipe that the budget buys; say what it cannot buy.

    Parameters
    ----------
    job
        The compression.
    source
        The float stage.
    """
    settings, content = job.plan.quantization, paths.sha256(source.file)
    base = quantize.load_recipe(settings.recipe)
    asked, short = _size_of_weights(job, source, base)
    facts = {"recipe": base.sha256, "macs": settings.mac_share, "images": settings.calibration}
    place = job.store.place("mixed", ".onnx", source=content, megabytes=asked, **facts)
    images = job.images("calib", settings.calibration)
    prepared = job.model.known_preprocessing()

    def make(draft: Path) -> None:
        budget = mixed.Budget(mac_share=settings.mac_share, megabytes=asked)
        found = mixed.search(
            source.file, images, budget, base,
            preprocessing=prepared, progress=job.listener.progress,
        )  # fmt: skip
        job.listener.echo(found)
        job.listener.echo(found.write(draft))
        found.recipe.save(paths.recipe_file(draft))

    job.store.make(place, make)
    recipe = quantize.load_recipe(paths.recipe_file(place))
    with runtime.connect(source.file) as ours, runtime.connect(place) as theirs:
        gate = _judged(ours, theirs, gate_inputs(job), kind_of(recipe), job.model.trained)
    return Stage("quantized", place, source.macs, source.parameters, gate, recipe), short


def _size_of_weights(job: Job, source: Stage, base: quantize.Recipe) -> tuple[float | None, str]:
    """Return what stored weights may take for the file to keep to its budget, in MB.

    A file also has scales, biases and the names of its nodes; how much that is shows in one with
    8-bit weights. Where even 4 bits are too much, the least there is, and what would help.
    """
    budget = job.plan.budget
    if budget.megabytes is None:
        return None, ""
    place = job.store.place("sized", ".onnx", source=paths.sha256(source.file), recipe=base.sha256)
    few, prepared = job.images("calib", _RANGES_FROM), job.model.known_preprocessing()
    job.store.make(
        place, lambda draft: quantize.static(source.file, draft, few, base, preprocessing=prepared)
    )
    least = mixed.least_megabytes(source.file, base)
    weights = complexity.count(source.file).parameters / 1e6
    beside = place.stat().st_size / 1e6 - weights + _ROOM
    wanted = budget.megabytes - beside
    if wanted >= least:
        return wanted, ""
    share = wanted / least
    keeps = f"about {100 * share:.0f} % of these parameters" if share > 0 else "no width at all"
    return least + 1e-6, (
        f"With all weights at 4 bits the file takes {least + beside:.2f} MB, more than the "
        f"{budget.megabytes:g} of the budget ({beside:.2f} MB of it are scales, biases and nodes). "
        f"What would reach it: {keeps}, by parameters= in the budget or fewer bits in the plan."
    )


def trained_in_rounding(job: Job, network: nn.Module, source: Stage, start: Stage) -> Stage | None:
    """Train a network with the rounding of a recipe in place; None where the plan leaves it out.

    Parameters
    ----------
    job
        The compression.
    network, source
        In float, and its file.
    start
        The quantized stage, whose recipe it is.
    """
    assert start.recipe is not None  # `searched` gave it one
    if job.plan.quantization.steps == 0:
        return None
    recipe = presets.for_training(start.recipe)[0]
    config = fitted(quantized_steps(job.plan, recipe), job.source)
    place = job.store.place(
        "trained", ".onnx", recipe=recipe.sha256, images=job.plan.quantization.calibration,
        network=run_state.digest(network), training=asdict(config),
    )  # fmt: skip
    prepared, options = job.model.known_preprocessing(), job.taught(place, network)

    def make(draft: Path) -> None:
        calibration = job.images("calib", job.plan.quantization.calibration)
        inputs = prepared(calibration.images[: gates.IMAGES])
        student = qat.prepare(network, recipe, size=job.size, images=inputs)
        qat.calibrate_(student, calibration, prepared, job.listener.progress)
        job.listener.echo(qat.fit_(student, config=config, **options))
        report = qat.to_qdq(student, draft, size=job.size, preprocessing=prepared)
        job.listener.echo(report)
        recipe.save(paths.recipe_file(draft))

    if job.store.make(place, make):
        options["state"].remove()
    else:
        job.listener.echo(f"  kept from an earlier run: {place.name}")
    with runtime.connect(source.file) as ours, runtime.connect(place) as theirs:
        gate = _judged(ours, theirs, gate_inputs(job), kind_of(recipe), job.model.trained)
    return Stage("quantized, trained", place, source.macs, source.parameters, gate, recipe)


def kind_of(recipe: quantize.Recipe) -> str:
    """Return which thresholds of the gate hold for a quantized file in ONNX Runtime."""
    return "ort_a16w8" if recipe.activations.bits == 16 else "ort_int8"


def _judged(
    ours: runtime.Runner, theirs: runtime.Runner, inputs: np.ndarray, kind: str, trained: bool
) -> compare.GateReport:
    """Return the gate's report, also one that failed: the ladder shows it."""
    try:
        return compare.gate(ours, theirs, inputs, kind=kind, check_top1=trained, locate=False)
    except ParityError as error:
        if not isinstance(error.report, compare.GateReport):
            raise
        return error.report


def latency_ratio(job: Job, whole: Stage, stages: list[Stage]) -> dict[str, float]:
    """Return the time of each ONNX stage on ONNX Runtime, as a share of the first one's."""
    image = gate_inputs(job)[:1]
    runners = {s.name: runtime.connect(s.file, threads=1) for s in [whole, *stages]}
    try:
        seconds = runtime.seconds_in_turns(runners, image, 15)
    finally:
        for runner in runners.values():
            runner.close()
    return {name: value / seconds[whole.name] for name, value in seconds.items()}
