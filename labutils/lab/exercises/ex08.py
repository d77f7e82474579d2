"""Exercises of notebook 08: two errors of a range, equalizing, a recipe, and a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import LabError
from ..answer import NotYet, in_words, shown
from ..exercise import Exercise, Wrong
from .rounded import judge_errors, judge_factors, judge_fake_quant

if TYPE_CHECKING:
    from ...quantize import Recipe

# --- 08.1: clipping and rounding ------------------------------------------------------------------


_ERRORS = "def two_errors(x, back, low, high):  # x before, back after quantization: arrays\n"
_GONE = "    gone = (x < low) | (x > high)\n"
ERRORS = Exercise(
    id="08.1",
    title="Tell the error of clipping from the error of rounding",
    verb="split the error of a range in two",
    minutes=8,
    difficulty="easy",
    answer="two_errors",
    stub=_ERRORS + "    return TODO, TODO  # clipping, rounding",
    reference=(
        _ERRORS + "    outside = (x < low) | (x > high)\n    squared = (x - back) ** 2\n"
        "    return squared[outside].sum() / x.size, squared[~outside].sum() / x.size"
    ),
    hints=(
        "A value is clipped when it lies outside the range. All others are rounded.",
        "A mask of booleans picks the one kind; ~mask picks the other.",
        "Both sums are divided by the number of all values.",
    ),
    right=(
        "import numpy as np\n\n" + _ERRORS + "    error = np.square(x - back)\n"
        "    inside = (x >= low) & (x <= high)\n"
        "    return (error * ~inside).mean(), (error * inside).mean()",
        _ERRORS + "    clipping = rounding = 0.0\n    for a, b in zip(x, back):\n"
        "        if low <= a <= high:\n            rounding += (a - b) ** 2 / len(x)\n"
        "        else:\n            clipping += (a - b) ** 2 / len(x)\n"
        "    return clipping, rounding",
    ),
    wrong=(
        Wrong(
            _ERRORS + _GONE + "    e = (x - back) ** 2\n    return e[~gone].sum() / x.size, "
            "e[gone].sum() / x.size",
            "right values, in the other order: clipping comes first.",
        ),
        Wrong(
            _ERRORS + _GONE + "    e = (x - back) ** 2\n    return e[gone].mean(), e[~gone].mean()",
            "each of your means is over its own values, so their sum is not the error of the "
            "tensor. Few are clipped: they must not count as if they were all.",
        ),
        Wrong(
            _ERRORS + "    gone = x > high\n    e = (x - back) ** 2\n"
            "    return e[gone].sum() / x.size, e[~gone].sum() / x.size",
            "a range has two ends, and values lie beyond the lower one as well.",
        ),
        Wrong(
            _ERRORS + _GONE + "    e = abs(x - back)\n"
            "    return e[gone].sum() / x.size, e[~gone].sum() / x.size",
            "those are distances. Squared error counts a far one more than many near.",
        ),
        Wrong(
            _ERRORS + _GONE + "    e = (x - back) ** 2\n    return e[gone].sum(), e[~gone].sum()",
            "those are sums: with twice the values they double. Means are asked for.",
        ),
        Wrong(
            _ERRORS + "    gone = abs(x) > high\n    e = (x - back) ** 2\n"
            "    return e[gone].sum() / x.size, e[~gone].sum() / x.size",
            "the sum is right, and it is divided between the two at another place: a value that "
            "lies inside the range is rounded, however near to the end.",
        ),
        Wrong(
            _ERRORS + "    return round(float(((x - back) ** 2).mean()), 1)",
            "a pair (clipping, rounding) is asked for, and this is 12.4.",
        ),
    ),
    judge=judge_errors,
    praise="two errors whose sum is the whole: one falls with the range, the other rises.",
)


# --- 08.2: equalizing -----------------------------------------------------------------------------


_FACTORS = "import numpy as np\n\n\ndef factors(first, second):  # (channels, m), (n, channels)\n"
_REACH = "    own, theirs = np.abs(first).max(axis=1), np.abs(second).max(axis=0)\n"
FACTORS = Exercise(
    id="08.2",
    title="Find the factors that equalize two layers",
    verb="equalize two layers without changing what they compute",
    minutes=10,
    difficulty="medium",
    answer="factors",
    stub=_FACTORS + "    return TODO  # (channels,): first is divided by it, second multiplied",
    reference=(
        _FACTORS + _REACH + "    alive = (own > 0) & (theirs > 0)\n"
        "    return np.sqrt(np.where(alive, own, 1) / np.where(alive, theirs, 1))"
    ),
    hints=(
        "A channel is a row of the first array and a column of the second.",
        "own / s is to be as large as theirs * s. Solve it for s.",
        "Where own or theirs is 0, there is nothing to equalize: 1 changes nothing.",
    ),
    right=(
        _FACTORS + _REACH + "    alive = (own * theirs) > 0\n    s = np.ones(len(own))\n"
        "    s[alive] = (own[alive] / theirs[alive]) ** 0.5\n    return s",
        _FACTORS + "    s = []\n    for row, column in zip(first, second.T):\n"
        "        a, b = abs(row).max(), abs(column).max()\n"
        "        s.append((a / b) ** 0.5 if a and b else 1.0)\n    return s",
    ),
    wrong=(
        Wrong(
            _FACTORS + _REACH + "    return own / theirs",
            "with these factors the two layers change places: what was uneven still is.",
        ),
        Wrong(
            _FACTORS + _REACH + "    return np.sqrt(theirs / own)",
            "upside down: the channels that were large get larger.",
        ),
        Wrong(
            _FACTORS + _REACH + "    return own",
            "the first layer is even now, and all that was uneven has moved into the second.",
        ),
        Wrong(
            _FACTORS + _REACH + "    return np.full(len(own), np.sqrt(own.max() / theirs.max()))",
            "one number for all channels changes nothing between them.",
        ),
        Wrong(
            _FACTORS + "    return np.sqrt(first.max(axis=1) / second.max(axis=0))",
            "the largest weight of a channel may be a negative one.",
        ),
        Wrong(
            _FACTORS + "    return np.sqrt(abs(first).max(axis=0) / abs(second).max(axis=1)[0])",
            "one factor per channel is asked for, an array of the shape (5,), and yours has (7,).",
        ),
        Wrong(
            _FACTORS + _REACH + "    return np.sqrt(own / theirs)",
            "a channel whose weights are all 0 gets no usable factor: dead filters are common, "
            "and one of them would spoil the layer. Leave it as it is.",
        ),
        Wrong(
            _FACTORS + _REACH + "    return np.sqrt(np.maximum(own, 1e-12) / "
            "np.maximum(theirs, 1e-12))",
            "a channel whose weights are all 0 in one of the layers gets the factor 3.63e-06. "
            "Nothing is to be equalized there: it stays as it is.",
        ),
        Wrong(
            _FACTORS + "    return first.sum(axis=1)",
            "a factor is not positive; a ReLU between the layers would see other signs, and the "
            "network would compute something else.",
        ),
        Wrong(
            _FACTORS + "    return np.sqrt(first.std(axis=1) / second.std(axis=0))",
            "channel 0 reaches 0.45 in the first layer then, and 0.615 in the second: not equal.",
        ),
    ),
    judge=judge_factors,
    praise="every channel reaches as far in one layer as in the other.",
)


# --- 08.3: a recipe -------------------------------------------------------------------------------


def _read(answer: Any) -> Recipe:
    """Return the recipe that was given, as an object or as YAML."""
    from ... import quantize
    from ...quantize.recipe import parse

    if isinstance(answer, quantize.Recipe):
        return answer
    if not isinstance(answer, str):
        raise NotYet(f"a Recipe or its YAML is asked for, and this is {shown(answer)}.")
    try:
        if answer in quantize.PRESETS:
            return quantize.PRESETS[answer]
        return parse(answer, "your recipe")
    except LabError as error:
        raise NotYet(f"the recipe cannot be read: {in_words(error)}") from None


def _judge_recipe(answer: Any) -> None:
    from .small_network import GOAL_DB, MOST_WIDE, judged

    recipe = _read(answer)
    if recipe.exclude:
        raise NotYet(
            "your recipe leaves nodes in float, and the HTP computes int8 networks in integers: it "
            "may refuse a float island. Give those nodes more bits instead."
        )
    if recipe.weights.bits > 8 or any((o.weights or 8) > 8 for o in recipe.overrides):
        raise NotYet(
            "your recipe stores weights in more than 8 bits, which doubles the file. Here ranges "
            "and activation bits are asked for."
        )
    if recipe.qat or recipe.equalize or recipe.correct_bias or recipe.rounding != "nearest":
        raise NotYet(
            "here ranges and activation bits are asked for; training and repairs of the weights "
            "come in other sections."
        )
    try:
        found = judged(recipe)
    except LabError as error:
        raise NotYet(f"the network cannot be quantized so: {in_words(error)}") from None
    if found.wide_share > MOST_WIDE:
        raise NotYet(
            f"{100 * found.wide_share:.0f} % of the multiply-accumulates would compute on 16-bit "
            f"activations; {100 * MOST_WIDE:.0f} % are allowed."
        )
    if found.sqnr_db >= GOAL_DB:
        return
    if found.wide and not found.kept:
        raise NotYet(
            "your 16-bit nodes stand alone: each tensor they read comes from 8 bits, and each they "
            f"write is converted back at once. About {found.sqnr_db:.0f} dB, as without them. A "
            "tensor keeps 16 bits between two nodes that both have them."
        )
    raise NotYet(
        f"about {found.sqnr_db:.0f} dB with {len(found.wide)} nodes at 16 bits; {GOAL_DB:g} dB are "
        "the goal. Read the reasons in the table: some want another range, others more codes."
    )


_RECIPE = "from labutils import quantize\nfrom labutils.quantize.recipe import Override\n\n"
_BASE = 'quantize.load_recipe("int8")'


def _recipe_cell(base: str, *globs: str) -> str:
    overrides = "".join(f'    Override(node="{glob}", activations=16),\n' for glob in globs)
    made = f'quantize.load_recipe("{base}")'
    return (
        f'{_RECIPE}wide = (\n{overrides})\nmy_recipe = {made}.replaced(name="mine", overrides=wide)'
    )


_STEM = "/features/features.0/*"
RECIPE = Exercise(
    id="08.3",
    title="Write a recipe that spends 16 bits where they pay",
    verb="write a recipe with exceptions that reaches a goal",
    minutes=15,
    difficulty="medium",
    answer="my_recipe",
    stub=(
        _RECIPE + '# quantize.load_recipe(NAME).replaced(name="mine", overrides=(Override(...), '
        "...))\nmy_recipe = TODO"
    ),
    reference=_recipe_cell("int8_trim", _STEM, "/features/features.12/*"),
    hints=(
        "Two kinds of reasons stand in the table, and they want two kinds of cures.",
        "For outlier images there is a preset whose ranges leave more of them out: print "
        "quantize.PRESETS. It costs nothing.",
        "For an outlier channel: 16 bits for the layer and for the one that reads it.",
    ),
    right=(
        _recipe_cell("int8_trim", _STEM),
        'my_recipe = """\nname: mine\ncalibration:\n  outliers: 0.05\noverrides:\n'
        '- node: "*features.0.0/Conv"\n  activations: 16\n- node: "*features.0.2/HardSwish"\n'
        '  activations: 16\n"""',
    ),
    wrong=(
        Wrong(
            _RECIPE + f"my_recipe = {_BASE}",
            "about 12 dB with 0 nodes at 16 bits; 17.5 dB are the goal. Read the reasons in the "
            "table: some want another range, others more codes.",
        ),
        Wrong(
            'my_recipe = "int8_trim"',
            "about 16 dB with 0 nodes at 16 bits; 17.5 dB are the goal. Read the reasons in the "
            "table: some want another range, others more codes.",
        ),
        Wrong(
            _recipe_cell("int8", "*features.11/block/block.3/block.3.0/Conv"),
            "your 16-bit nodes stand alone: each tensor they read comes from 8 bits, and each they "
            "write is converted back at once. About 12 dB, as without them. A tensor keeps 16 bits "
            "between two nodes that both have them.",
        ),
        Wrong(
            _RECIPE + 'my_recipe = quantize.load_recipe("a16w8")',
            "100 % of the multiply-accumulates would compute on 16-bit activations; 15 % are "
            "allowed.",
        ),
        Wrong(
            _recipe_cell("int8", _STEM, "/features/features.12/*", "*features.11/block/block.3/*"),
            "19 % of the multiply-accumulates would compute on 16-bit activations; 15 % are "
            "allowed.",
        ),
        Wrong(
            _RECIPE + f'my_recipe = {_BASE}.replaced(exclude=("{_STEM}",))',
            "your recipe leaves nodes in float, and the HTP computes int8 networks in integers: it "
            "may refuse a float island. Give those nodes more bits instead.",
        ),
        Wrong(
            _RECIPE + f"my_recipe = {_BASE}.replaced(equalize=True)",
            "here ranges and activation bits are asked for; training and repairs of the weights "
            "come in other sections.",
        ),
        Wrong(
            'my_recipe = """\nname: mine\ncalibration:\n  outlier: 0.05\n"""',
            "the recipe cannot be read: UsageError: your recipe, line 4: calibration.outlier: "
            "unknown key; did you mean outliers?",
        ),
        Wrong(
            f'my_recipe = {{"node": "{_STEM}", "activations": 16}}',
            "a Recipe or its YAML is asked for, and this is {'activations': 16, 'node': "
            "'/features/features.0/*'}.",
        ),
    ),
    judge=_judge_recipe,
    praise="another range for the loud images, more codes for the loud channel.",
)


