"""Reading constants of an ONNX graph in memory, and writing nodes into it under unused names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...onnxfile.edit import free_name


def label(node: ir.Node) -> str:
    """Return a node's name, or what it is known by without one."""
    return node.name or f"the node of {node.outputs[0].name}"


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """Return the value of a constant, None where a tensor is computed or absent."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def rank_of(value: ir.Value | None) -> int | None:
    """Return the number of dimensions, None where the file does not say."""
    return None if value is None or value.shape is None else len(value.shape)


def numbers(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """Return an attribute that holds whole numbers, or `default`."""
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else list(attribute.as_ints())


class Writer:
    """Writes nodes into a graph in place of others, under names that are not taken."""

    def __init__(self, model: ir.Model) -> None:
        self.graph, self.opset = model.graph, model.opset_imports.get("", 1)
        nodes = list(model.graph.all_nodes())
        self._nodes = {node.name for node in nodes}
        self._values = {v.name for n in nodes for v in (*n.inputs, *n.outputs) if v is not None}
        self._values |= set(model.graph.initializers)

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """Add an initializer and return it."""
        name = free_name(name, self._values)
        array = np.ascontiguousarray(array)  # of one dimension at least
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype),
                         const_value=tensor)  # fmt: skip
        self.graph.register_initializer(value)
        return value

    def node(
        self, op: str, inputs: Sequence[ir.Value | None], near: ir.Node, **attributes: Any
    ) -> ir.Node:
        """Return a node with one output, named after the node that it stands in for."""
        name = free_name(f"{label(near)}/{op}", self._nodes)
        node = ir.node(op, list(inputs), attributes, name=name)
        node.outputs[0].name = free_name(f"{name}_output_0", self._values)
        node.metadata_props.update(near.metadata_props)
        return node

    def replace(self, old: ir.Node, new: Sequence[ir.Node]) -> None:
        """Put nodes in the place of one; the last one's output takes over its output."""
        made, was = new[-1].outputs[0], old.outputs[0]
        shape = made.shape or was.shape
        made.type = was.type
        owner = old.graph or self.graph
        ir.convenience.replace_nodes_and_values(owner, old, [old], list(new), [was], [made])
        made.shape = shape  # that call copies the old one's
