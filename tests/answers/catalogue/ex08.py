"""Catalogued answers to the exercises of notebook 08."""

import numpy as np
import torch

from answers.catalogue import right, right_value, wrong, wrong_value
from labutils import quantize
from labutils.quantize import Override

# --- 08.1 ----------------------------------------------------------------------------------------


@right("08.1")
def two_errors(x, back, low, high):  # x before, back after quantization: arrays
    error = np.square(x - back)
    inside = (x >= low) & (x <= high)
    return (error * ~inside).mean(), (error * inside).mean()


@right("08.1")
def two_errors(x, back, low, high):  # x before, back after quantization: arrays
    clipping = rounding = 0.0
    for a, b in zip(x, back):
        if low <= a <= high:
            rounding += (a - b) ** 2 / len(x)
        else:
            clipping += (a - b) ** 2 / len(x)
    return clipping, rounding


@wrong(
    "08.1",
    "right values, in the other order: clipping comes first.",
)
def two_errors(x, back, low, high):  # x before, back after quantization: arrays
    gone = (x < low) | (x > high)
    e = (x - back) ** 2
    return e[~gone].sum() / x.size, e[gone].sum() / x.size


@wrong(
    "08.1",
    "each of your means is over its own values, so their sum is not the error of the tensor. "
    "Few are clipped: they must not count as if they were all.",
)
def two_errors(x, back, low, high):  # x before, back after quantization: arrays
    gone = (x < low) | (x > high)
    e = (x - back) ** 2
    return e[gone].mean(), e[~gone].mean()


@wrong(
    "08.1",
    "a range has two ends, and values lie beyond the lower one as well.",
)
def two_errors(x, back, low, high):  # x before, back after quantization: arrays
    gone = x > high
    e = (x - back) ** 2
    return e[gone].sum() / x.size, e[~gone].sum() / x.size


@wrong(
    "08.1",
    "those are distances. Squared error counts a far one more than many near.",
)
def two_errors(x, back, low, high):  # x before, back after quantization: arrays
    gone = (x < low) | (x > high)
    e = abs(x - back)
    return e[gone].sum() / x.size, e[~gone].sum() / x.size


@wrong(
    "08.1",
    "those are sums: with twice the values they double. The means are expected.",
)
def two_errors(x, back, low, high):  # x before, back after quantization: arrays
    gone = (x < low) | (x > high)
    e = (x - back) ** 2
    return e[gone].sum(), e[~gone].sum()


@wrong(
    "08.1",
    "the sum is right, and it is divided between the two at another place: a value that lies "
    "inside the range is rounded, however near to the end.",
)
def two_errors(x, back, low, high):  # x before, back after quantization: arrays
    gone = abs(x) > high
    e = (x - back) ** 2
    return e[gone].sum() / x.size, e[~gone].sum() / x.size


@wrong(
    "08.1",
    "a pair (clipping, rounding) is expected, but this is 12.4.",
)
def two_errors(x, back, low, high):  # x before, back after quantization: arrays
    return round(float(((x - back) ** 2).mean()), 1)


# --- 08.2 ----------------------------------------------------------------------------------------


@right("08.2")
def factors(first, second):  # (channels, m), (n, channels)
    own, theirs = np.abs(first).max(axis=1), np.abs(second).max(axis=0)
    alive = (own * theirs) > 0
    s = np.ones(len(own))
    s[alive] = (own[alive] / theirs[alive]) ** 0.5
    return s


@right("08.2")
def factors(first, second):  # (channels, m), (n, channels)
    s = []
    for row, column in zip(first, second.T):
        a, b = abs(row).max(), abs(column).max()
        s.append((a / b) ** 0.5 if a and b else 1.0)
    return s


@wrong(
    "08.2",
    "with these factors the two layers change places: what was uneven still is.",
)
def factors(first, second):  # (channels, m), (n, channels)
    own, theirs = np.abs(first).max(axis=1), np.abs(second).max(axis=0)
    return own / theirs


@wrong(
    "08.2",
    "upside down: the channels that were large get larger.",
)
def factors(first, second):  # (channels, m), (n, channels)
    own, theirs = np.abs(first).max(axis=1), np.abs(second).max(axis=0)
    return np.sqrt(theirs / own)


