"""The learner's own image, which every notebook follows: `keep` it once, `load` it at any size.

It is a picture and its class in the folder of artifacts (``my_image.png``, ``my_image.json``).
Where nobody has chosen one, a fixed Things-16 drawing stands in, and its source says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import paths, untrusted
from ..errors import UsageError
from . import data, things

OWN, DEFAULT = "my own image", "the lab's default image"
"""The label of an image whose class the model does not have, or nobody said."""

_DEFAULT_INDEX = 21  # of Things-16 val


def files() -> tuple[Path, Path]:
    """Return where the picture and its facts belong; they may not exist."""
    folder = paths.generated()
    return folder / "my_image.png", folder / "my_image.json"


def keep(pixels: np.ndarray, class_name: str | None = None) -> Path:
    """Store an image as the learner's own; all later notebooks use it.

    Parameters
    ----------
    pixels
        (height, width, 3) uint8 RGB, of any size.
    class_name
        What it shows, when that is known.

    Returns
    -------
    pathlib.Path
        The stored picture.

    Raises
    ------
    UsageError
        This is not a picture.
    """
    from PIL import Image

    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UsageError(
            "An image is uint8 RGB of shape (height, width, 3); "
            f"this is {pixels.dtype} of shape {pixels.shape}."
        )
    picture, facts = files()
    with paths.atomic(picture) as temporary:
        Image.fromarray(pixels).save(temporary)
    paths.write_text(facts, json.dumps({"class": class_name}) + "\n")
    return picture


def forget() -> None:
    """Go back to the lab's default image."""
    for file in files():
        file.unlink(missing_ok=True)


def read(size: data.Size, classes: Sequence[str]) -> data.ImageSet:
    """Return the learner's own image, or the lab's default one, as a set of one.

    Parameters
    ----------
    size
        Side in pixels, or (height, width): the picture is scaled, then the centre is cut out.
    classes
        The model's; the label is a number among them, or `data.NO_LABEL`.

    Returns
    -------
    data.ImageSet
        ``images`` is (1, height, width, 3) uint8; ``source`` says whose image it is.

    Raises
    ------
    UsageError
        The stored picture cannot be read; the message names it.
    """
    picture, facts = files()
    if picture.is_file():
        pixels, name, source = data.read_images([picture], size), _class_of(facts), OWN
    else:
        drawn = things.image(_DEFAULT_INDEX, "val", max(data.sides(size)))
        pixels = (drawn if isinstance(size, int) else data.fitted(drawn, size))[None]
        name = things.CLASSES[_DEFAULT_INDEX % len(things.CLASSES)]
        source = f"{DEFAULT} (Things-16 val {_DEFAULT_INDEX}, drawn); choose yours in notebook 01"
    label = list(classes).index(name) if name and name in classes else data.NO_LABEL
    return data.ImageSet(pixels, np.array([label], dtype=np.int64), tuple(classes), source)


def _class_of(facts: Path) -> str | None:
    try:
        return untrusted.json_file(facts)["class"]
    except (OSError, ValueError, KeyError, TypeError):  # deleted or damaged: then it is unknown
        return None
