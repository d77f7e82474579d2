"""The child process that holds a tool: it calls the functions of one Python file.

It runs with the interpreter of the tool's environment, which may have nothing of the lab's but
these modules and `labutils.processes`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..processes import child

if TYPE_CHECKING:
    from types import ModuleType

    from ..processes.child import Answer, Arrays

PLAIN = (bool, int, float, str, list, tuple, dict, type(None))


def main(parent: int, file: str) -> None:
    """Serve the parent with the functions of a file; without one, only `versions`."""
    program = Program(file)
    child.serve(program.answer, parent)


class Program:
    """A Python file whose public functions the parent calls.

    Parameters
    ----------
    file
        Its path; "" for none. What lies beside it can be imported.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.module: ModuleType | None = None

    def answer(self, message: dict[str, Any], arrays: Arrays) -> Answer:
        """Call one function; whatever it raises becomes an answer, too."""
        try:
            if message["call"] == "versions":
                return {"values": versions(message["arguments"])}, {}
            function = getattr(self._loaded(), message["call"])
            return sorted_out(function(**message["arguments"], **arrays))
        except MemoryError as error:
            return {"no_memory": str(error)}, {}
        except BaseException as error:  # SystemExit is not a reason to leave without an answer
            reason = str(error).strip() or "no reason given"
            return {"error": {"kind": type(error).__name__, "reason": reason}}, {}

    def _loaded(self) -> ModuleType:
        if self.module is None:
            place = Path(self.file)
            sys.path.append(str(place.parent))
            spec = importlib.util.spec_from_file_location(place.stem, place)
            if spec is None or spec.loader is None:
                raise ImportError(f"{place} is not a Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[place.stem] = module
            spec.loader.exec_module(module)
            self.module = module  # not before: one that could not be imported is tried again
        return self.module


def sorted_out(result: dict[str, Any] | None) -> Answer:
    """Split what a function returned into plain values and arrays."""
    result = {} if result is None else result
    plain = {name: value for name, value in result.items() if isinstance(value, PLAIN)}
    return {"values": plain}, {n: value for n, value in result.items() if n not in plain}


def versions(asked: dict[str, list[str]]) -> dict[str, str]:
    """Import modules, and return the versions of packages."""
    if importlib.util.find_spec("torchvision"):  # beside a torch build of another variant, too
        from .. import _torchvision

        _torchvision.load()
    for name in asked["modules"]:
        importlib.import_module(name)
    return {name: metadata.version(name) for name in asked["packages"]}
