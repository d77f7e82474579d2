"""Trials: a network without some channels must compute what it computes with zeros there.

They run in double precision and on random weights that hide nothing, so that a difference is one
of structure: rounding is a million times smaller.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from ..models import modes
from .groups import Group, Refusal
from .tracing import cut_

TOLERANCE = 1e-8
"""Largest difference of two networks in double precision, relative to their outputs' spread."""

_PROBED = 3  # a trial removes one channel of three
_IMAGES = 3  # BatchNorm over two images of one pixel knows only signs


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
    tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
    return torch.cat([t.flatten(1).to(inputs.dtype) for t in tensors], 1)


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
    return network, torch.randn(shape, generator=generator, dtype=torch.float64).to(example.device)


def sound(
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
    return sound(trial, groups[:half], refused) + sound(trial, groups[half:], refused)


def _why_not(trial: tuple[nn.Module, torch.Tensor], groups: Sequence[Group]) -> str:
    """Remove a third of these groups' channels; return what is wrong with the result.

    An odd number of channels here and there: halves that a split makes must not stay equal. The
    first and the last are among them: what is written to a range of channels must not move.
    """
    generator = torch.Generator().manual_seed(0)
    units = {}
    for group in groups:
        count = min(group.units - 1, group.units // _PROBED | 1)
        drawn = torch.randperm(group.units, generator=generator).tolist()
        units[group.name] = [*dict.fromkeys([0, group.units - 1, *drawn])][:count]
    try:
        found = trial_departure(trial, groups, units)
    except Exception as error:  # whatever a foreign forward method raises for other widths
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"the network does not run with fewer of its channels: {said[:160]}"
    if found != found:
        return "without some of its channels the network's outputs have another shape"
    if found > TOLERANCE:
        return (
            "without some of its channels the network computes other values than with zeros in "
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
