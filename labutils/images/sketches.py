"""The sixteen objects of Things-16, each drawn from a few random polygons and thick lines."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .strokes import (
    ACCENT,
    BODY,
    DARK,
    GLASS,
    LIGHT,
    SECOND,
    TURN,
    Random,
    Sketch,
    arc,
    box,
    chance,
    closed,
    count,
    ellipse,
    lens,
    points,
    uniform,
)


def mug(r: Random) -> Sketch:
    """A mug with one ear-shaped handle, seen a little from above."""
    s = Sketch()
    height, top = uniform(r, 0.55, 0.95), uniform(r, 0.5, 0.75)
    bottom = top * uniform(r, 0.7, 1.05)
    reach, y = uniform(r, 0.25, 0.42), uniform(r, -0.1, 0.1)
    span = height * uniform(r, 0.4, 0.65)
    ear = arc((top + bottom) / 2, y, reach, span, -TURN * 0.27, TURN * 0.27)
    s.line(ear, SECOND if chance(r, 0.3) else BODY, uniform(r, 0.11, 0.2))
    base = arc(0, height, bottom, 0.12, 0, TURN / 2, 8)
    s.fill(np.concatenate([points(-top, -height, top, -height), base]), BODY)
    if chance(r, 0.5):
        y, d = uniform(r, -0.3, 0.4) * height, uniform(r, 0.08, 0.2)
        a, b = top * 0.93, top * 0.9
        s.fill(points(-a, y - d, a, y - d, b, y + d, -b, y + d), ACCENT)
    rim = uniform(r, 0.1, 0.2)
    s.fill(ellipse(0, -height, top, rim), SECOND)
    s.fill(ellipse(0, -height, top * 0.86, rim * 0.7), DARK)
    return s


def teapot(r: Random) -> Sketch:
    """A round pot with a spout on the left, a handle on the right and a lid with a knob."""
    s = Sketch()
    w, h, y = uniform(r, 0.55, 0.75), uniform(r, 0.42, 0.66), 0.15
    reach, span = uniform(r, 0.22, 0.38), h * uniform(r, 0.5, 0.75)
    handle = arc(w, y - 0.05, reach, span, -TURN * 0.27, TURN * 0.27)
    s.line(handle, SECOND if chance(r, 0.3) else BODY, uniform(r, 0.1, 0.17))
    lift = uniform(r, 0.0, 0.3)
    spout = points(-w * 0.75, y + 0.3, -w * 0.7, y - 0.15, -w - 0.2, y - 0.2 - lift)
    lip = points(-w - 0.3, y - 0.5 - lift, -w - 0.1, y - 0.52 - lift, -w + 0.02, y - 0.05)
    s.fill(np.concatenate([spout, lip, points(-w * 0.6, y + 0.35)]), BODY)
    s.fill(ellipse(0, y, w, h, 28), BODY)
    if chance(r, 0.5):
        s.fill(box(-w * 0.5, y + h * 0.85, w * 0.5, y + h * 1.05), SECOND)
    if chance(r, 0.4):
        s.fill(ellipse(0, y + 0.05, w * 0.4, h * 0.4), ACCENT)
    top = y - h * 0.78
    s.fill(arc(0, top, w * 0.55, uniform(r, 0.14, 0.28), TURN / 2, TURN, 10), SECOND)
    s.fill(ellipse(0, top - 0.24, uniform(r, 0.07, 0.12)), ACCENT)
    return s


def fish(r: Random) -> Sketch:
    """A fish from the side, its eye on the right and its forked tail on the left."""
    s = Sketch()
    w, h, fork = uniform(r, 0.6, 0.85), uniform(r, 0.28, 0.55), uniform(r, 0.25, 0.5)
    x = -w * 0.8
    notch = x - uniform(r, 0.1, 0.3)
    s.fill(points(x + 0.15, 0, x - 0.35, -fork, notch, 0, x - 0.35, fork), SECOND)
    fin = -h - uniform(r, 0.1, 0.3)
    s.fill(points(-w * 0.3, -h * 0.7, w * 0.1, fin, w * 0.5, -h * 0.6), SECOND)
    if chance(r, 0.6):
        fin = h + uniform(r, 0.1, 0.25)
        s.fill(points(-w * 0.2, h * 0.7, -0.05, fin, w * 0.2, h * 0.75), SECOND)
    a = np.linspace(-1, 1, 14)
    s.fill(lens(a * w, h * (1 - np.abs(a) ** uniform(r, 1.6, 2.6))), BODY)
    if chance(r, 0.5):
        for k in range(count(r, 2, 5)):
            x, c = -w * 0.45 + k * 0.22, h * 0.72
            s.line(points(x, -c, x + 0.07, 0, x, c), ACCENT, 0.07)
    if chance(r, 0.6):
        s.fill(points(0, 0.02, -0.28, -0.1, -0.28, 0.22), SECOND)
    s.fill(ellipse(w * 0.62, -h * 0.2, 0.11), LIGHT)
    s.fill(ellipse(w * 0.64, -h * 0.2, 0.055, n=12), DARK)
    return s


def leaf(r: Random) -> Sketch:
    """A leaf with a stem, a midrib and side veins, its edge smooth or toothed."""
    s = Sketch()
    w, a = uniform(r, 0.3, 0.58), np.linspace(-1, 1, 16)
    power, skew = uniform(r, 1.3, 2.2), uniform(r, -0.25, 0.1)
    edge = w * (1 - np.abs(a) ** power) * (1 + skew * a)
    if chance(r, 0.35):
        edge = edge * (1 + 0.16 * (np.arange(16) % 2))
    s.line(points(-0.95, 0, -1.3, uniform(r, -0.15, 0.15)), SECOND, 0.09)
    s.fill(lens(a, edge), BODY)
    vein = SECOND if chance(r, 0.6) else ACCENT
    s.line(points(-1, 0, 0.85, 0), vein, 0.06)
    for k in range(count(r, 3, 6)):
        x = -0.65 + k * 0.3
        q = w * max(0.15, 1 - abs(x + 0.25) ** power) * 0.7
        s.line(points(x + 0.25, -q, x, 0, x + 0.25, q), vein, 0.04)
    return s


def mushroom(r: Random) -> Sketch:
    """A domed cap, mostly with spots, on a thick pale stem."""
    s = Sketch()
    w, h, stem = uniform(r, 0.6, 0.95), uniform(r, 0.5, 0.85), uniform(r, 0.16, 0.32)
    foot = stem * uniform(r, 1, 1.5)
    s.fill(points(-stem, -0.05, stem, -0.05, foot, 0.8, -foot, 0.8), LIGHT)
    if chance(r, 0.4):
        ring = points(-stem * 1.3, 0.2, stem * 1.3, 0.2, stem * 1.1, 0.32, -stem * 1.1, 0.32)
        s.fill(ring, SECOND)
    under = arc(0, 0, w, uniform(r, 0.02, 0.2), 0, TURN / 2, 10)
    s.fill(np.concatenate([arc(0, 0, w, h, TURN / 2, TURN, 18), under]), BODY)
    if chance(r, 0.75):
        for _ in range(count(r, 3, 7)):
            angle, q = uniform(r, 0.55, 0.95) * TURN, uniform(r, 0.25, 0.75)
            x, y = w * q * math.cos(angle), -abs(h * q * math.sin(angle)) - 0.05
            s.fill(ellipse(x, y, uniform(r, 0.06, 0.14), n=12), ACCENT)
    return s


def umbrella(r: Random) -> Sketch:
    """An open umbrella with scalloped panels and a hooked handle."""
    s = Sketch()
    w, h, n, y = uniform(r, 0.8, 1.0), uniform(r, 0.5, 0.8), count(r, 4, 7), -0.05
    stick = np.concatenate(
        [points(0, -h - 0.15, 0, 0.68), arc(0.15, 0.72, 0.15, 0.16, TURN / 2, 0, 8)]
    )
    s.line(stick, DARK if chance(r, 0.7) else SECOND, uniform(r, 0.06, 0.1))
    x = np.linspace(-w, w, n + 1)
    mid = (x[:-1] + x[1:]) / 2
    scallops = [
        arc(mid[k], y, w / n, uniform(r, 0.06, 0.15), 0, -TURN / 2, 6) for k in range(n)[::-1]
    ]
    s.fill(np.concatenate([arc(0, y, w, h, TURN / 2, TURN, 18), *scallops]), BODY)
    if chance(r, 0.75):
        for k in range(0, n, 2):
            hem = arc(mid[k], y, w / n, 0.08, TURN / 2, 0, 5) * (0.96, 1)
            s.fill(np.concatenate([points(0, y - h), hem]), SECOND)
    else:
        for k in range(1, n):
            s.line(points(0, y - h, x[k], y), DARK, 0.03)
    return s


def balloon(r: Random) -> Sketch:
    """A hot-air balloon: a large envelope, striped or banded, ropes and a basket."""
    s = Sketch()
    w, y = uniform(r, 0.58, 0.78), -0.3
    basket, floor = uniform(r, 0.14, 0.22), uniform(r, 0.75, 0.95)
    for side in (-1, 1):
        s.line(points(side * w * 0.6, y + w * 0.7, side * basket, floor - 0.12), DARK, 0.035)
    s.fill(box(-basket, floor - 0.15, basket, floor + 0.14), ACCENT)
    envelope = arc(0, y, w, w * uniform(r, 0.95, 1.15), TURN * 0.42, TURN * 1.08, 22)
    mouth = points(basket * 0.9, floor - 0.38, -basket * 0.9, floor - 0.38)
    s.fill(np.concatenate([envelope, mouth]), BODY)
    kind = r.random()
    if kind < 0.5:
        for q in (-0.62, 0, 0.62):
            m = w * 0.16
            right = arc(0, y, w * q + m, w, -TURN / 4, TURN / 4, 9)
            left = arc(0, y, w * q - m, w, TURN / 4, -TURN / 4, 9)
            s.fill(np.concatenate([right, left]), SECOND)
    elif kind < 0.8:
        d, a = uniform(r, 0.1, 0.2), w * 0.97
        s.fill(points(-a, y - d, a, y - d, a, y + d, -a, y + d), SECOND)
    return s


def tree(r: Random) -> Sketch:
    """A crown of overlapping rounds on a long trunk, sometimes with a bough or fruit."""
    s = Sketch()
    trunk = uniform(r, 0.11, 0.18)
    s.fill(points(-trunk, 0, trunk, 0, trunk * 1.4, 1.0, -trunk * 1.4, 1.0), SECOND)
    if chance(r, 0.5):
        s.line(points(0, 0.5, uniform(r, 0.2, 0.4), 0.15), SECOND, 0.09)
    n, w = count(r, 4, 7), uniform(r, 0.35, 0.55)
    for i in range(n):
        a = TURN * i / n + uniform(r, 0, 0.5)
        x, y = w * math.cos(a), -0.32 + 0.35 * math.sin(a)
        s.fill(ellipse(x, y, uniform(r, 0.3, 0.42)), BODY)
    s.fill(ellipse(0, -0.32, 0.42), BODY)
    if chance(r, 0.45):
        for _ in range(count(r, 3, 8)):
            x, y = uniform(r, -0.6, 0.6), uniform(r, -0.75, 0.1)
            s.fill(ellipse(x, y, 0.07, n=12), ACCENT)
    return s


def _wheel(r: Random, s: Sketch, x: float, y: float, radius: float) -> None:
    s.fill(ellipse(x, y, radius), DARK)
    hub = ellipse(x, y, radius * uniform(r, 0.4, 0.62), n=12)
    s.fill(hub, LIGHT if chance(r, 0.7) else ACCENT)


def car(r: Random) -> Sketch:
    """A low car from the side: cabin with two windows, bonnet, two wheels."""
    s = Sketch()
    h = uniform(r, 0.24, 0.36)
    a, b = uniform(r, -0.75, -0.35), uniform(r, 0.25, 0.55)
    top, slope, m = -uniform(r, 0.42, 0.62), uniform(r, 0.1, 0.3), 0.08
    x0, x1, mid = a + slope * 0.6, b - slope * 0.6, (a + b) / 2
    s.fill(points(a - slope * 0.4, -0.1, x0, top, x1, top, b + slope, -0.1), BODY)
    rear = points(a + 0.02, -0.12, x0 + m * 0.6, top + m, mid - 0.04, top + m, mid - 0.04, -0.12)
    s.fill(rear, GLASS)
    nose = b + slope - m * 1.6
    s.fill(
        points(mid + 0.04, -0.12, mid + 0.04, top + m, x1 - m * 0.3, top + m, nose, -0.12), GLASS
    )
    s.fill(box(-1, -0.13, 1, -0.13 + h * 1.6, 0.12), BODY)
    if chance(r, 0.5):
        s.fill(box(-0.96, 0.08, 0.96, 0.16), SECOND)
    s.fill(ellipse(0.92, 0.04, 0.08, n=12), ACCENT)
    radius = uniform(r, 0.19, 0.27)
    for x in (-uniform(r, 0.5, 0.62), uniform(r, 0.5, 0.62)):
        _wheel(r, s, x, -0.13 + h * 1.5, radius)
    return s


def bus(r: Random) -> Sketch:
    """A tall box from the side: a row of windows over its length, two wheels."""
    s = Sketch()
    top, floor = -uniform(r, 0.5, 0.75), 0.34
    s.fill(box(-1, top, 1, floor, 0.1), BODY)
    n, left = count(r, 3, 6), -0.9
    width, sill = 1.8 / n, top + uniform(r, 0.3, 0.45)
    for k in range(n):
        door = k == n - 1 and not chance(r, 0.5)
        x0, x1 = left + k * width + 0.04, left + (k + 1) * width - 0.04
        s.fill(box(x0, top + 0.12, x1, floor - 0.08 if door else sill), GLASS)
    if chance(r, 0.6):
        s.fill(box(-1, sill + 0.12, 1, sill + uniform(r, 0.18, 0.3)), SECOND)
    s.fill(ellipse(0.95, floor - 0.1, 0.06, n=12), ACCENT)
    radius = uniform(r, 0.17, 0.24)
    for x in (-uniform(r, 0.5, 0.68), uniform(r, 0.4, 0.6)):
        _wheel(r, s, x, floor, radius)
    return s


def clock(r: Random) -> Sketch:
    """A round face with hour marks and two hands, sometimes with alarm bells and feet."""
    s = Sketch()
    radius = uniform(r, 0.75, 0.9)
    if chance(r, 0.4):
        for side in (-1, 1):
            s.fill(ellipse(side * 0.5, -radius * 0.88, 0.22), ACCENT)
            s.line(points(side * 0.3, 0.5, side * 0.65, 1.0), DARK, 0.1)
    s.fill(ellipse(0, 0, radius, n=28), BODY)
    s.fill(ellipse(0, 0, radius * uniform(r, 0.76, 0.88), n=28), LIGHT)
    n = 12 if chance(r, 0.6) else 4
    for k in range(n):
        c = radius * np.array([math.cos(TURN * k / n), math.sin(TURN * k / n)])
        s.line(np.stack([c * 0.58, c * 0.7]), DARK, 0.07)
    for length, width in ((0.38, 0.11), (0.6, 0.075)):
        a = uniform(r, 0, TURN)
        tip = radius * length
        s.line(points(0, 0, tip * math.cos(a), tip * math.sin(a)), DARK, width)
    s.fill(ellipse(0, 0, 0.08, n=12), ACCENT)
    return s


def flower(r: Random) -> Sketch:
    """Petals around a centre, with or without a stem and leaves."""
    s = Sketch()
    n, stem = count(r, 5, 10), chance(r, 0.55)
    cy, radius = (-0.35, 0.62) if stem else (0.0, 0.9)
    if stem:
        s.line(points(0, cy, uniform(r, -0.1, 0.1), 0.4, 0, 1), SECOND, 0.1)
        for side in (-1, 1):
            if chance(r, 0.6):
                xy = (0, 0.8, side * 0.3, 0.45, side * 0.5, 0.42, side * 0.35, 0.68)
                s.fill(points(*xy), SECOND)
    breadth = uniform(r, 0.8, 1.1) * radius * math.sin(math.pi / n)
    start = uniform(r, 0, TURN)
    petal = ellipse(radius * 0.6, 0, radius * 0.42, breadth)
    for k in range(n):
        c, d = math.cos(start + TURN * k / n), math.sin(start + TURN * k / n)
        s.fill(petal @ np.array([[c, d], [-d, c]]) + (0, cy), BODY)
    s.fill(ellipse(0, cy, radius * uniform(r, 0.22, 0.38)), ACCENT)
    return s


def sailboat(r: Random) -> Sketch:
    """A hull with a mast and one or two triangular sails."""
    s = Sketch()
    depth, w = uniform(r, 0.25, 0.4), uniform(r, 0.7, 0.95)
    mast, top = uniform(r, -0.15, 0.15), -uniform(r, 0.8, 1.0)
    s.line(points(mast, top, mast, 0.5), DARK, 0.06)
    y = uniform(r, 0.2, 0.36)
    right = mast + w * uniform(r, 0.6, 0.8)
    sail = points(mast + 0.06, top + 0.05, mast + 0.06, y, right, y)
    s.fill(sail, LIGHT if chance(r, 0.4) else BODY)
    if chance(r, 0.8):
        peak, left = top + uniform(r, 0.1, 0.4), mast - w * uniform(r, 0.4, 0.65)
        s.fill(points(mast - 0.06, peak, mast - 0.06, y, left, y), ACCENT)
    bow, stern = w * uniform(r, 0.55, 0.8), -w * uniform(r, 0.55, 0.8)
    s.fill(points(-w, 0.46, w, 0.46, bow, 0.46 + depth, stern, 0.46 + depth), SECOND)
    if chance(r, 0.5):
        s.fill(points(-w * 0.92, 0.52, w * 0.92, 0.52, w * 0.88, 0.6, -w * 0.88, 0.6), LIGHT)
    if chance(r, 0.4):
        s.fill(points(mast, top, mast + 0.3, top + 0.09, mast, top + 0.18), ACCENT)
    return s


def rocket(r: Random) -> Sketch:
    """A pointed body with a porthole, fins at its foot, mostly with a flame."""
    s = Sketch()
    w, fin = uniform(r, 0.24, 0.38), uniform(r, 0.25, 0.42)
    if chance(r, 0.65):
        s.fill(points(-w * 0.6, 0.6, 0, uniform(r, 0.9, 1.25), w * 0.6, 0.6), ACCENT)
    for side in (-1, 1):
        x0, x1 = side * w * 0.7, side * (w + fin)
        s.fill(points(x0, 0.15, x1, 0.5, x1, 0.8, side * w * 0.6, 0.62), SECOND)
    y = np.linspace(-1, 0.68, 14)
    half = w * np.sqrt(np.clip(1 - (y + 0.05) ** 2, 0, 1)) * np.sqrt(np.clip((y + 1) * 2.2, 0, 1))
    hull = lens(y, half)[:, ::-1]
    s.fill(hull, BODY)
    if chance(r, 0.6):
        s.fill(np.concatenate([hull[:5], hull[-5:]]), SECOND)
    port = uniform(r, -0.3, -0.1)
    s.fill(ellipse(0, port, w * 0.55), DARK)
    s.fill(ellipse(0, port, w * 0.4), GLASS)
    if chance(r, 0.4):
        s.fill(ellipse(0, port + 0.42, w * 0.35, n=12), GLASS)
    return s


def key(r: Random) -> Sketch:
    """A key: a ring, clover or square bow, a shaft and two or three teeth."""
    s = Sketch()
    radius, x, width = uniform(r, 0.28, 0.4), -0.62, uniform(r, 0.13, 0.19)
    s.line(points(x + radius * 0.8, 0, 1, 0), BODY, width)
    for k in range(count(r, 2, 4)):
        tooth = points(0.9 - k * 0.24, 0, 0.9 - k * 0.24, uniform(r, 0.22, 0.36))
        s.line(tooth, BODY, uniform(r, 0.1, 0.14))
    kind = r.random()
    if kind < 0.5:
        s.line(closed(ellipse(x, 0, radius)), BODY, uniform(r, 0.14, 0.2))
    elif kind < 0.8:
        for a in (TURN * 0.25, TURN * 0.5, TURN * 0.75):
            cx, cy = x + radius * 0.55 * math.cos(a), radius * 0.7 * math.sin(a)
            s.line(closed(ellipse(cx, cy, radius * 0.5)), BODY, 0.13)
    else:
        s.line(closed(box(x - radius, -radius, x + radius, radius, 0.12)), BODY, 0.16)
    if chance(r, 0.4):
        s.line(points(x + radius + 0.1, -0.16, x + radius + 0.1, 0.16), SECOND, 0.1)
    return s


def house(r: Random) -> Sketch:
    """A front wall with a door and windows under a gable or hip roof, often with a chimney."""
    s = Sketch()
    w, eaves, floor = uniform(r, 0.55, 0.8), -uniform(r, 0.0, 0.2), uniform(r, 0.65, 0.85)
    overhang, ridge = uniform(r, 0.06, 0.22), eaves - uniform(r, 0.4, 0.7)
    if chance(r, 0.6):
        x = uniform(r, 0.2, 0.45) * w
        s.fill(box(x, ridge, x + 0.2, eaves), ACCENT)
    s.fill(box(-w, eaves, w, floor), BODY)
    hip = 0 if chance(r, 0.65) else w * uniform(r, 0.3, 0.6)
    roof = points(-w - overhang, eaves, -hip, ridge, hip, ridge, w + overhang, eaves)
    s.fill(roof, SECOND)
    door = uniform(r, -0.4, 0.25) * w
    s.fill(box(door - 0.14, floor - 0.48, door + 0.16, floor), DARK if chance(r, 0.5) else ACCENT)
    for x in (-0.62 * w, 0.55 * w):
        if abs(x - door) > 0.38 * w:
            s.fill(box(x - 0.15, eaves + 0.18, x + 0.15, eaves + 0.45), GLASS)
    return s


_DRAWERS: tuple[Callable[[Random], Sketch], ...] = (
    mug, teapot, fish, leaf, mushroom, umbrella, balloon, tree,
    car, bus, clock, flower, sailboat, rocket, key, house,
)  # fmt: skip
OBJECTS: dict[str, Callable[[Random], Sketch]] = {draw.__name__: draw for draw in _DRAWERS}
