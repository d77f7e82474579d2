"""Layers in place during training: out of place where the network stays the same function.

An in-place dropout after a ReLU overwrites what the ReLU's gradient needs, so layers work out of
place for a run. But ``y = act(x); x + y`` with an activation in place adds ``act(x)`` twice: such a
layer has to stay as it is, or another function would be trained.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves


@contextlib.contextmanager
def avoided(model: nn.Module, images: Callable[[], torch.Tensor]) -> Iterator[None]:
    """Let layers work out of place inside the block, but those whose input is read again.

    Parameters
    ----------
    model
        What is trained.
    images
        Gives some inputs, (n, 3, size, size) float32 on the model's device; it is called where
        there is a layer in place.
    """
    layers = _in_place(model)
    stays = read_again(model, images()) if layers else set()
    changed = [layer for name, layer in layers.items() if name not in stays]
    try:
        for layer in changed:
            layer.inplace = False
        yield
    finally:
        for layer in changed:
            layer.inplace = True


def read_again(model: nn.Module, images: torch.Tensor) -> set[str]:
    """Return the names of the layers in place whose input something else reads afterwards.

    On a copy, each works out of place and its input is filled with NaN then: what reads that
    carries the NaN to the outputs, whatever the weights are.
    """
    try:
        probe = copy.deepcopy(model).eval()
        layers = _in_place(probe)
        for layer in layers.values():
            layer.inplace = False
            layer.train()  # a dropout in evaluation mode gives its input
        before = _outputs(probe, images)
    except Exception:  # no copy can be made, or it does not take the images: training says why
        return set()

    def spoils(names: Iterable[str]) -> bool:
        handles = [layers[name].register_forward_hook(_spoil) for name in names]
        try:
            return not all(map(_equal, before, _outputs(probe, images)))
        finally:
            for handle in handles:
                handle.remove()

    if not spoils(layers):
        return set()
    return {name for name in layers if spoils([name])} or set(layers)


def _in_place(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if getattr(m, "inplace", None) is True}


def _spoil(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    given = inputs[0] if inputs else None
    if isinstance(given, torch.Tensor) and given.data_ptr() != output.data_ptr():
        given.fill_(torch.nan)


def _outputs(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = tree_leaves(model(images.clone()))
    return [value.clone() for value in found if isinstance(value, torch.Tensor)]


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
