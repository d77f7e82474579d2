"""The rule for resizing: a fixed output size becomes a scale factor, where that is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..forms import NOT_MINE, FunctionForm, Leave, ModuleForm, OnnxForm, Site
from ..onnx_level.nodes import constant_of, optional_input, shape_of
from ..rule import Rule

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..onnx_level.builder import Builder


def _check_layer(site: Site) -> Leave | None:
    return NOT_MINE if site.module.size is None else None


def _onnx_factors(node: ir.Node) -> np.ndarray | None:
    """Return output / input of each axis, None where a size is not known or would be rounded."""
    sizes, shape = constant_of(optional_input(node, 3)), shape_of(node)
    if sizes is None or shape is None or len(shape) != len(sizes):
        return None
    known = [d for d in shape if isinstance(d, int)]
    if len(known) != len(shape):
        return None
    factors = np.array(sizes, np.float32) / np.array(known, np.float32)
    fits = all(int(f * d) == out for f, d, out in zip(factors, known, sizes, strict=True))
    return factors if fits else None


def _check_node(node: ir.Node, _: frozenset[str]) -> Leave | None:
    if optional_input(node, 3) is None:
        return NOT_MINE
    if any(name in node.attributes for name in ("axes", "keep_aspect_ratio_policy")):
        return Leave("it resizes some axes only (opset 18)")
    if _onnx_factors(node) is None:
        return Leave("the sizes are not known, or would be rounded")
    return None


def _build_resize(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return g.again(node, x, optional_input(node, 1), _onnx_factors(node))


RESIZE = Rule(
    name="resize-to-scale",
    exact=True,
    error="float32: within 1e-5 of the largest input; float16: 2e-3",
    source="output size / input size; the same positions are read where the product is the size",
    keeps="mode, align_corners, names, hooks, train/eval state",
    modules=(
        ModuleForm(
            tuple(
                f"torch.nn.modules.upsampling.{name}"
                for name in ("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d")
            ),
            build="labutils.surgery.layers.resizing.make_resize_by_scale",
            check=_check_layer,
        ),
    ),
    functions=(
        FunctionForm(
            ("torch.nn.functional.interpolate",),
            "labutils.surgery.layers.resizing.interpolate_by_scale",
            "labutils.surgery.layers.resizing.check_size",
        ),
    ),
    onnx=(OnnxForm.of_node("Resize", _build_resize, _check_node),),
)

RULES = (RESIZE,)
