"""Scales and zero points of weights: per output channel or per tensor, whole or clipped."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .carriers import weight_axis
from .ranges import least_error
from .recipe import Recipe

if TYPE_CHECKING:
    import onnx


_VALUES = 2**20  # weights that are looked at together

LEAST_RANGE = 1e-4
"""Range of a tensor that is constant 0, as in ONNX Runtime's QNN settings."""


def channel_scales(array: np.ndarray, axis: int, bits: int) -> np.ndarray:
    """Return the scale of each output channel, symmetric and whole, as ONNX Runtime has it.

    Parameters
    ----------
    array
        Weights, float32, of any shape, not empty.
    axis, bits
        Of the output channels; of the codes, which are signed.

    Returns
    -------
    numpy.ndarray
        (channels,) float32, bit for bit what `compute_data_quant_params` of
        ``onnxruntime.quantization.quant_utils`` gives channel by channel.
    """
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    low, high = np.minimum(rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
    high = np.maximum(high, low + array.dtype.type(LEAST_RANGE))
    reach = np.maximum(-low, high).astype(np.float64)
    return (2 * reach / (2**bits - 2)).astype(array.dtype)


def weight_scales(
    recipe: Recipe, node: onnx.NodeProto, array: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and zero point of a carrier's weights, shaped to go with `array`."""
    said = recipe.setting(node.name, node.op_type, "per_channel")
    channels = recipe.weights.per_channel if said is None else said
    axis = weight_axis(node) if channels else None
    own = recipe.setting(node.name, node.op_type, "weight_range")
    rows = np.array(scale_rows(recipe, array, bits, axis, own))
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]
    return rows[:, 0].reshape(shape), rows[:, 1].reshape(shape)


def scale_rows(
    recipe: Recipe, array: np.ndarray, bits: int, axis: int | None, own: float | None = None
) -> list[tuple[float, int]]:
    """Return (scale, zero point) per output channel, or once for all.

    Parameters
    ----------
    recipe
        Symmetry, clipping and its limit, powers of two.
    array
        The weights.
    bits, axis
        Of the codes; of the output channels, None for one scale.
    own
        The magnitude that the codes reach, whatever the weights are.
    """
    rows = array.reshape(1, -1)
    if axis is not None:
        rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    at_once = max(1, _VALUES // max(1, rows.shape[1]))
    found: list[tuple[float, int]] = []
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once].astype(np.float64)
        scales, zeros = _scales(recipe, part, bits, own)
        found += zip(scales.tolist(), zeros.tolist(), strict=True)
    return found


def _scales(
    recipe: Recipe, rows: np.ndarray, bits: int, own: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and zero point of every row."""
    settings, most = recipe.weights, 2 ** (bits - 1) - 1
    # a range of 4 with steps of a power of two is -4 to 4 less one step, not -8 to 8
    share = most / (most + 1) if settings.power_of_two else 1.0
    if own is not None:
        rows = np.broadcast_to(share * own * np.array([-1.0, 1.0]), (len(rows), 2))
    elif settings.limit is not None:
        rows = np.clip(rows, -settings.limit, settings.limit)
    clipped = own is None and (settings.mse or bits < 8)  # 4 bits cannot pay for the extremes
    if settings.symmetric:
        low, scale = np.zeros(len(rows)), _reach(rows, most, clipped) / most
    else:
        low, high = _ends(rows, bits, clipped)
        scale = np.maximum(high - low, 1e-9) / (2 * most + 1)
    if settings.power_of_two:
        scale = 2.0 ** np.ceil(np.log2(scale) - 1e-4)  # as training, in float32
        if own is None and settings.limit is not None:
            largest = 2.0 ** math.floor(math.log2(settings.limit / (most + 1)) + 1e-9)
            scale = np.minimum(scale, largest)
    zero = np.zeros(len(rows)) if settings.symmetric else np.round(-low / scale) - most - 1
    return scale, zero.astype(np.int64)


def _reach(rows: np.ndarray, most: int, clipped: bool) -> np.ndarray:
    """Return the symmetric range of each row; clipped, the one with the least squared error."""
    high = np.maximum(np.abs(rows).max(axis=1), 1e-9)
    if not clipped:
        return high
    edges = high[:, None] * np.linspace(0.5, 1.0, 41)

    def errors(edge: np.ndarray) -> np.ndarray:
        scale = edge[:, None] / most
        kept = np.clip(np.round(rows / scale), -most - 1, most) * scale
        return ((rows - kept) ** 2).sum(axis=1)

    best = np.argmin([errors(edge) for edge in edges.T], axis=0)
    return edges[np.arange(len(rows)), best]


def _ends(rows: np.ndarray, bits: int, clipped: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the range of each row, which 0 belongs to; clipped, that of the least error."""
    if not clipped:
        return np.minimum(rows.min(axis=1), 0.0), np.maximum(rows.max(axis=1), 0.0)
    ones = np.ones(rows.shape[1])
    low, high = zip(*(least_error(ones, np.sort(row), bits) for row in rows), strict=True)
    return np.array(low), np.array(high)
