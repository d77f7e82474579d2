"""Things-16: an endless, offline image-classification set that is drawn, not downloaded.

Sixteen objects on cluttered, textured backgrounds. Image `index` of a split is a pure function of
(split, index, size): every image has its own generator, and all its parameters are drawn
before any pixel, in units of the frame, so that one index shows one picture at every size. (The
sensor noise is per pixel, so it alone differs between sizes.) Splits never overlap, because the
split is part of the seed. The images are synthetic: no photograph is in them.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..errors import UnknownNameError, UsageError
from . import sketches, strokes, textures
from .strokes import DARK, LIGHT, TURN, Random, Sketch, Stroke, chance, count, uniform
from .textures import NOISE_SIZE, Texture

CLASSES: tuple[str, ...] = tuple(sketches.OBJECTS)
SPLITS: dict[str, int] = {"train": 0, "val": 1, "calib": 2, "test": 3}
SEED = 7
CLUTTER = 0.5  # 0 no distractors, blur or noise; 1 the hardest pictures
SUPERSAMPLING = 2
MIN_SIZE = 16  # pixels; below, nobody could tell what is drawn

Colour = tuple[float, float, float]  # RGB, 0..1


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


def _luminance(colour: Colour) -> float:
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


def _behind(r: Random, clutter: float) -> list[Placed]:
    """Distractors behind the object: junk, and stray strokes of other objects."""
    placed = []
    for _ in range(int(uniform(r, 1, 11 * clutter)) if clutter else 0):
        placed.append(_place(r, _junk(r), 0.03, 0.17)._replace(palette=[_colour(r)]))
    for _ in range(int(uniform(r, 0, 3 * clutter))):
        strokes = sketches.OBJECTS[CLASSES[int(r.integers(len(CLASSES)))]](r)
        start = int(r.integers(len(strokes)))
        part = strokes[start : start + 1 + int(r.integers(2))]
        placed.append(_place(r, part, 0.08, 0.22)._replace(palette=_palette(r)))
    return placed


def _occluders(r: Random, clutter: float, centre: np.ndarray, radius: float) -> list[Placed]:
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
    return _scene(r, label(index), clutter)


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
    base = _scene(np.random.default_rng(key), key[2], 1.0, hue, size / 2)
    behind, over = (np.random.default_rng([*key, layer]) for layer in (1, 2))
    return replace(
        base,
        behind=_behind(behind, clutter),
        occluders=_occluders(over, clutter, base.thing.centre, base.thing.scale),
        blur=base.blur * clutter,
        noise=base.noise * clutter,
    )


def _scene(
    r: Random,
    label: int,
    clutter: float,
    hue: float | None = None,
    radius: float | None = None,
) -> Scene:
    """Draw a scene; what is given is drawn all the same, so that the rest stays as it is."""
    thing, rotation = _thing(r, sketches.OBJECTS[CLASSES[label]](r), hue, radius)
    width, drawn = uniform(r, 0.024, 0.09) * thing.scale, chance(r, 0.55)
    background = _background(r)
    body, mean = thing.palette[0], _luminance(tuple(np.mean(background.ramp, axis=0)))
    # An object as bright as its background is not a fair question: it always gets an outline.
    faint = abs(_luminance(body) - mean) < 0.18
    return Scene(
        label=label,
        thing=thing,
        outline=width if drawn or faint else 0.0,
        outline_slot=LIGHT if mean < 0.35 else DARK,
        background=background,
        behind=_behind(r, clutter),
        occluders=_occluders(r, clutter, thing.centre, thing.scale),
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


def _draw(canvas: ImageDraw.ImageDraw, placed: Placed, base: int, outline: int, width: int) -> None:
    """Draw strokes as palette indices `base` + slot, with an outline of `width` pixels."""
    pixels = canvas.im.size[0]
    for stroke in placed.strokes:
        at = (stroke.points @ placed.matrix + placed.centre) * pixels
        xy = list(map(tuple, at.tolist()))
        index = base + stroke.slot
        if not stroke.width:
            canvas.polygon(xy, fill=index)
            if width:
                canvas.line(xy + xy[:2], fill=outline, width=width)
            continue
        thick = max(1, int(stroke.width * placed.scale * pixels + 0.5))
        joint = "curve" if thick > 4 else None
        if width:
            canvas.line(xy, fill=outline, width=thick + 2 * width, joint=joint)
        canvas.line(xy, fill=index, width=thick, joint=joint)


def _paint(table: np.ndarray, base: int, palette: Iterable[Colour]) -> None:
    for slot, colour in enumerate(palette, start=base + 1):
        table[slot] = (*(int(255 * v) for v in colour), 255)


def _resolve(indices: Image.Image, table: np.ndarray) -> np.ndarray:
    """Colour an index map and reduce it: (size, size, 4) uint8, colours times coverage."""
    rgba = table.view(np.uint32)[:, 0].take(np.asarray(indices))
    picture = Image.frombuffer("RGBa", indices.size, rgba.tobytes(), "raw", "RGBa", 0, 1)
    return np.asarray(picture.reduce(SUPERSAMPLING))


def _over(layer: np.ndarray, picture: np.ndarray) -> np.ndarray:
    return picture * (1 - layer[..., 3:] * np.float32(1 / 255)) + layer[..., :3]


def _index_map(size: int) -> tuple[Image.Image, ImageDraw.ImageDraw, np.ndarray]:
    indices = Image.new("L", (size * SUPERSAMPLING,) * 2)
    return indices, ImageDraw.Draw(indices), np.zeros((256, 4), np.uint8)


def _clutter_layer(scene: Scene, size: int) -> np.ndarray:
    indices, canvas, table = _index_map(size)
    base = 0
    for placed in scene.behind:
        _paint(table, base, placed.palette)
        _draw(canvas, placed, base, 0, 0)
        base += len(placed.palette)
    return _resolve(indices, table)


def _cast_shadow(indices: Image.Image, scene: Scene, size: int, picture: np.ndarray) -> np.ndarray:
    if scene.shadow is None:
        return picture
    dx, dy, opacity = scene.shadow
    mask = Image.fromarray((np.asarray(indices)[::8, ::8] > 0).view(np.uint8) * 255)
    shift = (1, 0, -dx * mask.size[0], 0, 1, -dy * mask.size[1])
    mask = mask.transform(mask.size, Image.Transform.AFFINE, shift)
    mask = mask.filter(ImageFilter.BoxBlur(1)).resize((size, size), Image.Resampling.BILINEAR)
    return picture * (1 - np.asarray(mask, np.float32)[..., None] * np.float32(opacity / 255))


def _thing_over(scene: Scene, size: int, picture: np.ndarray) -> np.ndarray:
    """Draw the object, its shadow and what lies on top of it over `picture`."""
    indices, canvas, table = _index_map(size)
    _paint(table, 0, scene.thing.palette)
    edge = 15
    table[edge] = table[scene.outline_slot]
    pixels = size * SUPERSAMPLING
    width = max(1, int(scene.outline * pixels / 2 + 0.5)) if scene.outline else 0
    _draw(canvas, scene.thing, 0, edge, width)
    picture = _cast_shadow(indices, scene, size, picture)
    for i, placed in enumerate(scene.occluders):
        _paint(table, 32 + i, placed.palette)
        _draw(canvas, placed, 32 + i, 0, 0)
    layer = _resolve(indices, table).astype(np.float32)
    if scene.pattern is not None:  # body and second part, mixed with another colour by a pattern
        mixed, f = table.copy(), scene.pattern_strength
        other = np.array(scene.pattern_colour) * 255 * f
        mixed[1:3, :3] = (table[1:3, :3] * (1 - f) + other).astype(np.uint8)
        change = _resolve(indices, mixed)[..., :3] - layer[..., :3]
        layer[..., :3] += change * textures.height(scene.pattern, size)[..., None]
    return _over(layer, picture)


def _lit(scene: Scene, size: int, picture: np.ndarray) -> np.ndarray:
    angle, slope, gain, red, blue = scene.light
    g = np.linspace(-1, 1, size, dtype=np.float32)
    tilt = g[None] * np.float32(math.cos(angle)) + g[:, None] * np.float32(math.sin(angle))
    light = np.float32(gain) * (1 + np.float32(slope) * tilt)
    cast = np.array([1 + red, 1, 1 + blue], np.float32)
    contrast = np.float32(scene.contrast)
    return (picture * contrast + 128 * (1 - contrast)) * (light[..., None] * cast)


def _sensed(scene: Scene, size: int, picture: np.ndarray) -> np.ndarray:
    """Blur and noise, then 8 bits."""
    if scene.blur:
        sharp = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
        blurred = sharp.filter(ImageFilter.GaussianBlur(scene.blur * size))
        picture = np.asarray(blurred, np.float32)
    if scene.noise:
        x, y = ((np.arange(size) + origin) % NOISE_SIZE for origin in scene.noise_origin)
        picture = picture + textures.white_noise()[y[:, None], x[None]] * np.float32(scene.noise)
    return np.clip(picture, 0, 255).astype(np.uint8)


def render(scene: Scene, size: int = 128) -> np.ndarray:
    """Render a scene as (size, size, 3) uint8 RGB, for any `size` from 16 up."""
    if size < MIN_SIZE:
        raise UsageError(f"Things-16 renders at {MIN_SIZE} pixels or more, got {size}.")
    picture = textures.colour(scene.background, size)
    picture = _over(_clutter_layer(scene, size), picture)
    picture = _thing_over(scene, size, picture)
    return _sensed(scene, size, _lit(scene, size, picture))


def image(index: int, split: str = "train", size: int = 128) -> np.ndarray:
    """Return image `index` of `split` as (size, size, 3) uint8 RGB; its class is `label(index)`."""
    return render(scene(index, split), size)


def digest(split: str, n: int = 64, size: int = 128) -> str:
    """Return the SHA-256 over the first `n` images of a split: the identity of the pixels."""
    total = hashlib.sha256()
    for index in range(n):
        total.update(image(index, split, size).tobytes())
    return total.hexdigest()
