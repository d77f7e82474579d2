"""Answers to the exercises of 11: kernels, padding, a BatchNorm, a kind of layers."""

import numpy as np
import torch
from torch import nn

from answers import right, wrong
from labutils.representation import Operator


@right("11.1")
def kernel(random):
    def by_einsum(weights, depthwise):
        return np.einsum("oihw->hwoi" if depthwise else "oihw->hwio", weights)

    def by_torch(weights, depthwise):
        axes = (2, 3, 0, 1) if depthwise else (2, 3, 1, 0)
        return torch.from_numpy(weights).permute(axes)

    def by_loop(weights, depthwise):
        outputs, inputs, height, width = weights.shape
        made = np.empty((height, width, inputs, outputs))
        for o in range(outputs):
            for i in range(inputs):
                made[:, :, i, o] = weights[o, i]
        return made.reshape(height, width, outputs, 1) if depthwise else made

    yield "einsum", by_einsum
    yield "permute", by_torch
    yield "a loop", by_loop


@wrong("11.1")
def no_kernel(random):
    k = random.randint(1, 5)
    good = {True: (2, 3, 0, 1), False: (2, 3, 1, 0)}
    yield "always ordinary", lambda w, d: w.transpose(good[False]), "one input and 6 outputs"
    yield "always depthwise", lambda w, d: w.transpose(good[True]), "outputs come before inputs"
    yield "the other way round", lambda w, d: w.transpose(good[not d]), "before inputs"
    yield "as it was", lambda w, d: w, "as PyTorch has it"
    yield "reversed", lambda w, d: w.T, "changed places"
    yield (
        "cut again",
        lambda w, d: w.reshape([w.shape[i] for i in good[d]]),
        "in the old order",
    )
    yield (
        f"times {k + 1}",
        lambda w, d: (k + 1) * w.transpose(good[d]),
        "not where they belong",
    )
    yield "flat", lambda w, d: w.ravel(), "in the old order"
    yield "three axes", lambda w, d: w.transpose(good[d])[..., 0], "Height and width come first"
    yield (
        "flipped",
        lambda w, d: w.transpose(good[d])[::-1, ::-1],
        "not where they belong",
    )


@right("11.2")
def padding(random):
    def by_windows(size, kernel, stride):
        starts = range(0, size, stride)
        total = max(starts[-1] + kernel - size, 0)
        return total // 2, total - total // 2

    def by_arrays(size, kernel, stride):
        total = np.clip((np.ceil(size / stride) - 1) * stride + kernel - size, 0, None)
        return np.array([np.floor(total / 2), np.ceil(total / 2)])

    def by_cases(size, kernel, stride):
        rest = size % stride
        total = max(kernel - stride, 0) if rest == 0 else max(kernel - rest, 0)
        before = (total - total % 2) // 2
        return before, before + total % 2

    yield "the last window", by_windows
    yield "arrays", by_arrays
    yield "by the rest", by_cases


