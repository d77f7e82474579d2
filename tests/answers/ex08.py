"""Answers to the exercises of 08: two errors, factors, a recipe, a gradient."""

import math

import numpy as np
import torch

from answers import right, wrong
from labutils import quantize
from labutils.quantize import Override, Weights


@right("08.1")
def two_errors(random):
    def fsum(x, back, low, high):
        squares = [((a - b) ** 2, low <= a <= high) for a, b in zip(x, back, strict=True)]
        return [math.fsum(s for s, inside in squares if inside is flag) / len(x)
                for flag in (np.False_, np.True_)]  # fmt: skip

    def by_difference(x, back, low, high):
        error = np.square(x - back)
        clipped = np.where((low <= x) & (x <= high), 0, error)
        return clipped.mean(), error.mean() - clipped.mean()

    def in_float32(x, back, low, high):
        x, back = torch.tensor(x, dtype=torch.float32), torch.tensor(back, dtype=torch.float32)
        gone = (x < low) | (x > high)
        return torch.stack([((x - back) ** 2 * mask).mean() for mask in (gone, ~gone)])

    def by_distance(x, back, low, high):
        beyond = x - np.clip(x, low, high)
        return np.array([np.mean(beyond**2), np.mean((x - back)[beyond == 0] ** 2 * 1.0)
                         * np.mean(beyond == 0)])  # fmt: skip

    yield "the rest by difference", by_difference
    yield "in float32, a tensor", in_float32
    yield "by what lies beyond, an array", by_distance
    yield "exact sums, a list", lambda x, b, lo, hi: fsum(x, b, lo, hi) if x.size else None


@wrong("08.1")
def no_two_errors(random):
    def split(gone, error=np.square, over=lambda x: x.size):
        def errors(x, back, low, high):
            mask, e = gone(x, back, low, high), error(x - back)
            return e[mask].sum() / over(x), e[~mask].sum() / over(x)

        return errors

    outside = lambda x, back, low, high: (x < low) | (x > high)  # noqa: E731
    ends = lambda x, back, low, high: (back == back.min()) | (back == back.max())  # noqa: E731

    def own_means(x, back, low, high):
        mask, e = outside(x, back, low, high), (x - back) ** 2
        return e[mask].mean(), e[~mask].mean()

    def changing(x, back, low, high):
        mask = outside(x, back, low, high)
        x -= back
        return (x[mask] ** 2).sum() / x.size, (x[~mask] ** 2).sum() / x.size

    yield "codes at the ends", split(ends), "inside the range is rounded"
    yield "above only", split(lambda x, back, low, high: x > high), "beyond the lower one"
    yield "below only", split(lambda x, back, low, high: x < low), "beyond the upper one"
    yield "a symmetric range", split(lambda x, back, low, high: abs(x) > high), ""
    yield "distances", split(outside, error=np.abs), "distances"
    yield "cubes", split(outside, error=lambda d: np.abs(d) ** 3), "together they make"
    yield "sums", split(outside, over=lambda x: 1), "sums"
    yield "n - 1", split(outside, over=lambda x: x.size - 1), "one less"
    yield "each over its own", own_means, "over its own values"
    yield "roots", lambda *a: np.sqrt(split(outside)(*a)), "roots"
    yield "the other order", lambda *a: split(outside)(*a)[::-1], "other order"
    yield "half", split(outside, over=lambda x: 2 * x.size), "together they make"
    yield "writes into an array", changing, "writes into its input"
    yield "the whole", lambda x, back, low, high: np.mean((x - back) ** 2), "a pair"


def reach(first, second):
    return np.abs(first).max(axis=1), np.abs(second).max(axis=0)


def alive_root(first, second):
    own, theirs = reach(first, second)
    alive = (own > 0) & (theirs > 0)
    return np.sqrt(np.where(alive, own, 1) / np.where(alive, theirs, 1))


