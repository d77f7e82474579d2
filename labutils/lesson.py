"""What a notebook imports: `start`, `check`, `hint`, `settle`, `given`, `expect_failure`.

`start` makes every notebook one that can be joined: it loads what the notebooks before it left
behind, or makes it, and says which. `check` judges, `settle` goes on with a solution in any case.
With ``LABUTILS_STRICT=1`` whatever is not solved is an error.
"""

from __future__ import annotations

import copy
import html
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import exercise, exercises, paths
from .errors import LabError, UnknownNameError, UsageError
from .exercise import PASSED, TODO, Result, UnsolvedError

if TYPE_CHECKING:
    from . import zoo

__all__ = [
    "TODO", "ExpectationError", "Hint", "Lesson", "Progress", "check", "expect_failure", "given",
    "hint", "settle", "show_progress", "start",
]  # fmt: skip

SEED = 0
CALIBRATION_IMAGES = 128
NOTEBOOKS = ("00", "01", "02", "03", "04", "05", "06")
FILES = {
    "opset13": "01_{model}_opset13.onnx",
    "opset17": "01_{model}_opset17.onnx",
    "patched": "03_{model}_patched.onnx",
    "int8": "05_{model}_int8.onnx",
    "a16w8": "05_{model}_a16w8.onnx",
}
"""What the notebooks leave behind, by the name that a cell uses."""

NEEDS = {
    "02": ("opset13", "opset17"),
    "03": ("opset13", "opset17"),
    "04": ("opset13", "opset17", "patched"),
    "05": ("patched",),
    "06": ("patched", "int8", "a16w8"),
}
"""What a notebook needs of those before it."""

_passed: dict[str, Any] = {}  # the learner's own answers of this process that passed


class ExpectationError(LabError):
    """A cell that was to fail has succeeded."""


# --- start --------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Lesson:
    """What a notebook works with.

    Attributes
    ----------
    notebook
        Its number.
    model
        The network, with weights, preprocessing and classes; None in ``00``.
    files
        Name -> file, of what the earlier notebooks left (names in `FILES`).
    """

    notebook: str
    model: zoo.Model | None = field(default=None, repr=False)
    files: dict[str, Path] = field(default_factory=dict)

    def __repr__(self) -> str:
        names = ", ".join(path.name for path in self.files.values()) or "no files"
        return f"Lesson {self.notebook}: {names}"  # no absolute paths: notebooks show it

    def path(self, name: str) -> Path:
        """Return where the artifact called `name` belongs, whether it is there or not."""
        return _path(name, self._model())

    def keep(self, name: str, **facts: Any) -> Path:
        """Write the manifest of an artifact that this notebook made; later ones look for it."""
        path = self.path(name)
        _record(path, self._model(), **facts)
        self.files[name] = path
        return path

    def _model(self) -> zoo.Model:
        if self.model is None:
            raise UsageError(f"Notebook {self.notebook} works without a model and makes no files.")
        return self.model


def start(
    notebook: str,
    model: str = "mobilenet_v3_large",
    weights: str = "auto",
    *,
    size: int | None = None,
    echo: Callable[[str], object] = print,
) -> Lesson:
    """Begin a notebook: seed, say what this machine can do, load or make what is needed.

    Parameters
    ----------
    notebook
        Its number, such as ``"03"``.
    model, weights, size
        As in `zoo.load`; the same in every notebook, or the files are made again.
    echo
        Called with each line.

    Raises
    ------
    UnknownNameError
        There is no such notebook.
    """
    if notebook not in NOTEBOOKS:
        raise UnknownNameError("notebook", str(notebook), NOTEBOOKS)
    _seed()
    for id in [id for id in _passed if id.startswith(notebook)]:
        del _passed[id]
    echo(f"Notebook {notebook}. Random numbers start from seed {SEED}.")
    _say_capabilities(echo)
    if notebook == "00":
        return Lesson(notebook)
    from . import zoo

    loaded = zoo.load(model, weights, size)
    echo(str(loaded))
    lesson = Lesson(notebook, loaded)
    needed = NEEDS.get(notebook, ())
    for name in needed:
        lesson.files[name] = _loaded_or_made(name, loaded, echo)
    if not needed:
        echo("It needs no file of an earlier notebook.")
    return lesson


def _seed() -> None:
    import numpy as np
    import torch

    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


