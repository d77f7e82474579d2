"""Fasteners: pictures of classes that no network of the lab has learned, written as a folder.

Five things of a toolbox, drawn like the objects of Things-16 and marked like those of Marked
Things: a folder to practise on, as a reader's own would be. Picture `index` of a class is a pure
function of (class, index, size). The pictures are synthetic.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import paths
from ..errors import UnknownNameError, UsageError
from ..tracking import Progress, tracked
from . import markings, rendering
from . import scene as scenes
from .markings import Marking
from .scene import Colour, Scene
from .strokes import (
    BODY,
    DARK,
    SECOND,
    TURN,
    Random,
    Sketch,
    box,
    chance,
    closed,
    count,
    ellipse,
    points,
    uniform,
)

CLUTTER = 0.8
SEED = 909
RADIUS = (0.27, 0.45)  # of the object, in units of the frame
PLAIN = "plain"


def bolt(r: Random) -> Sketch:
    """Draw a bolt from the side: a wide head, a shank with a thread."""
    s = Sketch()
    w, head, height = uniform(r, 0.2, 0.32), uniform(r, 0.42, 0.58), uniform(r, 0.26, 0.4)
    neck, tip = -0.95 + height, uniform(r, 0.7, 0.95)
    s.fill(box(-w, neck, w, tip), BODY)
    s.fill(points(-w, tip, w, tip, w * 0.55, tip + 0.12, -w * 0.55, tip + 0.12), SECOND)
    for y in np.arange(neck + uniform(r, 0.15, 0.5), tip - 0.06, 0.17):
        s.line(points(-w, y, w, y + 0.08), DARK, 0.04)
    s.fill(box(-head, -0.95, head, neck, 0.07), BODY)
    return s


def nut(r: Random) -> Sketch:
    """Draw a hexagonal nut from the front."""
    s = Sketch()
    s.fill(ellipse(0, 0, 0.95, n=6), BODY)
    hole = uniform(r, 0.34, 0.46)
    if chance(r, 0.5):
        s.fill(ellipse(0, 0, hole + 0.1), SECOND)
    s.fill(ellipse(0, 0, hole), DARK)
    return s


def washer(r: Random) -> Sketch:
    """Draw a flat ring; what lies behind shows through the hole."""
    s = Sketch()
    width = uniform(r, 0.36, 0.52)
    s.line(closed(ellipse(0, 0, 0.95 - width / 2, n=28)), BODY, width)
    return s


def gear(r: Random) -> Sketch:
    """Draw a wheel with teeth and a small hole."""
    s = Sketch()
    n, inner = count(r, 8, 14), uniform(r, 0.68, 0.78)
    flat, steep = TURN / n * uniform(r, 0.18, 0.26), TURN / n * 0.06
    corners = []
    for at in TURN / n * np.arange(n):
        for angle, radius in ((-flat - steep, inner), (-flat, 0.97), (flat, 0.97),
                              (flat + steep, inner)):  # fmt: skip
            corners += [radius * math.cos(at + angle), radius * math.sin(at + angle)]
    s.fill(points(*corners), BODY)
    if chance(r, 0.4):
        s.fill(ellipse(0, 0, uniform(r, 0.36, 0.44)), SECOND)
    s.fill(ellipse(0, 0, uniform(r, 0.14, 0.24)), DARK)
    return s


def bracket(r: Random) -> Sketch:
    """Draw an angle of sheet metal with a hole in either leg."""
    s = Sketch()
    d, x, y = uniform(r, 0.5, 0.68), uniform(r, 0.75, 0.95), uniform(r, 0.75, 0.95)
    s.fill(points(-x, -y, d - x, -y, d - x, y - d, x, y - d, x, y, -x, y), BODY)
    hole = d * uniform(r, 0.16, 0.24)
    s.fill(ellipse(d / 2 - x, 0.35 * d - y, hole, n=14), DARK)
    s.fill(ellipse(x - 0.35 * d, y - d / 2, hole, n=14), DARK)
    return s


_DRAWERS: tuple[Callable[[Random], Sketch], ...] = (bolt, nut, washer, gear, bracket)
_OBJECTS = {draw.__name__: draw for draw in _DRAWERS}
KINDS: tuple[str, ...] = tuple(_OBJECTS)


def class_names(kinds: Sequence[str] = KINDS, marked: Sequence[str] = (PLAIN,)) -> tuple[str, ...]:
    """Return the names of classes: ``bolt``, or ``striped bolt`` where it carries a marking."""
    return tuple(
        kind if marking == PLAIN else f"{marking} {kind}" for kind in kinds for marking in marked
    )


def image(name: str, index: int, size: int = 128) -> np.ndarray:
    """Return picture `index` of a class as (size, size, 3) uint8 RGB.

    Parameters
    ----------
    name
        As `class_names` has it.
    index
        Number of the picture in its class, from 0; there is no last one.
    size
        Side in pixels.

    Raises
    ------
    UnknownNameError
        There is no such class.
    """
    return rendering.render(_scene(name, index), size)


def write_folder(
    root: str | Path,
    pictures: int,
    names: Sequence[str] = KINDS,
    size: int = 128,
    progress: Progress | None = None,
) -> Path:
    """Write a folder of PNG files, one subfolder per class, and return it.

    Parameters
    ----------
    root
        The folder; what lies there already stays.
    pictures
        How many of each class.
    names
        The classes, as `class_names` has them.
    size
        Side in pixels.
    progress
        Follows the pictures.

    Raises
    ------
    UnknownNameError
        There is no such class.
    UsageError
        No picture is asked for, or the folder cannot be made.
    """
    from PIL import Image

    if pictures < 1:
        raise UsageError(f"{pictures} pictures of each class: at least one is needed.")
    for name in names:
        _kind_and_marking(name)  # refused before anything is written
    root = paths.folder(root)
    wanted = [(name, index) for name in names for index in range(pictures)]
    for name, index in tracked(wanted, "drawing", "pictures", progress):
        file = paths.folder(root / name) / f"{index:04d}.png"
        with paths.atomic(file) as temporary:
            Image.fromarray(image(name, index, size)).save(temporary, "PNG", compress_level=1)
    return root


def _kind_and_marking(name: str) -> tuple[str, str]:
    """Return what a class is made of; UnknownNameError where there is no such class."""
    marking, _, kind = name.rpartition(" ")
    marking = marking or PLAIN
    if kind not in _OBJECTS or marking not in markings.KINDS:
        raise UnknownNameError("fastener", name, class_names(KINDS, markings.KINDS))
    return kind, marking


def _scene(name: str, index: int) -> Scene:
    kind, marking = _kind_and_marking(name)
    place = KINDS.index(kind), markings.KINDS.index(marking)
    r = np.random.default_rng([SEED, *place, index])
    drawn = scenes.draw(r, 0, _OBJECTS[kind](r), CLUTTER, radius=uniform(r, *RADIUS))
    body = drawn.thing.palette[0]
    made = Marking(
        marking, _beside(r, body), uniform(r, 2.0, 3.2), uniform(r, 0, TURN),
        uniform(r, -0.5, 0.5),
        (0.0, 0.0) if marking == "ringed" else (uniform(r, 0, 1), uniform(r, 0, 1)),
    )  # fmt: skip
    return replace(drawn, pattern=None, marking=made)


def _beside(r: Random, body: Colour) -> Colour:
    """Draw a color that is clearly darker or lighter than the body."""
    hue, saturation, value = colorsys.rgb_to_hsv(*body)
    bright = scenes.luminance(body) < 0.5
    value = min(1.0, value + uniform(r, 0.3, 0.5)) if bright else value * uniform(r, 0.4, 0.65)
    saturation = saturation * uniform(r, 0.2, 0.6) if bright else saturation
    return colorsys.hsv_to_rgb((hue + uniform(r, -0.1, 0.1)) % 1, saturation, value)
