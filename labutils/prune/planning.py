"""Decides what a network loses: which channels of which layers, or which single weights."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from ..errors import PruningError, UnknownNameError, UsageError
from . import criteria, single_weights
from .cost import Cost, measured
from .coupling import coupled
from .criteria import Criterion
from .groups import Group, Refusal
from .masks import tied, weights_of
from .report import ChannelPlan, Channels, Plan, WeightPlan, channel_masks, weight_masks
from .single_weights import Layer

Ratio = float | Mapping[str, float]
Size = int | tuple[int, ...]

SCOPES = ("layer", "global")
DEFAULT_SIZE = 96  # pixels, as `qat.prepare` has it


def plan(
    model: nn.Module,
    method: str = "channels",
    *,
    ratio: Ratio = 0.3,
    criterion: str | Criterion = "l1",
    scope: str = "layer",
    exclude: Sequence[str] = (),
    multiple: int = 8,
    size: Size = DEFAULT_SIZE,
) -> Plan:
    """Plan what a network loses, without changing it; `apply_masks_` carries it out.

    Parameters
    ----------
    model
        A network of one image tensor. Masks that it has are looked through.
    method
        ``channels``: channels of coupled layers, which `removed` takes out. ``unstructured``:
        single weights. ``n:m``, such as ``2:4`` or ``41:64``: n zeros in every m weights along the
        input channels.
    ratio
        Share of the channels, or of the weights, that goes, 0 to below 1. By layer as a dictionary
        of globs: the first that matches the layer holds, and layers that none matches stay. Not
        used with n:m.
    criterion
        How channels are rated: ``l1``, ``l2``, ``bn_scale``, ``fpgm``, what `taylor` returns, or a
        function ``criterion(group, weights)`` (see `labutils.prune.criteria`).
    scope
        ``layer``: each group of channels, or each layer, loses its ratio. ``global``: all of one
        ratio are ranked together, and those that matter least lose more.
    exclude
        Globs of layers that stay as they are. Channels stay if any layer that makes them does.
    multiple
        Widths of groups become multiples of this, as vector units read them; a group that is
        narrower stays. 1 for none.
    size
        Side of the input in pixels, or its whole shape (n, channels, height, width). Costs are
        counted for it.

    Returns
    -------
    Plan
        Prints what goes where, what stays and why, and what that saves.

    Raises
    ------
    PruningError
        Nothing can go, or the network cannot be traced.
    UnknownNameError
        A method, a criterion, a scope, or a glob that no layer matches.
    UsageError
        A ratio outside of 0 to 1, or a criterion that does not rate every unit.
    """
    _check(ratio, scope)
    refuse_multiple(multiple)
    _refuse_globs(model, ratio if isinstance(ratio, Mapping) else ())
    shape = input_shape(size)
    settings = {
        "ratio": ratio if isinstance(ratio, (int, float)) else dict(ratio),
        "criterion": criteria.name_of(criterion),
        "scope": scope, "exclude": list(exclude), "multiple": multiple,
    }  # fmt: skip
    made: Plan
    if method == "channels":
        rated = Rated(model, criteria.find(criterion), shape, exclude)
        made = rated.plan(settings, ratio, scope, multiple)
    elif method == "unstructured" or ":" in method:
        made = _of_weights(model, method, settings, shape)
    else:
        raise UnknownNameError(
            "pruning method", method, ("channels", "unstructured", "2:4", "41:64")
        )
    if all(made.stays[name] == made.cost.elements[name] for name in made.stays):
        raise PruningError(
            f"Nothing of {made.network} would go: the ratio is too small for its layers"
            + (f" at widths that are multiples of {multiple}" if multiple > 1 else "")
            + ". Raise ratio, or lower multiple."
        )
    return made


def input_shape(size: Size) -> tuple[int, ...]:
    """Return the shape that `size` means: a side of RGB images, or the shape itself."""
    return (1, 3, size, size) if isinstance(size, int) else tuple(size)


def _check(ratio: Ratio, scope: str) -> None:
    for value in ratio.values() if isinstance(ratio, Mapping) else [ratio]:
        if not 0 <= value < 1:
            raise UsageError(f"A ratio is a share from 0 to below 1, not {value}.")
    if scope not in SCOPES:
        raise UnknownNameError("scope", scope, SCOPES)


def refuse_multiple(multiple: int) -> None:
    """Refuse what no width can be a multiple of."""
    if multiple < 1:
        raise UsageError(f"Widths become multiples of 1 or more, not of {multiple}.")


def _refuse_globs(model: nn.Module, globs: Iterable[str]) -> None:
    """Refuse a glob that no layer matches."""
    if isinstance(globs, str):
        raise UsageError(f"exclude is a list of globs: [{globs!r}].")
    layers = [layer.name for layer in single_weights.layers_of(model)]
    for glob in globs:
        if not any(fnmatch.fnmatchcase(name, glob) for name in layers):
            raise UnknownNameError("layer", glob, layers)


def _ratio_of(ratio: Ratio, layers: Sequence[str]) -> float:
    if not isinstance(ratio, Mapping):
        return ratio
    matching = (
        share
        for glob, share in ratio.items()
        if any(fnmatch.fnmatchcase(name, glob) for name in layers)
    )
    return next(matching, 0.0)


def _excluded(layers: Sequence[str], exclude: Sequence[str]) -> str:
    """Return the glob that keeps one of these layers; nothing without one."""
    return next((g for g in exclude if any(fnmatch.fnmatchcase(name, g) for name in layers)), "")


# ------------------------------------------------------------ channels


class Rated:
    """The groups of a network, rated; plans of any ratio follow without tracing it again.

    Parameters
    ----------
    model
        The network.
    criterion
        What rates the channels.
    shape
        Of the input.
    exclude
        Globs of layers that stay.

    Raises
    ------
    PruningError
        No channel can go, or the network cannot be traced.
    UnknownNameError
        A glob that no layer matches.
    UsageError
        A criterion that does not rate every unit.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        shape: tuple[int, ...],
        exclude: Sequence[str] = (),
    ) -> None:
        _refuse_globs(model, exclude)
        self.criterion = criterion
        found, left = coupled(model, torch.zeros(shape))
        self.network, self.cost = type(model).__name__, measured(model, shape)
        self.weights = {name: p.detach().float() for name, p in weights_of(model).items()}
        self.groups: list[Group] = []
        self.left = left
        for group in found:
            if glob := _excluded(group.makers or (group.root,), exclude):
                self.left.append(Refusal(group.makers or (group.root,), f"excluded by {glob}"))
            else:
                self.groups.append(group)
        if not self.groups:
            reasons = "; ".join(dict.fromkeys(refusal.reason for refusal in self.left))
            reasons = reasons or "it has no convolution and no linear layer"
            raise PruningError(f"No channel of {self.network} can go: {reasons}.")
        self.scores = [criteria.scores(criterion, g, self.weights) for g in self.groups]

    def plan(
        self, settings: Mapping[str, object], ratio: Ratio, scope: str, multiple: int
    ) -> ChannelPlan:
        """Return the plan of a ratio."""
        ratios = [_ratio_of(ratio, g.makers or (g.root,)) for g in self.groups]
        wanted = self._together(ratios) if scope == "global" else [
            ratio * group.units for ratio, group in zip(ratios, self.groups, strict=True)
        ]  # fmt: skip
        parts = []
        for group, scores, units in zip(self.groups, self.scores, wanted, strict=True):
            order = tuple(torch.argsort(scores, stable=True).tolist())
            parts.append(Channels(group, order, rounded(group, units, multiple)))
        stays = {name: int(mask.sum()) for name, mask in channel_masks(parts, self.weights).items()}
        return ChannelPlan(
            self.network, "channels", settings, self.cost, stays, tuple(self.left), tuple(parts),
            self.criterion,
        )  # fmt: skip

    def _together(self, ratios: Sequence[float]) -> list[float]:
        """Return how many units of each group are among the least of all groups of its ratio."""
        wanted = [0.0] * len(ratios)
        for ratio in dict.fromkeys(ratios):
            those = [i for i, r in enumerate(ratios) if r == ratio]
            scores = torch.cat([self.scores[i] for i in those])
            owner = torch.cat([torch.full((self.groups[i].units,), i) for i in those])
            width = torch.tensor([self.groups[i].parts for i in owner.tolist()])
            order = torch.argsort(scores, stable=True)
            gone = width[order].cumsum(0) <= ratio * int(width.sum())
            for i in owner[order][gone].tolist():
                wanted[i] += 1
        return wanted


