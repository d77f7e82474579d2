"""The progress of a room: one line per learner, one column per exercise, on 80 columns."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from .. import tabular, typesetting
from ..errors import LimitError, UsageError, counted, printable, worded
from . import exercise, exercises
from .exercise import PASSED, Record

_NAME = 14  # characters of a learner's name, in text
_MOST = 9  # attempts that one character can say
_LEARNERS = 2000  # progress files in a folder
_OTHERS = 9  # columns for exercises that this lab does not have
LEGEND = "P passed, 1 to 9 attempts so far (9: or more), R reference taken, - not tried"


@dataclass(frozen=True, repr=False)
class Room(typesetting.Shown):
    """What the progress files of a room say.

    Attributes
    ----------
    learners
        Name -> (records by exercise id, damaged lines of the file).
    exercises
        Ids of the columns: those of the lab, and others that a file names.
    left_out
        File -> why it was not read. One bad file costs only itself.
    """

    learners: dict[str, tuple[dict[str, Record], int]]
    exercises: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)

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
        by_learner: dict[str, Any] = {
            learner: {
                "passed": self.passed(learner),
                "damaged lines": damaged,
                **{id: vars(records[id]) for id in sorted(records)},
            }
            for learner, (records, damaged) in self.learners.items()
        }
        return by_learner | ({"left out": self.left_out} if self.left_out else {})

    def _groups(self) -> list[tuple[str, list[str]]]:
        """Return the columns by notebook."""
        by_notebook = groupby(self.exercises, key=lambda id: id.partition(".")[0])
        return [(notebook, list(ids)) for notebook, ids in by_notebook]

    def _notes(self) -> list[str]:
        """Return what was left out: damaged lines, whole files, ids that this lab does not have."""
        counts = ((name, damaged) for name, (_, damaged) in self.learners.items() if damaged)
        listed = ", ".join(f"{printable(name)} {damaged}" for name, damaged in counts)
        notes = [f"Damaged lines, left out: {listed}."] if listed else []
        notes += [f"Left out: {printable(f'{name}: {why}')}" for name, why in self.left_out.items()]
        named = {id for records, _ in self.learners.values() for id in records}
        if strange := len(named - set(self.exercises)):
            notes.append(f"Not shown: {counted(strange, 'exercise')} that this lab does not have.")
        return notes

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
        return "\n".join([*head, *lines, "", LEGEND, *self._notes()])

    def _repr_html_(self) -> str:
        rows = [
            (printable(learner), str(self.passed(learner)), *self.signs(learner))
            for learner in self.learners
        ]
        made = typesetting.table(("learner", "passed", *self.exercises), rows, named=True)
        return made + "".join(typesetting.paragraph(note) for note in (LEGEND, *self._notes()))


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

    Notes
    -----
    Learners may have written anything into the folder: what is not a plain file of a learner's size
    is left out and said so, and links are not followed.
    """
    folder = Path(folder)
    files = _progress_files(folder)
    if not files:
        raise UsageError(
            f"No progress files (*.jsonl) in {folder}. Each learner's lies in their cache, "
            "under progress/; collect them in one folder."
        )
    learners, left_out = {}, {}
    for name, file in zip(_names(files, folder), files, strict=True):
        try:
            learners[name] = exercise.recall(file)
        except LimitError as error:
            left_out[file.relative_to(folder).as_posix()] = str(error).removeprefix(f"{file} ")
        except OSError as error:
            left_out[file.relative_to(folder).as_posix()] = f"{worded(error)}."
    seen = {id for records, _ in learners.values() for id in records}
    known = [chosen.id for chosen in exercises.everything()]
    others = sorted(seen - set(known))[:_OTHERS]
    return Room(learners, (*known, *others), left_out)


def _progress_files(folder: Path) -> list[Path]:
    """Return what is called as a progress file, whatever it is."""
    found = []
    for place, folders, files in os.walk(folder):  # follows no link, passes over what is closed
        found += [Path(place, name) for name in (*folders, *files) if name.endswith(".jsonl")]
        if len(found) > _LEARNERS:
            raise UsageError(
                f"{folder} holds more than {_LEARNERS:,} progress files (*.jsonl): name the folder "
                "of one room."
            )
    return sorted(found)


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
    padded = " ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    name = printable(" ".join(learner.split()))  # one line, whatever the file is called
    return f"{tabular.shortened(name, _NAME):<{_NAME}} {passed:>6}  {padded}".rstrip()
