"""Exercises of notebook 06: which chip, how sure, and which of two is better."""

from __future__ import annotations

from typing import Any

from ...runtime import qnn
from ..answer import NotYet, names, shown
from ..exercise import Exercise, Wrong
from .sure import judge_decision, judge_interval


def _judge_chips(answer: Any) -> None:
    found = names(answer, "a set of part numbers")
    unknown = found - set(qnn.SOCS)
    if unknown:
        raise NotYet(f"there is no part {shown(min(unknown))} in the table of chips (qnn.SOCS).")
    right = {name for name, chip in qnn.SOCS.items() if chip.fp16}
    if found == right:
        return
    if not found:
        raise NotYet("none at all? Some HTPs compute in floats; ask each entry of qnn.SOCS.")
    if found == set(qnn.SOCS):
        raise NotYet("not every chip computes in floats; the oldest HTPs know integers only.")
    if found == set(qnn.SOCS) - right:
        raise NotYet("those are the chips that refuse a float graph.")
    if found == {name for name, chip in qnn.SOCS.items() if chip.htp_arch >= 69}:
        raise NotYet(
            "nearly: one chip with an older HTP computes in floats all the same. The version alone "
            "does not decide."
        )
    if found - right:
        raise NotYet(f"the HTP of {min(found - right)} refuses a float graph.")
    if len(found) == 1:
        raise NotYet("one that works; all of them are asked for.")
    raise NotYet("every chip that you name would do, and you leave out others that would too.")


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
    right=(
        "from labutils.runtime import qnn\n"
        "float_chips = [chip.name for chip in qnn.SOCS.values() if chip.fp16]",
        "from labutils.runtime import qnn\n"
        "float_chips = tuple(set(qnn.SOCS) - {n for n, c in qnn.SOCS.items() if not c.fp16})",
    ),
    wrong=(
        Wrong(
            "from labutils.runtime import qnn\nfloat_chips = list(qnn.SOCS)",
            "not every chip computes in floats; the oldest HTPs know integers only.",
        ),
        Wrong(
            "from labutils.runtime import qnn\n"
            "float_chips = {n for n, c in qnn.SOCS.items() if c.htp_arch >= 73}",
            "every chip that you name would do, and you leave out others that would too.",
        ),
        Wrong(
            "from labutils.runtime import qnn\n"
            "float_chips = {n for n, c in qnn.SOCS.items() if not c.fp16}",
            "those are the chips that refuse a float graph.",
        ),
        Wrong(
            "from labutils.runtime import qnn\n"
            "float_chips = {n for n, c in qnn.SOCS.items() if c.htp_arch >= 69}",
            "nearly: one chip with an older HTP computes in floats all the same. The version alone "
            "does not decide.",
        ),
        Wrong("float_chips = {'SM8550', 'SM8350'}", "the HTP of SM8350 refuses a float graph."),
        Wrong("float_chips = ['SM8550']", "one that works; all of them are asked for."),
        Wrong(
            "float_chips = 'SM8550'", "a set of part numbers is asked for, and this is 'SM8550'."
        ),
        Wrong(
            "float_chips = {'Snapdragon 888'}",
            "there is no part 'Snapdragon 888' in the table of chips (qnn.SOCS).",
        ),
    ),
    judge=_judge_chips,
    praise="on the other chips the model must be quantized before it runs at all.",
)

