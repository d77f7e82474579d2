"""Eight markings that a surface can carry: plain, striped, checked, dotted, ...

A marking lies in the coordinates of the object, so that it turns, leans and grows with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .strokes import TURN

_STEEPNESS = 4  # of an edge between the two colors: about a quarter of a period is mixed


class Marking(NamedTuple):
    """A regular pattern in a second color.

    Attributes
    ----------
    kind
        One of `KINDS`.
    colour
        RGB, 0..1.
    frequency
        Periods per unit of the sketch, whose objects reach from about -1 to 1.
    angle
        In radians, against the object's own axes.
    balance
        Which of the two colors is wider, -1..1.
    origin
        Where the pattern has its origin, in periods.
    """

    kind: str
    colour: tuple[float, float, float]
    frequency: float
    angle: float
    balance: float
    origin: tuple[float, float]


def _edge(wave: np.ndarray, balance: float) -> np.ndarray:
    return np.clip(wave * _STEEPNESS + 0.5 + balance, 0, 1)


def _plain(u: np.ndarray, v: np.ndarray, balance: float) -> np.ndarray:
    return np.zeros_like(u)


def _striped(u: np.ndarray, v: np.ndarray, balance: float) -> np.ndarray:
    return _edge(np.cos(TURN * u), balance)


def _checked(u: np.ndarray, v: np.ndarray, balance: float) -> np.ndarray:
    return _edge(1.5 * np.sin(TURN / 2 * u) * np.sin(TURN / 2 * v), 0.0)


def _gridded(u: np.ndarray, v: np.ndarray, balance: float) -> np.ndarray:
    nearest = np.maximum(np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5))
    return (nearest > 0.37).astype(np.float32)


def _zigzag(u: np.ndarray, v: np.ndarray, balance: float) -> np.ndarray:
    fold = 2 * np.abs((0.8 * v) % 1 - 0.5)
    return _edge(np.cos(TURN * (u + 0.9 * fold)), balance)


def _ringed(u: np.ndarray, v: np.ndarray, balance: float) -> np.ndarray:
    return _edge(np.cos(TURN * np.hypot(u, v)), balance)


def _cells(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return polar coordinates in the cell of a staggered grid: radius, angle in turns."""
    x = (u + 0.5 * (np.floor(v) % 2)) % 1 - 0.5
    y = v % 1 - 0.5
    return np.hypot(x, y), np.arctan2(y, x) / np.float32(TURN)


def _dotted(u: np.ndarray, v: np.ndarray, balance: float) -> np.ndarray:
    radius, _ = _cells(u, v)
    return (radius < 0.30).astype(np.float32)


def _starred(u: np.ndarray, v: np.ndarray, balance: float) -> np.ndarray:
    radius, turns = _cells(u, v)
    point = np.abs(2 * ((5 * turns + 0.25) % 1) - 1)  # 1 at the five points, 0 between them
    return (radius < 0.46 * (0.42 + 0.58 * point**1.3)).astype(np.float32)


_DRAWN: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "plain": _plain,
    "striped": _striped,
    "checked": _checked,
    "dotted": _dotted,
    "zigzag": _zigzag,
    "ringed": _ringed,
    "starred": _starred,
    "gridded": _gridded,
}

KINDS: tuple[str, ...] = tuple(_DRAWN)


def coverage(marking: Marking, matrix: np.ndarray, centre: np.ndarray, size: int) -> np.ndarray:
    """Return how much of each pixel has the marking's color, (size, size) float32 in 0..1.

    Parameters
    ----------
    marking
        What is drawn.
    matrix, centre
        (2, 2) and (2,): from the object's coordinates to the frame's.
    size
        Side of the picture in pixels.
    """
    g = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    frame = np.stack([*np.meshgrid(g, g)], -1) - centre.astype(np.float32)
    own = frame @ np.linalg.inv(matrix).astype(np.float32) * np.float32(marking.frequency)
    c, d = np.float32(math.cos(marking.angle)), np.float32(math.sin(marking.angle))
    u = own[..., 0] * c + own[..., 1] * d + np.float32(marking.origin[0])
    v = own[..., 1] * c - own[..., 0] * d + np.float32(marking.origin[1])
    return _DRAWN[marking.kind](u, v, marking.balance).astype(np.float32)
