"""The exercise engine: what an exercise is, how an answer is judged, what is remembered.

An exercise judges values: it calls the learner's function, looks at the learner's number. It never
reads source text, never raises on a bad answer, and never says the answer. Stub and reference are
cells of text, so that the notebooks, the tests and the solved edition share them. Progress is a
local file, one JSON object per line: lines are only ever appended, so two notebooks at once cannot
lose each other's, and a damaged line costs itself alone.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import paths, typesetting, untrusted
from ..errors import LabError, LimitError, counted, printable
from .answer import TODO, NotYet, StillTodo, in_words, refuse_placeholders

NOT_ATTEMPTED, NOT_YET, PASSED = "NOT ATTEMPTED", "NOT YET", "PASSED"
OUTCOMES = (NOT_ATTEMPTED, NOT_YET, PASSED)
DIFFICULTIES = ("easy", "medium", "stretch")


class UnsolvedError(LabError):
    """An exercise is not solved, and ``LABUTILS_STRICT=1`` wants all of them solved."""


@dataclass(frozen=True, repr=False)
class Result(typesetting.Shown):
    """The outcome of one check, as a sentence."""

    id: str
    outcome: str
    message: str

    @property
    def passed(self) -> bool:
        """Whether the answer was right."""
        return self.outcome == PASSED

    def __str__(self) -> str:
        return f"{self.id} {self.outcome}: {self.message}"

    def _repr_html_(self) -> str:
        head = typesetting.words(f"{self.id} {self.outcome}")
        return f"<p role='status'><strong>{head}</strong>: {typesetting.words(self.message)}</p>"

    def say(self) -> None:
        """Show the outcome at once, wherever in a cell the check stands."""
        display(str(self), text_html=self._repr_html_())

    def _ipython_display_(self) -> None:
        """Show nothing as a cell's last value: `say` has shown it already."""


