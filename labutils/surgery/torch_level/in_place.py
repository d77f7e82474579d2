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
    "reshape_as", "expand_as", "broadcast_to", "ravel", "t", "adjoint", "swapaxes", "swapdims",
    "movedim", "moveaxis", "unbind", "tensor_split", "hsplit", "vsplit", "dsplit", "diagonal",
    "unfold", "as_strided", "split_with_sizes", "alias", "real", "imag", "view_as_real", "float",
    "double", "half", "bfloat16", "type", "type_as", "cpu", "dropout", "alpha_dropout",
    "feature_dropout", "dropout1d", "dropout2d", "dropout3d", "atleast_1d", "atleast_2d",
    "atleast_3d", "numpy", "positive", "slice", "data",
}  # fmt: skip
_VIEWS = ("T", "mT", "H", "mH", "data", "real", "imag")  # attributes that share the memory
_IDLE = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
         nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)  # fmt: skip


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
        (a ReLU that gives zeros), a trace does not see what depends on values. All of them where
        neither is there.
    before
        The outputs on the inputs.
    """
    layers = [module for module in model.modules() if getattr(module, "inplace", None) is True]
    if not layers:
        return []
    traced = _seen_in_trace(model)
    if traced is None and inputs is None:
        return layers  # nothing is known of them, and one that works in place is right
    found = traced or set()
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


def _seen_in_trace(model: nn.Module) -> set[nn.Module] | None:
    """Return the layers of a model that write into what is read later; None without a trace."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # control flow on values, arguments that are not tensors, ...
        return None
    place = {node: index for index, node in enumerate(graph.nodes)}
    found = set()
    for node in graph.nodes:
        layer = _layer(model, node)
        if layer is None or getattr(layer, "inplace", None) is not True:
            continue
        for shared in _sharing(model, node):
            later = [user for user in shared.users if place[user] > place[node]]
            if not all(_asks_for_shape(user) for user in later):
                found.add(layer)
    return found


def _asks_for_shape(node: fx.Node) -> bool:
    return node.target in ("size", "dim") or (node.target is getattr and not _is_alias_of(node))


def _is_alias_of(node: fx.Node) -> bool:
    """Return whether a node gives a tensor's memory under another attribute."""
    return node.target is getattr and len(node.args) > 1 and node.args[1] in _VIEWS


def _layer(model: nn.Module, node: fx.Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def _sharing(model: nn.Module, writer: fx.Node) -> set[fx.Node]:
    """Return the values whose memory a layer in place may write into, but its own result.

    They are what its input was made of by views, and every other view of that.
    """
    root = _given(writer)
    while root is not None and _shares(model, root) and _given(root) is not None:
        root = _given(root)
    found: set[fx.Node] = set()
    waiting = [] if root is None else [root]
    while waiting:
        value = waiting.pop()
        if value is not writer and value not in found:
            found.add(value)
            waiting += [u for u in value.users if _shares(model, u) and _given(u) is value]
    return found


def _given(node: fx.Node) -> fx.Node | None:
    """Return the first argument of a node."""
    first = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("x"))
    return first if isinstance(first, fx.Node) else None


def _shares(model: nn.Module, node: fx.Node) -> bool:
    """Return whether a node's result may share the memory of its first argument."""
    layer = _layer(model, node)
    if layer is not None:
        return isinstance(layer, _IDLE) or bool(getattr(layer, "inplace", False))
    name = getattr(node.target, "__name__", str(node.target)).rpartition(".")[2]
    in_place = node.kwargs.get("inplace") is True or name.endswith("_")
    return in_place or name in _ALIASES or _is_alias_of(node)


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
