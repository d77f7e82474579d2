"""Exercises of notebook 05: scale and zero point, rounding, and the layer that suffers most."""

from __future__ import annotations

from ..exercise import Exercise
from .codes import judge_affine, judge_fake, judge_worst, seven_layers

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
        "    low = min(low, 0.0)\n"
        "    high = max(high, 0.0)\n"
        "    scale = (high - low) / 255\n"
        "    return scale, round(-low / scale)"
    ),
    hints=(
        "value = scale * (code - zero_point): low has the first code, and high the last.",
        "How many steps lie between the first code and the last?",
        "0.0 needs its own code, even when the whole range lies on one side of it.",
    ),
    judge=judge_affine,
    praise="zero has its own code, and 255 steps cover the range.",
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
    judge=judge_fake,
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
    judge=judge_worst,
    praise="these are the layers that are worth sixteen bits, or a closer look at their range.",
    given=seven_layers,
)

EXERCISES = (AFFINE, FAKE, WORST)