# --- 08.4: fake quantization ----------------------------------------------------------------------


_FAKE = "def fake_quant(x, scale, low, high):  # low, high: the first and the last code\n"
_CODES = "    codes = (x / scale).clamp(low, high)\n"
FAKE = Exercise(
    id="08.4",
    title="Round on the way there, and let the gradient pass on the way back",
    verb="write fake quantization with a straight-through gradient",
    minutes=15,
    difficulty="stretch",
    answer="fake_quant",
    stub=_FAKE + "    return TODO  # values on the grid; x and scale get a gradient",
    reference=(
        _FAKE + "    codes = (x / scale).clamp(low, high)\n"
        "    straight = codes + (codes.round() - codes).detach()\n    return straight * scale"
    ),
    hints=(
        "What is inside .detach() has a value and no gradient.",
        "a + (b - a).detach() has the value of b and the gradient of a.",
        "Divide, clamp, round straight through, multiply; detach nothing but the difference.",
    ),
    right=(
        "import torch\n\n\nclass Straight(torch.autograd.Function):\n    @staticmethod\n"
        "    def forward(ctx, x):\n        return x.round()\n\n    @staticmethod\n"
        "    def backward(ctx, gradient):\n        return gradient\n\n\n"
        + _FAKE
        + "    return Straight.apply((x / scale).clamp(low, high)) * scale",
        "import torch\n\n\n" + _FAKE + "    c = torch.clamp(x / scale, low, high)\n"
        "    return scale * (c + torch.round(c).detach() - c.detach())",
    ),
    wrong=(
        Wrong(
            _FAKE + _CODES + "    return codes.round() * scale.detach() + 0 * x",
            "right values, and the gradient of x is 0 everywhere: a staircase is flat. Nothing "
            "would be trained.",
        ),
        Wrong(
            _FAKE + _CODES + "    return x + (codes.round() * scale - x).detach()",
            "the gradient passes beyond the range as well. There the output does not depend on x: "
            "the optimizer would push values on that are cut off already.",
        ),
        Wrong(
            _FAKE
            + "    scale = scale.detach()\n"
            + _CODES
            + "    return (codes + (codes.round() - codes).detach()) * scale",
            "x gets its gradient, and the scale none: it could not be learned.",
        ),
        Wrong(
            _FAKE + _CODES + "    straight = codes + (codes.round() - codes).detach()\n"
            "    return straight * scale.detach()",
            "x gets its gradient; the scale gets -0.6 here. It acts twice: it divides before the "
            "rounding and multiplies behind it, which makes -4.6.",
        ),
        Wrong(
            _FAKE + _CODES + "    return (codes.round() * scale).detach()",
            "right values, and no gradient reaches anything: detach only the difference.",
        ),
        Wrong(
            _FAKE + _CODES + "    return codes + (codes.round() - codes).detach()",
            "those are the codes; the network goes on computing with values.",
        ),
        Wrong(
            _FAKE + "    codes = x / scale\n"
            "    return (codes + (codes.round() - codes).detach()) * scale",
            "nothing is cut off: there are no codes below `low` and above `high`.",
        ),
        Wrong(
            _FAKE + _CODES + "    return (codes + (codes.floor() - codes).detach()) * scale",
            "you round down, always: x = -0.7 became -1, and -0.5 is nearer.",
        ),
    ),
    judge=judge_fake_quant,
    praise="codes on the way there, a straight line on the way back, and a scale that learns.",
)

EXERCISES = (ERRORS, FACTORS, RECIPE, FAKE)
