"""The quantizers of others, each in the environment of its tool (`labutils tools`).

A peer's program lies beside this module and is called in that environment (`labutils.tools`):
``quantize(folder)`` reads float.onnx, calibration.npy and settings.json there and writes made.onnx
(or another ending) and seconds.txt; those with their own runtime have ``run`` and ``ratio`` as
well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labutils.tools import calling, environment, lock


@dataclass(frozen=True)
class Environment:
    """The environment of one tool, and the program that calls it.

    Attributes
    ----------
    name
        What rows call it.
    tool
        Its lock file's name in ``data/tools/``.
    program
        File name of the program, beside this module.
    runtime, suffix
        What runs the files that it writes (``ORT``: ONNX Runtime), and their ending.
    """

    name: str
    tool: str
    program: str
    runtime: str = "ORT"
    suffix: str = ".onnx"

    @property
    def packages(self) -> tuple[str, ...]:
        """The tool's own packages, as exact requirements."""
        return lock.find(self.tool).packages

    @property
    def versions(self) -> dict[str, str]:
        """Package -> version."""
        return lock.find(self.tool).versions

    @property
    def script(self) -> Path:
        """The program."""
        return Path(__file__).with_name(self.program)

    def ask(self, function: str, **arguments: Any) -> dict[str, Any]:
        """Call a function of the program in the environment, which is made if it does not exist.

        Raises
        ------
        LabError
            The environment cannot be made, or the function failed; with its own words.
        """
        environment.install(self.tool, echo=print)
        with calling.opened(self.tool, self.script) as tool:
            return tool.ask(function, timeout=LONGEST, **arguments)

    def __str__(self) -> str:
        return " ".join(self.packages)


LONGEST = 6 * 3600.0  # seconds of one call: the slowest trains a network

ENVIRONMENTS = {
    made.name: made
    for made in (
        Environment("litert", "litert", "litert_quantize.py", "LiteRT", ".tflite"),
        Environment("executorch", "executorch", "executorch_quantize.py", "ExecuTorch", ".pte"),
        Environment("nncf", "nncf", "nncf_quantize.py"),
        Environment("nncf_train", "nncf", "nncf_train.py"),
        Environment("aimet", "aimet-onnx", "aimet_quantize.py"),
        Environment("aimet_train", "aimet-torch", "aimet_train.py"),
    )
}
"""Name -> environment."""
