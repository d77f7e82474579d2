"""Judging who says how sure a rate is, and which of two is better, with 95 % confidence.

Several intervals are in the textbooks, and all of them pass. Brown, L. D., Cai, T. T. & DasGupta,
A. (2001), "Interval estimation for a binomial proportion", Statistical Science 16, 101-133, compare
them; Newcombe, R. G. (1998), Statistics in Medicine 17, 857-872, has the continuity correction.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import metrics
from ..answer import NotYet, call, number, pair, shown, words

_COUNTS = ((32, 32), (27, 32), (1560, 1600), (0, 32), (50, 100), (5, 32), (500, 1000), (60, 1000))
_Ends = tuple[float, float]


def judge_interval(interval: Any) -> None:
    """Judge the ends at several counts: they must lie among those of the textbook's intervals."""
    for hits, n in _COUNTS:
        found = pair(call(interval, hits, n), "(low, high)")
        low, high = (number(part, "a number at each end") for part in found)
        lows, highs = np.transpose(textbook(hits, n))
        widths = highs - lows
        slack = 0.05 * np.ptp(metrics.Proportion(hits, n).interval)
        if not (
            min(lows) - slack <= low <= max(lows) + slack
            and min(highs) - slack <= high <= max(highs) + slack
            and 0.95 * min(widths) <= high - low <= 1.05 * max(widths)
            and -1e-6 <= low <= hits / n + 0.4 * slack
            and hits / n - 0.4 * slack <= high <= 1 + 1e-6
        ):
            raise NotYet(_explain_interval(hits, n, low, high))


def _explain_interval(hits: int, n: int, low: float, high: float) -> str:
    p, where = hits / n, f"{hits} of {n}"
    usual = np.ptp(metrics.Proportion(hits, n).interval)
    if max(low, high) > 1.5:
        return "shares between 0 and 1 are expected, not per cent."
    if low > high:
        return f"for {where} your low end lies above the high one."
    if hits in (0, n) and high - low < 1e-6:
        proven = "perfection" if hits else "failure"
        return f"for {where} your interval has no width, as if {n} images could prove {proven}."
    if low < -1e-6 or high > 1 + 1e-6:
        return f"for {where} your interval leaves the range from 0 to 1."
    if not low - 0.02 * usual <= p <= high + 0.02 * usual:  # equal tails end just inside 0 and 1
        return f"for {where} the rate itself lies outside your interval."
    widths = [end - start for start, end in textbook(hits, n)]
    if high - low < 0.95 * min(widths):
        return f"for {where} your interval is too narrow for 95 %."
    if high - low > 1.05 * max(widths):
        return f"for {where} your interval is wider than 95 % needs."
    return (
        f"for {where} your interval has the right width in the wrong place: near 0 and 1 it is "
        "not symmetric around the rate."
    )


def textbook(hits: int, n: int) -> list[_Ends]:
    """Return the 95 % intervals that pass, each with ends 0 to 1.

    Wilson's, the same with a continuity correction, Agresti and Coull's (cut at 0 and 1), Clopper
    and Pearson's, Jeffreys', Bayes' with an even prior, and that of the likelihood ratio.
    """
    miss, z = n - hits, metrics.Z95
    center, share = n + z * z, (hits + z * z / 2) / (n + z * z)
    half = z * math.sqrt(share * (1 - share) / center)
    exact = (
        beta_quantile(0.025, hits, miss + 1) if hits else 0.0,
        beta_quantile(0.975, hits + 1, miss) if miss else 1.0,
    )
    return [
        metrics.Proportion(hits, n).interval,
        _corrected(hits, n),
        (max(0.0, share - half), min(1.0, share + half)),
        exact,
        (
            beta_quantile(0.025, hits + 0.5, miss + 0.5),
            beta_quantile(0.975, hits + 0.5, miss + 0.5),
        ),
        (beta_quantile(0.025, hits + 1, miss + 1), beta_quantile(0.975, hits + 1, miss + 1)),
        _likely(hits, n),
    ]


def _corrected(hits: int, n: int) -> _Ends:
    """Wilson's interval with Yates's continuity correction (Newcombe 1998, method 4)."""
    p, z = hits / n, metrics.Z95
    below = math.sqrt(max(z * z - 2 - 1 / n + 4 * p * (n * (1 - p) + 1), 0))
    above = math.sqrt(max(z * z + 2 - 1 / n + 4 * p * (n * (1 - p) - 1), 0))
    low = (2 * n * p + z * z - 1 - z * below) / (2 * (n + z * z)) if hits else 0.0
    high = (2 * n * p + z * z + 1 + z * above) / (2 * (n + z * z)) if hits < n else 1.0
    return max(0.0, low), min(1.0, high)


