"""Exercises of notebook 06: which chip, how sure, and which of two is better."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import metrics, qnn
from ..answer import NotYet, call, names, number, shown, words
from ..exercise import Exercise, Wrong


def _judge_chips(answer: Any) -> None:
    found = names(answer, "a set of part numbers")
    unknown = found - set(qnn.SOCS)
    if unknown:
        raise NotYet(f"there is no part {shown(min(unknown))} in the table of chips (qnn.SOCS).")
    right = {name for name, chip in qnn.SOCS.items() if chip.fp16}
    if found == right:
        return
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


_COUNTS = ((32, 32), (27, 32), (1560, 1600), (0, 32), (50, 100))


def _judge_interval(answer: Any) -> None:
    for hits, n in _COUNTS:
        found = call(answer, hits, n)
        if not isinstance(found, tuple | list | np.ndarray) or len(found) != 2:
            raise NotYet(f"a pair (low, high) is asked for, and this is {shown(found)}.")
        low, high = (number(part, "a number at each end") for part in found)
        _judge_ends(hits, n, low, high)


def _judge_ends(hits: int, n: int, low: float, high: float) -> None:
    p, where = hits / n, f"{hits} of {n}"
    true = metrics.Proportion(hits, n).interval
    if max(low, high) > 1.5:
        raise NotYet("shares between 0 and 1 are asked for, not per cent.")
    if low > high:
        raise NotYet(f"for {where} your low end lies above the high one.")
    if hits in (0, n) and high - low < 1e-6:
        raise NotYet(
            f"for {where} your interval has no width, as if {n} images could prove perfection."
        )
    if low < -1e-9 or high > 1 + 1e-9:
        raise NotYet(f"for {where} your interval leaves the range from 0 to 1.")
    if not low <= p + 1e-9 or not p - 1e-9 <= high:
        raise NotYet(f"for {where} the rate itself lies outside your interval.")
    ratio = (high - low) / (true[1] - true[0])
    if ratio < 0.75:
        raise NotYet(f"for {where} your interval is too narrow for 95 %.")
    if ratio > 1.3:
        raise NotYet(f"for {where} your interval is wider than 95 % needs.")
    if max(abs(low - true[0]), abs(high - true[1])) > 0.025:  # Agresti-Coull passes
        raise NotYet(
            f"for {where} your interval has the right width in the wrong place: near 0 and 1 it is "
            "not symmetric around the rate."
        )


def _flags(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    order = np.random.default_rng(6).permutation(len(a))
    return np.array(a)[order], np.array(b)[order]


def _judge_decision(answer: Any) -> None:
    def ask(*cells: int) -> str | None:
        a, b = _flags(*cells)
        told: list[Any] = []
        call(lambda: told.append(answer(a.copy(), b.copy())) or True)
        call(lambda: True if told[0] is None else told[0])  # TODO inside
        if told[0] is None:
            return None
        word = words(told[0], '"a", "b" or None').lower()
        if word not in ("a", "b"):
            raise NotYet(f'"a", "b" or None is asked for, and this is {shown(word)}.')
        return word

    same = ask(380, 0, 0, 20)
    if same is not None:
        raise NotYet(f"two models that are right on the same images: you decide for {same}.")
    close = ask(370, 8, 6, 16)
    if close is not None:
        raise NotYet(
            "8 images against 6 that only one of the two gets right, and you decide: tossing a "
            "coin 14 times does that as well."
        )
    clear = ask(378, 13, 0, 9)
    if clear == "b":
        raise NotYet("you call the worse of the two the better one.")
    if clear is None:
        raise NotYet(
            "13 images against none, and you cannot tell? The two saw the same images: compare "
            "image by image, not two rates with an interval around each."
        )
    if ask(378, 0, 13, 9) != "b":
        raise NotYet("with the two models exchanged, your decision does not turn round.")
    many = ask(300, 57, 44, 0)
    if many is not None:
        raise NotYet(
            "57 images against 44 is 13 more, as 13 against none is, and you decide: a hundred "
            "coins often split like that."
        )
    if ask(3978, 13, 0, 9) != "a":
        raise NotYet(
            "13 against none again, among ten times as many images: the images on which both agree "
            "changed your decision."
        )
    few = ask(380, 1, 0, 19)
    if few is not None:
        raise NotYet("one image against none, and you decide: toss a coin once.")


CHIPS = Exercise(
    id="06.1",
    title="Which chips can run the float model?",
    verb="choose a chip by what its accelerator computes in",
    minutes=4,
    difficulty="easy",
    answer="float_chips",
    stub="float_chips = TODO  # part numbers, out of qnn.SOCS",
    reference=(
        "from labutils import qnn\n\n"
        "float_chips = {name for name, chip in qnn.SOCS.items() if chip.fp16}"
    ),
    hints=(
        "qnn.SOCS has all chips of the lab, by part number: a dictionary. Print one of its values.",
        "The version of the HTP tells nearly all of it, the year on the phone nothing.",
        "Each entry says fp16, and which htp_arch it has.",
    ),
    right=(
        "from labutils import qnn\n"
        "float_chips = [chip.name for chip in qnn.SOCS.values() if chip.fp16]",
        "from labutils import qnn\n"
        "float_chips = tuple(set(qnn.SOCS) - {n for n, c in qnn.SOCS.items() if not c.fp16})",
    ),
    wrong=(
        Wrong(
            "from labutils import qnn\nfloat_chips = list(qnn.SOCS)",
            "not every chip computes in floats; the oldest HTPs know integers only.",
        ),
        Wrong(
            "from labutils import qnn\n"
            "float_chips = {n for n, c in qnn.SOCS.items() if c.htp_arch >= 73}",
            "every chip that you name would do, and you leave out others that would too.",
        ),
        Wrong(
            "from labutils import qnn\n"
            "float_chips = {n for n, c in qnn.SOCS.items() if not c.fp16}",
            "those are the chips that refuse a float graph.",
        ),
        Wrong(
            "from labutils import qnn\n"
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
    judge=_judge_interval,
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
            "def better(correct_a, correct_b):\n    return 'cannot tell'",
            '"a", "b" or None is asked for, and this is \'cannot tell\'.',
        ),
    ),
    judge=_judge_decision,
    praise="only the images on which the two differ decide, and fourteen of them did not.",
)

EXERCISES = (CHIPS, INTERVAL, DECISION)
