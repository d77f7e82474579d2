"""Gemm as a plain product and sum: its alpha and beta in its weights, its C a vector.

``Y = alpha A B + beta C``, where ONNX lets C be of any shape that broadcasts. Quantizers read the
weights and forget the factors; of C they take a vector with one bias per output. A Gemm between
DequantizeLinear nodes stays as it is: converters take it with these as one node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .edit import free_name, nodes_within

if TYPE_CHECKING:
    import onnx


def odd_gemms(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the main graph's Gemms that have factors, or no vector as C, and are not quantized."""
    gemms = [node for node in graph.node if node.op_type == "Gemm"]
    if not gemms:
        return []
    weights = {tensor.name: tensor for tensor in graph.initializer}
    quantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return [
        node for node in gemms if node.input[0] not in quantized and not _is_plain(node, weights)
    ]


def _is_plain(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    if _factor(node, "alpha") != 1 or (_has_c(node) and _factor(node, "beta") != 1):
        return False
    if not _has_c(node):
        return True
    c, outputs = weights.get(node.input[2]), _outputs(node, weights)
    if c is None:
        return False
    return outputs is None or list(c.dims) == [outputs]


def plain_gemms_(model: onnx.ModelProto) -> int:
    """Write the factors of the main graph's Gemms into their weights; return how many changed.

    Factors of computed operands become a Mul before the Gemm; a C that is computed, or has a value
    per image, is added behind it. Weights that others read too are copied.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    odd = [node for node in odd_gemms(model.graph) if _is_float(node, weights)]
    if odd:
        work = _Plain(model, weights)
        for node in odd:
            work.change_(node)
    return len(odd)


class _Plain:
    """The names in use, while Gemms are changed in place."""

    def __init__(self, model: onnx.ModelProto, weights: dict[str, onnx.TensorProto]) -> None:
        self.graph, self.weights = model.graph, weights
        nodes = list(nodes_within(model.graph))
        self.nodes = {node.name for node in nodes}
        self.tensors = {name for node in nodes for name in (*node.input, *node.output)}
        self.tensors |= set(weights) | {value.name for value in model.graph.input}

    def change_(self, node: onnx.NodeProto) -> None:
        alpha, beta = _factor(node, "alpha"), _factor(node, "beta")
        kept = [a for a in node.attribute if a.name not in ("alpha", "beta")]
        del node.attribute[:]
        node.attribute.extend(kept)
        if alpha != 1:
            if node.input[1] in self.weights:
                node.input[1] = self._constant(node.input[1], self._array(node.input[1]) * alpha)
            else:
                node.input[0] = self._multiplied(node, node.input[0], alpha, "alpha")
        if not _has_c(node):
            return
        c, outputs = node.input[2], _outputs(node, self.weights)
        array = self._array(c) * beta if c in self.weights else None
        if array is not None and outputs and array.shape in _one_per_output(outputs):
            vector = np.broadcast_to(array.reshape(-1), (outputs,))
            node.input[2] = self._constant(c, vector)
        elif array is not None:
            self._add_behind_(node, self._constant(c, array))
        else:
            self._add_behind_(node, self._multiplied(node, c, beta, "beta") if beta != 1 else c)

    def _array(self, name: str) -> np.ndarray:
        from onnx import numpy_helper

        array: np.ndarray = numpy_helper.to_array(self.weights[name])
        return array

    def _constant(self, name: str, array: np.ndarray) -> str:
        """Add a weight that stands in for `name`, in its type."""
        from onnx import numpy_helper

        kind = self._array(name).dtype if name in self.weights else np.dtype(np.float32)
        free = free_name(f"{name}/plain", self.tensors)
        tensor = numpy_helper.from_array(np.array(array, kind, order="C"), free)
        self.graph.initializer.append(tensor)
        self.weights[free] = tensor
        return free

    def _multiplied(self, node: onnx.NodeProto, name: str, factor: float, role: str) -> str:
        from onnx import helper

        scalar = self._constant(f"{node.output[0]}/{role}", np.array(factor, np.float32))
        made = free_name(f"{name}/{role}", self.tensors)
        label = free_name(f"{node.name or node.output[0]}/{role}", self.nodes)
        place = list(self.graph.node).index(node)
        self.graph.node.insert(place, helper.make_node("Mul", [name, scalar], [made], label))
        return made

    def _add_behind_(self, node: onnx.NodeProto, c: str) -> None:
        from onnx import helper

        out = node.output[0]
        del node.input[2:]
        node.output[0] = free_name(f"{out}/product", self.tensors)
        label = free_name(f"{node.name or out}/Add", self.nodes)
        place = list(self.graph.node).index(node) + 1
        self.graph.node.insert(place, helper.make_node("Add", [node.output[0], c], [out], label))


def _one_per_output(outputs: int) -> tuple[tuple[int, ...], ...]:
    return (), (1,), (1, 1), (outputs,), (1, outputs)


def _factor(node: onnx.NodeProto, name: str) -> float:
    return next((float(a.f) for a in node.attribute if a.name == name), 1.0)


def _has_c(node: onnx.NodeProto) -> bool:
    return len(node.input) > 2 and bool(node.input[2])


def _outputs(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> int | None:
    """Return how many outputs a Gemm has; None where its weights are computed."""
    matrix = weights.get(node.input[1])
    if matrix is None or len(matrix.dims) != 2:
        return None
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return int(matrix.dims[0 if transposed else 1])


def _is_float(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    """Whether the known operands are float32 or float64: factors of integers are cut off."""
    from onnx import TensorProto

    known = [weights[name].data_type for name in node.input[1:] if name in weights]
    return all(kind in (TensorProto.FLOAT, TensorProto.DOUBLE) for kind in known)
