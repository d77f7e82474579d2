"""Answers to the exercises of 06: chips, an interval, a decision."""

import math

import numpy as np
import torch

from answers import right, wrong
from labutils import metrics
from labutils.lab.exercises.sure import beta_quantile
from labutils.runtime import qnn

CHIPS = qnn.SOCS


@right("06.1")
def chips(random):
    floats = [name for name, chip in CHIPS.items() if chip.fp16]
    random.shuffle(floats)
    yield "an array", np.array(floats)
    yield "a frozen set", frozenset(floats)
    yield "keys of a dictionary", {name: CHIPS[name] for name in floats}
    yield "with spaces", [f" {name} " for name in floats]


@wrong("06.1")
def no_chips(random):
    floats = {name for name, chip in CHIPS.items() if chip.fp16}
    lost = random.choice(sorted(floats))
    for arch in sorted({chip.htp_arch for chip in CHIPS.values()}):
        chosen = {name for name, chip in CHIPS.items() if chip.htp_arch >= arch}
        if chosen != floats:
            yield f"HTP {arch} and above", chosen, ""
    yield f"without {lost}", floats - {lost}, "leave out others"
    yield "the others", set(CHIPS) - floats, "refuse a float graph"
    yield "none", set(), "none at all"
    yield "whatever is there", {n for n, c in CHIPS.items() if c.fp16 is not None}, "not every"
    yield "a generator", (name for name in floats), "only once"
    yield "yes and no", {name: chip.fp16 for name, chip in CHIPS.items()}, "yes or no"


def score(hits, n, z=metrics.Z95, correction=0.0):
    """Wilson's interval by the test that it inverts, on a fine grid."""
    p = np.sin(np.linspace(0, np.pi / 2, 40_001)) ** 2
    off = np.maximum(np.abs(hits / n - p) - correction / n, 0)
    kept = p[off <= z * np.sqrt(p * (1 - p) / n) + 1e-12]
    return kept[0], kept[-1]


def agresti_coull(hits, n, z=metrics.Z95):
    center = (hits + z * z / 2) / (n + z * z)
    half = z * math.sqrt(center * (1 - center) / (n + z * z))
    return max(center - half, 0), min(center + half, 1)


def clopper_pearson(hits, n, level=0.95):
    tail = (1 - level) / 2
    low = beta_quantile(tail, hits, n - hits + 1) if hits else 0
    return low, beta_quantile(1 - tail, hits + 1, n - hits) if hits < n else 1


def jeffreys(hits, n, level=0.95, prior=0.5):
    tail = (1 - level) / 2
    a, b = hits + prior, n - hits + prior
    return beta_quantile(tail, a, b), beta_quantile(1 - tail, a, b)


def wald(hits, n, z=metrics.Z95):
    p = hits / n
    half = z * math.sqrt(p * (1 - p) / n)
    return max(p - half, 0), min(p + half, 1)


@right("06.2")
def intervals(random):
    z = random.choice([1.96, 1.95996, 2.0])
    yield f"score, by its test, z = {z}", lambda hits, n: score(hits, n, z)
    yield "score with continuity correction", lambda hits, n: score(hits, n, correction=0.5)
    yield "Agresti and Coull, an array", lambda hits, n: np.array(agresti_coull(hits, n))
    yield "plus four", lambda hits, n: agresti_coull(hits, n, 2)
    yield "Clopper and Pearson, a list", lambda hits, n: list(clopper_pearson(hits, n))
    yield "Jeffreys, a tensor", lambda hits, n: torch.tensor(jeffreys(hits, n))
    yield "Bayes, an even prior", lambda hits, n: np.float32(jeffreys(hits, n, prior=1))


