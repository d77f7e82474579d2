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
    shape: Sequence[int | None] | None,
    scales: np.ndarray | None,
    sizes: np.ndarray | None,
    named: Sequence[int] = (),
    policy: str = "stretch",
) -> list[Axis] | None:
    """Return the axes of a Resize; None where a length is unknown, or no factor is a constant.

    Parameters
    ----------
    shape
        Of the input.
    scales, sizes
        The inputs of these names; None where they are absent or computed.
    named, policy
        The attributes ``axes`` (all of them, by default) and ``keep_aspect_ratio_policy``.

    Examples
    --------
    >>> axes([1, 8, 6, 4], None, np.array([9, 9]), [2, 3], "not_larger")[3]
    Axis(length=4, resized=6, scale=1.5, sized=False)
    """
    by_size = sizes is not None and sizes.size > 0
    given = sizes if by_size else scales
    known = [length for length in shape or () if length]
    if shape is None or given is None or len(known) != len(shape):
        return None
    places = [place % len(known) for place in named] or range(len(known))
    if len(given) != len(places):
        return None
    asked = dict(zip(places, given.tolist(), strict=True))
    if by_size and policy != "stretch":
        if min(named, default=0) < 0:
            return None  # ONNX Runtime 1.31 does not resize at all then
        return _in_proportion(known, asked, policy)
    if by_size:
        resized = [int(asked.get(k, n)) for k, n in enumerate(known)]
        return [Axis(n, m, ratio(m, n), True) for n, m in zip(known, resized, strict=True)]
    factors = [np.float32(asked.get(k, 1)) for k in range(len(known))]
    found = [Axis(n, int(s * np.float32(n)), float(s)) for n, s in zip(known, factors, strict=True)]
    if all(axis.length == axis.resized for axis in found):  # ONNX Runtime copies then
        return [Axis(n, n, 1.0) for n in known]
    return found


def _in_proportion(known: list[int], asked: dict[int, int], policy: str) -> list[Axis]:
    """Return axes that share the factor of the one that fits first, or last."""
    factors = [ratio(int(m), known[k]) for k, m in asked.items()]
    factor = min(factors) if policy == "not_larger" else max(factors)
    found = []
    for k, n in enumerate(known):
        scale = factor if k in asked else 1.0
        found.append(Axis(n, int(np.floor(np.float32(scale) * np.float32(n) + 0.5)), scale))
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
        `axis.resized` positions; None where they depend on an input, the mode is unknown, or the
        factor alone does not make that length.

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
    if not axis.sized and int(np.float32(axis.scale) * np.float32(axis.length)) != axis.resized:
        return None  # rounded up, as only a Resize that keeps the ratio of the sides does
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
