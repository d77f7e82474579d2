"""The worker processes that hold Qualcomm's native code, seen from the parent."""

from __future__ import annotations

from typing import Any

from ...errors import MissingToolError, ModelFileError, WorkerError
from ...processes import worker
from ...processes.worker import TIMEOUT, Arrays, describe, renew_spawner

__all__ = ["TIMEOUT", "Arrays", "Worker", "renew_spawner"]


class Worker(worker.LabWorker):
    """One child process with the provider of QNN (`labutils.runtime.qnn.worker`)."""

    title = "QNN worker"
    module = "labutils.runtime.qnn.worker"
    fewer = ", set LABUTILS_WORKERS=1, or take a smaller input (--size)"

    def call(
        self, message: dict[str, Any], arrays: Arrays | None = None, timeout: float = TIMEOUT
    ) -> tuple[dict[str, Any], Arrays]:
        """Send one message and return the answer.

        Raises
        ------
        WorkerError
            As in `labutils.processes.worker.Worker.call`, or QNN failed.
        ModelFileError, MissingToolError
            The file is not what it was, or something that QNN needs is not here.
        """
        answer = super().call(message, arrays, timeout)
        if "bad_file" in answer[0]:
            raise ModelFileError(f"{answer[0]['bad_file']}: connect it again.")
        if "missing" in answer[0]:
            raise MissingToolError(f"QNN cannot do {describe(message)}: {answer[0]['missing']}.")
        if "error" in answer[0]:
            raise WorkerError(f"QNN failed in {describe(message)}: {answer[0]['error']}")
        return answer
