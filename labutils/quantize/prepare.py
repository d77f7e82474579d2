"""A float ONNX file made ready to be quantized: checked, named, with shapes, constants lifted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ModelFileError
from ..onnxfile.edit import free_name, lift_constants_
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import opset, with_shapes

if TYPE_CHECKING:
    import onnx

_FIRST_OPSET = 10


def prepared(source: OnnxFile | str | Path) -> onnx.ModelProto:
    """Return the model in `source`, checked, with shapes and with a name for every node."""
    from onnx import numpy_helper

    source = OnnxFile.of(source)
    source.require_valid()
    model = source.copy()
    if opset(model) < _FIRST_OPSET:
        raise ModelFileError(
            f"{source.name} is of opset {opset(model)}; QuantizeLinear came with {_FIRST_OPSET}. "
            "Export it again, at opset 17."
        )
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or "Integer" in node.op_type:
            raise ModelFileError(
                f"{source.name} is quantized already ({node.op_type} '{node.name}'). Quantize the "
                "float file that it was made from."
            )
    _check_input(model, source)
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:  # ranges and exclusions go by name
            node.name = free_name(f"{node.op_type}_{index}", taken)
    # the quantizer takes the output of a Constant node for an activation without a range
    lift_constants_(model, per_use=True)
    for tensor in model.graph.initializer:
        try:
            values = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, MemoryError) as error:
            raise ModelFileError(
                f"Weight {tensor.name!r} of {source.name} cannot be read: {error}. The file is "
                "damaged."
            ) from None
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ModelFileError(f"Weight {tensor.name!r} of {source.name} holds NaN or infinity.")
    return with_shapes(model)


def _check_input(model: onnx.ModelProto, source: OnnxFile) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    if len(inputs) != 1:
        raise ModelFileError(f"{source.name} has {len(inputs)} inputs; calibration feeds one.")
    shape = [d.dim_param or d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    if not all(isinstance(d, int) and d > 0 for d in shape) or shape[:1] != [1]:
        raise ModelFileError(
            f"{source.name} takes the shape {shape}; calibration and the HTP need a fixed shape "
            "with batch 1. Export it again with one example image."
        )
