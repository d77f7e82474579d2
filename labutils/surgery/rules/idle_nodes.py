"""Exact rules for ONNX nodes that do nothing: Identity, and Dropout outside of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..rule import OnnxForm, Rule
from .smooth_activations import one_node

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..onnx_level.builder import Builder


def _input(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return x


def _objection(node: ir.Node, _: frozenset[str]) -> str:
    if node.outputs[0].is_graph_output():
        return "it gives an output of the graph its name"
    if any(value.uses() for value in node.outputs[1:]):
        return "its mask is used"
    mode = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    return "" if mode is None else "it may drop values: it has an input for training mode"


IDLE = Rule(
    name="idle-nodes",
    exact=True,
    error="bit-equal",
    source="ONNX operators Identity and Dropout: outside of training the output is the input",
    keeps="there are no weights",
    onnx=tuple(
        OnnxForm(op, (op,), one_node(op), _input, _objection) for op in ("Identity", "Dropout")
    ),
)

RULES = (IDLE,)
