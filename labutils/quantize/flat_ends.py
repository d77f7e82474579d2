"""Where an activation is flat, and so nothing is lost when a range ends there.

HardSigmoid is 0 below -3 and 1 above 3, HardSwish is 0 below -3: no code need stand for what lies
beyond. The sum with a constant that a Clip follows, or a Max and a Min (HardSigmoid, written out),
is such a place, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..onnxfile.edit import readers

if TYPE_CHECKING:
    import onnx

Ends = tuple[float, float]
_EVERYWHERE = (-np.inf, np.inf)


def flat_ends(model: onnx.ModelProto) -> dict[str, Ends]:
    """Return (low, high) of the tensors beyond which no reader looks, infinite where one does."""
    from onnx import numpy_helper

    graph = model.graph
    constants = {t.name: t for t in graph.initializer}
    scalars = {
        name: float(numpy_helper.to_array(tensor).item())
        for name, tensor in constants.items()
        if np.prod(tensor.dims, dtype=int) == 1
    }
    by, outputs = readers(graph.node), {entry.name for entry in graph.output}

    def looked_at(name: str) -> Ends:
        """Return the part of a tensor's values that its readers tell apart."""
        behind = [] if name in outputs else by.get(name, [])
        parts = [_part(node, name, scalars, looked_at) for node in behind] or [_EVERYWHERE]
        return min(low for low, _ in parts), max(high for _, high in parts)

    names = [out for node in graph.node for out in node.output]
    clipped = {n for n in names if any(node.op_type == "Clip" for node in by.get(n, []))}
    found = {name: looked_at(name) for name in names if name not in clipped}
    return {name: ends for name, ends in found.items() if ends != _EVERYWHERE}


def _part(
    node: onnx.NodeProto,
    name: str,
    scalars: dict[str, float],
    looked_at: Callable[[str], Ends],
) -> Ends:
    """Return the part of a tensor's values that one reader tells apart."""
    numbers = {a.name: a.f for a in node.attribute}
    if node.op_type == "HardSigmoid":
        slope, middle = numbers.get("alpha", 0.2), numbers.get("beta", 0.5)
        return (-middle / slope, (1 - middle) / slope) if slope > 0 else _EVERYWHERE
    if node.op_type == "HardSwish":
        return -3.0, np.inf
    if node.op_type == "Clip" and set(node.input[1:]) <= {*scalars, ""}:
        low, high = ([scalars.get(n) for n in node.input[1:]] + [None, None])[:2]
        return -np.inf if low is None else low, np.inf if high is None else high
    others = [scalars.get(operand) for operand in node.input if operand != name]
    if node.op_type not in ("Add", "Max", "Min") or len(others) != 1 or others[0] is None:
        return _EVERYWHERE
    low, high = looked_at(node.output[0])
    if node.op_type == "Max":
        return max(low, others[0]), high
    if node.op_type == "Min":
        return low, min(high, others[0])
    return low - others[0], high - others[0]
