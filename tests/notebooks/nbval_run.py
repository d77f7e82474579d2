"""Run one notebook as a test: nbval in a process of its own, without a network."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from labutils import paths
from labutils.lab import exercise
from labutils.pipeline import batch
from labutils.tools import environment as tools

STARTUP = Path(__file__).parent / "startup"
CELL_SECONDS = 1200  # for the slowest cell, from cold, on a busy machine
NOTEBOOK_SECONDS = 3600


@dataclass(frozen=True)
class Outcome:
    """What became of a notebook: whether all was well, numbers of the code cells that passed or
    were skipped, attempts to leave this machine, what nbval said, and what the notebook
    remembers of each exercise."""

    ok: bool
    passed: tuple[int, ...]
    skipped: tuple[int, ...]
    outside: str
    text: str
    exercises: dict[str, exercise.Record]

    def __str__(self):
        asked = f"\nIt tried to leave this machine:\n{self.outside}" if self.outside else ""
        return f"{len(self.passed)} cells passed{asked}\n{self.text[-12_000:]}"


def run(
    notebook, generated, *, strict=False, hidden="", with_tools=True, cell_seconds=CELL_SECONDS
):
    """Run `notebook` where it lies; artifacts go to `generated`."""
    private = notebook.parent / f".{notebook.stem}"
    private.mkdir(exist_ok=True)
    outside, report = private / "outside.txt", private / "report.xml"
    environment = {name: v for name, v in os.environ.items() if not name.startswith("LABUTILS_")}
    environment |= {
        "PYTHONPATH": str(STARTUP),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",  # several run side by side: threads that wait for a core spin
        "IPYTHONDIR": str(private / "ipython"),
        "JUPYTER_CONFIG_DIR": str(private / "config"),
        "JUPYTER_DATA_DIR": str(private / "data"),
        "JUPYTER_RUNTIME_DIR": str(private / "runtime"),
        "LABUTILS_CACHE": str(paths.cache()),
        "LABUTILS_GENERATED": str(generated),
        "LABUTILS_PROGRESS": str(private),
        "LABUTILS_STRICT": "1" if strict else "0",
        "LABUTILS_TEST_OUTSIDE": str(outside),
        "LABUTILS_TEST_HIDDEN": hidden,
        "LABUTILS_TOOLS": str(tools.place() if with_tools else private / "no_tools"),
    }
    command = [
        *(sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider"),
        *("-c", os.devnull, f"--rootdir={notebook.parent}", f"--junitxml={report}"),
        *("--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={cell_seconds}"),
        str(notebook),
    ]
    done = subprocess.run(
        command,
        env=environment,
        cwd=notebook.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=NOTEBOOK_SECONDS,
        **batch.ending_with_us(),
    )
    cells = list(ET.parse(report).iter("testcase")) if report.exists() else []
    number = lambda cell: int(cell.get("name").rpartition(" ")[2])  # noqa: E731 - "Cell 3"
    asked = outside.read_text("utf-8") if outside.exists() else ""
    return Outcome(
        ok=done.returncode == 0 and not asked,
        passed=tuple(number(cell) for cell in cells if not list(cell)),
        skipped=tuple(number(cell) for cell in cells if cell.find("skipped") is not None),
        outside=asked,
        text=done.stdout,
        exercises=exercise.recall(private / exercise.progress_file().name)[0],
    )
