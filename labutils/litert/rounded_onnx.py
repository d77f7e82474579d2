"""A QDQ file as the float network behind it, and the ranges of its codes: what was trained, too.

Weights become the floats that their codes stand for, so a quantizer that takes each channel's
greatest value finds the same codes where the greatest code is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from ..onnxfile.edit import free_name, name_nodes_, producers, redirect_, rename_tensors_
from ..onnxfile.file import OnnxFile

if TYPE_CHECKING:
    import onnx

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SIGNED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "BatchNormalization")
"""What may give values below zero: the quantizer may have left its ReLU to the range."""

_NEAR = 1e-5  # of a number, as far as float32 has it


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
    name_nodes_(graph)  # codes go by name, and "" is the image
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
    """Put back the ReLUs and Clips whose work the quantizer left to the range of the codes."""
    from onnx import helper

    graph, opset = model.graph, max(o.version for o in model.opset_import if not o.domain)
    outputs = {value.name for value in graph.output}
    taken = {name for node in graph.node for name in (node.name, *node.output)}
    taken |= {tensor.name for tensor in graph.initializer}
    for node in list(graph.node):
        ends = _limits(codes[node.name]) if node.name in codes else None
        whole = node.output[0]
        if ends is None or node.op_type not in _SIGNED or whole in outputs:
            continue
        node.output[0] = inner = free_name(f"{whole}_before_relu", taken)
        name, (low, high) = free_name(f"{node.name}_relu", taken), ends
        if high is None:
            limited = helper.make_node("Relu", [inner], [whole], name)
        elif opset < 11:  # before, the ends of a Clip are attributes
            limited = helper.make_node("Clip", [inner], [whole], name, min=low, max=high)
        else:
            stored = [free_name(f"{name}_{end}", taken) for end in ("low", "high")]
            limited = helper.make_node("Clip", [inner, *stored], [whole], name)
            graph.initializer.extend(
                helper.make_tensor(end, 1, (), [value])
                for end, value in zip(stored, (low, high), strict=True)
            )
        codes[name] = codes.pop(node.name)
        graph.node.insert(list(graph.node).index(node) + 1, limited)


def _limits(found: Codes) -> tuple[float, float | None] | None:
    """Return the ends of what a range stands for: (0, None) is a ReLU, None is nothing.

    Ends that somebody wrote are round, and those of a calibration are not; with the zero point
    rounded, both may have moved by half a code. Nothing goes beyond the codes either way, so a
    ReLU whose range ends below 6 may be a ReLU6, which costs LiteRT no operator.
    """
    width, half = found.high - found.low, 0.5 * (found.high - found.low) / (2**found.bits - 1)
    high = _round(found.high)
    if abs(_round(width) - width) <= _NEAR * width and abs(high - found.high) <= half * (1 + _NEAR):
        return high - _round(width), high
    if found.low < 0:
        return None
    return 0.0, 6.0 if found.high <= 6 else None


def _round(value: float) -> float:
    return round(8 * value) / 8
