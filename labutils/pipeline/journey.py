"""The whole way in one call: PyTorch -> ONNX -> repaired -> DLC -> int8 -> simulated Snapdragon.

`run` does what the notebooks do, with the same functions, and ends in the fidelity ladder. Every
artifact lies in ``generated_models/`` with a manifest beside it. What each step cost is host time,
on this machine; the HTP is simulated, so nothing here is a device's latency.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import (
    compare,
    dlc,
    export,
    paths,
    pipeline,
    quantize,
    runtime,
    surgery,
    targets,
    typesetting,
)
from ..errors import SurgeryError, TranslationError, UsageError, counted
from ..images import data
from ..measure import complexity
from ..models import gallery, zoo
from ..runtime import qnn
from ..targets import snpe

TARGET = "snpe-2.7"
CPU_IMAGES = 256
RECIPES = ("int8", "a16w8")


@dataclass(frozen=True)
class Step:
    """One stage: its title, what came out in words, seconds on this machine."""

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
    """

    model: str = ""
    steps: list[Step] = field(default_factory=list)
    artifacts: dict[str, Path] = field(default_factory=dict)
    ladder: compare.Ladder | None = None
    table: compare.AccuracyTable | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for ``--json``."""
        return {
            "model": self.model,
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
    """Collects the steps of a journey and says each as it is done."""

    def __init__(self, journey: Journey, echo: Callable[[object], object]) -> None:
        self.journey, self.echo = journey, echo

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Time a block; it appends its outcome, in words, to the list that is yielded."""
        said: list[str] = []
        start = time.perf_counter()
        self.echo(f"== {title}")
        yield said
        done = Step(title, "; ".join(said), time.perf_counter() - start)
        self.journey.steps.append(done)
        self.echo(f"   {done.outcome}  [{done.seconds:.1f} s]")


def run(
    name: str = "mobilenet_v3_large",
    weights: str = "auto",
    *,
    size: int | None = None,
    images: int = 96,
    soc: str = "SM8550",
    folder: str | Path | None = None,
    echo: Callable[[object], object] = print,
    progress: Callable[[Iterable, str], Iterable] | None = None,
) -> Journey:
    """Take MobileNetV3 from PyTorch to an int8 Snapdragon artifact, comparing every step.

    Parameters
    ----------
    name, weights, size
        As in `zoo.load`.
    images
        Validation images per HTP row; the rows on the CPU see at least 256.
    soc
        The chip that is compiled for and simulated.
    folder
        Where artifacts go; ``generated_models/`` by default. Running again overwrites them; of
        two journeys in one folder the second waits for the first.
    echo
        Called with every line of the story.
    progress
        ``progress(iterable, description) -> iterable`` around long loops.

    Returns
    -------
    Journey
        Its ladder is also written to ``ladder.csv``. Without Qualcomm's wheel the journey ends
        after the quantized ONNX files, and says so.

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
    ParityError
        An artifact runs, and computes something else.
    """
    folder = Path(folder or paths.generated())
    chip = qnn.soc(soc)
    model = zoo.load(name, weights, size)
    if model.file is not None:
        raise UsageError(
            f"{model.name} is a file; the journey begins with a network in PyTorch. Use labutils "
            "diagnose, quantize and convert on files."
        )
    echo(str(model))
    log = _Log(Journey(str(model)), echo)
    waiting = functools.partial(echo, f"Another journey writes into {folder}: waiting for its end.")
    with paths.locked(folder, waiting):
        return _traveled(model, images, chip, folder, log, progress)


def _traveled(
    model: zoo.Model, images: int, chip: qnn.Soc, folder: Path, log: _Log, progress: Callable | None
) -> Journey:
    journey, soc = log.journey, chip.name
    original = _exported(model, folder, log)
    _diagnosed(original, log)
    patched_module, patched = _patched(model, folder, log)
    quantized = _quantized(model, patched, folder, log, progress)
    stages = _cpu_stages(model, patched_module, patched, quantized, max(images, CPU_IMAGES))
    available = qnn.probe()
    if available.ok:
        made = _converted(model, original[17], patched, quantized, folder, soc, log)
        stages += _htp_stages(made, chip.name, images)
    else:
        journey.notes.append(f"No DLC and no HTP rows: {available.reason}")
    _compared(model, stages, folder, log, progress)
    return journey


