"""Replacing functionals, Tensor methods and aten operators inside a model's forward.

Nothing is traced: PyTorch itself hands every call to a `TorchFunctionMode` while the forward
runs, so dynamic control flow, nested functions and modules without a class of their own are
reached. The mode is baked into the model's ``forward``.
"""

from __future__ import annotations

import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.overrides import TorchFunctionMode

from ..errors import SurgeryError
from . import modules
from .report import Match
from .rule import Rule, full_name, resolve

_TORCH, _HERE = (str(Path(file).parent) + os.sep for file in (torch.__file__, __file__))


class _Functions(TorchFunctionMode):
    """Hears every call of a function in the table; `seen` hears of it, or it is replaced."""

    def __init__(
        self, table: dict[Callable, Rule], seen: Callable[..., None] | None = None
    ) -> None:
        super().__init__()
        self.table, self.seen = table, seen

    def __torch_function__(
        self, func: Callable, kinds: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = self.table.get(func)
        if rule is None:
            return func(*args, **kwargs)
        if self.seen:
            self.seen(rule, func, args, kwargs)
            return func(*args, **kwargs)
        return rule.function(*args, **kwargs)


class _Baked:
    """The state behind a model's replaced ``forward``: the forward it had, and the rules."""

    def __init__(self, original: Callable, rules: tuple[Rule, ...]) -> None:
        self.original, self.rules = original, rules

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():  # it would trace past the mode, and say nothing
            raise SurgeryError(
                "Functions were replaced in this model, and torch.export(strict=True) does not "
                "see that. Use strict=False, the default."
            )
        with _Functions(_table(self.rules)):
            return self.original(*args, **kwargs)


def bake_(model: nn.Module, rules: Sequence[Rule]) -> Callable[[], None]:
    """Make the model's forward run with the rules' functions; return what takes this back.

    The new forward is a bound method of the old one's holder, so a deep copy or a pickle of the
    model refers to itself and not to the original.
    """
    previous = model.__dict__.get("forward")
    # without the other levels a rule pickles: graph patterns hold lambdas
    added = (replace(r, modules=(), module=None, onnx=()) for r in rules if r.functions)
    rules = tuple(dict.fromkeys((*baked_rules(model), *added)))
    restore_(model)
    state = _Baked(model.forward, rules)

    def forward(self: _Baked, *args: Any, **kwargs: Any) -> Any:
        return _Baked.forward(self, *args, **kwargs)

    # exporters read the names of the arguments
    signature = inspect.signature(model.forward)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])
    model.forward = types.MethodType(forward, state)
    return lambda: _set_forward(model, previous)


def restore_(model: nn.Module) -> bool:
    """Give a model its own forward back; False when nothing was baked in."""
    baked = _baked(model)
    if baked is None:
        return False
    own = getattr(baked.original, "__func__", None) is type(model).forward
    _set_forward(model, None if own else baked.original)
    return True


def baked_rules(model: nn.Module) -> tuple[Rule, ...]:
    """Return the rules whose functions are baked into a model."""
    baked = _baked(model)
    return baked.rules if baked else ()


def _set_forward(model: nn.Module, forward: Callable | None) -> None:
    """Set the instance's forward; None: the one of its class."""
    model.__dict__.pop("forward", None)
    if forward is not None:
        model.forward = forward


def _baked(model: nn.Module) -> _Baked | None:
    holder = getattr(model.__dict__.get("forward"), "__self__", None)
    return holder if isinstance(holder, _Baked) else None


def _table(rules: Sequence[Rule]) -> dict[Callable, Rule]:
    return {resolve(f): rule for rule in rules for f in rule.functions if rule.function}


def find(
    model: nn.Module, rules: Sequence[Rule], inputs: tuple
) -> tuple[list[Match], list[str], list[np.ndarray]]:
    """Run the model, in eval mode, and find the calls that the rules know.

    Returns
    -------
    tuple
        The matches (one per call, with its site), the sites of calls in place, and the outputs.
    """
    matches: list[Match] = []
    in_place: list[str] = []
    with _module_stack(model) as stack:

        def seen(rule: Rule, func: Callable, args: tuple, kwargs: dict) -> None:
            where = " ".join(filter(None, (stack[-1], _source_line())))
            became = rule.function.__name__.strip("_")
            matches.append(Match(rule.name, "function", where, _name(func), became))
            if (
                kwargs.get("inplace")
                or any(a is True for a in args[1:2])
                or _name(func).endswith("_")
            ):
                in_place.append(where)

        with _Functions(_table(rules), seen):
            outputs = modules.outputs(model, inputs)
    return matches, in_place, outputs


def _name(func: Callable) -> str:
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(func).removesuffix(".default")
    return full_name(func).replace("torch.nn.functional", "F").replace("torch._C.", "torch.")


def _source_line() -> str:
    """Return ``file.py:12`` of the innermost call outside PyTorch and this package."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(("<", _TORCH, _HERE)):
            return f"({Path(name).name}:{frame.f_lineno})"
        frame = frame.f_back
    return ""


@contextmanager
def _module_stack(model: nn.Module) -> Iterator[list[str]]:
    """Yield the paths of the modules whose forward is running, innermost last."""
    paths = {id(module): path or "(the model)" for path, module in model.named_modules()}
    stack: list[str] = []
    enter = global_hooks.register_module_forward_pre_hook(
        lambda module, _: stack.append(paths.get(id(module), type(module).__name__))
    )
    leave = global_hooks.register_module_forward_hook(
        lambda *_: stack.pop() and None, always_call=True
    )
    try:
        yield stack
    finally:
        enter.remove()
        leave.remove()
