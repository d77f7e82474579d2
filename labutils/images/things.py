"""Things-16: an endless, offline image-classification set that is drawn, not downloaded.

Sixteen objects on cluttered, textured backgrounds. Image `index` of a split is a pure function of
(split, index, size): every image has its own generator, and all its parameters are drawn
before any pixel, in units of the frame, so that one index shows one picture at every size. (The
sensor noise is per pixel, so it alone differs between sizes.) Splits never overlap, because the
split is part of the seed. The images are synthetic: no photograph is in them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import UnknownNameError, UsageError
from . import rendering, sketches
from . import scene as scenes
from .rendering import MIN_SIZE, render
from .scene import THINGS, Scene, distractors, occluders
from .strokes import Random

__all__ = ["CLASSES", "CLUTTER", "MIN_SIZE", "SPLITS", "custom_scene", "digest", "image"]
__all__ += ["TITLE", "label", "render", "scene"]

TITLE = "Things-16"
CLASSES: tuple[str, ...] = THINGS
SPLITS: dict[str, int] = {"train": 0, "val": 1, "calib": 2, "test": 3}
SEED = 7
CLUTTER = 0.5  # 0 no distractors, blur or noise; 1 the hardest pictures


def label(index: int) -> int:
    """Return the class of image `index`: classes take turns, so every split is balanced."""
    return index % len(CLASSES)


def scene(index: int, split: str = "train", *, clutter: float = CLUTTER) -> Scene:
    """Draw all random parameters of one picture.

    Parameters
    ----------
    index
        Number of the image in its split, from 0; there is no last one.
    split
        One of ``SPLITS``.
    clutter
        Amount of distractors, occlusion, blur and noise, 0..1.

    Raises
    ------
    UnknownNameError
        For a split that does not exist.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if index < 0:
        raise UsageError(f"Image numbers start at 0, got {index}.")
    r = np.random.default_rng([SEED, SPLITS[split], index])
    return _drawn(r, label(index), clutter)


def custom_scene(
    kind: str = "mug",
    hue: float = 0.6,
    size: float = 0.75,
    clutter: float = 0.3,
    seed: int = 0,
) -> Scene:
    """Draw a picture to order, from the parts that the splits are made of, and in none of them.

    Each parameter moves alone: the same seed keeps shape, place, background and light.

    Parameters
    ----------
    kind
        One of ``CLASSES``.
    hue
        Of the body, around which the parts' colours vary, 0..1: 0 red, 1/3 green, 2/3 blue.
    size
        Of the object in units of the frame, 0.1..1; the splits have 0.56 to 0.94.
    clutter
        Amount of distractors, occlusion, blur and noise, 0..1; the splits have 0.5.
    seed
        Everything else.

    Raises
    ------
    UnknownNameError
        For a class that does not exist.
    UsageError
        For a number out of its range.
    """
    if kind not in CLASSES:
        raise UnknownNameError("class of Things-16", str(kind), CLASSES)
    for name, value, low in (("hue", hue, 0), ("size", size, 0.1), ("clutter", clutter, 0)):
        if not low <= value <= 1:
            raise UsageError(f"The {name} of a picture is a number from {low} to 1, not {value}.")
    if seed < 0:
        raise UsageError(f"Seeds start at 0, got {seed}.")
    key = [SEED, len(SPLITS), CLASSES.index(kind), seed]  # after the last split's number
    base = _drawn(np.random.default_rng(key), key[2], 1.0, hue, size / 2)
    behind, over = (np.random.default_rng([*key, layer]) for layer in (1, 2))
    return replace(
        base,
        behind=distractors(behind, clutter),
        occluders=occluders(over, clutter, base.thing.centre, base.thing.scale),
        blur=base.blur * clutter,
        noise=base.noise * clutter,
    )


def _drawn(r: Random, label: int, clutter: float, *given: Any) -> Scene:
    return scenes.draw(r, label, sketches.OBJECTS[CLASSES[label]](r), clutter, *given)


def image(index: int, split: str = "train", size: int = 128) -> np.ndarray:
    """Return image `index` of `split` as (size, size, 3) uint8 RGB; its class is `label(index)`."""
    return render(scene(index, split), size)


def digest(split: str, n: int = 64, size: int = 128) -> str:
    """Return the SHA-256 over the first `n` images of a split: the identity of the pixels."""
    return rendering.digest(image, split, n, size)
