"""Answers to the exercises of 07: rules, settings, gates, patterns."""

import copy
import functools
import itertools
import types
from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from answers import right, wrong
from labutils import surgery


@right("07.1")
def rules(random):
    def hardswish(old, inplace):
        return nn.Hardswish(inplace)

    name = "".join(random.choices("abcdef", k=5))

    def predicate(module):
        return type(module) is nn.SiLU

    predicate.__name__ = name
    yield "an ordered dictionary", OrderedDict({nn.SiLU: nn.Hardswish})
    yield "one that cannot be changed", types.MappingProxyType({nn.SiLU: nn.Hardswish})
    yield "a maker that is told how", {nn.SiLU: functools.partial(hardswish, inplace=False)}
    yield f"a test called {name}", {predicate: lambda old: nn.Hardswish(inplace=old.inplace)}


@wrong("07.1")
def no_rules(random):
    other = random.choice([nn.ReLU6, nn.Mish, nn.GELU])
    known = nn.ReLU | nn.SiLU | nn.ELU | nn.Mish
    yield f"{other.__name__} instead", {nn.SiLU: other}, "a Hardswish is expected"
    yield "turned round", {nn.Hardswish: nn.SiLU}, "finds nothing"
    yield "the sigmoid", {nn.Sigmoid: nn.Hardsigmoid}, "both SiLU layers are left"
    yield "sigmoid as well", {nn.SiLU: nn.Hardswish, nn.Sigmoid: nn.Hardswish}, "Sigmoid was"
    yield "whatever works in place", {lambda m: getattr(m, "inplace", False): nn.Hardswish}, ""
    yield "other activations", {lambda m: isinstance(m, known): nn.Hardswish}, "was replaced too"
    yield "ReLU as well", {nn.SiLU: nn.Hardswish, nn.ReLU: nn.Hardswish}, "ReLU was replaced"
    yield (
        "all but in place",
        {lambda m: isinstance(m, nn.SiLU) and not m.inplace: nn.Hardswish},
        ("a SiLU is left"),
    )
    yield "one layer", {nn.SiLU(): nn.Hardswish()}, "one layer"
    yield "a set", {nn.SiLU, nn.Hardswish}, "a set"
    yield "a pair", (nn.SiLU, nn.Hardswish), "a dict"
    yield "a function", {nn.SiLU: F.hardswish}, "function of numbers"


@right("07.2")
def makers(random):
    class Quiet(nn.Dropout):
        """A subclass will do."""

    def copied(old):
        new = copy.copy(old)
        new.inplace = False
        return new

    def by_hand(old):
        new = nn.Dropout(random.random())
        new.p, new.training = old.p, old.training
        return new

    yield "its own class", lambda old: type(old)(old.p)
    yield "a subclass", lambda old: Quiet(p=old.p).train(old.training)
    yield "a copy", copied
    yield "by hand", by_hand


@wrong("07.2")
def no_makers(random):
    p = round(random.uniform(0.1, 0.4), 2)

    def quiet(old):
        old.eval()
        return nn.Dropout(old.p)

    def halved(old):
        old.p /= 2
        return nn.Dropout(old.p * 2)

    yield "in eval", lambda old: nn.Dropout(old.p).eval(), "eval mode"
    yield "told nothing", lambda old: nn.Dropout(), "drops half"
    yield f"always {p}", lambda old: nn.Dropout(p), "right for one network"
    yield "what is kept", lambda old: nn.Dropout(1 - old.p), "now"
    yield "none is half", lambda old: nn.Dropout(old.p or 0.5), "a layer that was told 0 "
    yield "rounded", lambda old: nn.Dropout(round(old.p, 1)), "0.35"
    yield "at most a half", lambda old: nn.Dropout(min(old.p, 0.5)), "a layer that was told 1 "
    yield "in place", lambda old: nn.Dropout(old.p, inplace=True), "in place"
    yield "as it was told", lambda old: nn.Dropout(old.p, old.inplace), "in place"
    yield "the old one", lambda old: old, "old layer itself"
    yield "switches the old one off", quiet, "changes the old layer"
    yield "changes the old one", halved, "changes the old layer"
    yield "whole channels", lambda old: nn.Dropout2d(old.p), "an nn.Dropout is expected"
    yield "the class", nn.Dropout, "function of the old layer"


def hard(graph):
    return [node for node in graph.node if node.op_type == "HardSigmoid"]


