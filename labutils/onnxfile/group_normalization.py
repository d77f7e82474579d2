"""GroupNormalization in the operators that it was written with before it was one.

ONNX infers no shape behind it (github.com/onnx/onnx/issues/7157), so that quantizers and converters
know none there either. Written out it is what torch's legacy exporter writes: Reshape to one
channel per group, InstanceNormalization, Reshape back, and the factors per channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import counted
from . import shapes
from .edit import free_name, nodes_within
from .graph import opset

if TYPE_CHECKING:
    import onnx

_SINCE = 18
_PER_CHANNEL = 21  # before, scale and bias were per group, and ONNX took that operator back
_EPSILON = 1e-5


def written_out(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes that `expand_` writes out: scale and bias are float32 constants."""
    from onnx import TensorProto

    graph = model.graph
    if opset(model) < _SINCE:
        return []
    weights = {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    return [
        node
        for node in graph.node
        if node.op_type == "GroupNormalization" and not node.domain and weights >= {*node.input[1:]}
    ]


def expand_(model: onnx.ModelProto) -> list[str]:
    """Write the group normalizations out, in place; return what was changed, as text.

    One whose input has an unknown number of dimensions stays.
    """
    count = 0
    while nodes := written_out(model):
        found = shapes.inferred(model)  # behind one, shapes are known once it is written out
        known = {node.input[0]: shapes.sizes(found[node.input[0]])
                 for node in nodes if node.input[0] in found}  # fmt: skip
        ready = [node for node in nodes if known.get(node.input[0])]
        per_channel = opset(model) >= _PER_CHANNEL
        for node in ready:
            _expand_node_(model.graph, node, known[node.input[0]] or [], per_channel)
        count += len(ready)
        if not ready:
            break
    return [f"{counted(count, 'GroupNormalization')} written out"] if count else []


def _expand_node_(
    graph: onnx.GraphProto, node: onnx.NodeProto, size: list[int], per_channel: bool
) -> None:
    from onnx import helper, numpy_helper

    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    groups, (x, scale, bias), y = given["num_groups"], node.input, node.output[0]
    tensors = {name for n in nodes_within(graph) for name in (*n.input, *n.output)}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    tensors |= set(weights)
    made: list[onnx.NodeProto] = []

    def constant(role: str, array: np.ndarray) -> str:
        name = free_name(f"{y}/{role}", tensors)
        graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def add(op: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or free_name(f"{y}/{op}", tensors)
        label = node.name if output == y else f"{node.name or y}/{output.rpartition('/')[2]}"
        made.append(helper.make_node(op, inputs, [output], label, **attributes))
        return output

    def factors(role: str, name: str) -> str:
        array = numpy_helper.to_array(weights[name])
        return constant(role, array.reshape(-1, *[1] * (len(size) - 2)))

    inner = constant("groups", np.array([0, groups, -1], np.int64))
    flat = add("Reshape", [x, inner])
    per_group = [scale, bias]
    if per_channel:
        per_group = [
            constant("ones", np.ones(groups, np.float32)),
            constant("zeros", np.zeros(groups, np.float32)),
        ]
    epsilon = given.get("epsilon", _EPSILON)
    normal = add("InstanceNormalization", [flat, *per_group], epsilon=epsilon)
    known = all(size[1:])
    back = constant("sizes", np.array([0, *size[1:]], np.int64)) if known else add("Shape", [x])
    if per_channel:
        whole = add("Reshape", [normal, back])
        scaled = add("Mul", [whole, factors("scale", scale)])
        add("Add", [scaled, factors("bias", bias)], y)
    else:
        add("Reshape", [normal, back], y)
    place = list(graph.node).index(node)
    graph.node.remove(node)
    for offset, new in enumerate(made):
        graph.node.insert(place + offset, new)
