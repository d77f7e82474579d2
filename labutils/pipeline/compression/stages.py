"""A network made smaller, stage by stage, until it keeps to a budget and passes the gate."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import dlc, manifests, metrics, paths, quantize, runtime
from ...errors import ConvertError, ParityError, UsageError
from ...images import data
from ...images.folder import ImageFolder
from ...models import zoo
from ...quantize import recipe as recipes
from ...runtime import qnn
from .. import steps
from ..settings import Listener
from . import files, ladder, networks
from .files import Stage
from .ladder import CompressionLadder, CompressionRung
from .networks import Job
from .plan import CompressionPlan
from .store import Store, save_answers

ORIGINAL, CONTROL, PRUNED = "original", "original, trained", "pruned, trained"
_BATCH = 32


def compress(
    plan: CompressionPlan,
    folder: str | Path,
    model: zoo.Model,
    source: data.ImageSource,
    listener: Listener | None = None,
) -> CompressionLadder:
    """Make a network smaller: surgery, pruning, mixed precision, training with rounding, DLC.

    Every stage is kept in ``stages/`` of the folder by the content of what decides it; the same
    call resumes after a kill, inside a training as well.

    Parameters
    ----------
    plan
        What decides it.
    folder
        Gets ``plan.yaml``, ``ladder.csv`` and ``ladder.txt``, the quantized ``.onnx``, and the
        ``.dlc`` that passed the gate.
    model
        What `CompressionPlan.model` names, with its network.
    source
        What it learns and is measured on: labelled.
    listener
        Follows the stages.

    Returns
    -------
    CompressionLadder
        The stages. Where the budget cannot be met, `CompressionLadder.missed` says what would.

    Raises
    ------
    UsageError
        A target that the lab does not convert for, or a recipe that cannot be trained.
    MissingToolError
        Qualcomm's wheel is not installed.
    SurgeryError, TranslationError, TrainingError
        A stage is impossible; the message says why.
    """
    listener = listener or Listener()
    folder = paths.folder(folder)
    stem = manifests.stem_of(model.name)
    _refuse_early(plan, folder / f"{stem}.dlc", model)
    plan = networks.fitted_plan(plan, source)
    with paths.locked(folder / "plan.yaml"):
        plan.save(folder / "plan.yaml")
        store = Store(folder / "stages", **networks.contents(model, source))
        made = _Run(Job(plan, model, source, store, listener), folder / stem).ladder()
        made.to_csv(folder / "ladder.csv")
        paths.write_text(folder / "ladder.txt", f"{made}\n")
    return made


def _refuse_early(plan: CompressionPlan, destination: Path, model: zoo.Model) -> None:
    """Refuse before any work what no stage could change."""
    dlc.refuse_impossible(plan.target, destination)
    qnn.require()
    if model.module is None:
        raise UsageError(f"{model.name} is a file: only networks by name are compressed.")
    recipe = quantize.load_recipe(plan.quantization.recipe)
    if recipe.activations.bits != 8:
        raise UsageError(
            f"Recipe {recipe.name} has 16-bit activations; mixed precision starts from one with 8."
        )


@dataclass(frozen=True)
class _Judged:
    """A stage and its answers."""

    stage: Stage
    right: np.ndarray
    logits: np.ndarray


class _Run:
    """Makes the stages one after the other, and measures each as it comes."""

    def __init__(self, job: Job, stem: Path) -> None:
        self.job, self.stem = job, stem
        n = job.plan.evaluation.images or _all_of(job.source)
        self.images = job.images(files.evaluated_part(job), n)
        self.stages: list[_Judged] = []
        self.short: list[str] = []
        self.refused: list[str] = []

    def ladder(self) -> CompressionLadder:
        """Make everything, and return the table."""
        float_stage, quantized = self._stages()
        artifact, result = self._convert(quantized)
        self.job.listener.echo("times, in turns")
        onnx = [judged.stage for judged in self.stages if judged.stage.file.suffix == ".onnx"]
        times = files.latency_ratio(self.job, onnx[0], onnx[1:])
        reference = self._reference()
        ordered = sorted(self.stages, key=lambda judged: judged.stage.name != ORIGINAL)
        ordered.sort(key=lambda judged: judged.stage.name not in (ORIGINAL, CONTROL))
        rows = tuple(self._rung(judged, reference, times) for judged in ordered)
        judged = result or max(quantized, key=lambda stage: self._right(stage.name))
        refused = self.refused if result else [*self.refused, _failed(judged)]
        missed = ladder.missed(
            self.job.plan.budget, rows, judged.name, float_stage.name, self.short, refused
        )
        if result and missed == tuple(refused):  # another stage's file, and this one meets all
            missed = ()
        return CompressionLadder(
            self.job.model.name, self.job.plan.target, self.images.source, self.job.plan.budget,
            rows, reference.stage.name, artifact, result.name if result else None, missed,
        )  # fmt: skip

    def _stages(self) -> tuple[Stage, list[Stage]]:
        """Make the stages up to the quantized files; return the last in float, and those."""
        job = self.job
        first = files.exported(job, ORIGINAL, job.original)
        self._measure(dataclasses.replace(first, gate=None))
        network, rules, exact = networks.operated_and_trained(job, first.file)
        last = first
        if rules:
            name = f"surgery{'' if exact else ', trained'}"
            last = self._measure(files.exported(job, name, network))
        found = networks.pruned(job, network)
        if found.network is not None and found.untrained is not None:
            self._measure(files.exported(job, "pruned", found.untrained))
            network = found.network
            last = self._measure(files.exported(job, PRUNED, network))
        self.short.append(found.short)
        mixed, short = files.searched(job, last)
        quantized = [self._measure(mixed)]
        self.short.append(short)
        if trained := files.trained_in_rounding(job, network, last, mixed):
            quantized.append(self._measure(trained))
        if job.plan.evaluation.control:
            steps_taken = self._steps(mixed.recipe, found.network is not None, exact)
            if steps_taken:
                control = networks.trained_as_long(job, steps_taken)
                self._measure(files.exported(job, CONTROL, control))
        return last, quantized

    def _steps(self, recipe: recipes.Recipe | None, pruned: bool, exact: bool) -> int:
        """Return how many steps the compressed network was trained for, all stages together."""
        plan, taken = self.job.plan, 0
        if pruned:
            taken += plan.pruning.training.steps or 0
        if not exact:
            taken += plan.surgery.training.steps or 0
        if plan.quantization.steps != 0 and recipe is not None:
            taken += networks.quantized_steps(plan, recipe).steps or 0
        return taken

    def _measure(self, stage: Stage, n: int | None = None) -> Stage:
        """Run a stage on the images, unless it was, and say what it scores."""
        images = self.images.head(n) if n else self.images
        labels, content = images.labels, paths.sha256(stage.file)
        place = self.job.store.place("answers", ".npy", file=content, n=len(images))
        self.job.store.make(place, lambda draft: save_answers(self._answers(stage, images), draft))
        logits = np.load(place)
        judged = _Judged(stage, metrics.correct(logits, labels), logits)
        self.stages.append(judged)
        line = f"{stage.name}: top-1 {metrics.accuracy(logits, labels)}"
        if len(self.stages) > 1:
            first = self.stages[0].right[: len(labels)]
            line += f", {metrics.paired_difference(judged.right, first)} to the original"
        gate = "" if stage.gate is None else f"; gate {_word(stage)}"
        self.job.listener.echo(f"{line}; {stage.file.stat().st_size / 1e6:.2f} MB{gate}")
        return stage

    def _answers(self, stage: Stage, images: data.ImageSet) -> np.ndarray:
        prepared, progress = self.job.model.known_preprocessing(), self.job.listener.progress
        starts: Any = range(0, len(images), _BATCH)
        if progress is not None:
            starts = progress(starts, f"measuring {stage.name}")
        with runtime.connect(stage.file) as runner:
            parts = [runner.run(prepared(images.images[s : s + _BATCH])) for s in starts]
        return np.concatenate(parts)

    def _reference(self) -> _Judged:
        """Return the better of the original and the original trained as long."""
        known = [j for j in self.stages if j.stage.name in (ORIGINAL, CONTROL)]
        return max(known, key=lambda judged: judged.right.mean())

    def _rung(
        self, judged: _Judged, reference: _Judged, times: dict[str, float]
    ) -> CompressionRung:
        stage, whole, n = judged.stage, self.stages[0].stage, len(judged.right)
        return CompressionRung(
            stage.name, stage.file.name, n,
            metrics.Proportion(int(judged.right.sum()), n),
            metrics.agreement(judged.logits, self.stages[0].logits[:n]),
            metrics.paired_difference(judged.right, reference.right[:n]),
            stage.macs / whole.macs, stage.parameters / whole.parameters,
            stage.file.stat().st_size / 1e6, times.get(stage.name), _word(stage),
        )  # fmt: skip

    def _convert(self, quantized: Sequence[Stage]) -> tuple[Path | None, Stage | None]:
        """Write the best quantized file that passed its gate as a DLC that passes its own."""
        passed = [stage for stage in reversed(quantized) if stage.gate and stage.gate.passed]
        for stage in sorted(passed, key=lambda stage: -self._right(stage.name)):
            self.job.listener.echo(f"DLC of the stage {stage.name}")
            try:
                file = self._dlc(stage)
            except (ParityError, ConvertError) as error:
                self.refused.append(f"The DLC of {stage.name}: {str(error).splitlines()[0]}")
                self.job.listener.echo(error)
                continue
            return file, stage
        return None, None

    def _right(self, name: str) -> float:
        """Return the share of the images that a stage is right on."""
        return next(float(j.right.mean()) for j in self.stages if j.stage.name == name)

    def _dlc(self, stage: Stage) -> Path:
        """Publish the quantized file and its DLC, and measure that on the simulator."""
        job, model = self.job, self.job.model
        onnx, file = (
            self.stem.with_name(f"{self.stem.name}.onnx"),
            self.stem.with_name(f"{self.stem.name}.dlc"),
        )
        with paths.scratch(onnx.parent) as folder:
            draft = folder / onnx.name
            shutil.copy2(stage.file, draft)
            assert stage.recipe is not None  # it is quantized
            stage.recipe.save(paths.recipe_file(draft))
            facts = {"stage": stage.name, "compression": job.plan.to_dict()}
            steps.write_manifest(draft, model, **facts)
            for made in sorted(folder.iterdir(), key=lambda path: path == draft):
                made.replace(onnx.parent / made.name)
        caveat = f"COMPRESSED ({job.plan.budget}): compared with the network that was quantized"
        with runtime.connect(onnx) as reference:
            gate = dlc.Gate(reference, files.gate_inputs(job), check_top1=model.trained)
            made_of = dlc.Notes(caveat, None, steps.facts_of(model) | facts)
            done = dlc.convert(
                onnx, job.plan.target, file, gate, notes=made_of, echo=job.listener.echo
            )
        stage_of_dlc = dataclasses.replace(stage, name="DLC, simulated", file=file, gate=done.gate)
        self._measure(stage_of_dlc, min(job.plan.evaluation.simulated, len(self.images)))
        return file


def _failed(stage: Stage) -> str:
    """Say why the best quantized file is not handed on, and what would help."""
    if stage.gate is None or stage.gate.passed:  # its DLC failed, which was said
        return ""
    return (
        f"gate: {stage.name} does not compute what its network in float computes: "
        f"{stage.gate.reasons[0]}. What would reach it: more megabytes (fewer layers at 4 bits), a "
        "greater mac_share in the plan, or more steps with the rounding in place."
    )


def _word(stage: Stage) -> str:
    return "" if stage.gate is None else "passed" if stage.gate.passed else "FAILED"


def _all_of(source: data.ImageSource) -> int:
    """Return how many images there are to measure on."""
    if isinstance(source, ImageFolder):
        return len(source.part(source.evaluation))
    return data.validation_images(source)
