"""Rules for normalization: the same function in steps (exact), or a BatchNorm (approximate).

A BatchNorm uses stored statistics and folds into the convolution before it; LayerNorm, GroupNorm
and InstanceNorm compute them from every input, which few accelerators do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..forms import FunctionForm, Leave, ModuleForm, OnnxForm, Site
from ..onnx_level.nodes import constant_of, optional_input, required_input, shape_of
from ..rule import Rule

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..onnx_level.builder import Builder

_LAYER_NORM = "torch.nn.modules.normalization.LayerNorm"
_LAYER_NORM_2D = ("torchvision.models.convnext.LayerNorm2d", "timm.layers.norm.LayerNorm2d")
_GROUP_NORMS = (
    "torch.nn.modules.normalization.GroupNorm",
    "timm.layers.norm.GroupNorm",
    "timm.layers.norm.GroupNorm1",
)
_INSTANCE_NORMS = tuple(f"torch.nn.modules.instancenorm.InstanceNorm{n}d" for n in (1, 2, 3))
_KEEPS = "weights under their names, eps, hooks, train/eval state"
_STEPS = "definition: (x - mean) / sqrt(variance + eps) * weight + bias"
_LAYERS = "labutils.surgery.layers.normalization"
_RETRAIN = (
    "a BatchNorm's statistics are of a set, not of one input: the network must be trained again"
)


def _aten_names(name: str) -> tuple[str, ...]:
    return f"torch.{name}", f"torch.ops.aten.{name}", f"torch.ops.aten.{name}.default"


def _check_tracking(site: Site) -> Leave | None:
    tracks = site.module.track_running_stats
    return Leave("it keeps running statistics, as a BatchNorm does") if tracks else None


def _check_statistics(running_mean: Any, use_input_stats: bool) -> Leave | None:
    if use_input_stats and running_mean is None:
        return None
    return Leave("it uses running statistics")


def _check_call(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    *_: Any,
    **__: Any,
) -> Leave | None:
    return _check_statistics(running_mean, use_input_stats)


def _check_aten_call(
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    use_input_stats: bool,
    *_: Any,
    **__: Any,
) -> Leave | None:
    return _check_statistics(running_mean, use_input_stats)


def reduce_mean(g: Builder, x: ir.Value, axes: list[int]) -> ir.Value:
    """Write a mean over axes that stay: they are an attribute until opset 17, then an input."""
    if g.opset < 18:
        return g.op("ReduceMean", x, elementwise=False, axes=axes, keepdims=1)
    return g.op("ReduceMean", x, np.array(axes), elementwise=False, keepdims=1)


def _standardized(g: Builder, x: ir.Value, axes: list[int], eps: float) -> ir.Value:
    centred = g.sub(x, reduce_mean(g, x, axes))
    variance = reduce_mean(g, g.mul(centred, centred), axes)
    root = g.op("Sqrt", g.op("Add", variance, eps, elementwise=False), elementwise=False)
    return g.div(centred, root)


def _build_layer_norm(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    axis = node.attributes.get_int("axis", -1)
    axes = list(range(axis, 0 if axis < 0 else _rank(x)))
    y = _standardized(g, x, axes, node.attributes.get_float("epsilon", 1e-5))
    y = g.mul(y, required_input(node, 1))
    bias = optional_input(node, 2)
    return y if bias is None else g.add(y, bias)


def _check_layer_norm(node: ir.Node, _: frozenset[str]) -> Leave | None:
    if any(value.uses() for value in node.outputs[1:]):
        return Leave("its mean or deviation is used as well")
    axis, shape = node.attributes.get_int("axis", -1), shape_of(node)
    return Leave("the rank of its input is unknown") if axis >= 0 and shape is None else None


def _rank(x: ir.Value) -> int:
    assert x.shape is not None  # the checks leave a node without
    return len(x.shape)


def _by_channel(g: Builder, value: ir.Value, rank: int) -> ir.Value | np.ndarray:
    """Write a weight of one value per channel so that it multiplies (n, c, ...)."""
    constant = constant_of(value)
    if constant is not None:
        return constant.reshape(-1, *[1] * (rank - 2))
    return g.op("Unsqueeze", value, np.arange(1, rank - 1), elementwise=False)


def _check_rank(node: ir.Node, _: frozenset[str]) -> Leave | None:
    if shape_of(node) is None:
        return Leave("the rank of its input is unknown")
    weights = [v for v in node.inputs[1:3] if v is not None and v.const_value is None]
    return Leave("its weights are computed in the graph") if weights else None


def _build_instance_norm(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    rank = _rank(x)
    eps = node.attributes.get_float("epsilon", 1e-5)
    y = _standardized(g, x, list(range(2, rank)), eps)
    y = g.mul(y, _by_channel(g, required_input(node, 1), rank))
    return g.add(y, _by_channel(g, required_input(node, 2), rank))


def _build_group_norm(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    groups, rank = node.attributes.get_int("num_groups", 1), _rank(x)
    flat = g.op("Reshape", x, np.array([0, groups, -1]), elementwise=False)
    centred = g.op("Sub", flat, reduce_mean(g, flat, [2]), elementwise=False)
    square = g.op("Mul", centred, centred, elementwise=False)
    variance = g.op("Add", reduce_mean(g, square, [2]), node.attributes.get_float("epsilon", 1e-5),
                    elementwise=False)  # fmt: skip
    y = g.op("Div", centred, g.op("Sqrt", variance, elementwise=False), elementwise=False)
    y = g.op("Reshape", y, np.array([d if isinstance(d, int) else 0 for d in x.shape or ()]))
    y = g.mul(y, _by_channel(g, required_input(node, 1), rank))
    return g.add(y, _by_channel(g, required_input(node, 2), rank))


def _check_group_norm(node: ir.Node, active: frozenset[str]) -> Leave | None:
    weight, x = shape_of(node, 1), shape_of(node)
    if weight is not None and x is not None and weight[0] != x[1]:
        return Leave("a weight per group (opset 18)")
    return _check_rank(node, active)


def _check_axes(site: Site) -> Leave | None:
    shape = site.module.normalized_shape
    if len(shape) == 1:
        return None
    return Leave(f"it normalizes over {len(shape)} axes, a BatchNorm over one")


LAYER_NORM = Rule(
    name="layer-norm",
    exact=True,
    error="float32: within 1e-5 of the largest output; float16: 1e-2",
    source=f"{_STEPS} (Ba et al. 2016)",
    keeps=_KEEPS,
    modules=(ModuleForm((_LAYER_NORM,), build=f"{_LAYERS}.LayerNormInSteps"),),
    functions=(
        FunctionForm(
            ("torch.nn.functional.layer_norm", *_aten_names("layer_norm")),
            f"{_LAYERS}.layer_norm_in_steps",
        ),
    ),
    onnx=(OnnxForm.of_node("LayerNormalization", _build_layer_norm, _check_layer_norm),),
)

GROUP_NORM = Rule(
    name="group-norm",
    exact=True,
    error="float32: within 1e-5 of the largest output; float16: 1e-2",
    source=f"{_STEPS}, by groups of channels (Wu and He 2018)",
    keeps=_KEEPS,
    modules=(ModuleForm(_GROUP_NORMS, build=f"{_LAYERS}.GroupNormInSteps"),),
    functions=(
        FunctionForm(
            ("torch.nn.functional.group_norm", *_aten_names("group_norm")),
            f"{_LAYERS}.group_norm_in_steps",
        ),
    ),
    onnx=(OnnxForm.of_node("GroupNormalization", _build_group_norm, _check_group_norm),),
)

INSTANCE_NORM = Rule(
    name="instance-norm",
    exact=True,
    error="float32: within 1e-5 of the largest output; float16: 1e-2",
    source=f"{_STEPS}, by channel (Ulyanov et al. 2016)",
    keeps=_KEEPS,
    modules=(
        ModuleForm(_INSTANCE_NORMS, build=f"{_LAYERS}.InstanceNormInSteps", check=_check_tracking),
    ),
    functions=(
        FunctionForm(
            ("torch.nn.functional.instance_norm",),
            f"{_LAYERS}.instance_norm_in_steps",
            _check_call,
        ),
        FunctionForm(
            _aten_names("instance_norm"),
            f"{_LAYERS}.aten_instance_norm_in_steps",
            _check_aten_call,
        ),
    ),
    onnx=(OnnxForm.of_node("InstanceNormalization", _build_instance_norm, _check_rank),),
)


def _make_approximate(name: str, form: ModuleForm) -> Rule:
    return Rule(
        name=name,
        exact=False,
        error=_RETRAIN,
        needs_training=True,
        source="TI's toolkit, optional (edgeai-modeloptimization)",
        keeps="weight, bias, eps, hooks, train/eval state; the statistics start at 0 and 1",
        modules=(form,),
    )


LAYER_NORM_TO_BATCH_NORM = _make_approximate(
    "layernorm-to-batchnorm",
    ModuleForm(
        (_LAYER_NORM, "timm.layers.norm.LayerNorm"),
        build=f"{_LAYERS}.make_batch_norm_last",
        check=_check_axes,
    ),
)
LAYER_NORM_2D_TO_BATCH_NORM = _make_approximate(
    "layernorm2d-to-batchnorm", ModuleForm(_LAYER_NORM_2D, build=f"{_LAYERS}.make_batch_norm_2d")
)
GROUP_NORM_TO_BATCH_NORM = _make_approximate(
    "groupnorm-to-batchnorm", ModuleForm(_GROUP_NORMS, build=f"{_LAYERS}.make_batch_norm_2d")
)
INSTANCE_NORM_TO_BATCH_NORM = _make_approximate(
    "instancenorm-to-batchnorm",
    ModuleForm(_INSTANCE_NORMS[1:2], build=f"{_LAYERS}.make_batch_norm_2d"),
)

RULES = (
    LAYER_NORM,
    GROUP_NORM,
    INSTANCE_NORM,
    LAYER_NORM_TO_BATCH_NORM,
    LAYER_NORM_2D_TO_BATCH_NORM,
    GROUP_NORM_TO_BATCH_NORM,
    INSTANCE_NORM_TO_BATCH_NORM,
)
