"""Exercises of notebook 08: two errors of a range, equalizing, a recipe, and a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import LabError
from ..answer import NotYet, in_words, shown
from ..exercise import Exercise
from .rounded import judge_errors, judge_factors, judge_fake_quant

if TYPE_CHECKING:
    from ...quantize import Recipe
    from .small_network import Judged

# --- 08.1: clipping and rounding ------------------------------------------------------------------


_ERRORS = "def two_errors(x, back, low, high):  # x before, back after quantization: arrays\n"
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
    judge=judge_errors,
    praise="two errors whose sum is the whole: one falls with the range, the other rises.",
)


# --- 08.2: equalizing -----------------------------------------------------------------------------


_FACTORS = "import numpy as np\n\n\ndef factors(first, second):  # (channels, m), (n, channels)\n"
_REACH = "    own = np.abs(first).max(axis=1)\n    theirs = np.abs(second).max(axis=0)\n"
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
        "own / s should be as large as theirs * s. Solve that for s.",
        "Where own or theirs is 0, there is nothing to equalize: 1 changes nothing.",
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
        raise NotYet(f"a Recipe or its YAML is expected, but this is {shown(answer)}.")
    try:
        if answer in quantize.PRESETS:
            return quantize.PRESETS[answer]
        return parse(answer, "your recipe")
    except LabError as error:
        raise NotYet(f"the recipe cannot be read: {in_words(error)}") from None


def judge_recipe(my_recipe: Any) -> None:
    """Judge a recipe by what it makes of the small network: loss, and what 16 bits cost."""
    from .small_network import GOAL_DB, MOST_WIDE, judged

    recipe = _read(my_recipe)
    _refuse_other_means(recipe)
    try:
        found = judged(recipe)
    except LabError as error:
        raise NotYet(f"the network cannot be quantized so: {in_words(error)}") from None
    if found.wide_share > MOST_WIDE:
        raise NotYet(
            f"{100 * found.wide_share:.0f} % of the multiply-accumulates would compute on 16-bit "
            f"activations; {100 * MOST_WIDE:.0f} % are allowed."
        )
    if found.sqnr_db < GOAL_DB:
        raise NotYet(_explain_loss(found, GOAL_DB))


def _refuse_other_means(recipe: Recipe) -> None:
    """Refuse a recipe that changes anything but ranges and activation bits."""
    if recipe.exclude:
        raise NotYet(
            "your recipe leaves nodes in float, and the HTP computes int8 networks in integers: it "
            "may refuse a float island. Give those nodes more bits instead."
        )
    if recipe.weights.bits > 8 or any((o.weights or 8) > 8 for o in recipe.overrides):
        raise NotYet(
            "your recipe stores weights in more than 8 bits, which doubles the file. This exercise "
            "is about ranges and activation bits."
        )
    if recipe.qat or recipe.equalize or recipe.rounding != "nearest":
        raise NotYet(
            "this exercise is about ranges and activation bits; training and corrections of the "
            "weights come in other sections."
        )


def _explain_loss(found: Judged, goal: float) -> str:
    if found.wide and not found.kept:
        return (
            "your 16-bit nodes stand alone: each tensor they read comes from 8 bits, and each they "
            f"write is converted back at once. About {found.sqnr_db:.0f} dB, as without them. A "
            "tensor keeps 16 bits between two nodes that both have them."
        )
    return (
        f"about {found.sqnr_db:.0f} dB with {len(found.wide)} nodes at 16 bits; {goal:g} dB are "
        "the goal. Read the reasons in the table: some want another range, others more codes."
    )


_RECIPE = "from labutils import quantize\nfrom labutils.quantize import Override\n\n"


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
    judge=judge_recipe,
    praise="another range for the loud images, more codes for the loud channel.",
)


# --- 08.4: fake quantization ----------------------------------------------------------------------


_FAKE = "def fake_quant(x, scale, low, high):  # low, high: the first and the last code\n"
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
    judge=judge_fake_quant,
    praise="codes on the way there, a straight line on the way back, and a scale that learns.",
)

EXERCISES = (ERRORS, FACTORS, RECIPE, FAKE)
