"""Writing the nodes that replace a match in an ONNX graph, with names, types and constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from ...onnxfile.edit import free_name

Operand: TypeAlias = ir.Value | float | np.ndarray


@dataclass
class Names:
    """The names that a graph's nodes and values have."""

    nodes: set[str]
    values: set[str]

    @classmethod
    def of(cls, model: ir.Model) -> Names:
        """Return the names in use, those of subgraphs included."""
        nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
        values = {v.name for n in nodes for v in (*n.inputs, *n.outputs) if v is not None}
        values |= set(model.graph.initializers)
        return cls({n.name for n in nodes if n.name}, {name for name in values if name})


class Builder:
    """Writes the replacement of one match, under the name of the node that it replaces.

    ``/features/features.0/features.0.2/HardSwish`` becomes ``.../Add``, ``.../Clip`` and so on.
    Constants become initializers, one per use: a quantizer that gives a shared one a scale would
    change every user of it.

    Parameters
    ----------
    op
        What the rewriter writes nodes with.
    x
        The input of the match, in whose type and shape the nodes compute.
    scope
        What the new names begin with.
    names
        Those in use, to which the new ones are added.
    dtype
        The element type of `x`.
    opset
        The opset of the model.
    """

    def __init__(
        self, op: Any, x: ir.Value, scope: str, names: Names, dtype: ir.DataType, opset: int
    ) -> None:
        self._op, self._x, self._scope, self._names, self._dtype = op, x, scope, names, dtype
        self.opset = opset
        self.written: list[str] = []

    def add(self, a: ir.Value, b: Operand) -> ir.Value:
        """Write ``a + b``."""
        return self.op("Add", a, b)

    def sub(self, a: ir.Value, b: Operand) -> ir.Value:
        """Write ``a - b``."""
        return self.op("Sub", a, b)

    def mul(self, a: ir.Value, b: Operand) -> ir.Value:
        """Write ``a * b``."""
        return self.op("Mul", a, b)

    def div(self, a: ir.Value, b: Operand) -> ir.Value:
        """Write ``a / b``."""
        return self.op("Div", a, b)

    def clip(self, a: ir.Value, low: float, high: float) -> ir.Value:
        """Write ``min(max(a, low), high)``: bounds are inputs since opset 11, attributes before."""
        if self.opset < 11:
            return self.op("Clip", a, min=low, max=high)
        return self.op("Clip", a, low, high)

    def op(
        self,
        op_type: str,
        *inputs: Operand | None,
        elementwise: bool = True,
        **attributes: Any,
    ) -> ir.Value:
        """Write any node.

        Parameters
        ----------
        inputs
            Values; numbers and float arrays, which become constants of the match's type; integer
            arrays; None for an input that is left out.
        elementwise
            Whether the output has the shape of the match's input; else shape inference finds it.
        """
        name = free_name(self._scope + op_type, self._names.nodes)
        values = [self._constant(v, f"{name}.{i}") if isinstance(v, float | np.ndarray) else v
                  for i, v in enumerate(inputs)]  # fmt: skip
        output = free_name(f"{name}_output_0", self._names.values)
        result = self._op.op(op_type, *values, _outputs=[output], _name=name, **attributes)
        result.type = self._x.type
        if elementwise:
            result.shape = self._x.shape
        self.written.append(op_type)
        return result

    def again(self, node: ir.Node, *inputs: Operand | None) -> ir.Value:
        """Write a node of the same operator and attributes with other inputs."""
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        return self.op(node.op_type, *inputs, elementwise=False, **attributes)

    def _constant(self, value: float | np.ndarray, name: str) -> ir.Value:
        name = free_name(name, self._names.values)
        array = np.asarray(value)
        if array.dtype.kind != "f":
            return self._op.initializer(ir.tensor(array, name=name), name)
        array = array.astype(self._dtype.numpy())
        return self._op.initializer(ir.tensor(array, dtype=self._dtype, name=name), name)
