"""Classes and functions by their full names: the rule book imports no torch and no timm."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable
from typing import Any

from ..errors import UsageError


def full_name(thing: type | Callable | str) -> str:
    """Return ``module.qualified_name`` of a class or function; a string is returned unchanged.

    Operators and methods written in C have no module: the name that they print is returned.
    """
    if isinstance(thing, str):
        return thing
    name, module = getattr(thing, "__qualname__", None), getattr(thing, "__module__", None)
    return f"{module}.{name}" if module and name else name or str(thing)


def resolve(thing: Any) -> Any:
    """Return the object with a full name such as ``torch.nn.functional.hardswish``.

    Raises
    ------
    UsageError
        No module, class or function has this name.

    Examples
    --------
    >>> resolve("math.sqrt")(9.0)
    3.0
    """
    return _resolve_name(thing) if isinstance(thing, str) else thing


@functools.cache
def _resolve_name(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"A rule names {name!r}, and it cannot be imported ({error}). Check the full name: "
            "module, dot, class or function."
        ) from None


def activation_names(name: str) -> tuple[str, ...]:
    """Return every way to call an activation: functional, C function, aten operator, in place."""
    return (
        f"torch.nn.functional.{name}",
        *(f"torch._C._nn.{name}{end}" for end in ("", "_")),
        *(f"torch.ops.aten.{name}{end}" for end in ("", "_", ".default", "_.default")),
    )
