"""Exercises of notebook 07: your own rules, and what a rule must keep or leave."""

from __future__ import annotations

from ..exercise import Exercise
from .gates import judge_gates
from .patterns import judge_pattern
from .replacements import judge_dict, judge_dropout

# --- 07.1: a dict is a rule -----------------------------------------------------------------------


FIRST_RULE = Exercise(
    id="07.1",
    title="State a rule as a dict",
    verb="state a rule for a whole class of layers",
    minutes=4,
    difficulty="easy",
    answer="my_rule",
    stub="from torch import nn\n\nmy_rule = TODO  # every SiLU becomes a Hardswish",
    reference="from torch import nn\n\nmy_rule = {nn.SiLU: nn.Hardswish}",
    hints=(
        "What is replaced stands left of the colon, and by what stands right of it.",
        "Left is the class itself: no parentheses after it, no quotes around it.",
        "Both classes live in torch.nn; the dict has one entry.",
    ),
    judge=judge_dict,
    praise="every SiLU at every depth, and nothing else.",
)


# --- 07.2: keep what a layer was told -------------------------------------------------------------


_DROP = "from torch import nn\n\n\ndef out_of_place(old):\n"
DROPOUT = Exercise(
    id="07.2",
    title="Replace a dropout, and keep what it was told",
    verb="keep a layer's settings through a replacement",
    minutes=6,
    difficulty="medium",
    answer="out_of_place",
    stub=_DROP + "    return TODO  # a new Dropout that works out of place",
    reference=_DROP + "    return nn.Dropout(old.p, inplace=False)",
    hints=(
        "Your function gets the old layer. What does it know that a fresh one does not?",
        "print(old) shows two settings: one has to stay, one has to go.",
        "nn.Dropout takes the probability first; out of place is what it does by default.",
    ),
    judge=judge_dropout,
    praise="another layer, the same probability, and the old one as it was.",
)


# --- 07.3: gates in an ONNX graph -----------------------------------------------------------------


_GATES = "def gates(graph):\n"
GATES = Exercise(
    id="07.3",
    title="Find the gates in an ONNX graph",
    verb="tell a gate from an activation by its edges",
    minutes=12,
    difficulty="medium",
    answer="gates",
    stub=_GATES + "    return TODO  # the names of the HardSigmoid nodes that are gates",
    reference=(
        _GATES + "    found = set()\n"
        '    for node in (n for n in graph.node if n.op_type == "HardSigmoid"):\n'
        "        for user in graph.node:\n"
        '            if user.op_type == "Mul" and node.output[0] in user.input:\n'
        "                if node.input[0] not in user.input:\n"
        "                    found.add(node.name)\n"
        "    return found"
    ),
    hints=(
        "Both patterns end in a Mul. Look at what the Mul multiplies the HardSigmoid's output by.",
        "A node knows its edges by name: node.input and node.output are lists of names.",
        "If the product takes the HardSigmoid's own input as well, it is an activation.",
    ),
    judge=judge_gates,
    praise="by its edges: whose name it has, and where it stands in the product, does not matter.",
)


# --- 07.4: several operations at once -------------------------------------------------------------


_HEAD = "import torch\n\nfrom labutils import surgery\n\n\n"
PATTERN = Exercise(
    id="07.4",
    title="Write a rule for several operations at once",
    verb="write a rule for several operations at once",
    minutes=15,
    difficulty="stretch",
    answer="quick_gelu_rule",
    stub=(
        _HEAD + "def pattern(x):\n    return TODO  # what is looked for\n\n\n"
        "def replacement(x):\n    return TODO  # what takes its place\n\n\n"
        "quick_gelu_rule = TODO"
    ),
    reference=(
        _HEAD + "def pattern(x):\n    return x * torch.sigmoid(1.702 * x)\n\n\n"
        "def replacement(x):\n    return torch.relu(x)\n\n\n"
        "quick_gelu_rule = surgery.pattern_rule(pattern, replacement)"
    ),
    hints=(
        "Write the pattern as the model's author wrote it: a function of one tensor.",
        "surgery.pattern_rule takes two functions of the same tensors.",
        "How many tensors come in from outside? Those are the arguments, of both functions.",
    ),
    judge=judge_pattern,
    praise="both ways of writing it, and neither SiLU nor a gate.",
)

EXERCISES = (FIRST_RULE, DROPOUT, GATES, PATTERN)
