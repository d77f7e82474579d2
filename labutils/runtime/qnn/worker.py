"""The child process that holds Qualcomm's native code: ``python -m labutils.runtime.qnn.worker``.

`labutils.processes.child` is its end of the wire.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from ...onnxfile.session import options as session_options
from ...processes import child
from ...processes.worker import NO_MEMORY
from . import dlc_executor, refusal

PROVIDER = "QNNExecutionProvider"
KEPT_SESSIONS = 4  # each holds a compiled network
_QUIET, _VERBOSE = 3, 0  # ONNX Runtime severities: errors only, everything

Arrays = dict[str, np.ndarray]
Answer = tuple[dict[str, Any], Arrays]


def main() -> None:
    """Serve the parent until it closes our standard input."""
    child.serve(Server().serve, int(sys.argv[1]) if len(sys.argv) > 1 else None)


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
            if NO_MEMORY.search(error.facts["error"]):
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
        child.empty_log()
        _, error = _attempt(message["model"], message["options"], message["config"], _VERBOSE)
        return {"heard": refusal.parse(str(error or ""), child.read_log())}, {}

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
    child.empty_log()
    try:
        return dlc_executor.Executor(model, options)
    except refusal.Refused as error:  # the reasons are in the log, again
        facts = refusal.parse(error.facts["error"], child.read_log())
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
    child.empty_log()
    session, error = _attempt(model, options, config, _QUIET)
    if error:
        session, error = _attempt(model, options, config, _VERBOSE)
    if error:
        raise refusal.Refused(refusal.parse(str(error), child.read_log()))
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
