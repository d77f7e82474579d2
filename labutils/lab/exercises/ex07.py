"""Exercises of notebook 07: rules of one's own, and what a rule must keep or leave."""

from __future__ import annotations

from ..exercise import Exercise, Wrong
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
        "Left is the class itself: no brackets behind it, no quotes around it.",
        "Both classes live in torch.nn; the dict has one entry.",
    ),
    right=(
        "from torch import nn\n\nmy_rule = {nn.SiLU: lambda old: nn.Hardswish()}",
        'import torch\n\nmy_rule = {"torch.nn.modules.activation.SiLU": torch.nn.Hardswish()}',
        "from torch import nn\n\n"
        "def is_silu(module):\n    return isinstance(module, nn.SiLU)\n\n"
        "my_rule = {is_silu: nn.Hardswish}",
    ),
    wrong=(
        Wrong(
            "from torch import nn\n\nmy_rule = {nn.Hardswish: nn.SiLU}",
            "your rule finds nothing in a network that has two SiLU layers.",
        ),
        Wrong(
            "from torch import nn\n\nmy_rule = {nn.SiLU, nn.Hardswish}",
            "that is a set: it does not say which of the two is replaced by which.",
        ),
        Wrong(
            "from torch import nn\n\nmy_rule = {nn.SiLU(): nn.Hardswish()}",
            "the left side is one layer; a rule is for a class of layers.",
        ),
        Wrong(
            "from torch import nn\n\nmy_rule = {nn.SiLU: nn.ReLU}",
            "each SiLU became ReLU; a Hardswish is asked for.",
        ),
        Wrong(
            "from torch import nn\n\nmy_rule = {nn.SiLU: nn.Hardswish, nn.Sigmoid: nn.Hardsigmoid}",
            "the Sigmoid was replaced too. It is a gate here: 1.gate scales what comes from 0.",
        ),
        Wrong(
            "from torch import nn\n\n"
            "my_rule = {lambda m: isinstance(m, nn.SiLU | nn.GELU): nn.Hardswish}",
            "the GELU was replaced too, and nobody had asked for that.",
        ),
        Wrong(
            "from torch import nn\n\n"
            "my_rule = {lambda m: isinstance(m, nn.SiLU) and m.inplace: nn.Hardswish}",
            "a SiLU is left, at 1.act. What stands left of the colon does not mean them all.",
        ),
        Wrong(
            "from torch import nn\nfrom torch.nn import functional as F\n\n"
            "my_rule = {F.silu: F.hardswish}",
            "both SiLU layers are left. What stands left of the colon does not mean them all.",
        ),
        Wrong(
            "from torch import nn\nfrom torch.nn import functional as F\n\n"
            "my_rule = {nn.SiLU: F.hardswish}",
            "a function of numbers stands right of the colon. A layer is replaced by a layer: "
            "give its class.",
        ),
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
        "print(old) shows two settings: one is to stay, one is to go.",
        "nn.Dropout takes the probability first; out of place is what it does by default.",
    ),
    right=(
        _DROP + "    return nn.Dropout(p=old.p)",
        "import copy\n\n\ndef out_of_place(old):\n"
        "    new = copy.deepcopy(old)\n    new.inplace = False\n    return new",
        _DROP + "    new = nn.Dropout()\n    new.p = old.p\n    return new.train(old.training)",
    ),
    wrong=(
        Wrong(
            _DROP + "    return nn.Dropout()",
            "every new layer drops half of its inputs, whatever the old one dropped: that is what "
            "the class does when it is told nothing.",
        ),
        Wrong(
            _DROP + "    return nn.Dropout(0.2)",
            "right for one network. A layer that was told 0.35 drops 0.2 now: ask the old layer.",
        ),
        Wrong(
            _DROP + "    old.inplace = False\n    return old",
            "your function returns the old layer itself. Whoever keeps the original network, to "
            "compare with, shares that layer: make a new one.",
        ),
        Wrong(
            _DROP + "    old.inplace = False\n    return nn.Dropout(old.p)",
            "your function changes the old layer; the original network has it still.",
        ),
        Wrong(
            "import copy\n\n\ndef out_of_place(old):\n    return copy.deepcopy(old)",
            "the new layer still works in place.",
        ),
        Wrong(
            _DROP + "    return nn.Dropout(old.p).eval()",
            "the old layer was training, and the new one is in eval mode: it drops nothing until "
            "somebody calls train().",
        ),
        Wrong(
            _DROP + "    return nn.Dropout(1 - old.p)",
            "a layer that was told 0.2 drops 0.8 now.",
        ),
        Wrong(
            _DROP + "    return nn.Identity()",
            "an nn.Dropout is asked for, and this is Identity().",
        ),
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
    right=(
        _GATES + "    of = {n.output[0]: n for n in graph.node if n.op_type == 'HardSigmoid'}\n"
        "    products = [n for n in graph.node if n.op_type == 'Mul']\n"
        "    pairs = [(of[a], b) for n in products for a, b in\n"
        "             (tuple(n.input), tuple(n.input)[::-1]) if a in of]\n"
        "    return [node.name for node, other in pairs if other != node.input[0]]",
        "from collections import defaultdict\n\n" + _GATES + "    users = defaultdict(list)\n"
        "    for n in graph.node:\n"
        "        for name in n.input:\n"
        "            users[name].append(n)\n"
        "    for n in graph.node:\n"
        "        scaled = [u for u in users[n.output[0]] if u.op_type == 'Mul']\n"
        "        if n.op_type == 'HardSigmoid' and any(\n"
        "            set(u.input) - {n.output[0], n.input[0]} for u in scaled\n"
        "        ):\n"
        "            yield n.name",
    ),
    wrong=(
        Wrong(
            _GATES + "    return {n.name for n in graph.node if n.op_type == 'HardSigmoid'}",
            "on a hard-swish in two nodes you return 'act', which is no gate.",
        ),
        Wrong(
            _GATES + "    return {n.name for n in graph.node if n.op_type == 'Mul'}",
            "'scale' is a Mul; the gate is what it multiplies by.",
        ),
        Wrong(
            _GATES + "    return {n.output[0] for n in graph.node if n.op_type == 'HardSigmoid'}",
            "'s' is no node's name; a node has one, and its output another.",
        ),
        Wrong(
            _GATES + "    return [n for n in graph.node if n.op_type == 'HardSigmoid']",
            "these are nodes; their names are asked for.",
        ),
        Wrong(
            _GATES + "    found = set()\n"
            "    for n in graph.node:\n"
            "        for u in graph.node:\n"
            "            if n.op_type == 'HardSigmoid' and u.op_type == 'Mul':\n"
            "                if u.input[1] == n.output[0] and u.input[0] != n.input[0]:\n"
            "                    found.add(n.name)\n"
            "    return found",
            "on a gate that stands first in its product you miss a gate.",
        ),
        Wrong(
            _GATES + "    found = set()\n"
            "    for n in graph.node:\n"
            "        users = [u for u in graph.node if n.output[0] in u.input]\n"
            "        own = [u for u in users if n.input[0] in u.input]\n"
            "        if n.op_type == 'HardSigmoid' and not own:\n"
            "            found.add(n.name)\n"
            "    return found",
            "on a HardSigmoid that is added to something you return 'plain', which is no gate.",
        ),
        Wrong(
            _GATES + "    found = set()\n"
            "    for n in graph.node:\n"
            "        users = [u for u in graph.node if n.output[0] in u.input]\n"
            "        kinds = {u.op_type for u in users}\n"
            "        own = [u for u in users if n.input[0] in u.input]\n"
            "        if n.op_type == 'HardSigmoid' and kinds == {'Mul'} and not own:\n"
            "            found.add(n.name)\n"
            "    return found",
            "on one output that two products use you miss a gate.",
        ),
        Wrong(
            _GATES + "    return {\n        n.name for n in graph.node for u in graph.node\n"
            "        if n.op_type == 'HardSigmoid' and n.output in u.input\n    }",
            "you find no gate in any graph. What a node gives is called node.output[0]; "
            "node.output is the whole list, and is in no list of names.",
        ),
        Wrong(
            _GATES + "    {n.name for n in graph.node if n.op_type == 'HardSigmoid'}",
            "your function returned None (a forgotten return?).",
        ),
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
    right=(
        "import torch\nfrom torch.nn import functional as F\n\nfrom labutils import surgery\n\n"
        "quick_gelu_rule = surgery.pattern_rule(\n"
        "    lambda x: (x * 1.702).sigmoid() * x, F.relu, name='quick GELU'\n)",
        _HEAD + "def quick_gelu(h):\n    gate = torch.sigmoid(1.702 * h)\n    return h * gate\n\n\n"
        "quick_gelu_rule = surgery.pattern_rule(quick_gelu, lambda h: h.clamp(min=0))",
    ),
    wrong=(
        Wrong(
            _HEAD + "quick_gelu_rule = {torch.sigmoid: torch.relu}",
            "a pattern is several operations: make the rule with surgery.pattern_rule.",
        ),
        Wrong(
            _HEAD + "quick_gelu_rule = surgery.pattern_rule(\n"
            "    lambda x: x * torch.sigmoid(x), torch.relu\n)",
            "your pattern does not match h * torch.sigmoid(1.702 * h), where h is the output of a "
            "layer.",
        ),
        Wrong(
            _HEAD + "quick_gelu_rule = surgery.pattern_rule(\n"
            "    lambda x: x * torch.sigmoid(1.702 * x), lambda x: torch.relu(1.702 * x)\n)",
            "it matches, and the replacement is a ReLU of 1.702 * x: too steep.",
        ),
        Wrong(
            _HEAD + "quick_gelu_rule = surgery.pattern_rule(\n"
            "    lambda x: x * torch.sigmoid(1.702 * x),\n"
            "    lambda x: x * torch.sigmoid(1.702 * x),\n)",
            "it matches, and the replacement computes what was there before.",
        ),
        Wrong(
            _HEAD + "quick_gelu_rule = surgery.pattern_rule(\n"
            "    lambda x, y: x * torch.sigmoid(1.702 * y), lambda x, y: torch.relu(x)\n)",
            "your pattern takes 2 tensors. In quick GELU one and the same tensor is scaled and "
            "does the scaling; with two it would be a gate.",
        ),
        Wrong(
            _HEAD + "quick_gelu_rule = surgery.pattern_rule(\n"
            "    lambda x: x * torch.sigmoid(1.702 * x), torch.relu, exact=True\n)",
            "your rule promises to be exact, and a ReLU is another function.",
        ),
        Wrong(
            _HEAD + "quick_gelu_rule = surgery.pattern_rule(\n"
            "    lambda x: x * torch.nn.Sigmoid()(1.702 * x), torch.relu, name='quick'\n)",
            "the surgery with your rule raised UsageError: The pattern quick makes a layer while "
            "it runs. Write it with functions, such as torch.sigmoid(x), or as an nn.Module that "
            "holds the layer.",
        ),
        Wrong(
            "from labutils import surgery\n\nquick_gelu_rule = surgery.RULES['gelu-to-relu']",
            "this rule has no pattern of several operations: use surgery.pattern_rule.",
        ),
    ),
    judge=judge_pattern,
    praise="both ways of writing it, and neither SiLU nor a gate.",
)

EXERCISES = (FIRST_RULE, DROPOUT, GATES, PATTERN)
