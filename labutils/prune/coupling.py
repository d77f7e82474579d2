"""Which layers share channels: the groups of channels that can only be removed together.

A channel of a convolution is also a channel of its BatchNorm, of the depthwise convolution after
it, of the gate of a squeeze-excitation, of every layer that a residual sum joins to it, and of the
layers that read it. Torch-Pruning finds these from the autograd graph (Fang et al. 2023, DepGraph:
Towards Any Structural Pruning). What it finds is then tried: on random weights, in double
precision, a network without a third of a group's channels must compute what the network with
zeros in their place computes. A group for which that is not so (attention, a channel shuffle, a
norm over channels) is refused, with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from ..errors import UsageError
from .groups import Group, Refusal, Slice
from .masks import remove_, tied
from .tracing import followed, traced
from .trials import conditioned, sound

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)


def coupled(model: nn.Module, example: torch.Tensor) -> tuple[list[Group], list[Refusal]]:
    """Return the groups of channels that can be removed from a network, and what is refused.

    Parameters
    ----------
    model
        Any network of one image tensor; masks of `labutils.prune` on it are looked through.
    example
        An input, (n, channels, height, width), of which only the shape matters.

    Returns
    -------
    groups, refusals
        In the network's order.

    Raises
    ------
    PruningError
        The network does not run on such an input, or cannot be traced.
    """
    plain = unmasked(model)
    some = next(plain.parameters(), torch.empty(0))
    example = torch.zeros(example.shape, device=some.device)
    groups, refused = _found(plain, example[:1])
    trial = conditioned(plain, example)
    kept = sound(trial, groups, refused)
    order = {name: i for i, (name, _) in enumerate(plain.named_modules())}
    refused.sort(key=lambda r: order.get(r.layers[0], 0))
    return sorted(kept, key=lambda g: order[g.name]), refused


def unmasked(model: nn.Module) -> Any:
    """Return a copy of a network in float32 with its masks taken off: the weights below them.

    Raises
    ------
    UsageError
        A weight is computed by something other than a mask.
    """
    plain = copy.deepcopy(model)
    remove_(plain, zeros=False)
    for name, module in plain.named_modules():
        if parametrize.is_parametrized(module):
            chains: Any = module.parametrizations
            kinds = {type(part).__name__ for chain in chains.values() for part in chain}
            raise UsageError(
                f"The weights of {name} are computed by {', '.join(sorted(kinds))}. Plan and "
                "remove channels first, then quantize (qat.prepare) or parametrize."
            )
    return plain.float()  # what half precision cannot compute everywhere


def _found(plain: nn.Module, example: torch.Tensor) -> tuple[list[Group], list[Refusal]]:
    """Return Torch-Pruning's groups, those refused left out whose reason can be seen in them."""
    network = copy.deepcopy(plain)
    shared = tied(network)
    groups: list[Group] = []
    refused: list[Refusal] = []
    with traced(network, example) as graph:
        for found, told in followed(graph):
            if found is None:
                refused.append(told)
                continue
            group, reason = _group(graph, found, shared)
            if reason:
                refused.append(Refusal(group.makers or (group.root,), reason))
            else:
                groups.append(group)
    return groups, refused


