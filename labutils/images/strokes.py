"""What the sketches of Things-16 are drawn with: polygons and thick lines in the unit box.

A sketch is a list of strokes in the unit box (x right, y down, the object within about -1..1). It
names paint slots, not colours, so that colours, patterns and lighting can be chosen elsewhere.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

TURN = 2 * math.pi
BODY, SECOND, ACCENT, DARK, LIGHT, GLASS = 1, 2, 3, 4, 5, 6


class Stroke(NamedTuple):
    """One drawing operation: a filled polygon, or (when `width` > 0) a line through `points`."""

    points: np.ndarray  # (n, 2), unit box
    slot: int
    width: float = 0.0


class Sketch(list[Stroke]):
    """Strokes in drawing order."""

    def fill(self, points: np.ndarray, slot: int) -> None:
        """Add a filled polygon."""
        self.append(Stroke(points, slot))

    def line(self, points: np.ndarray, slot: int, width: float) -> None:
        """Add a line of `width` through `points`."""
        self.append(Stroke(points, slot, width))


Random = np.random.Generator


def uniform(r: Random, low: float, high: float) -> float:
    """Return a number between `low` and `high` (one draw; the order of draws is the picture)."""
    return low + (high - low) * r.random()


def chance(r: Random, probability: float) -> bool:
    """Return True with the given probability (one draw)."""
    return r.random() < probability


def count(r: Random, low: int, high: int) -> int:
    """Return an integer from `low` to `high` - 1 (one draw)."""
    return int(uniform(r, low, high))


def points(*xy: float) -> np.ndarray:
    """Return an (n, 2) array from x0, y0, x1, y1, ..."""
    return np.array(xy, float).reshape(-1, 2)


def arc(
    cx: float, cy: float, rx: float, ry: float, start: float, stop: float, n: int = 16
) -> np.ndarray:
    """Return `n` points of an elliptic arc; angles in radians, clockwise on screen."""
    t = np.linspace(start, stop, n)
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], 1)


def ellipse(cx: float, cy: float, rx: float, ry: float | None = None, n: int = 20) -> np.ndarray:
    """Return a closed ellipse (a circle when `ry` is left out)."""
    return arc(cx, cy, rx, rx if ry is None else ry, 0, TURN * (n - 1) / n, n)


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> np.ndarray:
    """Return a rectangle, with rounded corners when `radius` > 0."""
    if not radius:
        return points(x0, y0, x1, y0, x1, y1, x0, y1)
    corners = [(x1 - radius, y0 + radius, -0.25), (x1 - radius, y1 - radius, 0.0)]
    corners += [(x0 + radius, y1 - radius, 0.25), (x0 + radius, y0 + radius, 0.5)]
    return np.concatenate(
        [arc(x, y, radius, radius, TURN * a, TURN * (a + 0.25), 4) for x, y, a in corners]
    )


def lens(x: np.ndarray, half_height: np.ndarray) -> np.ndarray:
    """Return the outline between -half_height and +half_height over `x`."""
    upper = np.stack([x, -half_height], 1)
    lower = np.stack([x[::-1], half_height[::-1]], 1)
    return np.concatenate([upper, lower])


def closed(outline: np.ndarray) -> np.ndarray:
    """Return `outline` with its first two points repeated, so that a line around it joins."""
    return np.concatenate([outline, outline[:2]])
