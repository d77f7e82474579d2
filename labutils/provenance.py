"""What lies in or beside a model file about it: who made it, its input, its classes, its pictures.

A statement counts only for the file that it was written about: where a SHA-256 is stated and
differs, nothing of it is repeated. A damaged statement is an error, never an empty one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from . import manifests, paths, untrusted
from .errors import ModelFileError, NoManifestError, OtherFileError, UsageError
from .images import data

if TYPE_CHECKING:
    import onnx

# What `export.to_onnx` writes into a file's metadata_props, as JSON, and `load` reads back.
PREPROCESSING_KEY = "labutils.preprocessing"
MODEL_KEY = "labutils.model"
EDITS_KEY = "labutils.surgery"

MAX_SIZE = 4096  # pixels; larger is surely a typo (200 MB per image)
_MAX_NAME = 300  # characters of a class's name; ImageNet's longest has 121
_MAX_TEXT = 2000  # of a claim or a source
_MAX_SIDE = 4096
_MAX_CHANNELS = 4096


def calibrated_on(images: data.ImageSet | np.ndarray) -> dict[str, str]:
    """Return what a manifest says of calibration images: which they are, and their SHA-256.

    Parameters
    ----------
    images
        Pictures, (n, height, width, 3) uint8; or inputs of the reader's own, (n, channels, height,
        width) float32, normalized.

    Returns
    -------
    dict
        ``pictures`` as text, and ``pictures_sha256`` of their values at the size that they were
        used at: the same for the same pictures, whatever their order, labels and file names.
    """
    words = images.source if isinstance(images, data.ImageSet) else "your own inputs"
    array = images.images if isinstance(images, data.ImageSet) else images
    digest = hashlib.sha256(f"{array.shape} {array.dtype.str}".encode())
    for one in sorted(hashlib.sha256(picture.tobytes()).digest() for picture in array):
        digest.update(one)
    return {"pictures": words, "pictures_sha256": digest.hexdigest()}


def card_classes(path: Path, outputs: int) -> tuple[str, ...]:
    """Return the class names on the model card beside a checkpoint, if it has one that fits."""
    classes = _card(path).get("classes", [])
    if not _are_names(classes):
        raise ModelFileError(
            f"The model card {path.with_suffix('.json')} is damaged: its classes are not a list of "
            "names."
        )
    return tuple(classes) if len(classes) == outputs else ()


def card_size(path: Path) -> int | None:
    """Return the side of the images, in pixels, that the model card beside a checkpoint states."""
    size = _card(path).get("size")
    if size is not None and (type(size) is not int or not 1 <= size <= _MAX_SIDE):
        raise ModelFileError(
            f"The model card {path.with_suffix('.json')} is damaged: its size is {size!r:.40}, not "
            "a side in pixels."
        )
    return size


def card_preprocessing(path: Path) -> data.Preprocessing | None:
    """Return how the model card beside a checkpoint says that the network's images were made."""
    stated = _card(path).get("preprocessing")
    if stated is None:
        return None
    try:
        return _preprocessing(stated)
    except (ValueError, KeyError, TypeError):
        raise ModelFileError(
            f"The model card {path.with_suffix('.json')} is damaged: its preprocessing is "
            f"{stated!r:.40}, not a size, mean and standard deviation."
        ) from None


def _card(path: Path) -> dict[str, Any]:
    card = path.with_suffix(".json")
    try:
        content = untrusted.json_file(card)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        raise ModelFileError(
            f"The model card {card} is damaged: it is not JSON. Copy it again, or delete it: the "
            "classes are then numbered."
        ) from None
    if not isinstance(content, dict):
        return {}
    stated = content.get("sha256") if path.suffix == ".safetensors" and path.is_file() else None
    if stated is not None and stated != paths.sha256(path):
        raise ModelFileError(
            f"The model card {card} describes another file than {path.name}, as the SHA-256 on it "
            "says: its classes would be wrong. Copy both again, or train again; without the card, "
            "classes are numbered."
        )
    return content


def _are_names(classes: Any) -> bool:
    return isinstance(classes, list) and all(_is_text(name, _MAX_NAME) for name in classes)


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most


def _are_figures(values: Any) -> bool:
    """Whether these are one number per channel; their values are checked by `Preprocessing`."""
    few = isinstance(values, list) and 1 <= len(values) <= _MAX_CHANNELS
    return few and all(type(v) in (int, float) for v in values)


