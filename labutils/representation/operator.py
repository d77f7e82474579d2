"""What one kind of layer is, and the registry of all kinds.

A kind is one class: its fields are the hyper-parameters in the YAML, `aten` names the operators of
PyTorch that it stands for, and two methods say what it is in PyTorch and in Keras. That is all::

    @operator("hardswish", "hardswish", "hardswish_")
    class Hardswish(Operator):
        def torch(self):
            return nn.Hardswish()

        def keras(self, k, x):
            return k.ops.hard_silu(x)

If you need another kind, write such a class and import it; tests/test_representation_keras.py shows
how one is tested.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, dataclass_transform

from ..errors import UnknownNameError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from .keras_model import Keras

MOST_KINDS = 40
"""A representation with more kinds than this is PyTorch's own list of operators again."""


@dataclass(frozen=True)
class Call:
    """One call in an exported program, its arguments by the names of the operator's schema.

    Attributes
    ----------
    target
        The operator without overload: ``conv2d``.
    arguments
        Name -> value, defaults included. Tensors are nodes of the program.
    shapes
        The shapes of its tensors, by argument; ``result`` is that of the result. -1 stands for a
        side that grows with the number of pictures.
    """

    target: str
    arguments: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


@dataclass(frozen=True)
class Operator:
    """The hyper-parameters of one layer; a subclass is a kind of layers."""

    kind: ClassVar[str] = ""
    aten: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[tuple[str, ...]] = ()
    """Arguments of the call that are the layer's inputs; by default all tensors but weights."""
    weights: ClassVar[dict[str, str]] = {}
    """Argument of the call -> what the weight is called in the layer."""
    order: ClassVar[Literal["channels_last", "pytorch", "any"]] = "channels_last"
    """How the dimensions of four lie in Keras: channels last, as in PyTorch, or as they come (then
    `Keras.axis` finds them)."""

    @classmethod
    def of(cls, call: Call) -> Operator | None:
        """Return the layer that a call stands for; None when this kind cannot say it."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: call[name] for name in names})

    def torch(self) -> nn.Module:
        """Return the layer in PyTorch; what depends on the input's shape may be lazy."""
        raise NotImplementedError

    def keras(self, k: Keras, *inputs: Any) -> Any:
        """Return the layer's output in Keras, in the same order as the inputs."""
        raise k.cannot("its kind has no method keras")

    def keras_weights(self, own: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return weights of PyTorch, by name, in the order and layout of the Keras layer."""
        return [own[name] for name in self.weights.values() if name in own]


T = TypeVar("T", bound=type[Operator])
KINDS: dict[str, type[Operator]] = {}
"""Kind -> class."""


@dataclass_transform(frozen_default=True)
def operator(kind: str, *aten: str) -> Callable[[T], T]:
    """Register a kind of layers; a decorator.

    Parameters
    ----------
    kind
        As the YAML calls it.
    *aten
        The operators of PyTorch that are imported as this kind; the first kind whose `of` takes a
        call has it, later kinds before earlier ones.
    """

    def registered(made: T) -> T:
        if "__dataclass_fields__" not in vars(made):  # else it is registered again
            made = dataclass(frozen=True)(made)  # type: ignore[assignment]
        made.kind, made.aten = kind, aten
        KINDS[kind] = made
        return made

    return registered


def find(kind: str) -> type[Operator]:
    """Return the class of a kind; UnknownNameError when none is registered."""
    if kind not in KINDS:
        raise UnknownNameError("kind of layers", kind, KINDS)
    return KINDS[kind]


def built(made: Operator) -> nn.Module:
    """Return a layer in PyTorch; the state of its random numbers stays as it was.

    Raises
    ------
    ValueError
        PyTorch does not build a layer with these hyper-parameters; with its reason, in a line.
    """
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            module = made.torch()
    except Exception as error:  # a learner's own kind may raise anything
        raise ValueError((str(error).strip() or type(error).__name__).splitlines()[0]) from None
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"torch() of {made.kind} returns no module")
    return module


def imported(call: Call) -> Operator | None:
    """Return the layer that a call stands for; None when no kind takes it."""
    for made in reversed(KINDS.values()):
        if call.target in made.aten and (layer := made.of(call)) is not None:
            return layer
    return None