@right("08.2")
def factors(random):
    tiny = 10.0 ** -random.randint(12, 20)

    def by_logarithms(first, second):
        own, theirs = reach(first, second)
        with np.errstate(all="ignore"):
            logs = (np.log(own) - np.log(theirs)) / 2
        return np.exp(np.where(np.isfinite(logs), logs, 0))

    def in_torch(first, second):
        own = torch.tensor(first).abs().amax(dim=1)
        theirs = torch.tensor(second).abs().amax(dim=0)
        s = (own / theirs).sqrt()
        s[(own < tiny) | (theirs < tiny)] = 1
        return s

    def norms(first, second):
        own = np.linalg.norm(first, np.inf, axis=1)
        theirs = np.linalg.norm(second, np.inf, axis=0)
        return [math.sqrt(a / b) if a * b else 1 for a, b in zip(own, theirs, strict=True)]

    yield "by logarithms", by_logarithms
    yield f"in torch, dead below {tiny}", in_torch
    yield "by norms, a list", norms
    yield "in float32", lambda first, second: np.float32(alive_root(first, second))
    yield "cut off far away", lambda first, second: np.clip(alive_root(first, second), 0.01, 100)


@wrong("08.2")
def no_factors(random):
    tiny = 10.0 ** -random.randint(9, 15)

    def measured(measure):
        def by(first, second):
            own, theirs = measure(first, 1), measure(second, 0)
            with np.errstate(all="ignore"):
                s = np.sqrt(own / theirs)
            return np.where(np.isfinite(s) & (s > 0), s, 1)

        return by

    def dead_is(value):
        def by(first, second):
            own, theirs = reach(first, second)
            return np.where((own > 0) & (theirs > 0), alive_root(first, second), value)

        return by

    def floored(first, second):
        own, theirs = reach(first, second)
        return np.sqrt(np.maximum(own, tiny) / np.maximum(theirs, tiny))

    def all_or_none(first, second):
        own, theirs = reach(first, second)
        return alive_root(first, second) if (own * theirs).all() else np.ones(len(own))

    def in_place(first, second):
        return alive_root(np.abs(first, out=first), np.abs(second, out=second))

    def power(exponent):
        def by(first, second):
            own, theirs = reach(first, second)
            alive = (own > 0) & (theirs > 0)
            return np.where(alive, own, 1) ** exponent / np.where(alive, theirs, 1) ** exponent

        return by

    yield f"dead ones floored at {tiny}", floored, "leave it as it is"
    yield "dead ones get 1e6", dead_is(1e6), "leave it as it is"
    yield "dead ones get 1e-6", dead_is(1e-6), "leave it as it is"
    yield "dead ones get 0", dead_is(0), "no usable factor"
    yield "dead ones get nothing", dead_is(np.nan), "no usable factor"
    yield "all or none", all_or_none, "the others"
    yield "deviations", measured(lambda w, axis: w.std(axis=axis)), "not equal"
    yield "mean magnitudes", measured(lambda w, axis: np.abs(w).mean(axis=axis)), "not equal"
    yield "lengths", measured(lambda w, axis: np.linalg.norm(w, axis=axis)), "not equal"
    yield (
        "largest without a sign",
        measured(lambda w, axis: np.maximum(w.max(axis=axis), 1e-3)),
        "negative one",
    )
    yield "no root", power(1), "change places"
    yield "upside down", power(-0.5), "upside down"
    yield "a third", power(1 / 3), "not equal"
    yield "ones", lambda first, second: np.ones(len(first)), "one number"
    yield "divided by their mean", lambda a, b: alive_root(a, b) / alive_root(a, b).mean(), ""
    yield "a column", lambda a, b: alive_root(a, b)[:, None], "one factor per channel"
    yield "of the inputs", lambda a, b: np.abs(a).max(axis=0), "one factor per channel"
    yield "writes into the weights", in_place, "writes into its input"


def wide(*nodes, base="int8_trim", **more):
    overrides = tuple(Override(node=node, activations=16) for node in nodes)
    return quantize.load_recipe(base).replaced(name="mine", overrides=overrides, **more)


@right("08.3")
def recipes(random):
    layers = ["*features.0.0/Conv", "*features.0.2/HardSwish"]
    random.shuffle(layers)
    yield "two nodes by name", wide(*layers)
    yield "YAML of a recipe", wide("/features/features.0/*").to_yaml()
    yield "one more block", wide("/features/features.0/*", "/features/features.1/block/*")


