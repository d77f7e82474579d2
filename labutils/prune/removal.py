"""Removal: channels that are masked in every layer are taken out, and the result is compared."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import tabular
from ..errors import PruningError, UsageError
from .cost import Cost, measured
from .coupling import coupled, unmasked
from .groups import Group, Refusal
from .masks import Mask, masks_of, remove_
from .planning import DEFAULT_SIZE, Size, input_shape
from .tracing import cut_
from .trials import TOLERANCE, conditioned, departure, outputs, trial_departure

_IMAGES = 3
_SMALL = 1e-3  # outputs that vary by less say nothing of a difference


@dataclass(frozen=True, repr=False)
class Removal(tabular.Table):
    """A network without its masks, and how it compares with the masked one.

    Attributes
    ----------
    network
        The smaller network; weights that were masked one by one are zeros in it.
    widths
        By group: channels before and after.
    before, after
        What the masked network costs with all its channels, and the smaller one.
    departure
        Largest difference of the two networks' outputs in double precision, in units of the
        outputs' spread over the images.
    images
        Seeded random images that they were compared on.
    own_weights
        Whether that was on the network's own weights; outputs that vary by less than 1e-3 hide a
        difference, and seeded weights take their place for the comparison.
    zeros
        Zeros among the weights that are left, in layers that have some.
    """

    network: nn.Module
    widths: Mapping[str, tuple[int, int]]
    before: Cost
    after: Cost
    departure: float
    images: int
    own_weights: bool
    zeros: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON but the network."""
        (macs, parameters), (fewer, smaller) = self.before.total(), self.after.total()
        return {
            "widths": {name: list(pair) for name, pair in self.widths.items()},
            "macs": macs, "macs_left": fewer, "parameters": parameters,
            "parameters_left": smaller, "departure": self.departure, "images": self.images,
            "own_weights": self.own_weights,
            "zeros": dict(self.zeros),
        }  # fmt: skip

    def _parts(self) -> tuple[str, Sequence[str], tabular.Rows, Iterable[str]]:
        (macs, parameters), (fewer, smaller) = self.before.total(), self.after.total()
        title = (
            f"{type(self.network).__name__}: {macs / 1e6:,.1f} to {fewer / 1e6:,.1f} M MACs, "
            f"{parameters:,} to {smaller:,} parameters"
        )
        rows = [
            (name, str(a), str(b), f"{100 * (1 - b / a):.0f} %")
            for name, (a, b) in self.widths.items()
        ]
        notes = [
            "It computes what the masked network computes: in double precision the outputs differ "
            f"by at most {self.departure:.1g} of their spread over {self.images} random images."
        ]
        if not self.own_weights:
            notes.append("That is with seeded weights: the network's own outputs hardly vary.")
        if self.zeros:
            notes.append(
                f"{sum(self.zeros.values()):,} weights of {len(self.zeros)} layers are zeros."
            )
        return title, ("group", "channels", "stay", "removed"), rows, notes


def removed(model: nn.Module, *, size: Size = DEFAULT_SIZE) -> Removal:
    """Return a network without its masks: masked channels are gone, other masked weights are 0.

    Parameters
    ----------
    model
        A network with masks (`apply_masks_`); it is left as it is.
    size
        Side of the input in pixels, or its whole shape; any that the network takes.

    Returns
    -------
    Removal
        `Removal.network` is a plain module with the parameters' requires_grad and the modes of
        `model`; build the optimizer again from it.

    Raises
    ------
    PruningError
        A mask is still soft, a channel is masked that cannot go, or the smaller network does not
        compute what the masked one does.
    UsageError
        There are no masks.
    """
    masks = masks_of(model)
    _refuse_unready(model, masks)
    some = next(model.parameters())
    example = torch.zeros(input_shape(size), device=some.device, dtype=some.dtype)
    groups, left = _coupled(model, masks, example)
    gone = {g.name: units for g in groups if (units := _masked_units(g, masks))}
    for group in groups:
        if len(gone.get(group.name, ())) == group.units:
            raise PruningError(f"All channels of {group.name} are masked: nothing would be left.")
    chosen = [(group, gone[group.name]) for group in groups if group.name in gone]
    _refuse_uncut(model, masks, chosen, left)
    network = copy.deepcopy(model)
    remove_(network)
    cut_(network, example[:1], {group.root: group.channels_of(units) for group, units in chosen})
    _restore_modes(network, model)
    found, own = _verified(model, network, example, gone, groups)
    widths = {
        g.name: (g.channels, g.channels - len(gone.get(g.name, ())) * g.parts) for g in groups
    }
    zeros = {
        name: count
        for name, parameter in network.named_parameters()
        if name in masks and parameter.ndim > 1 and (count := int((parameter == 0).sum()))
    }
    before, after = (measured(m, example.shape) for m in (model, network))
    return Removal(network, widths, before, after, found, _IMAGES, own, zeros)


