"""A description as a Keras 3 model, channels last; Keras itself is not a part of the lab."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..errors import LabError, MissingToolError, TranslationError
from .description import Description, Layer
from .pytorch import emit_torch, weight_names
from .shape_operators import FIRST, LAST

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Value:
    """A tensor of Keras, and whether its four dimensions are in the order of channels last."""

    tensor: Any
    last: bool


class Keras:
    """What a kind of layers needs to make itself in Keras.

    Attributes
    ----------
    layers, ops
        Of Keras.
    name
        What the layer is called there.
    own
        Its weights, by their own names.
    last
        Whether tensors of four dimensions have their channels last, not the order of PyTorch.
    """

    def __init__(self, library: ModuleType, layer: Layer, own: Arrays, taken: set[str]) -> None:
        self.layers, self.ops = library.layers, library.ops
        self.layer, self.own = layer, own
        self._taken = taken
        self._base = layer.name.replace(".", "_")
        self.name = self.named("")
        self.last = False
        self._weighted: list[Any] = []

    def made(self, *inputs: _Value) -> _Value:
        """Return the layer's output, its inputs first brought into the order that it takes."""
        order = self.layer.operator.order
        self.last = order == "channels_last" or (order == "any" and any(x.last for x in inputs))
        tensor = self.layer.operator.keras(self, *(self._turned(x) for x in inputs))
        return _Value(tensor, self.last and len(tensor.shape) == 4)

    def copy_weights(self) -> None:
        """Give the Keras layers their weights, when all layers are connected."""
        for made in self._weighted:
            made.set_weights(self.layer.operator.keras_weights(self.own))

    def named(self, part: str) -> str:
        """Return a name for one more Keras layer of this layer, which no other has."""
        base = name = f"{self._base}_{part}" if part else self._base
        number = 1
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name

    def weighted(self, made: Any, *inputs: Any) -> Any:
        """Call a Keras layer that gets the weights of this one, and return its output."""
        self._weighted.append(made)
        return made(*inputs)

    def axis(self, dim: int, x: Any) -> int:
        """Return Keras's number of a dimension as PyTorch numbers them."""
        return FIRST[dim] if self.last and len(x.shape) == 4 else dim

    def of_rank(self, rank: int, x: Any) -> Any:
        """Return a tensor with more dimensions of 1 in front, as PyTorch reads it beside others."""
        before = len(x.shape)
        for _ in range(rank - before):
            x = self.ops.expand_dims(x, 0)
        return self.ops.transpose(x, LAST) if before < rank == 4 and self.last else x

    def in_pytorchs_order(self, x: Any) -> Any:
        """Return a tensor with its dimensions as PyTorch has them; the output is so, too."""
        turned = self.ops.transpose(x, FIRST) if self.last and len(x.shape) == 4 else x
        self.last = False
        return turned

    def cannot(self, what: str) -> TranslationError:
        """Return the error for what a layer does not do in Keras."""
        name, kind = self.layer.name, self.layer.operator.kind
        return TranslationError(
            f"The layer {name} ({kind}) is not built in Keras: {what}.", node=name, op_type=kind
        )

    def _turned(self, given: _Value) -> Any:
        if len(given.tensor.shape) != 4 or given.last == self.last:
            return given.tensor
        return self.ops.transpose(given.tensor, LAST if self.last else FIRST)


def emit_keras(description: Description, weights: Mapping[str, Any]) -> Any:
    """Return a description as a Keras model that takes pictures (n, height, width, channels).

    An output of four dimensions has its channels last as well.

    Parameters
    ----------
    description
        As imported, or written by hand.
    weights
        Arrays or tensors, by the names that the layers give them.

    Raises
    ------
    MissingToolError
        Keras is not installed.
    ModelFileError
        Layers do not fit together, or weights are missing or have another shape; each is named.
    TranslationError
        A layer has no counterpart in Keras; with its name and its kind.
    """
    try:
        import keras
    except ImportError:
        raise MissingToolError(
            "Keras is not installed here. `labutils tools install keras` installs it separately; "
            "labutils/representation/keras_program.py is what is called there."
        ) from None
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    checked = emit_torch(description, {n: torch.from_numpy(a.copy()) for n, a in arrays.items()})
    channels, height, width = description.input
    values = {"input": _Value(keras.Input((height, width, channels), name="input"), True)}
    built, taken = [], {"input"}
    for layer in description.layers:
        own = {own: arrays[full] for own, full in weight_names(layer, checked).items()}
        k = Keras(keras, layer, own, taken)
        values[layer.name] = _made(k, [values[name] for name in layer.inputs])
        built.append(k)
    output = values[description.output]
    if len(output.tensor.shape) == 4 and not output.last:
        output = _Value(keras.ops.transpose(output.tensor, LAST), True)
    model = keras.Model(values["input"].tensor, output.tensor)
    for k in built:
        k.copy_weights()
    return model


def _made(k: Keras, inputs: list[_Value]) -> _Value:
    try:
        return k.made(*inputs)
    except LabError:
        raise
    except Exception as error:  # whatever Keras, or a learner's own kind, raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise k.cannot(reason) from error
