"""A ``.tflite`` as a graph that can be drawn: operators, shapes and constants, no values.

Its operators keep their names (``CONV_2D``), in the form of an ONNX graph, which the drawing reads.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime import litert

if TYPE_CHECKING:
    import onnx

FORM = "LiteRT"
SUFFIX = ".tflite"
MOVES = ("TRANSPOSE", "Transpose")
"""Operators that compute nothing: they bring a tensor from one layout into another."""

SLOTS = {
    "CONV_2D": ("input", "filter", "bias"),
    "DEPTHWISE_CONV_2D": ("input", "filter", "bias"),
    "FULLY_CONNECTED": ("input", "weights", "bias"),
    "PAD": ("input", "paddings"),
    "RESHAPE": ("input", "shape"),
    "MEAN": ("input", "axes"),
}
"""Operator -> what its inputs are called."""


def graph_of(file: str | Path) -> onnx.ModelProto:
    """Return the main graph of a ``.tflite``, in the form of ONNX.

    Raises
    ------
    ModelFileError
        The file is missing, truncated, or not a ``.tflite``.
    MissingToolError
        Google's wheel, whose schema is needed, is not here.
    """
    from onnx import TensorProto, helper

    found = litert.contents(file)
    times = Counter(tensor.name for tensor in found.tensors)
    names = [
        tensor.name if tensor.name and times[tensor.name] == 1 else f"tensor {i} {tensor.name}"
        for i, tensor in enumerate(found.tensors)
    ]
    nodes = [_node(found, i, names) for i in range(len(found.operators))]
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, tensor.shape)
        for name, tensor in zip(names, found.tensors, strict=True)
    }
    constants = [
        TensorProto(name=name, dims=tensor.shape, data_type=_data_type(tensor.type),
                    data_location=TensorProto.EXTERNAL)  # its values are not needed
        for name, tensor in zip(names, found.tensors, strict=True) if tensor.is_constant
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "main", [values[names[n]] for n in found.inputs],
        [values[names[n]] for n in found.outputs], constants, value_info=list(values.values()),
    )  # fmt: skip
    return helper.make_model(graph)


def _node(found: litert.Contents, number: int, names: list[str]) -> onnx.NodeProto:
    from onnx import helper

    operator = found.operators[number]
    inputs = ["" if n < 0 else names[n] for n in operator.inputs]
    node = helper.make_node(
        operator.type, inputs, [names[n] for n in operator.outputs], f"operator {number}"
    )
    order = operator.inputs[1] if operator.type == "TRANSPOSE" and len(inputs) == 2 else -1
    if order >= 0 and found.tensors[order].is_constant:
        axes = [int(n) for n in litert.values(found.file, order)]
        node.attribute.append(helper.make_attribute("perm", axes))
        del node.input[1]
    return node


def _data_type(kind: str) -> int:
    """Return ONNX's number of a type; 0 where it has none."""
    from onnx import TensorProto

    known = "FLOAT" if kind == "float32" else kind.upper()
    return dict(TensorProto.DataType.items()).get(known, 0)
