"""Catalogued answers to the exercises of notebook 10."""

import numpy as np

from answers.catalogue import right, wrong

# --- 10.1 ----------------------------------------------------------------------------------------


@right("10.1")
def smallest_mask(weights, share):
    order = np.abs(weights).ravel().argsort(kind="stable")
    mask = np.ones(weights.size, bool)
    mask[order[: round(share * weights.size)]] = False
    return mask.reshape(weights.shape)


@right("10.1")
def smallest_mask(weights, share):
    pairs = sorted((abs(x), i) for i, x in enumerate(weights.ravel()))
    mask = [1] * weights.size
    for _, i in pairs[: round(share * weights.size)]:
        mask[i] = 0
    return np.array(mask).reshape(weights.shape)


@wrong(
    "10.1",
    "the most negative weights go. A weight of -3 does as much as one of 3.",
)
def smallest_mask(weights, share):
    mask = np.ones(weights.size)
    mask[np.argsort(weights, axis=None)[: round(share * weights.size)]] = 0
    return mask.reshape(weights.shape)


@wrong("10.1", "the largest weights go, and the smallest stay: the other way round.")
def smallest_mask(weights, share):
    mask = np.zeros(weights.size)
    order = np.argsort(np.abs(weights), axis=None)
    mask[order[: weights.size - round(share * weights.size)]] = 1
    return mask.reshape(weights.shape)


@wrong(
    "10.1",
    "where all weights have the same magnitude, 0 of 40 go instead of 16: a threshold cannot "
    "divide equals. Count places, not values.",
)
def smallest_mask(weights, share):
    ordered = np.sort(np.abs(weights), axis=None)
    return np.abs(weights) >= ordered[round(share * weights.size)]


@wrong("10.1", "a mask has ones where weights stay, zeros where they go, nothing else.")
def smallest_mask(weights, share):
    found = weights.ravel().copy()
    found[np.argsort(np.abs(found))[: round(share * found.size)]] = 0
    return found.reshape(weights.shape)


@wrong("10.1", "your function returned None (a forgotten return?).")
def smallest_mask(weights, share):
    np.argsort(np.abs(weights))


# --- 10.2 ----------------------------------------------------------------------------------------


@right("10.2")
def leave_alone(lost, saved):
    price = {group: lost[group] / saved[group] for group in lost}
    return max(price, key=price.get)


@right("10.2")
def leave_alone(lost, saved):
    costliest = None
    for group in lost:
        if costliest is None or lost[group] * saved[costliest] > lost[costliest] * saved[group]:
            costliest = group
    return costliest


@wrong(
    "10.2",
    "a loses 10 points and saves 12 % of the MACs: it loses most, and it saves a lot. What does "
    "each saved percent cost?",
)
def leave_alone(lost, saved):
    return max(lost, key=lost.get)


@wrong(
    "10.2",
    "b loses 2 points and saves 4 % of the MACs: that is the cheapest of them. Look for the "
    "costliest.",
)
def leave_alone(lost, saved):
    return min(lost, key=lambda group: lost[group] / saved[group])


@wrong(
    "10.2",
    "o loses 1.6 points and saves 0.9 % of the MACs: it saves least, and what does that cost?",
)
def leave_alone(lost, saved):
    return min(saved, key=saved.get)


@wrong("10.2", "the name of a group is expected, but this is 3.0.")
def leave_alone(lost, saved):
    return max(lost[group] / saved[group] for group in lost)


# --- 10.3 ----------------------------------------------------------------------------------------


@right("10.3")
def macs_left(layers, share):
    total = 0
    for i in range(len(layers)):
        kind, a, b, kernel, places = layers[i]
        if i != 0:
            a *= share
        if i != len(layers) - 1:
            b *= share
        total += places * kernel * kernel * b * (a if kind != "depthwise" else 1)
    return total


@right("10.3")
def macs_left(layers, share):
    kept = [layers[0][1]] + [share * layer[2] for layer in layers[:-1]] + [layers[-1][2]]
    total = 0.0
    for i, (kind, _, _, kernel, places) in enumerate(layers):
        reads = kept[i] if kind == "conv" else 1
        total += reads * kept[i + 1] * kernel**2 * places
    return total


@wrong(
    "10.3",
    "a block, 0.5 of the channels: you say 31,804 MACs: that is the square for every layer. Which "
    "layers lose less?",
)
def macs_left(layers, share):
    total = 0
    for kind, a, b, kernel, places in layers:
        total += places * kernel**2 * b * (1 if kind == "depthwise" else a)
    return share**2 * total


@wrong(
    "10.3",
    "a block, 0.5 of the channels: you say 34,108 MACs: the picture and the classes keep their "
    "channels.",
)
def macs_left(layers, share):
    total = 0
    for kind, a, b, kernel, places in layers:
        total += places * kernel**2 * b * share * (1 if kind == "depthwise" else a * share)
    return total


@wrong(
    "10.3",
    "a block, 1 of the channels: you say 707,824 MACs. In a depthwise layer each channel reads "
    "itself alone.",
)
def macs_left(layers, share):
    total = 0
    for i, (kind, a, b, kernel, places) in enumerate(layers):
        a, b = a * (share if i else 1), b * (share if i < len(layers) - 1 else 1)
        total += places * kernel**2 * a * b
    return total


# --- 10.4 ----------------------------------------------------------------------------------------


@right("10.4")
def zero_n_of_m(weights, n, m):
    found = np.array(weights)
    for row in found:
        for start in range(0, len(row), m):
            block = row[start : start + m]
            block[np.argsort(np.abs(block))[:n]] = 0
    return found


@right("10.4")
def zero_n_of_m(weights, n, m):
    ranks = np.abs(weights).reshape(-1, m).argsort(axis=1).argsort(axis=1)
    return weights * (ranks >= n).reshape(weights.shape)


@wrong("10.4", "the groups run over the filters; they run along the inputs of each filter.")
def zero_n_of_m(weights, n, m):
    if len(weights) % m:
        return np.stack([zero_row(row, n, m) for row in weights])
    blocks = weights.T.reshape(-1, m).copy()
    np.put_along_axis(blocks, np.argsort(np.abs(blocks), axis=1)[:, :n], 0, axis=1)
    return blocks.reshape(weights.T.shape).T


def zero_row(row, n, m):
    blocks = row.reshape(-1, m).copy()
    np.put_along_axis(blocks, np.argsort(np.abs(blocks), axis=1)[:, :n], 0, axis=1)
    return blocks.ravel()


@wrong(
    "10.4",
    "the number of zeros is right for the whole layer, and some 4 neighbours have more than 2, "
    "others fewer. A chip that reads 4 at a time needs 2 in each.",
)
def zero_n_of_m(weights, n, m):
    found = weights.ravel().copy()
    found[np.argsort(np.abs(found))[: found.size * n // m]] = 0
    return found.reshape(weights.shape)


@wrong("10.4", "with 3:4, 1 of 4 are zeros: here n counts zeros, not the rest.")
def zero_n_of_m(weights, n, m):
    blocks = weights.reshape(-1, m).copy()
    np.put_along_axis(blocks, np.argsort(np.abs(blocks), axis=1)[:, : m - n], 0, axis=1)
    return blocks.reshape(weights.shape)


@wrong("10.4", "no weight is zero.")
def zero_n_of_m(weights, n, m):
    return weights.copy()
