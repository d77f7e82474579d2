"""A plan as a file: which channels of which layers go, or which share of which weights.

A pruned network is its original, a plan and the weights that were trained; `read_plan` brings the
plan back onto the original, and refuses one that was made for other layers::

    prune.write_plan(plan, "half.yaml")
    plan = prune.read_plan("half.yaml", model)
    prune.apply_masks_(model, plan)
    smaller = prune.removed(model).network
    smaller.load_state_dict(weights)

A plan of single weights has no places: masks follow the magnitudes that a network has.
"""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Interval, MinLen
from torch import nn

from .. import located_yaml, paths, untrusted, validation
from ..errors import PruningError, UsageError, worded
from ..located_yaml import Fail
from . import criteria, planning
from .cost import measured
from .coupling import coupled
from .groups import Group, Refusal
from .masks import weights_of
from .report import ChannelPlan, Channels, Plan, WeightPlan, channel_masks
from .single_weights import layers_of

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
class StoredLayer:
    """A layer of which single weights go.

    Attributes
    ----------
    layer
        Its name.
    zeros
        Their share.
    """

    layer: str
    zeros: Annotated[float, Interval(gt=0, lt=1)]


@dataclass(frozen=True)
class StoredPlan:
    """What the file says.

    Attributes
    ----------
    network
        Class of the network that was planned for.
    input_shape
        That costs were counted for.
    method
        As `prune.plan` has it.
    criterion
        What rated the channels; a schedule rates again by it.
    groups
        In the network's order, also those that lose nothing; of channels.
    scope, layers
        Of single weights.
    """

    network: str
    input_shape: Annotated[tuple[_Count, ...], MinLen(2)]
    method: str = "channels"
    criterion: str = ""
    groups: tuple[StoredGroup, ...] = ()
    scope: str = planning.SCOPES[0]
    layers: tuple[StoredLayer, ...] = ()


def write_plan(plan: Plan, file: str | Path) -> Path:
    """Write a plan as YAML; the file appears at once."""
    told: dict[str, Any] = {
        "network": plan.network, "input_shape": list(plan.cost.shape), "method": plan.method,
    }  # fmt: skip
    if isinstance(plan, ChannelPlan):
        told["criterion"] = str(plan.settings.get("criterion", ""))
        told["groups"] = [
            {"group": p.group.name, "channels": p.group.channels,
             "removed": " ".join(map(str, p.order[: p.removed]))}
            for p in plan.parts
        ]  # fmt: skip
    elif isinstance(plan, WeightPlan):
        told["scope"] = planning.SCOPES[plan.together]
        told["layers"] = [{"layer": x, "zeros": zeros} for x, zeros in plan.ratios.items()]
    paths.write_text(file, located_yaml.written({"format": FORMAT} | told))
    return Path(file)


def read_plan(file: str | Path, model: nn.Module) -> Plan:
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
        The network cannot be traced, which channels need.
    """
    try:
        text = untrusted.text(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read the pruning plan {file}: {worded(error)}.") from None
    name = Path(file).name
    stored, fail = validation.read_as(
        StoredPlan, text, name, "a pruning plan", UsageError, newest=FORMAT, note=True
    )
    return (_channels if stored.method == "channels" else _weights)(stored, model, fail, name)


def _weights(stored: StoredPlan, model: nn.Module, fail: Fail, name: str) -> Plan:
    """Return the plan of single weights that a file says."""
    known = {layer.name for layer in layers_of(model)}
    for i, said in enumerate(stored.layers):
        if said.layer not in known:
            raise fail(
                ("layers", i, "layer"),
                f"the network has no layer {untrusted.shown(said.layer)}; it was planned for a "
                f"{untrusted.shown(stored.network)}",
            )
    zeros = {glob.escape(said.layer): said.zeros for said in stored.layers}
    rest = [glob.escape(layer) for layer in sorted(known - {s.layer for s in stored.layers})]
    try:
        made = planning.plan(
            model, stored.method, ratio=zeros, scope=stored.scope, exclude=rest,
            size=stored.input_shape,
        )  # fmt: skip
    except (UsageError, PruningError) as error:
        raise fail(("method",), str(error).rstrip(".")) from None
    return dataclasses.replace(made, settings={"file": name})


def _channels(stored: StoredPlan, model: nn.Module, fail: Fail, name: str) -> Plan:
    """Return the plan of channels that a file says."""
    if not stored.groups:
        raise fail((), "the key 'groups' is missing, of the channels that go")
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
    return ChannelPlan(
        stored.network, "channels", settings, measured(model, shape), stays, tuple(left), parts,
        criteria.CRITERIA.get(stored.criterion),
    )  # fmt: skip


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
