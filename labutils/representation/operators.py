"""Kinds of layers of classifiers: those with weights, and activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, doc
from torch import nn

from .norms import LazyBatchNorm, LazyGroupNorm, LazyLayerNorm
from .operator import Call, Operator, operator

if TYPE_CHECKING:
    import numpy as np

    from .keras_model import Keras

Count = Annotated[int, Ge(1)]
Sides = Annotated[Count | tuple[Count, Count], doc("a number from 1 on, or two: height and width")]
Pads = Annotated[
    Annotated[int, Ge(0)] | tuple[Annotated[int, Ge(0)], Annotated[int, Ge(0)]],
    doc("a number from 0 on, or two: height and width"),
]
Pair = int | tuple[int, int]


class Function(nn.Module):
    """A function of tensors as a layer without weights.

    Parameters
    ----------
    name
        How it is printed.
    function
        Called with the layer's inputs.
    """

    def __init__(self, name: str, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the function's value."""
        return self.function(*inputs)

    def extra_repr(self) -> str:
        """Return what is printed between the parentheses."""
        return self.name


def pair(values: Any) -> Pair:
    """Return one number for two equal ones: a square is written as its side."""
    first, second = values if len(values) == 2 else (values[0], values[0])
    return int(first) if first == second else (int(first), int(second))


def two(value: Pair) -> tuple[int, int]:
    """Return what a number or two numbers say, as two."""
    return (value, value) if isinstance(value, int) else value


