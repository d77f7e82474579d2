"""From any zoo model to a verified DLC: export, repair, quantize, convert, compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import compare, dlc, export, paths, quantize, runtime, surgery, targets
from ..errors import UsageError
from ..images import data
from ..models import zoo
from ..onnxfile.file import OnnxFile
from . import planning
from .planning import Repair

GATE_IMAGES = 32
CALIBRATION_IMAGES = 256


def convert_model(
    model: zoo.Model,
    target: str,
    destination: str | Path,
    *,
    repair: bool = False,
    allow_approximate: bool = False,
    edits: surgery.Edits | str | Path | None = None,
    recipe: str | None = None,
    precision: str = "fp32",
    opset: int = 17,
    soc: str = "SM8550",
    inputs: np.ndarray | None = None,
    preprocessing: data.Preprocessing | None = None,
    min_cosine: float | None = None,
    echo: Callable[[object], object] = lambda line: None,
    progress: Callable | None = None,
) -> dlc.Conversion:
    """Take any zoo model to a verified DLC: export, repair, quantize, convert, compare.

    Parameters
    ----------
    model
        From `zoo.load`.
    target, destination
        A target's name and the ``.dlc`` to write; nothing is written unless the gate passes.
    repair
        Replace what the target refuses, with exact rules; without it a refusal is an error.
    allow_approximate
        Together with `repair`: where no exact rule helps, one that changes the function. The DLC is
        then compared with the model after the surgery; how far that is from `model` is printed and
        kept in the manifest, and the claim says so.
    edits
        Replay these edits of a surgery instead of choosing rules; see `surgery.replay_`.
    recipe
        A quantization recipe for an integer DLC: a preset (``"int8"``, ``"a16w8"``, ...) or a
        YAML file; None keeps floats.
    precision
        Of a float DLC: ``"fp32"`` or ``"fp16"``.
    opset, soc
        For the export; for the compiler and the simulator.
    inputs
        (n, 3, size, size) float32 for the gate; 32 Things-16 images by default.
    preprocessing
        For files that do not say how their input was made.
    min_cosine
        Another threshold for the parity gate.
    echo
        Called with each report and log line as it comes.
    progress
        For calibration.

    Raises
    ------
    UsageError
        The model does not say how its input is made; a check-only target; a destination that is
        not a ``.dlc``; inputs that do not fit.
    TranslationError
        The target refuses the model, and `repair` is off or cannot help.
    SurgeryError
        The edits were made for another network, or a rule changed what it must not.
    ConvertError
        QNN refuses a node, or the DLC is not what the ONNX file says.
    ParityError
        The DLC computes something else than `model`.
    """
    preprocessing = preprocessing or model.preprocessing
    if preprocessing is None:
        raise UsageError(
            f"{model.name} does not say how its input is made. Give its mean and std "
            "(--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225); they are never guessed."
        )
    quantization = runnable(recipe) if recipe is not None else None
    if inputs is None:
        images = data.load("val", GATE_IMAGES, preprocessing.size)
        inputs = preprocessing(np.asarray(images.images))
    stem = Path(destination).stem
    with paths.scratch() as folder:
        original = as_onnx(model, Path(folder, f"{stem}.onnx"), opset, echo)
        fixed = _repaired(original, target, Path(folder), repair, allow_approximate, edits, echo)
        floating = fixed.onnx if fixed else original
        quantized = done = None
        if quantization is not None:
            quantized = OnnxFile(folder / f"{stem}.{quantization.name}.onnx")
            precision = "a16w8" if quantization.activations.bits == 16 else "int8"
            calibration = data.calibration(quantization.calibration.images, preprocessing.size)
            settings = {"preprocessing": preprocessing, "progress": progress}
            done = quantize.static(floating, quantized, calibration, quantization, **settings)
            echo(done)
        brought = model.module if model.module is not None else original
        apart = _apart(brought, fixed, inputs, echo)
        approximated = fixed is not None and not fixed.exact
        with runtime.connect(floating if approximated else brought) as reference:
            made = dlc.convert(
                floating,
                target,
                destination,
                reference=reference,
                inputs=inputs,
                original=floating if approximated else original,
                quantized=quantized,
                precision=precision,
                soc=soc,
                min_cosine=min_cosine,
                check_top1=model.trained,
                caveat=apart["caveat"] if apart else "",
                edits=fixed.edits.to_yaml() if fixed else None,
                facts={
                    **facts(model, preprocessing, fixed),
                    "approximation": apart,
                    "quantization": quantization.to_dict() if quantization else None,
                    **(done.facts() if done else {}),
                },
                echo=echo,
            )
    if fixed:
        echo(f"edits: {paths.edits_file(destination)}")
    return made


def runnable(recipe: str | Path) -> quantize.Recipe:
    """Return the recipe, unless the gate could not run what it makes."""
    found = quantize.load_recipe(recipe)
    if (found.input, found.output) != ("float32", "float32"):
        raise UsageError(
            f"Recipe {found.name} makes integer inputs or outputs, which the parity gate cannot "
            "feed or read. Convert with float32 ends; QNN keeps the integers inside."
        )
    return found


def _repaired(
    original: OnnxFile,
    target: str,
    folder: Path,
    repair: bool,
    allow_approximate: bool,
    edits: surgery.Edits | str | Path | None,
    echo: Callable,
) -> Repair | None:
    """Return a copy that the target's table does not refuse; None where the original will do."""
    destination = folder / f"{original.path.stem}.repaired.onnx"
    if not targets.TARGETS[target].convert:  # refused later, in its own words
        return None
    if edits is not None:
        fixed = planning.replay(original, edits, destination)
        echo(fixed)
        return fixed
    if not repair:
        plan = planning.suggest(original, target)
        if plan.needed and target != "qnn":  # QNN itself judges for "qnn", at conversion
            raise planning.refused(plan)
        return None
    try:
        fixed = planning.apply(original, target, destination, allow_approximate=allow_approximate)
    except planning.NothingToRepairError:
        return None
    echo(fixed)
    return fixed


