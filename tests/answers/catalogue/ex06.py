"""Catalogued answers to the exercises of notebook 06."""

import math

import numpy as np

from answers.catalogue import right, right_value, wrong, wrong_value
from labutils import metrics
from labutils.metrics import Proportion
from labutils.runtime import qnn

# --- 06.1 ----------------------------------------------------------------------------------------


@right_value("06.1")
def _():
    return [chip.name for chip in qnn.SOCS.values() if chip.fp16]


@right_value("06.1")
def _():
    return tuple(set(qnn.SOCS) - {n for n, c in qnn.SOCS.items() if not c.fp16})


@wrong_value(
    "06.1",
    "not every chip computes in floats; the oldest HTPs know integers only.",
)
def _():
    return list(qnn.SOCS)


@wrong_value(
    "06.1",
    "every chip that you name would do, and you leave out others that would too.",
)
def _():
    return {n for n, c in qnn.SOCS.items() if c.htp_arch >= 73}


@wrong_value(
    "06.1",
    "those are the chips that refuse a float graph.",
)
def _():
    return {n for n, c in qnn.SOCS.items() if not c.fp16}


@wrong_value(
    "06.1",
    "nearly: one chip with an older HTP computes in floats all the same. The version alone does"
    " not decide.",
)
def _():
    return {n for n, c in qnn.SOCS.items() if c.htp_arch >= 69}


@wrong_value(
    "06.1",
    "the HTP of SM8350 refuses a float graph.",
)
def _():
    return {"SM8550", "SM8350"}


@wrong_value(
    "06.1",
    "that one works; all of them are expected.",
)
def _():
    return ["SM8550"]


@wrong_value(
    "06.1",
    "a set of part numbers is expected, but this is 'SM8550'.",
)
def _():
    return "SM8550"


@wrong_value(
    "06.1",
    "there is no part 'Snapdragon 888' in the table of chips (qnn.SOCS).",
)
def _():
    return {"Snapdragon 888"}


# --- 06.2 ----------------------------------------------------------------------------------------


@right("06.2")
def interval(hits, n, z=1.96):
    p = hits / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return [max(center - half, 0), min(center + half, 1)]


@right("06.2")
def interval(hits, n):
    # Jeffreys, by the density
    t = np.linspace(0, np.pi / 2, 10_000)[1:-1]
    log = 2 * hits * np.log(np.sin(t)) + 2 * (n - hits) * np.log(np.cos(t))
    mass = np.cumsum(np.exp(log - log.max()))
    return np.sin(np.interp([0.025, 0.975], mass / mass[-1], t)) ** 2


@right("06.2")
def interval(hits, n):
    # Clopper and Pearson, by bisection
    def tail(p, k):  # P(X >= k)
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))

    def solve(k, level):
        low, high = 0.0, 1.0
        for _ in range(40):
            p = (low + high) / 2
            low, high = (p, high) if tail(p, k) < level else (low, p)
        return low

    if n > 1000:
        from labutils.metrics import Proportion

        return Proportion(hits, n).interval
    return (solve(hits, 0.025) if hits else 0, solve(hits + 1, 0.975) if hits < n else 1)


@wrong(
    "06.2",
    "for 32 of 32 your interval has no width, as if 32 images could prove perfection.",
)
def interval(hits, n):
    p = hits / n
    half = 1.96 * (p * (1 - p) / n) ** 0.5
    return p - half, p + half


@wrong(
    "06.2",
    "for 32 of 32 your interval is too narrow for 95 %.",
)
def interval(hits, n, z=1):
    p = hits / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return center - half, center + half


@wrong(
    "06.2",
    "shares between 0 and 1 are expected, not per cent.",
)
def interval(hits, n):
    return [100 * end for end in metrics.Proportion(hits, n).interval]


@wrong(
    "06.2",
    "for 32 of 32 your low end lies above the high one.",
)
def interval(hits, n):
    return metrics.Proportion(hits, n).interval[::-1]