def rounded(group: Group, units: float, multiple: int) -> int:
    """Return how many units go so that the width that stays is a multiple, the nearest one.

    Examples
    --------
    >>> rounded(Group("conv", "conv", 64, 1, ()), 0.3 * 64, 8)  # 44.8 stay, which becomes 48
    16
    >>> rounded(Group("conv", "conv", 12, 1, ()), 6, 8), rounded(Group("a", "a", 6, 1, ()), 3, 8)
    (4, 0)
    """
    step = math.lcm(multiple, group.parts) // group.parts  # in units
    if group.units <= step or units <= 0:
        return 0
    stay = max(step, math.floor((group.units - units) / step + 0.5) * step)
    return max(0, group.units - stay)


# ------------------------------------------------------------ single weights


def _of_weights(
    model: nn.Module, method: str, settings: Mapping, shape: tuple[int, ...]
) -> WeightPlan:
    pattern = single_weights.pattern(method) if ":" in method else None
    cost = measured(model, shape)
    _refuse_globs(model, settings["exclude"])
    weights = {name: p.detach() for name, p in weights_of(model).items()}
    chosen: list[Layer] = []
    ratios: dict[str, float] = {}
    shared, left = tied(model), _unseen(model, cost)
    for layer in single_weights.layers_of(model):
        ratio = pattern[0] / pattern[1] if pattern else _ratio_of(settings["ratio"], [layer.name])
        reason = shared.get(layer.parameter)
        if reason := reason or _stays(layer, pattern, ratio, settings["exclude"]):
            left.append(Refusal((layer.name,), reason))
        else:
            chosen.append(layer)
            ratios[layer.name] = ratio
    if not chosen:
        reasons = "; ".join(dict.fromkeys(r.reason for r in left)) or "it has no weights"
        raise PruningError(f"No weight of {type(model).__name__} can go: {reasons}.")
    used = ("exclude",) if pattern else ("exclude", "ratio", "scope")
    shown = {name: settings[name] for name in used}
    made = WeightPlan(
        type(model).__name__, method, shown, cost, {}, tuple(left), tuple(chosen), ratios, pattern,
        settings["scope"] == "global",
    )  # fmt: skip
    stays = {name: int(mask.sum()) for name, mask in weight_masks(made, weights).items()}
    return dataclasses.replace(made, stays=stays)


def _unseen(model: nn.Module, cost: Cost) -> list[Refusal]:
    """Return the weights that cost MACs and that no mask of single weights knows."""
    known = {layer.parameter for layer in single_weights.layers_of(model)}
    reason = "its weight is none of a convolution, a linear layer or torch's attention"
    return [Refusal((name,), reason) for name in cost.macs if name not in known]


def _stays(
    layer: Layer, pattern: tuple[int, int] | None, ratio: float, exclude: Sequence[str]
) -> str:
    """Return why a layer keeps all of its weights; nothing if it does not."""
    if glob := _excluded([layer.name], exclude):
        return f"excluded by {glob}"
    if pattern is None:
        return "" if ratio > 0 else "no ratio is given for it"
    if layer.inputs == 1:
        return "depthwise: each filter reads one channel"
    if not single_weights.zeros_of(layer.inputs, *pattern):
        return f"{layer.inputs} input channels are too few for a zero"
    return ""