@wrong("06.2")
def no_intervals(random):
    level = random.choice([0.8, 0.85, 0.9])
    z90 = 1.6448536

    def rule_of_three(hits, n):
        if hits in (0, n):
            return (0, 3 / n) if hits == 0 else (1 - 3 / n, 1)
        return wald(hits, n)

    def hoeffding(hits, n):
        half = math.sqrt(math.log(2 / 0.05) / (2 * n))
        return max(hits / n - half, 0), min(hits / n + half, 1)

    yield "Wald", wald, "no width"
    yield "Wald and the rule of three", rule_of_three, "wrong place"
    yield "score at 90 %", lambda hits, n: score(hits, n, z90), "too narrow"
    yield "corrected score at 90 %", lambda hits, n: score(hits, n, z90, 0.5), "too narrow"
    yield "Agresti and Coull at 90 %", lambda hits, n: agresti_coull(hits, n, z90), "too narrow"
    yield f"exact at {level}", lambda hits, n: clopper_pearson(hits, n, level), "too narrow"
    yield f"Jeffreys at {level}", lambda hits, n: jeffreys(hits, n, level), "too narrow"
    yield "score at 99 %", lambda hits, n: score(hits, n, 2.5758), "wider"
    yield "exact at 99 %", lambda hits, n: clopper_pearson(hits, n, 0.99), "wider"
    yield "Hoeffding's bound", hoeffding, "wider"
    yield "one standard error", lambda hits, n: score(hits, n, 1), "too narrow"
    yield "per cent", lambda hits, n: tuple(100 * end for end in score(hits, n)), "per cent"
    yield "of the misses", lambda hits, n: score(n - hits, n), "lies outside"
    yield "turned round", lambda hits, n: score(hits, n)[::-1], "above the high one"
    yield "center and half", lambda hits, n: (hits / n, 0.05), ""
    yield (
        "not cut off",
        lambda hits, n: tuple(
            hits / n + s * metrics.Z95 * math.sqrt((hits + 1) / (n + 2) / n) for s in (-1, 1)
        ),
        "",
    )
    yield "a whole number of images", lambda hits, n: (hits - 2, min(hits + 2, n)), ""


def split(a, b):
    return int((a & ~b).sum()), int((b & ~a).sum())


@right("06.3")
def decisions(random):
    def by_z(a, b, z=1.96, correction=0):
        x, y = split(a, b)
        if x + y == 0 or max(abs(x - y) - correction, 0) <= z * math.sqrt(x + y):
            return None
        return "a" if x > y else "b"

    def exact(a, b):
        x, y = split(a, b)
        n, k = x + y, min(x, y)
        mid = sum(math.comb(n, i) for i in range(k + 1)) - math.comb(n, k) * 0.5
        return np.str_("ab"[int(y > x)]) if n and 2 * mid / 2**n < 0.05 else None

    def permuted(a, b):
        x, y = split(a, b)
        drawn = np.random.default_rng(random.randint(0, 99)).binomial(x + y, 0.5, 20_000)
        extreme = np.mean(np.abs(2 * drawn - x - y) >= abs(x - y))
        return "AB"[int(y > x)] if extreme < 0.05 else None

    yield "McNemar's test", by_z
    yield "McNemar's, corrected", lambda a, b: by_z(a, b, correction=1)
    yield "the sign test, half of the middle", exact
    yield "coins tossed", permuted
    yield "two standard errors", lambda a, b: by_z(a, b, 2)


@wrong("06.3")
def no_decisions(random):
    more = random.randint(9, 11)

    def by(test):
        def decide(a, b):
            x, y = split(a, b)
            return "a" if test(x, y) else "b" if test(y, x) else None

        return decide

    def rates(a, b):
        p, q = a.mean(), b.mean()
        half = 1.96 * math.sqrt((p * (1 - p) + q * (1 - q)) / len(a))
        return None if abs(p - q) <= half else "a" if p > q else "b"

    def changing(a, b):
        a &= ~b
        return "a" if a.sum() > b.sum() else None

    z = lambda x, y: (x - y) / math.sqrt(x + y or 1)  # noqa: E731
    yield f"{more} more and twice as many", by(lambda x, y: x >= y + more and x > 2 * y), "tell"
    yield f"{more} more", by(lambda x, y: x >= y + more), "13 more"
    yield "twice as many", by(lambda x, y: x > 2 * y), "toss a coin once"
    yield "90 % confidence", by(lambda x, y: z(x, y) > 1.645), "you decide"
    yield "99 % confidence", by(lambda x, y: z(x, y) > 2.576), "cannot tell"
    yield "one standard error", by(lambda x, y: z(x, y) > 1), "you decide"
    yield "the higher", by(lambda x, y: x > y), "14 times"
    yield "never", lambda a, b: None, "cannot tell"
    yield "always a", lambda a, b: "a", "same images"
    yield "unpaired", rates, ""
    yield (
        "the worse",
        lambda a, b: {"a": "b", "b": "a"}.get(by(lambda x, y: z(x, y) > 2)(a, b)),
        ("the worse"),
    )
    yield "only in favour of a", lambda a, b: "a" if z(*split(a, b)) > 2 else None, "swapped"
    yield "per cent of all images", by(lambda x, y: x - y > 12.5), "13 more"
    yield "writes into an array", changing, "writes into its input"
    yield "a truth", lambda a, b: bool(a.sum() > b.sum()), "is expected"