@wrong("11.2")
def no_padding(random):
    k = random.randint(1, 4)

    def total(size, kernel, stride):
        return (-(-size // stride) - 1) * stride + kernel - size

    yield "symmetric", lambda n, kernel, s: (kernel // 2, kernel // 2), "as PyTorch does"
    yield (
        "the larger part first",
        lambda *a: (max(total(*a), 0) - max(total(*a), 0) // 2, max(total(*a), 0) // 2),
        "comes after",
    )
    yield "all before", lambda *a: (max(total(*a), 0), 0), "comes after"
    yield "may be negative", lambda *a: (total(*a) // 2, total(*a) - total(*a) // 2), "negative"
    yield "none", lambda *a: (0, 0), "makes"
    yield f"{k + 4} more", lambda *a: (0, max(total(*a), 0) + k + 4), "makes"
    yield "one number", lambda *a: max(total(*a), 0), "a pair (before, after)"
    yield "halves", lambda *a: (max(total(*a), 0) / 2, max(total(*a), 0) / 2), "a number of zeros"
    yield "without the stride", lambda n, kernel, s: ((kernel - 1) // 2, kernel // 2), "PyTorch"


@right("11.3")
def norm(random):
    def by_gamma(norm, epsilon):
        roots = [(norm["running_var"] + e) ** 0.5 for e in (epsilon, norm["eps"])]
        gamma = norm["weight"] * roots[0] / roots[1]
        return np.stack([gamma, norm["bias"], norm["running_mean"], norm["running_var"]])

    def by_line(norm, epsilon):
        slope = norm["weight"] / np.sqrt(norm["running_var"] + norm["eps"])
        offset = norm["bias"] - slope * norm["running_mean"]
        zero = np.zeros(len(slope))
        return slope * np.sqrt(1 + epsilon), offset, zero, zero + 1

    def by_torch(norm, epsilon):
        arrays = {n: torch.as_tensor(v) for n, v in norm.items() if n != "eps"}
        variance = arrays["running_var"]
        wider = ((variance + epsilon) / (variance + norm["eps"])).sqrt()
        return arrays["weight"] * wider, arrays["bias"], arrays["running_mean"], variance

    yield "two roots, one array", by_gamma
    yield "a straight line", by_line
    yield "tensors", by_torch


@wrong("11.3")
def no_norm(random):
    k = random.uniform(0.5, 2)

    def scaled(ratio):
        def copy(norm, epsilon):
            v = norm["running_var"]
            gamma = norm["weight"] * ratio(v, norm["eps"], epsilon)
            return gamma, norm["bias"], norm["running_mean"], v

        return copy

    def plus(norm, epsilon):
        v = norm["running_var"] + epsilon - norm["eps"]
        return norm["weight"], norm["bias"], norm["running_mean"], v

    def below(norm, epsilon):
        v = norm["running_var"] - 200 * epsilon
        return norm["weight"], norm["bias"], norm["running_mean"], v

    def swapped(norm, epsilon):
        gamma, beta, mean, v = scaled(lambda v, e, o: np.sqrt((v + o) / (v + e)))(norm, epsilon)
        return gamma, mean, beta, v

    yield "as it was", scaled(lambda v, e, o: 1), "fit a layer with the old epsilon"
    yield "upside down", scaled(lambda v, e, o: np.sqrt((v + e) / (v + o))), "too small"
    yield "no root", scaled(lambda v, e, o: (v + o) / (v + e)), "other values"
    yield "the epsilons alone", scaled(lambda v, e, o: np.sqrt(o / e)), "other values"
    yield "added instead", plus, "too small"
    yield "below zero", below, "nothing or less"
    yield "mean and beta", swapped, "in another order"
    yield f"a constant {k:.2f}", scaled(lambda v, e, o: 2 + k), "epsilon"
    yield "a dictionary's names", lambda norm, epsilon: list(norm)[:4], "not an array"


@right("11.4")
def kind(random):
    class ByMaximum(Operator):
        negative_slope: float = 0.01

        def torch(self):
            return nn.LeakyReLU(self.negative_slope)

        def keras(self, k, x):
            return k.ops.maximum(x, 0) + self.negative_slope * k.ops.minimum(x, 0)

    class ByModule(Operator):
        negative_slope: float = 0.01

        def torch(self):
            return _Leaky(self.negative_slope)

        def keras(self, k, x):
            return k.layers.ReLU(negative_slope=self.negative_slope)(x)

    class ByRelu(Operator):
        negative_slope: float = 0.01

        def torch(self):
            return nn.LeakyReLU(negative_slope=self.negative_slope)

        def keras(self, k, x):
            return k.ops.relu(x) - self.negative_slope * k.ops.relu(-x)

    yield "maximum and minimum", ByMaximum
    yield "a module of one's own", ByModule
    yield "two ReLUs", ByRelu


class _Leaky(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return torch.where(x > 0, x, self.slope * x)


@wrong("11.4")
def no_kind(random):
    k = random.uniform(0.4, 0.9)

    def made(torch_, keras_, **inside):
        names = {"torch": torch_, "keras": keras_, **inside}
        return type("LeakyReLU", (Operator,), names)

    field = {"__annotations__": {"negative_slope": float}, "negative_slope": 0.01}
    leaky = lambda self: nn.LeakyReLU(self.negative_slope)  # noqa: E731
    ours = lambda self, k, x: k.ops.leaky_relu(x, self.negative_slope)  # noqa: E731
    yield "no field", made(lambda self: nn.LeakyReLU(), ours, negative_slope=0.01), "has 0.01"
    yield "Keras's default", made(leaky, lambda self, k, x: k.ops.leaky_relu(x), **field), "has 0.2"
    yield (
        f"{k:.2f} in Keras",
        made(leaky, lambda self, kk, x: kk.ops.leaky_relu(x, k), **field),
        "in Keras",
    )
    yield (
        "the greater of both",
        made(leaky, lambda self, k, x: k.ops.maximum(x, 0), **field),
        "below zero your layer has",
    )
    yield (
        "above zero",
        made(leaky, lambda self, k, x: k.ops.where(x < 0, x, self.negative_slope * x), **field),
        "above zero stay",
    )
    yield (
        "another name",
        made(lambda self: nn.LeakyReLU(self.slope), ours, __annotations__={"slope": float}),
        "called slope",
    )
    yield (
        "a function",
        made(lambda self: nn.functional.leaky_relu, ours, **field),
        "a module of PyTorch",
    )
    yield "not a kind", nn.LeakyReLU, "inherits from Operator"
