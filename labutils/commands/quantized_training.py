"""`labutils train --recipe`: training with the rounding in place (QAT), by one of two routes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ParityError, UnknownNameError, UsageError
from . import training_options
from .options import progress_bar, require_folder, say

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from ..images import data
    from ..models import zoo
    from ..quantize import Recipe
    from ..train import FineTuningConfig, Ranks, Resumable

_CALIBRATION = 256  # images before the training
_HELD_OUT = 256  # drawn images that the file is judged on; of a folder, all
_GATE_IMAGES = 32


@dataclass(frozen=True)
class Task:
    """What is trained for which recipe, on what, and how.

    Attributes
    ----------
    model
        By name, with its preprocessing.
    module
        Its network in float, which is also the teacher.
    recipe, config
        Where it rounds; how it is trained.
    source
        What it learns.
    pictures
        What it is calibrated on.
    """

    model: zoo.Model
    module: nn.Module
    recipe: Recipe
    config: FineTuningConfig
    source: data.ImageSource
    pictures: data.ImageSet

    @property
    def preprocessing(self) -> data.Preprocessing:
        """How an image becomes an input."""
        return self.model.known_preprocessing()

    @property
    def inputs(self) -> np.ndarray:
        """The calibration images as inputs, (n, 3, size, size) float32."""
        return self.preprocessing(self.pictures.images)

    @property
    def size(self) -> int:
        """Side of the input, in pixels: networks by name take squares."""
        from ..images import data

        return max(data.sides(self.preprocessing.size))


def run(chosen: argparse.Namespace) -> int:
    """Train, and keep the QDQ file once it passed the gate."""
    with training_options.joined(lambda: _task(chosen)) as (task, ranks):
        config = training_options.fitted_config(chosen, task.config, task.source, ranks)
        task = dataclasses.replace(task, config=config)
        state = training_options.state_of(chosen, config)
        if chosen.route == "pt2e" and ranks.size > 1:
            raise UsageError("--route pt2e trains in one process; take --route lab for several.")
        student = _trained(chosen, task, ranks, state) if chosen.route == "lab" else None
    if ranks.first:
        _write(chosen, task, student, state)
        if state is not None:
            state.remove()
    return 0


def _task(chosen: argparse.Namespace) -> Task:
    """Return what the options ask for, refusing what contradicts itself before any work."""
    from .. import quantize
    from ..images import data
    from ..quantize import presets
    from ..quantize.training import qat

    require_folder(chosen)
    asked = quantize.load_recipe(chosen.recipe)
    recipe, preset = presets.for_training(asked)
    if preset:
        line = f"recipe {recipe.name} has no `qat` part: trained with that of {preset}"
        training_options.tell(chosen, line)
    model, module = training_options.load_network(chosen)
    prepared = model.known_preprocessing()
    base, side = qat.training_config(recipe), max(data.sides(prepared.size))
    official = chosen.route == "pt2e"
    config = training_options.config_of(chosen, base.replaced(size=side) if official else base)
    if official and config.size != side:
        raise UsageError(
            f"--size {config.size}: the program that PT2E trains takes {side} px only. Leave out "
            "--size, or take --route lab."
        )
    source = _learned(chosen, model)
    pictures = data.calibration(_CALIBRATION, prepared.size, source)
    training_options.draw_once(source, config)
    if config.size != side:
        line = f"Note: trained at {config.size} px; calibrated, judged and used at {side} px."
        training_options.tell(chosen, line)
    return Task(model, module, recipe, config, source, pictures)


def _learned(chosen: argparse.Namespace, model: zoo.Model) -> data.ImageSource:
    """Return the pictures; say how to come by weights that know their classes."""
    way = (
        f"Train it on them first: `labutils train {chosen.model} --data {chosen.data} -o "
        "own.safetensors`; then for the recipe, with --weights own.safetensors."
    )
    if chosen.data and not model.trained:
        raise UsageError(f"{model.name} has random weights, which know no class. {way}")
    try:
        return training_options.learned_pictures(chosen, model)
    except UnknownNameError as error:
        raise UsageError(
            f"{error} Or these weights ({model.weights}) know other classes than the pictures "
            f"show. {way}"
        ) from None


def _trained(chosen: argparse.Namespace, task: Task, ranks: Ranks, state: Resumable | None) -> Any:
    """Return a copy that was trained with the lab's own layers, on the CPU."""
    from ..quantize.training import qat

    progress = training_options.progress_of_first()
    student = qat.prepare(task.module, task.recipe, size=task.size, images=task.inputs)
    student = student.to(ranks.device)
    qat.calibrate_(student, task.inputs, progress=progress)
    done = qat.fit_(
        student, config=task.config, teacher=task.module, image_set=task.source,
        progress=progress, ranks=ranks, state=state,
    )  # fmt: skip
    training_options.tell(chosen, done)
    return student.to("cpu")


