"""Torch-Pruning's dependency graph of a network: what is coupled, and cutting it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from ..errors import PruningError
from .groups import Refusal


def cut_(network: nn.Module, example: torch.Tensor, removed: Mapping[str, Sequence[int]]) -> None:
    """Remove channels from the layers of a plain network, in place.

    Parameters
    ----------
    network
        Without masks.
    example
        An input of the network.
    removed
        Channels by `Group.root`.
    """
    if not removed:
        return
    requires = {name: p.requires_grad for name, p in network.named_parameters()}
    with traced(network, example) as graph:
        for root, channels in removed.items():
            layer = network.get_submodule(root)
            cut = graph.get_pruner_of_module(layer).prune_out_channels
            graph.get_pruning_group(layer, cut, list(channels)).prune(record_history=False)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(requires[name])


@contextlib.contextmanager
def traced(network: nn.Module, example: torch.Tensor) -> Iterator[Any]:
    """Yield the dependency graph of a network; the modes of its parts are put back afterwards.

    Raises
    ------
    PruningError
        The network does not run on such an input, or cannot be traced.
    """
    import torch_pruning

    network.requires_grad_(True)
    training = {module: module.training for module in network.modules()}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph()
        try:
            graph.build_dependency(network, (example,), verbose=False)
        except ZeroDivisionError:
            _as_elementwise_(graph)
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
            raise _untraceable(network, example, error) from None
        widest = max((side for p in network.parameters() for side in p.shape), default=0)
        with _bounded(widest):
            yield graph
    for module, mode in training.items():
        module.training = mode
        for kept in tree_leaves(_own_values(module)):
            if isinstance(kept, torch.Tensor) and kept.grad_fn is not None:
                kept.detach_()  # a cache, as of LeViT's attention biases: no copy could be made


@contextlib.contextmanager
def _bounded(most: int) -> Iterator[None]:
    """Let Torch-Pruning give up where channels have more indices than any axis of a weight.

    It takes a shuffle, or a window of attention, for a flattening, each of which multiplies them: a
    few of those in a row would take minutes, or all memory.
    """
    from torch_pruning.dependency import index_mapping

    kind = index_mapping._FlattenIndexMapping
    follow = kind.__call__

    def bounded(mapping: Any, indices: Sequence[Any]) -> Sequence[Any]:
        if not mapping.reverse and len(indices) * mapping._stride > most:
            raise IndexError(f"{len(indices) * mapping._stride} indices")
        return follow(mapping, indices)

    kind.__call__ = bounded
    try:
        yield
    finally:
        kind.__call__ = follow


def _own_values(module: nn.Module) -> list[Any]:
    return [value for name, value in vars(module).items() if not name.startswith("_")]


def _untraceable(network: nn.Module, example: torch.Tensor, error: Exception) -> PruningError:
    """Return what to say: the network does not run, or Torch-Pruning cannot follow how it does."""
    name, said = type(network).__name__, _first_line(error).rstrip(".")
    try:
        with torch.no_grad():
            network(example)
    except Exception as refused:  # whatever a foreign forward method raises
        return PruningError(
            f"{name} does not run on an input {tuple(example.shape)}: {_first_line(refused)} "
            "Networks of one image tensor are pruned: pass the shape that it takes (size=)."
        )
    return PruningError(
        f"The channels of {name} cannot be followed ({said}): it splits or joins tensors as "
        "Torch-Pruning does not know. Prune single weights (unstructured, n:m), which are not "
        "coupled."
    )


def _first_line(error: Exception) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return said if said.endswith((".", ":")) else f"{said}."


def _as_elementwise_(graph: Any) -> None:
    """Let reshapes that Torch-Pruning cannot follow pass channels on as they are.

    A channel shuffle is one. The groups that go through it are wrong then, and fail their trial.
    """
    from torch_pruning import ops
    from torch_pruning.dependency import index_mapping

    for node in graph.module2node.values():
        if node.type == ops.OPTYPE.RESHAPE:
            try:
                index_mapping.update_reshape_index_mapping(graph, node)
            except ZeroDivisionError:
                node.type = ops.OPTYPE.ELEMENTWISE
    index_mapping.update_index_mapping(graph)


def followed(graph: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (Torch-Pruning's group, None) of every layer, or (None, why it cannot be followed)."""
    names = {module: name for name, module in graph.model.named_modules()}
    visited: set[Any] = set()
    for layer in list(graph.module2node):
        if not isinstance(layer, (_ConvNd, nn.Linear)) or layer in visited:
            continue
        pruner = graph.get_pruner_of_module(layer)
        channels = list(range(pruner.get_out_channels(layer)))
        try:
            found = graph.get_pruning_group(layer, pruner.prune_out_channels, channels)
        except (IndexError, ZeroDivisionError, TypeError, AttributeError, AssertionError):
            reason = "its channels cannot be followed through a split or a shuffle"
            yield None, Refusal((names[layer],), reason)
            continue
        for item in found.items:
            if graph.is_out_channel_pruning_fn(item.dep.handler):
                visited.add(item.dep.target.module)
        yield found, None
