"""The child process that holds LiteRT's native code, seen from the parent."""

from __future__ import annotations

import os
import sys
from typing import Any

from ... import paths
from ...errors import MissingToolError, ModelFileError, WorkerError
from ...processes import worker
from ...processes.worker import TIMEOUT, Arrays, describe


class Worker(worker.Worker):
    """One child process with LiteRT's interpreter (`labutils.runtime.litert.worker`)."""

    title = "LiteRT worker"

    def command(self) -> list[str]:
        """Return what starts the process."""
        return [sys.executable, "-P", "-m", "labutils.runtime.litert.worker", str(os.getpid())]

    def environment(self) -> dict[str, str]:
        """Return the environment variables of the process, where it finds the lab."""
        places = [str(paths.ROOT)] if paths.CHECKOUT else []  # an installed package is found anyway
        places += filter(None, [os.environ.get("PYTHONPATH")])
        return {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1"}

    def call(
        self, message: dict[str, Any], arrays: Arrays | None = None, timeout: float = TIMEOUT
    ) -> tuple[dict[str, Any], Arrays]:
        """Send one message and return the answer.

        Raises
        ------
        WorkerError
            As in `labutils.processes.worker.Worker.call`.
        ModelFileError
            LiteRT cannot open or run the file; the message has its own words.
        MissingToolError
            The wheel is not here.
        """
        answer = super().call(message, arrays, timeout)
        if "missing" in answer[0]:
            raise MissingToolError(f"LiteRT cannot do {describe(message)}: {answer[0]['missing']}.")
        if "refused" in answer[0]:
            raise ModelFileError(str(answer[0]["refused"]))
        if "error" in answer[0]:
            raise WorkerError(f"LiteRT failed in {describe(message)}: {answer[0]['error']}")
        return answer
