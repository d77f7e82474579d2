"""Workers that share the images of a batch, and whether they can work here at all."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import queue
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import paths
from ...errors import ConvertError, LabError, MissingToolError, UsageError, WorkerError
from ...onnxfile.file import OnnxFile
from ...tracking import Progress, tracked
from . import bisection, process, refusal
from . import options as qnn_options
from .process import TIMEOUT, Arrays, Worker


@dataclass(frozen=True)
class Graph:
    """A model file as a session: the same file content and options are the same session.

    `config` holds ONNX Runtime session entries (context binaries are asked for there); `onnx` is
    the file opened, where it was given so.
    """

    file: Path
    options: dict[str, str]
    config: dict[str, str] = field(default_factory=dict)
    digest: str = ""
    onnx: OnnxFile | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        file: OnnxFile | str | Path,
        options: dict[str, Any],
        config: dict[str, str] | None = None,
    ) -> Graph:
        """Return `file` with checked provider options, identified by its content."""
        opened, file = file if isinstance(file, OnnxFile) else None, Path(file).resolve()
        checked = qnn_options.check(options)
        return cls(file, checked, dict(config or {}), paths.sha256(file), opened)

    def message(self, call: str, **more: object) -> dict[str, Any]:
        """Return the message that asks a worker to do `call` with this graph."""
        return {
            "call": call,
            "model": str(self.file),
            "digest": self.digest,
            "options": self.options,
            "config": self.config,
            **more,
        }


class Pool:
    """Some workers that share out the images of a batch: the simulator itself is serial.

    Parameters
    ----------
    workers
        Processes at most; each keeps its own sessions (``benchmarks/room.py`` measures).
    timeout
        Seconds for one call (one compile, one image) before a worker counts as hung.
    """

    def __init__(self, workers: int = 2, timeout: float = TIMEOUT) -> None:
        if workers < 1:
            raise UsageError(f"workers={workers}: a pool needs at least one.")
        self.timeout = timeout
        self._start(workers)
        _pools.add(self)

    def _start(self, workers: int) -> None:
        self.workers = [Worker() for _ in range(workers)]
        self._free: queue.LifoQueue[Worker] = queue.LifoQueue()  # the last used has the sessions
        for worker in reversed(self.workers):
            self._free.put(worker)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes; a later call starts new ones."""
        for worker in self.workers:
            worker.close()

    def hello(self) -> dict[str, Any]:
        """Return the versions that a worker reports."""
        with self._borrowed() as worker:
            return worker.call({"call": "hello"}, timeout=self.timeout)[0]

    def build(self, graph: Graph, doing: str, *, keep: bool = True) -> dict[str, Any]:
        """Make the session of `graph` and return its inputs and outputs, [name, shape, type].

        Raises
        ------
        ConvertError
            QNN refuses the graph; the message names nodes, operators, modules and reasons.
        WorkerError
            The process crashed or hung.
        """
        require()
        with self._borrowed() as worker:
            return self._ask(worker, graph, "build", doing, {}, keep=keep)[0]

    def why_split(self, graph: Graph, doing: str) -> ConvertError:
        """Return the error of a graph that QNN took in parts, with the nodes between them.

        ONNX Runtime writes an operator that no provider takes as the ONNX functions that it is
        made of, and offers those: every node then runs, but the graph is not one any more.
        """
        with self._borrowed() as worker:
            answer, _ = worker.call(graph.message("listen"), {}, self.timeout)
        return refusal.split(graph.onnx or graph.file, answer["heard"], doing)

    def run(
        self, graph: Graph, items: list[Arrays], progress: Progress | None = None
    ) -> list[Arrays]:
        """Run `graph` on each item (its named inputs); results in the order of the items.

        A DLC is executed itself: its graph is composed on the HTP simulator.
        """
        return self._spread(graph, items, progress)

    def _spread(self, graph: Graph, items: list[Arrays], progress: Progress | None) -> list[Arrays]:
        require()  # before a worker is borrowed: the probe borrows one, too
        results: list[Arrays] = [{} for _ in items]
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for index in range(len(items)):
            todo.put(index)
        stop, busy = threading.Event(), []

        def work() -> None:
            with self._borrowed() as worker:
                busy.append(worker)
                while not stop.is_set():
                    try:
                        index = todo.get_nowait()
                    except queue.Empty:
                        return
                    try:
                        answer = self._ask(worker, graph, "run", "running it", items[index])
                        results[index] = answer[1]
                        done.put(None)
                    except BaseException as error:
                        done.put(error)
                        return

        threads = [
            threading.Thread(target=work, daemon=True)
            for _ in range(min(len(items), len(self.workers)))
        ]
        try:
            for thread in threads:
                thread.start()
            for _ in tracked(range(len(items)), "HTP simulator", "images", progress):
                if error := done.get():
                    raise error
        except LabError:
            raise
        except BaseException:  # Ctrl-C must not wait for a worker that may hang
            stop.set()  # first, so that no thread asks another one after this
            for worker in busy:
                worker.interrupt()
            raise
        finally:
            stop.set()
            for thread in threads:
                if thread.ident is not None:  # an interrupt may come before it has begun
                    thread.join()
        return results

    def _ask(
        self, worker: Worker, graph: Graph, call: str, doing: str, arrays: Arrays, **more: object
    ) -> tuple[dict[str, Any], Arrays]:
        message = graph.message(call, **more)
        answer, results = worker.call(message, arrays, self.timeout)
        if "refused" in answer:
            facts = self._named(worker, graph, answer["refused"])
            raise refusal.refuse(graph.onnx or graph.file, facts, doing)
        return answer, results

    def _named(self, worker: Worker, graph: Graph, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the facts of a refusal; where the compiler names no node, with the one found."""
        if not refusal.names_no_node(facts) or graph.file.suffix == ".dlc":
            return facts

        def compiles(part: Path) -> bool:
            message = Graph.of(part, graph.options).message("build", keep=False)
            return "refused" not in worker.call(message, {}, self.timeout)[0]

        found = bisection.first_refused(graph.onnx or OnnxFile(graph.file), compiles)
        return facts if found is None else refusal.with_node(facts, found)

    @contextlib.contextmanager
    def _borrowed(self) -> Any:
        worker = self._free.get()
        try:
            yield worker
        finally:
            self._free.put(worker)

    def _forget(self) -> None:
        self._start(len(self.workers))


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def shared(workers: int = 2) -> Pool:
    """Return the pool that everything in this process shares, so that sessions are reused.

    ``LABUTILS_WORKERS`` limits its processes: 1 where many learners share one server.

    Raises
    ------
    UsageError
        ``LABUTILS_WORKERS`` is not a whole number of at least 1.
    """
    return _shared(min(workers, _most_workers() or workers))


@functools.cache
def _shared(workers: int) -> Pool:
    return Pool(workers)


def _most_workers() -> int | None:
    text = os.environ.get("LABUTILS_WORKERS")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text)):
        raise UsageError(f"LABUTILS_WORKERS={text!r}: give a number of processes, at least 1.")
    return int(text)


@atexit.register
def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


def _forget_all() -> None:
    # A forked child must not talk on, or close, its parent's channels; and it has no spawner yet.
    process.renew_spawner()
    for pool in list(_pools):
        pool._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


@dataclass(frozen=True)
class Availability:
    """Whether Qualcomm's native code runs here; `reason` is one sentence with the cure."""

    ok: bool
    reason: str
    versions: dict[str, str]

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{'present' if self.ok else 'absent'}: {self.reason}" + (listed and f" ({listed})")

    def __repr__(self) -> str:
        return str(self)


@functools.cache
def probe() -> Availability:
    """Say whether the QNN provider loads here, by loading it in a worker (once per process)."""
    from importlib import util

    if util.find_spec("onnxruntime_qnn") is None:
        return Availability(False, _why_no_wheel(), {})
    try:
        facts = shared().hello()
    except (WorkerError, MissingToolError) as error:
        first = str(error).splitlines()
        reason = f"onnxruntime-qnn is installed but does not load: {' '.join(first)[:400]}"
        return Availability(False, reason, paths.versions("onnxruntime-qnn", "onnxruntime"))
    versions = {
        "QNN": facts["qnn"],
        "onnxruntime_qnn": facts["onnxruntime_qnn"],
        "onnxruntime": facts["onnxruntime"],
    }
    if not facts["devices"]:
        cure = "reinstall it, at the pinned version"
        return Availability(False, f"the QNN provider loads but offers no device: {cure}", versions)
    return Availability(True, "QNN's DLC writer and HTP simulator load in a worker.", versions)


def _why_no_wheel() -> str:
    import platform

    system, libc = platform.system(), platform.libc_ver()
    rest = "everything else works without it."
    old = "onnxruntime-qnn needs glibc 2.35 or newer (Ubuntu 22.04 or later)"
    if system == "Darwin":
        return f"Qualcomm publishes no onnxruntime-qnn wheel for macOS; {rest}"
    if system == "Linux" and libc[0] != "glibc":
        return f"{old}, and this system has another libc; {rest}"
    if system == "Linux" and tuple(map(int, libc[1].split(".")[:2])) < (2, 35):
        return f"{old}, and this system has glibc {libc[1]}; {rest}"
    return f"onnxruntime-qnn is not installed: pip install onnxruntime-qnn==2.7.0; {rest}"


def require() -> Availability:
    """Return the probe's answer, or raise MissingToolError with the cure."""
    found = probe()
    if not found.ok:
        raise MissingToolError(f"This step needs Qualcomm's onnxruntime-qnn. {found.reason}")
    return found
