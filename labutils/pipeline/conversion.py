"""From any zoo model to a verified DLC: export, repair, quantize, convert, compare."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import compare, dlc, manifests, paths, provenance, quantize, runtime, surgery, targets
from ..errors import UsageError
from ..images import data
from ..models import ends, zoo
from ..onnxfile.file import OnnxFile
from . import planning, steps
from .planning import Repair
from .settings import Comparison, Listener, Preparation


def convert_model(
    model: zoo.Model,
    target: str,
    destination: str | Path,
    preparation: Preparation | None = None,
    device: dlc.Device | None = None,
    *,
    recipe: str | Path | None = None,
    comparison: Comparison | None = None,
    listener: Listener | None = None,
) -> dlc.Conversion:
    """Take any zoo model to a verified DLC: export, repair, quantize, convert, compare.

    Parameters
    ----------
    model
        From `zoo.load`, with the preprocessing of its inputs.
    target, destination
        A target's name and the ``.dlc`` to write; nothing is written unless the gate passes.
    preparation
        Opset and repairs. Without repairs for `target`, what it refuses is an error.
    device
        The chip; ``"fp32"`` or ``"fp16"`` for a float DLC.
    recipe
        A quantization recipe for an integer DLC: a preset (``"int8"``, ``"a16w8"``, ...) or a
        YAML file; None keeps floats.
    comparison
        For the gate; 32 Things-16 images by default.
    listener
        Follows the reports, the converter's log and the calibration.

    Raises
    ------
    UsageError
        The model does not say how its input is made; a check-only target; a destination that is
        not a ``.dlc``; inputs that do not fit; a repair for another target.
    TranslationError
        The target refuses the model, and it is not to be repaired, or cannot be.
    SurgeryError
        The edits were made for another network, or a rule changed what it must not.
    ExportError
        PyTorch cannot write the model as ONNX.
    ConvertError
        QNN refuses a node, or the DLC is not what the ONNX file says.
    ParityError
        The DLC does not compute what `model` computes.
    """
    preparation, device = preparation or Preparation(), device or dlc.Device()
    comparison, listener = comparison or Comparison(), listener or Listener()
    refuse_unprepared(model, target, preparation)
    quantization = runnable(recipe) if recipe is not None else None
    inputs = inputs_of(comparison, model)
    with paths.scratch() as folder:
        place = folder / f"{Path(destination).stem}.onnx"
        original = steps.as_onnx(model, place, preparation.opset, listener.echo)
        fixed = _repair(original, target, folder, preparation, device.soc, listener.echo)
        floating = _file_of(fixed) or original
        dlc.refuse_never_written(floating)
        done = None
        if quantization is not None:
            done = _quantize(model, floating, folder, quantization, comparison, listener)
            device = dlc.Device(device.soc, _precision(quantization))
        brought = model.module if model.module is not None else original
        apart = measure_approximation(model, brought, fixed, inputs, listener.echo)
        judge = (floating, floating) if apart else (brought, original)
        with steps.connect(model, judge[0]) as reference:
            made = dlc.convert(
                floating,
                target,
                destination,
                dlc.Gate(reference, inputs, judge[1], comparison.min_cosine, model.trained),
                device,
                quantized=done.file if done else None,
                notes=_notes(model, fixed, apart, done),
                echo=listener.echo,
            )
    if fixed:
        listener.echo(f"edits: {paths.edits_file(destination)}")
    return made


def measure_accuracy(
    model: zoo.Model, made: Path, images: data.ImageSet, listener: Listener, **settings: Any
) -> compare.Ladder:
    """Run an artifact beside its model on pictures, and keep the result in its manifest.

    Parameters
    ----------
    model
        What was converted, with the classes of the pictures.
    made
        The ``.dlc`` or ``.tflite``.
    images
        With labels for the model's classes; without, accuracy is unknown and agreement is not.
    **settings
        Of its runner: ``soc=``, the chip to simulate.
    listener
        Follows the images.
    """
    brought = model.module if model.module is not None else model.onnx or model.file
    with (
        steps.connect(model, brought) as theirs,
        steps.connect(model, made, **settings) as ours,
    ):
        name = "DLC, simulated" if made.suffix == ".dlc" else f"{made.suffix[1:]}, on LiteRT"
        stages = [compare.Stage("original", theirs), compare.Stage(name, ours)]
        ladder = compare.ladder(
            stages, images, model.known_preprocessing(), progress=listener.progress
        )
    manifests.write(made, manifests.read(made) | {"ladder": ladder.to_dict()})
    return ladder


def refuse_unprepared(model: zoo.Model, target: str, preparation: Preparation) -> None:
    """Refuse a model that cannot be compared, and a repair for another target: before any work."""
    ends.refuse_other_inputs(model)
    ends.refuse_labels(model)
    ends.refuse_layout_of_one_processor(model)
    if model.preprocessing is None:
        raise UsageError(
            f"{model.name} does not say how its input is made. Give its mean and std "
            "(--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225); they are never guessed."
        )
    if preparation.repair_for not in (None, target):
        raise UsageError(
            f"The model would be repaired for {preparation.repair_for} and converted for {target}: "
            "repair it for the target of the conversion."
        )


def inputs_of(comparison: Comparison, model: zoo.Model) -> np.ndarray:
    """Return what the gate compares on: (n, channels, height, width) float32, normalized."""
    images = comparison.images
    if isinstance(images, data.ImageSet):
        return model.known_preprocessing()(np.asarray(images.images))
    return images if isinstance(images, np.ndarray) else steps.gate_inputs(model, images)


def _quantize(
    model: zoo.Model,
    floating: OnnxFile,
    folder: Path,
    recipe: quantize.Recipe,
    comparison: Comparison,
    listener: Listener,
) -> quantize.QuantizeReport:
    """Quantize the float file on what is given, or as many drawn images as the recipe says."""
    place = folder / manifests.file_name(floating.path.stem, "onnx", recipe.name)
    images = comparison.calibration
    if images is None:
        images = steps.calibration_images(model, recipe.calibration.images, listener.echo)
    counted = dataclasses.replace(recipe.calibration, images=len(images))
    done = steps.quantize_file(
        model, floating, place, images, recipe.replaced(calibration=counted), listener=listener
    )
    listener.echo(done)
    return done


def _file_of(fixed: Repair | None) -> OnnxFile | None:
    return OnnxFile.of(fixed.onnx or fixed.file) if fixed else None


def _precision(recipe: quantize.Recipe) -> str:
    return "a16w8" if recipe.activations.bits == 16 else "int8"


def _notes(
    model: zoo.Model,
    fixed: Repair | None,
    apart: dict[str, Any] | None,
    done: quantize.QuantizeReport | None,
) -> dlc.Notes:
    """Return what is kept beside the DLC."""
    facts = {
        **steps.facts_of(model, fixed),
        "approximation": apart,
        "quantization": None,
        **(done.facts() | _pictures_of(done.file) if done else {}),
    }
    edits = fixed.edits.to_yaml() if fixed else None
    return dlc.Notes(". ".join(_caveats(model, apart)), edits, facts)


def _pictures_of(quantized: Path) -> dict[str, Any]:
    """Return what the manifest of a QDQ file says of the pictures that calibrated it."""
    entry = manifests.read(quantized)
    return {key: entry[key] for key in ("pictures", "pictures_sha256")}


def _caveats(model: zoo.Model, apart: dict[str, Any] | None) -> Iterator[str]:
    """Yield what the claim has to begin with: surgery, now or before, that changed the function."""
    earlier = provenance.edits_in(model.onnx.proto) if model.onnx else []
    if any(entry.get("exact") is not True for entry in earlier):
        yield f"The original file: {provenance.edits_note(earlier)}"
    if apart:
        yield apart["caveat"]


def runnable(recipe: str | Path | quantize.Recipe) -> quantize.Recipe:
    """Return the recipe, unless the gate could not run what it makes."""
    found = quantize.load_recipe(recipe)
    if (found.input, found.output) != ("float32", "float32"):
        raise UsageError(
            f"Recipe {found.name} makes integer inputs or outputs, which the parity gate cannot "
            "feed or read. Convert with float32 ends; QNN keeps the integers inside."
        )
    return found


def _repair(
    original: OnnxFile,
    target: str,
    folder: Path,
    preparation: Preparation,
    soc: str,
    echo: Callable[[object], object],
) -> Repair | None:
    """Return a copy that neither the target's table nor QNN refuses; None where none is needed."""
    destination = folder / manifests.file_name(original.path.stem, "onnx", "repaired")
    if not targets.TARGETS[target].convert:  # refused later, in its own words
        return None
    if preparation.edits is None and preparation.repair_for is None:
        plan = planning.suggest(original, target)
        if plan.needed and (target != "qnn" or _known(plan)):  # QNN judges the limits for "qnn"
            raise planning.refused(plan)
        return None
    writer = functools.partial(dlc.refused_nodes, soc=soc)
    return steps.repair_file(original, destination, preparation, echo, writer)


