"""A phone on a cable: push a context binary, let Qualcomm's qnn-net-run run it, pull the logits.

It needs ``adb`` (Android's platform tools) and ``QNN_SDK_ROOT`` (Qualcomm's SDK, which may not be
redistributed: the runner for Android and the libraries for the phone's HTP are in it). `plan` shows
every command and needs neither; `run` carries a plan out; `connect` makes it a runner.

Not run on a phone by us: tested against a fake adb. The commands follow Qualcomm's "AI Engine
Direct" tutorials (docs.qualcomm.com, 80-63442-10: HTP backend on Android; qnn-net-run) and the
Qualcomm page of ExecuTorch's documentation.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import paths, typesetting
from ..errors import LabError, MissingToolError, ModelFileError, UsageError, counted
from ..onnxfile import graph
from . import outputs, qnn
from .adb import (
    SDK,
    DeviceError,
    PhoneRunError,
    Step,
    call,
    choose,
    devices,
    missing,
    quoted,
)

__all__ = ["DeviceError", "PhoneRunError", "PhoneRunner", "Plan", "Step", "choose", "connect"]
__all__ += ["devices", "missing", "plan", "run", "sdk_files"]

LABEL = "Not run on a phone by us: these commands are tested against a fake adb."
FOLDER = "/data/local/tmp/mobilenetv3-edge-lab"
"""On the phone: our own folder in the one place where the shell user may execute files."""


@dataclass(frozen=True, repr=False)
class Plan(typesetting.Shown):
    """What happens on the phone, command by command.

    Attributes
    ----------
    soc
        The chip that the context binary was compiled for.
    prepare, compute, finish
        Once per connection; once per batch; at the end, whatever happened.
    outputs, n
        The output tensors, name -> shape for one image; number of images.
    folder
        On this machine: the raw inputs lie here, and the outputs will.
    """

    soc: qnn.Soc
    prepare: tuple[Step, ...]
    compute: tuple[Step, ...]
    finish: tuple[Step, ...]
    outputs: dict[str, tuple[int, ...]]
    n: int
    folder: Path = field(repr=False)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in order."""
        return self.prepare + self.compute + self.finish

    @property
    def commands(self) -> list[list[str]]:
        """The commands as lists, as `subprocess` gets them."""
        return [list(step.command) for step in self.steps]

    def _shown(self, step: Step) -> str:
        """Return a command without this machine's folders."""
        text = str(step)
        for path, name in ((os.environ.get("QNN_SDK_ROOT"), SDK), (self.folder.parent, ".")):
            text = text.replace(str(path), name) if path else text
        return text

    def _heading(self) -> str:
        return f"{len(self.steps)} commands for {counted(self.n, 'image')} on a {self.soc}. {LABEL}"

    def __str__(self) -> str:
        lines = [f"# {step.purpose}\n{self._shown(step)}" for step in self.steps]
        return "\n".join([self._heading(), *lines])

    def _repr_html_(self) -> str:
        rows = [
            (str(i), step.purpose, typesetting.code(self._shown(step)))
            for i, step in enumerate(self.steps, 1)
        ]
        return typesetting.table(("#", "why", "command"), rows, self._heading())


