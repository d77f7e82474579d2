"""ONNX operators that look at a picture through a window, in PyTorch: convolution, pooling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .onnx_operators import Call, operator

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


@operator("Conv")
def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a convolution."""
    count = x.ndim - 2
    pairs = _padding(call, x, weight.shape[2:])
    even = all(before == after for before, after in pairs)
    if not even:
        x = _padded(x, pairs)
    return _CONVOLUTIONS[x.ndim](
        x, weight, bias, call.get("strides") or [1] * count,
        [before for before, _ in pairs] if even else [0] * count,
        call.get("dilations") or [1] * count, call.get("group", 1),
    )  # fmt: skip


@operator("ConvTranspose")
def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a transposed convolution."""
    count = x.ndim - 2
    pads = call.get("pads") or [0] * (2 * count)
    if (
        pads[:count] != pads[count:]
        or call.get("output_shape")
        or call.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    ):
        raise call.refuse("has uneven padding")
    return _TRANSPOSED[x.ndim](
        x, weight, bias, call.get("strides") or [1] * count, pads[:count],
        call.get("output_padding") or [0] * count, call.get("group", 1),
        call.get("dilations") or [1] * count,
    )  # fmt: skip


@operator("MaxPool")
def _max_pool(call: Call, x: Tensor) -> Tensor:
    """Return the greatest value in every window."""
    if call.count > 1:
        raise call.refuse("gives the positions, too")
    kernel, strides, dilations = _window(call)
    pairs = _padding(call, x, kernel)
    ceil, pads = bool(call.get("ceil_mode", 0)), [before for before, _ in pairs]
    if not _fits(pairs, kernel):
        if ceil:
            raise call.refuse("has uneven padding and a partial window at the end (ceil_mode)")
        x, pads = _padded(x, pairs, float("-inf")), [0, 0]
    return F.max_pool2d(x, kernel, strides, pads, dilations, ceil)


@operator("AveragePool")
def _average_pool(call: Call, x: Tensor) -> Tensor:
    """Return the mean of every window; what was added around counts only if told so."""
    kernel, strides, dilations = _window(call)
    pairs, ceil = _padding(call, x, kernel), bool(call.get("ceil_mode", 0))
    counted = bool(call.get("count_include_pad", 0))
    if dilations != [1, 1]:
        raise call.refuse("has a dilated window")
    if _fits(pairs, kernel):
        pads = [before for before, _ in pairs]
        return F.avg_pool2d(x, kernel, strides, pads, ceil, counted)
    if ceil:
        raise call.refuse("has uneven padding and a partial window at the end (ceil_mode)")
    total = F.avg_pool2d(_padded(x, pairs), kernel, strides)
    if counted:
        return total
    ones = torch.ones(1, 1, *x.shape[2:])
    return total / F.avg_pool2d(_padded(ones, pairs), kernel, strides)


def _window(call: Call) -> tuple[list[int], list[int], list[int]]:
    """Return kernel, strides and dilations of a window in two dimensions."""
    kernel = list(call.get("kernel_shape"))
    if len(kernel) != 2:
        raise call.refuse(f"has {len(kernel)} dimensions")
    return kernel, list(call.get("strides") or [1, 1]), list(call.get("dilations") or [1, 1])


def _fits(pairs: Sequence[tuple[int, int]], kernel: Sequence[int]) -> bool:
    """Whether PyTorch pads so: evenly, and by half a window at most."""
    return all(a == b and a <= k // 2 for (a, b), k in zip(pairs, kernel, strict=True))


@operator("Resize", "Upsample")
def _resize(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    """Return a picture of another size."""
    upsample = call.op_type == "Upsample"
    size, factors = _resized(call, x, 1 if upsample else 2)
    mode = call.get("mode", "nearest")
    usual = "asymmetric" if upsample else "half_pixel"
    place = call.get("coordinate_transformation_mode", usual)
    if mode == "nearest":
        return _nearest(call, x, size, factors, place)
    if call.get("antialias", 0):
        raise call.refuse("blurs what it shrinks (antialias)")
    if call.get("exclude_outside", 0):
        raise call.refuse("leaves out what lies outside of the picture (exclude_outside)")
    if place == "pytorch_half_pixel" and 1 not in size:
        place = "half_pixel"
    if place not in ("half_pixel", "align_corners") or mode not in _INTERPOLATIONS:
        raise call.refuse(f"places pixels by {place} in mode {mode}")
    if mode == "cubic" and call.get("cubic_coeff_a", -0.75) != -0.75:
        raise call.refuse("has another cubic coefficient than PyTorch")
    named, exact = _INTERPOLATIONS[mode]
    corners = place == "align_corners"
    if corners or _are_ratios(factors, size, x):
        return F.interpolate(x, size=size, mode=named, align_corners=corners)
    return exact(x, size, corners, *factors)  # `interpolate` takes sizes or factors


_INTERPOLATIONS = {
    "linear": ("bilinear", torch.ops.aten.upsample_bilinear2d.default),
    "cubic": ("bicubic", torch.ops.aten.upsample_bicubic2d.default),
}
"""ONNX's mode -> PyTorch's name of it, and the function that takes both sizes and factors."""


def _resized(call: Call, x: Tensor, at: int) -> tuple[list[int], list[float]]:
    """Return height and width, and the factors by which pixels are placed."""
    stated, sizes = call.constant(at, "scales"), call.ints(3, "sizes")
    axes = [axis % x.ndim for axis in call.get("axes") or range(x.ndim)]
    if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refuse("keeps the ratio of the sides")
    old, factors = list(x.shape), [1.0] * x.ndim
    size = list(old)
    if sizes:
        for axis, n in zip(axes, sizes, strict=True):
            size[axis], factors[axis] = n, n / old[axis]
    elif stated is not None and stated.size:
        for axis, factor in zip(axes, stated.astype(np.float32), strict=True):
            # in float32, as ONNX Runtime: 10 * 2.3 is 23 there, and less in float64
            size[axis], factors[axis] = int(np.float32(old[axis]) * factor), float(factor)
    else:
        raise call.refuse("says no size")
    if size[:2] != old[:2] or x.ndim != 4:
        raise call.refuse("resizes batch or channels")
    return size[2:], factors[2:]


def _are_ratios(factors: Sequence[float], size: Sequence[int], x: Tensor) -> bool:
    """Whether factors are those of the sizes: 1.5 times 7 are 10 pixels, 1.43 times as many."""
    ratios = [n / old for n, old in zip(size, x.shape[2:], strict=True)]
    return all(abs(a - b) <= 1e-6 * b for a, b in zip(factors, ratios, strict=True))


def _nearest(
    call: Call, x: Tensor, size: Sequence[int], factors: Sequence[float], place: str
) -> Tensor:
    rounding = call.get("nearest_mode", "round_prefer_floor")
    plain = call.op_type == "Upsample" or (place == "asymmetric" and rounding == "floor")
    half = place == "half_pixel" and rounding.startswith("round_prefer")
    if not plain and not half:
        raise call.refuse(f"places pixels by {place} and {rounding} in mode nearest")
    whole = all(n % old == 0 for n, old in zip(size, x.shape[2:], strict=True))
    if not whole or not _are_ratios(factors, size, x):  # litert-torch takes other pixels then
        raise call.refuse("has scales other than whole numbers in mode nearest")
    return F.interpolate(x, size=list(size), mode="nearest")


def _padding(call: Call, x: Tensor, kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Return (before, after) of every axis of the picture, as ``pads`` or ``auto_pad`` say."""
    auto, count = call.get("auto_pad", "NOTSET"), len(kernel)
    if auto in ("NOTSET", "VALID", ""):
        flat = call.get("pads") or [0] * (2 * count)
        flat = [0] * (2 * count) if auto == "VALID" else list(flat)
        return list(zip(flat[:count], flat[count:], strict=True))
    if any(step > 1 for step in call.get("dilations") or ()):
        raise call.refuse("has a dilated window with automatic padding")  # runtimes disagree
    found = []
    strides = call.get("strides") or [1] * count
    for size, k, s in zip(x.shape[2:], kernel, strides, strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if auto == "SAME_UPPER" else (more, less))
    return found


def _padded(x: Tensor, pairs: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Return a picture with values around it."""
    flat = [n for pair in reversed(pairs) for n in pair]
    return F.pad(x, flat, value=value) if any(flat) else x
