"""Judging 8-bit codes: scale and zero point, the way there and back, and what it costs a layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import metrics
from ..answer import NotYet, array, call, number, pair, several, shown, words

_RANGES = (
    (-1.0, 3.0), (-6.2, 0.7), (0.0, 6.0), (1.5, 5.1), (-4.0, -1.0), (-0.013, 0.0091),
    (-310.0, 99.0), (-2.0, 0.0), (-0.7, 0.7),
)  # fmt: skip


def judge_affine(affine: Any) -> None:
    """Judge scale and zero point of ranges on both sides of zero, on one, and at it."""
    for low, high in _RANGES:
        found = pair(call(affine, low, high), "(scale, zero point)")
        scale = number(found[0], "a number as the scale")
        zero = number(found[1], "a number as the zero point")
        step = (max(high, 0.0) - min(low, 0.0)) / 255  # zero itself must have a code
        point = -min(low, 0.0) / step
        is_code = zero == round(zero) and 0 <= zero <= 255
        # either neighbour of a half will do
        if not (np.isclose(scale, step, rtol=1e-4) and is_code and abs(zero - point) <= 0.51):
            where = f"for the range {low:g} to {high:g}"
            raise NotYet(
                _explain_scale(low, high, scale, zero) or _explain_zero(where, zero, point)
            )


def _explain_scale(low: float, high: float, scale: float, zero: float) -> str:
    """Say what is wrong with the scale; "" where it is right."""
    where = f"for the range {low:g} to {high:g}"
    all_low, all_high = min(low, 0.0), max(high, 0.0)
    step = (all_high - all_low) / 255
    if np.isclose(zero, step, rtol=1e-4) and abs(scale + all_low / step) <= 1:
        return f"{where} scale and zero point come in the other order: the scale is first."
    if scale <= 0:
        return f"{where} your scale is {scale:.4g}; a step is a positive length."
    if np.isclose(scale, (all_high - all_low) / 256, rtol=1e-4):
        return "count the steps: 256 values have fewer gaps between them."
    if np.isclose(scale, (all_high - all_low) / 254, rtol=1e-4):
        return "count the steps: all 256 codes are in use here, and you leave one out."
    symmetric = np.isclose(scale, 2 * max(abs(low), abs(high)) / 255, rtol=1e-2)
    if symmetric and zero in (127, 128) and low * high < 0 and not np.isclose(-low, high):
        return f"{where} you centre on zero: symmetric, which wastes codes."
    if np.isclose(scale, step, rtol=1e-4):
        return ""
    if low * high > 0 and not (symmetric and zero in (127, 128)):
        return (
            f"{where} zero itself has no code. Padding and ReLU make zeros, so every range is "
            "widened until it contains zero."
        )
    return f"{where} the scale {scale:.4g} does not let 8 bits just cover the range."


def _explain_zero(where: str, zero: float, point: float) -> str:
    if zero < 0:
        return f"{where} the zero point is {zero:g}; as an uint8 code it cannot be negative."
    if zero != round(zero):
        return f"{where} the zero point is {zero:.4g}; a code is a whole number."
    if abs(zero - point) < 1.01:
        return (
            f"{where} 0.0 lies between two codes, and {zero:g} is not the nearer one: which "
            "way do you round?"
        )
    return f"{where} the zero point {zero:g} is not the code of 0.0."


_GRIDS = ((0.05, 100), (0.013, 0), (2.5, 255), (0.3, 17))
_PARTS = (-0.45, -0.3, -0.1, 0.1, 0.3, 0.45)  # of a step; halves may go either way


def judge_fake(quantize_dequantize: Any) -> None:
    """Judge the way to codes and back: on the grid, between two codes, and beyond the ends."""
    for scale, zero in _GRIDS:
        places = {
            "grid": np.array([0, 3, 99, 100, 101, 180, 255]),
            "between": (np.array([7, 40, 99, 130, 244])[:, None] + _PARTS).ravel(),
            "outside": np.array([-300.0, -6.0, 258.0, 700.0]),
        }
        wrong = {}
        for place, exact in places.items():
            x = (exact - zero) * scale
            found = array(call(quantize_dequantize, x.copy(), scale, zero), x.shape)
            true = (np.clip(np.round(exact), 0, 255) - zero) * scale
            if not np.allclose(found, true, atol=1e-5 * scale):
                wrong[place] = found, x
        if wrong:
            raise NotYet(_explain_fake(wrong, scale, zero))


def _explain_fake(wrong: dict[str, tuple[np.ndarray, np.ndarray]], scale: float, zero: int) -> str:
    explain = {"grid": _explain_grid, "between": _explain_between, "outside": _explain_outside}
    for place, (found, x) in wrong.items():
        if sentence := explain[place](found, x, scale, zero):
            return sentence
    if "outside" in wrong:
        return "at the ends of the range you cut off at other codes than the last ones."
    if "between" in wrong:
        return "values between two codes must go to the nearer one."
    return "values that have their own code must come back unchanged."


def _explain_grid(grid: np.ndarray, on_grid: np.ndarray, scale: float, zero: int) -> str:
    codes = np.round(on_grid / scale + zero)
    if np.allclose(grid, codes, atol=1e-6):
        return "those are the codes. Turn them back into values: that is the other half."
    if np.allclose(grid, on_grid + zero * scale, atol=1e-6):
        return "the zero point goes in, and does not come out again on the way back."
    if np.allclose(grid, on_grid + np.where(codes < zero, 256 * scale, 0.0), atol=1e-4):
        return (
            "the codes are right, but those below the zero point come back 256 steps too high: "
            "uint8 has no negative numbers, so mind the type in which you subtract."
        )
    return ""


def _explain_between(found: np.ndarray, between: np.ndarray, scale: float, zero: int) -> str:
    nearest = (np.round(between / scale + zero) - zero) * scale
    if np.allclose(found, between, atol=1e-6 * scale):
        return "nothing is rounded: what comes out has more values than 8 bits have codes."
    above = between > nearest
    low, high = np.where(above, nearest, nearest - scale), np.where(above, nearest + scale, nearest)
    same = lambda other: bool(np.allclose(found, other, atol=1e-5 * scale))  # noqa: E731
    if same(low) or same(np.where(between > 0, low, high)):
        return "you cut off the fraction: 0.7 of a step goes down, and the error doubles."
    if same(high):
        return "you round up, always: 0.3 of a step becomes a whole one, an error of 0.7."
    return ""


def _explain_outside(found: np.ndarray, outside: np.ndarray, scale: float, zero: int) -> str:
    low, high = -zero * scale, (255 - zero) * scale
    if np.allclose(found, outside, atol=scale):
        return "values beyond the range come back as they were; 8 bits have no codes there."
    if np.allclose(found, np.clip(outside, (-128 - zero) * scale, (127 - zero) * scale), atol=1e-4):
        return "you cut off at -128 and 127, the ends of signed bytes; these are unsigned."
    if zero and np.allclose(found, np.clip(outside, 0, 255 * scale), atol=1e-4):
        return "you cut off before the zero point is added; it is the code that has ends."
    if found[0] > low + 1.5 * scale or found[3] < high - 1.5 * scale:
        return (
            f"{outside[0]:g} became {found[0]:.4g}: the code ran over the end of the 8 bits and "
            "came back at the other. Cut off first, then convert."
        )
    return ""


_WRONG_SCALE = {"features.10": 0.75}


def seven_layers() -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Make what 05.3 hands out: (name, float values, values after 8 bits), layer by layer.

    The values are drawn, the rounding is real: uint8, min-max, per tensor. One layer comes back
    with a scale that is a quarter too small: its direction, and so its cosine, is untouched.
    """
    random = np.random.default_rng(5)
    made = []
    for name, spread, outlier in (
        ("features.0", 1.0, 3.0),
        ("features.4.se", 0.02, 0.9),
        ("features.7", 40.0, 130.0),
        ("features.10", 0.3, 1.0),
        ("features.12", 0.5, 9.0),
        ("features.15", 3.0, 10.0),
        ("classifier.3", 6.0, 20.0),
    ):
        values = random.normal(scale=spread, size=400)
        values[0] = outlier
        made.append((name, values, _WRONG_SCALE.get(name, 1.0) * _rounded(values)))
    return made


