"""Writing the nodes that replace a match in an ONNX graph, with names, types and constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ...onnxfile.edit import free_name

if TYPE_CHECKING:
    from .rewriting import Rewriting


class Builder:
    """Writes the replacement of one match, under the name of the node that it replaces.

    ``/features/features.0/features.0.2/HardSwish`` becomes ``.../Add``, ``.../Clip`` and so on.
    Constants become initializers, one per use: a quantizer that gives a shared one a scale would
    change every user of it.
    """

    def __init__(self, op: Any, x: ir.Value, scope: str, names: Rewriting) -> None:
        self._op, self._x, self._scope, self._names = op, x, scope, names
        self._dtype = names.dtype(x)
        self.written: list[str] = []

    @property
    def opset(self) -> int:
        """The opset of the model."""
        return self._names.opset

    def add(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        """Write ``a + b``."""
        return self.op("Add", a, b)

    def sub(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        """Write ``a - b``."""
        return self.op("Sub", a, b)

    def mul(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        """Write ``a * b``."""
        return self.op("Mul", a, b)

    def div(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
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
        *inputs: ir.Value | float | np.ndarray | None,
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
        name = free_name(self._scope + op_type, self._names.node_names)
        values = [self._constant(v, f"{name}.{i}") if isinstance(v, float | np.ndarray) else v
                  for i, v in enumerate(inputs)]  # fmt: skip
        output = free_name(f"{name}_output_0", self._names.value_names)
        result = self._op.op(op_type, *values, _outputs=[output], _name=name, **attributes)
        result.type = self._x.type
        if elementwise:
            result.shape = self._x.shape
        self.written.append(op_type)
        return result

    def again(self, node: ir.Node, *inputs: ir.Value | float | np.ndarray | None) -> ir.Value:
        """Write a node of the same operator and attributes with other inputs."""
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        return self.op(node.op_type, *inputs, elementwise=False, **attributes)

    def _constant(self, value: float | np.ndarray, name: str) -> ir.Value:
        name = free_name(name, self._names.value_names)
        array = np.asarray(value)
        if array.dtype.kind != "f":
            return self._op.initializer(ir.tensor(array, name=name), name)
        array = array.astype(self._dtype.numpy())
        return self._op.initializer(ir.tensor(array, dtype=self._dtype, name=name), name)
