"""Calls of a tool's functions, in a child process with the interpreter of its environment.

A program is a Python file whose public functions take plain values and arrays by name, and return
a dict of both, or None. It may run in an environment without the lab's packages. A crash, a hang or
an exception there is an error here, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import paths
from ..errors import LabError, ToolError
from ..processes import worker
from . import environment, lock

TIMEOUT = 3600.0  # seconds for one call: a conversion, a training

# Only the modules of the lab are found so, never the packages beside them. With `-I`, neither the
# current folder nor PYTHONPATH nor the user's own packages come in.
_START = """
import importlib.util, sys
place, parent, program, packages = sys.argv[1:]
if packages:
    sys.path.append(packages)
spec = importlib.util.spec_from_file_location(
    "labutils", place + "/__init__.py", submodule_search_locations=[place])
sys.modules["labutils"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from labutils.tools.program import main
main(int(parent), program)
"""


class Called(worker.Worker):
    """A child process with another interpreter that calls a program; started when first needed.

    Parameters
    ----------
    name
        What messages call it.
    python
        The interpreter; programs beside it come first on PATH.
    program
        The Python file whose functions are called; None for `versions` alone.
    variables
        More environment variables of the process.
    packages
        A folder of packages that it sees behind its own; "" for none.
    """

    def __init__(
        self,
        name: str,
        python: Path,
        program: Path | None = None,
        variables: Mapping[str, str] | None = None,
        packages: str = "",
    ) -> None:
        super().__init__()
        self.name, self.python, self.program = name, python, program
        self.variables, self.packages = dict(variables or {}), packages
        self.title = f"tool {name}"
        self._scratch = contextlib.ExitStack()

    def command(self) -> list[str]:
        """Return what starts the process."""
        start = [str(self.python), "-I", "-c", _START, str(paths.PACKAGE), str(os.getpid())]
        return [*start, str(self.program or ""), self.packages]

    def environment(self) -> dict[str, str]:
        """Return the variables of the process: programs of its packages come first on PATH.

        Its temporary files lie in a folder that ends with it: TensorFlow leaves many.
        """
        path = os.pathsep.join([str(self.python.parent), os.environ.get("PATH", "")])
        folder = self._scratch.enter_context(paths.scratch())
        return {**os.environ, **self.variables, "PATH": path, "TMPDIR": str(folder)}

    def _stop(self) -> None:
        super()._stop()
        self._scratch.close()

    def ask(self, function: str, timeout: float = TIMEOUT, **arguments: Any) -> dict[str, Any]:
        """Call a function of the program, and return what it returned.

        Parameters
        ----------
        function
            Its name.
        timeout
            Seconds after which the process is stopped.
        **arguments
            Plain values, paths and arrays.

        Raises
        ------
        ToolError
            The function raised an exception; with its name and its words.
        WorkerError
            The process died, hung or ran out of memory.
        """
        arrays = {n: value for n, value in arguments.items() if isinstance(value, np.ndarray)}
        plain = {n: _plain(value) for n, value in arguments.items() if n not in arrays}
        answer, results = self.call({"call": function, "arguments": plain}, arrays, timeout)
        if "error" in answer:
            kind, reason = answer["error"]["kind"], answer["error"]["reason"]
            message = f"{self.name} failed in {function}: {kind}: {reason}"
            raise ToolError(message, kind, reason)
        return {**answer["values"], **results}


class Tool(Called):
    """A tool of ``data/tools/`` that is installed and can be called.

    Parameters
    ----------
    name
        Of an installed tool.
    program
        As for `Called`.

    Raises
    ------
    UnknownNameError, MissingToolError
        There is no such tool, or it is not installed.
    """

    def __init__(self, name: str, program: Path | None = None) -> None:
        found = environment.survey(name)
        shared = environment.shared_packages(found.lock)
        super().__init__(name, found.python, program, found.lock.variables, shared)
        self.lock = found.lock

    def versions(self) -> dict[str, str]:
        """Import the tool's modules, and return the versions of its packages.

        Raises
        ------
        ToolError, WorkerError
            They cannot be imported.
        """
        packages = list(self.lock.versions)
        return self.ask("versions", modules=list(self.lock.modules), packages=packages)


def _plain(value: Any) -> Any:
    return str(value.absolute()) if isinstance(value, Path) else value  # it works elsewhere


@contextlib.contextmanager
def opened(name: str, program: Path | None = None) -> Iterator[Tool]:
    """Yield a tool that can be called; its process ends with the block.

    Raises
    ------
    UnknownNameError, MissingToolError
        There is no such tool, or it is not installed.
    """
    tool = Tool(name, program)
    try:
        yield tool
    finally:
        tool.close()


@dataclass(frozen=True)
class Probe:
    """Whether a tool's process starts and can import what the tool is for.

    Attributes
    ----------
    name
        The tool.
    versions
        Package -> version; empty when it failed.
    problem
        Why it failed; empty when it works.
    """

    name: str
    versions: dict[str, str]
    problem: str = ""


def probe(name: str) -> Probe:
    """Start a tool and import what it is for; whatever goes wrong is in the answer.

    Raises
    ------
    UnknownNameError
        There is no such tool.
    """
    lock.find(name)
    try:
        with opened(name) as tool:
            return Probe(name, tool.versions())
    except LabError as error:
        return Probe(name, {}, str(error))