@operator("conv", "conv2d")
class Convolution(Operator):
    """A convolution with `out` channels; depthwise where `groups` is the number of channels."""

    out: Count
    kernel: Sides = 1
    stride: Sides = 1
    pad: Pads = 0
    dilation: Sides = 1
    groups: Count = 1
    bias: bool = False

    inputs = ("input",)
    weights = {"weight": "weight", "bias": "bias"}

    @classmethod
    def of(cls, call: Call) -> Convolution | None:
        """Return the layer; None where "same" would pad one side more than the other."""
        out, _, *kernel = call.shapes["weight"]
        pad, dilation = call["padding"], two(pair(call["dilation"]))
        if isinstance(pad, str):
            around = [d * (n - 1) for n, d in zip(kernel, dilation, strict=True)]
            pad = [n // 2 for n in around] if pad == "same" else [0, 0]
            if call["padding"] == "same" and any(n % 2 for n in around):
                return None
        return cls(
            out=out, kernel=pair(kernel), stride=pair(call["stride"]), pad=pair(pad),
            dilation=pair(dilation), groups=call["groups"], bias=call["bias"] is not None,
        )  # fmt: skip

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return nn.LazyConv2d(
            self.out, self.kernel, self.stride, self.pad, self.dilation, self.groups, self.bias
        )

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras; what is padded is padded first, alike on both sides."""
        (x,) = inputs
        if self.pad != 0:
            x = k.layers.ZeroPadding2D(two(self.pad), name=k.named("pad"))(x)
        common = {
            "kernel_size": two(self.kernel), "strides": two(self.stride), "padding": "valid",
            "dilation_rate": two(self.dilation), "use_bias": self.bias,
        }  # fmt: skip
        if self._depthwise(x.shape[-1]):
            return k.weighted(k.layers.DepthwiseConv2D(**common, name=k.name), x)
        layer = k.layers.Conv2D(self.out, groups=self.groups, **common, name=k.name)
        return k.weighted(layer, x)

    def _depthwise(self, channels: int) -> bool:
        return self.groups == channels == self.out and self.groups > 1

    def keras_weights(self, own: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return kernel (height, width, in, out) and bias; depthwise (height, width, in, 1)."""
        weight = own["weight"]
        depthwise = self._depthwise(weight.shape[1] * self.groups)
        kernel = weight.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
        return [kernel, *([own["bias"]] if self.bias else [])]


@operator("linear", "linear")
class Linear(Operator):
    """A matrix product along the last dimension, with `out` results."""

    out: Count
    bias: bool = False

    inputs = ("input",)
    weights = {"weight": "weight", "bias": "bias"}
    order = "pytorch"

    @classmethod
    def of(cls, call: Call) -> Linear | None:
        """Return the layer that a call stands for."""
        return cls(call.shapes["weight"][0], call["bias"] is not None)

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return nn.LazyLinear(self.out, self.bias)

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        return k.weighted(k.layers.Dense(self.out, use_bias=self.bias, name=k.name), *inputs)

    def keras_weights(self, own: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return kernel (in, out) and bias."""
        return [own["weight"].T, *([own["bias"]] if self.bias else [])]


@operator("batch_norm", "batch_norm")
class BatchNorm(Operator):
    """BatchNorm with its stored statistics, along dimension 1."""

    eps: float = 1e-5

    inputs = ("input",)
    weights = {
        "weight": "weight", "bias": "bias", "running_mean": "running_mean",
        "running_var": "running_var",
    }  # fmt: skip
    order = "any"

    @classmethod
    def of(cls, call: Call) -> BatchNorm | None:
        """Return the layer that a call stands for; None without scale, or of one for training."""
        whole = call["weight"] is not None and call["running_mean"] is not None
        return cls(call["eps"]) if whole and not call["training"] else None

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return LazyBatchNorm(self.eps)

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras, whose own epsilon would be 1e-3."""
        axis = k.axis(1, *inputs)
        made = k.layers.BatchNormalization(axis=axis, epsilon=self.eps, name=k.name)
        return k.weighted(made, *inputs)


@operator("layer_norm", "layer_norm")
class LayerNorm(Operator):
    """LayerNorm over the last dimension, as PyTorch numbers them."""

    eps: float = 1e-5

    inputs = ("input",)
    weights = {"weight": "weight", "bias": "bias"}
    order = "pytorch"

    @classmethod
    def of(cls, call: Call) -> LayerNorm | None:
        """Return the layer; None without scale and shift, or over several dimensions."""
        whole = call["weight"] is not None and call["bias"] is not None
        return cls(call["eps"]) if whole and len(call["normalized_shape"]) == 1 else None

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return LazyLayerNorm(self.eps)

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras, whose own epsilon would be 1e-3."""
        made = k.layers.LayerNormalization(epsilon=self.eps, name=k.name)
        return k.weighted(made, *inputs)


@operator("group_norm", "group_norm")
class GroupNorm(Operator):
    """The channels of each group normalized together; with one group, all of a picture."""

    groups: Count = 1
    eps: float = 1e-5

    inputs = ("input",)
    weights = {"weight": "weight", "bias": "bias"}
    order = "any"

    @classmethod
    def of(cls, call: Call) -> GroupNorm | None:
        """Return the layer; None without scale and shift."""
        whole = call["weight"] is not None and call["bias"] is not None
        return cls(call["num_groups"], call["eps"]) if whole else None

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return LazyGroupNorm(self.groups, self.eps)

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras, whose own epsilon would be 1e-3."""
        axis = k.axis(1, *inputs)
        made = k.layers.GroupNormalization(self.groups, axis, self.eps, name=k.name)
        return k.weighted(made, *inputs)


def _activation(kind: str, aten: tuple[str, ...], made: type[nn.Module], keras: str) -> None:
    """Register an activation without hyper-parameters."""

    class Activation(Operator):
        order = "any"

        def torch(self) -> nn.Module:
            return made()

        def keras(self, k: Keras, *inputs: Any) -> Any:
            return getattr(k.ops, keras)(*inputs)

    Activation.__name__ = Activation.__qualname__ = made.__name__
    operator(kind, *aten)(Activation)


_activation("relu", ("relu", "relu_"), nn.ReLU, "relu")
_activation("hardswish", ("hardswish", "hardswish_"), nn.Hardswish, "hard_silu")
_activation("hardsigmoid", ("hardsigmoid", "hardsigmoid_"), nn.Hardsigmoid, "hard_sigmoid")
_activation("sigmoid", ("sigmoid", "sigmoid_"), nn.Sigmoid, "sigmoid")
_activation("silu", ("silu", "silu_"), nn.SiLU, "silu")


@operator("relu6", "hardtanh", "hardtanh_", "relu6", "relu6_", "clamp")
class ReLU6(Operator):
    """ReLU that ends at 6."""

    order = "any"

    @classmethod
    def of(cls, call: Call) -> ReLU6 | None:
        """Return the layer; None where the limits are not 0 and 6."""
        given = call.arguments
        limits = [given.get(f"min{s}", 0) for s in ("_val", "")] + [given.get("max_val", 6)]
        return cls() if limits == [0, 0, 6] and given.get("max", 6) == 6 else None

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return nn.ReLU6()

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        return k.ops.relu6(*inputs)


@operator("gelu", "gelu")
class GELU(Operator):
    """GELU, exact or with tanh."""

    approximate: Literal["none", "tanh"] = "none"

    order = "any"

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch."""
        return nn.GELU(self.approximate)

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the output in Keras."""
        return k.ops.gelu(*inputs, approximate=self.approximate == "tanh")
