"""Virtual environments of tools, kept in the cache: installed, looked at, removed.

Every installation gets its own folder under a new name. What makes it count is a record beside
the folders, ``NAME.json``, which is written last: an installation that was interrupted has none,
and its folder is deleted by the next one. So a working tool also stays while a newer one is made.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import _torchvision, paths, untrusted
from ..errors import LabError, MissingToolError, UsageError, counted, worded
from . import lock
from .lock import Lock

State = Literal["installed", "absent", "interrupted", "outdated", "damaged"]

PLACE = "LABUTILS_TOOLS"
"""The environment variable that moves all environments, such as to a folder that a room shares."""

_MAX_RECORD_BYTES = 1 << 16
_INSTALL_S = 3600.0  # of pip; a slow network takes its time over two gigabytes


def place() -> Path:
    """Return the folder of all environments: in the cache, or the one that `PLACE` names."""
    named = os.environ.get(PLACE)
    return paths.expanded(named) if named else paths.cache_place() / "tools"


@dataclass(frozen=True)
class Environment:
    """One tool's environment on this machine.

    Attributes
    ----------
    lock
        What it needs.
    state
        ``installed``; ``absent``; ``interrupted`` (what lies there is not an installation);
        ``outdated`` (made from another lock file); ``damaged`` (its interpreter is gone).
    folder
        Where it is, None unless it was installed.
    """

    lock: Lock
    state: State
    folder: Path | None

    @functools.cached_property
    def bytes(self) -> int:
        """What lies on the disk, of an interrupted installation, too: every file is looked at."""
        return sum(map(_bytes_in, _folders(self.lock.name)))

    @property
    def python(self) -> Path:
        """The interpreter.

        Raises
        ------
        MissingToolError
            The tool is not installed, or not as its lock file says.
        """
        if self.state != "installed" or self.folder is None:
            raise MissingToolError(
                f"The tool {self.lock.name} ({self.lock.title}) is {_SAID[self.state]}. Run "
                f"`labutils tools install {self.lock.name}` ({self.lock.megabytes:,} MB)."
            )
        return _interpreter(self.folder)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for ``--json``."""
        return {
            "name": self.lock.name, "title": self.lock.title, "state": self.state,
            "bytes": self.bytes, "megabytes_wanted": self.lock.megabytes,
            "licence": self.lock.licence, "accepted_by": self.lock.accepted_by,
            "python": list(self.lock.python), "packages": list(self.lock.packages),
            "folder": str(self.folder or ""),
        }  # fmt: skip


_SAID: dict[State, str] = {
    "installed": "installed",
    "absent": "not installed",
    "interrupted": "not installed: its installation was interrupted",
    "outdated": "installed from another lock file",
    "damaged": "damaged: its interpreter is gone",
}


def survey(name: str) -> Environment:
    """Return the state of a tool on this machine.

    Raises
    ------
    UnknownNameError
        No tool has this name.
    """
    wanted = lock.find(name)
    record, folders = _record(name), _folders(name)
    folder = place() / record["folder"] if record else None
    if record is None or folder is None:
        return Environment(wanted, "interrupted" if folders else "absent", None)
    if not _interpreter(folder).exists():
        return Environment(wanted, "damaged", folder)
    state: State = "installed" if record["lock"] == wanted.digest else "outdated"
    return Environment(wanted, state, folder)


def install(
    name: str, *, accept: bool = False, echo: Callable[[str], object] = lambda line: None
) -> Environment:
    """Install a tool into a separate environment, unless it is there already.

    Parameters
    ----------
    name
        Of a lock file in ``data/tools/``.
    accept
        Whether the caller accepts the licence, which proprietary tools ask for.
    echo
        Called with a line before each step that takes time.

    Raises
    ------
    UsageError
        The tool is proprietary, and its licence was not accepted.
    MissingToolError
        This machine has no Python of a version that the tool is locked for.
    LabError
        pip could not install the packages, or what was installed cannot be imported; nothing is
        left then.
    """
    wanted = lock.find(name)
    _refuse_unaccepted(wanted, accept)
    python = _python(wanted)
    paths.folder(place())
    with paths.locked(place() / name, lambda: echo(f"Another process is installing {name} ...")):
        if survey(name).state == "installed":
            return survey(name)
        kept = _record(name)
        for folder in _folders(name):
            if kept is None or folder.name != kept["folder"]:
                shutil.rmtree(folder, ignore_errors=True)
        made = place() / f"{name}-{secrets.token_hex(4)}"
        try:
            _fill(made, wanted, python, echo)
            _try_out(made, wanted)
        except BaseException:  # Ctrl-C, too
            shutil.rmtree(made, ignore_errors=True)
            raise
        text = json.dumps({"folder": made.name, "lock": wanted.digest}, indent=2)
        paths.write_text(_record_file(name), text + "\n")
        if kept is not None:
            shutil.rmtree(place() / kept["folder"], ignore_errors=True)
        return survey(name)