def _say_capabilities(echo: Callable[[str], object]) -> None:
    from . import doctor

    findings = doctor.examine().findings
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        state = "present" if finding.present else "absent"
        cure = "" if finding.present else f"  {finding.cure}"
        echo(f"  {finding.name:<{width}}  {state}{cure}")


def _path(name: str, model: zoo.Model) -> Path:
    if name not in FILES:
        raise UnknownNameError("artifact of the notebooks", name, FILES)
    return paths.generated() / FILES[name].format(model=model.name.replace(":", "_"))


def _loaded_or_made(name: str, model: zoo.Model, echo: Callable[[str], object]) -> Path:
    path = _path(name, model)
    problem = _problem(path, model)
    if not problem:
        echo(f"Loaded {path.name}, which an earlier notebook left.")
        return path
    echo(f"Making {path.name} ({problem}) ...")
    if name.startswith("opset"):
        _export(model, path, int(name.removeprefix("opset")))
    elif name == "patched":
        _export(_patched(model), path, 17)
    else:
        _quantize(model, path, name, _loaded_or_made("patched", model, echo))
    return path


def _problem(path: Path, model: zoo.Model) -> str:
    """Say why the file cannot be used for this model, "" when it can."""
    if not path.is_file():
        return "it is not there"
    try:
        manifest = json.loads(path.with_name(f"{path.name}.manifest.json").read_text("utf-8"))
        same = manifest["model"]["weights"] == model.weights
        same &= manifest["preprocessing"]["size"] == model.preprocessing.size
        digest = manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return "the one there has no manifest"
    if not same:
        return "the one there was made with other weights or another size"
    return "" if digest == paths.sha256(path) else "the one there was changed"


def _export(model: zoo.Model, path: Path, opset: int) -> None:
    from . import export

    report = export.to_onnx(model, path, opset=opset)
    _record(path, model, opset=report.opset)


def _patched(model: zoo.Model) -> zoo.Model:
    from . import surgery

    module = copy.deepcopy(model.module)
    surgery.replace_(module, level="module")
    return replace(model, module=module)


def _quantize(model: zoo.Model, path: Path, bits: str, source: Path) -> None:
    from . import data, quantize

    calibration = data.calibration(CALIBRATION_IMAGES, model.preprocessing.size)
    quantize.static(source, path, calibration, bits, preprocessing=model.preprocessing)
    _record(path, model, bits=bits, calibration=CALIBRATION_IMAGES)


def _record(path: Path, model: zoo.Model, **facts: Any) -> None:
    from . import repair

    paths.record(path, {**repair.facts(model), **facts})


# --- exercises ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hint:
    """One of an exercise's hints."""

    id: str
    number: int
    of: int
    text: str

    def __str__(self) -> str:
        return f"{self.id}, hint {self.number} of {self.of}: {self.text}"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(str(self))}</p>"


def check(id: str, answer: Any) -> Result:
    """Judge the answer to an exercise and remember the attempt, locally.

    Parameters
    ----------
    id
        Such as ``"03.1"``.
    answer
        Whatever the learner has; nothing that is wrong with it makes this raise.

    Returns
    -------
    Result
        NOT ATTEMPTED, NOT YET (and what is wrong) or PASSED.

    Raises
    ------
    UnknownNameError
        There is no such exercise.
    UnsolvedError
        Not passed, and ``LABUTILS_STRICT=1``.
    """
    result = exercises.find(id).grade(answer)
    _passed.pop(id, None)
    if result.passed:
        _passed[id] = answer
    saved = exercise.remember("check", id, outcome=result.outcome)
    if exercise.strict() and not result.passed:
        raise UnsolvedError(str(result))
    if saved:
        return result
    return replace(result, message=f"{result.message} (Progress could not be saved.)")


def hint(id: str, n: int = 1) -> Hint:
    """Return hint number `n` of an exercise, from 1 (a nudge) to 3 (nearly there)."""
    hints = exercises.find(id).hints
    if n not in range(1, len(hints) + 1):
        raise UsageError(f"Exercise {id} has the hints 1 to {len(hints)}, not {n}.")
    exercise.remember("hint", id, number=n)
    return Hint(id, n, len(hints), hints[n - 1])