@wrong(
    "08.2",
    "the first layer is even now, and all that was uneven has moved into the second.",
)
def factors(first, second):  # (channels, m), (n, channels)
    own, theirs = np.abs(first).max(axis=1), np.abs(second).max(axis=0)
    return own


@wrong(
    "08.2",
    "one number for all channels changes nothing between them.",
)
def factors(first, second):  # (channels, m), (n, channels)
    own, theirs = np.abs(first).max(axis=1), np.abs(second).max(axis=0)
    return np.full(len(own), np.sqrt(own.max() / theirs.max()))


@wrong(
    "08.2",
    "the largest weight of a channel may be a negative one.",
)
def factors(first, second):  # (channels, m), (n, channels)
    return np.sqrt(first.max(axis=1) / second.max(axis=0))


@wrong(
    "08.2",
    "one factor per channel is expected, an array of the shape (5,), and yours has (7,).",
)
def factors(first, second):  # (channels, m), (n, channels)
    return np.sqrt(abs(first).max(axis=0) / abs(second).max(axis=1)[0])


@wrong(
    "08.2",
    "a channel whose weights are all 0 gets no usable factor: dead filters are common, and one "
    "of them would spoil the layer. Leave it as it is.",
)
def factors(first, second):  # (channels, m), (n, channels)
    own, theirs = np.abs(first).max(axis=1), np.abs(second).max(axis=0)
    return np.sqrt(own / theirs)


@wrong(
    "08.2",
    "a channel whose weights are all 0 in one of the layers gets the factor 3.63e-06. There is "
    "nothing to equalize there: leave it as it is.",
)
def factors(first, second):  # (channels, m), (n, channels)
    own, theirs = np.abs(first).max(axis=1), np.abs(second).max(axis=0)
    return np.sqrt(np.maximum(own, 1e-12) / np.maximum(theirs, 1e-12))


@wrong(
    "08.2",
    "a factor is not positive; a ReLU between the layers would see other signs, and the network"
    " would compute something else.",
)
def factors(first, second):  # (channels, m), (n, channels)
    return first.sum(axis=1)


@wrong(
    "08.2",
    "channel 0 reaches 0.45 in the first layer then, and 0.615 in the second: not equal.",
)
def factors(first, second):  # (channels, m), (n, channels)
    return np.sqrt(first.std(axis=1) / second.std(axis=0))


# --- 08.3 ----------------------------------------------------------------------------------------


@right_value("08.3")
def _():
    wide = (Override(node="/features/features.0/*", activations=16),)
    return quantize.load_recipe("int8_trim").replaced(name="mine", overrides=wide)


@right_value("08.3")
def _():
    return """
name: mine
calibration:
  outliers: 0.05
overrides:
- node: "*features.0.0/Conv"
  activations: 16
- node: "*features.0.2/HardSwish"
  activations: 16
"""


@wrong_value(
    "08.3",
    "about 12 dB with 0 nodes at 16 bits; 17.5 dB are the goal. Read the reasons in the table: "
    "some want another range, others more codes.",
)
def _():
    return quantize.load_recipe("int8@1")


@wrong_value(
    "08.3",
    "about 16 dB with 0 nodes at 16 bits; 17.5 dB are the goal. Read the reasons in the table: "
    "some want another range, others more codes.",
)
def _():
    return "int8_trim"


@wrong_value(
    "08.3",
    "your 16-bit nodes stand alone: each tensor they read comes from 8 bits, and each they "
    "write is converted back at once. About 12 dB, as without them. A tensor keeps 16 bits "
    "between two nodes that both have them.",
)
def _():
    wide = (Override(node="*features.11/block/block.3/block.3.0/Conv", activations=16),)
    return quantize.load_recipe("int8@1").replaced(name="mine", overrides=wide)


@wrong_value(
    "08.3",
    "100 % of the multiply-accumulates would compute on 16-bit activations; 15 % are allowed.",
)
def _():
    return quantize.load_recipe("a16w8")


