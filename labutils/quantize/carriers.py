"""The operators that multiply and accumulate, and how their weights lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

CARRIERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that multiply and accumulate."""

NORMALIZATION = "LayerNormalization"
"""Its factors are unsigned codes: QNN's HTP adds no LayerNorm with signed ones (measured, 2.51)."""


def weight_axis(node: onnx.NodeProto) -> int | None:
    """Return the axis of a carrier's output channels in its weights.

    None for a MatMul's, and for a ConvTranspose of several groups: there every row of the axis is
    one channel of each group, and a scale per row is not one per channel.
    """
    if node.op_type == "ConvTranspose" and any(
        a.name == "group" and a.i > 1 for a in node.attribute
    ):
        return None
    if node.op_type == "Gemm":
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return 0 if transposed else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type)
