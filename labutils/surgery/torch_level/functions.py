"""Replacing functionals, Tensor methods and aten operators inside a model's forward.

Nothing is traced: PyTorch itself hands every call to a `TorchFunctionMode` while the forward
runs, so dynamic control flow and functions outside of any module class are reached. The mode is
baked into the model's ``forward``.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.overrides import TorchFunctionMode

from ..forms import FunctionForm, ask
from ..naming import full_name, resolve
from ..report import Left, Match
from ..rule import Rule
from . import gates, modules
from .forwards import Traced, bind_forward

_TORCH, _HERE = (str(Path(file).parent) + os.sep for file in (torch.__file__, __file__))
_Function = Callable[..., Any]
_Replacements = dict[_Function, tuple[_Function, _Function | None] | None]


class _Functions(TorchFunctionMode):
    """Calls what a table holds in place of functions; None shields a function from other modes."""

    def __init__(self, table: _Replacements) -> None:
        super().__init__()
        self.table = table

    def __torch_function__(
        self, func: Callable, kinds: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self.table:
            return func(*args, **kwargs)
        entry = self.table[func]
        if entry is None:  # the modes around this one must not see it either
            with torch._C.DisableTorchFunction():
                return func(*args, **kwargs)
        function, check = entry
        if check is not None and check(*args, **kwargs) is not None:
            return func(*args, **kwargs)
        return function(*args, **kwargs)


class _Listener(TorchFunctionMode):
    """Observes every call while a model runs, and changes nothing."""

    def __init__(self, heard: Callable[..., None]) -> None:
        super().__init__()
        self.heard = heard

    def __torch_function__(
        self, func: Callable, kinds: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.heard(func, args, kwargs or {}, result)
        return result


class _Baked:
    """The state behind a module's replaced ``forward``: the forward it had, and the rules."""

    original: Callable[..., Any]
    rules: tuple[Rule, ...]
    shielded: tuple[Rule, ...]
    table: _Replacements

    def __init__(
        self, original: Callable, rules: tuple[Rule, ...], shielded: tuple[Rule, ...] = ()
    ) -> None:
        self.__setstate__({"original": original, "rules": rules, "shielded": shielded})

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "table"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.table = dict.fromkeys(_forms_by_function(self.shielded))
        for function, (_, form) in _forms_by_function(self.rules).items():
            check = None if form.check is None else resolve(form.check)
            self.table[function] = resolve(form.replacement), check
        _let_dynamo_see(self.table)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Functions(self.table):
            return self.original(*args, **kwargs)


def _let_dynamo_see(functions: Iterable[Callable]) -> None:
    """Register functions as overridable, which torch.export(strict=True) asks before it looks.

    `torch.overrides` lists some as not overridable, ``F.hardswish`` for one, that are.
    """
    table = torch.overrides.get_overridable_functions()
    dynamo = sys.modules.get("torch._dynamo.variables.torch")  # it keeps a copy, once imported
    copied = dynamo.get_overridable_functions() if dynamo else set()
    for function in functions:
        if not any(function in listed for listed in table.values()):
            table[torch.nn.functional].append(function)
        copied.add(function)


def _forms_by_function(
    rules: Iterable[Rule],
) -> dict[Callable[..., Any], tuple[Rule, FunctionForm]]:
    return {
        function: (rule, form)
        for rule in rules
        for form in rule.functions
        for function in form.resolved()
    }


def bake_(model: nn.Module, calls: Sequence[Call]) -> Callable[[], None]:
    """Make the model's forward run with the rules' functions; return how to undo it.

    A rule for some places only is baked into the modules there, and a place that is left gets a
    shield. The new forward is a bound method of the old one's holder, so a deep copy or a pickle
    of the model refers to itself and not to the original.
    """
    places: dict[str, tuple[list[Rule], list[Rule]]] = {}
    for call in calls:
        if call.checked:
            continue
        if call.why:
            places.setdefault(call.owner, ([], []))[1].append(call.rule)
        else:
            owner = call.owner if call.rule.include else ""
            places.setdefault(owner, ([], []))[0].append(call.rule)
    undo = [_bake_one_(model.get_submodule(path), *rules) for path, rules in places.items()]

    def undo_all() -> None:
        for step in reversed(undo):
            step()

    return undo_all


def _bake_one_(
    module: nn.Module, rules: Sequence[Rule], shielded: Sequence[Rule]
) -> Callable[[], None]:
    previous, old = module.__dict__.get("forward"), _baked(module)
    had = (old.rules, old.shielded) if old else ((), ())
    rules, shielded = (
        tuple({r.name: r for r in (*before, *map(_functions_only, added))}.values())
        for before, added in zip(had, (rules, shielded), strict=True)
    )
    _restore_one_(module, ())
    module.forward = bind_forward(_Baked(module.forward, rules, shielded), module.forward)
    return lambda: _set_forward(module, previous)


def _functions_only(rule: Rule) -> Rule:
    """Return the rule without its other levels: it pickles, as graph patterns hold lambdas."""
    return replace(rule, modules=(), graph=(), onnx=(), onnx_passes=())


def restore_(model: nn.Module) -> bool:
    """Restore the original forwards of a model and its modules; False if none was replaced."""
    return sum(_restore_one_(module) for module in model.modules()) > 0  # all of them


def _restore_one_(module: nn.Module, kinds: tuple[type[Any], ...] = (Traced,)) -> bool:
    holder: Any = getattr(module.__dict__.get("forward"), "__self__", None)
    known: tuple[type[Any], ...] = (_Baked, *kinds)
    if not isinstance(holder, known):
        return False
    own = getattr(holder.original, "__func__", None) is type(module).forward
    _set_forward(module, None if own else holder.original)
    _restore_one_(module, kinds)
    return True


