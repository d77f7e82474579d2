"""What a Resize reads along each axis: as ONNX Runtime computes it, and as Qualcomm's HTP does.

The HTP knows three ways to place the positions of a nearest Resize, rounds each in one fixed way,
and takes the factor from the two lengths, whatever factor the file states. Where the positions are
the same ones, the result is; elsewhere the HTP silently computes another one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..onnxfile.session import Session

if TYPE_CHECKING:
    import onnx

COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
    "tf_half_pixel_for_nn",
)  # fmt: skip
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True)
class Axis:
    """One axis of a Resize.

    Attributes
    ----------
    length, resized
        Elements before and after.
    scale
        The factor as the file states it, or ``resized / length`` where it states sizes.
    sized
        Whether the file states sizes.
    """

    length: int
    resized: int
    scale: float
    sized: bool = False

    @property
    def changes(self) -> bool:
        """Whether the axis is resampled at all."""
        return self.length != self.resized or self.scale != 1

    @property
    def whole_ratio(self) -> bool:
        """Whether the stated factor is the ratio of the two lengths."""
        return self.scale == ratio(self.resized, self.length)


def ratio(resized: int, length: int) -> float:
    """Return the factor of two lengths, as a float32 has it."""
    return float(np.float32(resized) / np.float32(length))


def axes(
    shape: Sequence[int | None] | None, scales: np.ndarray | None, sizes: np.ndarray | None
) -> list[Axis] | None:
    """Return the axes of a Resize; None where a length is unknown, or no factor is a constant."""
    given = sizes if sizes is not None and sizes.size else scales
    if shape is None or given is None or len(given) != len(shape):
        return None
    known = [length for length in shape if length]
    if len(known) != len(shape):
        return None
    pairs = list(zip(known, given.tolist(), strict=True))
    if given is sizes:
        return [Axis(n, int(m), ratio(int(m), n), sized=True) for n, m in pairs]
    found = [Axis(n, int(np.float32(s) * np.float32(n)), float(np.float32(s))) for n, s in pairs]
    if all(axis.length == axis.resized for axis in found):  # ONNX Runtime copies then
        return [Axis(n, n, 1.0) for n in known]
    return found


@functools.lru_cache(maxsize=1024)
def nearest(axis: Axis, coordinates: str, rounding: str) -> tuple[int, ...] | None:
    """Return which element of the input each output element of a nearest Resize is.

    ONNX Runtime is asked, with a ramp: its sums are of float32, and decide at the ties.

    Parameters
    ----------
    coordinates, rounding
        The attributes ``coordinate_transformation_mode`` and ``nearest_mode``.

    Returns
    -------
    tuple or None
        `axis.resized` positions; None where they depend on an input, or the mode is unknown.

    Examples
    --------
    >>> double = Axis(2, 4, 2.0)
    >>> nearest(double, "asymmetric", "floor"), nearest(double, "half_pixel", "floor")
    ((0, 0, 1, 1), (0, 0, 0, 1))
    """
    if not axis.changes:
        return tuple(range(axis.length))
    if coordinates not in COORDINATES or rounding not in ROUNDINGS:
        return None
    ramp = np.arange(axis.length, dtype=np.float32).reshape(1, 1, -1, 1)
    (found,) = Session(_nearest_graph(axis, coordinates, rounding)).run({"x": ramp})
    return tuple(int(n) for n in found[0, 0, :, 0])


def _nearest_graph(axis: Axis, coordinates: str, rounding: str) -> onnx.ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    # a second axis that changes: ONNX Runtime copies where none does
    factors = [] if axis.sized else [1, 1, axis.scale, 2]
    inputs = {"roi": np.zeros(0, np.float32), "scales": np.array(factors, np.float32)}
    if axis.sized:
        inputs["sizes"] = np.array([1, 1, axis.resized, 2])
    node = helper.make_node(
        "Resize", ["x", *inputs], ["y"], mode="nearest", nearest_mode=rounding,
        coordinate_transformation_mode=coordinates,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "ramp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, axis.length, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, axis.resized, 2])],
        [numpy_helper.from_array(value, name) for name, value in inputs.items()],
    )
    opset = 11 if coordinates == "tf_half_pixel_for_nn" else 19  # gone since 13; symmetric: 19
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


HTP_NEAREST = {
    "asymmetric": "floor",
    "half_pixel": "round_prefer_ceil",
    "align_corners": "round_prefer_ceil",
}
"""The nearest Resizes that the HTP has, as ONNX calls them (measured, QNN 2.51's simulator)."""


def htp_nearest(axis: Axis, coordinates: str) -> tuple[int, ...] | None:
    """Return which elements the HTP reads; ``nearest_mode`` does not reach it.

    Whole-number arithmetic, which is what was measured: 462 pairs of lengths, QNN 2.51. QNN passes
    ``pytorch_half_pixel`` on as ``asymmetric``.

    Examples
    --------
    >>> htp_nearest(Axis(2, 4, 2.0), "half_pixel")
    (0, 0, 1, 1)
    """
    i, n, m = range(axis.resized), axis.length, axis.resized
    if coordinates in ("asymmetric", "pytorch_half_pixel"):
        return tuple(k * n // m for k in i)
    if coordinates == "half_pixel":
        return tuple((2 * k + 1) * n // (2 * m) for k in i)
    if coordinates == "align_corners":
        steps = max(m - 1, 1)
        return tuple((2 * k * (n - 1) + steps) // (2 * steps) for k in i)
    return None
