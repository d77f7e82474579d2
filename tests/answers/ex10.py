"""Answers to the exercises of 10: the smallest weights, a group, MACs, n of every m."""

import math

import numpy as np

from answers import right, wrong


@right("10.1")
def smallest(random):
    kind = random.choice(["stable", "quicksort"])

    def ranked(weights, share):
        ranks = np.argsort(np.argsort(np.abs(weights).ravel(), kind=kind))
        return (ranks >= round(share * weights.size)).reshape(weights.shape)

    def one_by_one(weights, share):
        mask, size = np.ones(weights.shape), np.abs(weights).astype(float)
        for _ in range(round(share * weights.size)):
            place = np.unravel_index(size.argmin(), size.shape)
            mask[place], size[place] = 0, math.inf
        return mask

    def listed(weights, share):
        places = sorted(np.ndindex(weights.shape), key=lambda at: abs(weights[at]))
        mask = np.ones(weights.shape, np.uint8)
        for place in places[: round(share * len(places))]:
            mask[place] = 0
        return mask.tolist()

    yield f"by ranks, {kind}", ranked
    yield "one by one", one_by_one
    yield "a list", listed


@wrong("10.1")
def not_smallest(random):
    k = random.choice([1, 2])

    def cut(key, number=lambda weights, share: round(share * weights.size), ones=1):
        def mask(weights, share):
            found = np.full(weights.size, ones)
            found[np.argsort(key(weights).ravel())[: number(weights, share)]] = 1 - ones
            return found.reshape(weights.shape)

        return mask

    def threshold(weights, share):
        if not share:
            return np.ones(weights.shape)
        ordered = np.sort(np.abs(weights).ravel())
        return np.abs(weights) > ordered[round(share * weights.size) - 1]

    def by_row(weights, share):
        flat = weights.reshape(len(weights), -1)
        rows = [cut(np.abs)(row, share) for row in flat]
        return np.array(rows).reshape(weights.shape)

    yield "by value", cut(lambda w: w), "weight of -3"
    yield "the largest", cut(lambda w: -np.abs(w)), "other way round"
    yield "swapped", cut(np.abs, lambda w, s: w.size - round(s * w.size)), ""
    yield f"{k} too many", cut(np.abs, lambda w, s: round(s * w.size) + k), "should go"
    yield "a threshold", threshold, "equals"
    yield "row by row", by_row, ""
    yield "masked weights", lambda w, s: w * cut(np.abs)(w, s), "ones where weights stay"
    yield "flat", lambda w, s: cut(np.abs)(w, s).ravel(), "shape"
    yield "all", lambda w, s: np.ones(w.shape), "and 0 do"


@right("10.2")
def group(random):
    def by_list(lost, saved):
        return sorted(lost, key=lambda name: -lost[name] / saved[name])[0]

    def by_pairs(lost, saved):
        return max((lost[name] / saved[name], name) for name in saved)[1]

    def by_array(lost, saved):
        names = list(lost)
        return names[int(np.argmax([lost[n] / saved[n] for n in names]))]

    yield "sorted", by_list
    yield "pairs", by_pairs
    yield "numpy", by_array


@wrong("10.2")
def other_group(random):
    yield "loses most", lambda lost, saved: max(lost, key=lost.get), "it saves a lot"
    yield "saves least", lambda lost, saved: min(saved, key=saved.get), ""
    yield "cheapest", lambda lost, saved: min(lost, key=lambda g: lost[g] / saved[g]), "cheapest"
    yield "inverse", lambda lost, saved: max(saved, key=lambda g: saved[g] / (1 + lost[g])), ""
    yield "the price", lambda lost, saved: max(lost[g] / saved[g] for g in lost), "the name"
    yield "another name", lambda lost, saved: "features", "not the name of a group"
    yield "difference", lambda lost, saved: max(lost, key=lambda g: lost[g] - saved[g]), ""


@right("10.3")
def macs(random):
    def by_neighbours(layers, share):
        total = 0
        for before, (kind, inputs, outputs, kernel, places) in zip(
            [None, *layers], layers, strict=False
        ):
            ins = inputs if before is None else before[2] * share
            outs = outputs * (share if layers[-1] != (kind, inputs, outputs, kernel, places) else 1)
            total += places * kernel * kernel * outs * (ins if kind == "conv" else 1)
        return total

    def by_factor(layers, share):
        def factor(i, kind):
            ends = (share if i else 1) if kind == "conv" else 1
            return ends * (share if i + 1 < len(layers) else 1)

        def full(kind, inputs, outputs, kernel, places):
            return places * kernel**2 * outputs * (inputs if kind == "conv" else 1)

        return sum(full(*layer) * factor(i, layer[0]) for i, layer in enumerate(layers))

    def by_widths(layers, share):
        widths = [layers[0][1], *(layer[2] * share for layer in layers[:-1]), layers[-1][2]]
        return np.sum([
            places * kernel**2 * widths[i + 1] * (1 if kind == "depthwise" else widths[i])
            for i, (kind, _, _, kernel, places) in enumerate(layers)
        ])  # fmt: skip

    yield "by neighbours", by_neighbours
    yield "a factor per layer", by_factor
    yield "a list of widths", by_widths