def _verified(
    masked: nn.Module,
    smaller: nn.Module,
    example: torch.Tensor,
    gone: Mapping[str, list[int]],
    groups: Sequence[Group],
) -> tuple[float, bool]:
    """Return by how much two networks' outputs differ, and whether on their own weights.

    The outputs of a network whose statistics were never measured fade to the bias of its last
    layer, in which all are alike: where they vary by less than 1e-3 over the inputs, the same
    channels are taken from a copy with seeded weights and compared.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (_IMAGES, *example.shape[1:])
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64).to(example.device)
    ours, theirs = (copy.deepcopy(m).double() for m in (masked, smaller))
    found, own = departure(ours, theirs, inputs), True
    values = outputs(ours, inputs)
    if gone and values.isfinite().all() and float((values - values.mean(0)).abs().max()) < _SMALL:
        own = False
        chosen = [group for group in groups if group.name in gone]
        found = trial_departure(conditioned(unmasked(masked), example), chosen, gone)
    if found != found:
        raise PruningError(
            "The network's outputs are not finite or changed their shape, so the smaller network "
            "cannot be verified. Check its weights."
        )
    if found > TOLERANCE:
        raise PruningError(
            f"The network without its channels departs from the masked one by {found:.2g} of its "
            "outputs' spread. Exclude the layers that it came from (exclude=), and report this."
        )
    return found, own


def _coupled(
    model: nn.Module, masks: Mapping[str, Mask], example: torch.Tensor
) -> tuple[list[Group], list[Refusal]]:
    """Return the groups of a network; none where no channel is masked, which needs no trace."""
    if not any(_has_whole_slice(mask.keep) for mask in masks.values()):
        return [], []
    try:
        return coupled(model, example)
    except PruningError:
        if any(_of_channels(mask) for mask in masks.values()):
            raise
        return [], []  # single weights, among which are all of a filter's


def _has_whole_slice(keep: torch.Tensor) -> bool:
    """Whether a mask takes all of an index of an axis: a filter, an input channel, a scale."""
    rest = [[d for d in range(keep.ndim) if d != axis] for axis in range(keep.ndim)]
    return any(bool((keep.sum(dims) == 0 if dims else keep == 0).any()) for dims in rest)


def _of_channels(mask: Mask) -> bool:
    """Whether a mask is one of channels: no mask of single weights is on a scale or a bias."""
    return mask.keep.ndim == 1 and not bool(mask.keep.all())


def _refuse_uncut(
    model: nn.Module,
    masks: Mapping[str, Mask],
    gone: Sequence[tuple[Group, list[int]]],
    left: Sequence[Refusal],
) -> None:
    """Refuse to leave channels that are masked throughout in the network without saying so."""
    stays = {name: torch.ones_like(mask.keep) for name, mask in masks.items()}
    for group, units in gone:
        group.mask_(stays, units)
    for name, mask in masks.items():
        if _of_channels(mask) and bool((stays[name] > mask.keep).any()):
            reasons = [f"{', '.join(r.layers)}: {r.reason}" for r in left]
            raise PruningError(
                f"Channels of {name.rpartition('.')[0]} are masked, and cannot be taken out of "
                f"{type(model).__name__} at this size ({'; '.join(reasons) or 'in no group'}). "
                "Plan again for this network and size (prune.plan)."
            )


def _refuse_unready(model: nn.Module, masks: Mapping[str, Mask]) -> None:
    if not masks:
        raise UsageError(
            f"{type(model).__name__} has no masks: call prune.apply_masks_(model, plan) first."
        )
    soft = [name for name, mask in masks.items() if mask.strength != 1]
    if soft:
        strength = float(masks[soft[0]].strength)
        raise PruningError(
            f"The masks are soft ({soft[0]} has strength {strength:.2f}): removing channels now "
            "would change what the network computes. Let the schedule reach its end, or call "
            "prune.apply_masks_(model, plan)."
        )


def _masked_units(group: Group, masks: Mapping[str, Mask]) -> list[int]:
    """Return the units of a group that are masked in every parameter that they own."""
    if any(part.parameter not in masks for part in group.slices):
        return []
    left = torch.zeros(group.units, dtype=torch.long)
    for part in group.slices:
        left += group.rows(part, masks[part.parameter].keep).sum(1).cpu()
    return (left == 0).nonzero().flatten().tolist()


def _restore_modes(network: nn.Module, model: nn.Module) -> None:
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in network.named_modules():
        module.training = modes.get(name, module.training)
