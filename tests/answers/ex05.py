"""Answers to the exercises of 05: scale and zero point, codes, a ranking."""

import math
from fractions import Fraction

import numpy as np
import torch

from answers import right, wrong
from labutils import metrics
from labutils.lab import exercises


def widened(low, high):
    return min(low, 0.0), max(high, 0.0)


def half_up(value):
    return math.floor(value + 0.5)


@right("05.1")
def pairs(random):
    def observer(low, high):
        observed = torch.ao.quantization.MinMaxObserver(
            dtype=torch.quint8, qscheme=torch.per_tensor_affine
        )
        observed(torch.tensor([low, high]))
        return tuple(part[0] for part in observed.calculate_qparams())

    def from_above(low, high):
        low, high = widened(low, high)
        scale = (high - low) / 255
        return scale, 255 - half_up(high / scale)

    def exact(low, high):
        low, high = (Fraction(end) for end in widened(low, high))
        scale = (high - low) / 255
        return [scale, round(-low / scale)]

    def in_float32(low, high):
        low, high = np.float32(widened(low, high))
        scale = (high - low) / np.float32(255)
        return np.array([scale, np.rint(-low / scale)])

    yield "torch's observer", observer
    yield "from the upper end", from_above
    yield "in fractions", exact
    yield "in float32, an array", in_float32
    yield "half down", lambda low, high: (
        (s := np.ptp(widened(low, high)) / 255), math.ceil(-min(low, 0) / s - 0.5)
    )  # fmt: skip


@wrong("05.1")
def no_pairs(random):
    steps = random.choice([254, 256])

    def affine(ends=widened, steps=255, round_=round, of=lambda low, high, scale: -low / scale):
        def pair(low, high):
            low, high = ends(low, high)
            scale = (high - low) / steps
            return scale, round_(of(low, high, scale))

        return pair

    where = "not the nearer one"
    yield "rounds up", affine(round_=math.ceil), where
    yield "rounds down", affine(round_=math.floor), where
    yield "truncates", affine(round_=int), where
    yield f"{steps} steps", affine(steps=steps), "count the steps"
    yield "not widened", affine(lambda low, high: (low, high)), "zero itself has no code"
    yield "widened below only", affine(lambda low, high: (min(low, 0), high)), "zero itself"
    yield "widened above only", affine(lambda low, high: (low, max(high, 0))), "zero itself"
    yield "a fraction as the zero point", affine(round_=float), "whole number"
    yield "signed bytes", affine(of=lambda low, high, s: -low / s - 128), "cannot be negative"
    yield "the code of the middle", affine(of=lambda low, high, s: (high - low) / 2 / s), ""
    yield "from the wrong end", affine(of=lambda low, high, s: high / s), "not the code of 0.0"
    yield "the other order", lambda low, high: affine()(low, high)[::-1], "other order"
    yield "negative", lambda low, high: (-affine()(low, high)[0], 0), "positive length"
    yield "symmetric", lambda low, high: (max(-low, high) / 127.5, 128), "symmetric"
    yield "the scale alone", lambda low, high: affine()(low, high)[0], "a pair"


def back(codes, scale, zero_point):
    return (codes - zero_point) * scale


@right("05.2")
def round_trips(random):
    def by_torch(x, scale, zero_point):
        return torch.fake_quantize_per_tensor_affine(torch.tensor(x), scale, zero_point, 0, 255)

    def nearest_code(x, scale, zero_point):
        grid = (np.arange(256) - zero_point) * scale
        return grid[np.abs(x[:, None] - grid).argmin(axis=1)]

    def clipped_first(x, scale, zero_point):
        x = np.clip(x, -zero_point * scale, (255 - zero_point) * scale)
        return np.round(x / scale) * scale

    def half_away(x, scale, zero_point):
        steps = np.sign(x) * np.floor(np.abs(x) / scale + 0.5)
        return back(np.clip(steps + zero_point, 0, 255), scale, zero_point)

    def in_float32(x, scale, zero_point):
        codes = np.rint(np.float32(x) / np.float32(scale)).astype(np.int32) + zero_point
        return list(back(codes.clip(0, 255), np.float32(scale), zero_point))

    yield "by torch", by_torch
    yield "the nearest of all codes", nearest_code
    yield "cut off before", clipped_first
    yield "halves away from zero", half_away
    yield "halves up", lambda x, s, z: back(np.clip(np.floor(x / s + 0.5) + z, 0, 255), s, z)
    yield "in float32, a list", in_float32