def settle(id: str, *, echo: Callable[[str], object] = print) -> Any:
    """Return the learner's own answer when it passed `check`, else the reference, and say which.

    Raises
    ------
    UnsolvedError
        No answer has passed in this process, and ``LABUTILS_STRICT=1``.
    """
    found = exercises.find(id)
    if id in _passed:
        echo(f"{id}: going on with your own solution.")
        return _passed[id]
    if exercise.strict():
        raise UnsolvedError(f"{id}: no answer has passed check({id!r}, ...) in this notebook.")
    exercise.remember("settle", id)
    echo(f"{id}: going on with the reference solution, not with yours.")
    return found.value(found.reference)


def given(id: str) -> Any:
    """Return what an exercise hands out to work on, such as a converter's log."""
    found = exercises.find(id)
    if found.given is None:
        raise UsageError(f"Exercise {id} hands nothing out.")
    return found.given()


@dataclass(frozen=True)
class Progress:
    """The exercises, with what was tried and shown; stored on this machine only.

    Attributes
    ----------
    rows
        (id, title, verb, record) per exercise.
    damaged
        Lines of the progress file that could not be read.
    file
        Where it lies.
    """

    rows: tuple[tuple[str, str, str, exercise.Record], ...]
    damaged: int
    file: Path

    @property
    def shown(self) -> tuple[str, ...]:
        """The verbs that passed exercises have shown."""
        return tuple(verb for _, _, verb, record in self.rows if record.outcome == PASSED)

    def _heading(self) -> str:
        text = f"{len(self.shown)} of {len(self.rows)} exercises passed."
        if self.damaged:
            text += f" {self.damaged} damaged line(s) of the progress file were skipped."
        return text

    def __str__(self) -> str:
        width = max((len(title) for _, title, _, _ in self.rows), default=0)
        lines = [f"{id}  {title:<{width}}  {record}" for id, title, _, record in self.rows]
        lines += ["", self._heading()]
        if self.shown:
            lines += ["You have shown that you can:", *(f"- {verb}" for verb in self.shown)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        cells = (
            f"<tr><td>{id}</td><td>{html.escape(title)}</td><td>{html.escape(str(record))}</td></tr>"
            for id, title, _, record in self.rows
        )
        verbs = "".join(f"<li>{html.escape(verb)}</li>" for verb in self.shown)
        can = f"<p>You have shown that you can:</p><ul>{verbs}</ul>" if verbs else ""
        return f"<table>{''.join(cells)}</table><p>{html.escape(self._heading())}</p>{can}"


def show_progress(notebook: str | None = None) -> Progress:
    """Return what the learner has tried and shown, in one notebook or in all."""
    if notebook is not None and notebook not in NOTEBOOKS:
        raise UnknownNameError("notebook", str(notebook), NOTEBOOKS)
    records, damaged = exercise.recall()
    chosen = exercises.everything() if notebook is None else exercises.of(notebook)
    rows = tuple((e.id, e.title, e.verb, records.get(e.id, exercise.Record())) for e in chosen)
    return Progress(rows, damaged, exercise.progress_file())


# --- failures that are wanted -------------------------------------------------------------------


class expect_failure:  # noqa: N801 - reads as a statement: with expect_failure(contains=...)
    """Run a block that must fail, with certain words; red when it succeeds or fails otherwise.

    Parameters
    ----------
    contains
        Must occur in the exception's type and message.
    echo
        Called with one line that says what was caught; None for silence.

    Attributes
    ----------
    error, text
        After the block: the exception, and ``"TypeName: message"``.

    Raises
    ------
    ExpectationError
        The block succeeded. Another failure than the one expected is raised as it is, with a note.
    """

    def __init__(self, contains: str, *, echo: Callable[[str], object] | None = print) -> None:
        if not isinstance(contains, str) or not contains.strip():
            raise UsageError("expect_failure needs words to look for: without, it proves little.")
        self.contains, self.echo = contains, echo
        self.error: Exception | None = None
        self.text = ""

    def __enter__(self) -> expect_failure:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None:
            raise ExpectationError(
                f"This cell was to fail with {self.contains!r}, and it succeeded. Either it was "
                "changed, or the tool has learned it: then the notebook must say so."
            )
        if not isinstance(error, Exception):  # the interrupt key
            return False
        text = f"{type(error).__name__}: {error}"
        if self.contains not in text:
            error.add_note(f"This cell was to fail, but with other words: {self.contains!r}.")
            return False
        self.error, self.text = error.with_traceback(None), text
        if self.echo:
            line = next(line for line in text.splitlines() if line.strip())
            self.echo(f"Failed, as expected: {line}")
        return True
