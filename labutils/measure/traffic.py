"""Bytes that a network's tensors move, estimated from an ONNX file's shapes and bit widths.

Every node reads each of its activations and writes its output, at the width at which the file
stores them; every weight is read once. Nothing is fused and nothing stays in a cache, so this is
an upper bound: a compiler for a chip keeps many tensors on it. The *ratio* of two files of one
network is what the estimate is for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import typesetting
from ..errors import UsageError
from ..onnxfile.edit import producers
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import with_shapes

if TYPE_CHECKING:
    import onnx

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_FREE = ("Constant", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")  # move nothing


@dataclass(frozen=True, repr=False)
class Traffic(typesetting.Paragraph):
    """What one inference moves.

    Attributes
    ----------
    source
        The file's name.
    by_bits
        Bytes of activations read and written, by the tensors' bits: 8, 16, 32.
    converts
        Bytes of these that only change a tensor's width, such as float to 8 or 8 to 16 bits.
    weights
        Bytes of weights and biases, each read once.
    """

    source: str
    by_bits: Counter[int]
    converts: int
    weights: int

    @property
    def activations(self) -> int:
        """Bytes of activations, read and written."""
        return sum(self.by_bits.values())

    @property
    def total(self) -> int:
        """Bytes of activations and weights."""
        return self.activations + self.weights

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "source": self.source, "activations": self.activations, "weights": self.weights,
            "converts": self.converts, "by_bits": dict(self.by_bits),
        }  # fmt: skip

    def __str__(self) -> str:
        widths = ", ".join(f"{n / 1e6:.2f} of {bits} bits" for bits, n in self.by_bits.items())
        return (
            f"{self.source}: an estimated {self.total / 1e6:.2f} MB per image: activations "
            f"{self.activations / 1e6:.2f} ({widths}; {self.converts / 1e6:.2f} to change a "
            f"width), weights {self.weights / 1e6:.2f}. An upper bound: nothing fused or cached."
        )


def estimate(file: OnnxFile | str | Path) -> Traffic:
    """Estimate the bytes that one inference moves, from shapes and bits alone.

    Parameters
    ----------
    file
        An ONNX file of static shapes, float or quantized (QDQ).

    Returns
    -------
    Traffic
        A QuantizeLinear after a DequantizeLinear counts as one conversion; so do those at the
        ends of the graph, where floats come in and go out.

    Raises
    ------
    ModelFileError
        The file is missing or not ONNX.
    UsageError
        A tensor's shape is open, or cannot be inferred.
    """
    file = OnnxFile.of(file)
    model = file.proto
    graph, sizes = model.graph, _elements(model)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    constant = {n.output[0] for n in graph.node if n.op_type == "Constant"} | set(stored)
    maker = producers(graph.node)
    for node in graph.node:  # a weight's DequantizeLinear is not an activation
        if node.op_type in (_DQ, *_FREE) and node.input and node.input[0] in constant:
            constant |= set(node.output)
    bits = {n.output[0]: _bits(stored, n.input[2]) for n in graph.node if n.op_type == _Q}
    found: Counter[int] = Counter()
    converts = 0
    for node in graph.node:
        if node.op_type in _FREE or node.output[0] in constant:
            continue
        if node.op_type in (_Q, _DQ):
            moved = _conversion(node, graph, maker, bits)
            names = [node.input[0]] * len(moved)
        else:
            names = [n for n in (*node.input, *node.output) if n and n not in constant]
            moved = [_stored_bits(n, graph, maker, bits) for n in names]
        for name, width in zip(names, moved, strict=True):
            if not sizes.get(name):
                raise UsageError(
                    f"The shape of tensor {name!r} in {file.name} is open or cannot be "
                    "inferred, so its bytes are unknown. Export with static shapes."
                )
            found[width] += sizes[name] * width // 8
            converts += sizes[name] * width // 8 * (node.op_type in (_Q, _DQ))
    return Traffic(file.name, Counter(dict(sorted(found.items()))), converts, _weights(graph))


def _conversion(node: onnx.NodeProto, graph: onnx.GraphProto, maker: dict, bits: dict) -> list[int]:
    """Return the widths that a Q or DQ reads and writes as a separate node; [] for another node.

    A Q right after a computing node, and the DQ before one, only say how a tensor is stored.
    """
    before = maker.get(node.input[0])
    if node.op_type == _DQ:
        ends = node.output[0] in {entry.name for entry in graph.output}
        return [bits[node.input[0]], 32] if ends else []
    if before is None:
        return [32, bits[node.output[0]]]
    return [bits[before.input[0]], bits[node.output[0]]] if before.op_type == _DQ else []


def _stored_bits(name: str, graph: onnx.GraphProto, maker: dict, bits: dict[str, int]) -> int:
    """Return the bits at which a tensor lies in memory, seen from the node that uses it."""
    made = maker.get(name)
    if made is not None and made.op_type == _DQ:
        return bits[made.input[0]]
    written = (n for n in graph.node if n.op_type == _Q and n.input[0] == name)
    return next((bits[n.output[0]] for n in written), 32)


def _bits(stored: dict[str, onnx.TensorProto], zero_point: str) -> int:
    return _width(stored[zero_point].data_type)


def _width(kind: int) -> int:
    from onnx import TensorProto, helper

    if kind in (TensorProto.INT4, TensorProto.UINT4):
        return 4
    return 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize


def _weights(graph: onnx.GraphProto) -> int:
    """Return the bytes of what is multiplied or added; scales and zero points do not count."""
    settings = {n for node in graph.node if node.op_type in (_Q, _DQ) for n in node.input[1:]}
    return sum(
        prod(tensor.dims) * _width(tensor.data_type) // 8
        for tensor in graph.initializer
        if tensor.name not in settings
    )


def _elements(model: onnx.ModelProto) -> dict[str, int]:
    """Return the number of elements of each tensor whose shape is known, for one image."""
    copied = type(model)()
    copied.CopyFrom(model)
    for node in copied.graph.node:
        if node.op_type in (_Q, _DQ):
            node.domain = ""  # ONNX Runtime's own, for 16 bits: no shapes are inferred through it
    graph = with_shapes(copied).graph
    return {
        value.name: prod(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
