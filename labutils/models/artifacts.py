"""What the lab knows of a file that a conversion made: a ``.dlc`` or a ``.tflite``."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from .. import manifests, paths, provenance
from ..errors import (
    DamagedManifestError,
    ModelFileError,
    NoManifestError,
    OtherFileError,
    UsageError,
)
from ..images import data
from ..runtime import litert
from ..runtime.qnn import dlc_file
from .model import Model

MAX_SIZE = provenance.MAX_SIZE


def from_dlc(path: Path, weights: str, size: data.Size | None, output: str | None) -> Model:
    """Read what the manifest beside a DLC of the lab says; a foreign DLC says nothing."""
    refuse_weights(path, weights)
    if not path.is_file():
        raise ModelFileError(f"There is no model file {path}. Check the path.")
    if not zipfile.is_zipfile(path):
        raise ModelFileError(f"{path} is not a DLC (not a zip archive), or it was cut short.")
    facts = _stated(path, "DLC", output)
    shape = facts["preprocessing"].shape if facts["preprocessing"] else dlc_file.image_shape(path)
    return _made(path, size, shape, facts)


def from_tflite(path: Path, weights: str, size: data.Size | None, output: str | None) -> Model:
    """Read a ``.tflite``, and what the manifest beside it says if the lab made it."""
    refuse_weights(path, weights)
    found = litert.contents(path)
    facts = _stated(path, ".tflite", output)
    image = found.image
    return _made(path, size, image[1] if image else None, facts)


def _stated(path: Path, kind: str, output: str | None) -> dict[str, Any]:
    """Return what the manifest beside an artifact says, as arguments of `file_model`."""
    facts: dict[str, Any] = {"preprocessing": None, "classes": (), "output": output}
    try:
        entry = manifests.read(path)
        preprocessing, classes, claim = provenance.of_manifest(entry)
        aged = manifests.age_note(entry)
        note = f"converted by the lab: {claim}" + (f" ({aged})" if aged else "")
        output = output or provenance.judged_output(entry)
        facts |= {"preprocessing": preprocessing, "classes": classes, "output": output}
    except NoManifestError:
        note = f"a {kind} of yours"
    except OtherFileError as error:
        note = (
            f"a {kind} that the lab knows nothing about. {error} To know what it computes, convert "
            "the model again with labutils convert"
        )
    except (ValueError, KeyError, TypeError):
        problem = f"The manifest beside {path} is damaged. Convert again."
        raise DamagedManifestError(problem) from None
    return {"note": note, **facts}


def _made(
    path: Path, size: data.Size | None, shape: tuple[int, ...] | None, facts: dict[str, Any]
) -> Model:
    if shape is None and size is not None:
        shape = (3, *data.sides(size))
    whole = (1, *shape) if shape else None
    return file_model(path, size, module=None, shape=whole, trained=True, **facts)


def file_model(
    path: Path, size: data.Size | None, *, shape: tuple[int, ...] | None, note: str, **rest: Any
) -> Model:
    """Return the model that a file is; UsageError where its images are of another size."""
    taken = shape[-2:] if shape and len(shape) == 4 else ()
    if size is not None and taken and taken != data.sides(size):
        raise UsageError(
            f"{path} takes {data.shown(data.square(taken))} images; size={size} cannot change that."
        )
    if taken and max(taken) > MAX_SIZE:
        raise UsageError(
            f"{path} claims to take {data.shown(data.square(taken))} images; at most {MAX_SIZE} "
            "here."
        )
    rest["note"] = note if rest["preprocessing"] else f"{note}; it states no preprocessing"
    known = {"file": path, **rest}
    known.setdefault("sha256", paths.sha256(path))
    return Model(name=path.name, weights=str(path), input_shape=shape, **known)


def refuse_weights(path: Path, weights: str) -> None:
    """Refuse weights for a file that has its own."""
    if weights != "auto":
        raise UsageError(f"{path} brings its own weights; leave out weights={weights!r}.")
