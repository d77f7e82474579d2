"""The child process that holds LiteRT's native code, seen from the parent."""

from __future__ import annotations

from typing import Any

from ...errors import MissingToolError, ModelFileError, WorkerError
from ...processes import worker
from ...processes.worker import TIMEOUT, Arrays, describe


class Worker(worker.LabWorker):
    """One child process with LiteRT's interpreter (`labutils.runtime.litert.worker`)."""

    title = "LiteRT worker"
    module = "labutils.runtime.litert.worker"

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
