"""Reading a node of an ONNX graph: the inputs that it must have, those that it may have, constants.

Nothing is imported here, so rules may use it and stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import SurgeryError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir


def required_input(node: ir.Node, index: int = 0) -> ir.Value:
    """Return an input that the operator must have.

    Raises
    ------
    SurgeryError
        The node lacks it: the file is damaged.
    """
    value = optional_input(node, index)
    if value is None:
        name = node.name or f"the node of {node.outputs[0].name}"
        raise SurgeryError(
            f"{name} ({node.op_type}) lacks its input {index}. The file is damaged: export it "
            "again. The model was left as it was."
        )
    return value


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input that the operator may have, None where it is left out."""
    return node.inputs[index] if len(node.inputs) > index else None


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """Return the value of a constant, None where a tensor is computed or absent."""
    tensor = None if value is None else value.const_value
    return None if tensor is None else tensor.numpy()


def shape_of(node: ir.Node, index: int = 0) -> list[int | ir.SymbolicDim] | None:
    """Return the shape of an input, None where the file does not say."""
    shape = required_input(node, index).shape
    return None if shape is None else list(shape)