@wrong_value(
    "08.3",
    "19 % of the multiply-accumulates would compute on 16-bit activations; 15 % are allowed.",
)
def _():
    wide = (
        Override(node="/features/features.0/*", activations=16),
        Override(node="/features/features.12/*", activations=16),
        Override(node="*features.11/block/block.3/*", activations=16),
    )
    return quantize.load_recipe("int8@1").replaced(name="mine", overrides=wide)


@wrong_value(
    "08.3",
    "your recipe leaves nodes in float, and the HTP computes int8 networks in integers: it may "
    "refuse a float island. Give those nodes more bits instead.",
)
def _():
    return quantize.load_recipe("int8@1").replaced(exclude=("/features/features.0/*",))


@wrong_value(
    "08.3",
    "this exercise is about ranges and activation bits; training and corrections of the weights"
    " come in other sections.",
)
def _():
    return quantize.load_recipe("int8@1").replaced(equalize=True)


@wrong_value(
    "08.3",
    "the recipe cannot be read: UsageError: your recipe, line 4: calibration.outlier: unknown "
    "key; did you mean outliers?",
)
def _():
    return """
name: mine
calibration:
  outlier: 0.05
"""


@wrong_value(
    "08.3",
    "a Recipe or its YAML is expected, but this is {'activations': 16, 'node': "
    "'/features/features.0/*'}.",
)
def _():
    return {"node": "/features/features.0/*", "activations": 16}


# --- 08.4 ----------------------------------------------------------------------------------------


@right_value("08.4")
def _():
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    def fake_quant(x, scale, low, high):  # low, high: the first and the last code
        return Straight.apply((x / scale).clamp(low, high)) * scale

    return fake_quant


@right("08.4")
def fake_quant(x, scale, low, high):  # low, high: the first and the last code
    c = torch.clamp(x / scale, low, high)
    return scale * (c + torch.round(c).detach() - c.detach())


@wrong(
    "08.4",
    "right values, and the gradient of x is 0 everywhere: a staircase is flat. Nothing would be"
    " trained.",
)
def fake_quant(x, scale, low, high):  # low, high: the first and the last code
    codes = (x / scale).clamp(low, high)
    return codes.round() * scale.detach() + 0 * x


@wrong(
    "08.4",
    "the gradient passes beyond the range as well. There the output does not depend on x: the "
    "optimizer would push values on that are cut off already.",
)
def fake_quant(x, scale, low, high):  # low, high: the first and the last code
    codes = (x / scale).clamp(low, high)
    return x + (codes.round() * scale - x).detach()


@wrong(
    "08.4",
    "x gets its gradient, and the scale none: it could not be learned.",
)
def fake_quant(x, scale, low, high):  # low, high: the first and the last code
    scale = scale.detach()
    codes = (x / scale).clamp(low, high)
    return (codes + (codes.round() - codes).detach()) * scale


@wrong(
    "08.4",
    "x gets its gradient; the scale gets -0.6 here. It acts twice: it divides before the "
    "rounding and multiplies behind it, which makes -4.6.",
)
def fake_quant(x, scale, low, high):  # low, high: the first and the last code
    codes = (x / scale).clamp(low, high)
    straight = codes + (codes.round() - codes).detach()
    return straight * scale.detach()


@wrong(
    "08.4",
    "right values, and no gradient reaches anything: detach only the difference.",
)
def fake_quant(x, scale, low, high):  # low, high: the first and the last code
    codes = (x / scale).clamp(low, high)
    return (codes.round() * scale).detach()


@wrong(
    "08.4",
    "those are the codes; the network continues with values.",
)
def fake_quant(x, scale, low, high):  # low, high: the first and the last code
    codes = (x / scale).clamp(low, high)
    return codes + (codes.round() - codes).detach()


@wrong(
    "08.4",
    "nothing is cut off: there are no codes below `low` or above `high`.",
)
def fake_quant(x, scale, low, high):  # low, high: the first and the last code
    codes = x / scale
    return (codes + (codes.round() - codes).detach()) * scale


@wrong(
    "08.4",
    "you round down, always: x = -0.7 became -1, and -0.5 is nearer.",
)
def fake_quant(x, scale, low, high):  # low, high: the first and the last code
    codes = (x / scale).clamp(low, high)
    return (codes + (codes.floor() - codes).detach()) * scale
