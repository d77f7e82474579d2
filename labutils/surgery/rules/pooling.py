"""Exact rules for pools: large max pools as chains, large averages as convolutions, global means.

A pool of 5x5 or more is beyond some accelerators (TIDL validates averages up to 3x3). What cannot
be replaced exactly is left, with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..forms import NOT_MINE, FunctionForm, Leave, ModuleForm, OnnxForm, Site
from ..layers.pool_chain import chain
from ..onnx_level.nodes import constant_of, optional_input, shape_of
from ..rule import Rule

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..onnx_level.builder import Builder

_LAYERS = "labutils.surgery.layers.pooling"
_SMALL = 3  # kernels up to this size are left as they are
_WIDEST_PLANE = 1024  # of a global pool on TIDL 11 (height * width)


def _sizes(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _check_max(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Leave | None:
    if max(_sizes(kernel_size)) <= _SMALL:
        return NOT_MINE
    if max(_sizes(dilation)) > 1:
        return Leave("dilated: a chain of small pools sees every position")
    if return_indices:
        return Leave("it returns the indices of the maxima")
    return Leave("ceil_mode: the last window depends on the input's size") if ceil_mode else None


def _check_max_layer(site: Site) -> Leave | None:
    old = site.module
    settings = (old.kernel_size, old.stride, old.padding, old.dilation)
    return _check_max(None, *settings, old.ceil_mode, old.return_indices)


def _check_avg(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Leave | None:
    if max(_sizes(kernel_size)) <= _SMALL:
        return NOT_MINE
    if ceil_mode:
        return Leave("ceil_mode: the windows at the edge have other divisors")
    if max(_sizes(padding)) and not count_include_pad and not divisor_override:
        return Leave("count_include_pad=False: the windows at the edge have other divisors")
    return None


def _check_avg_layer(site: Site) -> Leave | None:
    old = site.module
    settings = (old.kernel_size, old.stride, old.padding, old.ceil_mode, old.count_include_pad)
    return _check_avg(None, *settings, old.divisor_override)


def _check_mean(
    input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Leave | None:
    dims = _sizes(dim) if dim is not None else ()
    rank = getattr(input, "ndim", 4)
    rank = rank if isinstance(rank, int) else 4
    if rank != 4 or sorted(d % 4 for d in dims) != [2, 3]:
        return NOT_MINE
    return None if dtype is None else Leave("it computes in another dtype")


def _onnx_pads(node: ir.Node) -> list[int]:
    return list(node.attributes.get_ints("pads", [0, 0, 0, 0]))


def _kernel(node: ir.Node) -> list[int]:
    return list(node.attributes.get_ints("kernel_shape", []))


def _check_node(node: ir.Node, _: frozenset[str]) -> Leave | None:
    kernel, pads = _kernel(node), _onnx_pads(node)
    if len(kernel) != 2:
        return Leave(f"a pool over {len(kernel)} axes: the rule is for images")
    if max(kernel) <= _SMALL:
        return NOT_MINE
    if set(node.attributes.get_ints("dilations", [1])) != {1}:
        return Leave("dilated: a chain of small pools sees every position")
    if node.attributes.get_int("ceil_mode", 0):
        return Leave("ceil_mode: the windows at the edge depend on the input's size")
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return Leave("auto_pad: the padding depends on the input's size")
    if node.op_type == "MaxPool":
        if len(node.outputs) > 1 and node.outputs[1].uses():
            return Leave("it returns the indices of the maxima")
        even = [p > k // 2 for p, k in zip(pads, kernel * 2, strict=True)]
        return Leave("it pads by more than half of its kernel") if any(even) else None
    if any(pads) and not node.attributes.get_int("count_include_pad", 0):
        return Leave("count_include_pad=0: the windows at the edge have other divisors")
    return None if _channels(node) else Leave("the number of its channels is unknown")


def _channels(node: ir.Node) -> int:
    channels = (shape_of(node) or (0, 0))[1]
    return channels if isinstance(channels, int) else 0


def _build_max(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    top, left, bottom, right = _onnx_pads(node)
    strides = node.attributes.get_ints("strides", [1, 1])
    before = chain(_kernel(node), strides, (top, left))
    after = chain(_kernel(node), strides, (bottom, right))
    for first, second in zip(before, after, strict=True):
        x = g.op("MaxPool", x, elementwise=False, kernel_shape=list(first.kernel),
                 strides=list(first.stride), pads=[*first.padding, *second.padding])  # fmt: skip
    return x


def _build_avg(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    kernel, channels = _kernel(node), _channels(node)
    weight = np.full((channels, 1, *kernel), 1.0 / (kernel[0] * kernel[1]), np.float32)
    strides = list(node.attributes.get_ints("strides", [1, 1]))
    return g.op("Conv", x, weight, elementwise=False, kernel_shape=kernel, strides=strides,
                pads=_onnx_pads(node), group=channels)  # fmt: skip


def _axes(node: ir.Node) -> list[int] | None:
    """Return the axes of a reduction: an attribute, since opset 18 an input; None: unknown."""
    axes = node.attributes.get_ints("axes", None)
    if axes is not None:
        return list(axes)
    constant = constant_of(optional_input(node, 1))
    return None if constant is None else [int(axis) for axis in constant.ravel()]


def _check_reduction(node: ir.Node, _: frozenset[str]) -> Leave | None:
    axes, shape = _axes(node), shape_of(node)
    if axes is None or shape is None or len(shape) != 4:
        return Leave("not a mean over known axes of an image")
    return None if sorted(a % 4 for a in axes) == [2, 3] else NOT_MINE


def _build_global(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    pooled = g.op("GlobalAveragePool", x, elementwise=False)
    if node.attributes.get_int("keepdims", 1):
        return pooled
    return g.op("Flatten", pooled, elementwise=False, axis=1)


def _plane(node: ir.Node) -> int:
    shape = shape_of(node) or []
    sizes = [d for d in shape[1:] if isinstance(d, int)]
    return sizes[1] * sizes[2] if len(shape) == 4 and len(sizes) == 3 else 0


def _check_plane(node: ir.Node, _: frozenset[str]) -> Leave | None:
    return NOT_MINE if _plane(node) <= _WIDEST_PLANE else None


def _build_matmul_pool(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    n = _plane(node)
    flat = g.op("Reshape", x, np.array([0, 0, n]), elementwise=False)
    mean = g.op("MatMul", flat, np.full((n, 1), 1.0 / n, np.float32), elementwise=False)
    return g.op("Reshape", mean, np.array([0, 0, 1, 1]), elementwise=False)


MAX_POOL = Rule(
    name="large-maxpool",
    exact=True,
    error="bit-equal",
    source="the maximum of maxima is the maximum: 3x3 pools at stride 1, the last with the stride",
    keeps="names, hooks, train/eval state; there are no weights",
    modules=(
        ModuleForm(
            ("torch.nn.modules.pooling.MaxPool2d",),
            build=f"{_LAYERS}.make_max_pool_chain",
            check=_check_max_layer,
        ),
    ),
    functions=(
        FunctionForm(
            (
                "torch.nn.functional.max_pool2d",
                "torch.max_pool2d",
                "torch.ops.aten.max_pool2d",
                "torch.ops.aten.max_pool2d.default",
            ),
            f"{_LAYERS}.max_pool_chain",
            _check_max,
        ),
    ),
    onnx=(OnnxForm.of_node("MaxPool", _build_max, _check_node),),
)

AVG_POOL = Rule(
    name="large-avgpool",
    exact=True,
    error="float32: within 1e-6 of the largest input; float16: 2e-3",
    source="a mean is a depthwise convolution with the weight 1 / (k * k)",
    keeps="names, hooks, train/eval state; there are no weights",
    modules=(
        ModuleForm(
            ("torch.nn.modules.pooling.AvgPool2d",),
            build=f"{_LAYERS}.make_avg_pool_by_conv",
            check=_check_avg_layer,
        ),
    ),
    functions=(
        FunctionForm(
            (
                "torch.nn.functional.avg_pool2d",
                "torch.ops.aten.avg_pool2d",
                "torch.ops.aten.avg_pool2d.default",
            ),
            f"{_LAYERS}.avg_pool_by_conv",
            _check_avg,
        ),
    ),
    onnx=(OnnxForm.of_node("AveragePool", _build_avg, _check_node),),
)

MEAN = Rule(
    name="mean-to-global-pool",
    exact=True,
    error="float32: within 1e-6 of the largest input; float16: 2e-3",
    source="the mean over height and width is what GlobalAveragePool computes",
    keeps="there are no weights",
    functions=(
        FunctionForm(
            ("torch.mean", "torch.Tensor.mean", "torch.ops.aten.mean.dim"),
            f"{_LAYERS}.global_pool",
            _check_mean,
        ),
    ),
    onnx=(OnnxForm.of_node("ReduceMean", _build_global, _check_reduction),),
)

WIDE_GLOBAL_POOL = Rule(
    name="wide-global-pool",
    exact=True,
    error="float32: within 2e-6 of the largest input; float16: 5e-3",
    source="a mean is a product with the vector 1 / n; TIDL 11 asks for it above 1,024 values",
    keeps="there are no weights",
    onnx=(OnnxForm.of_node("GlobalAveragePool", _build_matmul_pool, _check_plane),),
)

RULES = (MAX_POOL, AVG_POOL, MEAN, WIDE_GLOBAL_POOL)
