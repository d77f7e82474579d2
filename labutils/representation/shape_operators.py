"""Kinds of layers that cut, join and turn tensors, and those that are a tensor themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import nn

from .operator import Call, Operator, operator
from .operators import Count, Function

if TYPE_CHECKING:
    from .keras_model import Keras

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""What makes channels last of PyTorch's order, and the way back."""

RESHAPES = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "reshape_as", "unsqueeze", "squeeze",
}  # fmt: skip


@operator("concat", "cat")
class Concat(Operator):
    """Tensors one after another, along a dimension as PyTorch numbers them."""

    dim: int = 1

    order = "any"

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


@operator("slice", "slice", "narrow")
class Slice(Operator):
    """A part of a tensor along a dimension as PyTorch numbers them; every `step`-th of it."""

    dim: int
    start: int = 0
    end: int = 0
    step: Count = 1

    order = "any"

    @classmethod
    def of(cls, call: Call) -> Slice | None:
        """Return the layer that a call stands for; None for a part of the pictures."""
        if call.target == "narrow":
            start, step, end = call["start"], 1, call["start"] + call["length"]
        else:
            start, step, end = call["start"] or 0, call["step"], call["end"]
        dim = call["dim"] % len(call.shapes["self"])
        length = call.shapes["self"][dim]
        if length == -1:
            return None
        start, end, _ = slice(start, end, step).indices(length)
        return cls(dim, start, end, step)

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        by = f" by {self.step}" if self.step > 1 else ""
        return Function(f"{self.start} to {self.end}{by} along {self.dim}", self._part(self.dim))

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        return self._part(k.axis(self.dim, *inputs))(*inputs)

    def _part(self, axis: int) -> Callable[[Any], Any]:
        return lambda x: x[(slice(None),) * axis + (slice(self.start, self.end, self.step),)]


@operator("select", "select")
class Select(Operator):
    """One entry along a dimension, as PyTorch numbers them; the dimension is gone."""

    dim: int
    index: int = 0

    order = "pytorch"

    @classmethod
    def of(cls, call: Call) -> Select | None:
        """Return the layer that a call stands for; None for one of the pictures."""
        dim = call["dim"] % len(call.shapes["self"])
        length = call.shapes["self"][dim]
        return None if length == -1 else cls(dim, call["index"] % length)

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        words = f"{self.index} along {self.dim}"
        return Function(words, lambda x: x.select(self.dim, self.index))

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        (x,) = inputs
        return x[(slice(None),) * self.dim + (self.index,)]


@operator("shuffle")
class Shuffle(Operator):
    """Channels of all groups in turns; the importer makes it of a view, a transpose and a view."""

    groups: Count

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
    """Zeros around a tensor, from the last dimension on: left, right, top, bottom of a picture."""

    sides: tuple[Annotated[int, Ge(0)], ...]

    order = "any"

    @classmethod
    def of(cls, call: Call) -> Pad | None:
        """Return the layer that a call stands for; None for other values, or what cuts."""
        given = call.arguments
        plain = given.get("mode", "constant") == "constant" and not given.get("value")
        return cls(tuple(call["pad"])) if plain and min(call["pad"]) >= 0 else None

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return Function(f"{self.sides}", lambda x: nn.functional.pad(x, self.sides))

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        (x,) = inputs
        rank = len(x.shape)
        around = [(0, 0)] * rank
        for number, pair in enumerate(zip(self.sides[::2], self.sides[1::2], strict=True)):
            around[k.axis(rank - 1 - number, x)] = pair
        return k.ops.pad(x, around)


@operator("permute", "permute", "transpose")
class Permute(Operator):
    """Dimensions in another order: `dims` are the old numbers, as PyTorch has them."""

    dims: tuple[int, ...]

    order = "any"

    @classmethod
    def of(cls, call: Call) -> Permute | None:
        """Return the layer that a call stands for."""
        dims = list(range(len(call.shapes["self"])))
        if call.target == "permute":
            dims = [dims[dim] for dim in call["dims"]]
        else:
            one, other = call["dim0"], call["dim1"]
            dims[one], dims[other] = dims[other], dims[one]
        return cls(tuple(dims))

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return Function(f"{self.dims}", lambda x: x.permute(self.dims))

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras: to channels last and back nothing moves."""
        (x,) = inputs
        if self.dims == (LAST if k.last else FIRST):
            k.last = not k.last
            return x
        axes = [k.axis(dim, x) for dim in self.dims]
        k.last = False
        return k.ops.transpose(x, axes)


@operator("contiguous", "contiguous")
class Contiguous(Operator):
    """The same tensor with its values in order in memory: attention has other bits without it."""

    inputs = ("self",)
    order = "any"

    @classmethod
    def of(cls, call: Call) -> Contiguous | None:
        """Return the layer that a call stands for."""
        return cls()

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return Function("", torch.Tensor.contiguous)

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the input: in Keras there is no such order."""
        return inputs[0]


