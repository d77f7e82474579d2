"""Operators that ONNX Runtime fuses into a file that it saves, in ONNX's own operators again.

A session with `optimized_model_filepath` writes the domain ``com.microsoft``, which other tools do
not know: FusedConv, FusedGemm, QuickGelu, Gelu, BiasGelu. Source: ONNX Runtime, `ContribOperators`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import counted
from .edit import free_name, nodes_within, subgraphs

if TYPE_CHECKING:
    import onnx

DOMAIN = "com.microsoft"

# activation -> the attributes that ONNX Runtime lists as numbers, in their order
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (), "Tanh": (), "Sigmoid": (), "Softplus": (), "Softsign": (),
    "LeakyRelu": ("alpha",), "Elu": ("alpha",), "ThresholdedRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max"),
}  # fmt: skip
_DEFAULTS = {"LeakyRelu": (0.01,), "Elu": (1.0,), "ThresholdedRelu": (1.0,),
             "HardSigmoid": (0.2, 0.5)}  # fmt: skip


def fused(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes of a graph, and of those inside it, that `expand_` can write out."""
    return [node for node in nodes_within(graph) if _expansion(node)]


def expand_(model: onnx.ModelProto) -> list[str]:
    """Write fused operators in ONNX's own, in place; return what was changed, as text."""
    nodes = fused(model.graph)
    if not nodes:
        return []
    counts = Counter(node.op_type for node in nodes)
    work = _Expanding(model)
    work.expand_(model.graph)
    if not any(node.domain == DOMAIN for node in nodes_within(model.graph)):
        kept = [entry for entry in model.opset_import if entry.domain != DOMAIN]
        del model.opset_import[:]
        model.opset_import.extend(kept)
    return [f"{counted(n, op)} of ONNX Runtime written out" for op, n in sorted(counts.items())]


def _expansion(node: onnx.NodeProto) -> Callable[[_Expanding, onnx.NodeProto], None] | None:
    if node.domain != DOMAIN:
        return None
    if node.op_type in ("FusedConv", "FusedGemm"):
        known = _attributes(node).get("activation", b"").decode() in _ACTIVATIONS
        return _Expanding.product if known else None
    return {
        "QuickGelu": _Expanding.quick_gelu, "Gelu": _Expanding.gelu,
        "BiasGelu": _Expanding.bias_gelu,
    }.get(node.op_type)  # fmt: skip


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


class _Expanding:
    """The names in use, while nodes are written out in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        nodes = list(nodes_within(model.graph))
        self.labels = {node.name for node in nodes}
        self.tensors = {name for node in nodes for name in (*node.input, *node.output)}
        self.tensors |= {tensor.name for tensor in model.graph.initializer}
        self.weights = model.graph.initializer
        self.made: list[onnx.NodeProto] = []

    def expand_(self, graph: onnx.GraphProto) -> None:
        """Write out the fused nodes of a graph, and of the graphs inside it."""
        made = []
        for node in graph.node:
            for inner in subgraphs(node):
                self.expand_(inner)
            expansion = _expansion(node)
            if expansion is None:
                made.append(node)
                continue
            self.made = []
            expansion(self, node)
            made += self.made
        made = [type(node).FromString(node.SerializeToString()) for node in made]
        del graph.node[:]
        graph.node.extend(made)

    def product(self, node: onnx.NodeProto) -> None:
        """Write FusedConv as Conv, the sum with its fourth input, and the activation."""
        given = _attributes(node)
        activation = given.pop("activation").decode()
        values = tuple(given.pop("activation_params", ()))  # of FusedConv
        for name in ("activation_alpha", "activation_beta", "activation_gamma"):  # of FusedGemm
            values += (given.pop(name),) if name in given else ()
        inputs, z = list(node.input[:3]), node.input[3] if len(node.input) > 3 else ""
        while inputs and not inputs[-1]:
            del inputs[-1]
        x = self.node(node, node.op_type.removeprefix("Fused"), inputs, **given)
        if z:
            x = self.node(node, "Add", [x, z])
        values = values or _DEFAULTS.get(activation, ())
        if activation == "Clip":  # since opset 11 its bounds are inputs
            low, high = (self.number(node, "bound", value) for value in values)
            self.node(node, "Clip", [x, low, high], node.output[0])
        else:
            named = dict(zip(_ACTIVATIONS[activation], values, strict=False))
            self.node(node, activation, [x], node.output[0], **named)

    def quick_gelu(self, node: onnx.NodeProto) -> None:
        """Write ``x sigmoid(alpha x)``."""
        x, alpha = node.input[0], _attributes(node).get("alpha", 1.702)
        scaled = x if alpha == 1 else self.node(node, "Mul", [x, self.number(node, "alpha", alpha)])
        gate = self.node(node, "Sigmoid", [scaled])
        self.node(node, "Mul", [x, gate], node.output[0])

    def bias_gelu(self, node: onnx.NodeProto) -> None:
        """Write the sum, and GELU."""
        self.gelu(node, self.node(node, "Add", list(node.input)))

    def gelu(self, node: onnx.NodeProto, x: str = "") -> None:
        """Write ``x (1 + erf(x / sqrt(2))) / 2``."""
        x = x or node.input[0]
        root = self.number(node, "root", math.sqrt(2))
        erf = self.node(node, "Erf", [self.node(node, "Div", [x, root])])
        more = self.node(node, "Add", [erf, self.number(node, "one", 1)])
        twice = self.node(node, "Mul", [x, more])
        self.node(node, "Mul", [twice, self.number(node, "half", 0.5)], node.output[0])

    def node(
        self, of: onnx.NodeProto, op: str, inputs: list[str], output: str = "", **attributes: Any
    ) -> str:
        """Add a node; return its output, by default a new tensor."""
        from onnx import helper

        stem = of.name or of.output[0]
        made = output or free_name(f"{of.output[0]}/{op}", self.tensors)
        label = of.name if output else free_name(f"{stem}/{op}", self.labels)
        self.made.append(helper.make_node(op, inputs, [made], label, **attributes))
        return made

    def number(self, of: onnx.NodeProto, role: str, value: float) -> str:
        """Add a float32 scalar; return its name."""
        from onnx import numpy_helper

        name = free_name(f"{of.output[0]}/{role}", self.tensors)
        self.weights.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name
