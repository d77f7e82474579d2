"""Cross-layer equalization where it is exact (Nagel et al. 2019, arXiv 1906.04721, section 4.1).

An output channel of one layer may be divided by any positive s when every layer that reads it
multiplies that input channel by s: through what is positively homogeneous and works channel by
channel (ReLU, average pools), and through the product of a squeeze-excitation, whose gate sees the
pool of the very channel and has its own weights multiplied. HardSwish, HardSigmoid on the way, and
an Add end the walk: nothing is approximated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .channel_scales import channelwise, divide_, multiply_, weights_into, weights_out_of

if TYPE_CHECKING:
    import onnx

_PASS = ("Relu", "GlobalAveragePool", "AveragePool", "MaxPool", "Identity", "LeakyRelu", "PRelu")
_LIMITS = 1e-2, 1e2  # of a scale: beyond, a dead channel would be blown up
_SWEEPS = 4


@dataclass(frozen=True)
class Equalized:
    """What was equalized.

    Attributes
    ----------
    pairs
        (layer, layers that read it) by node name.
    ended
        Operator that ended the walk of each other layer, by node name.
    largest
        The largest factor by which a channel was scaled, either way.
    """

    pairs: dict[str, tuple[str, ...]]
    ended: dict[str, str]
    largest: float

    def __str__(self) -> str:
        reasons = sorted(set(self.ended.values()))
        return (
            f"equalized {len(self.pairs)} layers with those that read them (factors up to "
            f"{self.largest:.3g}), {len(self.ended)} ended at {', '.join(reasons) or 'nothing'}"
        )


def equalize_(model: onnx.ModelProto) -> Equalized:
    """Equalize the weights of a float model in place; what it computes stays the same.

    Raises nothing: a model without such a pair comes back as it was, and the report says so.
    """
    from onnx import numpy_helper

    graph = model.graph
    weights = {t.name: numpy_helper.to_array(t).copy() for t in graph.initializer}
    uses = dict.fromkeys(weights, 0)
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    pairs, ended = {}, {}
    total: dict[Any, Any] = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm") or node.input[1] not in weights:
            continue
        readers, reason = _readers(graph, node, weights)
        shared = any(uses[name] > 1 for n in [node, *readers] for name in n.input[1:])
        reason = reason or ("a shared weight" if shared else "")
        if reason:
            ended[node.name] = reason
        else:
            pairs[node.name] = (node, readers)
    for _ in range(_SWEEPS):
        for name, (node, readers) in pairs.items():
            factors = _factors(node, readers, weights)
            divide_(node, weights, factors)
            for reader in readers:
                multiply_(reader, weights, factors)
            total[name] = total.get(name, 1.0) * factors
    for tensor in graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    largest = max((float(np.maximum(f, 1 / f).max()) for f in total.values()), default=1.0)
    named = {name: tuple(r.name for r in readers) for name, (_, readers) in pairs.items()}
    return Equalized(named, ended, largest)


def _readers(graph: onnx.GraphProto, start: onnx.NodeProto, weights: dict) -> tuple[list, str]:
    """Return the layers that read a layer's channels, and what ended the walk, if anything."""
    outputs = {entry.name for entry in graph.output}
    scaled, pending, found, products = set(), [start.output[0]], [], []
    while pending:
        name = pending.pop()
        if name in outputs:
            return [], "the output"
        scaled.add(name)
        for node in graph.node:
            if name not in node.input:
                continue
            if node.op_type in ("Conv", "Gemm") and node.input[0] == name:
                if node.input[1] not in weights or not channelwise(node, weights):
                    return [], f"a grouped {node.op_type}"
                found.append(node)
            elif node.op_type == "Mul":
                products.append(node)
                pending.append(node.output[0])
            elif node.op_type == "Flatten" or node.op_type in _PASS:
                pending.append(node.output[0])
            else:
                return [], node.op_type
    for node in products:
        if sum(name in scaled or name in weights for name in node.input) != 1:
            return [], "Mul of two scaled tensors"
    return found, ""


def _factors(node: onnx.NodeProto, readers: list, weights: dict) -> np.ndarray:
    """Return s per output channel: the layer is divided by it, its readers multiplied."""
    own = _largest(weights_out_of(node, weights))
    others = [_largest(weights_into(reader, weights)) for reader in readers]
    if not others or any(len(other) != len(own) for other in others):
        return np.ones_like(own)
    theirs = np.max(others, axis=0)
    alive = (own > 0) & (theirs > 0)
    factors = np.sqrt(own / np.where(alive, theirs, 1), where=alive, out=np.ones_like(own))
    return np.clip(factors, *_LIMITS).astype(own.dtype)


def _largest(rows: np.ndarray) -> np.ndarray:
    return np.abs(rows).reshape(len(rows), -1).max(axis=1)
