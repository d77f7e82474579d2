"""The integers that a QDQ model stores for weights and biases, read and replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..onnxfile.edit import producers

if TYPE_CHECKING:
    import onnx


@dataclass
class Stored:
    """The integers of one quantized constant, and what they mean."""

    tensor: onnx.TensorProto
    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    before: np.ndarray | None = None

    def write_(self, codes: np.ndarray) -> None:
        """Store other integers; `before` keeps those that they replace."""
        from onnx import helper, numpy_helper

        self.before, self.codes = self.codes, codes
        kind = helper.tensor_dtype_to_np_dtype(self.tensor.data_type)
        name = self.tensor.name
        self.tensor.CopyFrom(numpy_helper.from_array(codes.astype(kind), name))

    def undo_(self) -> None:
        """Store again what the last call of `write_` replaced, if there was one."""
        if self.before is not None:
            self.write_(self.before)


def stored_input(model: onnx.ModelProto, node: onnx.NodeProto, index: int) -> Stored | None:
    """Return the stored integers of a node's input, None when it is not a constant's."""
    from onnx import numpy_helper

    if len(node.input) <= index:
        return None
    maker = producers(model.graph.node).get(node.input[index])
    stored = {t.name: t for t in model.graph.initializer}
    if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in stored:
        return None
    tensor = stored[maker.input[0]]
    scale = numpy_helper.to_array(stored[maker.input[1]])
    zero = stored.get(maker.input[2]) if len(maker.input) > 2 else None
    zeros = np.zeros(scale.shape) if zero is None else numpy_helper.to_array(zero)
    codes = numpy_helper.to_array(tensor).astype(np.float64)
    return Stored(tensor, codes, scale, np.asarray(zeros).astype(np.float64))
