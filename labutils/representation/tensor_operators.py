"""Kinds of layers without weights: pooling, arithmetic, and tensors cut and put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .operator import Call, Operator, operator
from .operators import Function, Pair, pair, two

if TYPE_CHECKING:
    from .keras_model import Keras


@operator("max_pool", "max_pool2d")
class MaxPool(Operator):
    """The greatest value of a window."""

    kernel: Pair
    stride: Pair = 1
    pad: Pair = 0
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
    """The mean of a window, without padding."""

    kernel: Pair
    stride: Pair = 1

    inputs = ("self",)

    @classmethod
    def of(cls, call: Call) -> AvgPool | None:
        """Return the layer that a call stands for; None for one that is padded."""
        if pair(call["padding"]) != 0 or call["ceil_mode"] or call["divisor_override"]:
            return None
        kernel = pair(call["kernel_size"])
        return cls(kernel, pair(call["stride"]) if call["stride"] else kernel)

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return nn.AvgPool2d(self.kernel, self.stride)

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        return k.ops.average_pool(*inputs, two(self.kernel), two(self.stride), "valid")


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
        if len(x.shape) == 4 and set(self.dims) != {2, 3}:
            raise k.cannot(f"the mean over dimensions {self.dims} of a picture")
        dims = (1, 2) if len(x.shape) == 4 else self.dims
        return k.ops.mean(x, axis=dims, keepdims=self.keep)


@operator("flatten", "flatten")
class Flatten(Operator):
    """All dimensions but the first as one."""

    @classmethod
    def of(cls, call: Call) -> Flatten | None:
        """Return the layer; None where not all of them become one."""
        last = len(call.shapes["self"]) - 1
        return cls() if call["start_dim"] == 1 and call["end_dim"] in (-1, last) else None

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return nn.Flatten()

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras, in the order of PyTorch: channels first."""
        (x,) = inputs
        if len(x.shape) == 4 and tuple(x.shape[1:3]) != (1, 1):
            x = k.ops.transpose(x, (0, 3, 1, 2))
        return k.layers.Flatten(name=k.name)(x)


def _arithmetic(kind: str, function: Callable[..., torch.Tensor], keras: str) -> None:
    """Register an operation on two tensors, or on one and the number `by`."""

    class Arithmetic(Operator):
        by: float | None = None

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
            given = [*inputs, *([] if self.by is None else [self.by])]
            if len({len(x.shape) for x in inputs}) > 1:
                raise k.cannot(f"{kind} of tensors with different numbers of dimensions")
            return getattr(k.ops, keras)(*given)

    Arithmetic.__name__ = Arithmetic.__qualname__ = kind.capitalize()
    operator(kind, kind, f"{kind}_")(Arithmetic)


_arithmetic("add", torch.add, "add")
_arithmetic("mul", torch.mul, "multiply")


@operator("concat", "cat")
class Concat(Operator):
    """Tensors one after another, along a dimension as PyTorch numbers them."""

    dim: int = 1

    @classmethod
    def of(cls, call: Call) -> Concat | None:
        """Return the layer that a call stands for."""
        return cls(call["dim"] % len(call.shapes["result"]))

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return Function(f"along {self.dim}", lambda *x: torch.cat(x, self.dim))

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        return k.ops.concatenate(inputs, axis=k.axis(self.dim, inputs[0]))


@operator("slice", "slice", "chunk", "split", "split_with_sizes", "narrow")
class Slice(Operator):
    """A part of a tensor along a dimension as PyTorch numbers them."""

    dim: int
    start: int = 0
    end: int = 0

    @classmethod
    def of(cls, call: Call) -> Slice | None:
        """Return the layer that a call stands for; None for steps."""
        if call.target != "slice" or call["step"] != 1:
            return None  # chunk and split are taken apart by the importer
        rank = call.shapes["self"]
        dim = call["dim"] % len(rank)
        start, end = (call[name] or 0 for name in ("start", "end"))
        end = min(end if call["end"] is not None else rank[dim], rank[dim])
        return cls(
            dim, start % rank[dim] if start < 0 else start, end % rank[dim] if end < 0 else end
        )

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        length = self.end - self.start
        words = f"{self.start} to {self.end} along {self.dim}"
        return Function(words, lambda x: x.narrow(self.dim, self.start, length))

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        (x,) = inputs
        axis = k.axis(self.dim, x)
        return x[(slice(None),) * axis + (slice(self.start, self.end),)]


@operator("shuffle")
class Shuffle(Operator):
    """Channels of all groups in turns; the importer makes it of a view, a transpose and a view."""

    groups: int

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return nn.ChannelShuffle(self.groups)

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        (x,) = inputs
        _, height, width, channels = x.shape
        grouped = k.ops.reshape(x, (-1, height, width, self.groups, channels // self.groups))
        turned = k.ops.transpose(grouped, (0, 1, 2, 4, 3))
        return k.ops.reshape(turned, (-1, height, width, channels))


@operator("pad", "pad", "constant_pad_nd")
class Pad(Operator):
    """Zeros around the picture: left, right, top, bottom."""

    sides: tuple[int, ...]

    @classmethod
    def of(cls, call: Call) -> Pad | None:
        """Return the layer that a call stands for; None for other values, or other dimensions."""
        given = call.arguments
        plain = given.get("mode", "constant") == "constant" and not given.get("value")
        return cls(tuple(call["pad"])) if plain and len(call["pad"]) == 4 else None

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return nn.ZeroPad2d(self.sides)  # type: ignore[arg-type]

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        left, right, top, bottom = self.sides
        return k.layers.ZeroPadding2D(((top, bottom), (left, right)), name=k.name)(*inputs)
