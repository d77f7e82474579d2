"""A network in the operators that D-Robotics' tools make of it, as far as that is documented.

Hard-swish, which opset 11 writes as HardSigmoid and Mul, is one lookup table there, so nothing is
rounded between the two (measured with dg-nn-toolkit 1.0.0, 2026-11-28). A ReLU behind a convolution
is part of it (checker's table of RepVGG on RDK X5, rdk_model_zoo), and the last operator keeps its
32-bit sums (``int8/int32`` in the same table).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from ..onnxfile import canonical_form, edit, graph
from ..onnxfile.file import OnnxFile

if TYPE_CHECKING:
    import onnx

_HARD_SWISH_OPSET = 14
_CONVOLUTIONS = ("Conv", "Gemm", "MatMul")
_CLAMPS = ("Relu", "Clip")
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


def joined(file: OnnxFile) -> tuple[onnx.ModelProto, Counter[str]]:
    """Return a network with one node for each hard-swish and each mean over a picture.

    Parameters
    ----------
    file
        The float network; it is not changed.

    Returns
    -------
    tuple
        The model, in which a joined node has the name of the last node that it was, and how many
        nodes became which operator. It computes what the file computes, but for float rounding.
    """
    model, done = file.copy(), Counter[str]()
    edit.lift_constants_(model)
    if any(node.op_type == "HardSigmoid" for node in model.graph.node):
        canonical_form.raise_opset_(model, _HARD_SWISH_OPSET)
    if graph.opset(model) >= _HARD_SWISH_OPSET:
        _join_hard_swish_(model, done)
    _name_means_(model, done)
    edit.remove_unused_(model)
    return model, done


def _join_hard_swish_(model: onnx.ModelProto, done: Counter[str]) -> None:
    """Make HardSigmoid(x) * x one HardSwish, in place."""
    nodes = model.graph.node
    made, read = edit.producers(nodes), edit.readers(nodes)
    for node in nodes:
        if node.op_type != "Mul":
            continue
        for gate, other in (tuple(node.input), tuple(node.input)[::-1]):
            maker = made.get(gate)
            alone = maker is not None and len(read[gate]) == 1
            if alone and _is_hard_sigmoid(maker) and maker.input[0] == other:  # type: ignore[union-attr, arg-type]
                node.op_type = "HardSwish"
                del node.input[:]
                node.input.append(other)
                done["HardSwish"] += 1
                break


def _is_hard_sigmoid(node: onnx.NodeProto) -> bool:
    """Whether a node is the HardSigmoid that hard-swish has: x / 6 + 1 / 2."""
    said = {a.name: a.f for a in node.attribute}
    slope, offset = said.get("alpha", 0.2), said.get("beta", 0.5)
    return node.op_type == "HardSigmoid" and abs(slope - 1 / 6) < 1e-6 and offset == 0.5


def _name_means_(model: onnx.ModelProto, done: Counter[str]) -> None:
    """Make a mean over height and width that keeps its axes a GlobalAveragePool, in place."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    ranks = _ranks(model)
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or ranks.get(node.output[0]) != 4:
            continue
        said = {a.name: a for a in node.attribute}
        axes = list(said["axes"].ints) if "axes" in said else []
        if len(node.input) > 1 and node.input[1] in stored:
            axes = numpy_helper.to_array(stored[node.input[1]]).ravel().tolist()
        keeps = said["keepdims"].i if "keepdims" in said else 1
        if keeps and sorted(axis % 4 for axis in axes) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:], node.input[1:]
            done["GlobalAveragePool"] += 1


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    shaped = graph.with_shapes(model).graph
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*shaped.value_info, *shaped.output)
        if value.type.tensor_type.HasField("shape")
    }


def is_absorbed(node: onnx.NodeProto, made: dict[str, onnx.NodeProto], read: dict) -> bool:
    """Whether a node becomes a part of the convolution before it.

    Parameters
    ----------
    node
        Of the float network.
    made, read
        Who makes a tensor, and who reads it.
    """
    maker = made.get(node.input[0]) if node.input else None
    before = maker is not None and maker.op_type in _CONVOLUTIONS
    return node.op_type in _CLAMPS and before and len(read[node.input[0]]) == 1


def keeps_sums(node: onnx.NodeProto) -> bool:
    """Whether the sums of a node that makes an output of the network are not rounded."""
    return node.op_type in _CONVOLUTIONS


def round_as_the_bpu_(model: onnx.ModelProto) -> Counter[str]:
    """Take away the roundings of a QDQ model that the BPU does not do, in place; count them.

    A convolution gets the scale of the ReLU behind it, so that the two round once. The last
    convolution's sums are not rounded.
    """
    done = Counter[str]()
    made, read = edit.producers(model.graph.node), edit.readers(model.graph.node)
    for clamp in model.graph.node:
        if clamp.op_type not in _CLAMPS:
            continue
        dequantize = made.get(clamp.input[0])
        quantize = made.get(dequantize.input[0]) if dequantize is not None else None
        before = made.get(quantize.input[0]) if quantize is not None else None
        after = [node for node in read.get(clamp.output[0], []) if node.op_type == _Q]
        if before is None or before.op_type not in _CONVOLUTIONS or len(after) != 1:
            continue
        if len(read[dequantize.output[0]]) == 1:  # type: ignore[union-attr]
            for node in (dequantize, quantize):
                node.input[1:] = after[0].input[1:]  # type: ignore[union-attr]
            done["clamped convolutions"] += 1
    for value in model.graph.output:
        _unround_(model.graph, value.name, made, done)
    edit.remove_unused_(model)
    return done


def _unround_(
    whole: onnx.GraphProto, name: str, made: dict[str, onnx.NodeProto], done: Counter[str]
) -> None:
    """Let an output be the sums of the convolution before its last rounding."""
    last = made.get(name)
    quantize = made.get(last.input[0]) if last is not None and last.op_type == _DQ else None
    maker = made.get(quantize.input[0]) if quantize is not None else None
    if last is None or quantize is None or maker is None or not keeps_sums(maker):
        return
    maker.output[0] = name
    for node in (last, quantize):
        whole.node.remove(node)
    done["sums of the output"] += 1


def threshold(model: onnx.ModelProto, tensor: str) -> tuple[float | None, str]:
    """Return the value that the codes of a float network's tensor reach, and their type.

    Parameters
    ----------
    model
        The QDQ model that was made of the network.
    tensor
        The tensor's name in the network.

    Returns
    -------
    tuple
        (threshold, ``int8`` or ``int16``); (None, ``float``) of a tensor that is not rounded.
    """
    from onnx import numpy_helper

    stored = {entry.name: entry for entry in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == _Q and node.input[0] in (tensor, f"{tensor}_QuantizeLinear_Input"):
            scale = float(numpy_helper.to_array(stored[node.input[1]]).ravel()[0])
            bits = 8 * np.dtype(numpy_helper.to_array(stored[node.input[2]]).dtype).itemsize
            return scale * (2 ** (bits - 1) - 1), f"int{bits}"
    return None, "float"