def plan(
    context_binary: str | Path,
    inputs: np.ndarray,
    soc: str | qnn.Soc = "SM8550",
    *,
    serial: str | None = None,
    folder: str | Path | None = None,
) -> Plan:
    """Return the commands that run a context binary on a phone, and write its raw inputs.

    Parameters
    ----------
    context_binary
        From `targets.dlc.context_binary`, with its ``.ctx.onnx`` beside it: that names the tensors.
    inputs
        (n, channels, height, width) float32, normalized: layout and type of the binary's input.
    soc
        The chip that it was compiled for.
    serial
        Which phone; default is the only one.
    folder
        Where raw inputs and outputs go; default is ``phone/`` beside the context binary.

    Raises
    ------
    ModelFileError
        The binary or its wrapper is missing, or its tensors are not one float32 image each.
    UsageError
        The inputs do not fit.
    """
    binary, chip = Path(context_binary).absolute(), qnn.soc(soc)
    (name, shape), given = _tensors(binary)
    if inputs.dtype != np.float32 or inputs.shape[1:] != shape[1:] or not len(inputs):
        raise UsageError(
            f"{binary.name} takes float32 (n, {', '.join(map(str, shape[1:]))}), not "
            f"{inputs.dtype} {inputs.shape}."
        )
    folder = Path(folder or binary.parent / "phone").absolute()
    _write_inputs(folder, name, inputs)
    adb = ("adb", "-s", serial) if serial else ("adb",)
    return Plan(
        chip, _prepare(adb, binary, chip), _compute(adb, binary, folder),
        (Step("leave nothing behind", (*adb, "shell", quoted("rm", "-rf", FOLDER))),),
        {output: out_shape[1:] for output, out_shape in given.items()}, len(inputs), folder,
    )  # fmt: skip


def sdk_files(soc: str | qnn.Soc) -> tuple[str, ...]:
    """Return what a phone with this chip needs of the SDK, relative to ``QNN_SDK_ROOT``."""
    arch = qnn.soc(soc).htp_arch
    return (
        "bin/aarch64-android/qnn-net-run",
        "lib/aarch64-android/libQnnHtp.so",
        f"lib/aarch64-android/libQnnHtpV{arch}Stub.so",
        "lib/aarch64-android/libQnnSystem.so",
        f"lib/hexagon-v{arch}/unsigned/libQnnHtpV{arch}Skel.so",
    )


_WHY = {
    "qnn-net-run": "Qualcomm's runner",
    "libQnnHtp.so": "the HTP backend, on the phone's CPU",
    "Stub.so": "its connection to this generation of HTP",
    "libQnnSystem.so": "reads the context binary",
    "Skel.so": "the part that runs on the HTP itself",
}


def _prepare(adb: tuple[str, ...], binary: Path, chip: qnn.Soc) -> tuple[Step, ...]:
    root = os.environ.get("QNN_SDK_ROOT") or SDK
    fresh = f"{quoted('rm', '-rf', FOLDER)} && {quoted('mkdir', '-p', FOLDER)}"
    steps = [
        Step("ask the phone for its chip", (*adb, "shell", quoted("getprop", "ro.soc.model"))),
        Step("a fresh folder on the phone", (*adb, "shell", fresh)),
    ]
    for file in sdk_files(chip):
        why = next(text for end, text in _WHY.items() if file.endswith(end))
        steps.append(Step(why, (*adb, "push", f"{root}/{file}", f"{FOLDER}/")))
    runner = quoted("chmod", "755", f"{FOLDER}/qnn-net-run")
    return (
        *steps,
        Step("the context binary", (*adb, "push", str(binary), f"{FOLDER}/")),
        Step("make the runner executable", (*adb, "shell", runner)),
    )


def _compute(adb: tuple[str, ...], binary: Path, folder: Path) -> tuple[Step, ...]:
    old = quoted("rm", "-rf", f"{FOLDER}/inputs", f"{FOLDER}/output")
    where = f"LD_LIBRARY_PATH={shlex.quote(FOLDER)} ADSP_LIBRARY_PATH={shlex.quote(FOLDER)}"
    called = quoted(
        "./qnn-net-run", "--backend", "libQnnHtp.so", "--retrieve_context", binary.name,
        "--input_list", "input_list.txt", "--output_dir", "output",
    )  # fmt: skip
    # adb joins what follows "shell" with blanks, and the phone's shell splits it again: so it is
    # one string, quoted for that shell
    line = f"cd {shlex.quote(FOLDER)} && {where} {called}"
    return (
        Step("no inputs or outputs of an earlier run", (*adb, "shell", old)),
        Step("the images, raw", (*adb, "push", f"{folder}/inputs", f"{FOLDER}/")),
        Step("their list", (*adb, "push", f"{folder}/input_list.txt", f"{FOLDER}/")),
        Step("run", (*adb, "shell", line)),
        Step("fetch the logits", (*adb, "pull", f"{FOLDER}/output", str(folder))),
    )


