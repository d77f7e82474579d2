"""Where things live, how files are written, and the manifest of what was made.

Environment variables: ``LABUTILS_GENERATED`` moves ``generated_models/``, ``LABUTILS_CACHE`` moves
the cache of rendered images and downloads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
CHECKPOINTS = DATA / "checkpoints"
TARGETS = DATA / "targets"

if not TARGETS.is_dir():
    raise UsageError(
        f"labutils was installed without its data folder (looked for {TARGETS}). "
        "Clone the repository and install it editable: pip install -e ."
    )


def generated() -> Path:
    """Return the folder for artifacts, made if needed."""
    return folder(os.environ.get("LABUTILS_GENERATED") or ROOT / "generated_models")


def cache() -> Path:
    """Return the folder for rendered images and downloads, made if needed."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder(os.environ.get("LABUTILS_CACHE") or default / "mobilenetv3-edge-lab")


def folder(path: str | Path) -> Path:
    """Return `path` as a folder, made if needed; UsageError when that cannot be."""
    path = Path(path).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot make the folder {path}: {error.strerror or error}.") from None
    return path


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` only when the block succeeds.

    The temporary name keeps the suffix, because writers look at it.
    """
    path = Path(path)
    folder(path.parent)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 `text` to `path`, all of it or nothing."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Return the installed versions of `packages` (and of Python); absent ones are "absent"."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def record(artifact: str | Path, facts: dict[str, Any]) -> Path:
    """Write the manifest of an artifact beside it, as ``<name>.manifest.json``.

    The SHA-256 identifies the file; it says nothing about equality, because DLC and context
    binaries carry time stamps.
    """
    artifact = Path(artifact)
    manifest = artifact.with_name(artifact.name + ".manifest.json")
    entry = {
        "file": artifact.name,
        "bytes": artifact.stat().st_size,
        "sha256": sha256(artifact),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(
            "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "onnxruntime-qnn"
        ),
        **facts,
    }
    write_text(manifest, json.dumps(entry, indent=2, default=str) + "\n")
    return manifest
