"""What each ONNX operator computes, in PyTorch: what converters from PyTorch can then take.

Only what a network with static shapes needs: shapes, axes and the like are constants of the file.
An operator that is not here is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import TranslationError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Call:
    """One node: its operator, attributes, and those inputs that are constants.

    Attributes
    ----------
    op_type, node
        The operator and the node's name.
    attributes
        By name.
    constants
        By the position of the input.
    inputs
        Names of all inputs, "" for one that is left out.
    count
        How many results it has.
    """

    op_type: str
    node: str
    attributes: dict[str, Any]
    constants: dict[int, np.ndarray]
    inputs: tuple[str, ...] = ()
    count: int = 1

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute; text as text."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def constant(self, position: int, name: str = "") -> np.ndarray | None:
        """Return an input that must be a constant; None where it is left out.

        Raises
        ------
        TranslationError
            The input is computed while the network runs.
        """
        if position in self.constants:
            return self.constants[position]
        if any(self.inputs[position : position + 1]):
            raise self.refuse(f"gets its {name or 'parameters'} from a tensor that is computed")
        return None

    def ints(self, position: int, name: str = "") -> list[int] | None:
        """Return whole numbers that are an input, or an attribute in older opsets; None for none.

        Raises
        ------
        TranslationError
            The input is computed while the network runs.
        """
        stored = self.constant(position, name)
        if stored is not None:
            return [int(value) for value in stored.ravel()]
        value = self.get(name) if name else None
        return None if value is None else [int(v) for v in value]

    def number(self, position: int, name: str = "", default: float | None = None) -> float | None:
        """Return a number that is an input, or an attribute in older opsets.

        Raises
        ------
        TranslationError
            The input is computed while the network runs.
        """
        stored = self.constant(position, name)
        if stored is not None and stored.size:
            return float(stored.ravel()[0])
        return self.get(name, default) if name else default

    def refuse(self, why: str) -> TranslationError:
        """Return the error for a form of the operator that is not taken."""
        return TranslationError(
            f"Node {self.node or '-'}: {self.op_type} {why}, which is not taken on the way from "
            "ONNX to LiteRT. If you have the PyTorch network, convert that (a .pt2, or its name).",
            node=self.node, op_type=self.op_type,
        )  # fmt: skip


Function = Callable[..., Any]
OPERATORS: dict[str, Function] = {}
"""ONNX operator -> function of its `Call` and its inputs, constants among them."""


def operator(*names: str) -> Callable[[Function], Function]:
    """Register a function for operators."""

    def registered(function: Function) -> Function:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return registered


def _plain(function: Callable[..., Any]) -> Function:
    """Return an operator without attributes."""
    return lambda call, *inputs: function(*inputs)


_PLAIN: dict[str, Callable[..., Any]] = {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "HardSwish": F.hardswish,
    "Softsign": F.softsign, "Softplus": F.softplus, "Mish": F.mish, "Exp": torch.exp,
    "Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal, "Abs": torch.abs,
    "Neg": torch.neg, "Floor": torch.floor, "Ceil": torch.ceil, "Erf": torch.erf,
    "Sin": torch.sin, "Cos": torch.cos, "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul,
    "Div": torch.div, "Pow": torch.pow, "MatMul": torch.matmul, "Where": torch.where,
}  # fmt: skip
OPERATORS.update({name: _plain(function) for name, function in _PLAIN.items()})


@operator("Identity", "Dropout")
def _identity(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    """Hand on the input."""
    return x


@operator("Cast")
def _cast(call: Call, x: Tensor) -> Tensor:
    """Hand on floats; nothing else is computed with here."""
    if call.get("to") not in (1, 10, 11, 16) or not x.is_floating_point():
        raise call.refuse("makes whole numbers or booleans of a tensor that is computed")
    return x


@operator("HardSigmoid")
def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """Return max(0, min(1, alpha x + beta))."""
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@operator("LeakyRelu")
def _leaky_relu(call: Call, x: Tensor) -> Tensor:
    """Return x, or alpha x below zero."""
    return F.leaky_relu(x, call.get("alpha", 0.01))


@operator("Elu")
def _elu(call: Call, x: Tensor) -> Tensor:
    """Return x, or alpha (exp(x) - 1) below zero."""
    return F.elu(x, call.get("alpha", 1.0))


@operator("PRelu")
def _prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """Return x, or slope x below zero."""
    return torch.where(x < 0, x * slope, x)


@operator("Gelu")
def _gelu(call: Call, x: Tensor) -> Tensor:
    """Return GELU, exact or with tanh."""
    return F.gelu(x, approximate=call.get("approximate", "none"))


@operator("Clip")
def _clip(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    """Cut off below and above."""
    low, high = call.number(1, "min"), call.number(2, "max")
    if (low, high) == (0.0, 6.0):
        return F.relu6(x)
    if low == 0.0 and (high is None or high > 3e38):
        return F.relu(x)
    return torch.clamp(x, low, high) if (low, high) != (None, None) else x


@operator("Min")
def _minimum(call: Call, x: Tensor, *others: Tensor) -> Tensor:
    """Return the least of the inputs."""
    for other in others:
        x = torch.minimum(x, other)
    return x


@operator("Max")
def _maximum(call: Call, x: Tensor, *others: Tensor) -> Tensor:
    """Return the greatest of the inputs."""
    for other in others:
        x = torch.maximum(x, other)
    return x


@operator("Sum")
def _total(call: Call, x: Tensor, *others: Tensor) -> Tensor:
    """Return the sum of the inputs."""
    for other in others:
        x = x + other
    return x


@operator("Softmax", "LogSoftmax")
def _softmax(call: Call, x: Tensor) -> Tensor:
    """Return shares along an axis; before opset 13, of everything from the axis on."""
    function = F.softmax if call.op_type == "Softmax" else F.log_softmax
    if call.attributes["opset"] >= 13:
        return function(x, dim=call.get("axis", -1))
    axis = call.get("axis", 1) % x.ndim
    return function(x.flatten(axis), dim=-1).reshape(x.shape)


@operator("BatchNormalization")
def _batch_norm(call: Call, x: Tensor, *statistics: Tensor) -> Tensor:
    """Normalise by stored statistics."""
    scale, shift, mean, variance = statistics
    if call.get("training_mode", 0):
        raise call.refuse("normalises by the statistics of its batch (training mode)")
    return F.batch_norm(x, mean, variance, scale, shift, eps=call.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def _instance_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise every channel of every image by itself."""
    return F.instance_norm(x, weight=scale, bias=shift, eps=call.get("epsilon", 1e-5))


