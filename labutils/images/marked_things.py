"""Marked Things: a harder set, whose classes are an object *and* what is drawn on it.

A striped mug and a checked mug are two classes, a striped fish is a third: fourteen objects of
Things-16 (all but the clock and the key, which have too little surface) carry eight markings,
112 classes in all. The pictures have more clutter, blur, noise and fewer contrasts than
Things-16's. Image `index` of a split is a pure function of (split, index, size), as there, and the
splits never overlap. The images are synthetic.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import UnknownNameError, UsageError
from . import markings, rendering, sketches
from . import scene as scenes
from .markings import Marking
from .rendering import render
from .scene import THINGS, Colour, Scene
from .strokes import (
    ACCENT,
    BODY,
    LIGHT,
    SECOND,
    TURN,
    Random,
    Sketch,
    Stroke,
    chance,
    uniform,
)

TITLE = "Marked Things"
CARRIERS: tuple[str, ...] = tuple(name for name in THINGS if name not in ("clock", "key"))
CLASSES: tuple[str, ...] = tuple(f"{kind} {thing}" for thing in CARRIERS for kind in markings.KINDS)
SPLITS: dict[str, int] = {"train": 0, "val": 1, "calib": 2, "test": 3}
SEED = 77
CLUTTER = 0.9
CONTRAST = (0.12, 0.45)  # of a marking: difference in brightness from the body it lies on
SCENE_CONTRAST = (0.4, 1.1)
BLUR = 0.010  # largest radius, in units of the frame
NOISE = 22.0  # largest standard deviation, in 1/255
FREQUENCY = (2.0, 3.6)
RADIUS = (0.23, 0.44)  # of the object, in units of the frame
STRAY = 0.7  # how often what lies behind the object carries a marking as well

# What Things-16 draws on these, at times, would be taken for a marking.
_LEFT_OUT: dict[str, Callable[[Stroke], bool]] = {
    "mushroom": lambda stroke: stroke.slot == ACCENT,  # spots
    "fish": lambda stroke: stroke.slot == ACCENT,  # gills
    "tree": lambda stroke: stroke.slot == ACCENT,  # fruit
    "leaf": lambda stroke: stroke.width == 0.04,  # side veins
    "sailboat": lambda stroke: stroke.slot == LIGHT,  # a stripe on the hull
    "balloon": lambda stroke: stroke.slot == SECOND,  # panels
    "umbrella": lambda stroke: stroke.width == 0.03 or stroke[1:] == (SECOND, 0),  # ribs, panels
}


def label(index: int) -> int:
    """Return the class of image `index`: classes take turns, so every split is balanced."""
    return index % len(CLASSES)


def scene(index: int, split: str = "train") -> Scene:
    """Draw all random parameters of one picture.

    Parameters
    ----------
    index
        Number of the image in its split, from 0; there is no last one.
    split
        One of ``SPLITS``.

    Raises
    ------
    UnknownNameError
        For a split that does not exist.
    UsageError
        For a negative number.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if index < 0:
        raise UsageError(f"Image numbers start at 0, got {index}.")
    r = np.random.default_rng([SEED, SPLITS[split], index])
    thing, kind = divmod(label(index), len(markings.KINDS))
    sketch, radius = _sketch(r, CARRIERS[thing]), uniform(r, *RADIUS)
    drawn = scenes.draw(r, label(index), sketch, CLUTTER, radius=radius)
    palette = list(drawn.thing.palette)
    hue, saturation, value = colorsys.rgb_to_hsv(*palette[0])
    palette[1] = colorsys.hsv_to_rgb(hue, saturation, value * uniform(r, 0.7, 0.9))
    return replace(
        drawn,
        thing=drawn.thing._replace(palette=palette),
        pattern=None,
        marking=_marking(r, markings.KINDS[kind], palette[0]),
        stray_marking=_stray_marking(r) if chance(r, STRAY) else None,
        contrast=uniform(r, *SCENE_CONTRAST),
        blur=uniform(r, 0, BLUR) if chance(r, 0.6) else 0.0,
        noise=uniform(r, 1, NOISE) if chance(r, 0.7) else 0.0,
    )


def _sketch(r: Random, thing: str) -> Sketch:
    """Draw an object without what would be taken for a marking, with room for one."""
    drawn = sketches.OBJECTS[thing](r)
    if thing == "sailboat":  # sails can carry more than the narrow hull
        drawn = Sketch(_sail(stroke) for stroke in drawn)
    left_out = _LEFT_OUT.get(thing, lambda stroke: False)
    return Sketch(stroke for stroke in drawn if not left_out(stroke))


def _sail(stroke: Stroke) -> Stroke:
    return stroke._replace(slot=BODY) if len(stroke.points) == 3 else stroke


def _marking(r: Random, kind: str, body: Colour) -> Marking:
    ringed = kind == "ringed"  # around the middle of the object; the others have none
    return Marking(
        kind=kind,
        colour=_marking_colour(r, body),
        frequency=uniform(r, *FREQUENCY),
        angle=uniform(r, 0, TURN),
        balance=uniform(r, -0.8, 0.8),
        origin=(0.0, 0.0) if ringed else (uniform(r, 0, 1), uniform(r, 0, 1)),
    )


def _stray_marking(r: Random) -> Marking:
    """Draw a marking of any kind in the frame, about as fine as an object's."""
    kind = markings.KINDS[int(r.integers(len(markings.KINDS)))]
    colour = colorsys.hsv_to_rgb(r.random(), uniform(r, 0, 0.9), uniform(r, 0.1, 1))
    place = uniform(r, 0, TURN), 0.0, (uniform(r, 0, 1), uniform(r, 0, 1))
    return Marking(kind, colour, uniform(r, 6, 11), *place)


def _marking_colour(r: Random, body: Colour) -> Colour:
    """Draw a color that is darker or lighter than the body by a drawn difference."""
    difference, brightness = uniform(r, *CONTRAST), scenes.luminance(body)
    up = brightness < 0.35 or (brightness <= 0.65 and chance(r, 0.5))
    wanted = float(np.clip(brightness + (difference if up else -difference), 0.02, 0.98))
    hue = colorsys.rgb_to_hsv(*body)[0] + uniform(r, -0.5, 0.5) * chance(r, 0.6)
    colour = np.array(colorsys.hsv_to_rgb(hue % 1, uniform(r, 0.2, 0.9), uniform(r, 0.5, 1)))
    for _ in range(12):  # clipping a channel leaves some of the difference to the others
        colour = np.clip(colour + (wanted - scenes.luminance(tuple(colour))), 0, 1)
    return tuple(colour.tolist())


def image(index: int, split: str = "train", size: int = 128) -> np.ndarray:
    """Return image `index` of `split` as (size, size, 3) uint8 RGB; its class is `label(index)`."""
    return render(scene(index, split), size)


def digest(split: str, n: int = 112, size: int = 128) -> str:
    """Return the SHA-256 over the first `n` images of a split: the identity of the pixels."""
    return rendering.digest(image, split, n, size)
