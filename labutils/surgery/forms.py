"""The forms in which networks write what a rule replaces: modules, functions, graphs, ONNX nodes.

Every class or function of a form may be given by its full name, ``"torch.nn.ReLU"``: it is
imported when the rule is applied, so the rule book stays light to import.

A *check* answers `Leave` with the reason why a place is left alone, `NOT_MINE` where the rule is
not meant for it, or None to replace it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import UsageError
from .naming import full_name, resolve

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from .onnx_level.builder import Builder
    from .report import Left, Match
    from .rule import Rule
    from .torch_level.graph_match import Found


@dataclass(frozen=True)
class Leave:
    """The answer of a check: leave this place alone.

    Attributes
    ----------
    why
        The reason, for the report.
    reported
        Whether the report lists the place.
    """

    why: str
    reported: bool = True


NOT_MINE = Leave("not meant by this rule", reported=False)
"""The answer of a check for a place that the rule is not meant for; the report is silent on it."""


def ask(check: Callable[..., Any] | str | None, *args: Any, **kwargs: Any) -> Leave | None:
    """Return the answer of a check; without a check every place is replaced.

    Raises
    ------
    UsageError
        The check answers something else, such as text.
    """
    if check is None:
        return None
    answer = resolve(check)(*args, **kwargs)
    if answer is None or isinstance(answer, Leave):
        return answer
    raise UsageError(
        f"The check {full_name(check)} of a rule answered {answer!r}. Return surgery.Leave(reason) "
        "to leave a place, surgery.NOT_MINE to leave it out of the report, None to replace it."
    )


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
        The module there, of a class that the form names.
    """

    model: nn.Module
    path: str
    module: Any

    @property
    def parents(self) -> list[nn.Module]:
        """The modules around it, the nearest first, the model last."""
        names = self.path.split(".")[:-1]
        return [self.model.get_submodule(".".join(names[:n])) for n in range(len(names), -1, -1)]


SiteCheck: TypeAlias = "Callable[[Site], Leave | None]"


@dataclass(frozen=True)
class ModuleForm:
    """Layers of a PyTorch model.

    Attributes
    ----------
    classes
        Classes, or their full names; only instances of exactly these classes are replaced.
    replacement
        The class of the new layer, which is made without arguments.
    build
        Instead of `replacement`: ``old module -> new module``, where the new one takes over
        settings or weights.
    recognizes
        ``site -> whether`` a module belongs to the rule by its structure, besides the classes.
    check
        ``site -> Leave | None``.

    Examples
    --------
    >>> ModuleForm(("torch.nn.GELU",), "torch.nn.ReLU").class_names
    frozenset({'torch.nn.GELU'})
    """

    classes: tuple[type | str, ...] = ()
    replacement: type[nn.Module] | str | None = None
    build: Callable[[Any], nn.Module] | str | None = None
    recognizes: Callable[[Site], bool] | str | None = None
    check: SiteCheck | str | None = None

    def __post_init__(self) -> None:
        _require_one(self)

    @functools.cached_property
    def class_names(self) -> frozenset[str]:
        """The full names of the classes."""
        return frozenset(map(full_name, self.classes))

    def claims(self, site: Site) -> bool:
        """Whether a module is of the form's classes, or recognized by its structure."""
        if full_name(type(site.module)) in self.class_names:
            return True
        return self.recognizes is not None and bool(resolve(self.recognizes)(site))

    def make(self, old: nn.Module) -> nn.Module:
        """Return the new layer for an old one."""
        return resolve(self.replacement)() if self.build is None else resolve(self.build)(old)


@dataclass(frozen=True)
class FunctionForm:
    """Calls of functions in a forward.

    Attributes
    ----------
    functions
        Functionals, Tensor methods and aten operators, or their full names.
    replacement
        Called in their place, with their arguments.
    check
        Called with the same arguments: ``Leave | None``.
    """

    functions: tuple[Callable[..., Any] | str, ...]
    replacement: Callable[..., Any] | str
    check: Callable[..., Leave | None] | str | None = None

    def resolved(self) -> list[Callable[..., Any]]:
        """Return the functions that are replaced."""
        return [resolve(function) for function in self.functions]


