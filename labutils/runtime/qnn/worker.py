"""The child process that holds Qualcomm's native code: ``python -m labutils.runtime.qnn.worker``.

Its standard input and output carry the protocol of `channel`; file descriptors 1 and 2 lead to a
log file that the parent opened, so whatever the native libraries print cannot spoil an answer.
A thread reads the input all the time: when the parent dies, the worker ends at once, even in the
middle of a run. On Linux the kernel sees to it as well: a worker that is stopped reads nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import queue
import signal
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...onnxfile.session import options as session_options
from . import channel, dlc_executor, refusal

PROVIDER = "QNNExecutionProvider"
KEPT_SESSIONS = 4  # each holds a compiled network
_QUIET, _VERBOSE = 3, 0  # ONNX Runtime severities: errors only, everything

Arrays = dict[str, np.ndarray]
Answer = tuple[dict[str, Any], Arrays]


def main() -> None:
    """Serve the parent until it closes our standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _die_with_the_parent()
    incoming, outgoing = _take_over_standard_streams()
    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(incoming, requests), daemon=True).start()
    server = Server()
    while True:
        message, arrays = requests.get()
        answer, results = server.serve(message, arrays)
        _empty_log()
        channel.send(outgoing, answer, results)


_PR_SET_PDEATHSIG = 1  # prctl(2)


def _die_with_the_parent() -> None:
    if sys.platform != "linux" or len(sys.argv) < 2:
        return  # started by hand, or no such service: closed input ends us, unless we are stopped
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # it died before we asked
        os._exit(0)


def _take_over_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return incoming, outgoing


def _listen(incoming: BinaryIO, requests: queue.SimpleQueue) -> None:
    try:
        while True:
            requests.put(channel.receive(incoming))
    except (EOFError, OSError):
        os._exit(0)  # the parent closed us, or died: nobody wants what is being computed


def _empty_log() -> None:
    sys.stderr.flush()
    try:
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)
    except OSError:
        pass  # started by hand: standard error is a terminal


def _read_log() -> str:
    sys.stderr.flush()
    try:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # what the native code printed lies in C's buffers
        os.lseek(2, 0, os.SEEK_SET)
        parts = []
        while chunk := os.read(2, 1 << 20):
            parts.append(chunk)
    except OSError:
        return ""
    return b"".join(parts).decode(errors="replace")


class FileChangedError(Exception):
    """The file's content is not what the parent saw."""


class Server:
    """Sessions, by file content and options, and the calls that the parent may make."""

    def __init__(self) -> None:
        self.sessions: OrderedDict[str, Any] = OrderedDict()

    def serve(self, message: dict[str, Any], arrays: Arrays) -> Answer:
        """Answer one message; a Python error becomes an answer, too."""
        try:
            return getattr(self, "call_" + message["call"])(message, arrays)
        except refusal.Refused as error:
            if refusal.NO_MEMORY.search(error.facts["error"]):
                return {"no_memory": error.facts["error"]}, {}
            return {"refused": error.facts}, {}
        except MemoryError as error:
            return {"no_memory": str(error)}, {}
        except (FileChangedError, FileNotFoundError) as error:
            return {"bad_file": str(error)}, {}
        except (ImportError, NotImplementedError) as error:
            return {"missing": str(error)}, {}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}, {}

    def call_hello(self, message: dict[str, Any], arrays: Arrays) -> Answer:
        """Load the provider and say which versions are here."""
        import onnxruntime
        import onnxruntime_qnn

        devices = _devices()
        return {
            "devices": len(devices),
            "onnxruntime": onnxruntime.__version__,
            "onnxruntime_qnn": onnxruntime_qnn.__version__,
            "qnn": getattr(onnxruntime_qnn.build_and_package_info, "qnn_version", "unknown"),
        }, {}

    def call_build(self, message: dict[str, Any], arrays: Arrays) -> Answer:
        """Make a session (which writes a DLC or a context binary when the options say so)."""
        session = self._session(message)
        if isinstance(session, dlc_executor.Executor):
            return session.describe(), {}
        return {
            "inputs": [[i.name, i.shape, i.type] for i in session.get_inputs()],
            "outputs": [[o.name, o.shape, o.type] for o in session.get_outputs()],
        }, {}

    def call_listen(self, message: dict[str, Any], arrays: Arrays) -> Answer:
        """Make a session that says everything; answer what QNN did not take, though it was made."""
        _check_digest(message)
        _empty_log()
        _, error = _attempt(message["model"], message["options"], message["config"], _VERBOSE)
        return {"heard": refusal.parse(str(error or ""), _read_log())}, {}

    def call_run(self, message: dict[str, Any], arrays: Arrays) -> Answer:
        """Run a session once, and make it first if this process does not have it."""
        session = self._session(message)
        if isinstance(session, dlc_executor.Executor):
            return {}, session.run(arrays)
        names = [output.name for output in session.get_outputs()]
        return {}, dict(zip(names, session.run(names, arrays), strict=True))

    def _session(self, message: dict[str, Any]) -> Any:
        key = json.dumps([message["digest"], message["options"], message["config"]], sort_keys=True)
        if key in self.sessions:
            self.sessions.move_to_end(key)
            return self.sessions[key]
        _check_digest(message)
        if message["model"].endswith(".dlc"):
            session = _open_dlc(message["model"], message["options"])
        else:
            session = make_session(message["model"], message["options"], message["config"])
        if message.get("keep", True):
            self._keep(key, session)
        return session

    def _keep(self, key: str, session: Any) -> None:
        self.sessions[key] = session
        while len(self.sessions) > KEPT_SESSIONS:
            self.sessions.popitem(last=False)


def _open_dlc(model: str, options: dict[str, str]) -> dlc_executor.Executor:
    _empty_log()
    try:
        return dlc_executor.Executor(model, options)
    except refusal.Refused as error:  # the reasons are in the log, again
        facts = refusal.parse(error.facts["error"], _read_log())
        raise refusal.Refused(facts) from None


def _check_digest(message: dict[str, Any]) -> None:
    with Path(message["model"]).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != message["digest"]:
            raise FileChangedError(f"{message['model']} changed after it was connected")


def make_session(model: str, options: dict[str, str], config: dict[str, str]) -> Any:
    """Return a strict session; `refusal.Refused` with QNN's reasons when there is none.

    The reasons are only in the verbose log, which is long: the first attempt is quiet, and only
    a failed one is repeated.
    """
    _empty_log()
    session, error = _attempt(model, options, config, _QUIET)
    if error:
        session, error = _attempt(model, options, config, _VERBOSE)
    if error:
        raise refusal.Refused(refusal.parse(str(error), _read_log()))
    session.disable_fallback()  # else run() retries on the CPU silently
    return session


def _attempt(
    model: str, options: dict[str, str], config: dict[str, str], severity: int
) -> tuple[Any, Exception | None]:
    import onnxruntime

    settings = session_options(threads=1, severity=severity)
    settings.add_provider_for_devices(_devices(), options)
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for name, value in config.items():
        settings.add_session_config_entry(name, value)
    try:
        return onnxruntime.InferenceSession(model, settings), None
    except Exception as error:
        return None, error


def _devices() -> list[Any]:
    import onnxruntime
    import onnxruntime_qnn

    def found() -> list[Any]:
        return [d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER]

    if not found():
        onnxruntime.register_execution_provider_library(
            PROVIDER, onnxruntime_qnn.get_library_path()
        )
    return found()


if __name__ == "__main__":
    main()