def _apart(
    brought: Any, fixed: Repair | None, inputs: np.ndarray, echo: Callable
) -> dict[str, Any] | None:
    """Return how far an approximated model is from the one brought; None where none is."""
    if fixed is None or fixed.exact:
        return None
    with runtime.connect(brought) as theirs, runtime.connect(fixed.onnx) as ours:
        figures = compare.parity(theirs.run(inputs), ours.run(inputs))
    rules = [name for name, n in fixed.surgery.counts.items() if n]
    names = [name for name in rules if not surgery.RULES[name].exact]
    caveat = (
        f"APPROXIMATED by {', '.join(names)}: this is NOT the model that was brought (cosine "
        f"{figures.cosine_mean:.3f} to it, same top-1 on {figures.agreement}); compared with the "
        "model after the surgery"
    )
    echo(caveat)
    return {"caveat": caveat, "rules": names, "cosine_mean": figures.cosine_mean,
            "cosine_min": figures.cosine_min, "sqnr_db": figures.sqnr_db,
            "agreement": figures.agreement.value, "n": figures.n}  # fmt: skip


def as_onnx(model: zoo.Model, path: Path, opset: int, echo: Callable) -> OnnxFile:
    """Return the model's own ONNX file, or an export of it at `path`."""
    if model.module is None:
        return OnnxFile.of(model.onnx or model.file)
    report = export.to_onnx(model, path, opset=opset)
    echo(report)
    return report.onnx


def facts(
    model: zoo.Model, preprocessing: data.Preprocessing | None = None, fixed: Repair | None = None
) -> dict[str, Any]:
    """Return what a manifest says of the model: where it came from, its input, its classes."""
    preprocessing = preprocessing or model.preprocessing
    brought = model.brought or model.file
    return {
        "model": {
            "name": model.name,
            "weights": model.weights,
            "note": model.note,
            "sha256": model.sha256,
        },
        "classes": list(model.classes),
        "preprocessing": {
            "size": preprocessing.size,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "source": preprocessing.source,
        },
        "brought": {"file": brought.name, "sha256": paths.sha256(brought)} if brought else None,
        "repair": fixed.surgery.to_dict() | {"edits": fixed.edits.to_dict()} if fixed else None,
    }
