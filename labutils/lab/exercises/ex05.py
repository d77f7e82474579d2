"""Exercises of notebook 05: scale and zero point, rounding, and the layer that suffers most."""

from __future__ import annotations

from ..exercise import Exercise, Wrong
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
    judge=judge_affine,
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
            "    codes = np.clip(np.ceil(x / scale - 1e-9) + zero_point, 0, 255)\n"
            "    return (codes - zero_point) * scale",
            "you round up, always: 0.3 of a step becomes a whole one, and errs by 0.7.",
        ),
        Wrong(
            "import numpy as np\n\ndef quantize_dequantize(x, scale, zero_point):\n"
            "    x /= scale\n"
            "    codes = np.clip(np.round(x) + zero_point, 0, 255)\n"
            "    return (codes - zero_point) * scale",
            "your function writes into its input; whoever else reads that array is lost.",
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
            "def worst_layers(layers, k):\n"
            "    errors = {name: -abs(x - q).mean() / abs(x).mean() for name, x, q in layers}\n"
            "    return sorted(errors, key=errors.get)[:k]",
            "those are the largest in the mean of distances. Power goes with the square: a few "
            "large errors weigh more than many small ones.",
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
    judge=judge_worst,
    praise="these are the layers that are worth sixteen bits, or a closer look at their range.",
    given=seven_layers,
)

EXERCISES = (AFFINE, FAKE, WORST)
