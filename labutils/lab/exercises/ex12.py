"""Exercises of notebook 12: bytes of a camera, swapped channels, a table, bits within a budget."""

from __future__ import annotations

from ..exercise import Exercise
from .budgets import judge_choice, judge_saturation
from .camera_pictures import judge_chroma, judge_order

_CHROMA = "def interleave(u, v):  # two arrays: one value for every block\n"
CHROMA = Exercise(
    id="12.1",
    title="Write the chroma of NV12",
    verb="write the bytes that a camera gives",
    minutes=6,
    difficulty="easy",
    answer="interleave",
    stub=_CHROMA + "    return TODO  # an array: as many rows, each twice as long",
    reference=(
        "import numpy as np\n\n\n"
        + _CHROMA
        + "    return np.stack([u, v], axis=-1).reshape(len(u), -1)"
    ),
    hints=(
        "A block has one U and one V, and they lie beside each other in memory, U first.",
        "Of two blocks in a row, four values become one row: U, V, U, V.",
        "np.stack puts two arrays beside each other along a new last axis; reshape then joins the "
        "pairs of a row.",
    ),
    judge=judge_chroma,
    praise="U and V take turns, block by block: that is all that NV12 is below the luma.",
)

_ORDER = "def find_order(run, pictures, labels):  # run(pictures) gives the class of each picture\n"
ORDER = Exercise(
    id="12.2",
    title="Find the order of channels that a network wants, from its answers",
    verb="find swapped channels from a network's answers alone",
    minutes=8,
    difficulty="medium",
    answer="find_order",
    stub=_ORDER + '    return TODO  # "RGB" or "BGR"',
    reference=(
        _ORDER + "    plain = (run(pictures) == labels).sum()\n"
        "    turned = (run(pictures[..., ::-1]) == labels).sum()\n"
        '    return "RGB" if plain >= turned else "BGR"'
    ),
    hints=(
        "You can run the network as often as you like, on whatever you make of the pictures.",
        "Run it twice, and count how often it is right each time.",
        "Channels are the last axis. A network may err often either way: compare the two counts.",
    ),
    judge=judge_order,
    praise="the order that makes it right more often is the one that it was trained with.",
)

_TABLE = "def find_saturation(rows):  # (requests, frames per second), in any order\n"
TABLE = Exercise(
    id="12.3",
    title="Read from a table how many requests are enough",
    verb="read where a table of throughput saturates",
    minutes=8,
    difficulty="medium",
    answer="find_saturation",
    stub=_TABLE + "    return TODO  # the fewest requests with 95 % of the most frames",
    reference=(
        _TABLE + "    most = max(rate for _, rate in rows)\n"
        "    return min(requests for requests, rate in rows if rate >= 0.95 * most)"
    ),
    hints=(
        "What is the most that any row gives?",
        "Which rows give nearly that?",
        "Of those, take the one with the fewest requests: there each of them waits least.",
    ),
    judge=judge_saturation,
    praise="beyond that, requests only wait for each other.",
)

_CHOICE = (
    "def choose(costs, budget):  # {node: (points that it loses, % of the MACs)}, % of the MACs\n"
)
CHOICE = Exercise(
    id="12.4",
    title="Choose the nodes that get 16 bits, within a budget",
    verb="choose int16 nodes within a budget",
    minutes=14,
    difficulty="stretch",
    answer="choose",
    stub=_CHOICE + "    return TODO  # the nodes that win most points together, and fit",
    reference=(
        "import itertools\n\n\n" + _CHOICE + "    best = ()\n"
        "    most = 0\n"
        "    for size in range(1, len(costs) + 1):\n"
        "        for nodes in itertools.combinations(costs, size):\n"
        "            points = sum(costs[node][0] for node in nodes)\n"
        "            share = sum(costs[node][1] for node in nodes)\n"
        "            if share <= budget and points > most:\n"
        "                best = nodes\n"
        "                most = points\n"
        "    return set(best)"
    ),
    hints=(
        "Taking the costliest node first can leave no room for two that win more together.",
        "There are few nodes: look at every choice. itertools.combinations lists them.",
        "Keep the best choice so far: it fits into the budget, and wins more than the one before.",
    ),
    judge=judge_choice,
    praise="every choice was looked at, so none that fits wins more.",
)

EXERCISES = (CHROMA, ORDER, TABLE, CHOICE)
