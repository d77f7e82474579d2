"""What a rule is: one replacement at the level of modules, functions and ONNX nodes.

A rule written once serves a PyTorch model, a model that calls functionals, and an ONNX file
without source code. Classes and functions may be named by strings, resolved where they are used:
so that the rule book is light to import, and needs no library that a model does not use.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from .onnx_rewrite import Builder
    from .report import Left, Match


@dataclass(frozen=True)
class OnnxForm:
    """One way in which ONNX graphs write what a rule replaces.

    Attributes
    ----------
    label
        As the report names it, e.g. ``"x * HardSigmoid(x)"``.
    ops
        The operators that the pattern consists of, the characteristic one first; patterns of
        more operators are tried first.
    pattern
        ``(op, x) -> value``, a pattern of `onnxscript.rewriter`. The output of the node that
        carries the attributes is named ``"y"``. Both orders of Add and Mul are tried.
    build
        ``(builder, x, y_node) -> value`` writes the replacement; None: the form is plain already,
        it is counted and left.
    check
        ``(y_node, active rule names) -> reason`` why this match is left, ``""`` to go on.
    """

    label: str
    ops: tuple[str, ...]
    pattern: Callable[..., Any]
    build: Callable[[Builder, ir.Value, ir.Node], ir.Value] | None = None
    check: Callable[[ir.Node, frozenset[str]], str] | None = None


@dataclass(frozen=True)
class Rule:
    """A replacement at every level.

    Attributes
    ----------
    name
        What a user writes.
    exact
        Whether the replacement computes the same, within `error`; if not, the model may need
        retraining.
    error
        The numeric error, in words and figures.
    source
        Where the formula comes from.
    keeps
        What survives the replacement, and what does not.
    modules
        Classes, or their full names; only instances of exactly these classes are replaced.
    module
        ``old module -> new module``.
    functions
        Functionals, Tensor methods and aten operators, or their full names.
    function
        Called in their place, with their arguments.
    onnx
        The forms in ONNX graphs.
    onnx_pass
        ``(graph, this rule) -> (matches, left)`` rewrites a whole ONNX graph, in place, before the
        forms of other rules are looked for.
    onnx_ops
        The operators that `onnx_pass` removes or changes.
    """

    name: str
    exact: bool
    error: str
    source: str
    keeps: str = ""
    modules: tuple[type | str, ...] = ()
    module: Callable[[nn.Module], nn.Module] | None = None
    functions: tuple[Callable | str, ...] = ()
    function: Callable[..., Any] | None = None
    onnx: tuple[OnnxForm, ...] = field(default=(), repr=False)
    onnx_pass: Callable[[ir.Model, Rule], tuple[list[Match], list[Left]]] | None = None
    onnx_ops: frozenset[str] = frozenset()

    @property
    def ops(self) -> frozenset[str]:
        """The ONNX operators that the rule removes from a graph."""
        return self.onnx_ops | {form.ops[0] for form in self.onnx if form.build}


def full_name(thing: type | Callable | str) -> str:
    """Return ``module.qualified_name`` of a class or function; a string as it is.

    Operators and methods written in C have no module: the name that they print then.
    """
    if isinstance(thing, str):
        return thing
    name, module = getattr(thing, "__qualname__", None), getattr(thing, "__module__", None)
    return f"{module}.{name}" if module and name else name or str(thing)


def resolve(name: type | Callable | str) -> Any:
    """Return the object with a full name such as ``torch.nn.functional.hardswish``."""
    if not isinstance(name, str):
        return name
    first, *rest = name.split(".")
    found: Any = importlib.import_module(first)
    for part in rest:
        found = getattr(found, part)
    return found
