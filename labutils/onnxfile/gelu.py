"""A GELU that an exporter wrote in several operators, as the one operator that it is.

ONNX has Gelu since opset 20; older files hold ``x (1 + erf(x / sqrt(2))) / 2`` in one of many
orders, or its approximation by Tanh. A quantizer would round between the parts, and QNN, which
makes one operator of the float pattern, then finds an Erf that it does not have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..errors import counted
from .edit import producers, readers

if TYPE_CHECKING:
    import onnx

SINCE = 20  # opset
_DEGREE = 3
_DEPTH = 6  # nodes between the input of a GELU and its Erf or Tanh
_CLOSE = 1e-3  # of a coefficient: exporters write 1.4142, 0.7071 and 0.0447
_RATIO = math.sqrt(2 / math.pi)
_INNER = {  # of what Erf or Tanh reads: the polynomial in x; and what Gelu calls it
    "Erf": ((0.0, math.sqrt(0.5), 0.0, 0.0), "none"),
    "Tanh": ((0.0, _RATIO, 0.0, 0.044715 * _RATIO), "tanh"),
}


def contract_(model: onnx.ModelProto) -> list[str]:
    """Write each GELU of several nodes as one Gelu, in place; return what was changed, as text.

    The output keeps its name, and the new node has the name of the last node that it replaces. The
    model must be of opset 20 or later to hold a Gelu; see `written_out`.
    """
    graph, count = model.graph, 0
    for name in written_out(model):
        node = next(n for n in graph.node if n.output[0] == name)
        found = _Reading(graph).gelu(node)
        if found is not None:
            _replace_(graph, *found)
            count += 1
    return [f"{counted(count, 'GELU')} of several nodes written as one"] if count else []


def written_out(model: onnx.ModelProto) -> list[str]:
    """Return the output of the Erf or Tanh of each GELU that is written in several nodes."""
    reading = _Reading(model.graph)
    return [
        node.output[0]
        for node in model.graph.node
        if node.op_type in _INNER and not node.domain and reading.gelu(node)
    ]


class _Reading:
    """A graph in which values are read as polynomials in another one."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.made_by = producers(graph.node)
        self.read_by = readers(graph.node)
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.ends = {value.name for value in graph.output}

    def gelu(self, inner: onnx.NodeProto) -> tuple[str, str, onnx.NodeProto] | None:
        """Return the input of the GELU around an Erf or Tanh, its kind, and its last node."""
        wanted, kind = _INNER[inner.op_type]
        for x in self._before(inner.input[0]):
            found = self.polynomial(inner.input[0], x)
            if found is not None and np.allclose(found, wanted, rtol=_CLOSE, atol=1e-6):
                last = self._last(inner, x)
                return None if last is None else (x, kind, last)
        return None

    def _before(self, name: str, depth: int = _DEPTH) -> Iterator[str]:
        """Yield what a value is computed from, the nearest first."""
        node = self.made_by.get(name)
        if node is None or depth == 0 or node.op_type not in ("Add", "Sub", "Mul", "Div", "Pow"):
            return
        for given in node.input:
            if self.constant(given) is None:
                yield given
                yield from self._before(given, depth - 1)

    def _last(self, inner: onnx.NodeProto, x: str) -> onnx.NodeProto | None:
        """Follow ``f(...)`` to the node that gives ``x (1 + f(...)) / 2``, and nothing else."""
        one = half = 0.0  # the value reached is x^power (one + half f)
        power, half, node = 0, 1.0, inner
        while not (power == 1 and math.isclose(one, 0.5, rel_tol=_CLOSE)):
            name = node.output[0]
            users = self.read_by.get(name, [])
            if len(users) != 1 or name in self.ends or list(users[0].input).count(name) != 1:
                return None
            node = users[0]
            other = next((i for i in node.input if i != name), "")
            value = self.constant(other)
            if node.op_type == "Add" and value is not None and power == 0:
                one += value
            elif node.op_type == "Div" and value and node.input[0] == name:
                one, half = one / value, half / value
            elif node.op_type == "Mul":
                factor = self.polynomial(other, x)
                if factor is None or factor[2:].any() or (factor[0] and factor[1]):
                    return None
                power += bool(factor[1])
                one, half = one * factor[:2].sum(), half * factor[:2].sum()
            else:
                return None
        return node if math.isclose(half, 0.5, rel_tol=_CLOSE) else None

    def polynomial(self, name: str, x: str, depth: int = _DEPTH) -> np.ndarray | None:
        """Return a value's coefficients as a polynomial in `x`; None where it is another thing."""
        value, node = self.constant(name), self.made_by.get(name)
        if name == x:
            return np.array([0.0, 1, 0, 0])
        if value is not None:
            return np.array([value, 0.0, 0, 0])
        if node is None or depth == 0 or node.domain or len(node.input) != 2:
            return None
        one, other = (self.polynomial(given, x, depth - 1) for given in node.input)
        return None if one is None or other is None else _combined(node.op_type, one, other)

    def constant(self, name: str) -> float | None:
        """Return the value of a constant of one element."""
        from onnx import numpy_helper

        tensor, node = self.weights.get(name), self.made_by.get(name)
        if node is not None and node.op_type == "Constant":
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
        if tensor is None or len(tensor.dims) > 1 or math.prod(tensor.dims) != 1:
            return None
        return float(numpy_helper.to_array(tensor).ravel()[0])


def _combined(op_type: str, one: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """Return the polynomial that an operator makes of two."""
    if op_type in ("Add", "Sub"):
        total: np.ndarray = one + other if op_type == "Add" else one - other
        return total
    plain = not other[1:].any()
    product: np.ndarray = np.ones(1)
    if op_type == "Div" and plain and other[0]:
        product = one / other[0]
    elif op_type == "Mul":
        product = np.convolve(one, other)
    elif op_type == "Pow" and plain and other[0] in range(1, _DEGREE + 1):
        for _ in range(int(other[0])):
            product = np.convolve(product, one)
    else:
        return None
    if product[_DEGREE + 1 :].any():
        return None
    return np.pad(product, (0, _DEGREE))[: _DEGREE + 1]


def _replace_(graph: onnx.GraphProto, x: str, kind: str, last: onnx.NodeProto) -> None:
    """Put one Gelu in the place of the last node, and take away what nobody reads then."""
    from onnx import helper

    given = [i for i in last.input if i]
    last.CopyFrom(helper.make_node("Gelu", [x], list(last.output), last.name))
    if kind != "none":
        last.attribute.append(helper.make_attribute("approximate", kind))
    kept = {value.name for value in graph.output}
    made_by = producers(graph.node)
    while given:
        node = made_by.get(name := given.pop())
        if node is None or name == x or name in kept or name in readers(graph.node):
            continue
        given += [i for i in node.input if i]
        graph.node.remove(node)
