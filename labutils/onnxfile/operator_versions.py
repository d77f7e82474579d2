"""Operators whose older or newer versions mean something else.

Resize before opset 11, Pad from 18, and the reductions that got their axes as an input (13, 18).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..errors import counted
from . import shapes
from .edit import free_name, nodes_within

if TYPE_CHECKING:
    import onnx

_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")
_AXES = 3  # the input of Pad that lists the axes, since opset 18


def pin_resizes_(model: onnx.ModelProto) -> None:
    """Let every Resize of a file that was raised from before opset 11 compute what it did.

    The version converter leaves the attributes that opset 11 brought at their defaults, half_pixel
    and round_prefer_floor. Before, an output at x read the input at x / scale; a nearest one
    rounded that down where it enlarges, and up where it reduces (``resize_downsample_nearest`` of
    ONNX 1.5's tests, and ONNX Runtime).
    """
    from onnx import helper

    weights = _arrays(model.graph)
    for node in nodes_within(model.graph):
        if node.op_type != "Resize" or node.domain:
            continue
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        new = {"coordinate_transformation_mode": "asymmetric"}
        if given.get("mode", b"nearest") == b"nearest":
            new["nearest_mode"] = _rounding(weights.get(node.input[2]))
        kept = [a for a in node.attribute if a.name not in new]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in new.items())])


def _rounding(scales: np.ndarray | None) -> str:
    """Return the rounding for these factors: down, unless one reduces to between the pixels."""
    factors = [] if scales is None else [float(factor) for factor in scales.reshape(-1)]
    between = any(factor < 1 and math.frexp(factor)[0] != 1 / 2 for factor in factors)
    return "ceil" if between and max(factors) <= 1 else "floor"


def padded_axes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the Pads that list their axes, where these and the sizes are constants."""
    nodes = [node for node in model.graph.node if node.op_type == "Pad" and not node.domain]
    listing = [node for node in nodes if len(node.input) > _AXES and node.input[_AXES]]
    if not listing:
        return []
    known, weights = shapes.inferred(model), {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for node in listing
        if {node.input[1], node.input[_AXES]} <= weights
        and node.input[0] in known
        and shapes.sizes(known[node.input[0]]) is not None
    ]


def pad_all_axes_(model: onnx.ModelProto) -> list[str]:
    """Write the sizes of each Pad for all axes, as before opset 18; return what was changed."""
    from onnx import numpy_helper

    nodes = padded_axes(model)
    if not nodes:
        return []
    graph = model.graph
    known, weights = shapes.inferred(model), _arrays(graph)
    taken = set(weights) | {name for node in nodes_within(graph) for name in node.output}
    for node in nodes:
        rank = len(shapes.sizes(known[node.input[0]]) or ())
        whole = np.zeros((2, rank), np.int64)
        whole[:, weights[node.input[_AXES]]] = weights[node.input[1]].reshape(2, -1)
        name = free_name(f"{node.output[0]}/pads", taken)
        graph.initializer.append(numpy_helper.from_array(whole.reshape(-1), name))
        node.input[1] = name
        del node.input[_AXES:]
        while not node.input[-1]:
            del node.input[-1]
    return [f"the axes of {counted(len(nodes), 'Pad')} written in full"]


def idle_reductions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the reductions over no axis, which pass their input on (`noop_with_empty_axes`)."""
    empty = {tensor.name for tensor in model.graph.initializer if list(tensor.dims) == [0]}
    return [
        node
        for node in nodes_within(model.graph)
        if node.op_type in _REDUCTIONS
        and not node.domain
        and any(a.name == "noop_with_empty_axes" and a.i for a in node.attribute)
        and {name for name in node.input[1:] if name} <= empty
    ]


def pass_on_(model: onnx.ModelProto) -> list[str]:
    """Write the reductions over no axis as Identity; return what was changed."""
    nodes = idle_reductions(model)
    for node in nodes:
        node.op_type = "Identity"
        del node.input[1:], node.attribute[:]
    words = "over no axis written as Identity"
    return [f"{counted(len(nodes), 'reduction')} {words}"] if nodes else []


def _arrays(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Return the small constants, by name."""
    from onnx import numpy_helper

    found = {t.name: t for t in graph.initializer if len(t.dims) == 1}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return {name: numpy_helper.to_array(tensor) for name, tensor in found.items()}
