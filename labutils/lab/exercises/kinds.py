"""Judging a kind of layers that is added to the representation."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..answer import NotYet, array, call, shown

_SLOPES = (0.01, 0.3, 0.125, 0.0)
_X = np.array([[[[-4.0, -1.0, -0.25, 0.0], [0.25, 1.0, 3.0, -2.0]]]])  # (1, 1, 2, 4)


def judge_kind(leaky_relu: Any) -> None:
    """Judge a kind of layers: what it keeps of a call, and what it is in both frameworks."""
    import torch

    made = _registered(leaky_relu)
    for slope in _SLOPES:
        layer = _layer(made, slope)
        wanted = np.where(_X > 0, _X, slope * _X)
        module = call(layer.torch, what="torch()")
        if not isinstance(module, torch.nn.Module):
            raise NotYet(f"torch() returns a module of PyTorch, not {shown(module)}.")
        given = call(module, torch.from_numpy(_X.copy()), what="what torch() returns")
        _compare(array(given, _X.shape), wanted, "PyTorch", slope)
        given = call(layer.keras, _keras(), _X.copy(), what="keras()")
        _compare(array(given, _X.shape), wanted, "Keras", slope)


def _registered(answer: Any) -> Any:
    """Return a copy of the class as `operator` would make it; the registry stays as it is."""
    from ...representation import Operator

    if not isinstance(answer, type):
        raise NotYet(f"a class is expected, but this is {shown(answer)}.")
    if not issubclass(answer, Operator) or answer is Operator:
        raise NotYet(f"a class that inherits from Operator is expected; {answer.__name__} is not.")
    inside = {n: v for n, v in vars(answer).items() if n not in ("__dict__", "__weakref__")}
    if "__dataclass_fields__" in inside:  # it was registered already
        return answer
    return dataclasses.dataclass(frozen=True)(type(answer.__name__, answer.__bases__, inside))


def _layer(made: Any, slope: float) -> Any:
    """Return the layer that a call of leaky_relu is imported as."""
    from ...representation import Call

    said = {"self": None, "negative_slope": slope}
    fields = [field.name for field in dataclasses.fields(made)]
    if unknown := [name for name in fields if name not in said]:
        raise NotYet(
            f"a field is called {unknown[0]}, and the call has no argument of that name: fields "
            "are named as PyTorch's arguments."
        )
    return call(made.of, Call("leaky_relu", said, {}), what="the import")


def _compare(found: np.ndarray, wanted: np.ndarray, where: str, slope: float) -> None:
    if np.allclose(found, wanted, rtol=1e-6, atol=1e-7):
        return
    if np.allclose(found[_X > 0], wanted[_X > 0], rtol=1e-6, atol=1e-7):
        below = found[_X == -1].item() / -1
        raise NotYet(
            f"in {where}: the network's slope is {slope:g}, and below zero your layer has "
            f"{below:g}. It must remember what the call says."
        )
    raise NotYet(f"in {where}: values above zero stay as they are; yours do not.")


def _leaky_relu(x: np.ndarray, negative_slope: float = 0.2) -> np.ndarray:  # Keras's own default
    return np.where(x > 0, x, negative_slope * x)


class _Ops:
    """Stands for `keras.ops`: NumPy's functions of the same names, and a few more."""

    leaky_relu = staticmethod(_leaky_relu)

    def relu(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    def cast(self, x: np.ndarray, dtype: str) -> np.ndarray:
        return np.asarray(x).astype(dtype)

    def __getattr__(self, name: str) -> Any:
        if not hasattr(np, name):
            raise NotYet(f"keras.ops has nothing called {name} that this check knows.")
        return getattr(np, name)


def _keras() -> Any:
    """Return what a kind of layers gets as ``k``, without Keras."""

    def leaky(negative_slope: float = 0.3, **_: Any) -> Any:  # the default of Keras's layer
        return lambda x: _leaky_relu(x, negative_slope)

    def relu(negative_slope: float = 0.0, **_: Any) -> Any:
        return lambda x: _leaky_relu(x, negative_slope)

    layers = SimpleNamespace(LeakyReLU=leaky, ReLU=relu)
    return SimpleNamespace(ops=_Ops(), layers=layers, name="layer")
