"""A description as a Keras 3 model, channels last; Keras itself is not a part of the lab."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import MissingToolError, TranslationError
from .description import Description, Layer


class Keras:
    """What a kind of layers needs to make itself in Keras.

    Attributes
    ----------
    layers, ops
        Of Keras.
    name
        What the layer is called there.
    """

    def __init__(self, library: ModuleType, layer: Layer) -> None:
        self.layers, self.ops = library.layers, library.ops
        self.layer = layer
        self.name = layer.name.replace(".", "_")
        self.made: list[Any] = []

    def weighted(self, made: Any, *inputs: Any) -> Any:
        """Call a Keras layer that gets the weights of this one, and return its output."""
        self.made.append(made)
        return made(*inputs)

    def axis(self, dim: int, x: Any) -> int:
        """Return Keras's number of a dimension as PyTorch numbers them."""
        return {0: 0, 1: 3, 2: 1, 3: 2}[dim] if len(x.shape) == 4 else dim

    def cannot(self, what: str) -> TranslationError:
        """Return the error for what a layer does not do in Keras."""
        name, kind = self.layer.name, self.layer.operator.kind
        return TranslationError(
            f"The layer {name} ({kind}) is not built in Keras: {what}.", node=name, op_type=kind
        )


def emit_keras(description: Description, weights: Mapping[str, Any]) -> Any:
    """Return a description as a Keras model that takes pictures (n, height, width, channels).

    Parameters
    ----------
    description
        As imported, or written by hand.
    weights
        As for `emit_torch`.

    Raises
    ------
    MissingToolError
        Keras is not installed.
    TranslationError
        A layer has no counterpart in Keras; with its name.
    """
    try:
        import keras
    except ImportError:
        raise MissingToolError(
            "Keras is not installed here. `labutils tools install keras` installs it separately; "
            "labutils/representation/keras_program.py is what is called there."
        ) from None
    channels, height, width = description.input
    values = {"input": keras.Input((height, width, channels), name="input")}
    copied = []
    for layer in description.layers:
        k = Keras(keras, layer)
        values[layer.name] = layer.operator.keras(k, *(values[name] for name in layer.inputs))
        copied += [(layer, made) for made in k.made]
    model = keras.Model(values["input"], values[description.output])
    for layer, made in copied:
        made.set_weights(layer.operator.keras_weights(_own(layer, weights)))
    return model


def _own(layer: Layer, weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    names = layer.operator.weights.values()
    full = {name: f"{layer.weights}.{name}" for name in names}
    return {name: np.asarray(weights[where]) for name, where in full.items() if where in weights}
