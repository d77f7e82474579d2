"""Kinds of layers without weights: pooling, arithmetic and what attention is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .operator import Call, Operator, operator
from .operators import Function, Pads, Sides, pair, two

if TYPE_CHECKING:
    from .keras_model import Keras


@operator("max_pool", "max_pool2d")
class MaxPool(Operator):
    """The greatest value of a window."""

    kernel: Sides
    stride: Sides = 1
    pad: Pads = 0
    ceil: bool = False

    inputs = ("self",)

    @classmethod
    def of(cls, call: Call) -> MaxPool | None:
        """Return the layer that a call stands for; None with dilation."""
        if pair(call["dilation"]) != 1:
            return None
        kernel = pair(call["kernel_size"])
        stride = pair(call["stride"]) if call["stride"] else kernel
        return cls(kernel, stride, pair(call["padding"]), call["ceil_mode"])

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return nn.MaxPool2d(self.kernel, self.stride, self.pad, ceil_mode=self.ceil)

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras: outside the picture lies what is never the greatest."""
        sides = [self._sides(k, n, i) for i, n in enumerate(inputs[0].shape[1:3])]
        padded = k.ops.pad(inputs[0], [(0, 0), *sides, (0, 0)], constant_values=-3e38)
        return k.ops.max_pool(padded, two(self.kernel), two(self.stride), "valid")

    def _sides(self, k: Keras, length: int, axis: int) -> tuple[int, int]:
        kernel, stride = two(self.kernel)[axis], two(self.stride)[axis]
        pad = two(self.pad)[axis]
        if not self.ceil:
            return pad, pad
        steps = -(-(length + 2 * pad - kernel) // stride)
        if steps * stride >= length + pad:  # a window that begins outside is left out
            steps -= 1
        return pad, max(pad, steps * stride + kernel - length - pad)


@operator("avg_pool", "avg_pool2d")
class AvgPool(Operator):
    """The mean of a window; `count_pad` says whether zeros of the padding are counted."""

    kernel: Sides
    stride: Sides = 1
    pad: Pads = 0
    count_pad: bool = True

    inputs = ("self",)

    @classmethod
    def of(cls, call: Call) -> AvgPool | None:
        """Return the layer that a call stands for; None for ceil_mode or another divisor."""
        if call["ceil_mode"] or call["divisor_override"]:
            return None
        kernel, pad = pair(call["kernel_size"]), pair(call["padding"])
        stride = pair(call["stride"]) if call["stride"] else kernel
        return cls(kernel, stride, pad, pad == 0 or call["count_include_pad"])

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return nn.AvgPool2d(self.kernel, self.stride, self.pad, count_include_pad=self.count_pad)

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras; what is not counted is divided out."""
        around = [(0, 0), *((n, n) for n in two(self.pad)), (0, 0)]

        def mean(x: Any) -> Any:
            x = k.ops.pad(x, around) if self.pad != 0 else x
            return k.ops.average_pool(x, two(self.kernel), two(self.stride), "valid")

        (x,) = inputs
        if self.count_pad:
            return mean(x)
        return mean(x) / mean(np.ones((1, *x.shape[1:3], 1), np.float32))


@operator("global_avg_pool", "adaptive_avg_pool2d")
class GlobalAvgPool(Operator):
    """The mean over the picture, whose height and width become 1."""

    inputs = ("self",)

    @classmethod
    def of(cls, call: Call) -> GlobalAvgPool | None:
        """Return the layer; None for another size of the result."""
        return cls() if pair(call["output_size"]) == 1 else None

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return nn.AdaptiveAvgPool2d(1)

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        return k.ops.mean(*inputs, axis=(1, 2), keepdims=True)


@operator("mean", "mean")
class Mean(Operator):
    """The mean over some dimensions, as PyTorch numbers them (1 has the channels)."""

    dims: tuple[int, ...]
    keep: bool = False

    order = "any"

    @classmethod
    def of(cls, call: Call) -> Mean | None:
        """Return the layer that a call stands for; None for the mean of everything."""
        if call.arguments.get("dim") is None:
            return None
        rank = len(call.shapes["self"])
        return cls(tuple(d % rank for d in call["dim"]), call["keepdim"])

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return Function(f"mean over {self.dims}", lambda x: x.mean(self.dims, keepdim=self.keep))

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        (x,) = inputs
        if not self.keep and 1 not in self.dims and not {2, 3} <= {*self.dims}:
            x = k.in_pytorchs_order(x)  # what is left would be in another order
        axes = tuple(k.axis(dim, x) for dim in self.dims)
        return k.ops.mean(x, axis=axes, keepdims=self.keep)


def _arithmetic(kind: str, function: Callable[..., torch.Tensor], keras: str) -> None:
    """Register an operation on two tensors, or on one and the number `by`."""

    class Arithmetic(Operator):
        by: float | None = None

        order = "any"

        @classmethod
        def of(cls, call: Call) -> Arithmetic | None:
            if call.arguments.get("alpha", 1) != 1 or call.arguments.get("rounding_mode"):
                return None
            other = call["other"]
            return cls(**({"by": other} if isinstance(other, int | float) else {}))

        def torch(self) -> nn.Module:
            if self.by is None:
                return Function(kind, function)
            return Function(f"{kind} {self.by}", lambda x: function(x, self.by))

        def keras(self, k: Keras, *inputs: Any) -> Any:
            rank = max(len(x.shape) for x in inputs)
            given = [k.of_rank(rank, x) for x in inputs]
            return getattr(k.ops, keras)(*given, *([] if self.by is None else [self.by]))

    Arithmetic.__name__ = Arithmetic.__qualname__ = kind.capitalize()
    operator(kind, kind, f"{kind}_")(Arithmetic)


_arithmetic("add", torch.add, "add")
_arithmetic("sub", torch.sub, "subtract")
_arithmetic("mul", torch.mul, "multiply")
_arithmetic("div", torch.div, "divide")


@operator("normalize")
class Normalize(Operator):
    """Vectors along a dimension divided by their length; the importer makes it of four calls."""

    dim: int = 1
    eps: float = 1e-12

    order = "any"

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        words = f"along {self.dim}"
        normalize = nn.functional.normalize
        return Function(words, lambda x: normalize(x, dim=self.dim, eps=self.eps))

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        (x,) = inputs
        squares = k.ops.sum(k.ops.square(x), axis=k.axis(self.dim, x), keepdims=True)
        return x / k.ops.maximum(k.ops.sqrt(squares), self.eps)


@operator("softmax", "softmax")
class Softmax(Operator):
    """Softmax along a dimension as PyTorch numbers them."""

    dim: int

    order = "any"

    @classmethod
    def of(cls, call: Call) -> Softmax | None:
        """Return the layer that a call stands for."""
        return cls(call["dim"] % len(call.shapes["self"]))

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return nn.Softmax(self.dim)

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        return k.ops.softmax(*inputs, axis=k.axis(self.dim, *inputs))


@operator("matmul", "matmul", "bmm")
class MatMul(Operator):
    """The product of two tensors as matrices of their last two dimensions."""

    order = "pytorch"

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return Function("", torch.matmul)

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        return k.ops.matmul(*inputs)


@operator("attention", "scaled_dot_product_attention")
class Attention(Operator):
    """Values weighted by how queries fit keys: softmax(q k^T * scale) v, without a mask."""

    scale: float | None = None

    inputs = ("query", "key", "value")
    order = "pytorch"

    @classmethod
    def of(cls, call: Call) -> Attention | None:
        """Return the layer; None with a mask, or where heads share keys."""
        given = call.arguments
        masked = given["attn_mask"] is not None or given["is_causal"] or given["dropout_p"]
        return None if masked or given.get("enable_gqa") else cls(given["scale"])

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        attention = nn.functional.scaled_dot_product_attention
        return Function("", lambda q, k, v: attention(q, k, v, scale=self.scale))

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras; without a scale it is one by the root of the width."""
        query, key, value = inputs
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        fit = k.ops.matmul(query, k.ops.swapaxes(key, -1, -2)) * scale
        return k.ops.matmul(k.ops.softmax(fit, axis=-1), value)
