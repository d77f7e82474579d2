"""Rules for convolutions: even and large kernels, separable ones, Focus.

Only an even kernel with a row of zeros, and Focus as a convolution, compute the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..forms import NOT_MINE, GraphForm, Leave, ModuleForm, OnnxForm, Site
from ..onnx_level.nodes import constant_of, required_input, shape_of
from ..rule import Rule

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from ..onnx_level.builder import Builder

_LAYERS = "labutils.surgery.layers.convolution"
_CONV = ("torch.nn.modules.conv.Conv2d",)
_TI = "TI's toolkit, optional (edgeai-modeloptimization)"
_KEEPS = "bias, stride, dilation, groups, names, hooks, train/eval state, requires_grad"


def _check_padding(conv: nn.Conv2d) -> Leave | None:
    if conv.padding_mode == "zeros":
        return None
    return Leave(f"it pads by {conv.padding_mode!r}, not by zeros")


def _check_even(site: Site) -> Leave | None:
    conv = site.module
    return NOT_MINE if all(k % 2 for k in conv.kernel_size) else _check_padding(conv)


def _check_six(site: Site) -> Leave | None:
    return _check_padding(site.module) if site.module.kernel_size == (6, 6) else NOT_MINE


def _check_large(site: Site) -> Leave | None:
    conv = site.module
    high, wide = conv.kernel_size
    if max(high, wide) <= 7:
        return NOT_MINE
    if high != wide or high % 2 == 0:
        return Leave(f"a kernel of {high}x{wide}: the rule is for odd squares")
    if conv.dilation != (1, 1) or isinstance(conv.padding, str) or len(set(conv.padding)) > 1:
        return Leave("dilated, or padded differently along the two axes")
    return _check_padding(conv)


def _check_dense(site: Site) -> Leave | None:
    conv = site.module
    few = conv.groups > 1 or conv.in_channels < 16 or max(conv.kernel_size) == 1
    return NOT_MINE if few else None


def _check_even_node(node: ir.Node, _: frozenset[str]) -> Leave | None:
    weight = required_input(node, 1).const_value
    kernel = (shape_of(node, 1) or [])[2:]
    if len(kernel) != 2 or all(isinstance(k, int) and k % 2 for k in kernel):
        return NOT_MINE
    if weight is None:
        return Leave("its weights are computed in the graph")
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return Leave("auto_pad: the padding depends on the input's size")
    return None


def _build_odd(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    weight = constant_of(node.inputs[1])
    assert weight is not None  # the check leaves a node without
    more = [1 - k % 2 for k in weight.shape[2:]]
    padded = np.pad(weight, [(0, 0), (0, 0), (more[0], 0), (more[1], 0)])
    dilations = list(node.attributes.get_ints("dilations", [1, 1]))
    top, left, bottom, right = node.attributes.get_ints("pads", [0, 0, 0, 0])
    pads = [top + more[0] * dilations[0], left + more[1] * dilations[1], bottom, right]
    return g.op("Conv", x, padded, *node.inputs[2:], elementwise=False, pads=pads,
                kernel_shape=list(padded.shape[2:]), dilations=dilations,
                strides=list(node.attributes.get_ints("strides", [1, 1])),
                group=node.attributes.get_int("group", 1))  # fmt: skip


EVEN_KERNEL = Rule(
    name="even-kernel",
    exact=True,
    error="float32: within 1e-5 of the largest output (the order of the sums); float16: 1e-2",
    source="a kernel with a row and a column of zeros before it, and one position more of padding",
    keeps=f"{_KEEPS}; the weights grow by zeros",
    modules=(ModuleForm(_CONV, build=f"{_LAYERS}.make_odd_kernel", check=_check_even),),
    onnx=(OnnxForm.of_node("Conv", _build_odd, _check_even_node),),
)

CONV6 = Rule(
    name="conv6-to-conv5",
    exact=False,
    error="the last row and column of the kernel are cut off: the network must be trained again",
    needs_training=True,
    source="TI's lite models (edgeai-modeloptimization)",
    keeps=f"{_KEEPS}; 25 of the 36 weights",
    modules=(ModuleForm(_CONV, build=f"{_LAYERS}.make_five_by_five", check=_check_six),),
)

LARGE_KERNEL = Rule(
    name="large-kernel-to-stack",
    exact=False,
    error="a stack with BatchNorm and ReLU between: the network must be trained again",
    needs_training=True,
    source=_TI,
    keeps=f"{_KEEPS}; the middle of the kernel; the 3x3 layers start as the identity",
    modules=(
        ModuleForm(
            _CONV,
            build=f"{_LAYERS}.make_small_kernels",
            check=_check_large,
        ),
    ),
)

SEPARABLE = Rule(
    name="conv-to-separable",
    exact=False,
    error="the nearest product of two convolutions, in least squares: it must be trained again",
    needs_training=True,
    source=f"{_TI}; Eckart and Young 1936",
    keeps=f"{_KEEPS}; of each input channel's kernels the best rank 1",
    modules=(ModuleForm(_CONV, build=f"{_LAYERS}.make_separable", check=_check_dense),),
)

FOCUS = Rule(
    name="focus",
    exact=True,
    error="bit-equal",
    source="each output of a one-hot 2x2 convolution with stride 2 is one input",
    keeps="there are no weights",
    graph=(
        GraphForm(
            "Focus (slices and cat)",
            "labutils.surgery.torch_level.patterns.focus",
            f"{_LAYERS}.space_to_depth",
        ),
    ),
)

RULES = (EVEN_KERNEL, CONV6, LARGE_KERNEL, SEPARABLE, FOCUS)
