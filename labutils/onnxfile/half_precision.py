"""Networks in float16, bfloat16 or float64, written in float32, which every stage here computes in.

Every value of half precision is one of float32. One of float64 is rounded to it: ONNX Runtime has
no convolution in float64, and no accelerator has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ModelFileError
from .edit import graphs_within, nodes_within
from .graph import with_shapes

if TYPE_CHECKING:
    import onnx

FLOAT, DOUBLE = 1, 11
HALVES = {10: "float16", 16: "bfloat16"}
"""``TensorProto.DataType`` of the half-precision types, and their names."""

_OTHERS = {**HALVES, DOUBLE: "float64"}

_DTYPES = ("to", "dtype", "output_dtype", "stash_type")  # attributes that name an element type


def half_types(model: onnx.ModelProto) -> set[str]:
    """Return which half-precision types the model's tensors and Casts have.

    And ``float64``, where the network is in it: not for a number that sizes are computed with.
    """
    found = {value.type.tensor_type.elem_type for graph in graphs_within(model.graph)
             for value in (*graph.input, *graph.output)}  # fmt: skip
    found |= {tensor.data_type for tensor in _tensors(model.graph)}
    found |= {a.i for node in nodes_within(model.graph) for a in node.attribute
              if a.name in _DTYPES}  # fmt: skip
    halves = {name for number, name in HALVES.items() if number in found}
    return halves | ({_OTHERS[DOUBLE]} if _is_double(model.graph) else set())


def _is_double(graph: onnx.GraphProto) -> bool:
    """Return whether an image, scores or weights are float64."""
    ends = any(v.type.tensor_type.elem_type == DOUBLE for v in (*graph.input, *graph.output))
    weights = (tensor for tensor in _tensors(graph) if tensor.data_type == DOUBLE)
    return ends or any(len(tensor.dims) > 1 for tensor in weights)


def widen_(model: onnx.ModelProto) -> set[str]:
    """Write a model of half precision or float64 in float32; return the types that it had.

    Weights of half precision keep their values; what was rounded to it between two nodes no longer
    is. A Cast that then changes nothing becomes an Identity.

    Raises
    ------
    ModelFileError
        A weight of float64 is larger than float32 reaches.
    """
    found = half_types(model)
    if not found:
        return found
    numbers = {number for number, name in _OTHERS.items() if name in found}
    for tensor in _tensors(model.graph):
        _widen_tensor_(tensor, numbers)
    for graph in graphs_within(model.graph):
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in numbers:
                value.type.tensor_type.elem_type = FLOAT
        del graph.value_info[:]
    for node in nodes_within(model.graph):
        for attribute in node.attribute:
            if attribute.name in _DTYPES and attribute.i in numbers:
                attribute.i = FLOAT
    _idle_casts_(model)
    return found


def _widen_tensor_(tensor: onnx.TensorProto, numbers: set[int]) -> None:
    from onnx import numpy_helper

    if tensor.data_type in numbers:
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            array = values.astype(np.float32)
        if tensor.data_type == DOUBLE and not np.array_equal(np.isinf(values), np.isinf(array)):
            raise ModelFileError(
                f"Weight {tensor.name!r} is float64 and larger than float32 reaches, in which the "
                "network has to be computed here. Scale it, or train the network in float32."
            )
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
