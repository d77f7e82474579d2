"""Exercises of notebook 06: which chip, how sure, and which of two is better."""

from __future__ import annotations

from typing import Any

from ...runtime import qnn
from ..answer import NotYet, names, shown
from ..exercise import Exercise
from .sure import judge_decision, judge_interval


def judge_chips(float_chips: Any) -> None:
    """Judge which chips run a float graph: those whose HTP computes in 16-bit floats."""
    found = names(float_chips, "a set of part numbers")
    right = {name for name, chip in qnn.SOCS.items() if chip.fp16}
    if found != right:
        raise NotYet(_explain_chips(found, right))


def _explain_chips(found: set[str], right: set[str]) -> str:
    unknown = found - set(qnn.SOCS)
    if unknown:
        return f"there is no part {shown(min(unknown))} in the table of chips (qnn.SOCS)."
    if not found:
        return "none at all? Some HTPs compute in floats; ask each entry of qnn.SOCS."
    if found == set(qnn.SOCS):
        return "not every chip computes in floats; the oldest HTPs know integers only."
    if found == set(qnn.SOCS) - right:
        return "those are the chips that refuse a float graph."
    if found == {name for name, chip in qnn.SOCS.items() if chip.htp_arch >= 69}:
        return (
            "nearly: one chip with an older HTP computes in floats all the same. The version alone "
            "does not decide."
        )
    if found - right:
        return f"the HTP of {min(found - right)} refuses a float graph."
    if len(found) == 1:
        return "that one works; all of them are expected."
    return "every chip that you name would do, and you leave out others that would too."


CHIPS = Exercise(
    id="06.1",
    title="Which chips can run the float model?",
    verb="choose a chip by what its accelerator computes in",
    minutes=4,
    difficulty="easy",
    answer="float_chips",
    stub="float_chips = TODO  # part numbers, out of qnn.SOCS",
    reference=(
        "from labutils.runtime import qnn\n\n"
        "float_chips = {name for name, chip in qnn.SOCS.items() if chip.fp16}"
    ),
    hints=(
        "qnn.SOCS has all chips of the lab, by part number: a dictionary. Print one of its values.",
        "The version of the HTP tells nearly all of it, the year on the phone nothing.",
        "Each entry says fp16, and which htp_arch it has.",
    ),
    judge=judge_chips,
    praise="on the other chips the model must be quantized before it runs at all.",
)

INTERVAL = Exercise(
    id="06.2",
    title="How sure 32 images make you",
    verb="give an accuracy with its interval",
    minutes=8,
    difficulty="medium",
    answer="interval",
    stub="def interval(hits, n):\n    return TODO, TODO  # the ends of the 95 % interval, 0 to 1",
    reference=(
        "from labutils import metrics\n\n\n"
        "def interval(hits, n):\n"
        "    return metrics.Proportion(hits, n).interval"
    ),
    hints=(
        "First ask what should come out for 32 of 32. A width of zero?",
        "The interval p +- 1.96 * sqrt(p * (1 - p) / n) breaks down near 0 and 1.",
        "Wilson's interval does not; metrics.Proportion(hits, n) has it, as its interval.",
    ),
    judge=judge_interval,
    praise="it has a width at 32 of 32 too, and stays between 0 and 1.",
)

DECISION = Exercise(
    id="06.3",
    title="Is one of two artifacts better, or can nobody tell?",
    verb="decide between two artifacts from answers on the same images",
    minutes=12,
    difficulty="stretch",
    answer="better",
    stub=(
        "def better(correct_a, correct_b):\n"
        "    # two boolean arrays, one entry per image; the images are the same\n"
        "    return TODO  # 'a', 'b', or None when 95 % confidence does not decide"
    ),
    reference=(
        "from labutils import metrics\n\n\n"
        "def better(correct_a, correct_b):\n"
        "    low, high = metrics.paired_difference(correct_a, correct_b).interval\n"
        "    return 'a' if low > 0 else 'b' if high < 0 else None"
    ),
    hints=(
        "Sort the images into four heaps: both right, both wrong, and two more. Which heaps would "
        "look the same, whichever of the two is better?",
        "Were both equally good, an image on which they differ would go to a or to b like a coin: "
        "is your split one that coins often make? Or: is 0 a likely mean of a minus b, per image?",
        "metrics.paired_difference(correct_a, correct_b) has an interval; where does 0 lie?",
    ),
    judge=judge_decision,
    praise="only the images on which the two differ decide, and fourteen of them did not.",
)

EXERCISES = (CHIPS, INTERVAL, DECISION)
