"""Judging a table of throughput that is read, and nodes that are chosen within a budget."""

from __future__ import annotations

import random
from typing import Any

from ..answer import NotYet, call, names, whole

# --- 12.3: where a table saturates ----------------------------------------------------------------

Rows = list[tuple[int, float]]

_TABLES: dict[str, Rows] = {
    "two cores": [(1, 50.0), (2, 98.0), (4, 100.0), (8, 99.0)],
    "four cores": [(1, 24.0), (2, 47.0), (4, 94.0), (8, 98.5)],
    "slow start": [(1, 60.0), (2, 90.0), (4, 100.0)],
    "exactly 95 %": [(1, 95.0), (2, 100.0)],
    "falls again": [(1, 40.0), (2, 80.0), (4, 78.0), (8, 60.0)],
    "still growing": [(1, 10.0), (2, 20.0), (4, 40.0), (8, 80.0)],
    "one row": [(4, 12.5)],
}


def judge_saturation(find_saturation: Any) -> None:
    """Judge from how many requests on a table grows no more."""
    for kind, rows in _TABLES.items():
        most = max(rate for _, rate in rows)
        wanted = min(n for n, rate in rows if rate >= 0.95 * most)
        for seed in range(3):
            given = random.Random(seed).sample(rows, len(rows))
            found = whole(call(find_saturation, given), "a number of requests")
            if found != wanted:
                raise NotYet(_explain_saturation(kind, rows, found))


def _explain_saturation(kind: str, rows: Rows, found: int) -> str:
    rates = dict(rows)
    most = max(rates.values())
    if found not in rates:
        return f"there is no row with {found} requests in the table of {sorted(rates)}."
    if rates[found] < 0.95 * most:
        return (
            f"{found} requests give {rates[found]:g} frames per second, and {most:g} are possible."
        )
    if kind == "exactly 95 %":
        return "a row that reaches the mark exactly counts: 95 of 100 is enough."
    if rates[found] == most:
        return (
            f"{found} requests give the most, {most:g}; fewer of them give nearly as much, and "
            "each waits less."
        )
    return f"{found} requests are enough, but there are fewer that are."


# --- 12.4: nodes within a budget ------------------------------------------------------------------

Costs = dict[str, tuple[float, float]]

_CHOICES: tuple[tuple[str, Costs, float], ...] = (
    ("all fit", {"stem": (2.0, 1.0), "head": (1.0, 2.0)}, 3.0),
    ("left", {"stem": (5.0, 6.0), "gate": (4.0, 3.0), "head": (4.0, 3.0)}, 6.0),
    ("ratio", {"stem": (3.0, 1.0), "gate": (8.0, 4.0), "head": (1.0, 0.5)}, 4.0),
    ("nothing fits", {"stem": (2.0, 4.0), "gate": (1.0, 5.0)}, 3.5),
    ("harm", {"stem": (2.0, 1.0), "gate": (-0.5, 0.5), "head": (1.0, 1.0)}, 4.0),
    ("free", {"stem": (1.0, 2.0), "act": (0.5, 0.0), "pool": (0.25, 0.0)}, 1.0),
    (
        "many",
        {"a": (2.0, 1.5), "b": (1.75, 1.25), "c": (1.5, 1.0), "d": (1.25, 0.75), "e": (3.0, 2.5)},
        3.5,
    ),
)


def judge_choice(choose: Any) -> None:
    """Judge which nodes get 16 bits within a share of the multiply-accumulates."""
    for kind, costs, budget in _CHOICES:
        found = names(call(choose, dict(costs), budget), "a set of nodes")
        if unknown := sorted(found - set(costs)):
            raise NotYet(f"{unknown[0]} is not one of the nodes {', '.join(costs)}.")
        share, points = (sum(costs[name][i] for name in found) for i in (1, 0))
        if share > budget:
            raise NotYet(
                f"{', '.join(sorted(found))} have {share:g} % of the MACs, and the budget is "
                f"{budget:g} %."
            )
        if points < _greatest(costs, budget):
            raise NotYet(_explain_choice(kind, costs, budget, found))


def _greatest(costs: Costs, budget: float) -> float:
    """Return the most points that fit, by looking at every subset once."""
    states = {0.0: 0.0}  # share -> points
    for points, share in costs.values():
        for used, won in list(states.items()):
            if used + share <= budget:
                states[used + share] = max(states.get(used + share, won), won + points)
    return max(states.values())


def _explain_choice(kind: str, costs: Costs, budget: float, found: set[str]) -> str:
    points = sum(costs[name][0] for name in found)
    chosen = ", ".join(sorted(found)) or "none"
    reason = {
        "all fit": "both fit: a budget that is used up to the last bit is not exceeded.",
        "left": "the node that loses most is not always the one to take: two others fit instead.",
        "ratio": "the best points for a percent come first, and leave no room for what is better.",
        "harm": "a node may lose less than nothing; leave it as it is.",
        "free": "what has no MACs costs nothing of the budget.",
    }.get(kind, "another choice within the budget wins more.")
    return f"of {', '.join(costs)} you choose {chosen}, which wins {points:g} points: {reason}"
