"""Exact rules for convolutions in ONNX graphs: parallel branches into one, kernels made wider."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..forms import NOT_MINE, Leave, OnnxPass
from ..onnx_level.nodes import optional_input, required_input, shape_of
from ..report import Left, Match
from ..rule import Rule
from .onnx_operators import make_pass

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..onnx_level.writing import Writer


@dataclass(frozen=True)
class _Convolution:
    """A branch: kernel (out, in / groups, h, w), bias, and where its window begins."""

    node: ir.Node
    x: ir.Value
    kernel: np.ndarray
    bias: np.ndarray
    strides: tuple[int, ...]
    groups: int
    pads: tuple[int, ...]

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of the kernel."""
        return self.kernel.shape[2], self.kernel.shape[3]


@dataclass(frozen=True)
class _Scaling:
    """A branch: a BatchNorm in inference, ``scale * x + bias`` per channel."""

    node: ir.Node
    x: ir.Value
    scale: np.ndarray
    bias: np.ndarray


_Branch: TypeAlias = _Convolution | _Scaling


def _merge_branches(model: ir.Model, rule: Rule) -> tuple[list[Match], list[Left]]:
    from ..onnx_level.writing import Writer, label

    writer, matches = Writer(model), []
    for root in [node for node in model.graph if node.op_type in ("Add", "Sum")]:
        if root.graph is None or _is_inner(root) or rule.excludes(root.name):
            continue
        leaves = list(_leaves(root))
        branches = [b for value in leaves if (b := _branch(value)) is not None]
        merged = _mergeable(branches)
        if len(merged) < 2:
            continue
        rest = [v for v in leaves if not any(b.node is v.producer() for b in merged)]
        number = sum(_number(value) or 0.0 for value in rest)
        new = [_merged(merged, number, writer, root)]
        for value in (v for v in rest if _number(v) is None):
            new.append(writer.node("Add", [new[-1].outputs[0], value], root))
        writer.replace(root, new)
        kinds = ", ".join(sorted(b.node.op_type for b in merged))
        size = "x".join(map(str, (shape_of(new[0], 1) or [])[2:]))
        matches.append(Match(rule.name, "onnx", label(root), f"a sum of {kinds}", f"Conv {size}"))
    if matches:
        import onnx_ir.passes.common as common

        common.RemoveUnusedNodesPass()(model)  # and the kernels that went into others
    return matches, []


def _number(value: ir.Value) -> float | None:
    """Return a term that is one number (a sum in Python begins with 0), None for a tensor."""
    from ..onnx_level.writing import array_of

    array = array_of(value)
    return float(array.ravel()[0]) if array is not None and array.size == 1 else None


def _is_inner(node: ir.Node) -> bool:
    """Whether a sum is only a term of another sum."""
    uses = list(node.outputs[0].uses())
    only = len(uses) == 1 and not node.outputs[0].is_graph_output()
    return only and uses[0].node.op_type in ("Add", "Sum")


def _inner(root: ir.Node) -> Iterator[ir.Node]:
    for value in root.inputs:
        node = value.producer() if value is not None else None
        if node is not None and node.op_type in ("Add", "Sum") and _is_inner(node):
            yield from (node, *_inner(node))


def _leaves(root: ir.Node) -> Iterator[ir.Value]:
    for value in root.inputs:
        if value is None:
            continue
        node = value.producer()
        if node is not None and node.op_type in ("Add", "Sum") and _is_inner(node):
            yield from _leaves(node)
        else:
            yield value


def _branch(value: ir.Value) -> _Branch | None:
    """Return the convolution that makes a term; None for another node, or one with other uses."""
    node = value.producer()
    if node is None or len(list(value.uses())) != 1 or value.is_graph_output():
        return None
    if node.op_type == "Conv":
        return _convolution(node)
    return _normalization(node) if node.op_type == "BatchNormalization" else None


def _convolution(node: ir.Node) -> _Convolution | None:
    from ..onnx_level.writing import array_of, numbers

    kernel, given = array_of(node.inputs[1]), optional_input(node, 2)
    bias = array_of(given)
    if kernel is None or kernel.ndim != 4 or (given is not None and bias is None):
        return None
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto != "NOTSET" or set(numbers(node, "dilations", (1,))) != {1}:
        return None
    bias = np.zeros(len(kernel), kernel.dtype) if bias is None else bias
    pads = tuple(numbers(node, "pads", (0, 0, 0, 0)))
    strides = tuple(numbers(node, "strides", (1, 1)))
    groups = node.attributes.get_int("group", 1)
    return _Convolution(node, required_input(node), kernel, bias, strides, groups, pads)


