"""Everything that an installation needs, in one folder: for rooms without a network.

`collect` downloads the wheels and copies the weights in the cache; ``make setup PACK=FOLDER``
checks and installs them on a machine of the same kind (system, processor, Python). Only the
standard library is used here, because `unpack` runs before anything is installed.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import __version__, paths, untrusted
from ..errors import FetchError, MissingToolError, UsageError
from . import torch_index

MANIFEST = "pack.json"
_WEIGHTS = (".pth", ".safetensors")


@dataclass(frozen=True)
class Pack:
    """What lies in a pack."""

    folder: Path
    wheels: int
    weights: tuple[str, ...]
    bytes: int
    machine: str

    def to_dict(self) -> dict[str, object]:
        """Return the pack as plain values, for ``--json``."""
        return {**asdict(self), "folder": str(self.folder)}

    def __str__(self) -> str:
        weights = ", ".join(self.weights) or "none beside those that the repository ships"
        return (
            f"{self.folder}: {self.wheels} wheels, {self.bytes / 1e6:,.0f} MB, for "
            f"{self.machine}; weights: {weights}.\n"
            f"There: make setup PACK={shlex.quote(str(self.folder))}"
        )

    def __repr__(self) -> str:
        return str(self)


def machine() -> str:
    """Return the kind of machine that a pack of this one is for."""
    major, minor, _ = platform.python_version_tuple()
    return f"{platform.system()} {platform.machine()}, Python {major}.{minor}"


def collect(
    folder: str | Path,
    extra: Sequence[str] = (),
    index: str | None = None,
    echo: Callable[[str], object] = lambda line: None,
) -> Pack:
    """Collect the wheels of this installation, and the weights in the cache.

    Parameters
    ----------
    folder
        Receives ``wheels/``, ``weights/`` and the list of their checksums (`MANIFEST`).
    extra
        Requirements beside ``requirements.txt`` that are left out where they have no wheel, such
        as Qualcomm's.
    index
        Where torch and torchvision come from, and nothing else. Where it is empty or cannot be
        used, the default index serves. Without it, the one that `torch_index.chosen` returns.
    echo
        Called with a line per step.

    Raises
    ------
    FetchError
        pip could not download a wheel; its last lines are in the message.
    MissingToolError
        The environment has no pip.
    """
    folder = paths.folder(folder)
    wheels = paths.folder(folder / "wheels")
    (folder / MANIFEST).unlink(missing_ok=True)  # until all is there, it is not a pack
    _download_torch(wheels, torch_index.chosen() if index is None else index, echo)
    echo(f"Downloading the wheels of requirements.txt to {wheels} ...")
    requirements = ["-r", str(paths.ROOT / "requirements.txt"), "setuptools"]
    _download(wheels, requirements + _test_tools())
    for requirement in extra:
        try:
            _download(wheels, [requirement])
        except FetchError as error:
            echo(f"Left out: {requirement} ({str(error).splitlines()[0]})")
    weights = paths.folder(folder / "weights")
    for file in sorted((paths.cache() / "weights").glob("*")):
        if file.suffix in _WEIGHTS or file.name.removesuffix(".json").endswith(_WEIGHTS):
            shutil.copy2(file, weights / file.name)
    _list(folder)
    return verify(folder)


def _download_torch(wheels: Path, index: str, echo: Callable[[str], object]) -> None:
    """Download torch and torchvision from their own index, where that can be used."""
    index = torch_index.usable(index, echo)
    if not index:
        return
    echo(f"Downloading torch and torchvision from {torch_index.shown(index)} to {wheels} ...")
    try:
        _download(wheels, ["--no-deps", "--index-url", index, *torch_index.PACKAGES])
    except FetchError as error:
        echo(f"Note: {error}\ntorch and torchvision come from where all other packages do.")


def _test_tools() -> list[str]:
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    own = f"{paths.PROJECT}[imagenet]"  # pip would look for the lab itself
    return [name for name in extras["test"] if name != own] + extras["imagenet"]


def _download(wheels: Path, requirements: Sequence[str]) -> None:
    if importlib.util.find_spec("pip") is None:
        raise MissingToolError(
            f"{sys.prefix} has no pip (uv makes environments without it), and only pip can "
            "download without installing. Run: python -m ensurepip"
        )
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "-d", str(wheels)]
    command += ["-c", str(paths.ROOT / "constraints.txt")]
    command += ["--find-links", str(wheels)]  # what is there already: torch, from its own index
    done = subprocess.run([*command, *requirements], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        raise FetchError(f"pip could not download {requirements[-1]}:\n" + "\n".join(lines[-6:]))


def _list(folder: Path) -> None:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    entry = {
        "labutils": __version__,
        "machine": machine(),
        "files": {file.relative_to(folder).as_posix(): paths.sha256(file) for file in files},
    }
    paths.write_text(folder / MANIFEST, json.dumps(entry, indent=2) + "\n")


def verify(folder: str | Path) -> Pack:
    """Check every file of a pack against its list, and return what it holds.

    Raises
    ------
    UsageError
        No pack, a pack of another kind of machine, or a file that is missing or was changed.
    """
    folder = Path(folder)
    try:
        entry = untrusted.json_file(folder / MANIFEST)
        files, kind = dict(entry["files"]), str(entry["machine"])
    except FileNotFoundError:
        raise UsageError(
            f"{folder} is not a pack (it has no {MANIFEST}). Make one: labutils pack {folder}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder / MANIFEST} is damaged. Copy the pack again.") from None
    if kind != machine():
        raise UsageError(f"This pack is for {kind}; this machine is {machine()}.")
    for name, digest in files.items():
        if not re.fullmatch(r"(wheels|weights)/[^/\\]+", name):
            raise UsageError(
                f"{folder / MANIFEST} lists {name!r}, which does not belong in a pack."
            )
        if not (folder / name).is_file() or paths.sha256(folder / name) != digest:
            raise UsageError(f"{folder / name} is missing or was changed. Copy the pack again.")
    weights = tuple(name.partition("/")[2] for name in files if name.endswith(_WEIGHTS))
    size = sum((folder / name).stat().st_size for name in files)
    return Pack(folder, sum(name.endswith(".whl") for name in files), weights, size, kind)


def unpack(folder: str | Path) -> Pack:
    """Check a pack, and put its weights into the cache; the wheels are for the installer.

    Raises
    ------
    UsageError
        As in `verify`.
    """
    found = verify(folder)
    cached = paths.folder(paths.cache() / "weights")
    for file in sorted((found.folder / "weights").glob("*")):
        with paths.atomic(cached / file.name) as temporary:
            shutil.copyfile(file, temporary)
    return found
