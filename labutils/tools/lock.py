"""Which packages a tool needs, exactly: the lock files in ``data/tools/``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import annotated_types

from .. import paths
from ..errors import TableError, UnknownNameError
from ..validation import read_as

FOLDER = paths.DATA / "tools"
FORMAT = 1
_PINNED = re.compile(r"[A-Za-z0-9][\w.-]*==[\w.+!-]+")
_PYTHON = re.compile(r"3\.\d+")


@dataclass(frozen=True)
class Lock:
    """What one tool needs, as its lock file says.

    Attributes
    ----------
    title
        What the tool is, and whose.
    licence
        Of the tool itself, as its package declares it.
    megabytes
        What the installation adds to the disk.
    python
        Versions of Python (``"3.11"``) for which the packages were resolved; the first that this
        machine has is taken.
    packages
        The tool itself, as exact requirements.
    modules
        What `labutils tools probe` imports, and an installation before it counts.
    on_lab
        Whether the environment sees the lab's own packages (torch, onnx, ...) behind its own.
    dependencies
        All other packages, as exact requirements: nothing else is installed.
    accepted_by
        Of proprietary tools: who must accept the licence before anything is installed. Empty:
        nobody has to.
    variables
        Of the environment in which the tool runs.
    name
        As the file; it is not written there.
    """

    title: str
    licence: str
    megabytes: Annotated[int, annotated_types.Ge(1)]
    python: Annotated[tuple[str, ...], annotated_types.MinLen(1)]
    packages: Annotated[tuple[str, ...], annotated_types.MinLen(1)]
    modules: Annotated[tuple[str, ...], annotated_types.MinLen(1)]
    on_lab: bool = False
    dependencies: tuple[str, ...] = ()
    accepted_by: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    name: str = ""

    @property
    def requirements(self) -> tuple[str, ...]:
        """All packages."""
        return (*self.packages, *self.dependencies)

    @property
    def versions(self) -> dict[str, str]:
        """Package of the tool itself -> version."""
        return dict(package.split("==") for package in self.packages)

    @property
    def digest(self) -> str:
        """12 hexadecimal digits that change with what is installed."""
        content = [self.python, self.on_lab, sorted(self.requirements)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def read(file: str | Path) -> Lock:
    """Return a lock file, checked.

    Raises
    ------
    TableError
        It is malformed; with file and line.
    """
    file = Path(file)
    lock, fail = read_as(
        Lock, file.read_text(encoding="utf-8"), file.name, "a lock file of a tool", TableError,
        newest=FORMAT,
    )  # fmt: skip
    for key, pattern, wanted in (
        ("packages", _PINNED, "a package with its exact version, such as numpy==2.4.6"),
        ("dependencies", _PINNED, "a package with its exact version, such as numpy==2.4.6"),
        ("python", _PYTHON, "a version of Python, such as 3.11"),
    ):
        for index, word in enumerate(getattr(lock, key)):
            if not pattern.fullmatch(word):
                raise fail((key, index), f"expected {wanted}, found {word!r}")
    if lock.name:
        raise fail(("name",), "unknown key; a tool is called as its file")
    return dataclasses.replace(lock, name=file.stem)


def find(name: str) -> Lock:
    """Return the lock of a tool.

    Raises
    ------
    UnknownNameError
        There is none of this name.
    """
    if name not in names():
        raise UnknownNameError("tool", name, names())
    return read(FOLDER / f"{name}.yaml")


def names() -> list[str]:
    """Return the names of all tools that have a lock."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))
