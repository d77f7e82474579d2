"""Photographs with their classes: any folder with one subfolder per class, or Imagenette.

Imagenette (ten classes of ImageNet, https://github.com/fastai/imagenette) is downloaded only when
it is asked for; its address and checksum are those that torchvision publishes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import _torchvision, fetch, paths
from ..errors import UnknownNameError, UsageError, counted
from . import data

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
CROP = 0.875
"""Share of the shorter side that is kept: 224 of 256, as torchvision evaluates ImageNet models."""


CALIBRATION_EVERY = 4
"""One photograph in this many, class by class, is for calibration, and never for validation."""


def read(
    root: str | Path,
    classes: Sequence[str],
    size: data.Size,
    n: int | None = None,
    crop: float = CROP,
    part: str = "all",
) -> data.ImageSet:
    """Read the pictures of a folder that has one subfolder per class.

    Parameters
    ----------
    root
        Its subfolders are called like classes of the model, or by their number, or (Imagenette)
        by their WordNet id.
    classes
        The model's class names, by number.
    size
        Side in pixels, or (height, width).
    n
        Pictures at most; the classes take turns, so that they stay balanced.
    crop
        Share of the shorter side that the centre cut keeps.
    part
        ``"all"``, or one of two parts that share no file whatever `n` is: ``"calib"``, the second
        of every `CALIBRATION_EVERY` files of a class, and ``"val"``, the others.

    Returns
    -------
    data.ImageSet
        Files that are not pictures are left out, and named in `skipped`.

    Raises
    ------
    UsageError
        No such folder, a subfolder that is not a class of the model, or no picture in it.
    UnknownNameError
        There is no such part.
    """
    if part not in ("all", "calib", "val"):
        raise UnknownNameError("part of the photographs", part, ("all", "calib", "val"))
    root = paths.expanded(root)
    folders = sorted(f for f in root.iterdir() if f.is_dir()) if root.is_dir() else []
    if not folders:
        raise UsageError(f"{root} holds no subfolders. Put the pictures of each class into one.")
    numbers = {folder: _number(folder.name, classes, root) for folder in folders}
    images: list[np.ndarray] = []
    labels: list[int] = []
    skipped: list[str] = []
    for file, label in _in_turns(numbers, part):
        if len(images) == n:
            break
        try:
            images.append(data.read_images([file], size, crop=crop)[0])
            labels.append(label)
        except UsageError as error:
            skipped.append(f"{file.relative_to(root)}: {error}")
    if not images:
        few = " One in four is kept for calibration: two per class are the least."
        tried = " ".join(skipped[:3]) or (few if part == "calib" else "")
        raise UsageError(f"No picture in {root} could be read. {tried.strip()}")
    whose = {"calib": " (kept for calibration)"}.get(part, "")
    source = (
        f"photographs in {root.name}{whose}, {counted(len(images), 'image')} at {data.shown(size)}"
    )
    source += f" ({len(skipped)} unreadable files left out)" if skipped else ""
    return data.ImageSet(
        np.stack(images), np.array(labels, np.int64), tuple(classes), source, tuple(skipped)
    )


def _in_turns(numbers: dict[Path, int], part: str) -> list[tuple[Path, int]]:
    columns = []
    for folder, label in numbers.items():
        files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
        kept = (f for i, f in enumerate(files) if part in ("all", _part(i)))
        columns.append([(file, label) for file in kept])
    rounds = itertools.zip_longest(*columns)
    return [entry for entries in rounds for entry in entries if entry is not None]


def _part(place: int) -> str:
    """Return the part of a file by its place in its class: a pair of files gives one to each."""
    return "calib" if place % CALIBRATION_EVERY == 1 else "val"


def _number(name: str, classes: Sequence[str], root: Path) -> int:
    plain = [_plain(known) for known in classes]
    called = _plain(_wordnet().get(name, name))
    if called in plain:
        return plain.index(called)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    raise UsageError(
        f"The subfolder {name} of {root} is not a class of this model: give it the name of one "
        f"(such as {classes[0]!r}) or its number, 0 to {len(classes) - 1}."
    )


def _plain(name: str) -> str:
    return name.replace("_", " ").replace("-", " ").casefold().strip()


def _wordnet() -> dict[str, str]:
    imagenette = _torchvision.load().datasets.Imagenette
    return {wnid: names[0] for wnid, names in imagenette._WNID_TO_CLASS.items()}


def imagenette(download: bool = False) -> Path | None:
    """Return the folder of Imagenette's validation pictures (320 px), None when it is not here.

    Parameters
    ----------
    download
        Fetch it (about 340 MB) when it is not in the cache.

    Raises
    ------
    FetchError
        No network, or an archive whose checksum is not the published one.
    """
    url, md5 = _torchvision.load().datasets.Imagenette._ARCHIVES["320px"]
    place = paths.cache() / "photographs"
    root = place / Path(url).stem / "val"
    if not root.is_dir() and download:
        fetch.archive(url, f"md5:{md5}", place)
    return root if root.is_dir() else None