@dataclass(frozen=True)
class GraphForm:
    """Several operations of a traced graph, with the edges between them.

    Attributes
    ----------
    label
        As the report names it, e.g. ``"x * relu6(x + 3) / 6"``.
    pattern
        A function of tensors, written as in a forward; it is traced. Calls, methods, operators,
        in-place and aten variants of one operation are the same; so are both orders of a sum or
        a product. It may be an ``nn.Module`` with layers inside (or its class, made without
        arguments): they match by class.
    replacement
        A function of the same tensors.
    build
        Instead of `replacement`: ``found -> function or module`` of the pattern's tensors, where
        the replacement depends on the layers or numbers that were found.
    check
        ``found -> Leave | None``.
    any_numbers
        Whether literals in the pattern stand for any number (`check` looks at them).
    """

    label: str
    pattern: Callable[..., Any] | str
    replacement: Callable[..., Any] | str | None = None
    build: Callable[[Found], Callable[..., Any]] | str | None = None
    check: Callable[[Found], Leave | None] | str | None = None
    any_numbers: bool = False

    def __post_init__(self) -> None:
        _require_one(self)

    def make(self, found: Found) -> Callable[..., Any]:
        """Return what computes the occurrence's value from the pattern's tensors."""
        return resolve(self.replacement) if self.build is None else resolve(self.build)(found)


NodeCheck: TypeAlias = "Callable[[ir.Node, frozenset[str]], Leave | None]"
NodeBuild: TypeAlias = "Callable[[Builder, ir.Value, ir.Node], ir.Value]"


@dataclass(frozen=True)
class OnnxForm:
    """One or several nodes of an ONNX graph.

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
        ``(builder, x, y_node) -> value`` writes the replacement; None: the form needs no
        replacement, it is counted and left.
    check
        ``(y_node, active rule names) -> Leave | None``.
    """

    label: str
    ops: tuple[str, ...]
    pattern: Callable[..., Any]
    build: NodeBuild | None = None
    check: NodeCheck | None = None

    @classmethod
    def of_node(cls, op_type: str, build: NodeBuild, check: NodeCheck | None = None) -> OnnxForm:
        """Return the form of a single node, whatever its attributes and further inputs are."""
        return cls(op_type, (op_type,), one_node(op_type), build, check)


def one_node(op_type: str) -> Callable[..., Any]:
    """Return the pattern of a single node, whatever its attributes and further inputs are."""

    def pattern(op: Any, x: Any) -> Any:
        return getattr(op, op_type)(
            x, _allow_other_attributes=True, _allow_other_inputs=True, _outputs=["y"]
        )

    return pattern


@dataclass(frozen=True)
class OnnxPass:
    """A change of a whole ONNX graph, where no pattern of a few nodes can say what is replaced.

    Attributes
    ----------
    run
        ``(graph, the rule) -> (matches, left)`` rewrites the graph in place, before the forms of
        other rules are looked for.
    ops
        The operators that it removes or changes.
    """

    run: Callable[[ir.Model, Rule], tuple[list[Match], list[Left]]]
    ops: frozenset[str] = frozenset()


def _require_one(form: ModuleForm | GraphForm) -> None:
    if (form.replacement is None) == (form.build is None):
        raise UsageError(f"A {type(form).__name__} takes either replacement= or build=.")


FORMS: Mapping[str, type] = {
    "modules": ModuleForm,
    "functions": FunctionForm,
    "graph": GraphForm,
    "onnx": OnnxForm,
    "onnx_passes": OnnxPass,
}
"""The field of a `Rule` -> the class of its entries."""