@operator("LayerNormalization")
def _layer_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """Normalise over the last axes."""
    axis = call.get("axis", -1) % x.ndim
    if scale.shape != x.shape[axis:]:
        raise call.refuse("has a scale of another shape than what it normalises")
    return F.layer_norm(x, x.shape[axis:], scale, shift, call.get("epsilon", 1e-5))


@operator("GroupNormalization")
def _group_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise every group of channels."""
    if scale.numel() != x.shape[1]:
        raise call.refuse("has a scale per group, as opset 18 defined it by mistake")
    return F.group_norm(x, call.get("num_groups"), scale, shift, call.get("epsilon", 1e-5))


@operator("Gemm")
def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Return alpha a b + beta c; as a linear layer where it is one."""
    a = a.transpose(0, 1) if call.get("transA", 0) else a
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    weight = b if call.get("transB", 0) else b.transpose(0, 1)
    if (alpha, beta) == (1.0, 1.0) and (c is None or c.ndim == 1):
        return F.linear(a, weight, c)
    product = alpha * F.linear(a, weight)
    return product if c is None else product + beta * c


@operator("Flatten")
def _flatten(call: Call, x: Tensor) -> Tensor:
    """Return two axes."""
    axis = call.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Reshape")
def _reshape(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    """Return another shape; 0 keeps a size."""
    wanted = _required(call, 1, "shape")
    keep = not call.get("allowzero", 0)
    shape = [x.shape[i] if n == 0 and keep else n for i, n in enumerate(wanted)]
    return x.reshape(shape)


def _required(call: Call, position: int, name: str) -> list[int]:
    """Return whole numbers that the operator cannot do without."""
    found = call.ints(position, name)
    if found is None:
        raise call.refuse(f"says no {name}")
    return found


@operator("Transpose")
def _transpose(call: Call, x: Tensor) -> Tensor:
    """Return the axes in another order."""
    return x.permute(call.get("perm") or tuple(reversed(range(x.ndim))))


@operator("Squeeze")
def _squeeze(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    """Drop axes of size 1."""
    axes = call.ints(1, "axes")
    if axes is None:
        return x.squeeze()
    dropped = {axis % x.ndim for axis in axes}
    return x.reshape([size for i, size in enumerate(x.shape) if i not in dropped])


@operator("Unsqueeze")
def _unsqueeze(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    """Add axes of size 1."""
    axes = _required(call, 1, "axes")
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def _concat(call: Call, *inputs: Tensor) -> Tensor:
    """Join tensors along an axis."""
    return torch.cat(inputs, dim=call.get("axis"))


@operator("Einsum")
def _einsum(call: Call, *inputs: Tensor) -> Tensor:
    """Return the sum of products that an equation says."""
    return torch.einsum(call.get("equation"), *inputs)


@operator("Split")
def _split(call: Call, x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    """Return parts along an axis."""
    axis, sizes = call.get("axis", 0), call.ints(1, "split")
    if sizes is None:
        step = -(-x.shape[axis] // call.get("num_outputs", call.count))
        return torch.split(x, step, dim=axis)
    return torch.split(x, sizes, dim=axis)


@operator("Slice")
def _cut(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    """Return a part along some axes."""
    starts, ends = _required(call, 1, "starts"), _required(call, 2, "ends")
    axes = call.ints(3, "axes") or list(range(len(starts)))
    steps = call.ints(4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise call.refuse("goes backwards")
        first, last = slice(start, end, step).indices(x.shape[axis])[:2]
        x = x.narrow(axis, first, max(last - first, 0))
        if step > 1:
            before = [slice(None)] * (axis % x.ndim)
            x = x[(*before, slice(None, None, step))]
    return x


@operator("Gather")
def _gather(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    """Return entries along an axis, by number."""
    axis, indices = call.get("axis", 0), call.constant(1, "indices")
    assert indices is not None
    if indices.ndim == 0:
        return x.select(axis, int(indices) % x.shape[axis])
    where = torch.from_numpy(indices.ravel() % x.shape[axis])
    found = torch.index_select(x, axis, where)
    axis %= x.ndim
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operator("Expand")
def _expand(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    """Repeat axes of size 1."""
    shape = torch.broadcast_shapes(x.shape, tuple(_required(call, 1, "shape")))
    return x.expand(shape)


@operator("Tile")
def _tile(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    """Repeat along every axis."""
    return x.repeat(_required(call, 1, "repeats"))


@operator("Pad")
def _pad(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    """Add values around."""
    sizes, mode = _required(call, 1, "pads"), call.get("mode", "constant")
    axes = call.ints(3) or list(range(x.ndim))
    by_axis = {axis % x.ndim: (sizes[i], sizes[i + len(axes)]) for i, axis in enumerate(axes)}
    pairs = [by_axis.get(axis, (0, 0)) for axis in range(x.ndim)]
    while len(pairs) > 2 and pairs[0] == (0, 0):
        pairs.pop(0)
    flat = [n for pair in reversed(pairs) for n in pair]
    if mode == "constant":
        return F.pad(x, flat, value=call.number(2, "value", 0.0) or 0.0)
    if mode not in ("reflect", "edge") or len(pairs) > 2:
        raise call.refuse(f"pads by the mode {mode}")
    return F.pad(x, flat, mode="replicate" if mode == "edge" else "reflect")


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax,
    "ReduceMin": torch.amin, "ReduceL2": torch.linalg.vector_norm,
}  # fmt: skip


@operator(*_REDUCTIONS)
def _reduced(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    """Return one value for all along some axes."""
    axes = call.ints(1, "axes")
    if not axes:
        if call.get("noop_with_empty_axes", 0):
            return x.abs() if call.op_type == "ReduceL2" else x
        axes = list(range(x.ndim))
    return _REDUCTIONS[call.op_type](x, dim=axes, keepdim=bool(call.get("keepdims", 1)))


@operator("GlobalAveragePool")
def _global_average(call: Call, x: Tensor) -> Tensor:
    """Return the mean of every channel."""
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def _global_maximum(call: Call, x: Tensor) -> Tensor:
    """Return the greatest value of every channel."""
    return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


@operator("DepthToSpace")
def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Make channels rows and columns."""
    size = call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    n, c, h, w = x.shape
    parts = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // size**2, h * size, w * size)


@operator("SpaceToDepth")
def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Make rows and columns channels."""
    size = call.get("blocksize")
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * size**2, h // size, w // size)