def _known(plan: planning.Plan) -> bool:
    """Whether the table says of an operator that blocks that it is not taken in any form."""
    ops = plan.check.table.ops
    found = (ops.get(node.op_type) for node in plan.check.blockers if not node.fails)
    return any(op is not None and op.verdict == "unsupported" and not op.aborts for op in found)


def measure_approximation(
    model: zoo.Model,
    brought: Any,
    fixed: Repair | None,
    inputs: np.ndarray,
    echo: Callable[[object], object],
) -> dict[str, Any] | None:
    """Return how far an approximated model is from the original; None for an exact one."""
    if fixed is None or fixed.exact:
        return None
    with steps.connect(model, brought) as theirs, steps.connect(model, _file_of(fixed)) as ours:
        expected, found = theirs.run(inputs), ours.run(inputs)
        figures = compare.parity(expected, found, top1=bool(runtime.scores_name(theirs)))
    rules = [name for name, n in fixed.surgery.counts.items() if n]
    names = [name for name in rules if not surgery.RULES[name].exact]
    same = f", same top-1 on {figures.agreement}" if figures.agreement else ""
    caveat = (
        f"APPROXIMATED by {', '.join(names)}: this is NOT the original model (cosine "
        f"{figures.cosine_mean:.3f} to it{same}); compared with the model after the surgery"
    )
    echo(caveat)
    return {"caveat": caveat, "rules": names, "cosine_mean": figures.cosine_mean,
            "cosine_min": figures.cosine_min, "sqnr_db": figures.sqnr_db,
            "agreement": figures.agreement and figures.agreement.value, "n": figures.n}  # fmt: skip
