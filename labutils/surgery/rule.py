"""What a rule is: one replacement at the level of modules, functions, traced graphs and ONNX nodes.

A rule written once serves a PyTorch model, a model that calls functionals, and an ONNX file
without source code. Classes and functions may be named by strings, resolved where they are used:
so that the rule book is light to import, and needs no library that a model does not use.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from .onnx_level.builder import Builder
    from .report import Left, Match
    from .torch_level.graph_match import Found


NOT_MINE = "none of this rule's"
"""The reason of a check for what a rule does not mean: it is left without a word in the report."""


@dataclass(frozen=True)
class Site:
    """A module in its model.

    Attributes
    ----------
    model
        The whole model.
    path
        As in ``model.named_modules()``.
    module
        The module there.
    """

    model: nn.Module
    path: str
    module: nn.Module

    @property
    def parents(self) -> list[nn.Module]:
        """The modules around it, the nearest first, the model last."""
        names = self.path.split(".")[:-1]
        return [self.model.get_submodule(".".join(names[:n])) for n in range(len(names), -1, -1)]


@dataclass(frozen=True)
class GraphForm:
    """One way in which a traced graph writes what a rule replaces: several nodes with their edges.

    Attributes
    ----------
    label
        As the report names it, e.g. ``"x * relu6(x + 3) / 6"``.
    pattern
        A function of tensors, written as in a forward; it is traced. Calls, methods, operators,
        in-place and aten variants of one operation are the same; so are both orders of a sum or
        a product. It may be an ``nn.Module`` with layers inside: they match by class.
    replacement
        A function of the same tensors; or, of a pattern with layers, None: see `build`.
    build
        ``found -> function or module`` of the pattern's tensors, where the replacement depends on
        the layers or numbers that were found.
    check
        ``found -> reason`` why this match is left, ``""`` to go on.
    any_numbers
        Whether literals in the pattern stand for any number (`check` looks at them).
    """

    label: str
    pattern: Callable[..., Any]
    replacement: Callable[..., Any] | None = None
    build: Callable[[Found], Callable[..., Any]] | None = None
    check: Callable[[Found], str] | None = None
    any_numbers: bool = False


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
        The numeric error, in words and figures; of an approximate rule the reason why it needs
        retraining.
    source
        Where the formula comes from.
    keeps
        What survives the replacement, and what does not.
    modules
        Classes, or their full names; only instances of exactly these classes are replaced.
    module
        ``old module -> new module``.
    recognizes
        ``site -> whether`` a module is this rule's by its structure, besides the classes.
    module_check
        ``site -> reason`` why a module is left, ``""`` to go on, `NOT_MINE` to leave it quietly.
    functions
        Functionals, Tensor methods and aten operators, or their full names.
    function
        Called in their place, with their arguments.
    function_check
        Called with the same arguments: the reason why a call is left, ``""`` to go on.
    needs_training
        Whether the network must be trained further: the function is another one altogether.
    leaves_gates
        Whether an output that scales another tensor is left: the gate of a squeeze-excitation.
    graph
        The forms of several nodes in traced graphs.
    onnx
        The forms in ONNX graphs.
    onnx_pass
        ``(graph, this rule) -> (matches, left)`` rewrites a whole ONNX graph, in place, before the
        forms of other rules are looked for.
    onnx_ops
        The operators that `onnx_pass` removes or changes.
    include, exclude
        Globs of module paths, ``"features.*"``: only there, not there. In an ONNX graph of the
        module path that the exporter wrote, or of the node's name.
    """

    name: str
    exact: bool
    error: str
    source: str
    keeps: str = ""
    modules: tuple[type | str, ...] = ()
    module: Callable[[nn.Module], nn.Module] | None = None
    recognizes: Callable[[Site], bool] | None = None
    module_check: Callable[[Site], str] | None = None
    functions: tuple[Callable | str, ...] = ()
    function: Callable[..., Any] | None = None
    function_check: Callable[..., str] | None = None
    needs_training: bool = False
    leaves_gates: bool = False
    graph: tuple[GraphForm, ...] = field(default=(), repr=False)
    onnx: tuple[OnnxForm, ...] = field(default=(), repr=False)
    onnx_pass: Callable[[ir.Model, Rule], tuple[list[Match], list[Left]]] | None = None
    onnx_ops: frozenset[str] = frozenset()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {'exact' if self.exact else 'APPROXIMATE'}; {self.error}"

    @property
    def ops(self) -> frozenset[str]:
        """The ONNX operators that the rule removes from a graph."""
        return self.onnx_ops | {form.ops[0] for form in self.onnx if form.build}

    def only(self, *globs: str) -> Rule:
        """Return the rule for the places that one of the globs fits, e.g. ``"features.*"``."""
        return replace(self, include=globs)

    def without(self, *globs: str) -> Rule:
        """Return the rule without the places that one of the globs fits."""
        return replace(self, exclude=(*self.exclude, *globs))

    def excludes(self, *names: str) -> str:
        """Return why the globs keep the rule from a place of these names, ``""`` if they do not."""
        names = tuple(filter(None, names)) or ("",)
        if self.include and not any(_fits(name, self.include) for name in names):
            return f"not among {', '.join(self.include)}"
        if any(_fits(name, self.exclude) for name in names):
            return f"excluded by {', '.join(self.exclude)}"
        return ""


def _fits(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


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


def activation_names(name: str) -> tuple[str, ...]:
    """Return every way to call an activation: functional, C function, aten operator, in place."""
    return (
        f"torch.nn.functional.{name}",
        *(f"torch._C._nn.{name}{end}" for end in ("", "_")),
        *(f"torch.ops.aten.{name}{end}" for end in ("", "_", ".default", "_.default")),
    )