def _write(chosen: argparse.Namespace, task: Task, student: Any, state: Resumable | None) -> None:
    """Write the file, judge it, and give it and its description their names."""
    from .. import paths, provenance
    from ..pipeline import steps
    from ..quantize import ptq
    from ..train import config

    with paths.scratch(chosen.output.parent) as folder:
        draft = folder / chosen.output.name
        say(chosen, _exported(task, student, draft, state))
        try:
            found = _judged(chosen, task, draft)
        except ParityError as error:
            raise _kept(error, draft, chosen.output) from None
        facts = ptq.quantization_facts(task.recipe, len(task.pictures))
        facts |= provenance.calibrated_on(task.pictures)
        trained = config.stored(task.config)
        steps.write_manifest(
            draft, task.model, route=chosen.route, training=trained, **found, **facts
        )
        task.recipe.save(paths.recipe_file(draft))
        for file in folder.iterdir():
            file.replace(chosen.output.parent / file.name)
    onwards = f"labutils convert {chosen.output} --target qnn -o FILE.dlc"
    say(chosen, f"wrote {chosen.output}; next: {onwards}")
    if chosen.json:
        print(json.dumps({**found["gate"], **found}, indent=2, default=str))


def _kept(error: ParityError, draft: Path, output: Path) -> ParityError:
    """Keep a file that failed its gate under a name that says so: training it took a while."""
    kept = output.with_suffix(f".failed{output.suffix}")
    draft.replace(kept)
    return ParityError(
        f"{error}\n\nIt was kept as {kept}, to look at. Train longer (--steps, from the start), "
        "on more pictures, or with a recipe that rounds less, as `labutils quantize --mac-share` "
        "finds it.",
        error.report,
    )


def _exported(task: Task, student: Any, draft: Path, state: Resumable | None) -> Any:
    """Write the QDQ file, by PT2E after training it; return the report."""
    from ..quantize import pt2e
    from ..quantize.training import qat

    prepared = task.preprocessing
    if student is not None:
        return qat.to_qdq(student, draft, size=task.size, preprocessing=prepared)
    return pt2e.write_qdq(
        task.module, draft, task.inputs, task.recipe, teacher=task.module, preprocessing=prepared,
        config=task.config, image_set=task.source, progress=training_options.progress_of_first(),
        state=state,
    )  # fmt: skip


def _judged(chosen: argparse.Namespace, task: Task, draft: Path) -> dict[str, Any]:
    """Run the file beside the float network: accuracy of both, and the parity gate, as facts."""
    from .. import compare, runtime

    prepared = task.preprocessing
    images = training_options.held_out_pictures(task.source, _HELD_OUT, prepared.size)
    kind = "ort_a16w8" if task.recipe.activations.bits == 16 else "ort_int8"
    with runtime.connect(task.module) as ours, runtime.connect(draft) as theirs:
        stages = [compare.Stage("float", ours), compare.Stage(task.recipe.name, theirs)]
        ladder = compare.ladder(stages, images, prepared, progress=progress_bar)
        say(chosen, ladder)
        gate = compare.gate(ours, theirs, prepared(images.images[:_GATE_IMAGES]), kind=kind)
    if not chosen.json:
        say(chosen, gate)
    return {"gate": gate.to_dict(), "ladder": ladder.to_dict()}
