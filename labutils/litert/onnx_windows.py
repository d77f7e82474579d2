"""ONNX operators that look at a picture through a window, in PyTorch: convolution, pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .onnx_operators import Call, operator, padded, padding

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


@operator("Conv")
def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a convolution."""
    count = x.ndim - 2
    pairs = padding(call, x, weight.shape[2:])
    even = all(before == after for before, after in pairs)
    if not even:
        x = padded(x, pairs)
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
    pairs = padding(call, x, kernel)
    x = padded(x, pairs, float("-inf")) if not _fits(pairs, kernel) else x
    pads = [before for before, _ in pairs] if _fits(pairs, kernel) else [0, 0]
    return F.max_pool2d(x, kernel, strides, pads, dilations, bool(call.get("ceil_mode", 0)))


@operator("AveragePool")
def _average_pool(call: Call, x: Tensor) -> Tensor:
    """Return the mean of every window; what was added around counts only if told so."""
    kernel, strides, dilations = _window(call)
    pairs, ceil = padding(call, x, kernel), bool(call.get("ceil_mode", 0))
    counted = bool(call.get("count_include_pad", 0))
    if dilations != [1, 1]:
        raise call.refuse("has a dilated window")
    if _fits(pairs, kernel):
        pads = [before for before, _ in pairs]
        return F.avg_pool2d(x, kernel, strides, pads, ceil, counted)
    if ceil:
        raise call.refuse("has uneven padding and a partial window at the end (ceil_mode)")
    total = F.avg_pool2d(padded(x, pairs), kernel, strides)
    if counted:
        return total
    ones = torch.ones(1, 1, *x.shape[2:])
    return total / F.avg_pool2d(padded(ones, pairs), kernel, strides)


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
    at = 1 if call.op_type == "Upsample" else 2
    scales, sizes = call.constants.get(at), call.ints(3)
    factors = [] if scales is None else [float(scale) for scale in scales]
    if not sizes and not factors:
        raise call.refuse("gets its size from a tensor that is computed")
    old = list(x.shape)
    whole = sizes or [int(n * factor) for n, factor in zip(old, factors, strict=True)]
    size, kept = whole[2:], whole[:2] == old[:2]
    if not kept or x.ndim != 4:
        raise call.refuse("resizes batch or channels")
    mode, place = (
        call.get("mode", "nearest"),
        call.get("coordinate_transformation_mode", "half_pixel" if at == 2 else "asymmetric"),
    )
    if mode == "nearest":
        return _nearest(call, x, size, place)
    if call.get("antialias", 0):
        raise call.refuse("blurs what it shrinks (antialias)")
    if place not in ("half_pixel", "pytorch_half_pixel", "align_corners") or mode not in (
        "linear", "cubic",
    ):  # fmt: skip
        raise call.refuse(f"places pixels by {place} in mode {mode}")
    if mode == "cubic" and call.get("cubic_coeff_a", -0.75) != -0.75:
        raise call.refuse("has another cubic coefficient than PyTorch")
    named = {"linear": "bilinear", "cubic": "bicubic"}[mode]
    return F.interpolate(x, size=size, mode=named, align_corners=place == "align_corners")


def _nearest(call: Call, x: Tensor, size: Sequence[int], place: str) -> Tensor:
    rounding = call.get("nearest_mode", "round_prefer_floor")
    whole = all(n % old == 0 for n, old in zip(size, x.shape[2:], strict=True))
    if (place == "asymmetric" and rounding == "floor") or (
        whole and place == "half_pixel" and rounding.startswith("round_prefer")
    ):
        return F.interpolate(x, size=list(size), mode="nearest")
    if call.op_type == "Upsample":
        return F.interpolate(x, size=list(size), mode="nearest")
    raise call.refuse(f"places pixels by {place} and {rounding} in mode nearest")
