"""Latency and frame rate under concurrent requests, on this machine.

Each request has its own session with one thread inside the operators, as a vendor's table has
it ("single-threaded", "multi-threaded", frames per second). Everything is measured in turns: in
every round each model runs at each number of requests, so what else the machine does disturbs all
of them alike.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import runtime, tabular
from ..errors import ModelFileError, UsageError, counted
from ..onnxfile.file import OnnxFile
from ..onnxfile.session import Session
from ..tracking import Progress, tracked

Run = Callable[[], object]
"""One request: runs the model once."""

THREADS = (1, 2, 4, 8)
MOST_THREADS = 64
_KINDS = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(uint16)": np.uint16,
    "tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How often things are run.

    Attributes
    ----------
    threads
        Numbers of concurrent requests.
    rounds
        Each gives one figure per model and number of requests; the median of the rounds counts.
    frames
        Runs of each request in a round.
    warm_up
        Runs of each session before anything is timed.
    """

    threads: tuple[int, ...] = THREADS
    rounds: int = 9
    frames: int = 20
    warm_up: int = 5

    def __post_init__(self) -> None:
        if not self.threads or not all(1 <= n <= MOST_THREADS for n in self.threads):
            raise UsageError(
                f"--threads takes numbers from 1 to {MOST_THREADS}, not {self.threads}."
            )
        if min(self.rounds, self.frames) < 1 or self.warm_up < 0:
            raise UsageError("At least one round of one frame is timed.")


@dataclass(frozen=True)
class Median:
    """A median with its interval.

    Attributes
    ----------
    value
        The median of `n` figures.
    low, high
        Two of the figures, between which the true median lies with a probability of at least 95 %;
        with fewer than six figures the smallest and the largest, which say less.
    n
        Number of figures.
    """

    value: float
    low: float
    high: float
    n: int

    def text(self, digits: int) -> str:
        """Return it with its interval."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def median(figures: Sequence[float]) -> Median:
    """Return the median of some figures, with an interval that assumes nothing of their law.

    Notes
    -----
    The k-th smallest and the k-th largest of n figures enclose the median with probability
    ``1 - 2 P(B < k)``, B binomial with n throws of a fair coin (David, H. A. & Nagaraja, H. N.,
    Order Statistics, 2003, section 7.1).
    """
    if not len(figures):
        raise UsageError("A median needs at least one figure.")
    ordered, n = sorted(figures), len(figures)
    rank, below = 0, 0.0
    while rank < n // 2:
        below += math.comb(n, rank) / 2**n
        if 2 * below > 0.05:
            break
        rank += 1
    place = max(rank - 1, 0)
    return Median(float(np.median(ordered)), ordered[place], ordered[n - 1 - place], n)


@dataclass(frozen=True)
class Row:
    """One model at one number of concurrent requests.

    Attributes
    ----------
    model, runtime
        What ran, and on what.
    requests
        Concurrent requests.
    latency_ms
        Of a request, the median of a round's; over the rounds.
    frames_per_second
        All requests together.
    """

    model: str
    runtime: str
    requests: int
    latency_ms: Median
    frames_per_second: Median


@dataclass(frozen=True, repr=False)
class Throughput(tabular.Table):
    """What was measured, as a table.

    Attributes
    ----------
    rows
        By model, then by requests.
    plan
        How often things were run.
    machine
        The processor, as a phrase.
    cores
        That this process may use.
    """

    rows: tuple[Row, ...]
    plan: Plan
    machine: str
    cores: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, for JSON."""
        rows = [
            {
                "model": row.model, "runtime": row.runtime, "requests": row.requests,
                "latency_ms": vars(row.latency_ms),
                "frames_per_second": vars(row.frames_per_second),
            }
            for row in self.rows
        ]  # fmt: skip
        return {"machine": self.machine, "cores": self.cores, "plan": vars(self.plan), "rows": rows}

    def _parts(self) -> tuple[str, Sequence[str], tabular.Rows, list[str]]:
        plan = self.plan
        title = (
            f"Concurrent requests on {self.machine}, {counted(self.cores, 'core')}: each has a "
            f"session with one thread; medians of {plan.rounds} rounds of {plan.frames} frames, in "
            "turns"
        )
        rows = [
            (row.model, row.runtime, str(row.requests), row.latency_ms.text(2),
             row.frames_per_second.text(1))
            for row in self.rows
        ]  # fmt: skip
        notes = ["Times of this machine; they say nothing of another processor."]
        if max(plan.threads) > self.cores:
            notes.append(
                f"Above {counted(self.cores, 'request')} they wait for each other: the latency "
                "grows with their number and the frame rate stays. A vendor's table behaves so "
                "above the number of accelerator cores, for the same reason."
            )
        if plan.rounds < 6:
            notes.append("With fewer than 6 rounds the brackets are the extremes, not 95 %.")
        columns = ("model", "runtime", "requests", "latency ms [95 %]", "frames/s [95 %]")
        return title, columns, rows, notes


def measure(
    models: Mapping[str, tuple[str, Callable[[], Run]]],
    plan: Plan,
    progress: Progress | None = None,
) -> Throughput:
    """Run models under concurrent requests, and return the medians.

    Parameters
    ----------
    models
        Name -> the runtime, and what opens a new session and returns its request.
    plan
        How often.
    progress
        Follows the rounds.
    """
    if not models:
        raise UsageError("No model to measure: pass at least one.")
    most = max(plan.threads)
    opened = {name: [make() for _ in range(most)] for name, (_, make) in models.items()}
    for runs in opened.values():
        for run in runs:
            for _ in range(plan.warm_up):
                run()
    taken: dict[tuple[str, int], list[tuple[float, float]]] = {
        (name, n): [] for name in models for n in plan.threads
    }
    for _ in tracked(range(plan.rounds), "measuring", "rounds", progress):
        for (name, n), figures in taken.items():
            figures.append(_round(opened[name][:n], plan.frames))
    rows = tuple(
        Row(name, models[name][0], n, median([1e3 * latency for latency, _ in figures]),
            median([rate for _, rate in figures]))
        for (name, n), figures in taken.items()
    )  # fmt: skip
    return Throughput(rows, plan, _processor(), _cores())


