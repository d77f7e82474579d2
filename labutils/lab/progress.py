"""What a learner has tried and shown, as a table: `show_progress`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import typesetting
from ..errors import LimitError, UnknownNameError, printable
from . import exercise, exercises
from .exercise import PASSED
from .exercises import NOTEBOOKS


@dataclass(frozen=True, repr=False)
class LearnerProgress(typesetting.Shown):
    """The exercises, with what was tried and shown; stored on this machine only.

    Attributes
    ----------
    rows
        (id, title, verb, record) per exercise.
    damaged
        Lines of the progress file that could not be read.
    file
        Where it lies.
    problem
        Why it was not read at all; "" when it was.
    """

    rows: tuple[tuple[str, str, str, exercise.Record], ...]
    damaged: int
    file: Path
    problem: str = ""

    @property
    def shown(self) -> tuple[str, ...]:
        """The verbs that passed exercises have shown."""
        return tuple(verb for _, _, verb, record in self.rows if record.outcome == PASSED)

    def _heading(self) -> str:
        text = f"{len(self.shown)} of {len(self.rows)} exercises passed."
        if self.problem:
            text += f" The progress file was not read: {self.problem}"
        if self.damaged:
            lines = "line was" if self.damaged == 1 else "lines were"
            text += f" {self.damaged} damaged {lines} skipped in the progress file."
        return text

    def __str__(self) -> str:
        width = max((len(title) for _, title, _, _ in self.rows), default=0)
        lines = [f"{id}  {title:<{width}}  {record}" for id, title, _, record in self.rows]
        lines += ["", self._heading()]
        if self.shown:
            lines += ["You have shown that you can:", *(f"- {verb}" for verb in self.shown)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(id, title, str(record)) for id, title, _, record in self.rows]
        verbs = "".join(f"<li>{typesetting.words(verb)}</li>" for verb in self.shown)
        can = f"<p>You have shown that you can:</p><ul>{verbs}</ul>" if verbs else ""
        heading = typesetting.paragraph(self._heading())
        return f"{typesetting.table((), rows)}{heading}{can}"


def show_progress(notebook: str | None = None) -> LearnerProgress:
    """Return what the learner has tried and shown, in one notebook or in all."""
    if notebook is not None and notebook not in NOTEBOOKS:
        raise UnknownNameError("notebook", str(notebook), NOTEBOOKS)
    try:
        (records, damaged), problem = exercise.recall(), ""
    except (LimitError, OSError) as error:
        (records, damaged), problem = ({}, 0), printable(str(error))
    chosen = exercises.everything() if notebook is None else exercises.of(notebook)
    rows = tuple((e.id, e.title, e.verb, records.get(e.id, exercise.Record())) for e in chosen)
    return LearnerProgress(rows, damaged, exercise.progress_file(), problem)
