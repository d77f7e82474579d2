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
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from ..errors import PruningError, UsageError
from ..models import modes
from .masks import remove_

TOLERANCE = 1e-8
"""Largest difference of two networks in double precision, relative to their outputs' spread."""

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)
_PROBED = 3  # one of so many channels is removed in a trial
_IMAGES = 3  # BatchNorm over two images of one pixel knows only signs


@dataclass(frozen=True)
class Slice:
    """What a group's channels own of one parameter.

    Attributes
    ----------
    parameter
        Its name, as ``features.0.0.weight``.
    layer
        The name of its module.
    kind
        ``out``: filters that make the channels; ``in``: the part of a filter that reads them;
        ``norm``: scales of a normalization; ``bias``; ``scale``: a parameter of another kind.
    dim
        The axis along which the channels lie.
    channels, places
        Channel of the group, and index along `dim`, pairwise. A linear layer after a flattening
        has several places for a channel.
    """

    parameter: str
    layer: str
    kind: str
    dim: int
    channels: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Channels that layers share, so that they are removed together.

    Attributes
    ----------
    name
        The first layer that makes these channels.
    root
        The layer that Torch-Pruning starts from.
    channels
        How many.
    parts
        Into how many equal parts a grouped convolution divides them; each part must lose as many
        as every other. 1 without one.
    slices
        What the channels own of each parameter.
    """

    name: str
    root: str
    channels: int
    parts: int
    slices: tuple[Slice, ...]

    @property
    def units(self) -> int:
        """How many can be removed one by one: a unit has one channel of each part."""
        return self.channels // self.parts

    @property
    def makers(self) -> tuple[str, ...]:
        """The layers that make the channels, in the network's order."""
        return tuple(dict.fromkeys(s.layer for s in self.slices if s.kind == "out"))

    def channels_of(self, units: Sequence[int]) -> list[int]:
        """Return the channels of these units."""
        return sorted(part * self.units + unit for part in range(self.parts) for unit in units)

    def rows(self, part: Slice, values: torch.Tensor) -> torch.Tensor:
        """Return what each unit owns of a tensor shaped as the parameter, (units, elements).

        Where one owns less than another, as after a slice, zeros fill its row.
        """
        owned: list[list[int]] = [[] for _ in range(self.units)]
        for channel, place in zip(part.channels, part.places, strict=True):
            owned[channel % self.units].append(place)
        width = max(map(len, owned))
        at = torch.tensor([places + [0] * (width - len(places)) for places in owned])
        there = torch.tensor([[i < len(places) for i in range(width)] for places in owned])
        rows = values.movedim(part.dim, 0).reshape(values.shape[part.dim], -1)
        found = rows[at.to(values.device)] * there.to(values.device)[..., None]
        return found.reshape(self.units, -1)

    def mask_(self, masks: dict[str, torch.Tensor], units: Sequence[int]) -> None:
        """Set what these units own to 0 in `masks`, (parameter name -> tensor of its shape)."""
        removed = set(self.channels_of(units))
        for part in self.slices:
            places = [p for c, p in zip(part.channels, part.places, strict=True) if c in removed]
            index = torch.tensor(places, dtype=torch.long, device=masks[part.parameter].device)
            masks[part.parameter].index_fill_(part.dim, index, 0)


@dataclass(frozen=True)
class Refusal:
    """Layers that are left as they are, and why."""

    layers: tuple[str, ...]
    reason: str


def coupled(model: nn.Module, example: torch.Tensor) -> tuple[list[Group], list[Refusal]]:
    """Return the groups of channels that can be removed from a network, and what is refused.

    Parameters
    ----------
    model
        Any network of one image tensor; masks of `labutils.prune` on it are looked through.
    example
        An input, (n, channels, height, width); only its shape matters.

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
    groups, refused = _found(plain, example[:1])
    trial = conditioned(plain, example)
    kept = _sound(trial, groups, refused)
    order = {name: i for i, (name, _) in enumerate(plain.named_modules())}
    refused.sort(key=lambda r: order.get(r.layers[0], 0))
    return sorted(kept, key=lambda g: order[g.name]), refused


def unmasked(model: nn.Module) -> Any:
    """Return a copy of a network with its masks taken off: the weights as they were before.

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
    return plain


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
    requires = {name: p.requires_grad for name, p in network.named_parameters()}
    with _traced(network, example) as graph:
        for root, channels in removed.items():
            layer = network.get_submodule(root)
            cut = graph.get_pruner_of_module(layer).prune_out_channels
            graph.get_pruning_group(layer, cut, list(channels)).prune(record_history=False)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(requires[name])


def departure(
    a: nn.Module, b: nn.Module, inputs: torch.Tensor, *, batch_norm: bool = False
) -> float:
    """Return the largest difference of two networks' outputs, in units of the outputs' spread.

    Parameters
    ----------
    a, b
        In double precision, as `inputs` are.
    inputs
        At least two.
    batch_norm
        Whether BatchNorm takes the statistics of these inputs instead of those it keeps, which
        then change. That brings out the signal where statistics were never measured.

    Returns
    -------
    float
        NaN where the outputs have another shape or are the same for every input.
    """
    ours, theirs = (outputs(network, inputs, batch_norm=batch_norm) for network in (a, b))
    if ours.shape != theirs.shape or not ours.isfinite().all():
        return float("nan")
    spread = (ours - ours.mean(0)).abs().max()
    return float((ours - theirs).abs().max() / spread) if spread > 0 else float("nan")


