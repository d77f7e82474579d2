"""Exact rules for pools: large max pools as chains, large averages as convolutions, global means.

A pool of 5x5 or more is beyond some accelerators (TIDL validates averages up to 3x3). What cannot
be replaced exactly is left, with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..rule import NOT_MINE, OnnxForm, Rule, Site
from .smooth_activations import one_node

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

    from ..onnx_level.builder import Builder

_SMALL = 3  # kernels up to this size are left as they are
_WIDEST_PLANE = 1024  # of a global pool on TIDL 11 (height * width)


def _sizes(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _max_objection(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> str:  # fmt: skip
    if max(_sizes(kernel_size)) <= _SMALL:
        return NOT_MINE
    if max(_sizes(dilation)) > 1:
        return "dilated: a chain of small pools sees every position"
    if return_indices:
        return "it returns the indices of the maxima"
    return "ceil_mode: the last window depends on the input's size" if ceil_mode else ""


def _avg_objection(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> str:  # fmt: skip
    if max(_sizes(kernel_size)) <= _SMALL:
        return NOT_MINE
    if ceil_mode:
        return "ceil_mode: the windows at the edge have other divisors"
    if max(_sizes(padding)) and not count_include_pad and not divisor_override:
        return "count_include_pad=False: the windows at the edge have other divisors"
    return ""


def _module_objection(check: Any, *names: str) -> Any:
    def objection(site: Site) -> str:
        return check(None, **{name: getattr(site.module, name) for name in names})

    return objection


def _max_layer(old: nn.Module) -> nn.Module:
    from torch import nn

    from ..layers.pooling import chain

    stages = chain(old.kernel_size, old.stride, old.padding)
    return nn.Sequential(*(nn.MaxPool2d(s.kernel, s.stride, s.padding) for s in stages))


def _avg_layer(old: nn.Module) -> nn.Module:
    from ..layers.pooling import AvgPoolByConv, pair

    kernel, stride = pair(old.kernel_size), pair(old.stride or old.kernel_size)
    return AvgPoolByConv(kernel, stride, pair(old.padding), old.divisor_override)


def _max_pool(*args: Any, **kwargs: Any) -> torch.Tensor:
    from ..layers.pooling import max_pool_chain

    return max_pool_chain(*args, **kwargs)


def _avg_pool(*args: Any, **kwargs: Any) -> torch.Tensor:
    from ..layers.pooling import avg_pool_by_conv

    return avg_pool_by_conv(*args, **kwargs)


def _global_pool(*args: Any, **kwargs: Any) -> torch.Tensor:
    from ..layers.pooling import global_pool

    return global_pool(*args, **kwargs)


def _mean_objection(
    input: torch.Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> str:
    dims = _sizes(dim) if dim is not None else ()
    rank = getattr(input, "ndim", 4)
    rank = rank if isinstance(rank, int) else 4
    if rank != 4 or sorted(d % 4 for d in dims) != [2, 3]:
        return NOT_MINE
    return "" if dtype is None else "it computes in another dtype"


def _onnx_pads(node: ir.Node) -> list[int]:
    return list(node.attributes.get_ints("pads", [0, 0, 0, 0]))


def _kernel(node: ir.Node) -> list[int]:
    return list(node.attributes.get_ints("kernel_shape", []))


def _onnx_objection(node: ir.Node, _: frozenset[str]) -> str:
    kernel, pads = _kernel(node), _onnx_pads(node)
    if len(kernel) != 2:
        return f"a pool over {len(kernel)} axes: the rule is for images"
    if max(kernel) <= _SMALL:
        return NOT_MINE
    if set(node.attributes.get_ints("dilations", [1])) != {1}:
        return "dilated: a chain of small pools sees every position"
    if node.attributes.get_int("ceil_mode", 0):
        return "ceil_mode: the windows at the edge depend on the input's size"
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return "auto_pad: the padding depends on the input's size"
    if node.op_type == "MaxPool":
        if len(node.outputs) > 1 and node.outputs[1].uses():
            return "it returns the indices of the maxima"
        even = [p > k // 2 for p, k in zip(pads, kernel * 2, strict=True)]
        return "it pads by more than half of its kernel" if any(even) else ""
    if any(pads) and not node.attributes.get_int("count_include_pad", 0):
        return "count_include_pad=0: the windows at the edge have other divisors"
    return "" if _channels(node) else "the number of its channels is unknown"


def _channels(node: ir.Node) -> int:
    shape = node.inputs[0].shape
    return shape[1] if shape is not None and isinstance(shape[1], int) else 0


def _build_max(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    from ..layers.pooling import chain

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


def axes_of(node: ir.Node) -> list[int] | None:
    """Return the axes of a reduction: an attribute, since opset 18 an input; None: unknown."""
    axes = node.attributes.get_ints("axes", None)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        constant = node.inputs[1].const_value
        axes = None if constant is None else constant.numpy().tolist()
    return None if axes is None else list(axes)


def _reduce_objection(node: ir.Node, _: frozenset[str]) -> str:
    axes, shape = axes_of(node), node.inputs[0].shape
    if axes is None or shape is None or len(shape) != 4:
        return "no mean over known axes of an image"
    return "" if sorted(a % 4 for a in axes) == [2, 3] else NOT_MINE


def _build_global(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    pooled = g.op("GlobalAveragePool", x, elementwise=False)
    if node.attributes.get_int("keepdims", 1):
        return pooled
    return g.op("Flatten", pooled, elementwise=False, axis=1)


def _plane(node: ir.Node) -> int:
    shape = node.inputs[0].shape
    known = shape is not None and len(shape) == 4
    sizes = [d for d in shape[1:] if isinstance(d, int)] if known else []
    return sizes[1] * sizes[2] if len(sizes) == 3 else 0


def _plane_objection(node: ir.Node, _: frozenset[str]) -> str:
    if _plane(node) <= _WIDEST_PLANE:
        return NOT_MINE
    return ""


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
    modules=("torch.nn.modules.pooling.MaxPool2d",),
    module=_max_layer,
    module_check=_module_objection(
        _max_objection, "kernel_size", "stride", "padding", "dilation", "ceil_mode",
        "return_indices",
    ),
    functions=("torch.nn.functional.max_pool2d", "torch.max_pool2d", "torch.ops.aten.max_pool2d",
               "torch.ops.aten.max_pool2d.default"),
    function=_max_pool,
    function_check=_max_objection,
    onnx=(OnnxForm("MaxPool", ("MaxPool",), one_node("MaxPool"), _build_max, _onnx_objection),),
)  # fmt: skip

AVG_POOL = Rule(
    name="large-avgpool",
    exact=True,
    error="float32: within 1e-6 of the largest input; float16: 2e-3",
    source="a mean is a depthwise convolution with the weight 1 / (k * k)",
    keeps="names, hooks, train/eval state; there are no weights",
    modules=("torch.nn.modules.pooling.AvgPool2d",),
    module=_avg_layer,
    module_check=_module_objection(
        _avg_objection, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
        "divisor_override",
    ),
    functions=("torch.nn.functional.avg_pool2d", "torch.ops.aten.avg_pool2d",
               "torch.ops.aten.avg_pool2d.default"),
    function=_avg_pool,
    function_check=_avg_objection,
    onnx=(
        OnnxForm("AveragePool", ("AveragePool",), one_node("AveragePool"), _build_avg,
                 _onnx_objection),
    ),
)  # fmt: skip

MEAN = Rule(
    name="mean-to-global-pool",
    exact=True,
    error="float32: within 1e-6 of the largest input; float16: 2e-3",
    source="the mean over height and width is what GlobalAveragePool computes",
    keeps="there are no weights",
    functions=("torch.mean", "torch.Tensor.mean", "torch.ops.aten.mean.dim"),
    function=_global_pool,
    function_check=_mean_objection,
    onnx=(
        OnnxForm("ReduceMean", ("ReduceMean",), one_node("ReduceMean"), _build_global,
                 _reduce_objection),
    ),
)  # fmt: skip

WIDE_GLOBAL_POOL = Rule(
    name="wide-global-pool",
    exact=True,
    error="float32: within 2e-6 of the largest input; float16: 5e-3",
    source="a mean is a product with the vector 1 / n; TIDL 11 asks for it above 1,024 values",
    keeps="there are no weights",
    onnx=(
        OnnxForm("GlobalAveragePool", ("GlobalAveragePool",), one_node("GlobalAveragePool"),
                 _build_matmul_pool, _plane_objection),
    ),
)  # fmt: skip

RULES = (MAX_POOL, AVG_POOL, MEAN, WIDE_GLOBAL_POOL)
