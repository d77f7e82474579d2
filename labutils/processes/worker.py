"""The parent's end of one worker process: start it, ask it, and tell how it ended."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .. import paths
from ..errors import WorkerError
from . import channel

TIMEOUT = 300.0  # seconds for one call

Arrays = dict[str, np.ndarray]

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NO_MEMORY = re.compile(r"bad_alloc|cannot allocate memory", re.IGNORECASE)
"""How ONNX Runtime, QNN and the C library say that memory ran out. QNN's own MEM_ALLOC is none of
these: the HTP compiler says so of graphs that it cannot compile."""


class Worker:
    """One child process, started when first needed and again after it died.

    A subclass says what the process is called, which command starts it, and what its answers mean.
    """

    title = "worker"
    """What messages call it: ``QNN worker``."""

    fewer = ""
    """What helps when it runs out of memory, besides closing what else needs memory."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._log: Any = None
        self._lock = threading.Lock()

    def command(self) -> list[str]:
        """Return what starts the process."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return the environment variables of the process."""
        return dict(os.environ)

    @property
    def pid(self) -> int | None:
        """The process id, None while no process runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def call(
        self, message: dict[str, Any], arrays: Arrays | None = None, timeout: float = TIMEOUT
    ) -> tuple[dict[str, Any], Arrays]:
        """Send one message and return the answer.

        Raises
        ------
        WorkerError
            The process died (signal or exit code, last lines of its log), or gave no answer
            within `timeout` seconds and was stopped. The next call starts a fresh one.
        """
        with self._lock:
            process = self._running()
            box: queue.SimpleQueue = queue.SimpleQueue()
            exchange = (process, message, arrays, box)
            threading.Thread(target=_exchange, args=exchange, daemon=True).start()
            try:
                answer = box.get(timeout=timeout)
            except queue.Empty:
                tail = self._tail()
                self._stop()
                raise WorkerError(
                    f"The {self.title} gave no answer to {describe(message)} within "
                    f"{timeout:g} s and was stopped. Nothing else is harmed; try again, or give "
                    f"it longer (timeout=).{tail}"
                ) from None
            except BaseException:  # Ctrl-C: a late answer must not be read as the next one's
                self._stop()
                raise
            if isinstance(answer, Exception):
                raise self._crash(process, message)
            if "no_memory" in answer[0]:
                self._stop()  # a fresh one starts without what filled this one
                raise self._out_of_memory(message)
        return answer

    def close(self) -> None:
        """End the process, if there is one; the worker stays usable."""
        self._stop()

    def interrupt(self) -> None:
        """Kill the process under a call that another thread waits for; that call then fails."""
        process = self._process
        if process is not None:
            process.kill()

    def _running(self) -> subprocess.Popen:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            command, own = self.command(), self.environment()
            self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - lives as long as the process
            self._process = _spawner.submit(_spawn, command, own, self._log).result()
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        log, self._log = self._log, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()
        if log is not None:
            log.close()

    def _crash(self, process: subprocess.Popen, message: dict[str, Any]) -> WorkerError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        code = process.returncode
        tail = self._tail()
        self._stop()
        if NO_MEMORY.search(tail):
            return self._out_of_memory(message)
        return WorkerError(
            f"The {self.title} died ({_cause(code)}) in {describe(message)}. Nothing else is "
            f"harmed; the next call starts a fresh worker.{tail}"
        )

    def _out_of_memory(self, message: dict[str, Any]) -> WorkerError:
        return WorkerError(
            f"The {self.title} ran out of memory in {describe(message)} and was stopped. Nothing "
            "else is harmed; the next call starts a fresh worker. Close what else needs memory"
            f"{self.fewer}."
        )

    def _tail(self, lines: int = 8) -> str:
        self._log.seek(0)
        text = plain(self._log.read().decode(errors="replace"))
        last = [line for line in text.splitlines() if line.strip()][-lines:]
        return "".join(f"\n  | {line[:300]}" for line in last)


# Linux ends a worker, stopped or not, with the *thread* that started it (see `child.serve`): one
# thread, which lives as long as we do, starts them all.
_spawner = ThreadPoolExecutor(1, thread_name_prefix="worker-spawner")


class LabWorker(Worker):
    """A child process that runs a module of the lab in the lab's own Python."""

    module = ""
    """What it runs: ``labutils.runtime.qnn.worker``."""

    def command(self) -> list[str]:
        """Return what starts the process."""
        return [sys.executable, "-P", "-m", self.module, str(os.getpid())]

    def environment(self) -> dict[str, str]:
        """Return the environment variables of the process, where it finds the lab."""
        places = [str(paths.ROOT)] if paths.CHECKOUT else []  # an installed package is found anyway
        places += filter(None, [os.environ.get("PYTHONPATH")])
        return {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1"}


def renew_spawner() -> None:
    """Give a forked child its own spawner: threads do not survive a fork."""
    global _spawner
    _spawner = ThreadPoolExecutor(1, thread_name_prefix="worker-spawner")


def _spawn(command: list[str], own: dict[str, str], log: Any) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=tempfile.gettempdir(),  # native code must not write into the user's folder
        env=own,
        # Its own group, for systems other than Linux: a stopped group that nobody is left to
        # continue is ended by the system.
        process_group=0 if os.name == "posix" else None,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _exchange(
    process: subprocess.Popen, message: dict, arrays: Arrays | None, box: queue.SimpleQueue
) -> None:
    pipes: Any = process  # `_spawn` makes both, and they carry bytes
    try:
        channel.send(pipes.stdin, message, arrays)
        box.put(channel.receive(pipes.stdout))
    except (OSError, EOFError, ValueError) as error:  # ValueError: closed while we waited
        box.put(error)


def _cause(code: int | None) -> str:
    if code is None:
        return "its channel closed"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def plain(text: str) -> str:
    """Return `text` without terminal colours."""
    return _COLOUR.sub("", text)


def describe(message: dict[str, Any]) -> str:
    """Return what a message asks for, with the model's name where it names one."""
    model = f" {Path(message['model']).name}" if "model" in message else ""
    return f"{message['call']}{model}"
