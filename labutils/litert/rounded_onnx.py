"""A QDQ file as the float network behind it, and the ranges of its codes: what was trained, too.

Weights become the floats that their codes stand for, so a quantizer that takes each channel's
greatest value finds the same codes where the greatest code is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from ..onnxfile.edit import free_name, producers, redirect_, rename_tensors_
from ..onnxfile.file import OnnxFile

if TYPE_CHECKING:
    import onnx

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SIGNED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "BatchNormalization")
"""What may give values below zero: the quantizer may have left its ReLU to the range."""

_SIX = 6 * (1 + 1e-5)  # as far as float32 has it


@dataclass(frozen=True)
class Codes:
    """What the codes of a tensor stand for: the least and greatest value, and how many bits."""

    low: float
    high: float
    bits: int

    def joined(self, other: Codes) -> Codes:
        """Return what both can hold: a node that makes several tensors has one range here."""
        ends = min(self.low, other.low), max(self.high, other.high)
        return Codes(*ends, max(self.bits, other.bits))


@dataclass(frozen=True)
class Rounded:
    """A QDQ file taken apart.

    Attributes
    ----------
    model
        The network without rounding.
    codes
        By the name of the node that makes the tensor; "" for the image.
    in_float
        Names of the nodes whose weights are floats: they were left out.
    """

    model: onnx.ModelProto
    codes: dict[str, Codes]
    in_float: frozenset[str]


def is_rounded(file: OnnxFile) -> bool:
    """Whether a file has quantized activations or weights, as QDQ."""
    return any(node.op_type == _DQ for node in file.proto.graph.node)


def take_apart(file: OnnxFile) -> Rounded:
    """Return the float network behind a QDQ file, and what its codes stand for.

    Raises
    ------
    UsageError
        Its scales are computed, or it takes or gives integers.
    """
    from onnx import numpy_helper

    model = file.copy(shaped=True)
    graph = model.graph
    _name_nodes_(graph)
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    codes: dict[str, Codes] = {}
    left = frozenset(
        node.name for node in graph.node if node.op_type in _WEIGHTED and node.input[1] in known
    )
    maker = producers(graph.node)
    instead: dict[str, str] = {}
    for node in list(graph.node):
        if node.op_type not in (_Q, _DQ):
            continue
        if any(name and name not in known for name in node.input[1:]):
            raise UsageError(f"{file.name}: the scale of {node.name or node.op_type} is computed.")
        graph.node.remove(node)
        if node.op_type == _DQ and node.input[0] in known:
            values = _floats(node, known)
            graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
            continue
        if node.op_type == _Q and node.input[0] in known:
            known[node.output[0]] = _rounded(node, known)
            continue
        if node.op_type == _Q:
            source = maker.get(node.input[0])
            name, found = source.name if source is not None else "", _codes_of(node, known)
            codes[name] = codes.get(name, found).joined(found)
        instead[node.output[0]] = node.input[0]
    _refuse_integer_ends(file, instead)
    _bypass_(graph, instead)
    _rectify_(model, codes)
    return Rounded(model, codes, left)


def _name_nodes_(graph: onnx.GraphProto) -> None:
    """Give every node a separate name: codes go by name, and "" is the image."""
    taken, met = {node.name for node in graph.node}, set[str]()
    for node in graph.node:
        if not node.name or node.name in met:
            node.name = free_name(node.name or f"{node.op_type}_{node.output[0]}", taken)
        met.add(node.name)


def _axis(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 1)


def _floats(node: onnx.NodeProto, known: dict[str, np.ndarray]) -> np.ndarray:
    """Return a constant for the codes of a weight."""
    stored, scale = known[node.input[0]], known[node.input[1]]
    zero = known[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros_like(scale)
    shape = [1] * stored.ndim
    if scale.size > 1:
        shape[_axis(node)] = scale.size
    steps, origin = scale.reshape(shape), zero.astype(np.float32).reshape(shape)
    if not scale.ndim:
        steps, origin = scale, zero.astype(np.float32)
    return ((stored.astype(np.float32) - origin) * steps).astype(np.float32)


def _rounded(node: onnx.NodeProto, known: dict[str, np.ndarray]) -> np.ndarray:
    """Return the codes of a weight that the file stores as floats."""
    values, scale, zero = known[node.input[0]], known[node.input[1]], np.zeros((), np.uint8)
    if len(node.input) > 2 and node.input[2]:
        zero = np.asarray(known[node.input[2]])
    ends, origin = np.iinfo(zero.dtype), zero.astype(np.float32)
    if scale.ndim:
        shape = [1] * values.ndim
        shape[_axis(node) if scale.size > 1 else 0] = scale.size
        scale, origin = scale.reshape(shape), np.broadcast_to(origin, scale.shape).reshape(shape)
    return np.clip(np.rint(values / scale) + origin, ends.min, ends.max).astype(zero.dtype)


def _codes_of(node: onnx.NodeProto, known: dict[str, np.ndarray]) -> Codes:
    scale = float(known[node.input[1]].item())
    zero = known[node.input[2]] if len(node.input) > 2 and node.input[2] else np.uint8(0)
    ends, origin = np.iinfo(np.asarray(zero).dtype), int(np.asarray(zero).item())
    return Codes((ends.min - origin) * scale, (ends.max - origin) * scale, ends.bits)


def _refuse_integer_ends(file: OnnxFile, instead: dict[str, str]) -> None:
    outputs = {value.name: value.type.tensor_type.elem_type for value in file.outputs}
    inputs = [value.type.tensor_type.elem_type for value in file.inputs]
    if any(kind != 1 for kind in (*outputs.values(), *inputs)):
        raise UsageError(f"{file.name} takes or gives integers. Quantize it with float32 ends.")


def _bypass_(graph: onnx.GraphProto, instead: dict[str, str]) -> None:
    """Let everything read what was rounded; outputs keep their names."""
    for name in list(instead):
        while instead[name] in instead:
            instead[name] = instead[instead[name]]
    redirect_(graph.node, instead)
    given = {value.name: instead[value.name] for value in graph.output if value.name in instead}
    rename_tensors_(graph, {source: name for name, source in given.items()})
    del graph.value_info[:]


def _rectify_(model: onnx.ModelProto, codes: dict[str, Codes]) -> None:
    """Put a ReLU where the lowest code stood for zero: the quantizer left that to the range.

    Where the highest code stands for 6 or less it is a ReLU6: nothing went beyond that either.
    """
    from onnx import helper

    graph, opset = model.graph, max(o.version for o in model.opset_import if not o.domain)
    outputs = {value.name for value in graph.output}
    taken = {name for node in graph.node for name in node.output}
    taken |= {tensor.name for tensor in graph.initializer}
    ends = {free_name(name, taken): value for name, value in (("zero", 0.0), ("six", 6.0))}
    for node in list(graph.node):
        found = codes.get(node.name)
        if found is None or found.low < 0 or node.op_type not in _SIGNED:
            continue
        whole, inner = node.output[0], f"{node.output[0]}_before_relu"
        if whole in outputs:
            continue
        node.output[0] = inner
        name = f"{node.name}_relu"
        if found.high > _SIX:
            relu = helper.make_node("Relu", [inner], [whole], name=name)
        elif opset < 11:
            relu = helper.make_node("Clip", [inner], [whole], name=name, min=0.0, max=6.0)
        else:
            relu = helper.make_node("Clip", [inner, *ends], [whole], name=name)
        codes[name] = codes.pop(node.name)
        graph.node.insert(list(graph.node).index(node) + 1, relu)
    if any(set(ends) <= set(node.input) for node in graph.node):
        graph.initializer.extend(helper.make_tensor(n, 1, (), [v]) for n, v in ends.items())
