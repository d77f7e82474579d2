"""Rules for normalization: the same function in steps (exact), or a BatchNorm (approximate).

A BatchNorm uses stored statistics and folds into the convolution before it; LayerNorm, GroupNorm
and InstanceNorm compute them from every input, which few accelerators do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..rule import OnnxForm, Rule, Site
from .smooth_activations import one_node

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

    from ..onnx_level.builder import Builder

_LAYER_NORM = "torch.nn.modules.normalization.LayerNorm"
_LAYER_NORM_2D = ("torchvision.models.convnext.LayerNorm2d", "timm.layers.norm.LayerNorm2d")
_GROUP_NORM = "torch.nn.modules.normalization.GroupNorm"
_INSTANCE_NORMS = tuple(f"torch.nn.modules.instancenorm.InstanceNorm{n}d" for n in (1, 2, 3))
_KEEPS = "weights under their names, eps, hooks, train/eval state"
_STEPS = "definition: (x - mean) / sqrt(variance + eps) * weight + bias"
_RETRAIN = (
    "a BatchNorm's statistics are of a set, not of one input: the network must be trained again"
)


def _in_steps(name: str) -> Any:
    def layer(old: nn.Module) -> nn.Module:
        from ..layers import normalization

        return getattr(normalization, name)(old)

    return layer


def _layer_norm(*args: Any, **kwargs: Any) -> torch.Tensor:
    from ..layers.normalization import layer_norm_in_steps

    return layer_norm_in_steps(*args[:5], **{k: v for k, v in kwargs.items() if "cudnn" not in k})


def _group_norm(*args: Any, **kwargs: Any) -> torch.Tensor:
    from ..layers.normalization import group_norm_in_steps

    return group_norm_in_steps(*args[:5], **{k: v for k, v in kwargs.items() if "cudnn" not in k})


def _instance_norm(*args: Any, **kwargs: Any) -> torch.Tensor:
    from ..layers.normalization import instance_norm_in_steps

    return instance_norm_in_steps(*args[:8], **{k: v for k, v in kwargs.items() if "cud" not in k})


def _tracking(site: Site) -> str:
    tracks = site.module.track_running_stats
    return "it keeps running statistics, as a BatchNorm does" if tracks else ""


def _tracking_call(
    input: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None,
    bias: Any = None, use_input_stats: bool = True, *_: Any, **__: Any,
) -> str:  # fmt: skip
    return "" if use_input_stats and running_mean is None else "it uses running statistics"


def _reduce(g: Builder, x: ir.Value, axes: list[int]) -> ir.Value:
    """Write a mean over axes that stay: they are an attribute until opset 17, then an input."""
    if g.opset < 18:
        return g.op("ReduceMean", x, elementwise=False, axes=axes, keepdims=1)
    return g.op("ReduceMean", x, np.array(axes), elementwise=False, keepdims=1)


def _standardized(g: Builder, x: ir.Value, axes: list[int], eps: float) -> ir.Value:
    centred = g.sub(x, _reduce(g, x, axes))
    variance = _reduce(g, g.mul(centred, centred), axes)
    root = g.op("Sqrt", g.op("Add", variance, eps, elementwise=False), elementwise=False)
    return g.div(centred, root)


def _build_layer_norm(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    axis = node.attributes.get_int("axis", -1)
    axes = list(range(axis, 0 if axis < 0 else len(x.shape)))
    y = _standardized(g, x, axes, node.attributes.get_float("epsilon", 1e-5))
    y = g.mul(y, node.inputs[1])
    return g.add(y, node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else y


def _layer_norm_objection(node: ir.Node, _: frozenset[str]) -> str:
    if any(value.uses() for value in node.outputs[1:]):
        return "its mean or deviation is used besides"
    axis, shape = node.attributes.get_int("axis", -1), node.inputs[0].shape
    return "the rank of its input is unknown" if axis >= 0 and shape is None else ""


def _by_channel(g: Builder, value: ir.Value, rank: int) -> ir.Value:
    """Write a weight of one value per channel so that it multiplies (n, c, ...)."""
    constant = value.const_value
    if constant is not None:
        return constant.numpy().reshape(-1, *[1] * (rank - 2))
    return g.op("Unsqueeze", value, np.arange(1, rank - 1), elementwise=False)


def _rank_objection(node: ir.Node, _: frozenset[str]) -> str:
    if node.inputs[0].shape is None:
        return "the rank of its input is unknown"
    weights = [v for v in node.inputs[1:3] if v is not None and v.const_value is None]
    return "its weights are computed in the graph" if weights else ""


def _build_instance_norm(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    rank = len(x.shape)
    eps = node.attributes.get_float("epsilon", 1e-5)
    y = _standardized(g, x, list(range(2, rank)), eps)
    y = g.mul(y, _by_channel(g, node.inputs[1], rank))
    return g.add(y, _by_channel(g, node.inputs[2], rank))


def _build_group_norm(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    groups, rank = node.attributes.get_int("num_groups", 1), len(x.shape)
    flat = g.op("Reshape", x, np.array([0, groups, -1]), elementwise=False)
    centred = g.op("Sub", flat, _reduce(g, flat, [2]), elementwise=False)
    square = g.op("Mul", centred, centred, elementwise=False)
    variance = g.op("Add", _reduce(g, square, [2]), node.attributes.get_float("epsilon", 1e-5),
                    elementwise=False)  # fmt: skip
    y = g.op("Div", centred, g.op("Sqrt", variance, elementwise=False), elementwise=False)
    y = g.op("Reshape", y, np.array([d if isinstance(d, int) else 0 for d in x.shape]))
    y = g.mul(y, _by_channel(g, node.inputs[1], rank))
    return g.add(y, _by_channel(g, node.inputs[2], rank))


def _group_objection(node: ir.Node, _: frozenset[str]) -> str:
    per_group = node.inputs[1].shape is not None and node.inputs[0].shape is not None and (
        node.inputs[1].shape[0] != node.inputs[0].shape[1])  # fmt: skip
    return "a weight per group (opset 18)" if per_group else _rank_objection(node, _)


def _to_batch_norm_last(old: nn.Module) -> nn.Module:
    from ..layers.normalization import BatchNormLast, batch_norm_like

    return batch_norm_like(old, BatchNormLast, old.normalized_shape[0], old.weight, old.bias)


def _to_batch_norm_2d(old: nn.Module) -> nn.Module:
    from torch import nn

    from ..layers.normalization import batch_norm_like

    features = next(getattr(old, name) for name in ("num_features", "num_channels",
                    "normalized_shape") if hasattr(old, name))  # fmt: skip
    features = features if isinstance(features, int) else features[0]
    return batch_norm_like(old, nn.BatchNorm2d, features, old.weight, old.bias)


def _one_axis(site: Site) -> str:
    shape = site.module.normalized_shape
    return "" if len(shape) == 1 else f"it normalizes over {len(shape)} axes, a BatchNorm over one"


LAYER_NORM = Rule(
    name="layer-norm",
    exact=True,
    error="float32: within 1e-5 of the largest output; float16: 1e-2",
    source=f"{_STEPS} (Ba et al. 2016)",
    keeps=_KEEPS,
    modules=(_LAYER_NORM,),
    module=_in_steps("LayerNormInSteps"),
    functions=("torch.nn.functional.layer_norm", "torch.layer_norm", "torch.ops.aten.layer_norm",
               "torch.ops.aten.layer_norm.default"),
    function=_layer_norm,
    onnx=(
        OnnxForm("LayerNormalization", ("LayerNormalization",), one_node("LayerNormalization"),
                 _build_layer_norm, _layer_norm_objection),
    ),
)  # fmt: skip

GROUP_NORM = Rule(
    name="group-norm",
    exact=True,
    error="float32: within 1e-5 of the largest output; float16: 1e-2",
    source=f"{_STEPS}, by groups of channels (Wu and He 2018)",
    keeps=_KEEPS,
    modules=(_GROUP_NORM, "timm.layers.norm.GroupNorm", "timm.layers.norm.GroupNorm1"),
    module=_in_steps("GroupNormInSteps"),
    functions=("torch.nn.functional.group_norm", "torch.group_norm", "torch.ops.aten.group_norm",
               "torch.ops.aten.group_norm.default"),
    function=_group_norm,
    onnx=(
        OnnxForm("GroupNormalization", ("GroupNormalization",), one_node("GroupNormalization"),
                 _build_group_norm, _group_objection),
    ),
)  # fmt: skip

INSTANCE_NORM = Rule(
    name="instance-norm",
    exact=True,
    error="float32: within 1e-5 of the largest output; float16: 1e-2",
    source=f"{_STEPS}, by channel (Ulyanov et al. 2016)",
    keeps=_KEEPS,
    modules=_INSTANCE_NORMS,
    module=_in_steps("InstanceNormInSteps"),
    module_check=_tracking,
    functions=("torch.nn.functional.instance_norm", "torch.instance_norm",
               "torch.ops.aten.instance_norm", "torch.ops.aten.instance_norm.default"),
    function=_instance_norm,
    function_check=_tracking_call,
    onnx=(
        OnnxForm("InstanceNormalization", ("InstanceNormalization",),
                 one_node("InstanceNormalization"), _build_instance_norm, _rank_objection),
    ),
)  # fmt: skip


def _approximate(name: str, classes: tuple[str, ...], layer: Any, check: Any = None) -> Rule:
    return Rule(
        name=name, exact=False, error=_RETRAIN, needs_training=True,
        source="TI's toolkit, optional (edgeai-modeloptimization)",
        keeps="weight, bias, eps, hooks, train/eval state; the statistics start at 0 and 1",
        modules=classes, module=layer, module_check=check,
    )  # fmt: skip


LAYER_NORM_TO_BATCH_NORM = _approximate(
    "layernorm-to-batchnorm", (_LAYER_NORM, "timm.layers.norm.LayerNorm"), _to_batch_norm_last,
    _one_axis,
)  # fmt: skip
LAYER_NORM_2D_TO_BATCH_NORM = _approximate(
    "layernorm2d-to-batchnorm", _LAYER_NORM_2D, _to_batch_norm_2d
)
GROUP_NORM_TO_BATCH_NORM = _approximate(
    "groupnorm-to-batchnorm", (_GROUP_NORM, "timm.layers.norm.GroupNorm",
                               "timm.layers.norm.GroupNorm1"), _to_batch_norm_2d,
)  # fmt: skip
INSTANCE_NORM_TO_BATCH_NORM = _approximate(
    "instancenorm-to-batchnorm", _INSTANCE_NORMS[1:2], _to_batch_norm_2d
)

RULES = (
    LAYER_NORM, GROUP_NORM, INSTANCE_NORM, LAYER_NORM_TO_BATCH_NORM, LAYER_NORM_2D_TO_BATCH_NORM,
    GROUP_NORM_TO_BATCH_NORM, INSTANCE_NORM_TO_BATCH_NORM,
)  # fmt: skip
