"""The rule for resizing: a fixed output size becomes a scale factor, where that is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .rule import NOT_MINE, Rule, Site

if TYPE_CHECKING:
    import torch
    from torch import nn


def _objection(
    input: torch.Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, *_: Any, **__: Any,
) -> str:  # fmt: skip
    from .resize_layers import scales

    if size is None:
        return NOT_MINE
    if scales(input, size) is None:
        return f"no scale gives {size} from {tuple(input.shape[2:])}: it would be rounded off"
    return ""


def _resize(*args: Any, **kwargs: Any) -> torch.Tensor:
    from .resize_layers import interpolate_by_scale

    return interpolate_by_scale(*args, **kwargs)


def _layer(old: nn.Module) -> nn.Module:
    from .resize_layers import ResizeByScale

    return ResizeByScale(old.size, old.mode, old.align_corners)


def _with_size(site: Site) -> str:
    return NOT_MINE if site.module.size is None else ""


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
)

RULES = (RESIZE,)
