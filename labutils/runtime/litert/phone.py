"""A ``.tflite`` on a phone: push it and Google's benchmark_model, read the time that it prints.

The same file that runs here runs on a phone. ``benchmark_model`` is a program of TensorFlow Lite's
for Android; Google publishes it as a binary, and it needs no SDK. It is fed random values, so it
tells the time and not the answers. Nothing is downloaded: say where the program is.

Not run on a phone by us: tested against a fake adb. The options are those of the documentation
("Performance measurement", ai.google.dev/edge/litert/models/measurement). Notebook 06 shows a plan.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from ... import typesetting
from ...errors import LabError, MissingToolError, UsageError
from ..adb import PhoneRunError, Step, call, choose, quoted
from .tflite_file import checked

LABEL = "Not run on a phone by us: these commands are tested against a fake adb."
FOLDER = "/data/local/tmp/mobilenetv3-edge-lab"
DELEGATES = {
    "cpu": ("--use_xnnpack=true",),
    "gpu": ("--use_gpu=true",),
    "nnapi": ("--use_nnapi=true",),
}
"""What computes on the phone -> the option that asks for it."""

_AVERAGE = re.compile(r"Inference \(avg\): ([0-9.]+(?:e[+-]?[0-9]+)?)")
_KEPT = re.compile(r"Explicitly applied .* delegate, and the model graph will be (\w+)")


@dataclass(frozen=True, repr=False)
class Plan(typesetting.Shown):
    """What happens on the phone, command by command.

    Attributes
    ----------
    file
        The ``.tflite``.
    prepare, measure, finish
        Push; run; take away what was pushed, whatever happened.
    """

    file: Path
    prepare: tuple[Step, ...]
    measure: Step
    finish: Step

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in order."""
        return (*self.prepare, self.measure, self.finish)

    def __str__(self) -> str:
        head = f"{len(self.steps)} commands for {self.file.name}. {LABEL}"
        return "\n".join([head, *(f"# {step.purpose}\n{step}" for step in self.steps)])

    def _repr_html_(self) -> str:
        rows = [(step.purpose, typesetting.code(str(step))) for step in self.steps]
        return typesetting.table(("why", "command"), rows, f"{self.file.name}. {LABEL}")


@dataclass(frozen=True)
class Measured:
    """What benchmark_model told.

    Attributes
    ----------
    milliseconds
        Of one image, on average.
    delegate
        One of `DELEGATES`, as asked for.
    delegated
        How much of the graph it says that the delegate took (``completely``, ``partially``); ""
        where it says nothing.
    """

    milliseconds: float
    delegate: str
    delegated: str = ""


def plan(
    file: str | Path,
    benchmark_model: str | Path,
    *,
    delegate: str = "cpu",
    threads: int = 1,
    runs: int = 50,
    serial: str | None = None,
) -> Plan:
    """Return the commands that measure a ``.tflite`` on a phone; nothing is run.

    Parameters
    ----------
    file
        The ``.tflite``; it may be made later.
    benchmark_model
        Google's program, for the phone's processor (usually arm64-v8a).
    delegate
        One of `DELEGATES`.
    threads, runs
        Of the CPU; how many images are timed.
    serial
        Which phone; default is the only one.

    Raises
    ------
    UsageError
        No such delegate, or no threads or runs.
    """
    file, program = Path(file), Path(benchmark_model)
    if delegate not in DELEGATES:
        raise UsageError(f"delegate={delegate!r}: choose one of {', '.join(DELEGATES)}.")
    if threads < 1 or runs < 1:
        raise UsageError(f"threads={threads}, runs={runs}: at least one of each is needed.")
    adb = ("adb", "-s", serial) if serial else ("adb",)
    fresh = f"{quoted('rm', '-rf', FOLDER)} && {quoted('mkdir', '-p', FOLDER)}"
    there = f"{FOLDER}/benchmark_model"
    called = quoted(
        there, f"--graph={FOLDER}/model.tflite", f"--num_threads={threads}", f"--num_runs={runs}",
        "--warmup_runs=5", *DELEGATES[delegate],
    )  # fmt: skip
    return Plan(
        file,
        (
            Step("a fresh folder on the phone", (*adb, "shell", fresh)),
            Step("Google's program", (*adb, "push", str(program), there)),
            Step("the network", (*adb, "push", str(file), f"{FOLDER}/model.tflite")),
            Step("make the program executable", (*adb, "shell", quoted("chmod", "755", there))),
        ),
        Step(f"measure on the {delegate}", (*adb, "shell", f"{called} 2>&1")),
        Step("leave nothing behind", (*adb, "shell", quoted("rm", "-rf", FOLDER))),
    )


def run(plan: Plan) -> Measured:
    """Carry a plan out, and return the time of one image; the phone is cleaned up.

    Raises
    ------
    ModelFileError
        The file is missing, or not a ``.tflite``.
    MissingToolError
        No adb, or no benchmark_model where the plan says that it is.
    DeviceError
        No phone that can be used.
    PhoneRunError
        A command failed, or the program told no time.
    """
    checked(plan.file)
    program = Path(plan.prepare[1].command[-2])
    if not program.is_file():
        raise MissingToolError(
            f'There is no {program}. Get benchmark_model for Android from the page "Performance '
            "measurement\" of LiteRT's documentation, and pass its path."
        )
    words = plan.measure.command
    choose(words[2] if words[1] == "-s" else None)
    try:
        for step in plan.prepare:
            call(step)
        said = call(plan.measure)
    finally:
        with contextlib.suppress(LabError):  # the first error is the news
            call(plan.finish)
    return _told(said, plan)


def _told(said: str, plan: Plan) -> Measured:
    found = _AVERAGE.search(said)
    if not found:
        last = [line for line in said.splitlines() if line.strip()][-3:]
        raise PhoneRunError(
            f"benchmark_model told no time for {plan.file.name}: {' | '.join(last) or 'nothing'}",
            plan.measure.command,
        )
    asked = next(d for d, options in DELEGATES.items() if options[0] in plan.measure.command[-1])
    kept = _KEPT.search(said)
    return Measured(float(found.group(1)) / 1000, asked, kept.group(1) if kept else "")
