"""Answers to the exercises of 12: chroma, channels, a table, a budget."""

import itertools

import numpy as np

from answers import right, wrong


@right("12.1")
def chroma(random):
    def sliced(u, v):
        rows = np.zeros((u.shape[0], 2 * u.shape[1]), np.uint8)
        rows[:, ::2] = u
        rows[:, 1::2] = v
        return rows

    def by_loop(u, v):
        return [
            [x for pair in zip(a, b, strict=True) for x in pair] for a, b in zip(u, v, strict=True)
        ]

    def transposed(u, v):
        return np.array([u, v]).transpose(1, 2, 0).reshape(u.shape[0], -1)

    yield "slices", sliced
    yield "a list, pair by pair", by_loop
    yield "transposed", transposed


@wrong("12.1")
def no_chroma(random):
    k = random.randint(1, 9)
    yield "V first", lambda u, v: np.stack([v, u], -1).reshape(len(u), -1), "begins with V"
    yield "side by side", lambda u, v: np.concatenate([u, v], 1), "take turns"
    yield (
        "planes",
        lambda u, v: np.concatenate([u.ravel(), v.ravel()]).reshape(len(u), -1),
        "",
    )
    yield "U twice", lambda u, v: np.repeat(u, 2, 1), "V are missing"
    yield "V twice", lambda u, v: np.repeat(v, 2, 1), "U are missing"
    yield "not joined", lambda u, v: np.stack([u, v], -1), "(2, 6)"
    yield "turned", lambda u, v: np.stack([u, v], -1).reshape(len(u), -1).T, "(2, 6)"
    yield (
        f"moved by {k}",
        lambda u, v: np.roll(np.stack([u, v], -1).reshape(len(u), -1), 2 * k, 1),
        "",
    )
    yield (
        "backwards",
        lambda u, v: np.stack([u, v], -1)[:, ::-1].reshape(len(u), -1),
        "another block",
    )


@right("12.2")
def order(random):
    def by_mean(run, pictures, labels):
        ways = {"RGB": pictures, "BGR": np.flip(pictures, axis=3)}
        return max(ways, key=lambda way: np.mean(run(ways[way]) == labels))

    def by_indices(run, pictures, labels):
        right = [sum(run(x) == labels) for x in (pictures, pictures[:, :, :, [2, 1, 0]])]
        return ["RGB", "BGR"][int(right[1] > right[0])]

    def one_by_one(run, pictures, labels):
        votes = 0
        for picture, label in zip(pictures, labels, strict=True):
            votes += int(run(picture[None])[0] == label) - int(
                run(picture[None, ..., ::-1])[0] == label
            )
        return "RGB" if votes > 0 else "BGR"

    yield "the mean of both", by_mean
    yield "by indices", by_indices
    yield "one by one", one_by_one


@wrong("12.2")
def no_order(random):
    k = random.uniform(0.7, 0.9)

    def ask(turn, more="RGB", less="BGR"):
        def find(run, pictures, labels):
            plain = (run(pictures) == labels).sum()
            return more if plain > (run(turn(pictures)) == labels).sum() else less

        return find

    yield "the other way", ask(lambda x: x[..., ::-1], "BGR", "RGB"), "the pictures are RGB"
    yield "mirrored", ask(lambda x: x[:, :, ::-1]), "you say BGR"
    yield "upside down", ask(lambda x: x[:, ::-1]), "you say BGR"
    yield "always RGB", lambda *_: "RGB", "you say RGB"
    yield "always BGR", lambda *_: "BGR", "you say BGR"
    yield "lower case", lambda *_: "rgb", '"RGB" or "BGR"'
    yield (
        f"right on {k:.2f}",
        lambda run, x, labels: "RGB" if (run(x) == labels).mean() > k else "BGR",
        "errs often",
    )
    yield (
        "the first picture",
        lambda run, x, labels: "RGB" if run(x[:1])[0] == labels[0] else "BGR",
        "",
    )
    yield "channels first", ask(lambda x: x.transpose(0, 3, 1, 2)), "(24, 3, 6, 8)"


