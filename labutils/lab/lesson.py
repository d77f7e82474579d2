"""What a notebook imports.

`start` lets every notebook be the first one: it loads what the notebooks before it left
behind, or makes it, and says which. `check` judges, `settle` continues with a solution in any case.
With ``LABUTILS_STRICT=1`` whatever is not solved is an error. `on_htp` shows what was recorded
where Qualcomm's simulator does not run, `on_tools` where a tool is not installed; both say so.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .. import manifests, paths, typesetting
from ..errors import LabError, UnknownNameError, UsageError
from ..images import own_image
from . import artifacts, check_code, exercise, exercises, recorded
from .artifacts import FILES
from .exercise import TODO, Result, UnsolvedError
from .exercises import NOTEBOOKS
from .measurement_table import Measurements, measurements
from .progress import LearnerProgress, show_progress
from .recorded import Shown

if TYPE_CHECKING:
    from ..images import data
    from ..machine import doctor
    from ..models import zoo

__all__ = [
    "FILES", "TODO", "ExpectationError", "Hint", "LearnerProgress", "Lesson", "Measurements",
    "Shown", "check", "expect_failure", "given", "hint", "measurements", "on_htp", "on_tools",
    "settle", "show_check", "show_progress", "start",
]  # fmt: skip

SEED = 0
_COLUMNS = 80  # of an output in a narrow JupyterLab, which breaks longer lines inside words
STATES = ("present", "recorded", "absent")
"""Of a capability: it works here, its results were recorded elsewhere, neither."""

_passed: dict[str, Any] = {}  # the learner's own answers of this process that passed
_begun: dict[str, Lesson] = {}  # what this process's notebook works with, under "lesson"


class ExpectationError(LabError):
    """A cell that was expected to fail has succeeded."""


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
        return artifacts.path_of(name, self._model())

    def beside(self, name: str) -> Path:
        """Return the place of another file beside the artifacts.

        Parameters
        ----------
        name
            Its name, such as ``"04_{model}_fp32.dlc"``; ``{model}`` becomes the model's, as it
            can stand in a file name.
        """
        return paths.generated() / name.format(model=manifests.stem_of(self._model().name))

    def keep(self, name: str, **facts: Any) -> Path:
        """Write the manifest of an artifact that this notebook made; later ones look for it."""
        path = self.path(name)
        artifacts.record(path, self._model(), **facts)
        self.files[name] = path
        return path

    def solution(self, id: str) -> str:
        """Return the reference cell of an exercise, to read: ``print(lesson.solution("03.4"))``.

        The progress file notes it, as it notes `settle`.
        """
        found = exercises.find(id)
        if id not in _passed:
            exercise.remember("settle", id)
        return found.reference

    def show_check(self, id: str, *, whole: bool = False) -> None:
        """Show the code that judges an exercise; as `show_check` of the module."""
        show_check(id, whole=whole)

    def own_image(self) -> data.ImageSet:
        """Return the learner's own image, at this model's size; see `own_image.read`."""
        model = self._model()
        return own_image.read(model.known_preprocessing().size, model.classes)

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
    _say_capabilities(echo, fully=notebook == "00")
    if notebook == "00":
        return Lesson(notebook)
    from ..models import zoo

    loaded = zoo.load(model, weights, size)
    for line in textwrap.wrap(str(loaded), _COLUMNS, subsequent_indent="  "):
        echo(line)
    lesson = Lesson(notebook, loaded)
    _begun["lesson"] = lesson
    needed = artifacts.NEEDS.get(notebook, ())
    for name in needed:
        lesson.files[name] = artifacts.load_or_make(name, loaded, echo)
    if not needed:
        echo("It needs no file of an earlier notebook.")
    return lesson


def _seed() -> None:
    import numpy as np
    import torch

    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


def _say_capabilities(echo: Callable[[str], object], *, fully: bool) -> None:
    """List what is present, recorded and absent: one line each, or one per capability."""
    from ..machine import doctor

    findings = doctor.examine().findings
    if not fully:
        for state in STATES:
            names = [finding.name for finding in findings if _state(finding) == state]
            if names:
                for line in textwrap.wrap(
                    f"  {state:<8}  {', '.join(names)}", _COLUMNS, subsequent_indent=" " * 12
                ):
                    echo(line)
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        text = finding.found if finding.present else f"{finding.found}. {finding.cure}"
        first, *rest = textwrap.wrap(text, _COLUMNS - width - 12) or [""]
        echo(f"{finding.name:<{width}}  {_state(finding):<8}  {first}".rstrip())
        for line in rest:
            echo(f"{'':<{width}}  {'':<8}  {line}")


def _state(finding: doctor.Finding) -> str:
    """Say whether a capability is here, or its results are; the words of `STATES`."""
    if finding.present:
        return "present"
    return "recorded" if finding.name == "Qualcomm QNN" and recorded.at_hand() else "absent"


# --- exercises ----------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Hint(typesetting.Paragraph):
    """One of an exercise's hints."""

    id: str
    number: int
    of: int
    text: str

    def __str__(self) -> str:
        return f"{self.id}, hint {self.number} of {self.of}: {self.text}"


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
        NOT ATTEMPTED, NOT YET (and what is wrong) or PASSED; it was shown already.

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
    if not saved:
        result = replace(result, message=f"{result.message} (Progress could not be saved.)")
    result.say()
    return result


