"""A plan of channels as a file: which channels of which layers go, so that it is made only once.

A pruned network is its original, a plan and the weights that were trained; `read_plan` brings the
plan back onto the original, and refuses one that was made for other layers::

    prune.write_plan(plan, "half.yaml")
    plan = prune.read_plan("half.yaml", model)
    prune.apply_masks_(model, plan)
    smaller = prune.removed(model).network
    smaller.load_state_dict(weights)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, MinLen
from torch import nn

from .. import located_yaml, paths, untrusted, validation
from ..errors import UsageError, worded
from ..located_yaml import Fail
from .cost import measured
from .coupling import coupled
from .groups import Group, Refusal
from .masks import weights_of
from .report import ChannelPlan, Channels, channel_masks

FORMAT = 1
"""Of the YAML; a newer one is refused."""

_Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class StoredGroup:
    """What a group of channels loses.

    Attributes
    ----------
    group
        Its name: the first layer that makes the channels.
    channels
        How many there are.
    removed
        Numbers of the units that go, least important first, with spaces between them.
    """

    group: str
    channels: _Count
    removed: str


@dataclass(frozen=True)
class StoredPlan:
    """What the file says.

    Attributes
    ----------
    network
        Class of the network that was planned for.
    criterion
        What rated the channels; a schedule rates again by it.
    input_shape
        That costs were counted for.
    groups
        In the network's order, also those that lose nothing.
    """

    network: str
    criterion: str
    input_shape: Annotated[tuple[_Count, ...], MinLen(4)]
    groups: Annotated[tuple[StoredGroup, ...], MinLen(1)]


def write_plan(plan: ChannelPlan, file: str | Path) -> Path:
    """Write a plan of channels as YAML; the file appears at once."""
    stored = StoredPlan(
        plan.network,
        str(plan.settings.get("criterion", "")),
        tuple(plan.cost.shape),
        tuple(
            StoredGroup(p.group.name, p.group.channels, " ".join(map(str, p.order[: p.removed])))
            for p in plan.parts
        ),
    )
    plain = asdict(stored) | {
        "input_shape": list(stored.input_shape), "groups": [asdict(g) for g in stored.groups],
    }  # fmt: skip
    paths.write_text(file, located_yaml.written({"format": FORMAT} | plain))
    return Path(file)


def read_plan(file: str | Path, model: nn.Module) -> ChannelPlan:
    """Read a plan for a network.

    Parameters
    ----------
    file
        What `write_plan` wrote.
    model
        The network that was planned for, or a copy with other weights; masks that it has are
        looked through.

    Raises
    ------
    UsageError
        It cannot be read, is not a plan, or was made for another network; the message names the
        line.
    PruningError
        The network cannot be traced.
    """
    try:
        text = untrusted.text(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read the pruning plan {file}: {worded(error)}.") from None
    name = Path(file).name
    stored, fail = validation.read_as(
        StoredPlan, text, name, "a pruning plan", UsageError, newest=FORMAT, note=True
    )
    shape = stored.input_shape
    groups, left = coupled(model, torch.zeros(shape))
    known = {group.name: group for group in groups}
    parts = tuple(_part(known, stored, i, fail) for i in range(len(stored.groups)))
    planned = {part.group.name for part in parts}
    if len(planned) < len(parts):
        raise fail(("groups",), "a group is given twice")
    rest = [g for g in groups if g.name not in planned]
    left += [Refusal(g.makers or (g.root,), "the plan does not name it") for g in rest]
    weights = {n: p.detach() for n, p in weights_of(model).items()}
    stays = {n: int(mask.sum()) for n, mask in channel_masks(parts, weights).items()}
    settings = {"criterion": stored.criterion, "file": name}
    cost = measured(model, shape)
    return ChannelPlan(stored.network, "channels", settings, cost, stays, tuple(left), parts)


def _part(known: Mapping[str, Group], stored: StoredPlan, i: int, fail: Fail) -> Channels:
    """Return what a group of the file loses, refusing what the network does not have."""
    said, place = stored.groups[i], ("groups", i)
    if said.group not in known:
        raise fail(
            (*place, "group"),
            f"the network has no group {untrusted.shown(said.group)}; it was planned for a "
            f"{untrusted.shown(stored.network)}, with the channels of {', '.join([*known][:3])} "
            "and others",
        )
    group = known[said.group]
    if group.channels != said.channels:
        raise fail(
            (*place, "channels"), f"{said.group} has {group.channels} channels, not {said.channels}"
        )
    words = said.removed.split()
    units = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 10]
    if len(units) < len(words) or len({*units}) < len(units):
        raise fail((*place, "removed"), "expected different whole numbers with spaces between them")
    if any(unit >= group.units for unit in units) or len(units) >= group.units:
        raise fail(
            (*place, "removed"),
            f"{said.group} has {group.units} units, numbered from 0, of which one must stay",
        )
    rest = (unit for unit in range(group.units) if unit not in {*units})
    return Channels(group, (*units, *rest), len(units))