def run(plan: Plan) -> np.ndarray:
    """Carry a plan out and return the logits, float32 (n, classes); the phone is cleaned up.

    Of several outputs, it is the one that has a classifier's scores.

    Raises
    ------
    MissingToolError
        No adb, no SDK, or a file that the SDK lacks.
    DeviceError
        No phone that can be used, or one with another chip.
    UsageError
        Several phones and no serial.
    PhoneRunError
        A command failed (its last words are in the message), or outputs are missing or short.
    """
    _require(plan)
    try:
        _carry_out(plan, plan.prepare)
        _carry_out(plan, plan.compute)
        return _scores(_read(plan), _scores_name(plan.outputs))
    finally:
        with contextlib.suppress(LabError):  # the first error is the news
            _carry_out(plan, plan.finish)


class PhoneRunner:
    """A context binary on a phone, as the gate and the ladder want it (`runtime.Runner`).

    Libraries and binary are pushed at the first batch and removed by `close`.
    """

    def __init__(
        self, file: Path, soc: qnn.Soc, serial: str, folder: Path | None, output: str
    ) -> None:
        self.file: Path | None = file
        self._model = file
        self.name = file.name
        self.soc, self.serial, self.folder = soc, serial, folder
        self.runtime = f"phone over adb (qnn-net-run on the HTP, {soc.name})"
        self.output = output
        self._last: Plan | None = None

    def __enter__(self) -> PhoneRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return logits, float32 (n, classes), for images, float32 (n, channels, height, width)."""
        return _scores(self.tensors(batch), self.output)

    def tensors(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output by name, images along the first axis."""
        todo = plan(self._model, batch, self.soc, serial=self.serial, folder=self.folder)
        first, self._last = self._last is None, todo
        if first:
            _require(todo)
            _carry_out(todo, todo.prepare)
        _carry_out(todo, todo.compute)
        return _read(todo)

    def close(self) -> None:
        """Remove everything from the phone again."""
        last, self._last = self._last, None
        if last is not None:
            with contextlib.suppress(LabError):
                _carry_out(last, last.finish)


def connect(
    context_binary: str | Path,
    soc: str = "SM8550",
    *,
    serial: str | None = None,
    folder: str | Path | None = None,
    output: str | None = None,
) -> PhoneRunner:
    """Return a runner for a context binary on a phone; parameters as of `plan`, errors of `run`.

    `output` says which output has a classifier's scores, where there are several.
    """
    binary, chip = Path(context_binary), qnn.soc(soc)
    _, given = _tensors(binary)
    scores = _scores_name({name: shape[1:] for name, shape in given.items()}, output)
    _require_tools(chip)
    return PhoneRunner(binary, chip, choose(serial), Path(folder) if folder else None, scores)


# --- what a plan is made of ---------------------------------------------------------------------


