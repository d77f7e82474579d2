"""What artifacts are called, and the manifest beside each of them.

Every file that the lab makes of a model is named here: the command line, the journey and the
notebooks ask `file_name`, so that one artifact has one name. Its manifest says in JSON which
weights, recipe, calibration images, opset and tools made it, *with all their values*: what is at
a default today is stated as well, for the default may be another tomorrow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

from . import __version__, paths, untrusted
from .errors import (
    DamagedManifestError,
    ModelFileError,
    NoManifestError,
    OtherFileError,
    UnknownNameError,
)

FORMAT = 1
"""The format of the manifests that are written; those without a number are older than it."""

MAX_BYTES = 1_000_000  # those of the lab's networks have 0.1 MB at most

FILES = {
    "export": "01_{model}_{detail}.onnx",
    "patch": "03_{model}_{detail}.onnx",
    "convert": "04_{model}_{detail}.dlc",
    "quantize": "05_{model}_{detail}.onnx",
    "compile": "06_{model}_{detail}.bin",
    "batch": "{model}-{detail}.dlc",
    "batch_tflite": "{model}-{detail}.tflite",
    "onnx": "{model}.{detail}.onnx",
}
"""Stage -> the name of its files. The numbers are those of the notebooks that make them."""

_TOOLS = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "onnxruntime-qnn",
          "ai-edge-litert")  # fmt: skip
_NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f]')  # Windows refuses them; a slash is a folder
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_MODEL_FILES = (".onnx", ".pt2", ".dlc", ".tflite")
_MAX_STEM_BYTES = 100


def file_name(model: str, stage: str, detail: str) -> str:
    """Return what the file is called that a stage makes of a model.

    Parameters
    ----------
    model
        The model's name, as `models.zoo` has it.
    stage
        A key of `FILES`.
    detail
        What tells the files of one stage apart: an opset, a recipe, a precision, a chip.

    Raises
    ------
    UnknownNameError
        There is no such stage.

    Examples
    --------
    >>> file_name("timm:mobilenetv3_small_100.lamb_in1k", "quantize", "int8")
    '05_timm_mobilenetv3_small_100.lamb_in1k_int8.onnx'
    """
    if stage not in FILES:
        raise UnknownNameError("stage that makes files", stage, FILES)
    return FILES[stage].format(model=stem_of(model), detail=_plain(detail))


def stem_of(model: str) -> str:
    """Return a model's name as the stem of a file name, for every system and with its tag.

    A name of more than 100 bytes is cut, and a hash keeps it apart from others that begin alike:
    file systems take 255 bytes, with what is added to a stem.

    Examples
    --------
    >>> stem_of("timm:mobilenetv3_small_100.lamb_in1k"), stem_of("my net.onnx")
    ('timm_mobilenetv3_small_100.lamb_in1k', 'my net')
    """
    for suffix in _MODEL_FILES:
        model = model.removesuffix(suffix)
    return _plain(model) or "model"


def _plain(words: str) -> str:
    """Return words as a part of a file name that every system takes."""
    part = _NOT_IN_NAMES.sub("_", words).strip(". ")
    if _DEVICES.fullmatch(part):
        part = f"_{part}"
    written = part.encode("utf-8", "surrogatepass")
    if len(written) <= _MAX_STEM_BYTES:
        return part
    mark = f"-{hashlib.sha256(written).hexdigest()[:8]}"
    return written[: _MAX_STEM_BYTES - len(mark)].decode("utf-8", "ignore") + mark


def write(artifact: str | Path, facts: dict[str, Any]) -> Path:
    """Write the manifest of an artifact beside it, as ``<name>.manifest.json``.

    The SHA-256 identifies the file; it says nothing about equality, because DLC and context
    binaries carry time stamps.

    Parameters
    ----------
    artifact
        A file that is whole.
    facts
        What made it: plain values, or dataclasses, of which every field is written.
    """
    artifact = Path(artifact)
    entry = {
        "format": FORMAT,
        "file": artifact.name,
        "bytes": artifact.stat().st_size,
        "sha256": paths.sha256(artifact),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"labutils": __version__, **paths.versions(*_TOOLS)},
        **facts,
    }
    written = paths.manifest(artifact)
    paths.write_text(written, json.dumps(entry, indent=2, default=_as_plain) + "\n")
    return written


def _as_plain(value: Any) -> Any:
    """Return what JSON can say of a value: all fields of a dataclass, else its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def as_stored(value: Any) -> Any:
    """Return a value as a manifest gives it back: to be compared with what one says."""
    return untrusted.json_value(json.dumps(value, default=_as_plain))


def read(artifact: str | Path) -> dict[str, Any]:
    """Return what the manifest beside an artifact says of it, after comparing the SHA-256.

    Manifests from before `FORMAT` are read as well; `age_note` has the line that says so.

    Raises
    ------
    NoManifestError
        There is none.
    DamagedManifestError
        It is not a plain file, not JSON, of more than `MAX_BYTES`, or has no SHA-256.
    OtherFileError
        It describes another file: nothing in it is about this one.
    ModelFileError
        It was written by a newer version of the lab.
    """
    artifact = Path(artifact)
    try:
        entry: dict[str, Any] = untrusted.json_file(paths.manifest(artifact), MAX_BYTES)
        stated, number = entry["sha256"], entry.get("format", 0)
        if type(number) is not int or number < 0:
            raise TypeError("format")
    except FileNotFoundError:
        raise NoManifestError(f"{artifact.name} has no manifest.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedManifestError(
            f"The manifest beside {artifact} is damaged. Delete it, or make {artifact.name} again."
        ) from None
    if number > FORMAT:
        raise ModelFileError(
            f"The manifest beside {artifact} has format {number}; this version of the lab reads "
            f"up to {FORMAT}. Update labutils, or make {artifact.name} again."
        )
    found = paths.sha256(artifact)
    if stated != found:
        raise OtherFileError(
            f"The manifest beside {artifact.name} describes another file (SHA-256 "
            f"{str(stated)[:12]}..., this one is {found[:12]}...): it was changed or replaced."
        )
    return entry


def age_note(entry: dict[str, Any]) -> str:
    """Return the line that says that a manifest is from before `FORMAT`; "" when it is not."""
    if entry.get("format"):
        return ""
    return "its manifest is from before manifests had a format number, and states fewer values"