def baked_rules(model: nn.Module) -> tuple[Rule, ...]:
    """Return the rules whose functions are baked into a model."""
    found = (_baked(module) for module in model.modules())
    return tuple({r.name: r for baked in found if baked for r in baked.rules}.values())


def _set_forward(model: nn.Module, forward: Callable | None) -> None:
    """Set the instance's forward; None restores that of its class."""
    model.__dict__.pop("forward", None)
    if forward is not None:
        model.forward = forward


def _baked(model: nn.Module) -> _Baked | None:
    holder = getattr(model.__dict__.get("forward"), "__self__", None)
    return holder if isinstance(holder, _Baked) else None


@dataclass(frozen=True)
class Call:
    """One call of a function that a rule knows.

    Attributes
    ----------
    rule
        The rule.
    owner
        The path of the module whose forward makes the call, ``""`` for the model itself.
    where, was, became
        For the report.
    in_place
        Whether the call writes into its argument.
    why
        Why it is left, ``""`` when it is replaced.
    checked
        Whether the rule's own check of the arguments says so, which is asked at every call.
    """

    rule: Rule
    owner: str
    where: str
    was: str
    became: str
    in_place: bool
    why: str
    checked: bool = False

    @property
    def match(self) -> Match:
        """The call as a replacement of the report."""
        return Match(self.rule.name, "function", self.where, self.was, self.became)

    @property
    def left(self) -> Left:
        """The call as something that was left."""
        return Left(self.where, self.was, self.why)


def find_calls(
    model: nn.Module, rules: Sequence[Rule], inputs: tuple, left: Sequence[Left] = ()
) -> tuple[list[Call], list[np.ndarray]]:
    """Run the model, in eval mode, and find the calls that the rules know.

    Parameters
    ----------
    left
        Modules that were left: the function that such a module calls is left with it.

    Returns
    -------
    tuple
        The calls, with their sites, and the outputs.
    """
    hearing = _Hearing(rules, left)
    with _module_stack(model) as hearing.stack, _Listener(hearing.hear):
        outputs = modules.run(model, inputs)
    calls = [
        replace(call, why=f"{gates.GATE} (seen in the run)") if n in hearing.watch.gates else call
        for n, call in enumerate(hearing.calls)
    ]
    return _leave_together(calls), outputs


class _Hearing:
    """Collects the calls that rules know while a model runs, and why some are left."""

    def __init__(self, rules: Sequence[Rule], left: Sequence[Left]) -> None:
        self.table = _forms_by_function(rules)
        self.calls: list[Call] = []
        self.watch = gates.Watch()
        self.stack: list[str] = []
        self.kept = {x.where: x.why for x in left if not x.why.startswith(modules.SUBCLASS)}

    def hear(self, func: Callable[..., Any], args: tuple, kwargs: dict, result: Any) -> None:
        """Note a call, unless no rule is meant for it."""
        self.watch.call(getattr(func, "__name__", ""), args, result)
        rule, form = self.table.get(func, (None, None))
        if rule is None or form is None:
            return
        answer = ask(form.check, *args, **kwargs)
        if answer is not None and not answer.reported:
            return
        owner = self.stack[-1] if self.stack else ""
        outside = rule.excludes(owner)
        why = (owner and self.kept.get(owner, "")) or (outside.why if outside else "")
        checked = not why and answer is not None
        if checked and answer is not None:
            why = answer.why
        if rule.leaves_gates and not why:
            self.watch.mark(result, len(self.calls))
        where = " ".join(filter(None, (owner or "(the model)", _source_line())))
        became = _short_name(form.replacement)
        in_place = is_in_place(func, args, kwargs)
        self.calls.append(Call(rule, owner, where, _name(func), became, in_place, why, checked))


def is_in_place(func: Callable[..., Any], args: tuple, kwargs: dict) -> bool:
    """Whether a call writes into its first argument."""
    flag = any(argument is True for argument in args[1:2])
    return bool(kwargs.get("inplace")) or flag or _name(func).endswith("_")


def _leave_together(calls: Sequence[Call]) -> list[Call]:
    """Leave all calls of a rule in a forward where it leaves one: they cannot be told apart."""
    shielded = {(c.owner, c.rule.name) for c in calls if c.why and not c.checked}
    also = "another call of it in the same forward is left"
    return [replace(c, why=also) if not c.why and (c.owner, c.rule.name) in shielded else c
            for c in calls]  # fmt: skip


def _name(func: Callable) -> str:
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(func).removesuffix(".default")
    return full_name(func).replace("torch.nn.functional", "F").replace("torch._C.", "torch.")


def _short_name(function: Callable[..., Any] | str) -> str:
    if isinstance(function, str):
        return function.rpartition(".")[2]
    return getattr(function, "__name__", type(function).__name__)


def _source_line() -> str:
    """Return ``file.py:12`` of the innermost call outside PyTorch and this package."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(("<", _TORCH, _HERE)):
            return f"({Path(name).name}:{frame.f_lineno})"
        frame = frame.f_back
    return ""


@contextmanager
def _module_stack(model: nn.Module) -> Iterator[list[str]]:
    """Yield the paths of the modules whose forward is running, innermost last."""
    paths = {id(module): path for path, module in model.named_modules()}
    stack: list[str] = []
    enter = global_hooks.register_module_forward_pre_hook(
        lambda module, _: stack.append(paths.get(id(module), stack[-1] if stack else ""))
    )

    def left(*_: object) -> None:  # what a hook returns would replace the output
        stack.pop()

    leave = global_hooks.register_module_forward_hook(left, always_call=True)
    try:
        yield stack
    finally:
        enter.remove()
        leave.remove()