def edits_in(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """Return the edits that an ONNX model's metadata says it went through, oldest first.

    A record that is damaged counts as one entry that says nothing: surgery of an unknown kind.
    """
    for entry in model.metadata_props:
        if entry.key == EDITS_KEY:
            try:
                found = untrusted.json_value(entry.value)
            except (ValueError, TypeError, RecursionError):
                return [{}]
            return found if isinstance(found, list) and all(map(_are_edits, found)) else [{}]
    return []


def _are_edits(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("exact"), bool):
        return False
    steps = entry.get("steps")
    return isinstance(steps, list) and all(
        isinstance(step, dict) and isinstance(step.get("replaced"), dict) for step in steps
    )


def edits_note(edits: list[dict[str, Any]]) -> str:
    """Return what surgery made of a model, in a phrase; "" where there was none."""
    if not edits:
        return ""
    if not all(edits):
        return "its record of surgery is damaged, so it may be another network"
    changed = [entry for entry in edits if not entry["exact"]]
    if not changed:
        targets = {str(entry.get("made_for") or ""): None for entry in edits}
        listed = ", ".join(untrusted.shown(name) for name in targets if name)
        return "repaired by exact rules" + (f" for {listed}" if listed else "")
    rules = {
        rule: None for entry in changed for step in entry["steps"] for rule in step["replaced"]
    }
    listed = ", ".join(untrusted.shown(rule) for rule in rules)
    return f"APPROXIMATED by {listed or 'surgery'}: another network than the original"


def origin_note(path: Path, origin: dict[str, Any], model: onnx.ModelProto) -> str:
    """Return what the file says about its origin, unless its manifest says that it was changed."""
    edited = edits_note(edits_in(model))
    edited = f"; {edited}" if edited else ""
    if "note" not in origin:
        return f"a file of yours{edited}"
    try:
        manifests.read(path)
    except OtherFileError as error:
        return f"a file that the lab knows nothing about. {error}"
    except NoManifestError:
        pass  # what the file says itself is all there is
    return f"exported by the lab with {origin['note']}{edited}"


def of_manifest(manifest: dict[str, Any]) -> tuple[data.Preprocessing, tuple[str, ...], str]:
    """Return preprocessing, classes and claim; ValueError, KeyError, TypeError where damaged."""
    stored, classes, claim = (manifest[key] for key in ("preprocessing", "classes", "claim"))
    if not _are_names(classes) or not _is_text(claim, _MAX_TEXT):
        raise TypeError("classes or claim")
    return _preprocessing(stored), tuple(classes), claim


def judged_output(manifest: dict[str, Any]) -> str | None:
    """Return which output the parity gate took for the classifier's, None where it says none."""
    gate = manifest.get("gate")
    name = gate.get("output") if isinstance(gate, dict) else None
    return name if name and _is_text(name, _MAX_TEXT) else None


def _preprocessing(stored: Any) -> data.Preprocessing:
    mean, std, size, source = (stored[key] for key in ("mean", "std", "size", "source"))
    if not (_are_figures(mean) and _are_figures(std) and _is_text(source, _MAX_TEXT)):
        raise TypeError("mean, std or source")
    how = stored.get("resampling", "bilinear")  # earlier files do not say it
    if how not in get_args(data.Resampling):
        raise ValueError("resampling")
    lengths = size if isinstance(size, list) and len(size) == 2 else [size]
    if not all(type(side) is int and 1 <= side <= MAX_SIZE for side in lengths):
        raise ValueError("size")
    try:
        figures = tuple(map(float, mean)), tuple(map(float, std))
        whole = (lengths[0], lengths[-1])
        return data.Preprocessing(whole, *figures, source, how)
    except (UsageError, OverflowError):
        raise ValueError("mean or std") from None


def stored(path: Path, model: onnx.ModelProto) -> tuple[dict[str, Any], data.Preprocessing | None]:
    """Return what our own export wrote about the model and its preprocessing, if it is ours."""
    notes = {entry.key: entry.value for entry in model.metadata_props}
    try:
        origin = dict(untrusted.json_value(notes.get(MODEL_KEY, "{}")))
        if not _are_names(origin.get("classes", [])):
            raise TypeError(origin)
        if PREPROCESSING_KEY not in notes:
            return origin, None
        return origin, _preprocessing(untrusted.json_value(notes[PREPROCESSING_KEY]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelFileError(
            f"{path} carries damaged {PREPROCESSING_KEY} or {MODEL_KEY} metadata. Export it again."
        ) from None
