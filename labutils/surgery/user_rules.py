"""A user's own rules, as a dict: a class for a class, a function for a function, a predicate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .forms import FunctionForm, GraphForm, ModuleForm, Site
from .naming import full_name
from .rule import Rule

if TYPE_CHECKING:
    from torch import nn

_YOURS = "your own rule; the numeric check shows whether it computes the same"


def from_mapping(rules: Mapping[Any, Any]) -> list[Rule]:
    """Return the rules that a dict describes.

    Parameters
    ----------
    rules
        ``{what: by_what}``. *What* is a class of modules (or its full name), a function of
        PyTorch (``F.hardswish``, ``torch.Tensor.sigmoid``, an aten operator), or a predicate
        ``module -> bool``. *By what* is a class, a function of the old module, a module that is
        copied to every place, or, for a function, another function. ``[class, {"kw": 1},
        "attribute"]`` calls the class with keywords, and with attributes of the old module.

    Raises
    ------
    UsageError
        A pair is none of these.
    """
    return [_from_pair(what, by) for what, by in rules.items()]


def pattern_rule(
    pattern: Callable,
    replacement: Callable,
    *,
    name: str = "",
    exact: bool = False,
    error: str = _YOURS,
    any_numbers: bool = False,
) -> Rule:
    """Return a rule for several operations at once, e.g. ``x * relu6(x + 3) / 6``.

    Parameters
    ----------
    pattern, replacement
        Functions of the same tensors, written as in a forward. A pattern with layers is an
        ``nn.Module``: its layers match by class.
    any_numbers
        Whether numbers in the pattern stand for any number.

    Raises
    ------
    UsageError
        One of them is a class, or is not a function.
    """
    for role, given in (("pattern", pattern), ("replacement", replacement)):
        if isinstance(given, type):
            raise UsageError(
                f"The {role} is a function of tensors, and {given.__name__} is a class: pass a "
                f"function, or a layer: {given.__name__}()."
            )
        if not callable(given):
            raise UsageError(
                f"The {role} is a function of tensors, not {type(given).__name__}. Pass the "
                "function itself: its name, without parentheses."
            )
    label = name or getattr(pattern, "__name__", type(pattern).__name__)
    form = GraphForm(label, pattern, replacement, any_numbers=any_numbers)
    return Rule(name=label, exact=exact, error=error, source="yours", graph=(form,))


def _from_pair(what: Any, by: Any) -> Rule:
    if isinstance(what, type) or (isinstance(what, str) and _is_class_name(what)):
        return _rule(full_name(what), by, modules=(ModuleForm((what,), build=_module_maker(by)),))
    if _is_of_pytorch(what):
        if not callable(by) or isinstance(by, type):
            raise UsageError(
                f"{full_name(what)} is a function: replace it by a function, not by {by!r}."
            )
        return _rule(full_name(what), by, functions=(FunctionForm((what,), by),))
    if callable(what):

        def recognizes(site: Site) -> bool:
            return bool(what(site.module))

        form = ModuleForm(recognizes=recognizes, build=_module_maker(by))
        return _rule(full_name(what), by, modules=(form,))
    raise UsageError(
        f"A rule starts from a class, a function of PyTorch or a predicate, not from {what!r}. "
        "For a rule of the book, pass its name instead of a dict; for several operations at once, "
        "use surgery.pattern_rule(pattern, replacement)."
    )


def _rule(what: str, by: Any, **fields: Any) -> Rule:
    short = what.replace("torch.nn.functional", "F").replace("torch.nn.modules.", "nn.")
    to = by if isinstance(by, type) or inspect.isroutine(by) else type(by)
    name = f"{short.rsplit('.', 1)[-1]} -> {full_name(to).rsplit('.', 1)[-1]}"
    return Rule(name=name, exact=False, error=_YOURS, source="yours",
                keeps="what old and new have in common", **fields)  # fmt: skip


def _is_class_name(name: str) -> bool:
    return name.rsplit(".", 1)[-1][:1].isupper()


def _is_of_pytorch(what: Any) -> bool:
    import torch

    if isinstance(what, str):
        return what.startswith("torch.")
    if isinstance(what, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return True
    if inspect.isbuiltin(what) or inspect.ismethoddescriptor(what):
        return True
    return str(getattr(what, "__module__", "")).startswith(("torch.", "torch"))


def _module_maker(by: Any) -> Callable[[nn.Module], nn.Module]:
    import copy

    from torch import nn

    if isinstance(by, type) and issubclass(by, nn.Module):
        return lambda old: of_class(by, old)
    if isinstance(by, nn.Module):
        return lambda _: copy.deepcopy(by)
    if isinstance(by, list | tuple) and by and callable(by[0]):
        return lambda old: _called(by, old)
    if callable(by):
        return by
    raise UsageError(
        "Replace a module by a class, a function of the old module, or another module, not by "
        f"{by!r}."
    )


def _called(by: list | tuple, old: nn.Module) -> nn.Module:
    """Return the layer that TI's form ``[class, {"kw": 1}, "attribute"]`` describes."""
    made, *rest = by
    keywords = {k: v for part in rest if isinstance(part, Mapping) for k, v in part.items()}
    attributes = {name: getattr(old, name) for name in rest if isinstance(name, str)}
    return made(**{**attributes, **keywords})


def of_class(cls: type[nn.Module], old: nn.Module) -> nn.Module:
    """Return a `cls` with the settings and the weights that it shares with the old module.

    Arguments of its constructor take the old module's attributes of the same name (``p``,
    ``negative_slope``, ``inplace``, ``groups``, ...); weights of the same name and shape follow.
    """
    from torch import nn

    known = inspect.signature(cls.__init__).parameters
    given = {n: getattr(old, n) for n in known if n not in ("self", "device", "dtype")
             and hasattr(old, n)}  # fmt: skip
    if isinstance(given.get("bias"), nn.Parameter) or ("bias" in given and given["bias"] is None):
        given["bias"] = given["bias"] is not None
    new = cls(**given)
    state, own = old.state_dict(), new.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    new.load_state_dict(fitting, strict=False)
    return new
