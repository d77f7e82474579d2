"""From any zoo model to a quantized ONNX file that was run: export, search, quantize, compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import compare, paths, quantize, runtime, typesetting
from ..errors import ParityError, UsageError
from ..images import data
from ..models import zoo
from ..onnxfile.file import OnnxFile
from ..quantize import mixed
from ..quantize.tidl_hints import write_tidl_hints
from . import conversion, planning

HELD_OUT_IMAGES = 256
EXPLAINED_IMAGES = 16


@dataclass(frozen=True)
class Quantized:
    """A quantized ONNX file, what it computes beside its float model, and why.

    Attributes
    ----------
    file
        The QDQ file; None when it was made only to be looked into.
    report
        What was quantized.
    search
        The front that the recipe was chosen from; None when it was given.
    gate
        The comparison that `convert` would make of it, on ONNX Runtime.
    ladder
        Accuracy beside the float model's; None where inputs were given instead of images.
    costs
        The costliest layers, and why; None when that was not asked.
    written
        Every file that was written, the QDQ file first.
    """

    file: Path | None
    report: quantize.QuantizeReport
    search: mixed.MixedReport | None
    gate: compare.GateReport
    ladder: compare.Ladder | None
    costs: compare.SensitivityReport | None
    written: tuple[Path, ...]

    @property
    def ok(self) -> bool:
        """Whether the gate passed, and the budget was reached where there was one."""
        return self.gate.passed and (self.search is None or self.search.reached) and not self.missed

    @property
    def missed(self) -> str:
        """What the search reached on its own images and the file does not on the others."""
        found = self.ladder.rows[-1].parity if self.ladder else self.gate.parity
        budget = self.search and self.search.budget
        if not (budget and self.search.reached and found):
            return ""
        if budget.agreement is not None and found.agreement.interval[1] < budget.agreement:
            what = f"top-1 agreement is {found.agreement}, not {100 * budget.agreement:g} %"
        elif budget.sqnr_db is not None and found.sqnr_db < budget.sqnr_db:
            what = f"SQNR is {found.sqnr_db:.1f} dB, not {budget.sqnr_db:g} dB"
        else:
            return ""
        return (
            f"BUDGET MISSED on the held-out images: {what}, which the search had reached on its "
            "calibration images. Give it more of those (--images), or ask for more."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for ``--json``."""
        parts = {"search": self.search, "ladder": self.ladder, "costs": self.costs}
        return {
            "ok": self.ok, "file": str(self.file) if self.file else None,
            "written": [str(path) for path in self.written],
            "quantized": self.report.to_dict(), "gate": self.gate.to_dict(),
            **{name: part and part.to_dict() for name, part in parts.items()},
        }  # fmt: skip

    def _sections(self) -> list[Any]:
        return [part for part in (self.search, self.report, self.ladder, self.gate, self.costs)
                if part is not None]  # fmt: skip

    def _notes(self) -> list[str]:
        notes = [self.missed] if self.missed else []
        if not self.ok:
            notes.append(
                "NOT GOOD ENOUGH; the gate or the budget says why. --explain names the "
                "layers that cost most; --mac-share or --agreement spends 16 bits on them; the "
                "recipe a16w8 spends them everywhere."
            )
        names = ", ".join(path.name for path in self.written)
        notes.append(f"Wrote {names}." if names else "Nothing was written (no -o).")
        return notes

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self._sections()), "\n".join(self._notes())])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        notes = "".join(map(typesetting.paragraph, self._notes()))
        return "".join(part._repr_html_() for part in self._sections()) + notes


