"""Catalogued answers to the exercises of notebook 07."""

import copy
from collections import defaultdict

import torch
from torch import nn
from torch.nn import functional as F

from answers.catalogue import right, right_value, wrong, wrong_value
from labutils import surgery

# --- 07.1 ----------------------------------------------------------------------------------------


@right_value("07.1")
def _():
    return {nn.SiLU: lambda old: nn.Hardswish()}


@right_value("07.1")
def _():
    return {"torch.nn.modules.activation.SiLU": torch.nn.Hardswish()}


@right_value("07.1")
def _():
    def is_silu(module):
        return isinstance(module, nn.SiLU)

    return {is_silu: nn.Hardswish}


@wrong_value(
    "07.1",
    "your rule finds nothing in a network that has two SiLU layers.",
)
def _():
    return {nn.Hardswish: nn.SiLU}


@wrong_value(
    "07.1",
    "that is a set: it does not say which of the two is replaced by which.",
)
def _():
    return {nn.SiLU, nn.Hardswish}


@wrong_value(
    "07.1",
    "the left side is one layer; a rule is for a class of layers.",
)
def _():
    return {nn.SiLU(): nn.Hardswish()}


@wrong_value(
    "07.1",
    "each SiLU became ReLU; a Hardswish is expected.",
)
def _():
    return {nn.SiLU: nn.ReLU}


@wrong_value(
    "07.1",
    "the Sigmoid was replaced too. It is a gate here: 1.gate scales what comes from 0.",
)
def _():
    return {nn.SiLU: nn.Hardswish, nn.Sigmoid: nn.Hardsigmoid}


@wrong_value(
    "07.1",
    "the GELU was replaced too, although nothing asks for that.",
)
def _():
    return {lambda m: isinstance(m, nn.SiLU | nn.GELU): nn.Hardswish}


@wrong_value(
    "07.1",
    "a SiLU is left, at 1.act. What stands left of the colon does not mean them all.",
)
def _():
    return {lambda m: isinstance(m, nn.SiLU) and m.inplace: nn.Hardswish}


@wrong_value(
    "07.1",
    "both SiLU layers are left. What stands left of the colon does not mean them all.",
)
def _():
    return {F.silu: F.hardswish}


@wrong_value(
    "07.1",
    "a function of numbers stands right of the colon. A layer is replaced by a layer: give its "
    "class.",
)
def _():
    return {nn.SiLU: F.hardswish}


# --- 07.2 ----------------------------------------------------------------------------------------


@right("07.2")
def out_of_place(old):
    return nn.Dropout(p=old.p)


@right("07.2")
def out_of_place(old):
    new = copy.deepcopy(old)
    new.inplace = False
    return new


@right("07.2")
def out_of_place(old):
    new = nn.Dropout()
    new.p = old.p
    return new.train(old.training)


@wrong(
    "07.2",
    "every new layer drops half of its inputs, whatever the old one dropped: that is what the "
    "class does when it is told nothing.",
)
def out_of_place(old):
    return nn.Dropout()


@wrong(
    "07.2",
    "right for one network. A layer that was told 0.35 drops 0.2 now: ask the old layer.",
)
def out_of_place(old):
    return nn.Dropout(0.2)


@wrong(
    "07.2",
    "your function returns the old layer itself. The original network, kept for comparison, "
    "would share that layer: make a new one.",
)
def out_of_place(old):
    old.inplace = False
    return old


@wrong(
    "07.2",
    "your function changes the old layer; the original network has it still.",
)
def out_of_place(old):
    old.inplace = False
    return nn.Dropout(old.p)


@wrong(
    "07.2",
    "the new layer still works in place.",
)
def out_of_place(old):
    return copy.deepcopy(old)


@wrong(
    "07.2",
    "the old layer was training, and the new one is in eval mode: it drops nothing until "
    "somebody calls train().",
)
def out_of_place(old):
    return nn.Dropout(old.p).eval()


@wrong(
    "07.2",
    "a layer that was told 0.2 drops 0.8 now.",
)
def out_of_place(old):
    return nn.Dropout(1 - old.p)


@wrong(
    "07.2",
    "an nn.Dropout is expected, but this is Identity().",
)
def out_of_place(old):
    return nn.Identity()


# --- 07.3 ----------------------------------------------------------------------------------------


@right("07.3")
def gates(graph):
    of = {n.output[0]: n for n in graph.node if n.op_type == "HardSigmoid"}
    products = [n for n in graph.node if n.op_type == "Mul"]
    pairs = [
        (of[a], b) for n in products for a, b in (tuple(n.input), tuple(n.input)[::-1]) if a in of
    ]
    return [node.name for node, other in pairs if other != node.input[0]]


@right("07.3")
def gates(graph):
    users = defaultdict(list)
    for n in graph.node:
        for name in n.input:
            users[name].append(n)
    for n in graph.node:
        scaled = [u for u in users[n.output[0]] if u.op_type == "Mul"]
        if n.op_type == "HardSigmoid" and any(
            set(u.input) - {n.output[0], n.input[0]} for u in scaled
        ):
            yield n.name