def _group(graph: Any, found: Any, shared: dict[str, str]) -> tuple[Group, str]:
    """Return one of Torch-Pruning's groups as ours, and why it is refused, if it is."""
    names = {module: name for name, module in graph.model.named_modules()}
    root = found[0].dep.target.module
    slices: list[Slice] = []
    parts, reason = 1, ""
    for item in found.items:
        module, out = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
        if out and not item.dep.target.outputs:
            reason = "its channels are the network's outputs"
        pairs = tuple(item.root_idxs), tuple(item.idxs)
        if isinstance(module, nn.Parameter):
            name = graph._param_to_name[module]
            layer = name.rpartition(".")[0]
            slices.append(Slice(name, layer, "scale", item.dep.target.pruning_dim, *pairs))
        elif isinstance(module, (_ConvNd, nn.Linear)):
            slices += _weighted(names[module], module, out, pairs)
            parts = max(parts, _parts(module))
        elif isinstance(module, (_BatchNorm, _InstanceNorm, nn.PReLU)):
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.numel() > 1:
                    kind = "bias" if key == "bias" else "norm"
                    slices.append(Slice(f"{names[module]}.{key}", names[module], kind, 0, *pairs))
        else:
            reason = reason or _obstacle(module, names.get(module, ""))
    tied = next((shared[s.parameter] for s in slices if s.parameter in shared), "")
    slices.sort(
        key=lambda s: list(names.values()).index(s.layer) if s.layer in names.values() else 0
    )
    channels = len(set(found[0].root_idxs))
    parts = math.lcm(parts, _repeats(graph, root, channels))
    group = Group(_first(slices, names[root]), names[root], channels, parts, tuple(slices))
    if channels // parts < 2:
        reason = reason or "it has one channel"
    if channels % parts:
        reason = reason or f"its {channels} channels do not divide into {parts} equal parts"
    return group, reason or tied


def _repeats(graph: Any, root: nn.Module, channels: int) -> int:
    """Return into how many parts channels repeat: one takes its copies in the others along.

    A concatenation of a tensor with what a depthwise convolution made of it (GhostNet) has two.
    """
    cut = graph.get_pruner_of_module(root).prune_out_channels
    with contextlib.suppress(IndexError, ZeroDivisionError):
        for item in graph.get_pruning_group(root, cut, [0]).items:
            found = sorted(set(item.idxs))
            is_root = item.dep.target.module is root
            if is_root and graph.is_out_channel_pruning_fn(item.dep.handler) and len(found) > 1:
                step, rest = divmod(channels, len(found))
                if not rest and found == list(range(0, channels, step)):
                    return len(found)
    return 1


def _weighted(
    name: str, module: Any, out: bool, pairs: tuple[tuple[int, ...], tuple[int, ...]]
) -> list[Slice]:
    """Return what the channels own of a convolution or a linear layer."""
    channels, places = pairs
    depthwise = _is_depthwise(module)
    if out or depthwise:
        dim = 1 if getattr(module, "transposed", False) and not depthwise else 0
        made = [Slice(f"{name}.weight", name, "out", dim, channels, places)]
        if module.bias is not None:
            made.append(Slice(f"{name}.bias", name, "bias", 0, channels, places))
        return made
    dim = 0 if getattr(module, "transposed", False) else 1
    per_part = (
        module.in_channels if isinstance(module, _ConvNd) else module.in_features
    ) // _parts(module)
    if _parts(module) > 1:  # every part reads other channels by the same indices
        first = [(c, p) for c, p in zip(channels, places, strict=True) if p < per_part]
        channels, places = tuple(c for c, _ in first), tuple(p for _, p in first)
    return [Slice(f"{name}.weight", name, "in", dim, channels, places)]


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and module.groups == module.out_channels > 1


def _parts(module: nn.Module) -> int:
    grouped = isinstance(module, _ConvNd) and not _is_depthwise(module)
    return module.groups if grouped else 1  # type: ignore[return-value]


def _first(slices: Sequence[Slice], root: str) -> str:
    makers = [s.layer for s in slices if s.kind == "out"]
    return makers[0] if makers else root


def _obstacle(module: Any, name: str) -> str:
    """Return why a group that holds this module or operation is refused; nothing if it is not."""
    kind = type(module).__name__
    if isinstance(module, _NORMS):
        return f"{name} ({kind}) normalizes over the channels, so removing some changes the others"
    if isinstance(module, nn.MultiheadAttention):
        return f"{name} is attention, whose heads are not taken apart"
    if kind.startswith("_"):  # an operation without parameters
        return ""
    return f"{name} ({kind}) is not of a kind whose channels can be removed"
