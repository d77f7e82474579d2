"""Where the benchmarks' results lie, the lines that begin each of them, and rows that are kept.

A head says which command made the file and when, from which images, and with which versions. It
says nothing of a commit: what the figures depend on is in the versions and in the command.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from labutils import metrics, paths

FOLDER = paths.ROOT / "benchmarks" / "results"

DEVELOPED = (
    "The recipes were developed while looking at these val images; the tables will be made on test."
)


def command(program: str, arguments: list[str] | None = None) -> str:
    """Return the command line that makes a file, as it is typed in the repository's root."""
    given = sys.argv[1:] if arguments is None else arguments
    return " ".join(["python", f"benchmarks/{program}", *given])


def head(made_by: str, images: str, *packages: str, developed: bool) -> list[str]:
    """Return the first lines of a results file.

    Parameters
    ----------
    made_by
        From `command`.
    images
        Split, number and size: ``"split val, 1600 images at 128 px"``.
    *packages
        Whose versions the figures depend on.
    developed
        Whether what is measured was chosen by looking at these images.
    """
    versions = paths.versions(*packages)
    return [
        f"Recorded {time.strftime('%Y-%m-%d', time.gmtime())} with: {made_by}",
        f"Images: {images}.",
        *([DEVELOPED] if developed else []),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]


def commented(lines: list[str]) -> str:
    """Return a head as comments, for a CSV."""
    return "".join(f"# {line}\n" for line in lines)


def place(wanted: Path | None, whole: bool) -> Path | None:
    """Return where results go: a smaller run never overwrites the recorded ones."""
    if wanted is not None:
        return paths.folder(wanted)
    return FOLDER if whole else None


def write_csv(
    file: Path, head: list[str], rows: Sequence[Any], columns: Sequence[str] = ()
) -> None:
    """Write rows (instances of one dataclass) below a head; `columns` orders their fields."""
    text = io.StringIO()
    names = columns or [field.name for field in fields(rows[0])]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    paths.write_text(file, commented(head) + text.getvalue())


# --- rows of accuracy -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Accuracy with its interval, and the paired difference to the original, on `n` images."""

    stage: str
    top1: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    n: int

    @property
    def cells(self) -> tuple[str, str, str]:
        """Accuracy, its interval and the difference, as a text table has them."""
        return (
            f"{100 * self.top1:.2f} %", f"{100 * self.low:.1f} to {100 * self.high:.1f}",
            f"{self.difference:+.2f} [{self.difference_low:+.2f}, {self.difference_high:+.2f}]",
        )  # fmt: skip


def judged(right: np.ndarray, original: np.ndarray) -> tuple[float, ...]:
    """Return the fields of `Judged` after the first, of which images two networks name rightly."""
    top1 = metrics.Proportion(int(right.sum()), len(right))
    paired = metrics.paired_difference(right, original)
    return (top1.value, *top1.interval, paired.value, *paired.interval, len(right))


# --- rows that are kept ---------------------------------------------------------------------------


class KeptRows:
    """Rows in a file of JSON lines, each written once it is made: a stopped program resumes.

    Parameters
    ----------
    file
        Need not exist yet.
    kind
        The dataclass of a row.
    key
        What a row is found by.
    again
        Whether a kept row must be made again.
    """

    def __init__(
        self,
        file: Path,
        kind: type,
        key: Callable[[Any], Hashable],
        again: Callable[[Any], bool] = lambda row: False,
    ) -> None:
        self._file, self._kind, self._key, self._again = file, kind, key, again

    def read(self) -> dict[Any, Any]:
        """Return the rows of this run and of earlier ones, by key."""
        if not self._file.is_file():
            return {}
        lines = self._file.read_text("utf-8").splitlines()
        rows = [self._kind(**json.loads(line)) for line in lines]
        return {self._key(row): row for row in rows if not self._again(row)}

    def complete(
        self,
        names: Sequence[str],
        make: Callable[[str], Iterable[Any]],
        keys: Callable[[str], Iterable[Hashable]] = lambda name: (name,),
    ) -> dict[Any, Any]:
        """Make the rows of each name that lacks one of its keys, and return all rows."""
        for number, name in enumerate(names, start=1):
            if all(key in self.read() for key in keys(name)):
                continue
            print(f"[{number}/{len(names)}] {name} ...", flush=True)
            made = list(make(name))
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(row)) + "\n" for row in made)
        return self.read()


def rows_of_a_process(program: str, name: str, kind: type, timeout: float) -> tuple[list[Any], str]:
    """Run ``PROGRAM --one NAME`` in a separate process, which prints rows as JSON lines.

    Returns
    -------
    tuple of list and str
        The rows, and how it ended, for those that are missing: a crash or a hang is a row, too.
    """
    command = [sys.executable, program, "--one", name]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        try:
            printed, _ = process.communicate(timeout=timeout)
            why = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            printed, why = "", f"no end after {timeout} s"
        finally:
            end(process)
        errors.seek(0)
        last = next((x for x in reversed(errors.read().splitlines()) if x.strip()), "")
    rows = [kind(**json.loads(x)) for x in printed.splitlines() if x.startswith('{"model"')]
    return rows, f"{why}: {last}"[:300]


def end(process: subprocess.Popen[str]) -> None:
    """Leave no process behind, nor what it started in its session."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
