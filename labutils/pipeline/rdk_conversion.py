"""From any zoo model to a file for the RDK X5 that was run: by the user's own tools, or emulated.

A ``.bin`` is made by D-Robotics' tools, which the user has (`labutils.rdk.vendor_tools`), and run
on their BPU simulator. An ``.onnx`` is the lab's emulation, run on ONNX Runtime. Both have to pass
the parity gate before they get their name.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import compare, manifests, paths, provenance, quantize, typesetting
from ..errors import UsageError
from ..images import data
from ..models import zoo
from ..onnxfile.file import OnnxFile
from ..quantize import exporting
from ..rdk import hb_mapper, hb_mapper_writing, vendor_log, vendor_tools
from . import conversion, planning, rdk_emulation, steps
from .rdk_emulation import Emulation
from .settings import Comparison, Listener, Preparation

TARGET = "rdk-x5"
RECIPE = quantize.Recipe(
    "max_9995", "hb_mapper's max with max_percentile 0.9995, of the network with equalized gates",
    calibration=quantize.Calibration("percentile", 100, percentile=99.95), equalize_gates=True,
)  # fmt: skip
"""What is taken without a recipe. Plain max collapses where one calibration picture is odd: a gate
of squeeze-and-excitation reached 2,536 by one of 64 pictures, where 32 of them stay below 414. What
equalized gates bring, `python benchmarks/ten_points.py --whole` measures."""

_BIT_EXACT_IMAGES = 2


@dataclass(frozen=True, repr=False)
class RdkConversion(typesetting.Shown):
    """A file for the RDK X5, and how it compares with the model that it was made of.

    Attributes
    ----------
    file
        The ``.bin`` of the vendor's tools, or the ``.onnx`` of the emulation.
    written
        Every file that was written, `file` first.
    gate
        The comparison with the original.
    ladder
        Accuracy beside the original's, where pictures were given.
    emulation
        What was emulated; None for a ``.bin``.
    built
        What the vendor's tools made; None for an ``.onnx``.
    bit_equal
        On how many of `_BIT_EXACT_IMAGES` pictures the ``.bin`` on the vendor's simulator is bit
        for bit their quantized ONNX; None for an ``.onnx``.
    lost
        (what the recipe or the hb_mapper YAML says, why it is not in the file).
    """

    file: Path
    written: tuple[Path, ...]
    gate: compare.GateReport
    ladder: compare.Ladder | None = None
    emulation: Emulation | None = None
    built: vendor_tools.Built | None = None
    bit_equal: int | None = None
    lost: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether a ``.bin`` is its quantized ONNX bit for bit, as the vendor's own files are."""
        return self.bit_equal in (None, _BIT_EXACT_IMAGES)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for ``--json`` and the manifest."""
        built = self.built
        return {
            "target": TARGET, "file": str(self.file),
            "written": [str(path) for path in self.written], "gate": self.gate.to_dict(),
            "ladder": self.ladder and self.ladder.to_dict(),
            "not_taken": [list(pair) for pair in self.lost],
            "emulation": self.emulation and self.emulation.to_dict(),
            "vendor": built and {
                "versions": built.versions, "estimate": built.estimate and vars(built.estimate),
                "nodes": [vars(line) for line in built.nodes], "bit_equal": self.bit_equal,
            },
        }  # fmt: skip

    def _vendor(self) -> list[str]:
        built = self.built
        if built is None:
            return []
        packages = ", ".join(f"{name} {version}" for name, version in built.versions.items())
        rows = [f"made by D-Robotics' tools of your installation: {packages}"]
        rows += [f"vendor | {row}" for row in vendor_log.table(built.nodes)] if built.nodes else []
        estimate = built.estimate or "none was printed"
        rows.append(f"latency: {estimate}")
        rows.append(
            f"the .bin on their simulator equals their quantized ONNX bit for bit on "
            f"{self.bit_equal} of {_BIT_EXACT_IMAGES} pictures"
        )
        if not self.ok:
            rows.append(
                "WARNING: the compiled code computes something other than the quantized ONNX. The "
                "gate below judged the .bin; accuracy that was measured on the ONNX is not its own."
            )
        return rows

    def __str__(self) -> str:
        first = str(self.emulation) if self.emulation else "\n".join(self._vendor())
        names = ", ".join(path.name for path in self.written)
        lost = "\n".join(f"NOT TAKEN {what}: {why}" for what, why in self.lost)
        ladder = str(self.ladder) if self.ladder else ""
        rest = [part for part in (lost, str(self.gate), ladder, f"Wrote {names}.") if part]
        if self.emulation:
            rest = [
                "\n".join(rdk_emulation.MARK + line for line in part.splitlines()) for part in rest
            ]
        return "\n\n".join([first, *rest])


def convert_for_rdk(
    model: zoo.Model,
    destination: str | Path,
    recipe: str | Path | quantize.Recipe = RECIPE,
    preparation: Preparation | None = None,
    *,
    comparison: Comparison | None = None,
    listener: Listener | None = None,
) -> RdkConversion:
    """Make a file for the RDK X5 from any zoo model: quantize, run, compare.

    Parameters
    ----------
    model
        From `zoo.load`, with the preprocessing of its inputs.
    destination
        A ``.bin`` (D-Robotics' tools, where the user has them) or an ``.onnx`` (the emulation).
    recipe
        A preset, a recipe, or an hb_mapper YAML, whose settings the tools get.
    preparation
        Opset, 11 at most, and repairs.
    comparison
        For the gate; calibration, too.
    listener
        Follows the reports and the calibration.

    Raises
    ------
    UsageError
        Another ending, or settings that do not fit together.
    MissingToolError
        A ``.bin`` was asked for, and the vendor's tools are not here.
    TranslationError
        The target refuses the model, and it is not to be repaired, or cannot be.
    ConvertError
        The vendor's tools refuse it.
    ParityError
        The file does not compute what the model computes; nothing was written.
    """
    preparation = preparation or Preparation(11)
    comparison, listener = comparison or Comparison(), listener or Listener()
    destination = Path(destination)
    zoo.refuse_output(destination, model, ".bin", ".onnx")
    conversion.refuse_unprepared(model, TARGET, preparation)
    asked, settings, lost = _recipe(recipe)
    own = None
    if settings is not None:
        _refuse_other_preprocessing(settings, model.known_preprocessing())
        own = _own_calibration(settings, Path(str(recipe)), model, comparison)
    pictures = own or _calibration(model, asked, comparison, listener)
    with paths.scratch(destination.absolute().parent) as folder:
        place = folder / f"{destination.stem}.onnx"
        original = steps.as_onnx(model, place, preparation.opset, listener.echo)
        floating, fixed = _repaired(original, folder, preparation, listener.echo)
        floating, rest = rdk_emulation.equalized(
            floating, folder, asked, pictures, model.known_preprocessing(), listener
        )
        if destination.suffix.lower() == ".bin":
            order, lost = _order(rest, settings, floating, model)
            made = _by_the_vendor(model, original, floating, pictures, order, comparison, folder)
        else:
            made = _emulated(
                model, original, floating, pictures, rest, comparison, folder, listener
            )
        made = replace(made, lost=_not_taken(lost, settings, own, pictures))
        story = {
            **steps.facts_of(model, fixed), **provenance.calibrated_on(pictures),
            "quantization": asked.to_dict(), **made.to_dict(), "file": destination.name,
        }  # fmt: skip
        written = _publish(made, destination, story)
    return replace(made, file=destination, written=written)


Lost = tuple[tuple[str, str], ...]


def _recipe(
    recipe: str | Path | quantize.Recipe,
) -> tuple[quantize.Recipe, hb_mapper.Settings | None, Lost]:
    """Return a recipe, and the hb_mapper YAML that it was read from, with what it does not take."""
    if isinstance(recipe, quantize.Recipe):
        return conversion.runnable(recipe), None, ()
    file = Path(recipe)
    if file.suffix.lower() in (".yaml", ".yml") and file.is_file():
        try:
            settings = hb_mapper.read(file)
        except UsageError as error:
            if "is not an hb_mapper YAML" not in str(error):
                raise
        else:
            found = quantize.imported(file)
            return found.recipe, settings, found.unmapped
    return conversion.runnable(recipe), None, ()


def _own_calibration(
    settings: hb_mapper.Settings, file: Path, model: zoo.Model, comparison: Comparison
) -> data.ImageSet | None:
    """Return the pictures of the YAML's own folder, None where others are given or it is not here.

    They are rounded to whole pixels.
    """
    named = settings.get("cal_data_dir")
    if comparison.calibration is not None or not named or settings.get("preprocess_on"):
        return None
    folder = file.parent / str(named)
    if not folder.is_dir():
        return None
    pixels = hb_mapper_writing.read_pixels(folder, settings, model.known_preprocessing().shape)
    images = np.rint(pixels).astype(np.uint8).transpose(0, 2, 3, 1)
    images = images.repeat(3, axis=-1) if images.shape[-1] == 1 else images
    unknown = np.full(len(images), data.NO_LABEL)
    return data.ImageSet(images, unknown, (), f"{len(images)} files of {named}")


_SAID_ELSEWHERE = (
    "onnx_model", "march", "working_dir", "output_model_file_prefix", "input_name", "input_shape",
    "input_type_train", "input_layout_train", "norm_type", "cal_data_dir", "cal_data_type",
)  # fmt: skip
"""What the model, its preprocessing or the command says; it was held against the YAML."""


def _not_taken(
    lost: Lost,
    settings: hb_mapper.Settings | None,
    own: data.ImageSet | None,
    pictures: data.ImageSet,
) -> Lost:
    """Return what was not taken and asks for something, with the YAML's calibration folder."""
    if settings is None:
        return lost

    def asks(what: str) -> bool:
        key = what.partition(":")[0].rpartition(".")[2]  # "section.key" or "key: value"
        return key not in _SAID_ELSEWHERE and settings.get(key, "a node") not in (False, "", None)

    rest = tuple(pair for pair in lost if asks(pair[0]))
    named = settings.get("cal_data_dir")
    if not named or own is not None:
        return rest
    return (*rest, (f"cal_data_dir: {named}", f"calibrated on {pictures.source}"))


def _refuse_other_preprocessing(settings: hb_mapper.Settings, known: data.Preprocessing) -> None:
    """Refuse a YAML whose mean and scale are not those that the model is fed with."""
    said = settings.preprocessing(known.size)
    middles = [255 * np.abs(np.subtract(said.mean, known.mean)) > 0.5]
    spreads = [np.abs(np.divide(said.std, known.std) - 1) > 0.01]
    if len(said.mean) != len(known.mean) or np.any([*middles, *spreads]):
        raise UsageError(
            f"{settings.file} normalises otherwise than the model is fed: {said} there, {known} "
            "here. `labutils diagnose MODEL --input-check` says which is right; pass --mean and "
            "--std, or correct mean_value and scale_value."
        )


def _calibration(
    model: zoo.Model, recipe: quantize.Recipe, comparison: Comparison, listener: Listener
) -> data.ImageSet:
    given = comparison.calibration
    if given is None:
        return steps.calibration_images(model, recipe.calibration.images, listener.echo)
    if not isinstance(given, data.ImageSet):
        raise UsageError(
            "The RDK X5's calibration takes pictures, not arrays: pass --data FOLDER, or a folder "
            "of pictures as --calibration."
        )
    return given


def _repaired(
    original: OnnxFile, folder: Path, preparation: Preparation, echo: Callable[[object], object]
) -> tuple[OnnxFile, planning.Repair | None]:
    """Return a file that the tools read, of IR version 9 at most, and what was repaired."""
    place = folder / f"{original.path.stem}.repaired.onnx"
    fixed = steps.repair_file(original, place, preparation, echo)
    file = OnnxFile.of(fixed.onnx or fixed.file) if fixed else original
    if preparation.edits is None and fixed is None:
        plan = planning.suggest(file, TARGET)
        if plan.needed:
            raise planning.refused(plan)
    return vendor_tools.readable(file, folder / f"{original.path.stem}.ir9.onnx"), fixed


def _order(
    recipe: quantize.Recipe,
    settings: hb_mapper.Settings | None,
    file: OnnxFile,
    model: zoo.Model,
) -> tuple[vendor_tools.Order, Lost]:
    """Return what the vendor's tools are asked for, and what is not said to them.

    It is the YAML, or the recipe in its words.
    """
    preprocessing = model.known_preprocessing()
    if settings is not None:
        passed = vendor_tools.PASSED_ON
        lost = tuple(
            (f"{line.key}: {line.value}", line.left) for line in settings.lines
            if line.left and line.key not in passed and settings.get(line.key) is not None
        )  # fmt: skip
        return vendor_tools.Order.of(settings, preprocessing.size), lost
    said = exporting.for_hb_mapper(recipe, file, preprocessing, prefix=file.path.stem)
    found = hb_mapper.parse(said.text, f"{file.path.stem}.yaml")
    order = vendor_tools.Order.of(found, preprocessing.size)
    return replace(order, preprocessing=preprocessing), said.lost


def _by_the_vendor(
    model: zoo.Model,
    original: OnnxFile,
    floating: OnnxFile,
    pictures: data.ImageSet,
    order: vendor_tools.Order,
    comparison: Comparison,
    folder: Path,
) -> RdkConversion:
    place = paths.folder(folder / "vendor")
    tool = vendor_tools.connect()
    try:
        built = vendor_tools.build(
            tool, floating, order, np.asarray(pictures.images), place / original.path.stem
        )
        known = (
            order, floating.inputs[0].name, model.known_preprocessing(), model.output or None,
        )  # fmt: skip
        ours = vendor_tools.VendorRunner(tool, built.compiled, *known)
        theirs = vendor_tools.VendorRunner(tool, built.quantized, *known, kind="quantized ONNX")
        gate, ladder = _judge(model, original, ours, "bpu_int8", comparison)
        few = _gate_inputs(model, comparison)[:_BIT_EXACT_IMAGES]
        same = (ours.run(few) == theirs.run(few)).all(axis=1).sum()
    finally:
        tool.close()
    return RdkConversion(built.compiled, (), gate, ladder, built=built, bit_equal=int(same))


def _emulated(
    model: zoo.Model,
    original: OnnxFile,
    floating: OnnxFile,
    pictures: data.ImageSet,
    recipe: quantize.Recipe,
    comparison: Comparison,
    folder: Path,
    listener: Listener,
) -> RdkConversion:
    emulation = rdk_emulation.emulate(
        floating, paths.folder(folder / "emulated"), pictures, recipe,
        model.known_preprocessing(), listener,
    )  # fmt: skip
    wide = recipe.activations.bits == 16
    name = f"{original.path.stem}.onnx, on integers"
    with steps.connect(model, emulation.integer, name=name) as ours:
        gate, ladder = _judge(
            model, original, ours, "ort_a16w8" if wide else "ort_int8", comparison
        )
    return RdkConversion(emulation.qdq.path, (), gate, ladder, emulation=emulation)


def _judge(
    model: zoo.Model, original: OnnxFile, ours: Any, kind: str, comparison: Comparison
) -> tuple[compare.GateReport, compare.Ladder | None]:
    """Hold a candidate against the model as it was brought; ParityError where it departs."""
    inputs = _gate_inputs(model, comparison)
    brought = model.module if model.module is not None else original
    with steps.connect(model, brought) as reference:
        gate = compare.gate(
            reference, ours, inputs, kind=kind, min_cosine=comparison.min_cosine,
            check_top1=model.trained, reference_onnx=original,
        )  # fmt: skip
        if not isinstance(comparison.images, data.ImageSet) or model.output == "":
            return gate, None
        stages = [compare.Stage("original", reference), compare.Stage(TARGET, ours)]
        return gate, compare.ladder(stages, comparison.images, model.known_preprocessing())


def _gate_inputs(model: zoo.Model, comparison: Comparison) -> np.ndarray:
    images = comparison.images
    if isinstance(images, data.ImageSet):
        few = images.head(min(steps.GATE_IMAGES, len(images)))
        return model.known_preprocessing()(np.asarray(few.images))
    return images if isinstance(images, np.ndarray) else steps.gate_inputs(model, images)


def _publish(made: RdkConversion, destination: Path, story: dict[str, Any]) -> tuple[Path, ...]:
    """Give what passed its names, and return them."""
    written = [destination]
    shutil.move(made.file, destination)
    if made.built is not None:
        quantized = destination.with_name(f"{destination.stem}_quantized_model.onnx")
        shutil.move(made.built.quantized, quantized)
        log = destination.with_name(f"{destination.stem}.vendor.log")
        paths.write_text(log, made.built.log)
        written += [quantized, log]
    written.append(manifests.write(destination, story))
    return tuple(written)
