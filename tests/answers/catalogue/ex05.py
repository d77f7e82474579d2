"""Catalogued answers to the exercises of notebook 05."""

import numpy as np

from answers.catalogue import right, wrong
from labutils import metrics

# --- 05.1 ----------------------------------------------------------------------------------------


@right("05.1")
def affine(low, high):
    ends = np.array([min(low, 0), max(high, 0)])
    scale = np.ptp(ends) / 255
    return scale, np.rint(-ends[0] / scale).astype(np.uint8)


@right("05.1")
def affine(low, high):
    if low > 0:
        low = 0
    if high < 0:
        high = 0
    scale = (high - low) / (2**8 - 1)
    return [scale, int(0.5 - low / scale)]


@wrong(
    "05.1",
    "count the steps: 256 values have fewer gaps between them.",
)
def affine(low, high):
    scale = (high - low) / 256
    return scale, round(-low / scale)


@wrong(
    "05.1",
    "for the range 1.5 to 5.1 zero itself has no code. Padding and ReLU make zeros, so every "
    "range is widened until it contains zero.",
)
def affine(low, high):
    scale = (high - low) / 255
    return scale, round(-low / scale)


@wrong(
    "05.1",
    "for the range -1 to 3 the zero point is -64; as an uint8 code it cannot be negative.",
)
def affine(low, high):
    scale = (high - low) / 255
    return scale, round(low / scale)


@wrong(
    "05.1",
    "for the range -1 to 3 the zero point is 63.75; a code is a whole number.",
)
def affine(low, high):
    scale = (high - low) / 255
    return scale, -low / scale


@wrong(
    "05.1",
    "for the range -1 to 3 you centre on zero: symmetric, which wastes codes.",
)
def affine(low, high):
    return 2 * max(abs(low), abs(high)) / 255, 128


@wrong(
    "05.1",
    "a pair (scale, zero point) is expected, but this is 0.01568627450980392.",
)
def affine(low, high):
    return (high - low) / 255


# --- 05.2 ----------------------------------------------------------------------------------------


@right("05.2")
def quantize_dequantize(x, scale, zero_point):
    codes = [min(max(round(v / scale) + zero_point, 0), 255) for v in x.tolist()]
    return [(code - zero_point) * scale for code in codes]


@right("05.2")
def quantize_dequantize(x, scale, zero_point):
    codes = np.rint(x / scale + zero_point).clip(0, 255).astype(np.uint8)
    return scale * (codes.astype(np.float32) - np.float32(zero_point))


@wrong(
    "05.2",
    "values beyond the range come back as they were; 8 bits have no codes there.",
)
def quantize_dequantize(x, scale, zero_point):
    return (np.round(x / scale) + zero_point - zero_point) * scale


@wrong(
    "05.2",
    "you cut off the fraction: 0.7 of a step goes down, and the error doubles.",
)
def quantize_dequantize(x, scale, zero_point):
    codes = np.clip(np.floor(x / scale + 1e-9) + zero_point, 0, 255)
    return (codes - zero_point) * scale


@wrong(
    "05.2",
    "you round up, always: 0.3 of a step becomes a whole one, an error of 0.7.",
)
def quantize_dequantize(x, scale, zero_point):
    codes = np.clip(np.ceil(x / scale - 1e-9) + zero_point, 0, 255)
    return (codes - zero_point) * scale


@wrong(
    "05.2",
    "your function writes into its input; everything else that reads that array gets wrong values.",
)
def quantize_dequantize(x, scale, zero_point):
    x /= scale
    codes = np.clip(np.round(x) + zero_point, 0, 255)
    return (codes - zero_point) * scale


@wrong(
    "05.2",
    "the zero point goes in, and does not come out again on the way back.",
)
def quantize_dequantize(x, scale, zero_point):
    return np.clip(np.round(x / scale) + zero_point, 0, 255) * scale