def display(text: str, **forms: str) -> None:
    """Show something at once: rich in a notebook (``text_html=...``), printed elsewhere."""
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:  # not a notebook
        print(text)
        return
    rich = {form.replace("_", "/"): shown for form, shown in forms.items()}
    ipython.display.display({"text/plain": text, **rich}, raw=True)


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes
    ----------
    id, title
        ``"03.1"``, and what is asked for, in a few words.
    verb
        What somebody who passes has shown, for "You have shown that you can ...".
    minutes, difficulty
        How long it takes; one of `DIFFICULTIES`.
    answer
        Name of the variable that the cells below define, and that is judged.
    stub, reference
        The learner's cell, which holds TODO, and the cell that solves it.
    hints
        Three, from a nudge to nearly there.
    judge
        Takes the answer; raises `NotYet` where it is wrong. It sees no TODO and no ``...``.
    praise
        Why the answer is right, for the message of PASSED.
    given
        Makes what the exercise hands to the learner, such as a log; None where there is nothing.
    """

    id: str
    title: str
    verb: str
    minutes: int
    difficulty: str
    answer: str
    stub: str
    reference: str
    hints: tuple[str, str, str]
    judge: Callable[[Any], None] = field(repr=False)
    praise: str
    given: Callable[[], Any] | None = field(default=None, repr=False)

    @property
    def notebook(self) -> str:
        """Number of the notebook that the exercise belongs to, such as ``"03"``."""
        return self.id.partition(".")[0]

    def value(self, cell: str) -> Any:
        """Run one of the exercise's own cells and return its answer.

        The cell sees what a learner's cell sees: ``TODO`` and ``given``.
        """
        given = self.given or (lambda: None)
        names: dict[str, Any] = {
            "__name__": f"exercise_{self.id}", "TODO": TODO, "given": lambda _: given(),
        }  # fmt: skip
        code = compile(cell, f"<exercise {self.id}>", "exec", dont_inherit=True)  # as a learner's
        exec(code, names)
        return names[self.answer]

    def grade(self, answer: Any) -> Result:
        """Judge an answer; nothing that is wrong with it makes this raise."""
        try:
            refuse_placeholders(answer)
            self.judge(answer)
        except StillTodo:
            return self._result(NOT_ATTEMPTED, "replace TODO, then run the cell again.")
        except NotYet as reason:
            return self._result(NOT_YET, str(reason))
        except KeyboardInterrupt:  # the interrupt key
            raise
        except BaseException as error:
            return self._result(NOT_YET, f"your answer cannot be used: {in_words(error)}")
        return self._result(PASSED, self.praise)

    def _result(self, outcome: str, message: str) -> Result:
        return Result(self.id, outcome, printable(message))


def strict() -> bool:
    """Whether everything that is not solved is an error (``LABUTILS_STRICT=1``)."""
    return os.environ.get("LABUTILS_STRICT") == "1"


# --- progress -----------------------------------------------------------------------------------


def learner() -> str:
    """Return whose progress this is: ``LABUTILS_LEARNER``, else the login name."""
    try:
        return os.environ.get("LABUTILS_LEARNER") or getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without a user name
        return "learner"


def progress_file() -> Path:
    """Return the local file that this learner's progress is appended to; it may not exist yet.

    It lies in the cache, or in the folder ``LABUTILS_PROGRESS``, which a room may share.
    """
    safe = re.sub(r"[^\w.-]+", "_", learner()).strip("._") or "learner"
    return Path(os.environ.get("LABUTILS_PROGRESS") or paths.cache() / "progress", f"{safe}.jsonl")


def remember(event: str, exercise: str, **facts: Any) -> bool:
    """Append one line to the progress file; False where that is impossible.

    Parameters
    ----------
    event
        ``"check"`` (with ``outcome``), ``"hint"`` (with ``number``) or ``"settle"``.
    exercise
        The exercise's id.
    **facts
        Plain values.
    """
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = json.dumps({"event": event, "exercise": exercise, "time": made, **facts})
    try:
        file = progress_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        # In a folder that all can write the name may be a pipe, or a link to a file of ours.
        careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | careful, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return False
            # One write; it starts a new line, whatever an interrupted one left before it.
            os.write(descriptor, f"\n{line}\n".encode())
        finally:
            os.close(descriptor)
    except (OSError, LabError):  # a full disk must not stand between a learner and the check
        return False
    return True


@dataclass
class Record:
    """What is known about one exercise: attempts, best outcome, hints read, whether settled."""

    attempts: int = 0
    outcome: str = NOT_ATTEMPTED
    hints: int = 0
    settled: bool = False

    def __str__(self) -> str:
        parts = [counted(self.attempts, "attempt")]
        parts += [f"hint {self.hints}"] * (self.hints > 0)
        parts += ["reference taken"] * (self.settled and self.outcome != PASSED)
        return f"{self.outcome} ({', '.join(parts)})"

    def __repr__(self) -> str:
        return str(self)


_MOST_BYTES = 4_000_000  # a day of forty exercises takes about 0.05
_MOST_LINES = 40_000
_MOST_HINTS = 99
_ID = re.compile(r"\d\d\.\d\d?", re.ASCII)


def recall(file: str | Path | None = None) -> tuple[dict[str, Record], int]:
    """Read a progress file: records by exercise id, and the number of damaged lines.

    Without `file`, this learner's own. A missing file is empty.

    Raises
    ------
    LimitError
        It is not a plain file, or larger than any learner's.
    OSError
        It cannot be read.
    """
    file = Path(file) if file else progress_file()
    try:
        content = untrusted.content(file, _MOST_BYTES, plain=True)
    except FileNotFoundError:
        return {}, 0
    lines = content.decode("utf-8", errors="replace").split("\n")
    if len(lines) > _MOST_LINES:
        raise LimitError(f"{file} has more than {_MOST_LINES:,} lines.")
    records: dict[str, Record] = {}
    damaged = 0
    for line in filter(str.strip, lines):
        try:
            _apply(records, untrusted.json_value(line))
        except (ValueError, TypeError, KeyError, AttributeError):
            damaged += 1
    return records, damaged


def _apply(records: dict[str, Record], entry: dict[str, Any]) -> None:
    event, exercise = entry["event"], entry["exercise"]
    if not _ID.fullmatch(exercise):
        raise ValueError(exercise)
    record = Record(**vars(records.get(exercise, Record())))
    if event == "check":
        rank = OUTCOMES.index(entry["outcome"])
        record.attempts += rank > 0  # an untouched stub is not an attempt
        record.outcome = OUTCOMES[max(rank, OUTCOMES.index(record.outcome))]
    elif event == "hint":
        number = entry["number"]
        if type(number) is not int or not 0 <= number <= _MOST_HINTS:
            raise ValueError(number)
        record.hints = max(record.hints, number)
    elif event == "settle":
        record.settled = True
    else:
        raise ValueError(event)
    records[exercise] = record
