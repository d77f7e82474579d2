"""What a rule is: one replacement for PyTorch modules, functions, traced graphs and ONNX nodes.

A rule written once serves a PyTorch model, a model that calls functionals, and an ONNX file
without source code. `forms` says in which forms; `rules` says how a rule is added.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .forms import FORMS, FunctionForm, GraphForm, Leave, ModuleForm, OnnxForm, OnnxPass

if TYPE_CHECKING:
    from torch import nn

_FORMER = {
    "module": "modules=(surgery.ModuleForm((nn.GELU,), build=make_layer),)",
    "recognizes": "modules=(surgery.ModuleForm(recognizes=is_mine, build=make_layer),)",
    "module_check": "modules=(surgery.ModuleForm((nn.GELU,), build=make_layer, check=check),)",
    "function": "functions=(surgery.FunctionForm((F.gelu,), my_gelu),)",
    "function_check": "functions=(surgery.FunctionForm((F.gelu,), my_gelu, check=check),)",
    "onnx_pass": "onnx_passes=(surgery.OnnxPass(rewrite_graph, ops),)",
    "onnx_ops": "onnx_passes=(surgery.OnnxPass(rewrite_graph, ops),)",
}
"""Fields of rules written for an earlier version -> what to write now."""


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
        The numeric error, as text with figures; of an approximate rule the reason why it needs
        retraining.
    source
        Where the formula comes from.
    keeps
        What survives the replacement, and what does not.
    modules, functions, graph, onnx, onnx_passes
        The forms in which networks write what the rule replaces, by level.
    needs_training
        Whether the network must be trained further: the function is a different one.
    leaves_gates
        Whether an output that scales another tensor is left: the gate of a squeeze-excitation.
    include, exclude
        Globs of module paths, ``"features.*"``: only there, not there. In an ONNX graph of the
        module path that the exporter wrote, or of the node's name.

    Raises
    ------
    UsageError
        A field of an earlier version, or a form in the field of another; the message says what
        to write.
    """

    name: str
    exact: bool
    error: str
    source: str
    keeps: str = ""
    modules: tuple[ModuleForm, ...] = ()
    functions: tuple[FunctionForm, ...] = ()
    graph: tuple[GraphForm, ...] = field(default=(), repr=False)
    onnx: tuple[OnnxForm, ...] = field(default=(), repr=False)
    onnx_passes: tuple[OnnxPass, ...] = field(default=(), repr=False)
    needs_training: bool = False
    leaves_gates: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __new__(cls, *_: object, **fields: object) -> Rule:
        """Refuse the fields of an earlier version."""
        for name in fields.keys() & _FORMER.keys():
            raise UsageError(
                f"A Rule has no field {name!r} any more. Write {_FORMER[name]}; to change the "
                "layer of a rule of the book, rule.with_layer(MyLayer)."
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, kind in FORMS.items():
            given = getattr(self, name)
            if not isinstance(given, tuple) or not all(isinstance(form, kind) for form in given):
                raise UsageError(
                    f"{name}= of the rule {self.name!r} takes a tuple of surgery.{kind.__name__}, "
                    f"not {given!r}."
                )

    def __str__(self) -> str:
        return f"{self.name}: {'exact' if self.exact else 'APPROXIMATE'}; {self.error}"

    @property
    def ops(self) -> frozenset[str]:
        """The ONNX operators that the rule removes from a graph."""
        return self.pattern_ops.union(*(step.ops for step in self.onnx_passes))

    @property
    def pattern_ops(self) -> frozenset[str]:
        """The ONNX operators that the rule's patterns remove from a graph."""
        return frozenset(form.ops[0] for form in self.onnx if form.build)

    def with_layer(
        self, layer: type[nn.Module] | Callable[[nn.Module], nn.Module], error: str | None = None
    ) -> Rule:
        """Return the rule with another layer in the place of modules; other levels stay.

        Parameters
        ----------
        layer
            A class that is made without arguments, or a function ``old module -> new module``.
        error
            What the layer's numeric error is, for the report; None: as before.
        """
        made: dict[str, Any] = (
            {"replacement": layer, "build": None}
            if isinstance(layer, type)
            else {"replacement": None, "build": layer}
        )
        forms = tuple(replace(form, **made) for form in self.modules)
        return replace(self, modules=forms, error=self.error if error is None else error)

    def only(self, *globs: str) -> Rule:
        """Return the rule for the places that one of the globs fits, e.g. ``"features.*"``."""
        return replace(self, include=globs)

    def without(self, *globs: str) -> Rule:
        """Return the rule without the places that one of the globs fits."""
        return replace(self, exclude=(*self.exclude, *globs))

    def excludes(self, *names: str | None) -> Leave | None:
        """Return why the globs keep the rule from a place of these names; None if they do not."""
        known = [name for name in names if name] or [""]
        if self.include and not any(_fits(name, self.include) for name in known):
            return Leave(f"not among {', '.join(self.include)}")
        if any(_fits(name, self.exclude) for name in known):
            return Leave(f"excluded by {', '.join(self.exclude)}")
        return None


def _fits(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)