@wrong(
    "07.3",
    "on a hard-swish in two nodes you return 'act', which is not a gate.",
)
def gates(graph):
    return {n.name for n in graph.node if n.op_type == "HardSigmoid"}


@wrong(
    "07.3",
    "'scale' is a Mul; the gate is what it multiplies by.",
)
def gates(graph):
    return {n.name for n in graph.node if n.op_type == "Mul"}


@wrong(
    "07.3",
    "'s' is not a node's name; a node has one, and its output another.",
)
def gates(graph):
    return {n.output[0] for n in graph.node if n.op_type == "HardSigmoid"}


@wrong(
    "07.3",
    "these are nodes; their names are expected.",
)
def gates(graph):
    return [n for n in graph.node if n.op_type == "HardSigmoid"]


@wrong(
    "07.3",
    "on a gate that stands first in its product you miss a gate.",
)
def gates(graph):
    found = set()
    for n in graph.node:
        for u in graph.node:
            if n.op_type == "HardSigmoid" and u.op_type == "Mul":
                if u.input[1] == n.output[0] and u.input[0] != n.input[0]:
                    found.add(n.name)
    return found


@wrong(
    "07.3",
    "on a HardSigmoid that is added to something you return 'plain', which is not a gate.",
)
def gates(graph):
    found = set()
    for n in graph.node:
        users = [u for u in graph.node if n.output[0] in u.input]
        own = [u for u in users if n.input[0] in u.input]
        if n.op_type == "HardSigmoid" and not own:
            found.add(n.name)
    return found


@wrong(
    "07.3",
    "on one output that two products use you miss a gate.",
)
def gates(graph):
    found = set()
    for n in graph.node:
        users = [u for u in graph.node if n.output[0] in u.input]
        kinds = {u.op_type for u in users}
        own = [u for u in users if n.input[0] in u.input]
        if n.op_type == "HardSigmoid" and kinds == {"Mul"} and not own:
            found.add(n.name)
    return found


@wrong(
    "07.3",
    "you find no gate in any graph. What a node gives is called node.output[0]; node.output is "
    "the whole list, and is in no list of names.",
)
def gates(graph):
    return {
        n.name
        for n in graph.node
        for u in graph.node
        if n.op_type == "HardSigmoid" and n.output in u.input
    }


@wrong(
    "07.3",
    "your function returned None (a forgotten return?).",
)
def gates(graph):
    {n.name for n in graph.node if n.op_type == "HardSigmoid"}


# --- 07.4 ----------------------------------------------------------------------------------------


@right_value("07.4")
def _():
    return surgery.pattern_rule(lambda x: (x * 1.702).sigmoid() * x, F.relu, name="quick GELU")


@right_value("07.4")
def _():
    def quick_gelu(h):
        gate = torch.sigmoid(1.702 * h)
        return h * gate

    return surgery.pattern_rule(quick_gelu, lambda h: h.clamp(min=0))


@wrong_value(
    "07.4",
    "a pattern is several operations: make the rule with surgery.pattern_rule.",
)
def _():
    return {torch.sigmoid: torch.relu}


@wrong_value(
    "07.4",
    "your pattern does not match h * torch.sigmoid(1.702 * h), where h is the output of a layer.",
)
def _():
    return surgery.pattern_rule(lambda x: x * torch.sigmoid(x), torch.relu)


@wrong_value(
    "07.4",
    "it matches, and the replacement is a ReLU of 1.702 * x: too steep.",
)
def _():
    return surgery.pattern_rule(
        lambda x: x * torch.sigmoid(1.702 * x), lambda x: torch.relu(1.702 * x)
    )


@wrong_value(
    "07.4",
    "it matches, and the replacement computes what was there before.",
)
def _():
    return surgery.pattern_rule(
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: x * torch.sigmoid(1.702 * x),
    )


@wrong_value(
    "07.4",
    "your pattern takes 2 tensors. In quick GELU one and the same tensor is scaled and does the"
    " scaling; with two it would be a gate.",
)
def _():
    return surgery.pattern_rule(
        lambda x, y: x * torch.sigmoid(1.702 * y), lambda x, y: torch.relu(x)
    )


@wrong_value(
    "07.4",
    "your rule promises to be exact, and a ReLU is another function.",
)
def _():
    return surgery.pattern_rule(lambda x: x * torch.sigmoid(1.702 * x), torch.relu, exact=True)


@wrong_value(
    "07.4",
    "the surgery with your rule raised UsageError: The pattern quick makes a layer while it "
    "runs. Write it with functions, such as torch.sigmoid(x), or as an nn.Module that holds the"
    " layer.",
)
def _():
    return surgery.pattern_rule(
        lambda x: x * torch.nn.Sigmoid()(1.702 * x), torch.relu, name="quick"
    )


@wrong_value(
    "07.4",
    "this rule has no pattern of several operations: use surgery.pattern_rule.",
)
def _():
    return surgery.RULES["gelu-to-relu"]
