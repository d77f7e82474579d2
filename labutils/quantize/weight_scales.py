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
    array = array.astype(np.float64)
    if axis is None:
        return [_weight_scale(recipe, array.ravel(), bits, own)]
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    return [_weight_scale(recipe, row, bits, own) for row in rows]


def _weight_scale(
    recipe: Recipe, values: np.ndarray, bits: int, own: float | None
) -> tuple[float, int]:
    settings, most = recipe.weights, 2 ** (bits - 1) - 1
    # a range of 4 with steps of a power of two is -4 to 4 less one step, not -8 to 8
    share = most / (most + 1) if settings.power_of_two else 1.0
    if own is not None:
        values = share * own * np.array([-1.0, 1.0])
    elif settings.limit is not None:
        values = np.clip(values, -settings.limit, settings.limit)
    clipped = own is None and (settings.mse or bits < 8)  # 4 bits cannot pay for the extremes
    if settings.symmetric:
        high = max(float(np.abs(values).max()), 1e-9)
        if clipped:
            high = _least_weight_error(values, high, most)
        low, scale, zero = -high, high / most, 0
    else:
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        if clipped:
            ordered = np.sort(values)
            low, high = least_error(np.ones(len(ordered)), ordered, bits)
        scale = max(high - low, 1e-9) / (2 * most + 1)
        zero = round(-low / scale) - most - 1
    if settings.power_of_two:
        scale = 2.0 ** math.ceil(math.log2(scale) - 1e-4)  # as training, in float32
        if own is None and settings.limit is not None:
            scale = min(scale, 2.0 ** math.floor(math.log2(settings.limit / (most + 1)) + 1e-9))
        zero = 0 if settings.symmetric else round(-low / scale) - most - 1
    return scale, zero


def _least_weight_error(values: np.ndarray, high: float, most: int) -> float:
    """Return the symmetric range, down to half of `high`, with the least squared error."""

    def error(edge: float) -> float:
        scale = edge / most
        kept = np.clip(np.round(values / scale), -most - 1, most) * scale
        return float(((values - kept) ** 2).sum())

    return min((high * share for share in np.linspace(0.5, 1.0, 41)), key=error)
