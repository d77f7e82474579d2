"""Answers to 01.1: multiply-accumulates of a convolution."""

import itertools
from fractions import Fraction

import numpy as np
import torch

from answers import right, wrong


@right("01.1")
def counts(random):
    def weights_of_the_layer(height, width, inputs, outputs, kernel, groups):
        layer = torch.nn.Conv2d(inputs, outputs, kernel, groups=groups, bias=False, device="meta")
        return layer.weight.numel() * height * width

    def loop(height, width, inputs, outputs, kernel, groups):
        per_place = 0
        for _ in itertools.product(range(outputs), range(inputs // groups)):
            per_place += kernel * kernel
        return per_place * height * width

    def group_by_group(height, width, inputs, outputs, kernel, groups):
        one = (inputs // groups) * (outputs // groups) * kernel**2
        return sum(one * height * width for _ in range(groups))

    yield "by a layer's weights", weights_of_the_layer
    yield "by a loop", loop
    yield "group by group", group_by_group
    yield "a product in numpy", lambda h, w, i, o, k, g: np.prod([h, w, o, i // g, k, k])
    yield "a tensor", lambda h, w, i, o, k, g: torch.tensor(h * w * o * k * k * i / g)
    yield "a fraction", lambda h, w, i, o, k, g: Fraction(h * w * o * i * k * k, g)


@wrong("01.1")
def miscounts(random):
    more = random.randint(1, 4)
    mac = lambda h, w, i, o, k, g: h * w * o * (i // g) * k * k  # noqa: E731
    yield "height twice", lambda h, w, i, o, k, g: mac(h, h, i, o, k, g), "map is square"
    yield "width twice", lambda h, w, i, o, k, g: mac(w, w, i, o, k, g), "map is square"
    yield "operations", lambda h, w, i, o, k, g: 2 * mac(h, w, i, o, k, g), "twice too many"
    yield "weights", lambda h, w, i, o, k, g: mac(1, 1, i, o, k, g), "number of weights"
    yield "all inputs", lambda h, w, i, o, k, g: mac(h, w, i, o, k, 1), "right for groups=1"
    yield "groups twice", lambda h, w, i, o, k, g: mac(h, w, i, o // g, k, g), "count twice"
    yield "one side of the kernel", lambda h, w, i, o, k, g: mac(h, w, i, o, k, g) // k, "square"
    yield "twice the side", lambda h, w, i, o, k, g: mac(h, w, i, o, k, g) // k * 2, "two times"
    yield "one output channel", lambda h, w, i, o, k, g: mac(h, w, i, 1, k, g), "one output"
    yield "one input channel", lambda h, w, i, o, k, g: mac(h, w, 1, o, k, 1), "one input"
    yield "with a bias", lambda h, w, i, o, k, g: mac(h, w, i, o, k, g) + h * w * o, "bias"
    yield f"{more} off", lambda h, w, i, o, k, g: mac(h, w, i, o, k, g) + more, "too many"
    yield "no padding", lambda h, w, i, o, k, g: mac(max(h - k + 1, 1), w, i, o, k, g), "too few"
    yield "groups multiplied", lambda h, w, i, o, k, g: mac(h, w, i * g * g, o, k, g), ""