@operator("reshape", *sorted(RESHAPES))
class Reshape(Operator):
    """The same values in another shape; -1 is the side that grows with the number of pictures."""

    shape: tuple[Annotated[int, Ge(-1)], ...]

    inputs = ("self",)
    order = "pytorch"

    @classmethod
    def of(cls, call: Call) -> Reshape | None:
        """Return the layer; None where several sides grow with the number of pictures."""
        shape = call.shapes["result"]
        return cls(shape) if shape.count(-1) <= 1 else None

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return Function(f"{self.shape}", lambda x: x.reshape(self.shape))

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        return k.ops.reshape(*inputs, self.shape)


@operator("flatten", "flatten", "view", "reshape")
class Flatten(Operator):
    """All dimensions but the first as one."""

    @classmethod
    def of(cls, call: Call) -> Flatten | None:
        """Return the layer; None where not all of them become one."""
        before, after = call.shapes["self"], call.shapes["result"]
        flat = (before[0], math.prod(before[1:]))
        return cls() if before[0] in (-1, 1) and len(before) > 2 and after == flat else None

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return nn.Flatten()

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras, in the order of PyTorch: channels first."""
        (x,) = inputs
        if len(x.shape) == 4 and tuple(x.shape[1:3]) != (1, 1):
            x = k.ops.transpose(x, (0, 3, 1, 2))
        return k.layers.Flatten(name=k.name)(x)


@operator("roll", "roll")
class Roll(Operator):
    """A tensor moved along some dimensions; what leaves at the end comes in at the beginning."""

    shifts: tuple[int, ...]
    dims: tuple[int, ...]

    order = "any"

    @classmethod
    def of(cls, call: Call) -> Roll | None:
        """Return the layer; None for all values as one row."""
        rank = len(call.shapes["self"])
        dims = tuple(dim % rank for dim in call["dims"])
        return cls(tuple(call["shifts"]), dims) if dims else None

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        words = f"by {self.shifts} along {self.dims}"
        return Function(words, lambda x: x.roll(self.shifts, self.dims))

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        (x,) = inputs
        return k.ops.roll(x, self.shifts, tuple(k.axis(dim, x) for dim in self.dims))


@operator("gather", "index")
class Gather(Operator):
    """Entries of the first input along a dimension; the second has their numbers."""

    dim: int = 0

    inputs = ("self", "indices")
    order = "pytorch"

    @classmethod
    def of(cls, call: Call) -> Gather | None:
        """Return the layer; None with numbers for several dimensions."""
        given = [number for number, index in enumerate(call["indices"]) if index is not None]
        return cls(given[0]) if len(given) == 1 else None

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return Function(f"along {self.dim}", lambda x, i: x[(slice(None),) * self.dim + (i,)])

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        return k.ops.take(*inputs, axis=self.dim)


@operator("parameter")
class Parameter(Operator):
    """A stored tensor that no other layer has as its weights: a layer scale, positions, a mask.

    `tensor` is its own name; the importer makes it of a parameter, a buffer, or a constant.
    """

    tensor: str
    shape: tuple[Annotated[int, Ge(0)], ...]
    dtype: Literal["float32", "int64"] = "float32"

    order = "pytorch"

    @property
    def weights(self) -> dict[str, str]:  # type: ignore[override]
        """Argument -> name; here the instance knows it."""
        return {self.tensor: self.tensor}

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch; it begins with ones, or with zeros where it numbers."""
        begun = torch.ones if self.dtype == "float32" else torch.zeros
        return Stored(self.tensor, begun(self.shape, dtype=getattr(torch, self.dtype)))

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the tensor; Keras keeps it as a constant of the layer that takes it."""
        return k.ops.convert_to_tensor(k.own[self.tensor])


class Stored(nn.Module):
    """A tensor as a layer without inputs.

    Parameters
    ----------
    name
        What it is called.
    value
        What it is before weights are loaded.
    """

    def __init__(self, name: str, value: torch.Tensor) -> None:
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(value, value.is_floating_point()))

    def forward(self) -> torch.Tensor:
        """Return the tensor."""
        return getattr(self, self.name)


@operator("expand", "expand")
class Expand(Operator):
    """A tensor, whose first dimension is 1, once for each picture; the second input has those."""

    inputs = ("self",)
    order = "any"

    @classmethod
    def of(cls, call: Call) -> Expand | None:
        """Return the layer; None where other dimensions grow, or not with the pictures."""
        before, after = call.shapes["self"], call.shapes["result"]
        return cls() if before[:1] == (1,) and after == (-1, *before[1:]) else None

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return Function("", lambda x, like: x.expand(len(like), *x.shape[1:]))

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras, as a sum with zeros: their number is open."""
        x, like = inputs
        zeros = k.ops.zeros_like(like)[:, 0, 0, 0]
        return x + k.ops.reshape(zeros, (-1, *[1] * (len(x.shape) - 1)))