@wrong("10.3")
def other_macs(random):
    def counted(ins=True, outs=True, depthwise=True, square=True, first=False, last=False):
        def count(layers, share):
            total = 0
            for i, (kind, inputs, outputs, kernel, places) in enumerate(layers):
                a = inputs * (share if ins and (i or first) else 1)
                b = outputs * (share if outs and (i < len(layers) - 1 or last) else 1)
                reads = 1 if kind == "depthwise" and depthwise else a
                total += places * b * (kernel**2 if square else kernel) * reads
            return total

        return count

    whole = counted(ins=False, outs=False)
    yield "the share", lambda layers, share: share * whole(layers, 1), "it has inputs, too"
    yield "the square", lambda layers, share: share**2 * whole(layers, 1), "Which layers lose less"
    yield "first shrinks", counted(first=True), "the picture keeps its channels"
    yield "last shrinks", counted(last=True), "the classes keep their outputs"
    yield "both ends", counted(first=True, last=True), "the picture and the classes"
    yield "dense", counted(depthwise=False), "reads itself alone"
    yield "kernel once", counted(square=False), "nothing was pruned"
    yield "outputs alone", counted(ins=False), "Go layer by layer"
    yield "no number", lambda layers, share: [1, 2], ""


@right("10.4")
def pattern(random):
    def by_loops(weights, n, m):
        found = weights.copy()
        for row in found:
            for start in range(0, len(row), m):
                for at in sorted(range(start, start + m), key=lambda i, row=row: abs(row[i]))[:n]:
                    row[at] = 0
        return found

    def by_mask(weights, n, m):
        size = np.abs(weights).reshape(-1, m)
        mask = np.argsort(np.argsort(size, axis=1), axis=1) >= n
        return np.where(mask.reshape(weights.shape), weights, 0)

    def by_partition(weights, n, m):
        blocks = weights.reshape(-1, m).copy()
        places = np.argpartition(np.abs(blocks), n - 1, axis=1)[:, :n]
        blocks[np.arange(len(blocks))[:, None], places] = 0
        return blocks.reshape(weights.shape).tolist()

    yield "loops", by_loops
    yield "a mask of ranks", by_mask
    yield "a partition, as a list", by_partition


@wrong("10.4")
def other_pattern(random):
    def blocks(weights, count, m, key=np.abs):
        found = weights.reshape(-1, m).copy()
        order = np.argsort(key(found), axis=1)[:, :count]
        np.put_along_axis(found, order, 0, axis=1)
        return found.reshape(weights.shape)

    def whole(weights, n, m):
        found = weights.ravel().copy()
        found[np.argsort(np.abs(found))[: found.size * n // m]] = 0
        return found.reshape(weights.shape)

    def strided(weights, n, m):
        apart = weights.reshape(len(weights), m, -1).transpose(0, 2, 1)
        made = blocks(apart.reshape(len(weights), -1), n, m)
        return made.reshape(apart.shape).transpose(0, 2, 1).reshape(weights.shape)

    def threshold(weights, n, m):
        size = np.abs(weights).reshape(-1, m)
        most = np.sort(size, axis=1)[:, n - 1 : n]
        return np.where(size > most, weights.reshape(-1, m), 0).reshape(weights.shape)

    def in_place(weights, n, m):
        weights[:] = blocks(weights, n, m)
        return weights

    yield "by value", lambda w, n, m: blocks(w, n, m, lambda x: x), "larger than one that stays"
    yield "the largest", lambda w, n, m: blocks(w, n, m, lambda x: -np.abs(x)), "larger than one"
    yield "n stay", lambda w, n, m: blocks(w, m - n, m), ""
    yield "one more", lambda w, n, m: blocks(w, min(m, n + 1), m), "another number"
    yield "the whole layer", whole, "right for the whole layer"
    yield "strided", strided, "far apart"
    yield "a threshold", threshold, "another number"
    yield "magnitudes", lambda w, n, m: np.abs(blocks(w, n, m)), "other values"
    yield "in place", in_place, "writes into its input"
    yield "nothing", lambda w, n, m: w.copy(), "no weight is zero"
    yield "a mask", lambda w, n, m: blocks(w, n, m) != 0, ""