_WILSON = (
    "    center = (p + z * z / (2 * n)) / (1 + z * z / n)\n"
    "    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)\n"
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
    right=(
        "def interval(hits, n, z=1.96):\n    p = hits / n\n"
        + _WILSON
        + "    return [max(center - half, 0), min(center + half, 1)]",
        "import numpy as np\n\n"
        "def interval(hits, n):\n"
        "    # Jeffreys, by the density\n"
        "    t = np.linspace(0, np.pi / 2, 10_000)[1:-1]\n"
        "    log = 2 * hits * np.log(np.sin(t)) + 2 * (n - hits) * np.log(np.cos(t))\n"
        "    mass = np.cumsum(np.exp(log - log.max()))\n"
        "    return np.sin(np.interp([0.025, 0.975], mass / mass[-1], t)) ** 2",
        "import math\n\n"
        "def interval(hits, n):\n"
        "    # Clopper and Pearson, by bisection\n"
        "    def tail(p, k):  # P(X >= k)\n"
        "        return sum(math.comb(n, i) * p**i * (1 - p)**(n - i) for i in range(k, n + 1))\n"
        "    def solve(k, level):\n"
        "        low, high = 0.0, 1.0\n"
        "        for _ in range(40):\n"
        "            p = (low + high) / 2\n"
        "            low, high = (p, high) if tail(p, k) < level else (low, p)\n"
        "        return low\n"
        "    if n > 1000:\n"
        "        from labutils.metrics import Proportion\n"
        "        return Proportion(hits, n).interval\n"
        "    return (solve(hits, 0.025) if hits else 0, solve(hits + 1, 0.975) if hits < n else 1)",
    ),
    wrong=(
        Wrong(
            "def interval(hits, n):\n"
            "    p = hits / n\n"
            "    half = 1.96 * (p * (1 - p) / n) ** 0.5\n"
            "    return p - half, p + half",
            "for 32 of 32 your interval has no width, as if 32 images could prove perfection.",
        ),
        Wrong(
            "def interval(hits, n, z=1):\n    p = hits / n\n"
            + _WILSON
            + "    return center - half, center + half",
            "for 32 of 32 your interval is too narrow for 95 %.",
        ),
        Wrong(
            "from labutils import metrics\n\n"
            "def interval(hits, n):\n"
            "    return [100 * end for end in metrics.Proportion(hits, n).interval]",
            "shares between 0 and 1 are asked for, not per cent.",
        ),
        Wrong(
            "from labutils import metrics\n\n"
            "def interval(hits, n):\n"
            "    return metrics.Proportion(hits, n).interval[::-1]",
            "for 32 of 32 your low end lies above the high one.",
        ),
        Wrong(
            "def interval(hits, n):\n"
            "    p = hits / n\n"
            "    half = 1.96 * 0.5 / n ** 0.5\n"
            "    return max(p - half, 0), min(p + half, 1)",
            "for 32 of 32 your interval is wider than 95 % needs.",
        ),
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
    right=(
        "import math\n\n"
        "def better(correct_a, correct_b):\n"
        "    a = int((correct_a & ~correct_b).sum())\n"
        "    b = int((correct_b & ~correct_a).sum())\n"
        "    n = a + b\n"
        "    tail = sum(math.comb(n, i) for i in range(max(a, b), n + 1)) / 2**n\n"
        "    if n and 2 * tail < 0.05:\n"
        "        return 'a' if a > b else 'b'",
        "import numpy as np\n\n"
        "def better(correct_a, correct_b):\n"
        "    d = correct_a.astype(float) - correct_b\n"
        "    error = d.std(ddof=1) / len(d) ** 0.5\n"
        "    return None if abs(d.mean()) <= 1.96 * error else 'AB'[int(d.mean() < 0)]",
    ),
    wrong=(
        Wrong(
            "def better(correct_a, correct_b):\n"
            "    a, b = correct_a.mean(), correct_b.mean()\n"
            "    return None if a == b else 'a' if a > b else 'b'",
            "8 images against 6 that only one of the two gets right, and you decide: tossing a "
            "coin 14 times does that as well.",
        ),
        Wrong(
            "from labutils.metrics import Proportion\n\n"
            "def better(correct_a, correct_b):\n"
            "    a = Proportion(int(correct_a.sum()), len(correct_a)).interval\n"
            "    b = Proportion(int(correct_b.sum()), len(correct_b)).interval\n"
            "    return 'a' if a[0] > b[1] else 'b' if b[0] > a[1] else None",
            "13 images against none, and you cannot tell? The two saw the same images: compare "
            "image by image, not two rates with an interval around each.",
        ),
        Wrong(
            "from labutils import metrics\n\n"
            "def better(correct_a, correct_b):\n"
            "    low, high = metrics.paired_difference(correct_a, correct_b).interval\n"
            "    return 'b' if low > 0 else 'a' if high < 0 else None",
            "you call the worse of the two the better one.",
        ),
        Wrong(
            "def better(correct_a, correct_b):\n"
            "    return 'a' if correct_a.sum() >= correct_b.sum() else 'b'",
            "two models that are right on the same images: you decide for a.",
        ),
        Wrong(
            "def better(correct_a, correct_b):\n"
            "    a, b = correct_a.mean(), correct_b.mean()\n"
            "    return 'a' if a > b + 0.02 else 'b' if b > a + 0.02 else None",
            "57 images against 44 is 13 more, as 13 against none is, and you decide: a hundred "
            "coins often split like that.",
        ),
        Wrong(
            "def better(correct_a, correct_b):\n"
            "    a, b = correct_a.mean(), correct_b.mean()\n"
            "    gap = 0.02 if (correct_a ^ correct_b).mean() < 0.1 else 0.05\n"
            "    return 'a' if a > b + gap else 'b' if b > a + gap else None",
            "13 against none again, among ten times as many images: the images on which both agree "
            "changed your decision.",
        ),
        Wrong(
            "def better(correct_a, correct_b):\n"
            "    a = int((correct_a & ~correct_b).sum())\n"
            "    b = int((correct_b & ~correct_a).sum())\n"
            "    return 'a' if a >= 2 * b + 1 else 'b' if b >= 2 * a + 1 else None",
            "one image against none, and you decide: toss a coin once.",
        ),
        Wrong(
            "def better(correct_a, correct_b):\n"
            "    a = int((correct_a & ~correct_b).sum())\n"
            "    b = int((correct_b & ~correct_a).sum())\n"
            "    if a >= b + 8 and a > 2 * b:\n"
            "        return 'a'\n"
            "    return 'b' if b >= a + 8 and b > 2 * a else None",
            "60 images that only a gets right against 30 that only b does, and you cannot tell? A "
            "coin tossed 90 times falls so unevenly in 2 of 1,000 tries, and less than 50 is "
            "enough for 95 % confidence.",
        ),
        Wrong(
            "def better(correct_a, correct_b):\n    return 'cannot tell'",
            '"a", "b" or None is asked for, and this is \'cannot tell\'.',
        ),
    ),
    judge=judge_decision,
    praise="only the images on which the two differ decide, and fourteen of them did not.",
)

EXERCISES = (CHIPS, INTERVAL, DECISION)