@wrong("05.2")
def no_round_trips(random):
    end = random.choice([127, 254, 256])

    def trip(rounded=np.round, low=0, high=255, add=1, take=1):
        def quantize(x, scale, zero_point):
            codes = np.clip(rounded(x / scale) + add * zero_point, low, high)
            return back(codes, scale, take * zero_point)

        return quantize

    def in_place(x, scale, zero_point):
        np.round(x / scale, out=x)
        x += zero_point
        np.clip(x, 0, 255, out=x)
        return back(x, scale, zero_point)

    def cut_before(x, scale, zero_point):
        return back(np.clip(np.round(x / scale), 0, 255) + zero_point, scale, zero_point)

    def as_bytes(x, scale, zero_point):
        return back((np.round(x / scale) + zero_point).astype(int).astype("u1"), scale, zero_point)

    def wrapped(x, scale, zero_point):
        codes = (np.round(x / scale) + zero_point).astype(int) % 256
        return back(codes, scale, zero_point)

    yield "rounds up", trip(lambda v: np.ceil(v - 1e-9)), "round up"
    yield "rounds down", trip(lambda v: np.floor(v + 1e-9)), "cut off the fraction"
    yield "truncates", trip(lambda v: np.trunc(v + 1e-9 * np.sign(v))), "cut off the fraction"
    yield "rounds to tenths", trip(lambda v: np.round(v, 1)), ""
    yield "does not round", trip(lambda v: v), "nothing is rounded"
    yield (
        "rounds away from zero",
        trip(lambda v: np.sign(v) * np.ceil(np.abs(v) - 1e-9)),
        "the nearer one",
    )
    yield "in place", in_place, "writes into its input"
    yield "no lower end", trip(low=-999), ""
    yield "no ends", trip(low=-9999, high=9999), "beyond the range"
    yield "signed ends", trip(low=-128, high=127), "signed bytes"
    yield f"the last code is {end}", trip(high=end), ""
    yield "no code 0", trip(low=1), ""
    yield "zero point forgotten on the way back", trip(take=0), "does not come out again"
    yield "zero point forgotten on the way there", trip(add=0), ""
    yield "cut off before the zero point", cut_before, "before the zero point"
    yield "bytes that run over", as_bytes, ""
    yield "codes that run over", wrapped, "ran over the end"
    yield "the codes", lambda x, s, z: np.clip(np.round(x / s) + z, 0, 255), "the codes"


@right("05.3")
def rankings(random):
    def generator(layers, k):
        ratio = lambda row: np.sum((row[1] - row[2]) ** 2) / np.sum(row[1] ** 2)  # noqa: E731
        for row in sorted(layers, key=ratio, reverse=True)[:k]:
            yield row[0]

    def in_torch(layers, k):
        decibels = torch.tensor(
            [
                20 * torch.log10(torch.tensor(x).norm() / torch.tensor(x - q).norm())
                for _, x, q in layers
            ]
        )
        return [layers[i][0] for i in torch.argsort(decibels)[:k]]

    def by_removal(layers, k):
        left = {name: metrics.sqnr_db(x, q) for name, x, q in layers}
        return tuple(worst for _ in range(k) if (worst := min(left, key=left.get), left.pop)[0]
                     and left.pop(worst) is not None)  # fmt: skip

    yield "a generator", generator
    yield "in torch", in_torch
    yield "one after the other", by_removal
    yield "keys in order", lambda layers, k: dict.fromkeys(generator(layers, k))
    yield "an array", lambda layers, k: np.array(list(generator(layers, k)))


@wrong("05.3")
def no_rankings(random):
    def by(measure, reverse=True):
        def ranking(layers, k):
            rows = sorted(layers, key=lambda row: measure(row[1], row[2]), reverse=reverse)
            return [row[0] for row in rows[:k]]

        return ranking

    noise = lambda x, q: np.mean((x - q) ** 2) / np.mean(x**2)  # noqa: E731
    known = by(noise)(exercises.find("05.3").given(), 7)

    def sorting(layers, k):
        layers.sort(key=lambda row: noise(row[1], row[2]), reverse=True)
        return [row[0] for row in layers[:k]]

    yield "mean over mean", by(lambda x, q: abs(x - q).mean() / abs(x).mean()), "mean of distances"
    yield "largest over largest", by(lambda x, q: abs(x - q).max() / abs(x).max()), ""
    yield "variances", by(lambda x, q: np.var(x - q) / np.var(x)), "variance"
    yield "a correlation", by(lambda x, q: np.corrcoef(x, q)[0, 1], reverse=False), ""
    yield "a cosine", by(metrics.cosine, reverse=False), "does not see a factor"
    yield "the largest error", by(lambda x, q: abs(x - q).max()), "largest values too"
    yield "the power of the noise", by(lambda x, q: np.mean((x - q) ** 2)), ""
    yield "over the noisy values", by(lambda x, q: np.mean((x - q) ** 2) / np.mean(q**2)), ""
    yield "the best", by(noise, reverse=False), "suffer least"
    yield "the best of the worst first", lambda la, k: by(noise)(la, k)[::-1], "another order"
    yield "one too many", lambda layers, k: by(noise)(layers, k + 1), "you name"
    yield "a set", lambda layers, k: set(by(noise)(layers, k)), "no order"
    yield "sorts the caller's list", sorting, "everything else that reads that list"
    yield "those that were handed out", lambda layers, k: known[:k], "not one of the layers"
    yield "with the figures", lambda la, k: [(n, 0) for n in by(noise)(la, k)], "without the"