def quantize_model(
    model: zoo.Model,
    destination: str | Path | None,
    recipe: str | Path | quantize.Recipe = "int8",
    budget: mixed.Budget | None = None,
    *,
    repair_for: str | None = None,
    opset: int = 17,
    preprocessing: data.Preprocessing | None = None,
    images: int | None = None,
    calibration: np.ndarray | data.ImageSet | None = None,
    held_out: int | np.ndarray | data.ImageSet = HELD_OUT_IMAGES,
    min_cosine: float | None = None,
    explain: int = 0,
    backend: str = "ort",
    soc: str = "SM8550",
    tidl_hints: bool = False,
    echo: Callable[[object], object] = lambda line: None,
    progress: Callable | None = None,
) -> Quantized:
    """Quantize any zoo model to QDQ, run it, and compare it with the model that was brought.

    The file is kept even when it is not good enough (`Quantized.ok`): it is there to be looked
    into, and `convert_model` judges again.

    Parameters
    ----------
    model
        From `zoo.load`.
    destination
        The ``.onnx`` to write; its recipe goes beside it as ``<name>.quantization.yaml``, its
        manifest as ``<name>.manifest.json``. None writes nothing.
    recipe, budget
        A recipe; with a budget, the one that the search for mixed precision starts from.
    repair_for
        A target whose blockers are replaced first, by exact rules. Then `convert_model` with
        repair finds the nodes that the recipe names.
    opset
        Of the export.
    preprocessing
        For files that do not say how their input was made.
    calibration
        Your own images, or (n, 3, size, size) float32, normalized; Things-16's by default.
    images
        How many of them; by default as many as the recipe says, all of your own.
    held_out
        What the two are compared on: so many Things-16 validation images; or your own, as for
        `calibration`. Accuracy is stated of images with labels for the model's classes.
    min_cosine
        Another threshold for the gate.
    explain
        How many of the costliest layers to explain, with 16 of the calibration images.
    backend, soc
        What runs those layers: ``"ort"``, or ``"htp"``, simulated for this chip.
    tidl_hints
        Write what to tell TIDL beside the file.
    echo, progress
        As for `convert_model`.

    Raises
    ------
    UsageError
        The recipe, the images and the model do not fit together, or the destination does not.
    ModelFileError
        The model is quantized already, of an open shape, or has NaN weights.
    SurgeryError
        With `repair_for`: a rule changed what it must not.
    UnknownNameError
        There is no such recipe or target.
    """
    preprocessing = preprocessing or model.preprocessing
    if preprocessing is None:
        raise UsageError(f"{model.name} does not say how its input is made: give preprocessing.")
    if destination is not None:
        zoo.refuse_output(destination, model, ".onnx")
    wanted, known = _calibrating(recipe, images, calibration, preprocessing.size)
    name = (
        Path(destination).name if destination else f"{paths.stem_of(model.name)}.{wanted.name}.onnx"
    )
    settings = {"preprocessing": preprocessing, "progress": progress}
    with paths.scratch(Path(destination).parent if destination else None) as folder:
        original, fixed = _float_file(model, folder, opset, repair_for, echo)
        floating = fixed.onnx if fixed else original
        draft, search = OnnxFile(paths.folder(folder / "made") / name), None
        if budget is not None:
            search = mixed.search(floating, known, budget, wanted, **settings)
            report = search.write(draft)
        else:
            report = quantize.static(floating, draft, known, wanted, **settings)
        brought = model.module if model.module is not None else original
        with runtime.connect(brought) as theirs, runtime.OrtRunner(draft) as ours:
            shown = _held_out(model, held_out, preprocessing.size)
            ladder = None
            if isinstance(shown, data.ImageSet):
                stages = [compare.Stage("float", theirs), compare.Stage(report.recipe.name, ours)]
                ladder = compare.ladder(stages, shown, preprocessing, progress=progress)
                shown = _first(shown, conversion.GATE_IMAGES, preprocessing)
            gate = _gated(theirs, ours, shown, report.recipe, min_cosine, model.trained, original)
        costs = None
        if explain:
            few = _first(known, EXPLAINED_IMAGES, preprocessing)
            costs = compare.sensitivity(
                floating, draft, few, backend, worst=explain, soc=soc, progress=progress
            )
        written = ()
        if destination is not None:
            story = {
                **conversion.facts(model, preprocessing, fixed),
                "quantization": report.recipe.to_dict(),
                **report.facts(),
                "gate": gate.to_dict(),
                "ladder": ladder and ladder.to_dict(),
            }
            places = draft.path, Path(destination)
            written = _published(*places, report.recipe, story, tidl_hints, fixed)
    file = Path(destination) if destination is not None else None
    report = dataclasses.replace(report, source=Path(floating.name), file=file or Path(name))
    return Quantized(file, report, search, gate, ladder, costs, written)


