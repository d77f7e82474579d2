"""One server for a room: seconds and memory with 1, 2 and 4 learners at once.

Each learner is a separate process that executes notebooks as shipped, in a Jupyter kernel, with
``LABUTILS_WORKERS=1``. Memory is the proportional share (PSS) of the kernel and its QNN worker,
sampled; the JupyterLab in front of it comes on top and is measured by itself. The images are drawn
beforehand. What else the machine does makes the seconds longer, and hardly the processor's seconds
that the learners use; so these are what a room is extrapolated from, and the load average before
and after is written down. Linux only.

    python benchmarks/room.py                    # notebook 05; writes benchmarks/results/room.txt
    python benchmarks/room.py --notebooks 06 --learners 1 2 -o my_server.txt
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from labutils import paths
from labutils.lab import notebooks, recorded

ROOM = 40
RESULT = paths.ROOT / "benchmarks" / "results" / "room.txt"
PAUSE = 0.5  # seconds between two samples
LIMITS = {"LABUTILS_WORKERS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Sitting:
    """`learners` at once in one notebook: seconds of the slowest, MB of the largest and of all.

    `processor` is the time of all cores that all of them used together, in seconds.
    """

    notebook: str
    learners: int
    seconds: float
    processor: float
    largest: float
    together: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notebooks", nargs="+", default=["05"], metavar="NN")
    parser.add_argument("--learners", nargs="+", type=int, default=[1, 2, 4], metavar="N")
    parser.add_argument("-o", "--output", type=Path, default=RESULT, metavar="FILE")
    parser.add_argument("--as-learner", nargs=2, metavar=("NN", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.as_learner:
        return learn(*chosen.as_learner)
    load = os.getloadavg()[0]
    head = [*beginning(" ".join(["python benchmarks/room.py", *sys.argv[1:]])), ""]
    with tempfile.TemporaryDirectory(prefix="labutils-room-") as folder:
        for number in chosen.notebooks:  # so that the images are in the cache for all
            sit(number, 1, Path(folder, "before"))
        sittings = [sit(nn, n, Path(folder)) for nn in chosen.notebooks for n in chosen.learners]
    head[1] += f"; load average {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    text = "\n".join([*head, *report(sittings, jupyterlab())]) + "\n"
    paths.write_text(chosen.output, text)
    print(text)
    return None


def beginning(command: str) -> list[str]:
    """Return the lines that say when, how and on what machine this was measured."""
    versions = paths.versions("torch", "onnxruntime", "onnxruntime-qnn", "jupyterlab")
    return [
        f"Recorded {time.strftime('%Y-%m-%d', time.gmtime())} with: {command}",
        f"on {recorded.machine()}, {psutil.virtual_memory().total / 2**30:.0f} GB of memory",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]


def learn(number: str, folder: str) -> None:
    """Execute a notebook as one learner does."""
    own = {"LABUTILS_GENERATED": folder, "LABUTILS_PROGRESS": folder, "LABUTILS_STRICT": "0"}
    notebooks.execute(notebooks.read(notebooks.named(number)), own)


def sit(number: str, learners: int, folder: Path) -> Sitting:
    """Let learners join at a notebook in the same moment, with nothing done before."""
    folders = [paths.folder(folder / f"{number}_{learners}_{i}") for i in range(learners)]
    command = [sys.executable, __file__, "--as-learner", number]
    begun, used = time.perf_counter(), used_by_children()
    running = [subprocess.Popen([*command, str(own)], env=environment()) for own in folders]
    largest = together = seconds = 0.0
    while any(process.poll() is None for process in running):
        shares = [share(process.pid) for process in running]
        largest, together = max(largest, *shares), max(together, sum(shares))
        seconds = time.perf_counter() - begun
        time.sleep(PAUSE)
    failed = [process.pid for process in running if process.returncode]
    if failed:
        sys.exit(f"Notebook {number} failed for {len(failed)} of {learners} learners.")
    processor = used_by_children() - used
    return Sitting(number, learners, seconds, processor, largest, together)


def used_by_children() -> float:
    """Return the processor's seconds of all processes that were started here and have ended."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def environment() -> dict[str, str]:
    return {**os.environ, **LIMITS}


def share(pid: int) -> float:
    """MB of a learner's kernel and what it started; not of the process that drives the kernel."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
    return total / 2**20


def jupyterlab() -> float:
    """MB of a JupyterLab that has nothing open."""
    with tempfile.TemporaryDirectory(prefix="labutils-room-") as folder:
        command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
        command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--notebook-dir={folder}"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=environment() | private(folder), **silent)
        time.sleep(15)
        size = psutil.Process(process.pid).memory_full_info().uss / 2**20
        process.terminate()
        process.wait(30)
    return size


def private(folder: str) -> dict[str, str]:
    return {f"JUPYTER_{name}_DIR": folder for name in ("CONFIG", "DATA", "RUNTIME")}


def report(sittings: list[Sitting], server: float) -> list[str]:
    """Return the lines of the table, and what follows from it for a room."""
    columns = ("notebook", "learners", "seconds, slowest", "seconds of a core, all",
               "MB, largest learner", "MB, all together")  # fmt: skip
    lines = ["  ".join(columns)]
    for s in sittings:
        values = (s.notebook, s.learners, *map(round, (s.seconds, s.processor)),
                  *map(round, (s.largest, s.together)))  # fmt: skip
        cells = zip(values, columns, strict=True)
        lines.append("  ".join(f"{value:>{len(column)}}" for value, column in cells))
    cores = os.cpu_count()
    lines += [
        "",
        f"A JupyterLab with nothing open: {server:.0f} MB, on top for each learner.",
        "",
        f"EXTRAPOLATED, not measured: {ROOM} learners in the same notebook at the same moment",
    ]
    for number in dict.fromkeys(s.notebook for s in sittings):
        most = max((s for s in sittings if s.notebook == number), key=lambda s: s.learners)
        minutes = most.processor / most.learners * ROOM / cores / 60
        memory = (most.together / most.learners + server) * ROOM / 1024
        lines.append(
            f"  notebook {number}: {memory:.0f} GB of memory; at least {minutes:.0f} minutes on "
            f"these {cores} cores, and {minutes / 8:.1f} on {8 * cores} like them"
        )
    return lines


if __name__ == "__main__":
    main()
