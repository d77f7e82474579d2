"""Exercises of notebook 05: scale and zero point, rounding, and the layer that suffers most."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import metrics
from ..answer import NotYet, array, call, number, shown, words
from ..exercise import Exercise, Wrong

_RANGES = ((-1.0, 3.0), (-6.2, 0.7), (0.0, 6.0), (1.5, 5.1), (-4.0, -1.0))


def _judge_affine(answer: Any) -> None:
    for low, high in _RANGES:
        found = call(answer, low, high)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise NotYet(f"a pair (scale, zero point) is asked for, and this is {shown(found)}.")
        scale = number(found[0], "a number as the scale")
        zero = number(found[1], "a number as the zero point")
        _judge_pair(low, high, scale, zero)


def _judge_pair(low: float, high: float, scale: float, zero: float) -> None:
    where = f"for the range {low:g} to {high:g}"
    all_low, all_high = min(low, 0.0), max(high, 0.0)
    step = (all_high - all_low) / 255
    point = -all_low / step
    if scale <= 0:
        raise NotYet(f"{where} your scale is {scale:.4g}; a step is a positive length.")
    if np.isclose(scale, (all_high - all_low) / 256, rtol=1e-4):
        raise NotYet("count the steps: 256 values have fewer gaps between them.")
    if np.isclose(scale, 2 * max(abs(low), abs(high)) / 255, rtol=1e-2) and zero in (127, 128):
        raise NotYet(f"{where} you centre on zero: symmetric, which wastes codes.")
    if not np.isclose(scale, step, rtol=1e-4) and low * high > 0:
        raise NotYet(
            f"{where} zero itself has no code. Padding and ReLU make zeros, so every range is "
            "widened until it holds zero."
        )
    if not np.isclose(scale, step, rtol=1e-4):
        raise NotYet(f"{where} the scale {scale:.4g} does not let 8 bits just cover the range.")
    if zero < 0:
        raise NotYet(f"{where} the zero point is {zero:g}; as an uint8 code it cannot be negative.")
    if zero != round(zero):
        raise NotYet(f"{where} the zero point is {zero:.4g}; a code is a whole number.")
    if abs(zero - point) > 0.51:
        raise NotYet(f"{where} the zero point {zero:g} is not the code of 0.0.")


def _judge_fake(answer: Any) -> None:
    scale, zero = 0.05, 100
    codes = np.array([0, 3, 99, 100, 101, 180, 255])
    on_grid = (codes - zero) * scale
    grid = array(call(answer, on_grid.copy(), scale, zero), on_grid.shape)
    if np.allclose(grid, codes, atol=1e-6):
        raise NotYet("those are the codes. Turn them back into values: that is the other half.")
    if np.allclose(grid, on_grid + zero * scale, atol=1e-6):
        raise NotYet("the zero point goes in, and does not come out again on the way back.")
    if np.allclose(grid, on_grid + np.where(codes < zero, 256 * scale, 0.0), atol=1e-4):
        raise NotYet(
            "the codes are right, but those below the zero point come back 256 steps too high: "
            "uint8 has no negative numbers, so mind the type in which you subtract."
        )
    between = on_grid[2:5] + 0.7 * scale
    found = array(call(answer, between.copy(), scale, zero), between.shape)
    if np.allclose(found, between, atol=1e-7):
        raise NotYet("nothing is rounded: what comes out has more values than 8 bits have codes.")
    if np.allclose(found, on_grid[2:5], atol=1e-6):
        raise NotYet("you cut off the fraction: 0.7 of a step goes down, and the error doubles.")
    outside = np.array([-20.0, -5.3, 7.9, 30.0])
    found_outside = array(call(answer, outside.copy(), scale, zero), outside.shape)
    _judge_outside(found_outside, outside, scale, zero)
    if not np.allclose(found, on_grid[2:5] + scale, atol=1e-6):
        raise NotYet("values between two codes must go to the nearer one.")
    if not np.allclose(grid, on_grid, atol=1e-6):
        raise NotYet("values that have a code of their own must come back unchanged.")


def _judge_outside(found: np.ndarray, outside: np.ndarray, scale: float, zero: int) -> None:
    low, high = -zero * scale, (255 - zero) * scale
    if np.allclose(found, outside, atol=scale):
        raise NotYet("values beyond the range come back as they were; 8 bits have no codes there.")
    if np.allclose(found, np.clip(outside, (-128 - zero) * scale, (127 - zero) * scale), atol=1e-4):
        raise NotYet("you cut off at -128 and 127, the ends of signed bytes; these are unsigned.")
    if found[0] > low + scale or found[3] < high - scale:
        raise NotYet(
            f"{outside[0]:g} became {found[0]:.4g}: the code ran over the end of the 8 bits and "
            "came back at the other. Cut off first, then convert."
        )
    if not np.allclose(found, np.clip(outside, low, high), atol=1e-6):
        raise NotYet("at the ends of the range you cut off at other codes than the last ones.")


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
        low, high = min(values.min(), 0.0), max(values.max(), 0.0)
        step = (high - low) / 255
        zero = round(-low / step)
        codes = np.clip(np.round(values / step) + zero, 0, 255)
        back = step * _WRONG_SCALE.get(name, 1.0)
        made.append((name, values, (codes - zero) * back))
    return made


def _judge_worst(answer: Any) -> None:
    given = seven_layers()
    sqnr = {name: metrics.sqnr_db(values, rounded) for name, values, rounded in given}
    order = sorted(sqnr, key=sqnr.get)
    loudest = sorted(given, key=lambda row: -np.abs(row[1] - row[2]).max())
    cosine = {name: metrics.cosine(values, rounded) for name, values, rounded in given}
    turned = sorted(cosine, key=cosine.get)
    copies = [(name, values.copy(), rounded.copy()) for name, values, rounded in given]
    for k in (2, 4):
        found = call(answer, copies, k)
        if not isinstance(found, list | tuple | np.ndarray):
            raise NotYet(f"a list of names is asked for, and this is {shown(found)}.")
        if not all(isinstance(name, str) for name in found):
            raise NotYet("names are asked for, without the figures: " + shown(list(found)[:1]))
        found = [words(name) for name in found]
        if len(found) != k:
            raise NotYet(f"asked for {k} layers, you name {len(found)}.")
        if found == order[: -k - 1 : -1]:
            raise NotYet("those are the layers that suffer least.")
        if found == [name for name, _, _ in loudest[:k]]:
            raise NotYet(
                "those have the largest errors, and the largest values too. Noise hurts in "
                "relation to the signal."
            )
        if found == turned[:k]:
            raise NotYet(
                "a cosine does not see a factor: one layer comes back at another size, and all "
                "its values are wrong."
            )
        if set(found) == set(order[:k]) and found != order[:k]:
            raise NotYet("the right layers, in another order than worst first.")
        if found != order[:k]:
            raise NotYet("not these: some other layer has a lower signal to noise ratio.")


AFFINE = Exercise(
    id="05.1",
    title="Scale and zero point of a range, as QNN's asymmetric uint8 has them",
    verb="compute the scale and zero point of a tensor by hand",
    minutes=8,
    difficulty="easy",
    answer="affine",
    stub="def affine(low, high):\n    return TODO, TODO  # scale, zero point (a code, 0 to 255)",
    reference=(
        "def affine(low, high):\n"
        "    low, high = min(low, 0.0), max(high, 0.0)\n"
        "    scale = (high - low) / 255\n"
        "    return scale, round(-low / scale)"
    ),
    hints=(
        "value = scale * (code - zero_point): low has the first code, and high the last.",
        "How many steps lie between the first code and the last?",
        "0.0 must have a code of its own, also when the range lies on one side of it.",
    ),
    right=(
        "import numpy as np\n\n"
        "def affine(low, high):\n"
        "    ends = np.array([min(low, 0), max(high, 0)])\n"
        "    scale = np.ptp(ends) / 255\n"
        "    return scale, np.rint(-ends[0] / scale).astype(np.uint8)",
        "def affine(low, high):\n"
        "    if low > 0: low = 0\n"
        "    if high < 0: high = 0\n"
        "    scale = (high - low) / (2 ** 8 - 1)\n"
        "    return [scale, int(0.5 - low / scale)]",
    ),
    wrong=(
        Wrong(
            "def affine(low, high):\n    scale = (high - low) / 256\n"
            "    return scale, round(-low / scale)",
            "count the steps: 256 values have fewer gaps between them.",
        ),
        Wrong(
            "def affine(low, high):\n    scale = (high - low) / 255\n"
            "    return scale, round(-low / scale)",
            "for the range 1.5 to 5.1 zero itself has no code. Padding and ReLU make zeros, so "
            "every range is widened until it holds zero.",
        ),
        Wrong(
            "def affine(low, high):\n    scale = (high - low) / 255\n"
            "    return scale, round(low / scale)",
            "for the range -1 to 3 the zero point is -64; as an uint8 code it cannot be negative.",
        ),
        Wrong(
            "def affine(low, high):\n"
            "    scale = (high - low) / 255\n"
            "    return scale, -low / scale",
            "for the range -1 to 3 the zero point is 63.75; a code is a whole number.",
        ),
        Wrong(
            "def affine(low, high):\n    return 2 * max(abs(low), abs(high)) / 255, 128",
            "for the range -1 to 3 you centre on zero: symmetric, which wastes codes.",
        ),
        Wrong(
            "def affine(low, high):\n    return (high - low) / 255",
            "a pair (scale, zero point) is asked for, and this is 0.01568627450980392.",
        ),
    ),
    judge=_judge_affine,
    praise="zero has a code of its own, and 255 steps cover the range.",
)

FAKE = Exercise(
    id="05.2",
    title="Quantize, and come back",
    verb="quantize and dequantize a tensor, and see what is lost",
    minutes=8,
    difficulty="medium",
    answer="quantize_dequantize",
    stub="def quantize_dequantize(x, scale, zero_point):  # x is an array\n    return TODO",
    reference=(
        "import numpy as np\n\n\n"
        "def quantize_dequantize(x, scale, zero_point):\n"
        "    codes = np.clip(np.round(x / scale) + zero_point, 0, 255)\n"
        "    return (codes - zero_point) * scale"
    ),
    hints=(
        "Two halves: values to codes, codes to values.",
        "To a code: divide, round, add the zero point; there are only 256 codes.",
        "Beyond the first or last code: np.clip. On the way back, a uint8 cannot go below zero.",
    ),
    right=(
        "def quantize_dequantize(x, scale, zero_point):\n"
        "    codes = [min(max(round(v / scale) + zero_point, 0), 255) for v in x.tolist()]\n"
        "    return [(code - zero_point) * scale for code in codes]",
        "import numpy as np\n\n"
        "def quantize_dequantize(x, scale, zero_point):\n"
        "    codes = np.rint(x / scale + zero_point).clip(0, 255).astype(np.uint8)\n"
        "    return scale * (codes.astype(np.float32) - np.float32(zero_point))",
    ),
    wrong=(
        Wrong(
            "import numpy as np\n\ndef quantize_dequantize(x, scale, zero_point):\n"
            "    return (np.round(x / scale) + zero_point - zero_point) * scale",
            "values beyond the range come back as they were; 8 bits have no codes there.",
        ),
        Wrong(
            "import numpy as np\n\ndef quantize_dequantize(x, scale, zero_point):\n"
            "    codes = np.clip(np.floor(x / scale + 1e-9) + zero_point, 0, 255)\n"
            "    return (codes - zero_point) * scale",
            "you cut off the fraction: 0.7 of a step goes down, and the error doubles.",
        ),
        Wrong(
            "import numpy as np\n\ndef quantize_dequantize(x, scale, zero_point):\n"
            "    return np.clip(np.round(x / scale) + zero_point, 0, 255) * scale",
            "the zero point goes in, and does not come out again on the way back.",
        ),
        Wrong(
            "import numpy as np\n\ndef quantize_dequantize(x, scale, zero_point):\n"
            "    return np.clip(np.round(x / scale) + zero_point, 0, 255)",
            "those are the codes. Turn them back into values: that is the other half.",
        ),
        Wrong(
            "import numpy as np\n\ndef quantize_dequantize(x, scale, zero_point):\n"
            "    codes = (np.round(x / scale) + zero_point).astype(np.int64) % 256\n"
            "    return (codes - zero_point) * scale",
            "-20 became 5.6: the code ran over the end of the 8 bits and came back at the other. "
            "Cut off first, then convert.",
        ),
        Wrong(
            "import numpy as np\n\ndef quantize_dequantize(x, scale, zero_point):\n"
            "    q = np.clip(np.round(x / scale) + zero_point, 0, 255).astype(np.uint8)\n"
            "    return scale * (q - zero_point)",
            "the codes are right, but those below the zero point come back 256 steps too high: "
            "uint8 has no negative numbers, so mind the type in which you subtract.",
        ),
        Wrong(
            "import numpy as np\n\ndef quantize_dequantize(x, scale, zero_point):\n"
            "    codes = np.clip(np.round(x / scale) + zero_point, -128, 127)\n"
            "    return (codes - zero_point) * scale",
            "you cut off at -128 and 127, the ends of signed bytes; these are unsigned.",
        ),
        Wrong(
            "import numpy as np\n\ndef quantize_dequantize(x, scale, zero_point):\n"
            "    return np.clip(x, -zero_point * scale, (255 - zero_point) * scale)",
            "nothing is rounded: what comes out has more values than 8 bits have codes.",
        ),
    ),
    judge=_judge_fake,
    praise="at most half a step is lost inside the range, and everything beyond its ends.",
)

WORST = Exercise(
    id="05.3",
    title="Name the layers that quantization hurts most",
    verb="rank layers by what quantization does to them",
    minutes=12,
    difficulty="stretch",
    answer="worst_layers",
    stub=(
        'layers = given("05.3")  # (name, values, values after 8 bits)\n\n\n'
        "def worst_layers(layers, k):\n"
        "    return TODO  # k names, worst first"
    ),
    reference=(
        "from labutils import metrics\n\n\n"
        "def worst_layers(layers, k):\n"
        "    sqnr = {name: metrics.sqnr_db(x, rounded) for name, x, rounded in layers}\n"
        "    return sorted(sqnr, key=sqnr.get)[:k]"
    ),
    hints=(
        "An error of 0.1 is much for a tensor of values near 0.02, and nothing for one near 40.",
        "The ratio of signal to noise, in decibels: metrics.sqnr_db.",
        "Low is bad. Sort by it and take the first k names.",
    ),
    right=(
        "import numpy as np\n\n"
        "def worst_layers(layers, k):\n"
        "    noise = lambda row: np.mean((row[1] - row[2]) ** 2) / np.mean(row[1] ** 2)\n"
        "    return [row[0] for row in sorted(layers, key=noise, reverse=True)[:k]]",
        "import numpy as np\n\n"
        "def worst_layers(layers, k):\n"
        "    names, x, q = zip(*layers)\n"
        "    ratio = [np.linalg.norm(a) / np.linalg.norm(a - b) for a, b in zip(x, q)]\n"
        "    return np.array(names)[np.argsort(ratio)][:k]",
    ),
    wrong=(
        Wrong(
            "def worst_layers(layers, k):\n"
            "    errors = {name: -abs(x - q).max() for name, x, q in layers}\n"
            "    return sorted(errors, key=errors.get)[:k]",
            "those have the largest errors, and the largest values too. Noise hurts in "
            "relation to the signal.",
        ),
        Wrong(
            "from labutils import metrics\n\n"
            "def worst_layers(layers, k):\n"
            "    cosine = {name: metrics.cosine(x, q) for name, x, q in layers}\n"
            "    return sorted(cosine, key=cosine.get)[:k]",
            "a cosine does not see a factor: one layer comes back at another size, and all "
            "its values are wrong.",
        ),
        Wrong(
            "from labutils import metrics\n\n"
            "def worst_layers(layers, k):\n"
            "    sqnr = {name: metrics.sqnr_db(x, q) for name, x, q in layers}\n"
            "    return sorted(sqnr, key=sqnr.get, reverse=True)[:k]",
            "those are the layers that suffer least.",
        ),
        Wrong(
            "from labutils import metrics\n\n"
            "def worst_layers(layers, k):\n"
            "    sqnr = {name: metrics.sqnr_db(x, q) for name, x, q in layers}\n"
            "    return sorted(sqnr, key=sqnr.get)",
            "asked for 2 layers, you name 7.",
        ),
        Wrong(
            "from labutils import metrics\n\n"
            "def worst_layers(layers, k):\n"
            "    sqnr = {name: metrics.sqnr_db(x, q) for name, x, q in layers}\n"
            "    return sorted(sqnr, key=sqnr.get)[:k][::-1]",
            "the right layers, in another order than worst first.",
        ),
        Wrong(
            "def worst_layers(layers, k):\n    return [name for name, _, _ in layers[:k]]",
            "not these: some other layer has a lower signal to noise ratio.",
        ),
    ),
    judge=_judge_worst,
    praise="these are the layers that are worth sixteen bits, or a closer look at their range.",
    given=seven_layers,
)

EXERCISES = (AFFINE, FAKE, WORST)
