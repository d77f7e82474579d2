"""Networks in float16 or bfloat16, written in float32: every value of theirs is one of float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from .edit import graphs_within, nodes_within
from .graph import with_shapes

if TYPE_CHECKING:
    import onnx

FLOAT = 1
HALVES = {10: "float16", 16: "bfloat16"}
"""``TensorProto.DataType`` of the half-precision types, and their names."""

_DTYPES = ("to", "dtype", "output_dtype", "stash_type")  # attributes that name an element type


def half_types(model: onnx.ModelProto) -> set[str]:
    """Return which half-precision types the model's tensors and Casts have."""
    found = {value.type.tensor_type.elem_type for graph in graphs_within(model.graph)
             for value in (*graph.input, *graph.output)}  # fmt: skip
    found |= {tensor.data_type for tensor in _tensors(model.graph)}
    found |= {a.i for node in nodes_within(model.graph) for a in node.attribute
              if a.name in _DTYPES}  # fmt: skip
    return {name for number, name in HALVES.items() if number in found}


def widen_(model: onnx.ModelProto) -> set[str]:
    """Write a model of half precision in float32; return the types that it had.

    Weights keep their values; what was rounded to half precision between two nodes no longer is.
    A Cast that then changes nothing becomes an Identity.
    """
    found = half_types(model)
    if not found:
        return found
    for tensor in _tensors(model.graph):
        _widen_tensor_(tensor)
    for graph in graphs_within(model.graph):
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in HALVES:
                value.type.tensor_type.elem_type = FLOAT
        del graph.value_info[:]
    for node in nodes_within(model.graph):
        for attribute in node.attribute:
            if attribute.name in _DTYPES and attribute.i in HALVES:
                attribute.i = FLOAT
    _idle_casts_(model)
    return found


def _widen_tensor_(tensor: onnx.TensorProto) -> None:
    from onnx import numpy_helper

    if tensor.data_type in HALVES:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _idle_casts_(model: onnx.ModelProto) -> None:
    """Turn Casts from float32 to float32 into Identity."""
    shaped = with_shapes(model)
    for graph in graphs_within(shaped.graph):
        if len(graph.node) and graph is shaped.graph:
            types = {v.name: v.type.tensor_type.elem_type
                     for v in (*graph.input, *graph.value_info, *graph.output)}  # fmt: skip
            types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in nodes_within(model.graph):
        if node.op_type == "Cast" and types.get(node.input[0]) == FLOAT == cast_type(node):
            node.op_type = "Identity"
            del node.attribute[:]


def cast_type(node: onnx.NodeProto) -> int:
    """Return the number of the type that a Cast gives; since opset 19 `to` has company."""
    return next(int(a.i) for a in node.attribute if a.name == "to")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the weights, and the tensors that are attributes of nodes."""
    for owner in graphs_within(graph):
        yield from owner.initializer
        for node in owner.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