@wrong(
    "05.2",
    "those are the codes. Turn them back into values: that is the other half.",
)
def quantize_dequantize(x, scale, zero_point):
    return np.clip(np.round(x / scale) + zero_point, 0, 255)


@wrong(
    "05.2",
    "-20 became 5.6: the code ran over the end of the 8 bits and came back at the other. Cut "
    "off first, then convert.",
)
def quantize_dequantize(x, scale, zero_point):
    codes = (np.round(x / scale) + zero_point).astype(np.int64) % 256
    return (codes - zero_point) * scale


@wrong(
    "05.2",
    "the codes are right, but those below the zero point come back 256 steps too high: uint8 "
    "has no negative numbers, so mind the type in which you subtract.",
)
def quantize_dequantize(x, scale, zero_point):
    q = np.clip(np.round(x / scale) + zero_point, 0, 255).astype(np.uint8)
    return scale * (q - zero_point)


@wrong(
    "05.2",
    "you cut off at -128 and 127, the ends of signed bytes; these are unsigned.",
)
def quantize_dequantize(x, scale, zero_point):
    codes = np.clip(np.round(x / scale) + zero_point, -128, 127)
    return (codes - zero_point) * scale


@wrong(
    "05.2",
    "nothing is rounded: what comes out has more values than 8 bits have codes.",
)
def quantize_dequantize(x, scale, zero_point):
    return np.clip(x, -zero_point * scale, (255 - zero_point) * scale)


# --- 05.3 ----------------------------------------------------------------------------------------


@right("05.3")
def worst_layers(layers, k):
    noise = lambda row: np.mean((row[1] - row[2]) ** 2) / np.mean(row[1] ** 2)
    return [row[0] for row in sorted(layers, key=noise, reverse=True)[:k]]


@right("05.3")
def worst_layers(layers, k):
    names, x, q = zip(*layers)
    ratio = [np.linalg.norm(a) / np.linalg.norm(a - b) for a, b in zip(x, q)]
    return np.array(names)[np.argsort(ratio)][:k]


@wrong(
    "05.3",
    "those have the largest errors, and the largest values too. Noise hurts in relation to the "
    "signal.",
)
def worst_layers(layers, k):
    errors = {name: -abs(x - q).max() for name, x, q in layers}
    return sorted(errors, key=errors.get)[:k]


@wrong(
    "05.3",
    "a cosine does not see a factor: one layer comes back at another size, and all its values "
    "are wrong.",
)
def worst_layers(layers, k):
    cosine = {name: metrics.cosine(x, q) for name, x, q in layers}
    return sorted(cosine, key=cosine.get)[:k]


@wrong(
    "05.3",
    "those are the largest in the mean of distances. Power goes with the square: a few large "
    "errors weigh more than many small ones.",
)
def worst_layers(layers, k):
    errors = {name: -abs(x - q).mean() / abs(x).mean() for name, x, q in layers}
    return sorted(errors, key=errors.get)[:k]


@wrong(
    "05.3",
    "those are the layers that suffer least.",
)
def worst_layers(layers, k):
    sqnr = {name: metrics.sqnr_db(x, q) for name, x, q in layers}
    return sorted(sqnr, key=sqnr.get, reverse=True)[:k]


@wrong(
    "05.3",
    "2 layers are expected, but you name 7.",
)
def worst_layers(layers, k):
    sqnr = {name: metrics.sqnr_db(x, q) for name, x, q in layers}
    return sorted(sqnr, key=sqnr.get)


@wrong(
    "05.3",
    "the right layers, in another order than worst first.",
)
def worst_layers(layers, k):
    sqnr = {name: metrics.sqnr_db(x, q) for name, x, q in layers}
    return sorted(sqnr, key=sqnr.get)[:k][::-1]


@wrong(
    "05.3",
    "not these: some other layer has a lower signal to noise ratio.",
)
def worst_layers(layers, k):
    return [name for name, _, _ in layers[:k]]