def remove(name: str) -> int:
    """Delete a tool's environment and what interrupted installations left; return the bytes.

    Raises
    ------
    UnknownNameError
        No tool has this name.
    UsageError
        It cannot be deleted, or not all of it: the folder may be one that others look after.
    """
    lock.find(name)
    if not place().is_dir():
        return 0
    with paths.locked(place() / name):
        used = sum(map(_bytes_in, _folders(name)))
        try:
            _record_file(name).unlink(missing_ok=True)  # first: a half-deleted one does not count
            for folder in _folders(name):
                shutil.rmtree(folder)
        except OSError as error:
            raise UsageError(
                f"{name} cannot be removed from {place()}: {worded(error)} ({error.filename}). "
                "Ask the person who looks after that folder."
            ) from None
        return used


def _refuse_unaccepted(wanted: Lock, accept: bool) -> None:
    if wanted.accepted_by and not accept:
        raise UsageError(
            f"{wanted.name} is proprietary ({wanted.licence}): {wanted.accepted_by}. Nothing was "
            f"installed. Read the licence, and pass --accept-licence to install "
            f"{wanted.packages[0]}."
        )


def _python(wanted: Lock) -> str:
    """Return an interpreter of a version that a tool is locked for."""
    own = "{}.{}".format(*sys.version_info[:2])
    if own in wanted.python:
        return sys.executable
    found = None if wanted.on_lab else next(filter(None, map(_on_path, wanted.python)), None)
    if found is None:
        versions = " or ".join(wanted.python)
        way = (
            f"It shares the lab's packages: install the lab with Python {versions}."
            if wanted.on_lab
            else f"Install Python {versions}, such that python{wanted.python[0]} is on PATH."
        )
        raise MissingToolError(
            f"{wanted.name} is locked for Python {versions}; this is {platform.python_version()}. "
            f"{way}"
        )
    return found


def _on_path(version: str) -> str | None:
    return shutil.which(f"python{version}")


def _fill(folder: Path, wanted: Lock, python: str, echo: Callable[[str], object]) -> None:
    """Make an environment and install exactly what is locked."""
    echo(
        f"Installing {wanted.name}: {counted(len(wanted.requirements), 'package')}, about "
        f"{wanted.megabytes:,} MB ..."
    )
    _run(
        [python, "-m", "venv", str(folder)],
        f"Python could not make an environment for {wanted.name}",
    )
    listed = folder / "requirements.txt"
    listed.write_text("".join(f"{word}\n" for word in wanted.requirements), encoding="utf-8")
    pip = [str(_interpreter(folder)), "-m", "pip", "install", "--no-deps", "--no-input"]
    pip += ["--quiet", "--disable-pip-version-check", "--requirement", str(listed)]
    _run(pip, f"pip could not install {wanted.name}")


def shared_packages(wanted: Lock) -> str:
    """Return the folder of the lab's packages that a tool sees behind its own; "" for none.

    It is told to each process, and not written into the environment, which several labs may share.
    """
    return sysconfig.get_paths()["purelib"] if wanted.on_lab else ""


_TORCHVISION = f"""\
import importlib.util
if importlib.util.find_spec("torchvision"):
    spec = importlib.util.spec_from_file_location("beside_torch", {_torchvision.__file__!r})
    beside_torch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(beside_torch)
    beside_torch.load()
"""
"""A tool on the lab's packages may import torchvision, beside a torch build of another variant."""


def _try_out(folder: Path, wanted: Lock) -> None:
    """Import what the tool is for; an environment where that fails is not kept."""
    code = f"import {', '.join(wanted.modules)}"
    if packages := shared_packages(wanted):
        code = f"import sys\nsys.path.append({packages!r})\n{_TORCHVISION}{code}"
    what = f"{wanted.name} was installed, but cannot be imported"
    _run([str(_interpreter(folder)), "-I", "-c", code], what, wanted.variables)


def _run(command: list[str], failure: str, variables: dict[str, str] | None = None) -> None:
    """Run a program; LabError with the last line that it said."""
    quiet = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    quiet |= variables or {}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=quiet,
            timeout=_INSTALL_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LabError(f"{failure}: it took more than {_INSTALL_S:g} s.") from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR:")]
        raise LabError(f"{failure}: {(errors or said or ['no reason given'])[-1]}")


def _interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _record_file(name: str) -> Path:
    return place() / f"{name}.json"


def _record(name: str) -> dict[str, str] | None:
    """Return what the last finished installation of a tool wrote; None when there is none."""
    try:
        text = untrusted.content(_record_file(name), _MAX_RECORD_BYTES, plain=True)
        found = untrusted.json_value(text.decode())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or set(found) != {"folder", "lock"}:
        return None
    return found if found["folder"] in {path.name for path in _folders(name)} else None


def _folders(name: str) -> list[Path]:
    """Return the folders of a tool's installations, finished or not."""
    marks = (path for path in place().glob(f"{name}-*") if path.is_dir())
    return sorted(path for path in marks if len(path.name) == len(name) + 9)


def _bytes_in(folder: Path) -> int:
    total = 0
    for where, _, files in os.walk(folder):
        for file in files:
            try:
                total += Path(where, file).lstat().st_size
            except FileNotFoundError:
                continue
    return total
