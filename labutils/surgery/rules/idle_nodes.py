"""Exact rules for ONNX nodes that do nothing: Identity, and Dropout outside of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..forms import Leave, OnnxForm
from ..rule import Rule

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..onnx_level.builder import Builder


def _take_input(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return x


def _check_idle(node: ir.Node, _: frozenset[str]) -> Leave | None:
    if node.outputs[0].is_graph_output():
        return Leave("it names an output of the graph")
    if any(value.uses() for value in node.outputs[1:]):
        return Leave("its mask is used")
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        return Leave("it may drop values: it has an input for training mode")
    return None


IDLE = Rule(
    name="idle-nodes",
    exact=True,
    error="bit-equal",
    source="ONNX operators Identity and Dropout: outside of training the output is the input",
    keeps="there are no weights",
    onnx=tuple(OnnxForm.of_node(op, _take_input, _check_idle) for op in ("Identity", "Dropout")),
)

RULES = (IDLE,)