def _normalization(node: ir.Node) -> _Scaling | None:
    from ..onnx_level.writing import array_of, rank_of

    parts = [part for value in node.inputs[1:5] if (part := array_of(value)) is not None]
    if len(parts) != 4 or rank_of(node.inputs[0]) not in (None, 4):
        return None
    gamma, beta, mean, variance = (part.astype(np.float64) for part in parts)
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    dtype = parts[0].dtype
    bias = (beta - mean * scale).astype(dtype)
    return _Scaling(node, required_input(node), scale.astype(dtype), bias)


def _mergeable(branches: list[_Branch]) -> list[_Branch]:
    """Return the terms that are one convolution together: the same input, stride and groups."""
    best: list[_Branch] = []
    convolutions = _convolutions(branches)
    for first in convolutions:
        frame = max((b for b in convolutions if _alike(b, first)), key=lambda b: b.window)
        together = [
            b
            for b in branches
            if (
                _adds_to_middle(b, first)
                if isinstance(b, _Scaling)
                else _alike(b, first) and _fits(b, frame)
            )
        ]
        best = max(best, together, key=len)
    return best


def _convolutions(branches: list[_Branch]) -> list[_Convolution]:
    return [branch for branch in branches if isinstance(branch, _Convolution)]


def _alike(branch: _Convolution, first: _Convolution) -> bool:
    if branch.x is not first.x or branch.strides != first.strides:
        return False
    return branch.groups == first.groups and branch.kernel.shape[:2] == first.kernel.shape[:2]


def _fits(branch: _Convolution, frame: _Convolution) -> bool:
    """Whether the window lies within the frame's, and the outputs have the same size."""
    for axis in (0, 1):
        begin, end = (frame.pads[axis + i] - branch.pads[axis + i] for i in (0, 2))
        wider = frame.window[axis] - branch.window[axis]
        if begin < 0 or end < 0 or begin + end != wider:
            return False
    return True


def _adds_to_middle(branch: _Scaling, first: _Convolution) -> bool:
    """Whether a BatchNorm scales the same input, over as many channels as come out."""
    same = branch.x is first.x and first.strides == (1, 1)
    centred = all(
        0 <= first.pads[i] < first.window[i]
        and first.pads[i] + first.pads[i + 2] == first.window[i] - 1
        for i in (0, 1)
    )
    inputs = first.kernel.shape[1] * first.groups
    return same and centred and len(branch.bias) == len(first.kernel) == inputs


def _merged(branches: list[_Branch], number: float, writer: Writer, near: ir.Node) -> ir.Node:
    frame = max(_convolutions(branches), key=lambda b: b.window)
    kernel: np.ndarray = np.zeros(frame.kernel.shape, np.float64)
    bias = np.full(len(kernel), number, np.float64)
    for b in branches:
        bias += b.bias
        if isinstance(b, _Scaling):
            outputs = np.arange(len(kernel))
            kernel[outputs, outputs % kernel.shape[1], frame.pads[0], frame.pads[1]] += b.scale
        else:
            top, left = frame.pads[0] - b.pads[0], frame.pads[1] - b.pads[1]
            height, width = b.window
            kernel[:, :, top : top + height, left : left + width] += b.kernel
    dtype = frame.kernel.dtype
    name = f"{near.outputs[0].name}.merged"
    return writer.node(
        "Conv",
        [
            frame.x,
            writer.constant(kernel.astype(dtype), f"{name}.weight"),
            writer.constant(bias.astype(dtype), f"{name}.bias"),
        ],
        near,
        kernel_shape=list(kernel.shape[2:]),
        strides=list(frame.strides),
        pads=list(frame.pads),
        group=frame.groups,
        dilations=[1, 1],
    )