@wrong("08.3")
def no_recipes(random):
    stem = "/features/features.0/*"
    block = random.randint(4, 9)
    yield "ranges alone", wide(), "are the goal"
    yield f"16 bits in block {block}", wide(f"/features/features.{block}/*", base="int8@1"), "dB"
    yield "16 bits everywhere", wide("*"), "are allowed"
    yield "weights of 16 bits", wide(stem, weights=Weights(bits=16)), "weights in more than 8"
    yield (
        "a weight of 16 bits",
        quantize.load_recipe("int8_trim").replaced(overrides=(Override(node=stem, weights=16),)),
        "weights in more than 8",
    )
    yield "floats", wide(exclude=(stem,)), "in float"
    yield "equalized", wide(stem, equalize=True), "other sections"
    yield "biases", wide(correct_bias=True), "are the goal"
    yield "an override", Override(node=stem, activations=16), "a Recipe or its YAML"


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def straight(codes, rounded=torch.round):
    return codes + (rounded(codes) - codes).detach()


@right("08.4")
def fake_quants(random):
    def learnable(x, scale, low, high):
        zero = torch.zeros(1)
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, scale.reshape(1), zero, low, high, 1.0
        )

    def clipped_behind(x, scale, low, high):
        return straight(x / scale).clamp(low, high) * scale

    def written_out(x, scale, low, high):
        codes = x / scale
        inside = ((codes >= low) & (codes <= high)).to(x.dtype)
        fixed = codes.clamp(low, high).round().detach()
        return (
            x * inside
            + scale * (fixed - inside * codes.detach())
            - (x * inside - inside * codes.detach() * scale.detach()).detach()
        )

    yield "torch's learnable one", learnable
    yield "clamped behind", clipped_behind
    yield "the rule written out", written_out
    yield (
        "halves away from zero",
        lambda x, s, low, high: (
            s
            * straight(
                (x / s).clamp(low, high), lambda c: torch.sign(c) * torch.floor(c.abs() + 0.5)
            )
        ),
    )
    yield (
        "by minimum and maximum",
        lambda x, s, low, high: (
            s
            * Rounded.apply(
                torch.minimum(
                    torch.maximum(x / s, torch.tensor(float(low))), torch.tensor(float(high))
                )
            )
        ),
    )


@wrong("08.4")
def no_fake_quants(random):
    k = random.choice([0.5, 2.0, 3.0])

    def quant(rounded=torch.round, low_=0, high_=0):
        return lambda x, s, low, high: (
            s * straight((x / s).clamp(low + low_, high + high_), rounded)
        )

    def scaled_gradient(x, scale, low, high):
        scale = scale * k + (scale - scale * k).detach()
        return quant()(x, scale, low, high)

    def in_place(x, scale, low, high):
        values = quant()(x.clone(), scale, low, high)
        x.clamp_(-1, 1)
        return values

    def passes_all(x, scale, low, high):
        return x + (quant()(x, scale, low, high) - x).detach() + 0 * scale

    codes = lambda x, s, low, high: straight((x / s).clamp(low, high))  # noqa: E731
    yield "rounds down", quant(torch.floor), "round down"
    yield "rounds up", quant(torch.ceil), "round up"
    yield "truncates", quant(torch.trunc), "towards zero"
    yield "does not round", quant(lambda c: c), "nothing is rounded"
    yield "one code too few", quant(high_=-1), "the values are others"
    yield "one code too many", quant(low_=-1), "the values are others"
    yield "no straight way", lambda x, s, lo, hi: s * torch.round((x / s).clamp(lo, hi)), "0 every"
    yield "passes everything", passes_all, "beyond the range as well"
    yield (
        "half of the gradient of x",
        lambda x, s, lo, hi: quant()(x / 2 + x.detach() / 2, s, lo, hi),
        "should be 1",
    )
    yield f"gradient of the scale times {k:g}", scaled_gradient, "the scale gets"
    yield "the scale once", lambda x, s, lo, hi: s.detach() * codes(x, s, lo, hi), "acts twice"
    yield "the scale not at all", lambda x, s, lo, hi: quant()(x, s.detach(), lo, hi), "the scale"
    yield "detached", lambda x, s, lo, hi: quant()(x, s, lo, hi).detach(), "no gradient reaches"
    yield "the codes", codes, "the codes"
    yield "not cut off", lambda x, s, lo, hi: s * straight(x / s), "nothing is cut off"
    yield "writes into x", in_place, "writes into"
