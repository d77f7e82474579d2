"""Exercises of notebook 10: a magnitude mask, the group to leave alone, MACs, n of every m."""

from __future__ import annotations

from ..exercise import Exercise
from .costs import judge_group, judge_macs
from .masks import judge_pattern, judge_smallest

_SMALLEST = (
    "import numpy as np\n\n\n"
    "def smallest_mask(weights, share):  # an array of any shape; the share that goes, 0 to 1\n"
)
SMALLEST = Exercise(
    id="10.1",
    title="Mask the smallest weights of a layer",
    verb="mask the smallest weights of a layer, exactly as many as wanted",
    minutes=8,
    difficulty="easy",
    answer="smallest_mask",
    stub=_SMALLEST + "    return TODO  # an array of the same shape: 1 stays, 0 goes",
    reference=(
        _SMALLEST + "    gone = round(share * weights.size)\n"
        "    mask = np.ones(weights.size)\n"
        "    mask[np.argsort(np.abs(weights), axis=None)[:gone]] = 0\n"
        "    return mask.reshape(weights.shape)"
    ),
    hints=(
        "A weight of -3 does as much as one of 3.",
        "Sort places, not values: which place has the smallest magnitude, which the next?",
        "Work on the flat array, set the first places of that order to zero, and give the mask "
        "the shape of the weights at the end.",
    ),
    judge=judge_smallest,
    praise="the number of zeros is exact, also where magnitudes are equal.",
)

_GROUP = (
    "def leave_alone(lost, saved):  # both: {group: points lost}, {group: % of the MACs saved}\n"
)
GROUP = Exercise(
    id="10.2",
    title="Find the group that should not be pruned",
    verb="find the group whose MACs are the most expensive to save",
    minutes=6,
    difficulty="easy",
    answer="leave_alone",
    stub=_GROUP + "    return TODO  # the name of a group",
    reference=_GROUP + "    return max(lost, key=lambda group: lost[group] / saved[group])",
    hints=(
        "A group that loses most may also save most.",
        "What does one saved percent of the MACs cost in this group?",
        "max takes a function as its key: the points of a group divided by what it saves.",
    ),
    judge=judge_group,
    praise="what counts is the price of a saved MAC, not the loss alone.",
)

_MACS = (
    "def macs_left(layers, share):  # layers: a list of (kind, inputs, outputs, kernel, places)\n"
)
MACS = Exercise(
    id="10.3",
    title="Count the MACs that are left when every layer keeps a share of its channels",
    verb="say how many MACs are left with a share of the channels, and why it is not the square",
    minutes=12,
    difficulty="medium",
    answer="macs_left",
    stub=_MACS + "    return TODO  # a number of MACs",
    reference=(
        _MACS + "    total = 0\n"
        "    last = len(layers) - 1\n"
        "    for i, (kind, inputs, outputs, kernel, places) in enumerate(layers):\n"
        "        ins = inputs * share if i > 0 else inputs\n"
        "        outs = outputs * share if i < last else outputs\n"
        '        reads = 1 if kind == "depthwise" else ins\n'
        "        total += places * outs * kernel**2 * reads\n"
        "    return total"
    ),
    hints=(
        "Without pruning: each of the places computes each output from kernel times kernel values "
        "of each input that it reads. A depthwise output reads one input.",
        "A layer has as many inputs as the one before it has outputs. Where does that begin?",
        "Treat the first and the last layer apart: the picture and the classes stay whole.",
    ),
    judge=judge_macs,
    praise="a plain layer shrinks with both of its ends, a depthwise one with one, and the ends of "
    "the network do not shrink.",
)

_PATTERN = (
    "import numpy as np\n\n\n"
    "def zero_n_of_m(weights, n, m):  # (filters, inputs); m divides the inputs\n"
)
PATTERN = Exercise(
    id="10.4",
    title="Zero n of every m weights by hand",
    verb="put n zeros into every m weights, where a sparse unit looks for them",
    minutes=12,
    difficulty="stretch",
    answer="zero_n_of_m",
    stub=_PATTERN + "    return TODO  # a new array: n zeros in every m neighbours of each filter",
    reference=(
        _PATTERN + "    blocks = weights.reshape(len(weights), -1, m).copy()\n"
        "    smallest = np.argsort(np.abs(blocks), axis=-1)[..., :n]\n"
        "    np.put_along_axis(blocks, smallest, 0, axis=-1)\n"
        "    return blocks.reshape(weights.shape)"
    ),
    hints=(
        "A group is m neighbours of one filter. Give the array a third axis for it.",
        "In each group n places go: those with the smallest magnitudes, however large they are.",
        "numpy can write a value along an axis at places that an order gives. Work on a copy.",
    ),
    judge=judge_pattern,
    praise="every group has its zeros, so a chip that reads m at a time can skip n of them.",
)

EXERCISES = (SMALLEST, GROUP, MACS, PATTERN)
