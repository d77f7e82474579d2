"""The whole way in one call: PyTorch -> ONNX -> repaired -> DLC -> int8 -> simulated Snapdragon.

`run` does what the notebooks do, with the same functions, and ends in the fidelity ladder. Every
artifact lies in ``generated_models/`` with a manifest beside it. What each step cost is host time,
on this machine; the HTP is simulated, so nothing here is a device's latency.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import compare, dlc, manifests, paths, quantize, runtime, targets, typesetting
from ..errors import (
    ConvertError,
    ParityError,
    SurgeryError,
    TranslationError,
    UsageError,
    counted,
)
from ..images import data
from ..measure import complexity
from ..models import gallery, zoo
from ..runtime import qnn
from ..targets import snpe
from . import planning, steps
from .settings import Listener

TARGET = "snpe-2.7"
CPU_IMAGES = 256
RECIPES = ("int8", "a16w8")


@dataclass(frozen=True)
class Step:
    """One stage: its title, its outcome as text, seconds on this machine."""

    title: str
    outcome: str
    seconds: float


@dataclass
class Journey:
    """What was made, what it cost, and the ladder.

    Attributes
    ----------
    model
        What was taken, in one line.
    steps
        In order.
    artifacts
        Name -> file.
    ladder, table
        Fidelity of every stage; the vendor's accuracy table for one image.
    notes
        What a reader must know, such as what is missing on this machine.
    failed
        Artifact -> why it failed its parity gate. It is kept for inspection, and has its row.
    """

    model: str = ""
    steps: list[Step] = field(default_factory=list)
    artifacts: dict[str, Path] = field(default_factory=dict)
    ladder: compare.Ladder | None = None
    table: compare.AccuracyTable | None = None
    notes: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every artifact passed its parity gate."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for ``--json``."""
        return {
            "model": self.model,
            "ok": self.ok,
            "failed": self.failed,
            "steps": [vars(step) for step in self.steps],
            "artifacts": {name: str(path) for name, path in self.artifacts.items()},
            "ladder": self.ladder.to_dict() if self.ladder else None,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        width = max(len(step.title) for step in self.steps)
        lines = [self.model, ""]
        lines += [f"  {s.title:<{width}}  {s.seconds:6.1f} s  {s.outcome}" for s in self.steps]
        parts = ["\n".join(lines), str(self.table or ""), str(self.ladder or "")]
        return "\n\n".join([part for part in parts if part] + self.notes)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        rows = [(s.title, f"{s.seconds:.1f} s", s.outcome) for s in self.steps]
        shown = [part._repr_html_() for part in (self.table, self.ladder) if part is not None]
        notes = [typesetting.paragraph(note) for note in self.notes]
        head = typesetting.paragraph(self.model) + typesetting.table((), rows)
        return "".join([head, *shown, *notes])


class _Log:
    """Collects the steps of a journey and reports each as it is done."""

    def __init__(self, journey: Journey, echo: Callable[[object], object]) -> None:
        self.journey, self.echo = journey, echo

    def keep(self, path: Path) -> Path:
        """Note an artifact."""
        self.journey.artifacts[path.name] = path
        return path

    def tell_gate(self, path: Path, gate: compare.GateReport, said: list[str]) -> None:
        """Say how the parity gate of an artifact went; the journey continues either way."""
        if gate.passed:
            assert gate.parity is not None  # what passed was compared
            said.append(f"gate passed on {counted(gate.parity.n, 'image')}: {gate.parity}")
            return
        why = "; ".join(gate.reasons)
        self.journey.failed[path.name] = why
        self.journey.notes.append(
            f"FAILED the parity gate: {path.name}. {why}. It is kept for inspection, not for use."
        )
        said.append(f"gate FAILED: {why}; {path.name} is kept for inspection")

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Time a block; it appends its outcome, as text, to the list that is yielded."""
        said: list[str] = []
        start = time.perf_counter()
        self.echo(f"== {title}")
        yield said
        done = Step(title, "; ".join(said), time.perf_counter() - start)
        self.journey.steps.append(done)
        self.echo(f"   {done.outcome}  [{done.seconds:.1f} s]")


@dataclass(frozen=True)
class _Trip:
    """What all steps of one journey share."""

    model: zoo.Model
    folder: Path
    images: int
    chip: qnn.Soc
    log: _Log
    listener: Listener
    pictures: Callable[[str, int], data.ImageSet]
    memory: qnn.Memory = field(default_factory=qnn.Memory)

    def gate_inputs(self) -> np.ndarray:
        """Return what artifacts are compared on: the first of the pictures that judge."""
        images = self.pictures("val", steps.GATE_IMAGES)
        return self.model.known_preprocessing()(np.asarray(images.images))

    def path(self, stage: str, detail: str) -> Path:
        return self.folder / manifests.file_name(self.model.name, stage, detail)


def run(
    name: str = "mobilenet_v3_large",
    weights: str = "auto",
    *,
    size: data.Size | None = None,
    images: int = 32,
    soc: str = "SM8550",
    folder: str | Path | None = None,
    pictures: str | Path | None = None,
    listener: Listener | None = None,
) -> Journey:
    """Take MobileNetV3 from PyTorch to an int8 Snapdragon artifact, comparing every step.

    Parameters
    ----------
    name, weights, size
        As in `zoo.load`.
    images
        Validation images per HTP row; the rows on the CPU see at least 256. The gates have run the
        first 32, and nothing is simulated twice.
    soc
        The chip that is compiled for and simulated.
    folder
        Where artifacts go; ``generated_models/`` by default. Running again overwrites them; of
        two journeys in one folder the second waits for the first.
    pictures
        A folder of your own (see `labutils.images.folder`): one part calibrates, another judges.
        By default those of `gallery.pictures`.
    listener
        Follows every line of the story, and the long loops; by default the lines are printed.

    Returns
    -------
    Journey
        Its ladder is also written to ``ladder.csv``. An artifact that fails its parity gate is
        kept as ``NAME.failed.dlc`` and has its row; `Journey.ok` is then False. Without Qualcomm's
        wheel the journey ends after the quantized ONNX files, and says so.

    Raises
    ------
    UsageError
        `name` is a file, `weights` do not go with it, or `folder` cannot be made.
    UnknownNameError
        There is no such model, kind of weights or chip.
    FetchError
        ``weights="imagenet"``, and the download failed.
    SurgeryError
        Nothing in the network is hard-swish or hard-sigmoid, or the replacement differs.
    ExportError, TranslationError, ConvertError
        PyTorch, the table or QNN does not take the network.
    """
    listener = listener or Listener(print)
    folder = Path(folder or paths.generated())
    chip = qnn.soc(soc)
    model = zoo.load(name, weights, size)
    if model.file is not None:
        raise UsageError(
            f"{model.name} is a file; the journey begins with a network in PyTorch. Use labutils "
            "diagnose, quantize and convert on files."
        )
    listener.echo(str(model))
    model, load = _pictures(model, pictures, listener)
    log = _Log(Journey(str(model)), listener.echo)
    wait = f"Another journey is writing into {folder}: waiting for it to finish."
    with paths.locked(folder, functools.partial(listener.echo, wait)):
        return _travel(_Trip(model, folder, images, chip, log, listener, load))


def _pictures(
    model: zoo.Model, root: str | Path | None, listener: Listener
) -> tuple[zoo.Model, Callable[[str, int], data.ImageSet]]:
    """Return the model, with the class names that a folder gives it, and what loads a part."""
    if root is None:
        return model, lambda part, n: gallery.pictures(model, n, part)
    model, found = gallery.in_folder(model, root, listener.progress)
    listener.echo(str(found))
    return model, gallery.loader(model, found)


def _travel(trip: _Trip) -> Journey:
    """Take every step in order, and return the results."""
    journey, wheel = trip.log.journey, qnn.probe()
    original = _export(trip)
    _diagnose(trip, original)
    patched_model, patched = _patch(trip)
    quantized = _quantize(trip, patched)
    stages = _cpu_stages(trip, patched_model, patched, quantized)
    if wheel.ok:
        made = _convert(trip, original[17], patched, quantized)
        _compile(trip, quantized["int8"])
        stages += _htp_stages(trip, made)
    else:
        journey.notes.append(f"No DLC and no HTP rows: {wheel.reason}")
    _run_ladder(trip, stages)
    return journey


def _export(trip: _Trip) -> dict[int, Path]:
    """Write the unpatched model at the two opsets that the vendor's two screenshots need."""
    made = {}
    with trip.log.step("export") as said:
        for opset in (13, 17):
            path = trip.path("export", f"opset{opset}")
            report = steps.export_model(trip.model, path, opset)
            made[opset] = trip.log.keep(path)
            said.append(f"opset {report.opset}: {sum(report.nodes.values())} nodes")
        weighed = complexity.count(made[17], trip.model.input_shape)
        said.append(f"{weighed.parameters / 1e6:.2f} M parameters, {weighed.macs / 1e6:.1f} M MACs")
    return made


def _diagnose(trip: _Trip, original: dict[int, Path]) -> None:
    """Say where the target's converter stops, and which rules would help."""
    with trip.log.step(f"diagnose for {TARGET}") as said:
        for opset, path in original.items():
            try:
                snpe.translate(path, path.with_suffix(".dlc"), echo=lambda line: None)
                said.append(f"opset {opset}: translates as it is")
            except TranslationError as error:
                said.append(f"opset {opset} stops at {error.op_type} in {error.module}")
        plan = planning.suggest(original[17], TARGET)
        said.append(", ".join(f"{rule} would repair {n}" for rule, n in plan.rules.items()))


def _patch(trip: _Trip) -> tuple[zoo.Model, Path]:
    """Replace the layers, export again, and check the table once more."""
    with trip.log.step("replace layers") as said:
        try:
            patched, report = steps.patch_model(trip.model)
        except SurgeryError as error:
            raise SurgeryError(
                f"The journey is about hard-swish and hard-sigmoid. {error}"
            ) from None
        said.append(", ".join(f"{n} {rule}" for rule, n in report.counts.items()))
        said.append(f"largest difference {report.check.max_error:.1e}" if report.check else "")
        path = trip.path("patch", "patched")
        steps.export_model(patched, path, 17, surgery=report.to_dict())
        check = targets.check(trip.log.keep(path), TARGET)
        said.append(f"{len(check.blockers)} of {len(check.nodes)} nodes block {TARGET} now")
    return patched, path


def _quantize(trip: _Trip, patched: Path) -> dict[str, Path]:
    """Write the QDQ files, from the same ranges."""
    made: dict[str, Path] = {}
    with trip.log.step("quantize") as said:
        images = trip.pictures("calib", steps.CALIBRATION_IMAGES)
        ranges = quantize.measure_ranges(
            patched, images, trip.model.preprocessing, trip.listener.progress
        )
        for recipe in RECIPES:
            path = trip.path("quantize", recipe)
            report = steps.quantize_file(trip.model, patched, path, ranges, recipe, pictures=images)
            made[recipe] = trip.log.keep(path)
            said.append(f"{recipe} {report.bytes_after / 1e6:.2f} MB")
        said.append(f"from {report.bytes_before / 1e6:.2f} MB")
    return made


def _convert(
    trip: _Trip, original: Path, patched: Path, quantized: dict[str, Path]
) -> dict[str, dlc.Conversion]:
    """Write the DLCs; the gate compares with the model as it was loaded, and keeps what fails."""
    made, model = {}, trip.model
    inputs = trip.gate_inputs()
    with runtime.connect(model.module, name=model.name) as reference:
        gate = dlc.Gate(
            reference, inputs, original,
            check_top1=model.trained, keep_failed=True, memory=trip.memory,
        )  # fmt: skip
        for precision in ("fp16", *RECIPES):
            with trip.log.step(f"convert to {precision} DLC") as said:
                qdq = quantized.get(precision)
                done = dlc.convert(
                    patched,
                    TARGET,
                    trip.path("convert", precision),
                    gate,
                    dlc.Device(trip.chip.name, precision),
                    quantized=qdq,
                    notes=dlc.Notes(facts=steps.facts_of(model) | _quantization_of(qdq)),
                )
                made[precision] = done
                said.append(f"{trip.log.keep(done.file).stat().st_size / 1e6:.2f} MB")
                trip.log.tell_gate(done.file, done.gate, said)
    passed = [done for done in made.values() if done.gate.passed]
    trip.log.journey.notes += [f"DLC: {done.claim}" for done in passed[:1]]
    return made


def _quantization_of(quantized: Path | None) -> dict[str, Any]:
    """Return what the manifest of a QDQ file says of its recipe, for what is made from it."""
    if quantized is None:
        return {}
    entry = manifests.read(quantized)
    keys = (
        "recipe", "recipe_sha256", "calibration", "pictures", "pictures_sha256", "quantization",
    )  # fmt: skip
    return {key: entry[key] for key in keys}


def _compile(trip: _Trip, quantized: Path) -> None:
    """Compile the int8 graph ahead of time, reload it, and compare it with the original."""
    model, soc = trip.model, trip.chip.name
    with trip.log.step(f"context binary for {soc}") as said:
        path = trip.path("compile", f"int8_{soc}")
        context = dlc.context_binary(quantized, path, soc)
        inputs = trip.gate_inputs()[:8]
        with (
            runtime.connect(model.module, name=model.name) as reference,
            runtime.connect(context.wrapper, "htp", soc=soc) as reloaded,
        ):
            try:
                gate = compare.gate(
                    reference, reloaded, inputs, kind="htp_int8", check_top1=False, locate=False
                )
            except ParityError as error:  # the ladder has to be seen all the same
                if not isinstance(error.report, compare.GateReport):
                    raise
                gate = error.report
        facts = {"soc": soc, "gate": gate.to_dict(), **_quantization_of(quantized)}
        steps.write_manifest(trip.log.keep(path), model, **facts)
        said.append(f"{path.stat().st_size / 1e6:.2f} MB for HTP v{context.soc.htp_arch}")
        trip.log.tell_gate(path, gate, said)


def _cpu_stages(
    trip: _Trip, patched_model: zoo.Model, patched: Path, quantized: dict[str, Path]
) -> list[compare.Stage]:
    n, model = max(trip.images, CPU_IMAGES), trip.model
    return [
        compare.Stage("PyTorch", runtime.connect(model.module, name=model.name), n=n),
        compare.Stage("patched", runtime.connect(patched_model.module, name="patched"), n=n),
        compare.Stage("ONNX", runtime.connect(patched), n=n),
        compare.Stage("int8 CPU", runtime.connect(quantized["int8"]), n=n),
    ]


def _htp_stages(trip: _Trip, made: dict[str, dlc.Conversion]) -> list[compare.Stage]:
    """Every HTP row executes its own DLC, and is marked where that failed its gate."""
    found = []
    for precision, done in made.items():
        name = f"HTP {precision}" + ("" if done.gate.passed else " FAILED")
        try:
            runner = runtime.connect(done.file, soc=trip.chip.name, memory=trip.memory)
        except ConvertError as error:
            if done.gate.passed:
                raise
            trip.log.journey.notes.append(f"No row for {done.file.name}: {error}")
            continue
        found.append(compare.Stage(name, runner, n=trip.images))
    return found


def _run_ladder(trip: _Trip, stages: list[compare.Stage]) -> None:
    """Run every stage, write ``ladder.csv``, and close the runners."""
    model, journey = trip.model, trip.log.journey
    with trip.log.step("compare") as said:
        total = max(stage.n or 0 for stage in stages)
        images = trip.pictures("val", total)
        if images.labels.min() == data.NO_LABEL:
            journey.notes.append(
                f"Top-1 is unknown, agreement with PyTorch is not: {images.source}."
            )
        preprocessing = model.known_preprocessing()
        journey.ladder = compare.ladder(
            stages, images, preprocessing, progress=trip.listener.progress
        )
        first, truth = np.asarray(images.images[0]), gallery.truth(images, 0)
        journey.table = compare.accuracy_table(stages, first, preprocessing, model.classes, truth)
        journey.artifacts["ladder.csv"] = journey.ladder.to_csv(trip.folder / "ladder.csv")
        said.append(f"{len(stages)} stages on up to {len(images)} images, ladder.csv")
    for stage in stages:
        stage.runner.close()
