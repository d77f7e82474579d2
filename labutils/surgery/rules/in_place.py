"""Exact rules: layers that work in place work out of place; dropout keeps its probability."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..forms import ModuleForm, Site
from ..naming import full_name
from ..rule import Rule

if TYPE_CHECKING:
    from torch import nn

_DROPOUTS = tuple(
    f"torch.nn.modules.dropout.{name}"
    for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout")
)


def _make_dropout(old: nn.Dropout) -> nn.Module:
    return type(old)(p=old.p)


def _is_relu(site: Site) -> bool:
    is_relu = full_name(type(site.module)) == "torch.nn.modules.activation.ReLU"
    return is_relu and bool(site.module.inplace)


def _is_dropout(site: Site) -> bool:
    return full_name(type(site.module)) in _DROPOUTS and bool(site.module.inplace)


RELU = Rule(
    name="relu-out-of-place",
    exact=True,
    error="bit-equal",
    source="TI's lite models (edgeai-modeloptimization); in place only saves memory",
    keeps="names, aliases, hooks, train/eval state",
    modules=(ModuleForm(replacement="torch.nn.ReLU", recognizes=_is_relu),),
)

DROPOUT = Rule(
    name="dropout-out-of-place",
    exact=True,
    error="bit-equal",
    source="TI's lite models (edgeai-modeloptimization); in place only saves memory",
    keeps="the probability, names, aliases, hooks, train/eval state",
    modules=(ModuleForm(build=_make_dropout, recognizes=_is_dropout),),
)

RULES = (RELU, DROPOUT)