def _calibrating(
    recipe: str | Path | quantize.Recipe,
    images: int | None,
    calibration: np.ndarray | data.ImageSet | None,
    size: int,
) -> tuple[quantize.Recipe, np.ndarray | data.ImageSet]:
    """Return the recipe with the number of calibration images that there are, and these."""
    found = conversion.runnable(recipe)
    wanted = found.calibration.images if images is None else images
    if wanted < 1:
        raise UsageError(f"{wanted} calibration images: at least one is needed.")
    if calibration is None:
        known = data.calibration(wanted, size)
    elif images is None:
        known = calibration
    else:
        own = isinstance(calibration, data.ImageSet)
        known = calibration.head(images) if own else calibration[:images]
    counted = dataclasses.replace(found.calibration, images=len(known))
    return found.replaced(calibration=counted), known


def _first(
    images: np.ndarray | data.ImageSet, n: int, preprocessing: data.Preprocessing
) -> np.ndarray:
    """Return at most `n` of the images as inputs."""
    return preprocessing(images.images[:n]) if isinstance(images, data.ImageSet) else images[:n]


def _float_file(
    model: zoo.Model, folder: Path, opset: int, target: str | None, echo: Callable
) -> tuple[OnnxFile, planning.Repair | None]:
    """Return the model as a float ONNX file, and a repaired copy where a target is given."""
    stem = paths.stem_of(model.name)
    original = conversion.as_onnx(model, folder / f"{stem}.float.onnx", opset, echo)
    if target is None:
        return original, None
    try:
        fixed = planning.apply(original, target, folder / f"{stem}.repaired.onnx")
    except planning.NothingToRepairError:
        return original, None
    echo(fixed)
    return original, fixed


def _held_out(
    model: zoo.Model, held_out: int | np.ndarray | data.ImageSet, size: int
) -> np.ndarray | data.ImageSet:
    """Return what to compare on; labels are unknown to a model of other classes."""
    if isinstance(held_out, np.ndarray):
        return held_out
    images = data.load("val", held_out, size) if isinstance(held_out, int) else held_out
    if tuple(images.classes) == tuple(model.classes):
        return images
    return dataclasses.replace(images, labels=np.full(len(images), data.NO_LABEL))


def _gated(
    theirs: runtime.Runner,
    ours: runtime.Runner,
    inputs: np.ndarray,
    recipe: quantize.Recipe,
    min_cosine: float | None,
    trained: bool,
    original: OnnxFile,
) -> compare.GateReport:
    """Return the gate's report, also when it says no."""
    kind = "ort_a16w8" if recipe.activations.bits == 16 else "ort_int8"
    try:
        return compare.gate(
            theirs, ours, inputs, kind=kind, min_cosine=min_cosine, check_top1=trained,
            reference_onnx=original,
        )  # fmt: skip
    except ParityError as error:
        return error.report


def _published(
    draft: Path,
    destination: Path,
    recipe: quantize.Recipe,
    story: dict[str, Any],
    tidl_hints: bool,
    fixed: planning.Repair | None,
) -> tuple[Path, ...]:
    """Give the file and what describes it their names; a kill leaves no description of another."""
    hints = destination.with_suffix(".tidl.json")
    beside = [recipe.save(paths.recipe_file(draft)), paths.record(draft, story)]
    if fixed:
        beside.append(fixed.edits.write(paths.edits_file(draft)))
    if tidl_hints:
        beside.append(write_tidl_hints(draft))
    made = []
    with paths.locked(destination):
        described = (
            paths.recipe_file, paths.manifest, paths.edits_file, paths.earlier_edits_file,
        )  # fmt: skip
        for stale in (hints, *(name(destination) for name in described)):
            stale.unlink(missing_ok=True)
        for path in (draft, *beside):
            made.append(destination.with_name(path.name))
            path.replace(made[-1])
    return tuple(made)