@wrong(
    "06.2",
    "for 32 of 32 your interval is wider than 95 % needs.",
)
def interval(hits, n):
    p = hits / n
    half = 1.96 * 0.5 / n**0.5
    return max(p - half, 0), min(p + half, 1)


# --- 06.3 ----------------------------------------------------------------------------------------


@right("06.3")
def better(correct_a, correct_b):
    a = int((correct_a & ~correct_b).sum())
    b = int((correct_b & ~correct_a).sum())
    n = a + b
    tail = sum(math.comb(n, i) for i in range(max(a, b), n + 1)) / 2**n
    if n and 2 * tail < 0.05:
        return "a" if a > b else "b"


@right("06.3")
def better(correct_a, correct_b):
    d = correct_a.astype(float) - correct_b
    error = d.std(ddof=1) / len(d) ** 0.5
    return None if abs(d.mean()) <= 1.96 * error else "AB"[int(d.mean() < 0)]


@wrong(
    "06.3",
    "8 images against 6 that only one of the two gets right, and you decide: tossing a coin 14 "
    "times does that as well.",
)
def better(correct_a, correct_b):
    a, b = correct_a.mean(), correct_b.mean()
    return None if a == b else "a" if a > b else "b"


@wrong(
    "06.3",
    "13 images against none, and you cannot tell? The two saw the same images: compare image by"
    " image, not two rates with an interval around each.",
)
def better(correct_a, correct_b):
    a = Proportion(int(correct_a.sum()), len(correct_a)).interval
    b = Proportion(int(correct_b.sum()), len(correct_b)).interval
    return "a" if a[0] > b[1] else "b" if b[0] > a[1] else None


@wrong(
    "06.3",
    "you call the worse of the two the better one.",
)
def better(correct_a, correct_b):
    low, high = metrics.paired_difference(correct_a, correct_b).interval
    return "b" if low > 0 else "a" if high < 0 else None


@wrong(
    "06.3",
    "two models that are right on the same images: you decide for a.",
)
def better(correct_a, correct_b):
    return "a" if correct_a.sum() >= correct_b.sum() else "b"


@wrong(
    "06.3",
    "57 images against 44 is 13 more, as 13 against none is, and you decide: a hundred coins "
    "often split like that.",
)
def better(correct_a, correct_b):
    a, b = correct_a.mean(), correct_b.mean()
    return "a" if a > b + 0.02 else "b" if b > a + 0.02 else None


@wrong(
    "06.3",
    "13 against none again, among ten times as many images: the images on which both agree "
    "changed your decision.",
)
def better(correct_a, correct_b):
    a, b = correct_a.mean(), correct_b.mean()
    gap = 0.02 if (correct_a ^ correct_b).mean() < 0.1 else 0.05
    return "a" if a > b + gap else "b" if b > a + gap else None


@wrong(
    "06.3",
    "one image against none, and you decide: toss a coin once.",
)
def better(correct_a, correct_b):
    a = int((correct_a & ~correct_b).sum())
    b = int((correct_b & ~correct_a).sum())
    return "a" if a >= 2 * b + 1 else "b" if b >= 2 * a + 1 else None


@wrong(
    "06.3",
    "60 images that only a gets right against 30 that only b does, and you cannot tell? A coin "
    "tossed 90 times falls so unevenly in 2 of 1,000 tries, and less than 50 is enough for 95 %"
    " confidence.",
)
def better(correct_a, correct_b):
    a = int((correct_a & ~correct_b).sum())
    b = int((correct_b & ~correct_a).sum())
    if a >= b + 8 and a > 2 * b:
        return "a"
    return "b" if b >= a + 8 and b > 2 * a else None


@wrong(
    "06.3",
    '"a", "b" or None is expected, but this is \'cannot tell\'.',
)
def better(correct_a, correct_b):
    return "cannot tell"
