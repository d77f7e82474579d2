"""Which layers and calls write into a tensor that is read again.

``y = act(x); x + y`` with an activation in place reads ``act(x)`` twice. An activation out of place
in its stead would let the sum read ``x``: another function, whatever rule replaced it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from . import modules

_ALIASES = {  # methods and functions whose result may share the memory of their first argument
    "view", "reshape", "flatten", "squeeze", "unsqueeze", "transpose", "permute", "chunk", "split",
    "getitem", "detach", "contiguous", "expand", "narrow", "select", "to", "unflatten", "view_as",
}  # fmt: skip


def layers_read_again(
    model: nn.Module, inputs: tuple | None, before: Sequence[np.ndarray] = ()
) -> list[nn.Module]:
    """Return the layers in place whose input is read again by something else.

    Parameters
    ----------
    model
        As it is before anything is replaced.
    inputs
        What to run it on: each layer is made to work out of place, and if the outputs change then
        something relied on it. Besides, the model is traced where it can be: a run may not show it
        (a ReLU that gives zeros), a trace does not see what depends on values.
    before
        The outputs on the inputs.
    """
    layers = [module for module in model.modules() if getattr(module, "inplace", None) is True]
    if not layers:
        return []
    found = _seen_in_trace(model)
    if inputs is not None:
        found |= set(_seen_in_run(model, layers, inputs, before))
    return [layer for layer in layers if layer in found]


def _seen_in_run(
    model: nn.Module, layers: Sequence[nn.Module], inputs: tuple, before: Sequence[np.ndarray]
) -> Sequence[nn.Module]:
    """Return the layers that change the outputs when they work out of place."""

    def relied_on(some: Sequence[nn.Module]) -> bool:
        with _out_of_place(some):
            return not _equal(before, modules.run(model, inputs))

    if not relied_on(layers):
        return []
    return [layer for layer in layers if relied_on([layer])] or layers


@contextmanager
def _out_of_place(layers: Iterable[Any]) -> Iterator[None]:
    """Let layers work out of place inside the block."""
    layers = list(layers)
    try:
        for layer in layers:
            layer.inplace = False
        yield
    finally:
        for layer in layers:
            layer.inplace = True


def _equal(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(a.shape == b.shape and np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def _seen_in_trace(model: nn.Module) -> set[nn.Module]:
    """Return the layers of a traced model that write into what is read later."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # control flow on values, arguments that are not tensors, ...
        return set()
    place = {node: index for index, node in enumerate(graph.nodes)}
    found = set()
    for node in graph.nodes:
        layer = _layer(model, node)
        if layer is None or getattr(layer, "inplace", None) is not True:
            continue
        for shared in _sharing(model, node.args[0]):
            later = [user for user in shared.users if place[user] > place[node]]
            if not all(_asks_for_shape(user) for user in later):
                found.add(layer)
    return found


def _asks_for_shape(node: fx.Node) -> bool:
    return node.target in ("size", "dim", getattr)


def _layer(model: nn.Module, node: fx.Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def _sharing(model: nn.Module, value: Any) -> Iterator[fx.Node]:
    """Yield a value of a graph, and those before it whose memory it may share."""
    while isinstance(value, fx.Node):
        yield value
        layer = _layer(model, value)
        name = getattr(value.target, "__name__", str(value.target)).rpartition(".")[2]
        shares = isinstance(layer, nn.Identity | nn.Flatten) or getattr(layer, "inplace", False)
        if not (shares or name in _ALIASES or name.endswith("_")) or not value.args:
            return
        value = value.args[0]


class _Copying(TorchFunctionMode):
    """Inside the block, calls in place write into a copy of their argument."""

    def __init__(self, is_in_place: Callable[..., bool], functions: Iterable[Any]) -> None:
        super().__init__()
        self.is_in_place, self.functions = is_in_place, set(functions)

    def __torch_function__(
        self, func: Callable[..., Any], kinds: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = func in self.functions and args and isinstance(args[0], torch.Tensor)
        if known and self.is_in_place(func, args, kwargs):
            args = (args[0].clone(), *args[1:])
        return func(*args, **kwargs)


def calls_read_again(
    model: nn.Module, inputs: tuple, is_in_place: Callable[..., bool], functions: Iterable[Any]
) -> bool:
    """Return whether anything relies on calls of these functions to write into their argument."""
    before = modules.run(model, inputs)
    with _Copying(is_in_place, functions):
        return not _equal(before, modules.run(model, inputs))