MERGE_BRANCHES = Rule(
    name="merge-branches",
    exact=True,
    error="rounding: sums of kernels are rounded once, in float32 within 1e-5 of the largest value",
    source="re-parameterization: Ding et al. 2021, RepVGG, 3.3; Vasu et al. 2023, MobileOne",
    keeps="stride, padding, groups, bias; kernels that are smaller are padded with zeros",
    onnx_passes=(OnnxPass(_merge_branches, frozenset({"BatchNormalization"})),),
)


def _widen_kernel(model: ir.Model, rule: Rule) -> tuple[list[Match], list[Left]]:
    """Pad kernels with zeros to the sizes that TIDL lists: 11x11 at stride 4, 3x3 for 1x1."""
    from ..onnx_level.writing import Writer, label

    writer, matches, left = Writer(model), [], []
    for node in [node for node in model.graph if node.op_type == "Conv"]:
        branch = None if rule.excludes(node.name) else _convolution(node)
        if branch is None:
            continue
        height, width = branch.window
        depthwise = branch.groups > 1 and branch.kernel.shape[1] == 1
        wanted = 11 if branch.strides == (4, 4) else 3 if depthwise and height == width == 1 else 0
        if not wanted or (height, width) == (wanted, wanted):
            continue
        if max(height, width) > wanted:
            left.append(Left(label(node), f"Conv {height}x{width}", f"larger than {wanted}"))
            continue
        writer.replace(node, [_widened(branch, wanted, writer)])
        became = f"Conv {wanted}x{wanted}, zeros around the {height}x{width} kernel"
        matches.append(Match(rule.name, "onnx", label(node), f"Conv {height}x{width}", became))
    return matches, left


def _widened(branch: _Convolution, wanted: int, writer: Writer) -> ir.Node:
    extra = [wanted - side for side in branch.window]
    begin = [n // 2 for n in extra]
    end = [n - b for n, b in zip(extra, begin, strict=True)]
    kernel = np.pad(branch.kernel, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
    pads = [p + n for p, n in zip(branch.pads, [*begin, *end], strict=True)]
    weight = writer.constant(kernel, f"{required_input(branch.node, 1).name}.widened")
    attributes = {
        "kernel_shape": [wanted, wanted],
        "strides": list(branch.strides),
        "pads": pads,
        "group": branch.groups,
        "dilations": [1, 1],
    }
    return writer.node(
        "Conv", [branch.x, weight, *branch.node.inputs[2:]], branch.node, **attributes
    )


def _spread(node: ir.Node, writer: Writer) -> list[ir.Node] | Leave:
    """Write the zeros between the weights of a dilated ConvTranspose into its kernel."""
    import onnx_ir as ir

    from ..onnx_level.writing import array_of, numbers

    weight = required_input(node, 1)
    kernel, steps = array_of(weight), numbers(node, "dilations", ())
    if all(step == 1 for step in steps):
        return NOT_MINE
    if kernel is None:
        return Leave("its kernel is computed")
    sides = [(size - 1) * step + 1 for size, step in zip(kernel.shape[2:], steps, strict=True)]
    spread = np.zeros((*kernel.shape[:2], *sides), kernel.dtype)
    places = (slice(None), slice(None), *(slice(None, None, step) for step in steps))
    spread[places] = kernel
    made = writer.node(
        "ConvTranspose",
        [node.inputs[0], writer.constant(spread, f"{weight.name}.spread"), *node.inputs[2:]],
        node,
    )
    made.attributes.update(node.attributes)
    made.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", sides)
    made.attributes["dilations"] = ir.AttrInt64s("dilations", [1] * len(sides))
    return [made]


WIDEN_KERNEL = Rule(
    name="widen-kernel",
    exact=True,
    error="none: zeros are added; a stride-4 convolution of 4x4 computes 121/16 as many products",
    source="definition of a convolution; the sizes are those that TIDL 11 lists",
    keeps="stride, groups, bias, the size of the output",
    onnx_passes=(OnnxPass(_widen_kernel, frozenset({"Conv"})),),
)

SPREAD_KERNEL = Rule(
    name="spread-kernel",
    exact=True,
    error="none: zeros are added between the weights, where a dilated kernel has none",
    source="definition of a transposed convolution; QNN 2.51 takes dilation 1 only (measured)",
    keeps="stride, groups, padding, bias, the size of the output",
    onnx_passes=(make_pass("ConvTranspose", _spread),),
)

RULES = (MERGE_BRANCHES, WIDEN_KERNEL, SPREAD_KERNEL)
