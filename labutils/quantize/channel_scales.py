"""Weights seen channel by channel, and scaled so: what every kind of equalization does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

Weights = dict[str, np.ndarray]
"""The constants of a graph by name, writable."""


def channelwise(node: onnx.NodeProto, weights: Weights) -> bool:
    """Return whether an input channel has its own slice of the weights."""
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return node.op_type == "Gemm" or groups == 1 or weights[node.input[1]].shape[1] == 1


def weights_into(node: onnx.NodeProto, weights: Weights) -> np.ndarray:
    """Return a view of a Conv's or Gemm's weights with its input channels first."""
    array = weights[node.input[1]]
    if node.op_type == "Gemm":
        return np.moveaxis(array, 1 if _transposed(node) else 0, 0)
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return array if groups > 1 else np.moveaxis(array, 1, 0)


def weights_out_of(node: onnx.NodeProto, weights: Weights) -> np.ndarray:
    """Return a view of a Conv's or Gemm's weights with its output channels first."""
    array = weights[node.input[1]]
    return np.moveaxis(array, 0 if node.op_type == "Conv" or _transposed(node) else 1, 0)


def divide_(node: onnx.NodeProto, weights: Weights, factors: np.ndarray) -> None:
    """Divide what a layer gives, weights and bias, by a factor per output channel."""
    rows = weights_out_of(node, weights)
    rows /= factors.reshape(-1, *[1] * (rows.ndim - 1))
    if len(node.input) > 2 and node.input[2] in weights:
        weights[node.input[2]] /= factors


def multiply_(node: onnx.NodeProto, weights: Weights, factors: np.ndarray) -> None:
    """Multiply what a layer takes by a factor per input channel."""
    rows = weights_into(node, weights)
    rows *= factors.reshape(-1, *[1] * (rows.ndim - 1))


def _transposed(node: onnx.NodeProto) -> bool:
    return any(a.name == "transB" and a.i for a in node.attribute)