def _likely(hits: int, n: int) -> _Ends:
    """Return the rates whose likelihood ratio to the best is within the chi-squared limit."""
    p = np.sin(np.linspace(0, np.pi / 2, 20_001)[1:-1]) ** 2
    log = hits * np.log(p) + (n - hits) * np.log1p(-p)
    kept = p[log >= _log_likelihood(hits, n) - metrics.Z95**2 / 2]
    return (0.0 if hits == 0 else float(kept[0]), 1.0 if hits == n else float(kept[-1]))


def _log_likelihood(hits: int, n: int) -> float:
    return sum(k * math.log(k / n) for k in (hits, n - hits) if k)


def beta_quantile(q: float, a: float, b: float) -> float:
    """Return the quantile of a beta distribution, a and b at least 0.5, to about 1e-5.

    With ``p = sin(t)**2`` the density is smooth up to both ends, and is added up on a grid.
    """
    t = np.linspace(0, np.pi / 2, 20_001)[1:-1]
    log = (2 * a - 1) * np.log(np.sin(t)) + (2 * b - 1) * np.log(np.cos(t))
    mass = np.cumsum(np.exp(log - log.max()))
    return float(np.sin(np.interp(q, mass / mass[-1], t)) ** 2)


def flags(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Return who was right on which image, in a mixed order, from the four counts."""
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    order = np.random.default_rng(6).permutation(len(a))
    return np.array(a)[order], np.array(b)[order]


_DECISIONS = (  # right in both, in a alone, in b alone, in neither; who is better; what is said
    ((380, 0, 0, 20), None,
     "two models that are right on the same images: you decide for {found}."),
    ((370, 8, 6, 16), None,
     "8 images against 6 that only one of the two gets right, and you decide: tossing a coin 14 "
     "times does that as well."),
    ((378, 13, 0, 9), "a",
     "13 images against none, and you cannot tell? The two saw the same images: compare image by "
     "image, not two rates with an interval around each."),
    ((378, 0, 13, 9), "b",
     "when the two models are swapped, your decision does not follow."),
    ((300, 57, 44, 0), None,
     "57 images against 44 is 13 more, as 13 against none is, and you decide: a hundred coins "
     "often split like that."),
    ((3978, 13, 0, 9), "a",
     "13 against none again, among ten times as many images: the images on which both agree "
     "changed your decision."),
    ((380, 1, 0, 19), None,
     "one image against none, and you decide: toss a coin once."),
)  # fmt: skip
_CLEAR = ((9, 0), (0, 10), (60, 30), (30, 60), (200, 150), (222, 178), (16, 3))
_OPEN = ((3, 0), (0, 2), (20, 10), (13, 24), (218, 182), (182, 218), (5, 4), (420, 400))


def judge_decision(better: Any) -> None:
    """Judge decisions that every usual paired test makes alike."""
    for cells, right, sentence in _DECISIONS:
        found = _decided(better, cells)
        if found != right:
            worse = right == "a" and found == "b"
            known = "you call the worse of the two the better one."
            raise NotYet(known if worse else sentence.format(found=found))
    for only_a, only_b in (*_CLEAR, *_OPEN):
        found = _decided(better, (1500, only_a, only_b, 100))
        right = None if (only_a, only_b) in _OPEN else "a" if only_a > only_b else "b"
        if found != right:
            raise NotYet(_explain_split(only_a, only_b, found, right))


def _decided(better: Any, cells: tuple[int, int, int, int]) -> str | None:
    told = call(better, *flags(*cells))
    if told is None:
        return None
    word = words(told, '"a", "b" or None').lower()
    if word not in ("a", "b"):
        raise NotYet(f'"a", "b" or None is expected, but this is {shown(word)}.')
    return word


def coins(x: int, y: int) -> float:
    """Return how often a fair coin falls at least as unevenly as x to y."""
    n, most = x + y, max(x, y)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(most, n + 1)) / 2**n)


def _explain_split(x: int, y: int, found: str | None, right: str | None) -> str:
    told = f"{x} images that only a gets right against {y} that only b does"
    often = f"A coin tossed {x + y} times falls so unevenly"
    if right is None:
        return (
            f"{told}, and you decide. {often} in {100 * coins(x, y):.0f} of 100 tries, and 95 % "
            "confidence asks for less than 5."
        )
    if found is None:
        return (
            f"{told}, and you cannot tell? {often} in {1000 * coins(x, y):.0f} of 1,000 tries, and "
            "less than 50 is enough for 95 % confidence."
        )
    return f"{told}, and you decide for {found}."