def _exported(model: zoo.Model, folder: Path, log: _Log) -> dict[int, Path]:
    """Write the unpatched model at the two opsets that the vendor's two screenshots need."""
    made, stem = {}, paths.stem_of(model.name)
    with log.step("export") as said:
        for opset in (13, 17):
            path = folder / f"01_{stem}_opset{opset}.onnx"
            report = export.to_onnx(model, path, opset=opset)
            made[opset] = path
            _record(log, path, model, opset=report.opset, cosine=report.cosine)
            said.append(f"opset {report.opset}: {sum(report.nodes.values())} nodes")
        weighed = complexity.count(made[17], model.input_shape)
        said.append(f"{weighed.parameters / 1e6:.2f} M parameters, {weighed.macs / 1e6:.1f} M MACs")
    return made


def _diagnosed(original: dict[int, Path], log: _Log) -> None:
    with log.step(f"diagnose for {TARGET}") as said:
        for opset, path in original.items():
            try:
                snpe.translate(path, path.with_suffix(".dlc"), echo=lambda line: None)
                said.append(f"opset {opset}: translates as it is")
            except TranslationError as error:
                said.append(f"opset {opset} stops at {error.op_type} in {error.module}")
        plan = pipeline.suggest(original[17], TARGET)
        said.append(", ".join(f"{rule} would repair {n}" for rule, n in plan.rules.items()))


def _patched(model: zoo.Model, folder: Path, log: _Log) -> tuple[Any, Path]:
    with log.step("replace layers") as said:
        module = copy.deepcopy(model.module)
        try:
            report = surgery.replace_(module, example_inputs=_example(model))
        except SurgeryError as error:
            raise SurgeryError(
                f"The journey is about hard-swish and hard-sigmoid. {error}"
            ) from None
        said.append(", ".join(f"{n} {rule}" for rule, n in report.counts.items()))
        said.append(f"largest difference {report.check.max_error:.1e}" if report.check else "")
        path = folder / f"03_{paths.stem_of(model.name)}_patched.onnx"
        exported = export.to_onnx(_like(model, module), path, opset=17)
        _record(log, path, model, opset=exported.opset, surgery=report.to_dict())
        check = targets.check(path, TARGET)
        said.append(f"{len(check.blockers)} of {len(check.nodes)} nodes block {TARGET} now")
    return module, path


def _quantized(
    model: zoo.Model, patched: Path, folder: Path, log: _Log, progress: Callable | None
) -> dict[str, Path]:
    made = {}
    with log.step("quantize") as said:
        calibration = gallery.pictures(model, pipeline.CALIBRATION_IMAGES, "calib")
        ranges = quantize.measure_ranges(
            patched, calibration, preprocessing=model.preprocessing, progress=progress
        )
        for recipe in RECIPES:
            path = folder / f"05_{paths.stem_of(model.name)}_{recipe}.onnx"
            report = quantize.static(patched, path, ranges, recipe)
            made[recipe] = path
            _record(log, path, model, opset=report.opset, **report.facts())
            said.append(f"{recipe} {report.bytes_after / 1e6:.2f} MB")
        said.append(f"from {report.bytes_before / 1e6:.2f} MB")
    return made


def _converted(
    model: zoo.Model,
    original: Path,
    patched: Path,
    quantized: dict[str, Path],
    folder: Path,
    soc: str,
    log: _Log,
) -> dict[str, Path]:
    """Write and gate the DLCs; the gate compares with the model as it was loaded."""
    made = {}
    images = data.load("val", pipeline.GATE_IMAGES, model.preprocessing.size)
    inputs = model.preprocessing(np.asarray(images.images))
    with runtime.connect(model.module) as reference:
        for precision in ("fp16", *RECIPES):
            with log.step(f"convert to {precision} DLC") as said:
                done = dlc.convert(
                    patched,
                    TARGET,
                    folder / f"04_{paths.stem_of(model.name)}_{precision}.dlc",
                    reference=reference,
                    inputs=inputs,
                    original=original,
                    quantized=quantized.get(precision),
                    precision=precision,
                    soc=soc,
                    check_top1=model.trained,
                    facts=pipeline.facts(model) | _quantization(quantized.get(precision)),
                )
                made[precision] = done.file
                log.journey.artifacts[done.file.name] = done.file
                said.append(f"{done.file.stat().st_size / 1e6:.2f} MB")
                said.append(f"gate passed on {counted(len(inputs), 'image')}: {done.gate.parity}")
    log.journey.notes.append(f"DLC: {done.claim}")
    _compiled(model, quantized["int8"], folder, soc, log, inputs)
    return made


