"""Seeded crops of the photographs that scikit-image's wheel carries: real pictures, offline.

Nobody labelled the crops, so they tell how far two files of a network agree, and nothing about
accuracy. A crop is a function of its split and its number, as drawn pictures are; the splits share
no photograph. What is cut out is what training cuts out: a share of the area and an aspect ratio,
drawn at random, mirrored or not, scaled to the input (Szegedy et al. 2015, section 6).
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from pathlib import Path

import numpy as np

from .. import paths
from ..errors import MissingToolError, UnknownNameError, UsageError, counted
from . import data

PHOTOGRAPHS = {
    "calib": ("astronaut.png", "brick.png", "coins.png", "grass.png", "gravel.png",
              "hubble_deep_field.jpg", "moon.png", "page.png", "text.png"),
    "val": ("ihc.png", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg"),
    "test": ("camera.png", "chelsea.png", "coffee.png", "rocket.jpg"),
}  # fmt: skip
"""The files of each split; both halves of a stereo pair are in one. `calib` has those that show no
class of ImageNet (gravel, text): a network is undecided there, and its first class means little."""

AREA = (0.35, 1.0)
"""Share of the photograph's area that a crop keeps, at least and at most."""

ASPECT = (3 / 4, 4 / 3)
"""Width by height, at least and at most."""

_TRIES = 10  # draws of a box that fits, before the largest square in the middle is taken


def installed() -> bool:
    """Return whether the photographs are on this machine."""
    return _folder() is not None


def load(split: str = "val", n: int = 500, size: data.Size = 224) -> data.ImageSet:
    """Return the first `n` crops of a split; its photographs take turns.

    Parameters
    ----------
    split
        ``calib``, ``val`` or ``test``.
    n
        Number of crops.
    size
        Side in pixels, or (height, width), after scaling (bicubic).

    Returns
    -------
    data.ImageSet
        Every label is `data.NO_LABEL`.

    Raises
    ------
    MissingToolError
        scikit-image is not installed.
    UnknownNameError
        There is no such split.
    UsageError
        Less than one crop.
    """
    if split not in PHOTOGRAPHS:
        raise UnknownNameError("split", split, PHOTOGRAPHS)
    if n < 1:
        raise UsageError(f"{n} crops: pass at least one.")
    names = PHOTOGRAPHS[split]
    images = np.stack([_crop(names[i % len(names)], split, i, size) for i in range(n)])
    version = importlib.metadata.version("scikit-image")
    source = (
        f"{counted(n, 'seeded crop')} at {data.shown(size)} of {len(names)} photographs in "
        f"scikit-image {version} ({split}), without labels: they tell agreement, not accuracy"
    )
    return data.ImageSet(images, np.full(n, data.NO_LABEL, np.int64), (), source)


def photograph(name: str) -> Path:
    """Return the file of one of the photographs, such as ``coffee.png``.

    Raises
    ------
    MissingToolError
        scikit-image is not installed.
    UnknownNameError
        It is none of `PHOTOGRAPHS`.
    """
    known = [file for files in PHOTOGRAPHS.values() for file in files]
    if name not in known:
        raise UnknownNameError("photograph", name, known)
    folder = _folder()
    if folder is None:
        raise MissingToolError(
            "The photographs come with scikit-image, which is not installed: "
            f"pip install '{paths.PROJECT}[imagenet]'."
        )
    return folder / name


def box(width: int, height: int, split: str, index: int) -> tuple[int, int, int, int, bool]:
    """Return where crop `index` lies in a photograph.

    Parameters
    ----------
    width, height
        Of the photograph, in pixels.
    split, index
        Which crop.

    Returns
    -------
    tuple
        (left, top, right, bottom) in pixels, and whether it is mirrored.
    """
    number = list(PHOTOGRAPHS).index(split)
    random = np.random.Generator(np.random.PCG64((number, index)))
    mirrored = bool(random.random() < 0.5)
    for _ in range(_TRIES):
        area = random.uniform(*AREA) * width * height
        aspect = np.exp(random.uniform(*np.log(ASPECT)))
        wide, high = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if wide <= width and high <= height:
            left = int(random.integers(width - wide + 1))
            top = int(random.integers(height - high + 1))
            return left, top, left + wide, top + high, mirrored
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side, mirrored


def _crop(name: str, split: str, index: int, size: data.Size) -> np.ndarray:
    from PIL import Image

    pixels = _pixels(photograph(name))
    height, width = pixels.shape[:2]
    left, top, right, bottom, mirrored = box(width, height, split, index)
    cut = Image.fromarray(pixels[top:bottom, left:right])
    scaled = np.asarray(cut.resize(data.sides(size)[::-1], Image.Resampling.BICUBIC))
    return scaled[:, ::-1] if mirrored else scaled


@functools.lru_cache(maxsize=8)
def _pixels(file: Path) -> np.ndarray:
    """Return a photograph, (height, width, 3) uint8 RGB; gray becomes three equal channels."""
    from PIL import Image

    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def _folder() -> Path | None:
    """Return where scikit-image keeps its pictures, without importing it (it takes a second)."""
    found = importlib.util.find_spec("skimage")
    places = (found and found.submodule_search_locations) or ()
    return next((Path(place) / "data" for place in places), None)
