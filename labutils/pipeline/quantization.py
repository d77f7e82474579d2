"""From any zoo model to a quantized ONNX file that was run: export, search, quantize, compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import compare, manifests, paths, provenance, quantize, typesetting
from ..errors import ParityError, UsageError
from ..images import data
from ..models import ends, gallery, zoo
from ..onnxfile.file import OnnxFile
from ..quantize import mixed
from ..quantize.ranges import equalized_gates
from ..quantize.tidl_hints import write_tidl_hints
from . import conversion, planning, steps
from .settings import Comparison, Explanation, Listener, Preparation, Search

HELD_OUT_IMAGES = 256
EXPLAINED_IMAGES = 16


@dataclass(frozen=True)
class Quantized:
    """A quantized ONNX file, what it computes beside its float model, and why.

    Attributes
    ----------
    file
        The QDQ file; None when it was made only to explain its layers.
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
    integer
        The second export, with operators on integers; None when it was not asked for.
    """

    file: Path | None
    report: quantize.QuantizeReport
    search: mixed.MixedReport | None
    gate: compare.GateReport
    ladder: compare.Ladder | None
    costs: compare.SensitivityReport | None
    written: tuple[Path, ...]
    integer: quantize.IntegerReport | None = None

    @property
    def ok(self) -> bool:
        """Whether the gate passed, and the budget was reached where there was one."""
        return self.gate.passed and (self.search is None or self.search.reached) and not self.missed

    @property
    def missed(self) -> str:
        """What the search reached on its own images and the file does not on the others."""
        found = self.ladder.rows[-1].parity if self.ladder else self.gate.parity
        if self.search is None or not self.search.reached or found is None:
            return ""
        budget = self.search.budget
        if budget.agreement and found.agreement and found.agreement.interval[1] < budget.agreement:
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
        parts = {
            "search": self.search, "ladder": self.ladder, "costs": self.costs,
            "integer": self.integer,
        }  # fmt: skip
        return {
            "ok": self.ok, "file": str(self.file) if self.file else None,
            "written": [str(path) for path in self.written],
            "quantized": self.report.to_dict(), "gate": self.gate.to_dict(),
            **{name: part and part.to_dict() for name, part in parts.items()},
        }  # fmt: skip

    def _sections(self) -> list[Any]:
        parts = self.search, self.report, self.ladder, self.gate, self.costs, self.integer
        return [part for part in parts if part is not None]

    def _notes(self) -> list[str]:
        notes = [self.missed] if self.missed else []
        if not self.ok:
            notes.append(f"NOT GOOD ENOUGH; the gate or the budget says why. {self._advice()}")
        names = ", ".join(path.name for path in self.written)
        notes.append(f"Wrote {names}." if names else "Nothing was written (no -o).")
        return notes

    def _advice(self) -> str:
        """Return what may help: other things where every activation has 16 bits already."""
        costly = "--explain names the layers that cost most"
        if self.search is not None:
            return (
                f"{costly}. The search has spent its 16 bits already: give it more (--mac-share, "
                "--agreement), or take the recipe a16w8, which spends them everywhere."
            )
        if self.report.recipe.activations.bits < 16:
            return (
                f"{costly}; --mac-share or --agreement spends 16 bits on them; the recipe a16w8 "
                "spends them everywhere."
            )
        return (
            f"{costly}. All activations have 16 bits already, so the weights or the ranges are the "
            "cause: a recipe with weights of 16 bits for these layers (an override), more "
            "calibration images (--images), or a float DLC (convert without --quantize)."
        )

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
    recipe: str | Path | quantize.Recipe | Search = "int8",
    calibration: int | np.ndarray | data.ImageSet | None = None,
    *,
    preparation: Preparation | None = None,
    comparison: Comparison | None = None,
    explanation: Explanation | None = None,
    listener: Listener | None = None,
) -> Quantized:
    """Quantize any zoo model to QDQ, run it, and compare it with the original model.

    The file is kept even when it is not good enough (`Quantized.ok`): it is kept for
    inspection, and `convert_model` judges again.

    Parameters
    ----------
    model
        From `zoo.load`, with the preprocessing of its inputs.
    destination
        The ``.onnx`` to write; its recipe goes beside it as ``<name>.quantization.yaml``, its
        manifest as ``<name>.manifest.json``. None writes nothing.
    recipe
        A recipe, or a search for mixed precision within a budget.
    calibration
        So many of Things-16's calibration images, by default as many as the recipe says; or your
        own, as an `ImageSet` or as (n, channels, height, width) float32, normalized: all of them.
    preparation
        Opset and repairs. Where a repair is asked for, `convert_model` with the same repair finds
        the nodes that the recipe names.
    comparison
        256 Things-16 validation images by default.
    explanation
        Which of the costliest layers to explain, with 16 of the calibration images; None for none.
    listener
        Follows the reports and the long loops.

    Raises
    ------
    UsageError
        The recipe, the images and the model do not fit together, or the destination does not.
    ModelFileError
        The model is quantized already, of an open shape, or has NaN weights.
    ExportError
        PyTorch cannot write the model as ONNX.
    SurgeryError
        With a repair: a rule changed what it must not.
    UnknownNameError
        There is no such recipe or target.
    """
    comparison, listener = comparison or Comparison(), listener or Listener()
    ends.refuse_other_inputs(model)
    ends.refuse_labels(model)
    ends.refuse_layout_of_one_processor(model)
    if model.output == "" and isinstance(recipe, Search) and recipe.budget.agreement is not None:
        raise UsageError(
            f"{model.name} is not a classifier, so there is no top-1 to agree on: ask for an SQNR "
            "(--sqnr) instead."
        )
    if model.preprocessing is None:
        raise UsageError(f"{model.name} does not say how its input is made: give preprocessing.")
    if destination is not None:
        zoo.refuse_output(destination, model, ".onnx")
    wanted, known = _choose_recipe(recipe, calibration, model)
    name = manifests.file_name(model.name, "onnx", wanted.name)
    name = Path(destination).name if destination else name
    with paths.scratch(Path(destination).parent if destination else None) as folder:
        source = _prepare(model, folder, preparation or Preparation(), listener.echo)
        draft = OnnxFile(paths.folder(folder / "made") / name)
        budget = recipe.budget if isinstance(recipe, Search) else None
        report, search = _quantize(source, draft, known, wanted, budget, listener)
        gate, ladder = _compare(source, draft, report, comparison, listener)
        apart = report.recipe.equalize_gates
        costs = (
            _explain(source, draft, known, explanation, listener, apart) if explanation else None
        )
        written: tuple[Path, ...] = ()
        if destination is not None:
            story = {
                **steps.facts_of(model, source.fixed),
                **provenance.calibrated_on(known),
                **report.facts(),
                "gate": gate.to_dict(),
                "ladder": ladder and ladder.to_dict(),
            }
            written = _publish(draft.path, Path(destination), report.recipe, story, source.fixed)
    file = Path(destination) if destination is not None else None
    report = dataclasses.replace(report, source=Path(source.floating.name), file=file or Path(name))
    return Quantized(file, report, search, gate, ladder, costs, written)


def add_tidl_hints(made: Quantized) -> Quantized:
    """Write what to tell TIDL beside the quantized file, and return it among what was written.

    Raises
    ------
    UsageError
        Nothing was written.
    """
    if made.file is None:
        raise UsageError("There is no file that TIDL could import: quantize to a file.")
    return dataclasses.replace(made, written=(*made.written, write_tidl_hints(made.file)))


def add_integer(
    made: Quantized,
    model: zoo.Model,
    destination: str | Path,
    images: int | np.ndarray | data.ImageSet | None = None,
) -> Quantized:
    """Write the quantized file once more, with operators on integers, and return both.

    Parameters
    ----------
    made, model
        What `quantize_model` returned, and the model that it was given.
    destination
        The ``.onnx`` to write, its manifest beside it.
    images
        What the two files are compared on, as in `Comparison`: some of them suffice.

    Raises
    ------
    UsageError
        Nothing was written before.
    ParityError
        The two files depart; the second one is not kept.
    """
    if made.file is None:
        raise UsageError("There is no quantized file to write with integers: quantize to a file.")
    shown = _held_out(model, images)
    few = _first(shown, steps.GATE_IMAGES, model.known_preprocessing())
    report = quantize.write_integer(made.file, destination, few, check_top1=model.trained)
    story = {"model": model.name, "quantized": made.file.name, "integer": report.to_dict()}
    beside = manifests.write(report.file, story)
    return dataclasses.replace(made, integer=report, written=(*made.written, report.file, beside))


@dataclass(frozen=True)
class _Source:
    """A model, its ONNX file, and what is quantized: that file, or a repaired copy."""

    model: zoo.Model
    original: OnnxFile
    fixed: planning.Repair | None

    @property
    def floating(self) -> OnnxFile:
        return OnnxFile.of(self.fixed.onnx or self.fixed.file) if self.fixed else self.original

    @property
    def brought(self) -> Any:
        return self.model.module if self.model.module is not None else self.original


def _choose_recipe(
    recipe: str | Path | quantize.Recipe | Search,
    calibration: int | np.ndarray | data.ImageSet | None,
    model: zoo.Model,
) -> tuple[quantize.Recipe, np.ndarray | data.ImageSet]:
    """Return the recipe with the number of calibration images that there are, and these."""
    found = conversion.runnable(recipe.start if isinstance(recipe, Search) else recipe)
    known = found.calibration.images if calibration is None else calibration
    if isinstance(known, int):
        if known < 1:
            raise UsageError(f"{known} calibration images: at least one is needed.")
        known = gallery.pictures(model, known, "calib")
    counted = dataclasses.replace(found.calibration, images=len(known))
    return found.replaced(calibration=counted), known


def _prepare(
    model: zoo.Model, folder: Path, preparation: Preparation, echo: Callable[[object], object]
) -> _Source:
    """Return the model as a float ONNX file, and a repaired copy where a repair is asked for."""
    place = folder / manifests.file_name(model.name, "onnx", "float")
    original = steps.as_onnx(model, place, preparation.opset, echo)
    destination = folder / manifests.file_name(model.name, "onnx", "repaired")
    return _Source(model, original, steps.repair_file(original, destination, preparation, echo))


def _quantize(
    source: _Source,
    draft: OnnxFile,
    calibration: np.ndarray | data.ImageSet,
    recipe: quantize.Recipe,
    budget: mixed.Budget | None,
    listener: Listener,
) -> tuple[quantize.QuantizeReport, mixed.MixedReport | None]:
    """Write the QDQ file, by the recipe or by the one that a search within the budget finds."""
    preprocessing, progress = source.model.preprocessing, listener.progress
    if budget is None:
        report = quantize.static(
            source.floating, draft.path, calibration, recipe,
            preprocessing=preprocessing, progress=progress,
        )  # fmt: skip
        return report, None
    search = mixed.search(
        source.floating, calibration, budget, recipe,
        preprocessing=preprocessing, progress=progress,
    )  # fmt: skip
    return search.write(draft.path), search


def _compare(
    source: _Source,
    draft: OnnxFile,
    report: quantize.QuantizeReport,
    comparison: Comparison,
    listener: Listener,
) -> tuple[compare.GateReport, compare.Ladder | None]:
    """Run both on the images; return the gate's report, and accuracy where there are labels."""
    preprocessing, ladder = source.model.known_preprocessing(), None
    shown = _held_out(source.model, comparison.images)
    model = source.model
    with steps.connect(model, source.brought) as theirs, steps.connect(model, draft) as ours:
        if isinstance(shown, data.ImageSet) and model.output == "":  # accuracy says nothing here
            shown = _first(shown, steps.GATE_IMAGES, preprocessing)
        if isinstance(shown, data.ImageSet):
            stages = [compare.Stage("float", theirs), compare.Stage(report.recipe.name, ours)]
            progress = listener.progress
            ladder = compare.ladder(stages, shown, preprocessing, progress=progress)
            shown = _first(shown, steps.GATE_IMAGES, preprocessing)
        wide = report.recipe.activations.bits == 16
        try:
            gate = compare.gate(
                theirs, ours, shown, kind="ort_a16w8" if wide else "ort_int8",
                min_cosine=comparison.min_cosine, check_top1=source.model.trained,
                reference_onnx=source.original,
            )  # fmt: skip
        except ParityError as error:  # the file is kept, with what was found
            if not isinstance(error.report, compare.GateReport):
                raise
            gate = error.report
    return gate, ladder


