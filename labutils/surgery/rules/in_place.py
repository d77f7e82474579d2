"""Exact rules: layers that work in place work out of place; dropout keeps its probability."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..rule import Rule, Site

if TYPE_CHECKING:
    from torch import nn

_DROPOUTS = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout")


def _relu(_: nn.Module) -> nn.Module:
    from torch import nn

    return nn.ReLU()


def _dropout(old: nn.Module) -> nn.Module:
    return type(old)(p=old.p)


def _is_relu(site: Site) -> bool:
    from torch import nn

    return type(site.module) is nn.ReLU and site.module.inplace


def _is_dropout(site: Site) -> bool:
    name = type(site.module).__name__
    is_torchs = type(site.module).__module__ == "torch.nn.modules.dropout"
    return is_torchs and name in _DROPOUTS and site.module.inplace


RELU = Rule(
    name="relu-out-of-place",
    exact=True,
    error="bit-equal",
    source="TI's lite models (edgeai-modeloptimization); in place is a matter of memory alone",
    keeps="names, aliases, hooks, train/eval state",
    module=_relu,
    recognizes=_is_relu,
)

DROPOUT = Rule(
    name="dropout-out-of-place",
    exact=True,
    error="bit-equal",
    source="TI's lite models (edgeai-modeloptimization); in place is a matter of memory alone",
    keeps="the probability, names, aliases, hooks, train/eval state",
    module=_dropout,
    recognizes=_is_dropout,
)

RULES = (RELU, DROPOUT)
