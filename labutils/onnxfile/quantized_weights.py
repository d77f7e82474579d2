"""Weights stored as integers in a network that computes in float, written as the floats they mean.

DequantizeLinear of a constant belongs to a quantized operator where the data comes through one,
too; beside float data it is storage, and converters take no such node alone. A QuantizeLinear may
come before it, as training that simulates quantization and TensorRT's tools write it: that one is
computed wherever it stands, because quantized files store their weights as integers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import counted
from .constants import MOST_ELEMENTS
from .edit import readers, subgraphs

if TYPE_CHECKING:
    import numpy as np
    import onnx

_HANDING_ON = (
    "Cast",
    "DequantizeLinear",
    "Identity",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
_ROUNDS = 2  # of QuantizeLinear, and of DequantizeLinear behind it


def foldable(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes of the main graph that `fold_` computes."""
    nodes = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if not nodes or any(True for node in graph.node for _ in subgraphs(node)):
        return []
    weights = {t.name: t for t in graph.initializer if math.prod(t.dims) <= MOST_ELEMENTS}
    weights = {name: t for name, t in weights.items() if name not in {v.name for v in graph.input}}
    ends = {output.name for output in graph.output}
    constant = [n for n in nodes if all(name in weights for name in n.input if name)]
    constant = [n for n in constant if n.output[0] not in ends]
    known = {node.output[0] for node in constant}
    known |= {n.output[0] for n in nodes if n.input[0] in known}  # of codes that are computed once
    data = {n.output[0] for n in nodes if n.op_type == "DequantizeLinear"} - known
    read_by = readers(graph.node)
    loose = {n.output[0] for n in nodes if _in_float(n.output[0], read_by, data)}
    return [n for n in constant if n.op_type == "QuantizeLinear" or n.output[0] in loose]


def _in_float(name: str, read_by: dict[str, list[onnx.NodeProto]], data: set[str]) -> bool:
    """Whether nobody who reads a weight, as it is or turned, reads quantized data beside it."""
    for node in read_by.get(name, ()):
        if node.op_type == "QuantizeLinear" or not data.isdisjoint(node.input):
            return False
        if node.op_type in _HANDING_ON and not _in_float(node.output[0], read_by, data):
            return False
    return True


def fold_(model: onnx.ModelProto) -> list[str]:
    """Compute the integers' floats in place, as ONNX Runtime does; return what was changed."""
    from onnx import numpy_helper

    written, rounded = 0, set[str]()
    for _ in range(_ROUNDS):
        for node in foldable(model.graph):
            tensor = numpy_helper.from_array(_computed(model, node), node.output[0])
            model.graph.initializer.append(tensor)
            model.graph.node.remove(node)
            written += node.op_type == "DequantizeLinear"
            rounded.update(node.output if node.op_type == "QuantizeLinear" else ())
    read = {name for node in model.graph.node for name in node.input}
    changes = {
        "stored as integers written in float": written,
        "that the file rounds stored as integers": len(rounded & read),
    }
    return [f"{counted(n, 'weight')} {what}" for what, n in changes.items() if n]


def _computed(model: onnx.ModelProto, node: onnx.NodeProto) -> np.ndarray:
    from .session import Session

    alone = type(model)()
    alone.ir_version = model.ir_version
    alone.opset_import.extend(model.opset_import)
    alone.graph.name = "weight"
    alone.graph.node.append(node)
    alone.graph.initializer.extend(t for t in model.graph.initializer if t.name in node.input)
    alone.graph.output.add(name=node.output[0])
    return Session(alone).run({})[0]
