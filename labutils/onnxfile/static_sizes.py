"""Shape and Size of tensors of static shape: constants, which exporters compute all the same.

torch's legacy exporter writes ``squeeze`` and ``view`` so; what is computed of the sizes, and a
branch that they decide, can then be folded (`labutils.onnxfile.constants.fold_`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..errors import counted
from . import shapes
from .edit import nodes_within, subgraphs

if TYPE_CHECKING:
    import onnx

_OPERATORS = ("Shape", "Size")


def fold_(model: onnx.ModelProto) -> list[str]:
    """Store the sizes that are static as weights, in place; return what was changed, as text."""
    from onnx import numpy_helper

    found = list(_static(model))
    for graph, node, value in found:
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        graph.node.remove(node)
    return [f"{counted(len(found), 'size')} that it computed stored as weights"] if found else []


def is_folded(model: onnx.ModelProto) -> bool:
    """Return whether `fold_` has nothing to do."""
    return not any(True for _ in _static(model))


def _static(model: onnx.ModelProto) -> Iterator[tuple[onnx.GraphProto, onnx.NodeProto, np.ndarray]]:
    """Yield each node whose value is known, with its graph and the value."""
    if not any(_is_size(node) for node in nodes_within(model.graph)):
        return
    known = shapes.inferred(model)
    for graph, node in list(_sized(model.graph)):
        source = known.get(node.input[0])
        size = shapes.sizes(source) if source is not None else None
        if size is not None and all(size):
            yield graph, node, _value(node, size)


def _value(node: onnx.NodeProto, size: list[int]) -> np.ndarray:
    if node.op_type == "Size":
        return np.array(math.prod(size), np.int64)
    bounds = {a.name: a.i for a in node.attribute}  # as Python slices, negative ones too
    return np.array(size[bounds.get("start") : bounds.get("end")], np.int64)


def _sized(
    graph: onnx.GraphProto, inside: bool = False
) -> Iterator[tuple[onnx.GraphProto, onnx.NodeProto]]:
    """Yield the nodes that compute sizes; not one that is what a branch gives."""
    given = {value.name for value in graph.output} if inside else set()
    for node in graph.node:
        if _is_size(node) and node.output[0] not in given:
            yield graph, node
        for inner in subgraphs(node):
            yield from _sized(inner, inside=True)


def _is_size(node: onnx.NodeProto) -> bool:
    return node.op_type in _OPERATORS and not node.domain
