"""Which channels matter least: a criterion gives every unit of a group a score, high to keep.

A criterion is any function ``criterion(group, weights) -> scores`` with `weights` by parameter
name and one score per unit (`Group.units`); the user's own is passed like those here::

    def spread(group, weights):
        parts = [s for s in group.slices if s.kind == "out"]
        return sum(group.rows(s, weights[s.parameter]).var(1) for s in parts)

    prune.plan(model, criterion=spread)

Here the scores of every layer are divided by their mean, so that layers of any size have an equal
say in a group, and groups can be compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..errors import UnknownNameError, UsageError
from ..models import modes
from .groups import Group
from .masks import weights_of

Criterion = Callable[[Group, Mapping[str, torch.Tensor]], torch.Tensor]

_TIE = 1e-6  # BatchNorm scales that were never trained are all 1


def l1(group: Group, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sum of magnitudes of what makes and what reads a channel (Li et al. 2017)."""
    return _mean(group.rows(s, weights[s.parameter]).abs().sum(1) for s in _filters(group))


def l2(group: Group, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Euclidean norm of what makes and what reads a channel."""
    return _mean(group.rows(s, weights[s.parameter]).norm(dim=1) for s in _filters(group))


def bn_scale(group: Group, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Magnitude of the BatchNorm scale (Liu et al. 2017, Network Slimming).

    A group without BatchNorm, and channels of equal scale, are rated by L1.
    """
    norms = [s for s in group.slices if s.kind == "norm"]
    if not norms:
        return l1(group, weights)
    scales = _mean(group.rows(s, weights[s.parameter]).abs().mean(1) for s in norms)
    return scales + _TIE * l1(group, weights)


def fpgm(group: Group, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Distance to all other filters of the layer: near the median is redundant (He et al. 2019)."""
    made = [s for s in group.slices if s.kind == "out"]
    rows = [group.rows(s, weights[s.parameter]) for s in made]
    return _mean(torch.cdist(r, r).sum(1) for r in rows)


CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "bn_scale": bn_scale, "fpgm": fpgm}
"""Criteria that need no data, by name."""


def name_of(criterion: str | Criterion) -> str:
    """Return what a plan says of a criterion; one of the user's own never has the name of ours."""
    name = getattr(criterion, "__name__", str(criterion))
    ours = criterion == name or CRITERIA.get(name, criterion) is criterion
    return name if ours else f"own {name}"


def find(criterion: str | Criterion) -> Criterion:
    """Return a criterion by its name, or the user's own as it is."""
    if callable(criterion):
        return criterion
    if criterion == "taylor":
        raise UsageError(
            "The criterion taylor rates on data: pass "
            "criterion=prune.taylor(model, inputs, labels)."
        )
    if criterion not in CRITERIA:
        raise UnknownNameError("criterion", criterion, [*CRITERIA, "taylor"])
    return CRITERIA[criterion]


def taylor(
    model: nn.Module,
    inputs: np.ndarray | torch.Tensor,
    labels: np.ndarray | torch.Tensor | None = None,
    *,
    batch_size: int = 32,
) -> Criterion:
    """Return a criterion from data: by how much the loss would change without a channel.

    First order, squared, and summed over a channel's weights (Molchanov et al. 2019, equation 8).

    Parameters
    ----------
    model
        The network to be pruned, in evaluation mode for this; its gradients stay as they are.
    inputs
        (n, channels, height, width) float32, as the network takes them.
    labels
        (n,) classes; without, the network's own answers stand in for them.
    batch_size
        Images per gradient. The squares of different batches add up.

    Raises
    ------
    UsageError
        There is no input, or another number of labels.
    """
    images = torch.as_tensor(np.asarray(inputs) if not torch.is_tensor(inputs) else inputs)
    if not len(images) or (labels is not None and len(labels) != len(images)):
        told = "no labels" if labels is None else f"{len(labels)} labels"
        raise UsageError(f"Taylor needs images, and a label for each: {len(images)} and {told}.")
    trained = weights_of(model)
    asked = {name: p.requires_grad for name, p in trained.items()}
    squares = {name: torch.zeros_like(p) for name, p in trained.items()}
    try:
        for parameter in trained.values():
            parameter.requires_grad_(parameter.is_floating_point())
        with modes.evaluating(model), torch.enable_grad():
            for start in range(0, len(images), batch_size):
                part = slice(start, start + batch_size)
                logits = model(images[part].to(next(model.parameters())))
                wanted = logits.argmax(1) if labels is None else torch.as_tensor(labels[part])
                loss = F.cross_entropy(logits, wanted.to(logits.device, torch.long))
                found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
                for name, gradient in zip(trained, found, strict=True):
                    if gradient is not None:
                        squares[name] += (gradient * trained[name].detach()).square()
    finally:
        for name, parameter in trained.items():
            parameter.requires_grad_(asked[name])

    def criterion(group: Group, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        rated = [s for s in group.slices if s.kind in ("out", "norm", "scale")]
        return _mean(group.rows(s, squares[s.parameter]).sum(1) for s in rated)

    criterion.__name__ = "taylor"
    return criterion


def scores(criterion: Criterion, group: Group, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return what a criterion says of a group's units, checked, (units,) float64 on the CPU.

    Raises
    ------
    UsageError
        A criterion of the user's did not return one finite number per unit.
    """
    with torch.no_grad():
        found = torch.as_tensor(criterion(group, weights)).detach().cpu().double()
    if found.shape != (group.units,) or not found.isfinite().all():
        name = getattr(criterion, "__name__", type(criterion).__name__)
        raise UsageError(
            f"The criterion {name} returned {tuple(found.shape)} for {group.name}, or values that "
            f"are not finite; it must return one finite score for each of {group.units} units."
        )
    return found


def _filters(group: Group) -> list:
    return [s for s in group.slices if s.kind in ("out", "in")]


def _mean(rated: Iterable[torch.Tensor]) -> torch.Tensor:
    parts = [scores / scores.mean().clamp(min=torch.finfo(scores.dtype).tiny) for scores in rated]
    return torch.stack(parts).mean(0)
