"""Catalogued answers to the exercises of notebook 12."""

import numpy as np

from answers.catalogue import right, wrong

# --- 12.1 ----------------------------------------------------------------------------------------


@right("12.1")
def interleave(u, v):
    rows = np.empty((len(u), 2 * u.shape[1]), np.uint8)
    rows[:, 0::2] = u
    rows[:, 1::2] = v
    return rows


@right("12.1")
def interleave(u, v):
    return np.dstack([u, v]).reshape(len(u), -1)


@wrong("12.1", "every pair begins with V: those are the bytes of NV21, and red becomes blue.")
def interleave(u, v):
    return np.dstack([v, u]).reshape(len(u), -1)


@wrong("12.1", "a row holds all of U and then all of V; in NV12 they take turns.")
def interleave(u, v):
    return np.hstack([u, v])


@wrong("12.1", "all of U comes first, then all of V: those are two planes, as I420 has them.")
def interleave(u, v):
    return np.vstack([u, v]).reshape(len(u), -1)


# --- 12.2 ----------------------------------------------------------------------------------------


@right("12.2")
def find_order(run, pictures, labels):
    plain = np.mean(run(pictures) == labels)
    turned = np.mean(run(pictures[:, :, :, ::-1]) == labels)
    return "RGB" if plain > turned else "BGR"


@right("12.2")
def find_order(run, pictures, labels):
    turned = np.flip(pictures, axis=-1)
    wrong_then = np.count_nonzero(run(turned) != labels)
    return "BGR" if wrong_then < np.count_nonzero(run(pictures) != labels) else "RGB"


@wrong(
    "12.2",
    "you say RGB of a network of which it is right on 8 of 24 as they are, on 24 the other way "
    "round; the pictures are RGB.",
)
def find_order(run, pictures, labels):
    return "RGB"


@wrong(
    "12.2",
    "this network errs often: it is right on 13 of 24 as they are, on 8 the other way round. Which "
    "is more? You say BGR.",
)
def find_order(run, pictures, labels):
    return "RGB" if np.mean(run(pictures) == labels) > 0.8 else "BGR"


@wrong("12.2", 'the answer is "RGB" or "BGR", not \'bgr\'.')
def find_order(run, pictures, labels):
    return "bgr"


# --- 12.3 ----------------------------------------------------------------------------------------


@right("12.3")
def find_saturation(rows):
    most = max(rate for _, rate in rows)
    return sorted(requests for requests, rate in rows if rate >= 0.95 * most)[0]


@right("12.3")
def find_saturation(rows):
    rates = dict(rows)
    enough = [n for n in rates if rates[n] / max(rates.values()) >= 0.95]
    return min(enough)


@wrong("12.3", "1 requests give 50 frames per second, and 100 are possible.")
def find_saturation(rows):
    return min(rows)[0]


@wrong(
    "12.3",
    "4 requests give the most, 100; fewer of them give nearly as much, and each waits less.",
)
def find_saturation(rows):
    return max(rows, key=lambda row: row[1])[0]


@wrong("12.3", "a row that reaches the mark exactly counts: 95 of 100 is enough.")
def find_saturation(rows):
    most = max(rate for _, rate in rows)
    return min(n for n, rate in rows if rate > 0.95 * most)


# --- 12.4 ----------------------------------------------------------------------------------------


@right("12.4")
def choose(costs, budget):
    choices = [set()]
    for node in costs:
        choices += [{*choice, node} for choice in choices]
    fitting = [c for c in choices if sum(costs[node][1] for node in c) <= budget]
    return max(fitting, key=lambda choice: sum(costs[node][0] for node in choice))


@right("12.4")
def choose(costs, budget):
    best = (0, [])
    for mask in range(2 ** len(costs)):
        nodes = [node for i, node in enumerate(costs) if mask & 2**i]
        if sum(costs[node][1] for node in nodes) <= budget:
            best = max(best, (sum(costs[node][0] for node in nodes), nodes))
    return best[1]


@wrong("12.4", "gate, head, stem have 12 % of the MACs, and the budget is 6 %.")
def choose(costs, budget):
    return set(costs)


@wrong(
    "12.4",
    "of stem, gate, head you choose stem, which wins 5 points: the node that loses most is not "
    "always the one to take: two others fit instead.",
)
def choose(costs, budget):
    chosen = set()
    for node in sorted(costs, key=lambda node: -costs[node][0]):
        if sum(costs[name][1] for name in {*chosen, node}) <= budget:
            chosen.add(node)
    return chosen


@wrong(
    "12.4",
    "of stem, gate, head you choose head, stem, which wins 4 points: the best points for a percent "
    "come first, and leave no room for what is better.",
)
def choose(costs, budget):
    chosen = set()
    for node in sorted(costs, key=lambda node: -costs[node][0] / (costs[node][1] or 1e-6)):
        if sum(costs[name][1] for name in {*chosen, node}) <= budget:
            chosen.add(node)
    return chosen