def hint(id: str, n: int = 1) -> Hint:
    """Return hint number `n` of an exercise, from 1 (a nudge) to 3 (nearly there)."""
    hints = exercises.find(id).hints
    if n not in range(1, len(hints) + 1):
        raise UsageError(f"Exercise {id} has the hints 1 to {len(hints)}, not {n}.")
    exercise.remember("hint", id, number=n)
    return Hint(id, n, len(hints), hints[n - 1])


def show_check(id: str, *, whole: bool = False) -> None:
    """Show the code that judges an exercise: ``show_check("03.1")``.

    It says what is asked for, exactly, and may give the answer away.

    Parameters
    ----------
    id
        Such as ``"03.1"``.
    whole
        Also what makes the inputs, and what puts mistakes into words.

    Raises
    ------
    UnknownNameError
        There is no such exercise; the message suggests the nearest.
    """
    code = check_code.of(exercises.find(id), whole=whole)
    exercise.display(str(code), text_markdown=code._repr_markdown_())


def settle(id: str) -> Any:
    """Return the learner's own answer when it passed `check`, else the reference, and say which.

    Raises
    ------
    UnsolvedError
        No answer has passed in this process, and ``LABUTILS_STRICT=1``.
    """
    found = exercises.find(id)
    if id in _passed:
        print(f"{id}: going on with your own solution.")
        return _passed[id]
    if exercise.strict():
        raise UnsolvedError(f"{id}: no answer has passed check({id!r}, ...) in this notebook.")
    exercise.remember("settle", id)
    print(
        f"{id}: going on with the reference solution, not with yours. "
        f"To read it: print(lesson.solution('{id}'))"
    )
    return found.value(found.reference)


def given(id: str) -> Any:
    """Return what an exercise hands out to work on, such as a converter's log."""
    found = exercises.find(id)
    if found.given is None:
        raise UsageError(f"Exercise {id} hands nothing out.")
    return found.given()


def on_htp(key: str, step: Callable[..., Any], *args: Any, model: zoo.Model | None = None) -> Shown:
    """Run a step that needs Qualcomm's wheel, or show what it showed where it was recorded.

    Parameters
    ----------
    key
        Names the step, after its notebook: ``"06.ladder"``.
    step, *args
        Called where the simulator works; returns something displayable, or a tuple of such.
    model
        What is at work; default is the lesson's. A record of another network says that it is one.

    Returns
    -------
    Shown
        Displays the parts one below the other. ``values`` is what the step returned; None when
        it was not run here, which the first line of the display then says, with the reason.
    """
    return recorded.run(key, step, *args, network=_network(model))


def on_tools(
    key: str,
    tools: str | tuple[str, ...],
    step: Callable[..., Any],
    *args: Any,
    model: zoo.Model | None = None,
) -> Shown:
    """Run a step that needs tools of `labutils tools`, or show what it showed elsewhere.

    Parameters
    ----------
    key, step, *args, model
        As for `on_htp`.
    tools
        What has to be installed: ``"litert"``, or several names.

    Returns
    -------
    Shown
        As from `on_htp`; its ``facts`` are plain values, recorded ones where it was not run here.
    """
    names = (tools,) if isinstance(tools, str) else tools
    return recorded.run_with(names, key, step, *args, network=_network(model))


def _network(model: zoo.Model | str | None) -> recorded.Network | None:
    lesson = _begun.get("lesson")
    if isinstance(model, str):  # as older copies of 08 name it: the weights cannot be compared
        return recorded.Network(model)
    used: list[str] = []
    if model is None:
        if lesson is None:
            return None
        used = [name for name in artifacts.QUANTIZED if name in lesson.files]
        model = lesson._model()
    words = f"{model.name}, weights {model.weights}"
    words += " (no checkpoint)" * (model.weights == "random")
    return recorded.Network(words, model.sha256, {n: artifacts.recipe_sha256(n) for n in used})


# --- failures that are expected -----------------------------------------------------------------


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
                f"This cell was expected to fail with {self.contains!r}, but it succeeded. Either "
                "it was changed, or the tool now supports it: then the notebook must say so."
            )
        if not isinstance(error, Exception):  # the interrupt key
            return False
        text = f"{type(error).__name__}: {error}"
        if self.contains not in text:
            error.add_note(
                f"This cell was expected to fail with another message: {self.contains!r}."
            )
            return False
        self.error, self.text = error.with_traceback(None), text
        if self.echo:
            line = next(line for line in text.splitlines() if line.strip())
            self.echo(
                textwrap.fill(
                    f"Failed, as expected: {line}",
                    _COLUMNS,
                    subsequent_indent="  ",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
        return True