@right("12.3")
def saturation(random):
    def sorted_rows(rows):
        ordered = sorted(rows)
        most = max(ordered, key=lambda row: row[1])[1]
        return next(n for n, rate in ordered if rate >= 0.95 * most)

    def by_arrays(rows):
        requests, rates = np.array(rows).T
        return requests[rates >= 0.95 * rates.max()].min()

    def by_loop(rows):
        best = None
        for n, rate in rows:
            if 100 * rate >= 95 * max(r for _, r in rows) and (best is None or n < best):
                best = n
        return best

    yield "the first of the sorted", sorted_rows
    yield "by arrays", by_arrays
    yield "by a loop", by_loop


@wrong("12.3")
def no_saturation(random):
    k = random.uniform(0.5, 0.8)

    def at(share, strict=False):
        def find(rows):
            most = max(rate for _, rate in rows)
            fits = [n for n, r in rows if (r > share * most if strict else r >= share * most)]
            return min(fits) if fits else 0

        return find

    yield "the most", lambda rows: max(rows, key=lambda row: row[1])[0], "nearly as much"
    yield f"{k:.2f} of the most", at(k), "are possible"
    yield "more than the mark", at(0.95, strict=True), "exactly counts"
    yield "the largest number", lambda rows: max(n for n, _ in rows), "fewer"
    yield "the smallest number", lambda rows: min(n for n, _ in rows), "are possible"
    yield "the first row", lambda rows: rows[0][0], ""
    yield "frames", lambda rows: round(max(r for _, r in rows)), "no row with"


@right("12.4")
def choice(random):
    def by_bits(costs, budget):
        listed = list(costs)
        best = max(
            range(2 ** len(listed)),
            key=lambda k: (
                sum(costs[n][0] for i, n in enumerate(listed) if k >> i & 1)
                if sum(costs[n][1] for i, n in enumerate(listed) if k >> i & 1) <= budget
                else -1.0
            ),
        )
        return [n for i, n in enumerate(listed) if best >> i & 1]

    def by_recursion(costs, budget):
        def best(nodes, left):
            if not nodes:
                return 0.0, frozenset()
            without = best(nodes[1:], left)
            points, share = costs[nodes[0]]
            if share > left:
                return without
            won, chosen = best(nodes[1:], left - share)
            return max(without, (won + points, chosen | {nodes[0]}), key=lambda x: x[0])

        return best(list(costs), budget)[1]

    def by_tables(costs, budget):
        states = {0.0: (0.0, ())}
        for node, (points, share) in costs.items():
            for used, (won, chosen) in list(states.items()):
                total = used + share
                if total <= budget and won + points > states.get(total, (-1.0,))[0]:
                    states[total] = (won + points, (*chosen, node))
        return max(states.values())[1]

    yield "every subset by its bits, a list", by_bits
    yield "by recursion", by_recursion
    yield "by a table, a tuple", by_tables


@wrong("12.4")
def no_choice(random):
    def greedy(key, fits=lambda share, left: share <= left):
        def choose(costs, budget):
            chosen, left = set(), budget
            for node in sorted(costs, key=lambda n: key(*costs[n])):
                if fits(costs[node][1], left):
                    chosen.add(node)
                    left -= costs[node][1]
            return chosen

        return choose

    def strict(costs, budget):
        best, most = (), 0.0
        for size in range(1, len(costs) + 1):
            for nodes in itertools.combinations(costs, size):
                points = sum(costs[n][0] for n in nodes)
                if sum(costs[n][1] for n in nodes) < budget and points > most:
                    best, most = nodes, points
        return best

    yield "the costliest first", greedy(lambda points, share: -points), "is not always"
    yield (
        "the best points for a percent",
        greedy(lambda points, share: -points / (share or 1e-9)),
        "leave no room",
    )
    yield "the cheapest first", greedy(lambda points, share: share), "you choose"
    yield "all of them", lambda costs, budget: set(costs), "the budget is"
    yield "none", lambda costs, budget: set(), "wins 0 points"
    yield "below the budget", strict, "both fit"
    yield "by another name", lambda costs, budget: {"Conv"}, "not one of the nodes"
    yield "how many", lambda costs, budget: len(costs), "a set of nodes"
