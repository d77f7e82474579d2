"""The progress of a room: one line per learner, one column per exercise, on 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from . import exercise, exercises, typesetting
from .compare import tabular
from .errors import UsageError
from .exercise import PASSED, Record

_NAME = 14  # characters of a learner's name, in text
_MOST = 9  # attempts that one character can say
LEGEND = "P passed, 1 to 9 attempts so far (9: or more), R reference taken, - not tried"


@dataclass(frozen=True)
class Room:
    """What the progress files of a room say.

    Attributes
    ----------
    learners
        Name -> (records by exercise id, damaged lines of the file).
    exercises
        Ids of the columns: those of the lab, and others that a file names.
    """

    learners: dict[str, tuple[dict[str, Record], int]]
    exercises: tuple[str, ...]

    def passed(self, learner: str) -> int:
        """Return how many exercises a learner has passed."""
        records, _ = self.learners[learner]
        return sum(record.outcome == PASSED for record in records.values())

    def signs(self, learner: str) -> list[str]:
        """Return one character per exercise, as `LEGEND` explains them."""
        records, _ = self.learners[learner]
        return [_sign(records.get(id, Record())) for id in self.exercises]

    def to_dict(self) -> dict[str, Any]:
        """Return everything by learner, for ``--json``: attempts, hints and outcomes too."""
        return {
            learner: {
                "passed": self.passed(learner),
                "damaged lines": damaged,
                **{id: vars(records[id]) for id in sorted(records)},
            }
            for learner, (records, damaged) in self.learners.items()
        }

    def _groups(self) -> list[tuple[str, list[str]]]:
        """Return the columns by notebook."""
        by_notebook = groupby(self.exercises, key=lambda id: id.partition(".")[0])
        return [(notebook, list(ids)) for notebook, ids in by_notebook]

    def _damaged(self) -> str:
        counts = ((name, damaged) for name, (_, damaged) in self.learners.items() if damaged)
        listed = ", ".join(f"{name} {damaged}" for name, damaged in counts)
        return f"Damaged lines, left out: {listed}." if listed else ""

    def __str__(self) -> str:
        groups = self._groups()
        widths = [max(len(notebook), len(ids)) for notebook, ids in groups]
        numbers = [[id.partition(".")[2] for id in ids] for _, ids in groups]
        head = [_line("", "", [notebook for notebook, _ in groups], widths)]
        head += [_line("learner", "passed", map("".join, numbers), widths)]
        lines = []
        for learner in self.learners:
            signs = iter(self.signs(learner))
            cells = ["".join(next(signs) for _ in ids) for _, ids in groups]
            lines.append(_line(learner, str(self.passed(learner)), cells, widths))
        return "\n".join([*head, *lines, "", LEGEND, *filter(None, [self._damaged()])])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        rows = [
            (learner, str(self.passed(learner)), *self.signs(learner)) for learner in self.learners
        ]
        made = typesetting.table(("learner", "passed", *self.exercises), rows, named=True)
        notes = "".join(typesetting.paragraph(n) for n in (LEGEND, self._damaged()) if n)
        return made + notes


def read_room(folder: str | Path) -> Room:
    """Read the progress files of a room.

    Parameters
    ----------
    folder
        Holds the ``.jsonl`` files, in subfolders too (as the homes of a JupyterHub do); learners
        are called as their files, with the folder where two are the same.

    Raises
    ------
    UsageError
        There is no such folder, or no progress file in it.
    """
    folder = Path(folder)
    files = sorted(folder.rglob("*.jsonl")) if folder.is_dir() else []
    if not files:
        raise UsageError(
            f"No progress files (*.jsonl) in {folder}. Each learner's lies in their cache, "
            "under progress/; collect them in one folder."
        )
    learners = dict(zip(_names(files, folder), map(exercise.recall, files), strict=True))
    seen = {id for records, _ in learners.values() for id in records}
    known = [chosen.id for chosen in exercises.everything()]
    return Room(learners, (*known, *sorted(seen - set(known))))


def _names(files: list[Path], folder: Path) -> Iterator[str]:
    stems = Counter(file.stem for file in files)
    for file in files:
        alone = stems[file.stem] == 1
        yield file.stem if alone else file.relative_to(folder).with_suffix("").as_posix()


def _sign(record: Record) -> str:
    if record.outcome == PASSED:
        return "P"
    if record.settled:
        return "R"
    return str(min(record.attempts, _MOST)) if record.attempts else "-"


def _line(learner: str, passed: str, cells: Any, widths: list[int]) -> str:
    padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"{tabular.shortened(learner, _NAME):<{_NAME}} {passed:>6}  {padded}".rstrip()
