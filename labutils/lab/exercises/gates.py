"""Judging who finds the gates of an ONNX graph: on graphs that look alike and are not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..answer import NotYet, call, names, shown

if TYPE_CHECKING:
    import onnx


def _graph(*nodes: tuple[str, str, list[str], str], outputs: tuple[str, ...]) -> onnx.ModelProto:
    """Return a model of (name, operator, inputs, output) nodes over the inputs a and b."""
    from onnx import TensorProto, helper

    made = [helper.make_node(op, given, [out], name=name) for name, op, given, out in nodes]
    value = lambda name: helper.make_tensor_value_info(  # noqa: E731
        name, TensorProto.FLOAT, [1, 4, 1, 1]
    )
    graph = helper.make_graph(made, "g", [value("a"), value("b")], [value(o) for o in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def _cases() -> list[tuple[str, onnx.ModelProto, set[str]]]:
    """Return (what it is, graph, the gates)."""
    gate = ("up", "HardSigmoid", ["b"], "s"), ("scale", "Mul", ["s", "a"], "y")
    turned = ("up", "HardSigmoid", ["b"], "s"), ("scale", "Mul", ["a", "s"], "y")
    swish = ("act", "HardSigmoid", ["a"], "s"), ("mul", "Mul", ["s", "a"], "y")
    turned_swish = ("act", "HardSigmoid", ["a"], "s"), ("mul", "Mul", ["a", "s"], "y")
    chain = (("plain", "HardSigmoid", ["a"], "s"), ("add", "Add", ["s", "b"], "y"))
    both = (
        ("one", "HardSigmoid", ["a"], "s"), ("h", "Mul", ["a", "s"], "t"),
        ("two", "HardSigmoid", ["b"], "u"), ("g", "Mul", ["t", "u"], "y"),
    )  # fmt: skip
    shared = (
        ("first", "HardSigmoid", ["a"], "s"), ("own", "Mul", ["a", "s"], "t"),
        ("other", "Mul", ["b", "s"], "u"), ("sum", "Add", ["t", "u"], "y"),
    )  # fmt: skip
    alone = (("last", "HardSigmoid", ["a"], "y"),)
    divided = (("under", "HardSigmoid", ["b"], "s"), ("div", "Div", ["a", "s"], "y"))
    late = (
        ("own/act", "HardSigmoid", ["b"], "s"), ("r", "Relu", ["a"], "t"),
        ("e", "Relu", ["t"], "u"), ("product", "Mul", ["u", "s"], "y"),
    )  # fmt: skip
    misnamed = (
        ("se/gate", "HardSigmoid", ["a"], "s"), ("se/scale", "Mul", ["s", "a"], "t"),
        ("other", "Sigmoid", ["b"], "u"), ("m", "Mul", ["t", "u"], "y"),
    )  # fmt: skip
    two = (
        ("g1", "HardSigmoid", ["b"], "s"), ("m1", "Mul", ["a", "s"], "t"),
        ("g2", "HardSigmoid", ["t"], "u"), ("m2", "Mul", ["u", "b"], "y"),
    )  # fmt: skip
    return [
        ("a squeeze-excitation", _graph(*turned, outputs=("y",)), {"up"}),
        ("a gate that stands first in its product", _graph(*gate, outputs=("y",)), {"up"}),
        ("a hard-swish in two nodes", _graph(*turned_swish, outputs=("y",)), set()),
        ("a hard-swish whose factors are turned", _graph(*swish, outputs=("y",)), set()),
        ("a hard-swish and a gate", _graph(*both, outputs=("y",)), {"two"}),
        ("a HardSigmoid that is added to something", _graph(*chain, outputs=("y",)), set()),
        ("a HardSigmoid at the end of the graph", _graph(*alone, outputs=("y",)), set()),
        ("one output that two products use", _graph(*shared, outputs=("y",)), {"first"}),
        ("a HardSigmoid that something is divided by", _graph(*divided, outputs=("y",)), set()),
        ("a gate with other nodes before its product", _graph(*late, outputs=("y",)), {"own/act"}),
        ("a hard-swish that is called a gate", _graph(*misnamed, outputs=("y",)), set()),
        ("two gates one after the other", _graph(*two, outputs=("y",)), {"g1", "g2"}),
    ]


def judge_gates(gates: Any) -> None:
    """Judge the names that are found in every graph; the first wrong graph is named."""
    found = [_names_of(_asked(gates, model.graph)) for _, model, _ in _cases()]
    if not any(found):
        raise NotYet(
            "you find no gate in any graph. What a node gives is called node.output[0]; "
            "node.output is the whole list, and is in no list of names."
        )
    for (what, model, true), names_ in zip(_cases(), found, strict=True):
        if names_ != true:
            raise NotYet(_explain_gates(what, model.graph, names_, true))


def _explain_gates(what: str, graph: onnx.GraphProto, found: set[str], true: set[str]) -> str:
    kinds = {node.name: node.op_type for node in graph.node}
    if foreign := found - set(kinds):
        return f"'{min(foreign)}' is not a node's name; a node has one, and its output another."
    if odd := [name for name in sorted(found) if kinds[name] != "HardSigmoid"]:
        return f"'{odd[0]}' is a {kinds[odd[0]]}; the gate is what it multiplies by."
    if found - true:
        return f"on {what} you return {min(found - true)!r}, which is not a gate."
    return f"on {what} you miss a gate."


def _asked(answer: Any, graph: onnx.GraphProto) -> Any:
    """Call, and read a generator at once: it may write into the graph as it runs."""
    return call(lambda given: _read(answer(given)), graph)


def _read(value: Any) -> Any:
    return list(value) if isinstance(value, Iterator) else value


def _names_of(value: Any) -> set[str]:
    if value is None:
        raise NotYet("your function returned None (a forgotten return?).")
    if isinstance(value, str):
        raise NotYet(f"several names are expected, but this is text: {shown(value)}.")
    if isinstance(value, list | tuple | set) and any(hasattr(v, "op_type") for v in value):
        raise NotYet("these are nodes; their names are expected.")
    return names(value, "a set of node names")
