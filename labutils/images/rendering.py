"""From the parameters of a scene to pixels, at any size."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..errors import UsageError
from . import markings, textures
from .scene import Colour, Placed, Scene
from .textures import NOISE_SIZE

SUPERSAMPLING = 2
MIN_SIZE = 16  # pixels; below, nobody could tell what is drawn


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
    layer = _resolve(indices, table)
    if scene.stray_marking is None:
        return layer
    table[table[:, 3] > 0, :3] = (np.array(scene.stray_marking.colour) * 255).astype(np.uint8)
    drawn = markings.coverage(scene.stray_marking, np.eye(2), np.zeros(2), size)
    return layer + (_resolve(indices, table) - layer.astype(np.float32)) * drawn[..., None]


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
    if scene.marking is not None:
        marked = table.copy()
        marked[1:3, :3] = (np.array(scene.marking.colour) * 255).astype(np.uint8)
        change = _resolve(indices, marked)[..., :3] - layer[..., :3]
        drawn = markings.coverage(scene.marking, scene.thing.matrix, scene.thing.centre, size)
        layer[..., :3] += change * drawn[..., None]
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
        raise UsageError(f"Pictures are drawn at {MIN_SIZE} pixels or more, got {size}.")
    picture = textures.colour(scene.background, size)
    picture = _over(_clutter_layer(scene, size), picture)
    picture = _thing_over(scene, size, picture)
    return _sensed(scene, size, _lit(scene, size, picture))


def digest(image: Callable[[int, str, int], np.ndarray], split: str, n: int, size: int) -> str:
    """Return the SHA-256 over the first `n` images of a split, as ``image(index, split, size)``."""
    total = hashlib.sha256()
    for index in range(n):
        total.update(image(index, split, size).tobytes())
    return total.hexdigest()
