"""Shapes of an ONNX file's tensors: those that it states, and those that follow from its inputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .graph import with_shapes

if TYPE_CHECKING:
    import onnx

_MOST_SIZES = 64  # elements of a tensor that holds sizes


def sizes(value: onnx.ValueInfoProto) -> list[int] | None:
    """Return the dimensions that a tensor states, 0 for one that is open; None without a shape."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [max(dim.dim_value, 0) for dim in value.type.tensor_type.shape.dim]


def inferred(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Return the types of all tensors as they follow from the inputs and the weights alone.

    Parameters
    ----------
    model
        Not changed; no stated shape of an inner tensor or of an output counts. Weights are not
        copied.
    """
    bare = type(model)()
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.ir_version, graph = model.ir_version, bare.graph
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    for tensor in model.graph.initializer:
        made = graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        if math.prod(tensor.dims) <= _MOST_SIZES:  # it may be a shape, or the sizes of a Resize
            made.CopyFrom(tensor)
    made_by_none = {value.name for value in (*graph.input, *graph.initializer)}
    for output in model.graph.output:
        if output.name in made_by_none:
            continue  # without its shape it would hide that of the input
        graph.output.add().CopyFrom(output)
        graph.output[-1].type.tensor_type.ClearField("shape")
    found = with_shapes(bare).graph
    return {value.name: value for value in (*found.input, *found.value_info, *found.output)}


def unstated(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Return the types of the outputs that state no shape, where one follows from the inputs."""
    bare = [output.name for output in model.graph.output if sizes(output) is None]
    found = inferred(model) if bare else {}
    return {name: found[name] for name in bare if name in found and sizes(found[name]) is not None}


def contradicted(model: onnx.ModelProto) -> set[str]:
    """Return the tensors whose stated shape is not the one that follows from the inputs."""
    stated = [*model.graph.value_info, *model.graph.output]
    found = inferred(model)
    wrong = set()
    for value in stated:
        here = sizes(value)
        there = sizes(found[value.name]) if value.name in found else None
        if here is None or there is None:
            continue
        pairs = zip(here, there, strict=False)
        if len(here) != len(there) or any(a and b and a != b for a, b in pairs):
            wrong.add(value.name)
    return wrong