@right("07.3")
def gate_finders(random):
    def by_edges(graph):
        made = {out: node for node in graph.node for out in node.output}
        for node in graph.node:
            if node.op_type == "Mul":
                a, b = node.input
                for one, other in ((a, b), (b, a)):
                    source = made.get(one)
                    kind = source.op_type if source is not None else ""
                    if kind == "HardSigmoid" and other != source.input[0]:
                        yield source.name

    def by_sets(graph):
        products = [set(n.input) for n in graph.node if n.op_type == "Mul"]
        return np.array(
            [
                n.name for n in hard(graph)
                if any(n.output[0] in p and p != {n.output[0], n.input[0]} for p in products)
            ]
        )  # fmt: skip

    yield "from the products", by_edges
    yield "by sets, an array", by_sets
    yield "a dictionary", lambda graph: dict.fromkeys(by_edges(graph), True).keys()


@wrong("07.3")
def no_gate_finders(random):
    def by(test):
        return lambda graph: {n.name for n in hard(graph) if any(test(n, u) for u in graph.node)}

    def adjacent(graph):
        nodes = list(graph.node)
        return [
            n.name for n, after in itertools.pairwise(nodes)
            if n.op_type == "HardSigmoid" and after.op_type == "Mul"
            and n.input[0] not in after.input
        ]  # fmt: skip

    def changing(graph):
        found = {
            n.name for n in hard(graph) for u in graph.node
            if u.op_type == "Mul" and n.output[0] in u.input and n.input[0] not in u.input
        }  # fmt: skip
        del graph.node[:]
        return found

    read = lambda n, u: n.output[0] in u.input  # noqa: E731
    other = lambda n, u: n.input[0] not in u.input  # noqa: E731
    yield "any reader", by(lambda n, u: read(n, u) and other(n, u)), "not a gate"
    yield "any product", by(lambda n, u: read(n, u) and u.op_type == "Mul"), "not a gate"
    yield "the next node", adjacent, "miss a gate"
    yield "by name", lambda graph: {n.name for n in hard(graph) if "gate" in n.name}, ""
    yield "all", lambda graph: {n.name for n in hard(graph)}, "not a gate"
    yield (
        "first factor only",
        by(
            lambda n, u: (
                u.op_type == "Mul" and u.input[0] == n.output[0] and u.input[1] != n.input[0]
            )
        ),
        "miss a gate",
    )
    yield (
        "products and quotients",
        by(lambda n, u: u.op_type in ("Mul", "Div") and read(n, u) and other(n, u)),
        "divided",
    )
    yield "sigmoids as well", lambda graph: {
        n.name for n in graph.node for u in graph.node
        if "Sigmoid" in n.op_type and u.op_type == "Mul" and read(n, u) and other(n, u)
    }, "is a Sigmoid"  # fmt: skip
    yield (
        "empties the graph",
        changing,
        "writes into its input; everything else that reads that graph",
    )
    yield "the products", lambda graph: [n.name for n in graph.node if n.op_type == "Mul"], "is a"
    yield "joined", lambda graph: ", ".join(n.name for n in hard(graph)), "this is text"


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


@right("07.4")
def patterns(random):
    class Clipped(nn.Module):
        def forward(self, x):
            return x.clamp(min=0.0)

    word = random.choice(["fast", "quick", "sharp"])
    yield "turned round", surgery.pattern_rule(lambda t: torch.sigmoid(t * 1.702) * t, torch.relu)
    yield (
        "methods",
        surgery.pattern_rule(lambda t: t.mul(t.mul(1.702).sigmoid()), lambda t: F.relu(t)),
    )
    yield f"called {word}", surgery.pattern_rule(quick_gelu, F.relu, name=word)
    yield "a module in its place", surgery.pattern_rule(quick_gelu, Clipped())


@wrong("07.4")
def no_patterns(random):
    slope = random.choice([1.7, 1.71, 1.5])
    rule = functools.partial(surgery.pattern_rule, quick_gelu)
    yield (
        f"slope {slope}",
        surgery.pattern_rule(lambda x: x * torch.sigmoid(slope * x), torch.relu),
        "does not match",
    )
    yield "no slope", surgery.pattern_rule(lambda x: x * torch.sigmoid(x), F.relu), "not match"
    yield "ReLU6 in its place", rule(F.relu6), "ReLU6"
    yield "a leak", rule(lambda x: F.leaky_relu(x, 0.01)), "not the ReLU of the same x"
    yield "hard-swish in its place", rule(F.hardswish), "not the ReLU of the same x"
    yield "detached", rule(lambda x: torch.relu(x).detach()), "no gradient"
    yield "in place", rule(lambda x: x.relu_()), "writes into the tensor"
    yield "too steep", rule(lambda x: torch.relu(1.702 * x)), "too steep"
    yield (
        "two tensors",
        surgery.pattern_rule(lambda x, y: x * torch.sigmoid(1.702 * y), lambda x, y: torch.relu(x)),
        "2 tensors",
    )
    yield "promised exact", rule(torch.relu, exact=True), "promises to be exact"
    yield "a dictionary", {quick_gelu: torch.relu}, "surgery.pattern_rule"
    yield "the functions", (quick_gelu, torch.relu), "a rule is expected"
