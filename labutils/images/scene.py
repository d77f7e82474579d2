"""All random parameters of a drawn picture, and how they are drawn.

They are drawn before any pixel, in units of the frame, so that one number shows one picture at
every size. The order of the draws is the picture: a draw that is moved changes every image.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import sketches, strokes, textures
from .markings import Marking
from .strokes import DARK, LIGHT, TURN, Random, Sketch, Stroke, chance, count, uniform
from .textures import NOISE_SIZE, Texture

Colour = tuple[float, float, float]  # RGB, 0..1


THINGS: tuple[str, ...] = tuple(sketches.OBJECTS)


class Placed(NamedTuple):
    """Strokes with their place in the frame (frame = unit square) and their colours by slot."""

    strokes: Sequence[Stroke]
    matrix: np.ndarray  # (2, 2), applied to row vectors
    centre: np.ndarray  # (2,)
    scale: float
    palette: Sequence[Colour]


@dataclass(frozen=True)
class Scene:
    """All parameters of one picture; nothing in it depends on the size in pixels."""

    label: int
    thing: Placed
    outline: float  # width in the frame, 0 for none
    outline_slot: int
    background: Texture
    behind: Sequence[Placed]
    occluders: Sequence[Placed]
    pattern: Texture | None
    pattern_colour: Colour
    pattern_strength: float
    shadow: tuple[float, float, float] | None  # dx, dy, opacity
    light: tuple[float, float, float, float, float]  # angle, slope, gain, red cast, blue cast
    contrast: float
    blur: float
    noise: float
    noise_origin: tuple[int, int]
    marking: Marking | None = None  # of the object
    stray_marking: Marking | None = None  # of what lies behind it


def _colour(r: Random, hue: float | None = None) -> Colour:
    hue = r.random() if hue is None else hue + 0.08 * r.standard_normal()
    return colorsys.hsv_to_rgb(hue % 1, uniform(r, 0.35, 0.92), uniform(r, 0.45, 1.0))


def _palette(r: Random, wanted: float | None = None) -> list[Colour]:
    """Body, second, accent, dark, light, glass; the body's hue is drawn in any case."""
    hue = r.random()
    hue = hue if wanted is None else wanted
    body = _colour(r, hue)
    second = _colour(r, hue + (0.5 if chance(r, 0.4) else uniform(r, -0.3, 0.3)))
    accent = _colour(r)
    dark = colorsys.hsv_to_rgb(r.random(), uniform(r, 0, 0.5), uniform(r, 0.05, 0.25))
    light = colorsys.hsv_to_rgb(r.random(), uniform(r, 0, 0.2), uniform(r, 0.8, 1))
    blue = 0.55 + uniform(r, -0.08, 0.08)
    glass = colorsys.hsv_to_rgb(blue, uniform(r, 0.1, 0.5), uniform(r, 0.5, 1))
    return [body, second, accent, dark, light, glass]