def _round(runs: Sequence[Run], frames: int) -> tuple[float, float]:
    """Return the median latency of a request in seconds, and frames per second of all."""
    start = threading.Barrier(len(runs) + 1)
    latencies: list[list[float]] = [[] for _ in runs]
    failed: list[Exception] = []

    def work(run: Run, found: list[float]) -> None:
        start.wait()
        try:
            for _ in range(frames):
                before = time.perf_counter()
                run()
                found.append(time.perf_counter() - before)
        except Exception as error:  # raised again where the round is awaited
            failed.append(error)

    workers = [
        threading.Thread(target=work, args=pair, daemon=True)
        for pair in zip(runs, latencies, strict=True)
    ]
    for worker in workers:
        worker.start()
    start.wait()
    begun = time.perf_counter()
    for worker in workers:
        worker.join()
    wall = time.perf_counter() - begun
    if failed:
        raise failed[0]
    done = [latency for found in latencies for latency in found]
    return float(np.median(done)), len(done) / wall


def opener(artifact: Any, size: tuple[int, int] | None = None) -> tuple[str, Callable[[], Run]]:
    """Return the runtime of a model, and what opens a session with one thread.

    Parameters
    ----------
    artifact
        A module, an `OnnxFile`, or the path of an ``.onnx`` or ``.tflite``.
    size
        Height and width, where an input leaves them open, or of a module's picture.

    Raises
    ------
    ModelFileError
        Its time on this machine means nothing, or an input cannot be made.
    MissingToolError
        It is a ``.tflite``, and LiteRT is not here.
    """
    if str(artifact).lower().endswith(".dlc"):
        raise ModelFileError(
            f"{Path(str(artifact)).name} runs on the HTP simulator here, whose time says nothing "
            "about a chip's. Measure it on the device; measure the .onnx here."
        )
    if isinstance(artifact, OnnxFile) or str(artifact).lower().endswith(".onnx"):
        import onnxruntime

        file = OnnxFile.of(artifact)

        def make() -> Run:
            session = Session(file, threads=1, exact_products=False)  # as its users run it
            feeds = {name: _made(name, shape, kind, size) for name, shape, kind in session.inputs}
            return lambda: session.run(feeds)

        return f"ONNX Runtime {onnxruntime.__version__} CPU", make
    if str(artifact).lower().endswith(".tflite"):
        return _litert(artifact)
    return _module(artifact, size or (224, 224))


def _litert(file: Any) -> tuple[str, Callable[[], Run]]:
    """Return sessions of LiteRT in this process; a child runs the file first.

    So a damaged file ends the child, and no time is that of handing pictures over.
    """
    from ..runtime import litert

    with litert.LiteRtRunner(file, threads=1) as first:
        first.run(np.zeros([n or 1 for n in first.shape], np.float32))
        words = first.runtime

    def make() -> Run:
        from ai_edge_litert.interpreter import Interpreter

        session = Interpreter(str(file), num_threads=1)
        session.allocate_tensors()
        (entry,) = session.get_input_details()
        session.set_tensor(entry["index"], _noise(list(entry["shape"]), entry["dtype"]))
        return session.invoke

    return words, make


def _module(module: Any, size: tuple[int, int]) -> tuple[str, Callable[[], Run]]:
    import torch

    picture = np.random.default_rng(0).normal(size=(1, 3, *size)).astype(np.float32)

    def make() -> Run:
        torch.set_num_threads(1)
        runner = runtime.connect(module)
        return lambda: runner.run(picture)

    return f"PyTorch {torch.__version__.split('+')[0]} CPU", make


def _made(name: str, shape: list[Any], kind: str, size: tuple[int, int] | None) -> np.ndarray:
    """Return one input: noise of its type, an open batch as 1, open sides as `size`."""
    if kind not in _KINDS:
        raise ModelFileError(f"Input '{name}' is {kind}, of which no noise can be made.")
    open_ = [i for i, n in enumerate(shape) if not isinstance(n, int) or n < 1]
    dims = [n if i not in open_ else 1 for i, n in enumerate(shape)]
    inner = [i for i in open_ if i > 0]
    if inner and (len(shape) != 4 or inner != [2, 3]):
        raise ModelFileError(
            f"Input '{name}' of shape {shape} leaves sizes open, and only height and width of a "
            "picture in NCHW can be given (--size). Export the network with fixed sizes."
        )
    if inner and size is None:
        raise ModelFileError(f"Input '{name}' of shape {shape} leaves sizes open: pass --size.")
    for i, n in zip(inner, size or (), strict=False):
        dims[i] = n
    return _noise(dims, _KINDS[kind])


def _noise(dims: list[int], dtype: Any) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=dims)
    if np.issubdtype(dtype, np.floating):
        return noise.astype(dtype)
    return (np.abs(noise) * 40 if dtype == np.uint8 else noise > 0).astype(dtype)


def _processor() -> str:
    """Return the processor's model, where the system says it; else its architecture."""
    with contextlib.suppress(OSError):
        said = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.M)
        if said:
            return said[1].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
