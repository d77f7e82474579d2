"""Masks of attention: -inf before a Softmax, which no scale holds, as a finite number.

Softmax makes 0 of -inf, and of what lies 100 below the scores less than float32 shows beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import counted
from .edit import readers, subgraphs

if TYPE_CHECKING:
    import onnx

FAR_BELOW = -100.0
# What a mask goes through on its way to the Softmax, where -inf stays -inf.
_MASKING = ("Add", "Where")
_HANDING_ON = (*_MASKING, "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand")


def make_finite_(model: onnx.ModelProto) -> list[str]:
    """Write `FAR_BELOW` for -inf in the masks of a model, in place; return what was changed.

    A constant counts as a mask where each of its ways leads through an Add or a Where into a
    Softmax. Where scores lie so far apart that this is not the same function, the comparison of the
    quantized file with its source finds that.
    """
    from onnx import numpy_helper

    graph = model.graph
    if any(True for node in graph.node for _ in subgraphs(node)):
        return []
    read_by = readers(graph.node)
    ends = {output.name for output in graph.output}
    found = 0
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind != "f" or not np.isneginf(values).any():
            continue
        if _is_masking(tensor.name, read_by, ends, masked=False):
            made = np.where(np.isneginf(values), FAR_BELOW, values).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))
            found += 1
    return [f"-inf in {counted(found, 'mask')} written as {FAR_BELOW:g}"] if found else []


def _is_masking(
    name: str, read_by: dict[str, list[onnx.NodeProto]], ends: set[str], masked: bool
) -> bool:
    """Whether every way from a tensor leads into a Softmax, through what masks."""
    nodes = read_by.get(name, [])
    if not nodes or name in ends:
        return False
    for node in nodes:
        if node.op_type == "Softmax" and masked:
            continue
        if node.op_type not in _HANDING_ON:
            return False
        if not _is_masking(node.output[0], read_by, ends, masked or node.op_type in _MASKING):
            return False
    return True