def luminance(colour: Colour) -> float:
    """Return how bright a color is, 0..1 (ITU-R BT.601's luma)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _transform(scale: float, rotation: float, shear: float, aspect: float, flip: int) -> np.ndarray:
    c, d = math.cos(rotation), math.sin(rotation)
    shape = np.array([[flip * aspect, 0], [shear, 1 / aspect]])
    return (shape @ np.array([[c, d], [-d, c]])) * scale


def _place(r: Random, strokes: Sequence[Stroke], low: float, high: float) -> Placed:
    """Put a small distractor anywhere."""
    centre = np.array([r.random(), r.random()])
    scale = uniform(r, low, high)
    matrix = _transform(scale, uniform(r, 0, TURN), 0.0, 1.0, 1)
    return Placed(strokes, matrix, centre, scale, ())


def _junk(r: Random) -> list[Stroke]:
    """Draw one meaningless shape: a blob, a star, a triangle, a crescent ..."""
    kind = count(r, 0, 8)
    if kind == 0:
        return [Stroke(strokes.ellipse(0, 0, 1, uniform(r, 0.4, 1)), 1)]
    if kind == 1:
        return [Stroke(strokes.box(-1, -uniform(r, 0.3, 1), 1, uniform(r, 0.3, 1), 0.12), 1)]
    if kind == 2:
        return [Stroke(strokes.points(*(uniform(r, -1, 1) for _ in range(6))), 1)]
    if kind == 3:
        bend = strokes.arc(0, 0, 1, uniform(r, 0.5, 1), uniform(r, 0, 3), uniform(r, 3.5, 6.2))
        return [Stroke(bend, 1, uniform(r, 0.12, 0.35))]
    if kind == 4:
        y = [uniform(r, -0.35, 0.35) for _ in range(3)]
        return [Stroke(strokes.points(-1, y[0], 0, y[1], 1, y[2]), 1, uniform(r, 0.1, 0.3))]
    if kind == 5:
        return [Stroke(strokes.arc(0, 0, 1, uniform(r, 0.5, 0.9), TURN / 2, TURN), 1)]
    if kind == 6:
        n = 2 * count(r, 4, 9)
        radius = np.where(np.arange(n) % 2, uniform(r, 0.4, 0.8), 1.0)
    else:
        n = 14
        radius = 1 + 0.35 * r.standard_normal(n)
        radius = (radius + np.roll(radius, 1)) / 2
    angle = np.linspace(0, TURN, n, endpoint=False)
    return [Stroke(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), 1)]


def _background(r: Random) -> Texture:
    kind = 0 if chance(r, 0.5) else count(r, 1, 5)
    geometry: dict[str, Any] = {
        "tile": int(r.integers(textures.TILES)),
        "crop": (r.random(), r.random(), uniform(r, 0.12, 0.9)),
        "angle": uniform(r, 0, TURN),
        "frequency": uniform(r, 3, 14),
        "warp": uniform(r, 0, 3) * chance(r, 0.5),
        "strength": uniform(r, 0.3, 0.9),
    }
    one_hue = chance(r, 0.65)
    hue = r.random()
    hues = [hue + 0.06 * r.standard_normal() if one_hue else r.random() for _ in range(3)]
    ramp = [colorsys.hsv_to_rgb(h % 1, uniform(r, 0.05, 0.72), uniform(r, 0.3, 1)) for h in hues]
    return Texture(kind, **geometry, ramp=ramp)


def distractors(r: Random, clutter: float) -> list[Placed]:
    """Draw what lies behind the object: junk, and stray strokes of other objects."""
    placed = []
    for _ in range(int(uniform(r, 1, 11 * clutter)) if clutter else 0):
        placed.append(_place(r, _junk(r), 0.03, 0.17)._replace(palette=[_colour(r)]))
    for _ in range(int(uniform(r, 0, 3 * clutter))):
        strokes = sketches.OBJECTS[THINGS[int(r.integers(len(THINGS)))]](r)
        start = int(r.integers(len(strokes)))
        part = strokes[start : start + 1 + int(r.integers(2))]
        placed.append(_place(r, part, 0.08, 0.22)._replace(palette=_palette(r)))
    return placed


def occluders(r: Random, clutter: float, centre: np.ndarray, radius: float) -> list[Placed]:
    """Draw what lies on top of the object."""
    placed = []
    for _ in range(int(uniform(r, 0, 2.4 * clutter))):
        junk = _place(r, _junk(r), radius * 0.18, radius * 0.5)
        angle, distance = uniform(r, 0, TURN), radius * uniform(r, 0.35, 1.15)
        at = centre + distance * np.array([math.cos(angle), math.sin(angle)])
        placed.append(junk._replace(centre=at, palette=[_colour(r)]))
    return placed


def _pattern(r: Random, rotation: float) -> Texture:
    return Texture(
        kind=count(r, 0, 5),
        tile=int(r.integers(textures.TILES)),
        crop=(r.random(), r.random(), uniform(r, 0.1, 0.5)),
        angle=rotation + uniform(r, 0, 3),
        frequency=uniform(r, 8, 26),
        warp=0.0,
        strength=uniform(r, 0.5, 1),
        ramp=[(0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)],
    )


def _thing(
    r: Random, strokes: Sketch, hue: float | None, radius: float | None
) -> tuple[Placed, float]:
    """Place the object so that it fills the frame (radius 0.28 to 0.47); also its rotation."""
    palette = _palette(r, hue)
    drawn = uniform(r, 0.28, 0.47)
    radius = drawn if radius is None else radius
    rotation = 0.45 * r.standard_normal() if chance(r, 0.8) else uniform(r, 0, TURN)
    margin = max(0.0, 0.5 - radius * 0.9)
    centre = np.array([0.5 + uniform(r, -margin, margin), 0.5 + uniform(r, -margin, margin)])
    shear, aspect = 0.22 * r.standard_normal(), math.exp(0.13 * r.standard_normal())
    matrix = _transform(radius, rotation, shear, aspect, 1 if chance(r, 0.5) else -1)
    return Placed(strokes, matrix, centre, radius, palette), rotation


def draw(
    r: Random,
    label: int,
    sketch: Sketch,
    clutter: float,
    hue: float | None = None,
    radius: float | None = None,
) -> Scene:
    """Draw the parameters of a scene around a sketch.

    Parameters
    ----------
    r
        The generator, which has drawn the sketch.
    label
        The picture's class.
    sketch
        The object.
    clutter
        Amount of distractors, occlusion, blur and noise, 0..1.
    hue, radius
        The body's hue (0..1) and the object's radius in the frame, where they are given: they are
        drawn all the same, so that the rest stays as it is.
    """
    thing, rotation = _thing(r, sketch, hue, radius)
    width, drawn = uniform(r, 0.024, 0.09) * thing.scale, chance(r, 0.55)
    background = _background(r)
    body, mean = thing.palette[0], luminance(tuple(np.mean(background.ramp, axis=0)))
    # An object as bright as its background is not a fair question: it always gets an outline.
    faint = abs(luminance(body) - mean) < 0.18
    return Scene(
        label=label,
        thing=thing,
        outline=width if drawn or faint else 0.0,
        outline_slot=LIGHT if mean < 0.35 else DARK,
        background=background,
        behind=distractors(r, clutter),
        occluders=occluders(r, clutter, thing.centre, thing.scale),
        pattern=_pattern(r, rotation) if chance(r, 0.6) else None,
        pattern_colour=_colour(r),
        pattern_strength=uniform(r, 0.2, 0.75),
        shadow=(uniform(r, -0.06, 0.06), uniform(r, 0.01, 0.07), uniform(r, 0.25, 0.6))
        if chance(r, 0.6)
        else None,
        light=(
            uniform(r, 0, TURN),
            uniform(r, 0, 0.4),
            uniform(r, 0.75, 1.25),
            uniform(r, -0.07, 0.07),
            uniform(r, -0.07, 0.07),
        ),
        contrast=uniform(r, 0.65, 1.1),
        blur=uniform(r, 0, 0.009) * clutter if chance(r, 0.5) else 0.0,
        noise=uniform(r, 1, 16) * clutter if chance(r, 0.65) else 0.0,
        noise_origin=(int(r.integers(NOISE_SIZE)), int(r.integers(NOISE_SIZE))),
    )
