"""The surfaces of Things-16: noise tiles, regular patterns, and the sensor's noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from .strokes import TURN, uniform

TILES, TILE_SIZE, NOISE_SIZE = 48, 256, 512


class Texture(NamedTuple):
    """A noise tile, or a regular pattern bent by it, mapped to a ramp of three colours."""

    kind: int  # 0 noise, 1 stripes, 2 checks, 3 dots, 4 bricks
    tile: int
    crop: tuple[float, float, float]
    angle: float
    frequency: float
    warp: float
    strength: float
    ramp: Sequence[tuple[float, float, float]]


@functools.cache
def _tiles() -> list[Image.Image]:
    """Tileable 1/f^b noise as grey pictures: clouds, streaks and ridges."""
    r = np.random.default_rng(20240)
    fx, fy = np.fft.fftfreq(TILE_SIZE)[:, None], np.fft.rfftfreq(TILE_SIZE)[None]
    tiles = []
    for i in range(TILES):
        slope = uniform(r, 0.9, 2.2)
        squeeze = uniform(r, 0.2, 0.5) if i % 4 == 3 else 1.0
        radius = np.sqrt((fx * squeeze) ** 2 + fy * fy)
        radius[0, 0] = 1
        spectrum = np.fft.rfft2(r.standard_normal((TILE_SIZE, TILE_SIZE))) / radius**slope
        spectrum[0, 0] = 0
        noise = np.fft.irfft2(spectrum, s=(TILE_SIZE, TILE_SIZE))
        low, high = np.percentile(noise, (2, 98))
        noise = np.clip((noise - low) / (high - low), 0, 1)
        if i % 5 == 4:
            noise = np.abs(2 * noise - 1)
        tiles.append(Image.fromarray((noise * 255).astype(np.uint8)))
    return tiles


@functools.cache
def white_noise() -> np.ndarray:
    """Return a fixed (512, 512, 3) float32 block of standard normal noise."""
    r = np.random.default_rng(20241)
    return r.standard_normal((NOISE_SIZE, NOISE_SIZE, 3)).astype(np.float32)


def height(texture: Texture, size: int) -> np.ndarray:
    """Return the texture's height, (size, size) float32 in 0..1."""
    x, y, width = texture.crop
    left, top = x * (1 - width) * 255, y * (1 - width) * 255
    window = (left, top, left + width * 255 + 1, top + width * 255 + 1)
    tile = _tiles()[texture.tile].resize((size, size), Image.Resampling.BILINEAR, box=window)
    noise = np.asarray(tile, np.float32) * np.float32(1 / 255)
    if texture.kind == 0:
        return noise
    g = np.arange(size, dtype=np.float32) / size - 0.5
    c, d = np.float32(math.cos(texture.angle)), np.float32(math.sin(texture.angle))
    u = (g[None] * c + g[:, None] * d) * np.float32(texture.frequency)
    v = (g[:, None] * c - g[None] * d) * np.float32(texture.frequency)
    u = u + noise * np.float32(texture.warp)
    turn = np.float32(TURN)
    if texture.kind == 1:
        pattern = np.clip(np.sin(u * turn) * 3 + 0.5, 0, 1)
    elif texture.kind == 2:
        pattern = np.clip(np.sin(u * turn) * np.sin(v * turn) * 6 + 0.5, 0, 1)
    elif texture.kind == 3:
        pattern = np.clip((np.cos(u * turn) + np.cos(v * turn) - 0.9) * 4, 0, 1)
    else:
        gap = np.abs((u + 0.5 * (np.floor(v) % 2)) % 1 - 0.5)
        pattern = ((gap > 0.44) | (np.abs(v % 1 - 0.5) > 0.42)).astype(np.float32)
    strength = np.float32(texture.strength)
    return pattern * strength + noise * (1 - strength)


def colour(texture: Texture, size: int) -> np.ndarray:
    """Return the texture as (size, size, 3) float32 in 0..255."""
    ramp, at = np.array(texture.ramp) * 255, np.linspace(0, 1, 256)
    table = np.stack([np.interp(at, (0, 0.5, 1), ramp[:, i]) for i in range(3)], 1)
    level = (height(texture, size) * 255).astype(np.uint8)
    return table.astype(np.float32).take(level, axis=0)