def _quantization(quantized: Path | None) -> dict[str, Any]:
    """Return what the manifest of a QDQ file says of its recipe, for what is made from it."""
    if quantized is None:
        return {}
    entry = paths.read_manifest(quantized)
    return {key: entry[key] for key in ("recipe", "recipe_sha256", "calibration", "quantization")}


def _compiled(
    model: zoo.Model, quantized: Path, folder: Path, soc: str, log: _Log, inputs: np.ndarray
) -> None:
    """Compile the int8 graph ahead of time, reload it, and compare it with the original."""
    with log.step(f"context binary for {soc}") as said:
        path = folder / f"06_{paths.stem_of(model.name)}_int8_{soc}.bin"
        context = dlc.context_binary(quantized, path, soc)
        with (
            runtime.connect(model.module) as reference,
            runtime.connect(context.wrapper, "htp", soc=soc) as reloaded,
        ):
            gate = compare.gate(
                reference, reloaded, inputs[:8], kind="htp_int8", check_top1=False, locate=False
            )
        _record(log, path, model, soc=soc, gate=gate.to_dict(), **_quantization(quantized))
        said.append(f"{path.stat().st_size / 1e6:.2f} MB for HTP v{context.soc.htp_arch}")
        said.append(f"gate passed: {gate.parity}")


def _cpu_stages(
    model: zoo.Model, patched_module: Any, patched: Path, quantized: dict[str, Path], n: int
) -> list[compare.Stage]:
    return [
        compare.Stage("PyTorch", runtime.connect(model.module, name=model.name), n=n),
        compare.Stage("patched", runtime.connect(patched_module, name="patched"), n=n),
        compare.Stage("ONNX", runtime.connect(patched), n=n),
        compare.Stage("int8 CPU", runtime.connect(quantized["int8"]), n=n),
    ]


def _htp_stages(made: dict[str, Path], soc: str, n: int) -> list[compare.Stage]:
    """Every HTP row executes its own DLC."""
    return [
        compare.Stage(f"HTP {precision}", runtime.connect(file, soc=soc), n=n)
        for precision, file in made.items()
    ]


def _compared(
    model: zoo.Model,
    stages: list[compare.Stage],
    folder: Path,
    log: _Log,
    progress: Callable | None,
) -> None:
    journey = log.journey
    with log.step("compare") as said:
        total = max(stage.n or 0 for stage in stages)
        images = gallery.pictures(model, total)
        if images.labels.min() == data.NO_LABEL:
            journey.notes.append(
                f"Top-1 is unknown, agreement with PyTorch is not: {images.source}."
            )
        journey.ladder = compare.ladder(stages, images, model.preprocessing, progress=progress)
        first, truth = np.asarray(images.images[0]), gallery.truth(images, 0)
        journey.table = compare.accuracy_table(
            stages, first, model.preprocessing, model.classes, truth
        )
        journey.artifacts["ladder.csv"] = journey.ladder.to_csv(folder / "ladder.csv")
        said.append(f"{len(stages)} stages on up to {len(images)} images, ladder.csv")
    for stage in stages:
        stage.runner.close()


def _example(model: zoo.Model) -> Any:
    import torch

    image = data.load("val", 1, model.preprocessing.size).images
    return torch.from_numpy(model.preprocessing(np.asarray(image)))


def _like(model: zoo.Model, module: Any) -> zoo.Model:
    return replace(model, module=module, note=f"{model.note}, layers replaced")


def _record(log: _Log, path: Path, model: zoo.Model, **facts: Any) -> None:
    log.journey.artifacts[path.name] = path
    paths.record(path, {**pipeline.facts(model), **facts})
