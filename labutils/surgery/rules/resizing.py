"""The rule for resizing: a fixed output size becomes a scale factor, where that is the same."""

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


def _objection(
    input: torch.Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, *_: Any, **__: Any,
) -> str:  # fmt: skip
    from ..layers.resizing import scales

    if size is None:
        return NOT_MINE
    if scales(input, size) is None:
        return f"no scale gives {size} from {tuple(input.shape[2:])}: it would be rounded off"
    return ""


def _resize(*args: Any, **kwargs: Any) -> torch.Tensor:
    from ..layers.resizing import interpolate_by_scale

    return interpolate_by_scale(*args, **kwargs)


def _layer(old: nn.Module) -> nn.Module:
    from ..layers.resizing import ResizeByScale

    return ResizeByScale(old.size, old.mode, old.align_corners)


def _with_size(site: Site) -> str:
    return NOT_MINE if site.module.size is None else ""


def _onnx_factors(node: ir.Node) -> list[float] | None:
    """Return output / input of each axis, None where a size is not known or is rounded off."""
    sizes = node.inputs[3].const_value if len(node.inputs) > 3 and node.inputs[3] else None
    shape = node.inputs[0].shape
    if sizes is None or shape is None or not all(isinstance(d, int) for d in shape):
        return None
    wanted = sizes.numpy().tolist()
    factors = np.array(wanted, np.float32) / np.array(list(shape), np.float32)
    fits = all(int(f * d) == out for f, d, out in zip(factors, shape, wanted, strict=True))
    return factors if fits and len(wanted) == len(shape) else None


def _onnx_objection(node: ir.Node, _: frozenset[str]) -> str:
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return NOT_MINE
    if any(name in node.attributes for name in ("axes", "keep_aspect_ratio_policy")):
        return "it resizes some axes only (opset 18)"
    return "" if _onnx_factors(node) is not None else "the sizes are not known, or rounded off"


def _build_resize(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return g.again(node, x, node.inputs[1], _onnx_factors(node))


RESIZE = Rule(
    name="resize-to-scale",
    exact=True,
    error="float32: within 1e-5 of the largest input; float16: 2e-3",
    source="output size / input size; the same positions are read where the product is the size",
    keeps="mode, align_corners, names, hooks, train/eval state",
    modules=(
        "torch.nn.modules.upsampling.Upsample",
        "torch.nn.modules.upsampling.UpsamplingNearest2d",
        "torch.nn.modules.upsampling.UpsamplingBilinear2d",
    ),
    module=_layer,
    module_check=_with_size,
    functions=("torch.nn.functional.interpolate",),
    function=_resize,
    function_check=_objection,
    onnx=(OnnxForm("Resize", ("Resize",), one_node("Resize"), _build_resize, _onnx_objection),),
)

RULES = (RESIZE,)