def outputs(network: nn.Module, inputs: torch.Tensor, *, batch_norm: bool = False) -> torch.Tensor:
    """Return what a network computes in evaluation mode, all of its outputs as (n, values).

    With `batch_norm`, BatchNorm takes the statistics of these inputs.
    """
    with modes.evaluating(network), torch.no_grad():
        for module in network.modules() if batch_norm else ():
            module.training = isinstance(module, _BatchNorm)
        found = network(inputs)
    tensors = found if isinstance(found, (tuple, list)) else [found]
    return torch.cat([t.flatten(1) for t in tensors], 1)


# ------------------------------------------------------------ Torch-Pruning's graph


@contextlib.contextmanager
def _traced(network: nn.Module, example: torch.Tensor) -> Iterator[Any]:
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
            raise PruningError(
                f"{type(network).__name__} cannot be traced on an input {tuple(example.shape)}: "
                f"{(str(error).strip() or type(error).__name__).splitlines()[0]} Pass the shape "
                "that it takes (size=, or example=)."
            ) from None
        yield graph
    for module, mode in training.items():
        module.training = mode


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


def _found(plain: nn.Module, example: torch.Tensor) -> tuple[list[Group], list[Refusal]]:
    """Return Torch-Pruning's groups, those refused left out whose reason can be seen in them."""
    network = copy.deepcopy(plain)
    shared = _tied(network)
    groups: list[Group] = []
    refused: list[Refusal] = []
    with _traced(network, example) as graph:
        for found, told in _followed(graph):
            if found is None:
                refused.append(told)
                continue
            group, reason = _group(graph, found, shared)
            if reason:
                refused.append(Refusal(group.makers or (group.root,), reason))
            else:
                groups.append(group)
    return groups, refused


def _followed(graph: Any) -> Iterator[tuple[Any, Any]]:
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


def _tied(network: nn.Module) -> dict[str, str]:
    """Return, by name, why a parameter that several layers share cannot lose channels."""
    owners: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return {
        name: f"{' and '.join(names)} are one tied weight, which cannot be cut for one of them"
        for names in owners.values()
        if len(names) > 1
        for name in names
    }


# ------------------------------------------------------------ trials


def conditioned(plain: nn.Module, example: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    """Return the network in double precision with weights that hide nothing, and inputs.

    Its own may hide a difference: a scale that begins at zero, statistics never measured.
    """
    network = copy.deepcopy(plain).double().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim > 1:
                values /= max(1, parameter[0].numel()) ** 0.5
            parameter.copy_((1 + 0.3 * values) if parameter.ndim == 1 else values)
    shape = (_IMAGES, *example.shape[1:])
    return network, torch.randn(shape, generator=generator, dtype=torch.float64)


def _sound(
    trial: tuple[nn.Module, torch.Tensor], groups: list[Group], refused: list[Refusal]
) -> list[Group]:
    """Return the groups that can be removed, found by halving; add the others to `refused`."""
    if not groups:
        return []
    why = _why_not(trial, groups)
    if not why:
        return groups
    if len(groups) == 1:
        refused.append(Refusal(groups[0].makers or (groups[0].root,), why))
        return []
    half = len(groups) // 2
    return _sound(trial, groups[:half], refused) + _sound(trial, groups[half:], refused)


def _why_not(trial: tuple[nn.Module, torch.Tensor], groups: Sequence[Group]) -> str:
    """Remove a third of these groups' channels; return what is wrong with the result.

    An odd number of channels here and there: halves that a split makes must not stay equal.
    """
    generator = torch.Generator().manual_seed(0)
    units = {}
    for group in groups:
        count = min(group.units - 1, group.units // _PROBED | 1)
        units[group.name] = torch.randperm(group.units, generator=generator)[:count].tolist()
    try:
        found = trial_departure(trial, groups, units)
    except Exception as error:  # whatever a foreign forward method raises for other widths
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"the network does not run with fewer of its channels: {said[:160]}"
    if found != found:
        return "without some of its channels the network's outputs have another shape"
    if found > TOLERANCE:
        return (
            "without some of its channels the network computes something else than with zeros in "
            f"their place (by {found:.2g} of its outputs' spread)"
        )
    return ""


def trial_departure(
    trial: tuple[nn.Module, torch.Tensor],
    groups: Sequence[Group],
    units: Mapping[str, Sequence[int]],
) -> float:
    """Return the `departure` of a network without units of its groups from one with zeros there.

    Parameters
    ----------
    trial
        What `conditioned` returns.
    groups, units
        What goes, by group's name.
    """
    network, inputs = trial
    smaller, zeroed = copy.deepcopy(network), copy.deepcopy(network)
    masks = {name: torch.ones_like(p) for name, p in zeroed.named_parameters()}
    for group in groups:
        group.mask_(masks, units[group.name])
    with torch.no_grad():
        for name, parameter in zeroed.named_parameters():
            parameter.mul_(masks[name])
    cut_(smaller, inputs[:1], {g.root: g.channels_of(units[g.name]) for g in groups})
    return departure(zeroed, smaller, inputs, batch_norm=True)
