"""Optimizers that were built before a network was prepared: their first step raises.

`qat.prepare` makes a copy with separate parameters. An optimizer with those of the float network
would go on without an error, and train nothing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from ...errors import StaleOptimizerError


@dataclass
class _Wrapped:
    """A parameter of a float network that was prepared, and the gradient it was last seen with."""

    name: str
    gradient: TensorWeakRef | None = None
    version: int = 0

    def has_new_gradient(self, parameter: torch.Tensor) -> bool:
        """Whether a backward pass has reached it since this was asked last."""
        gradient = parameter.grad
        if gradient is None:
            self.gradient = None
            return False
        known = self.gradient is not None and self.gradient() is gradient
        new = not known or gradient._version != self.version
        self.gradient, self.version = TensorWeakRef(gradient), gradient._version
        return new and bool(gradient.any())


_wrapped: Any = WeakTensorKeyDictionary()  # parameters of float networks -> `_Wrapped`
_prepared: Any = WeakTensorKeyDictionary()  # parameters of prepared ones


def watch(model: nn.Module, prepared: nn.Module) -> None:
    """Have every optimizer's step checked from now on.

    Parameters
    ----------
    model, prepared
        The float network, and what was made of it.
    """
    _register()
    for name, parameter in model.named_parameters():
        _wrapped[parameter] = _Wrapped(name)
        _wrapped[parameter].has_new_gradient(parameter)
    for parameter in prepared.parameters():
        _prepared[parameter] = True


@functools.cache
def _register() -> None:
    register_optimizer_step_pre_hook(_before)
    register_optimizer_step_post_hook(_after)


def _before(optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
    if not _has_closure(args, kwargs):
        _refuse_stale(optimizer)


def _after(optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
    if _has_closure(args, kwargs):  # which made the gradients during the step
        _refuse_stale(optimizer)


def _has_closure(args: tuple, kwargs: dict[str, Any]) -> bool:
    return any(callable(value) for value in (*args, *kwargs.values()))


def _refuse_stale(optimizer: Optimizer) -> None:
    """Raise when an optimizer holds what was wrapped, and none of it has got a gradient."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held = [p for p in parameters if p in _wrapped]
    if len(held) < len(parameters):  # others as well: a learned weight of a loss, a head
        held = [p for p in held if p.requires_grad]
    if not held or any(p in _prepared for p in parameters):
        return
    moved = [_wrapped[p].has_new_gradient(p) for p in held]  # each is asked
    if any(moved):
        return  # the float network itself is being trained
    names = [_wrapped[p].name for p in held]
    raise StaleOptimizerError(
        f"This {type(optimizer).__name__} was built before qat.prepare: its {len(names)} "
        f"parameters ({', '.join(names[:3])}, ...) belong to the float network, get no gradient, "
        "and the prepared one would not be trained. Build it again from the prepared network's "
        "parameters().",
        names,
    )