def _rounded(values: np.ndarray) -> np.ndarray:
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    step = (high - low) / 255
    zero = round(-low / step)
    return (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step


def _unseen_layers() -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Make layers in which each measure but the ratio of powers errs on another one."""
    random = np.random.default_rng(53)
    made = []
    for name, spread, noise in (
        ("stem", 1.0, 0.02), ("block.1", 20.0, 0.06), ("block.2", 0.1, 0.012), ("head", 4.0, 0.1),
    ):  # fmt: skip
        values = random.normal(scale=spread, size=300)
        made.append((name, values, values + random.normal(scale=noise * spread, size=300)))
    rare = random.normal(scale=0.5, size=300)
    struck = np.zeros(300)
    struck[::100] = 1.6  # a few large errors: much power, little in the mean
    made.insert(1, ("rare", rare, rare + struck))
    positive = np.abs(random.normal(scale=2.0, size=300)) + 1
    made.insert(3, ("shifted", positive, positive + 0.6))  # the same error everywhere
    plain = random.normal(scale=0.7, size=300)
    made.insert(5, ("grown", plain, 1.4 * plain))  # little beside what came out of it
    made.append(("shrunk", positive[::-1] * 3, positive[::-1] * 3 * 0.87))
    return made


def judge_worst(worst_layers: Any) -> None:
    """Judge a ranking by signal to noise ratio, on the given layers and on others."""
    for layers in (seven_layers(), _unseen_layers()):
        order = _ranked(metrics.sqnr_db, layers)
        for k in (2, 4):
            copies = [(name, values.copy(), rounded.copy()) for name, values, rounded in layers]
            found = several(call(worst_layers, copies, k), "a list of names")
            if not all(isinstance(name, str) for name in found):
                raise NotYet("only names are expected, without the figures: " + shown(found[:1]))
            found = [words(name) for name in found]
            if found != order[:k]:
                raise NotYet(_explain_ranking(found, order, layers, k))


def _ranked(
    measure: Any, layers: list[tuple[str, np.ndarray, np.ndarray]], sign: int = 1
) -> list[str]:
    return [row[0] for row in sorted(layers, key=lambda row: sign * measure(row[1], row[2]))]


def _explain_ranking(
    found: list[str], order: list[str], layers: list[tuple[str, np.ndarray, np.ndarray]], k: int
) -> str:
    if len(found) != k:
        return f"{k} layers are expected, but you name {len(found)}."
    if unknown := set(found) - set(order):
        return f"{shown(min(unknown))} is not one of the layers that your function was given."
    if found == order[: -k - 1 : -1]:
        return "those are the layers that suffer least."
    for measure, sign, sentence in _OTHER_MEASURES:
        if found == _ranked(measure, layers, sign)[:k]:
            return sentence
    if set(found) == set(order[:k]):
        return "the right layers, in another order than worst first."
    return "not these: some other layer has a lower signal to noise ratio."


_OTHER_MEASURES = (  # of values and what 8 bits make of them, sign, what is wrong with it
    (
        lambda x, q: np.abs(x - q).max(),
        -1,
        "those have the largest errors, and the largest values too. Noise hurts in relation to "
        "the signal.",
    ),
    (
        metrics.cosine,
        1,
        "a cosine does not see a factor: one layer comes back at another size, and all its "
        "values are wrong.",
    ),
    (
        lambda x, q: np.abs(x - q).mean() / np.abs(x).mean(),
        -1,
        "those are the largest in the mean of distances. Power goes with the square: a few "
        "large errors weigh more than many small ones.",
    ),
    (
        lambda x, q: np.var(x - q) / np.var(x),
        -1,
        "a variance does not see what is the same everywhere: an error that shifts all values "
        "has power as well.",
    ),
)