def _tensors(binary: Path) -> tuple[tuple[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return (name, shape) of the input, and the outputs' shapes by name.

    They are from the wrapper that QNN wrote with the binary.
    """
    wrapper = binary.with_name(binary.stem + ".ctx.onnx")
    if not binary.is_file() or not wrapper.is_file():
        gone = wrapper.name if binary.is_file() else binary.name
        raise ModelFileError(f"There is no {gone}: make it with dlc.context_binary(...).")
    model = graph.read(wrapper)
    if len(model.graph.input) != 1:
        raise ModelFileError(f"{binary.name} has {len(model.graph.input)} inputs; one is expected.")
    found: dict[str, dict[str, tuple[int, ...]]] = {"input": {}, "output": {}}
    ends = [("input", value) for value in model.graph.input]
    for kind, value in [*ends, *(("output", value) for value in model.graph.output)]:
        tensor, name = value.type.tensor_type, value.name
        shape = tuple(d.dim_value for d in tensor.shape.dim)
        if tensor.elem_type != 1 or not shape or shape[0] != 1 or 0 in shape:  # 1: float32
            raise ModelFileError(
                f"{binary.name}: {kind} {name} is not float32 for one image; the phone path "
                "writes raw float32, so the bytes would be read as something else."
            )
        if not re.fullmatch(r"\w+", name):  # it becomes a file name on the phone
            raise ModelFileError(f"{binary.name}: rename {kind} {name!r} to letters and digits.")
        found[kind][name] = shape
    return next(iter(found["input"].items())), found["output"]


def _scores_name(shapes: dict[str, tuple[int, ...]], wanted: str | None = None) -> str:
    known = [outputs.Output(name, (1, *shape)) for name, shape in shapes.items()]
    return outputs.scores_of(known, wanted, "the context binary")


def _scores(found: dict[str, np.ndarray], name: str) -> np.ndarray:
    return outputs.as_scores(found[name]) if name else next(iter(found.values()))


def _write_inputs(folder: Path, name: str, inputs: np.ndarray) -> None:
    raw = folder / "inputs"
    shutil.rmtree(raw, ignore_errors=True)  # an earlier batch may have had more
    paths.folder(raw)
    lines = []
    for i, image in enumerate(inputs):
        np.ascontiguousarray(image, "<f4").tofile(raw / f"{i:04d}.raw")
        lines.append(f"{name}:=inputs/{i:04d}.raw")
    paths.write_text(folder / "input_list.txt", "\n".join(lines) + "\n")


# --- carrying it out ----------------------------------------------------------------------------


def _require(plan: Plan) -> None:
    _require_tools(plan.soc)
    command = plan.prepare[0].command
    choose(command[2] if command[1] == "-s" else None)


def _require_tools(chip: qnn.Soc) -> None:
    lacks = missing()
    if lacks:
        raise MissingToolError(" ".join(lacks))
    root = Path(os.environ["QNN_SDK_ROOT"])
    for file in sdk_files(chip):
        if not (root / file).is_file():
            raise MissingToolError(
                f"The SDK at QNN_SDK_ROOT has no {file}, which {chip} needs: is it an SDK for "
                "Android, and new enough for this chip?"
            )


def _carry_out(plan: Plan, steps: tuple[Step, ...]) -> None:
    for step in steps:
        if "pull" in step.command:
            shutil.rmtree(plan.folder / "output", ignore_errors=True)  # never read a stale one
        said = call(step)
        if step.purpose == "ask the phone for its chip":
            _refuse_other_chip(said.strip(), plan.soc)


def _refuse_other_chip(found: str, chip: qnn.Soc) -> None:
    """Stop when the phone says it is another chip; old Androids (before 12) say nothing."""
    if found and not found.upper().startswith(chip.name):
        raise DeviceError(
            f"This phone's chip is {found}, and the context binary was compiled for {chip}. "
            "Compile one for the phone: dlc.context_binary(..., soc=...); qnn.SOCS lists chips."
        )


def _read(plan: Plan) -> dict[str, np.ndarray]:
    return {name: _values(plan, name, shape) for name, shape in plan.outputs.items()}


def _values(plan: Plan, output: str, shape: tuple[int, ...]) -> np.ndarray:
    rows, size = [], int(np.prod(shape))
    for i in range(plan.n):
        file = plan.folder / "output" / f"Result_{i}" / f"{output}.raw"
        if not file.is_file():
            raise PhoneRunError(
                f"The phone gave no {output}.raw for image {i} of {plan.n}: qnn-net-run "
                "stopped early, or names its outputs differently."
            )
        values = np.fromfile(file, "<f4")
        if values.size != size or file.stat().st_size != 4 * size:
            raise PhoneRunError(
                f"{output}.raw of image {i} has {file.stat().st_size} bytes; {size} float32 "
                f"values are {4 * size}. Is it written in another type?"
            )
        rows.append(values.astype(np.float32).reshape(shape))
    return np.stack(rows)