def _explain(
    source: _Source,
    draft: OnnxFile,
    calibration: np.ndarray | data.ImageSet,
    explanation: Explanation,
    listener: Listener,
    apart: bool,
) -> compare.SensitivityReport:
    """Return the costliest layers of the QDQ file, and why they cost.

    Where its gates are equalized, layers are left in float with the weights that they have then.
    """
    preprocessing = source.model.known_preprocessing()
    few, floating = _first(calibration, EXPLAINED_IMAGES, preprocessing), source.floating
    if apart:
        place = paths.folder(draft.path.parent / "equalized") / floating.name
        floating = equalized_gates(floating, place, calibration, preprocessing)
    return compare.sensitivity(
        floating, draft, few, explanation.backend, worst=explanation.layers,
        soc=explanation.soc, progress=listener.progress,
    )  # fmt: skip


def _first(
    images: np.ndarray | data.ImageSet, n: int, preprocessing: data.Preprocessing
) -> np.ndarray:
    """Return at most `n` of the images as inputs."""
    return preprocessing(images.images[:n]) if isinstance(images, data.ImageSet) else images[:n]


def _held_out(
    model: zoo.Model, held_out: int | np.ndarray | data.ImageSet | None
) -> np.ndarray | data.ImageSet:
    """Return what to compare on; labels are unknown to a model of other classes."""
    if isinstance(held_out, np.ndarray):
        return held_out
    if held_out is None or isinstance(held_out, int):
        n = HELD_OUT_IMAGES if held_out is None else held_out
        held_out = gallery.pictures(model, n)
    if tuple(held_out.classes) == tuple(model.classes):
        return held_out
    return dataclasses.replace(held_out, labels=np.full(len(held_out), data.NO_LABEL))


def _publish(
    draft: Path,
    destination: Path,
    recipe: quantize.Recipe,
    story: dict[str, Any],
    fixed: planning.Repair | None,
) -> tuple[Path, ...]:
    """Give the file and what describes it their names; a kill leaves no description of another."""
    hints = destination.with_suffix(".tidl.json")
    beside = [recipe.save(paths.recipe_file(draft)), manifests.write(draft, story)]
    if fixed:
        beside.append(fixed.edits.write(paths.edits_file(draft)))
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
