"""Replacing the forwards of a model that hold several operations which a rule knows.

Only those modules are traced whose own forward holds a pattern. The model keeps its classes,
names, weights, attributes and hooks, and each such module gets a new ``forward``: the edited graph,
running on the module itself. A forward that reads ``self.training`` is traced in both modes.
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from ..report import Left
from ..rule import Rule
from . import graph_match
from .graph_edit import Change, drop_unused_, edit_, names_read, remove_new_
from .graph_match import Tracer


def edit_forwards_(model: nn.Module, rules: Sequence[Rule], deep: bool) -> Change:
    """Give a new forward to every module of a model whose own forward holds a pattern.

    Parameters
    ----------
    deep
        Whether a pattern may lie across several modules' forwards, and single calls count too:
        where nothing is found in the forwards one by one the model is traced as a whole, and
        where that fails, the largest parts that can be traced.
    """
    changes = [_edit_forward_(module, rules, path, graph_match.ShallowTracer(), deep)
               for path, module in graph_match.units(model)]  # fmt: skip
    if deep and not any(change[0] for change in changes):
        changes += _edit_largest_(model, rules, "")

    def undo() -> None:
        for _, _, undo_one in reversed(changes):
            undo_one()

    return (
        [match for change in changes for match in change[0]],
        list(dict.fromkeys(left for change in changes for left in change[1])),
        undo,
    )


def _edit_largest_(module: nn.Module, rules: Sequence[Rule], path: str) -> list[Change]:
    """Trace a module into all its layers; where that fails, its children."""
    if _trace(module, Tracer()) is not None:
        return [_edit_forward_(module, rules, path, Tracer(), True)]
    return [
        change
        for name, child in module.named_children()
        for change in _edit_largest_(child, rules, f"{path}.{name}".strip("."))
    ]


def _trace(module: nn.Module, tracer: fx.Tracer) -> fx.Graph | None:
    """Return the graph of a module's forward, edited or not; None where it cannot be traced."""
    holder, cls = getattr(vars(module).get("forward"), "__self__", None), type(module)
    if "forward" in vars(module) and not isinstance(holder, Traced):
        return None
    try:
        if holder is not None:  # the tracer reads the class's forward
            module.__class__ = type(
                cls.__name__,
                (cls,),
                {"forward": holder.functions[module.training and len(holder.functions) > 1]},
            )
        return tracer.trace(module)
    except Exception:  # control flow on values, arguments that are not tensors, ...
        return None
    finally:
        module.__class__ = cls


def _edit_forward_(
    module: nn.Module, rules: Sequence[Rule], path: str, tracer: fx.Tracer, functions: bool
) -> Change:
    """Edit one module's forward: in eval mode, and in training where it differs there."""
    graphs = _graphs(module, tracer)
    if not graphs:
        return [], [], lambda: None
    children, previous = set(module._modules), vars(module).get("forward")
    layers: dict[tuple, str] = {}
    read = {name for graph in graphs.values() for name in names_read(graph)}
    edits = [edit_(module, g, rules, path, functions, layers) for g in graphs.values()]
    matches, left = edits[0]
    counts = {len(edit[0]) for edit in edits}
    if len(counts) > 1:
        why = "its forward holds a different number of them in training"
        left = [Left(path or "(the model)", f"{max(counts)} patterns", why)]
    if len(counts) > 1 or not matches:
        remove_new_(module, children)
        return [], left, lambda: None
    put_back = drop_unused_(module, read, *graphs.values())
    module.forward = bind_forward(Traced(module, graphs), module.forward)

    def undo() -> None:
        put_back()
        remove_new_(module, children)
        vars(module).pop("forward", None)
        if previous is not None:
            module.forward = previous

    return matches, left, undo


def _graphs(module: nn.Module, tracer: fx.Tracer) -> dict[bool, fx.Graph]:
    """Return the graph of a forward by `training`; a single one where training changes nothing."""
    modes = (False, True) if graph_match.asks_for_training(module) else (False,)
    was = module.training
    graphs: dict[bool, fx.Graph] = {}
    try:
        for mode in modes:
            module.training = mode
            graph = _trace(module, tracer)
            if graph is None:
                return {}
            graphs[mode] = graph
    finally:
        module.training = was
    return graphs


def bind_forward(state: Any, original: Callable[..., Any]) -> types.MethodType:
    """Return ``state.forward`` as a forward with the arguments of another one."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    signature = inspect.signature(original)  # exporters read the names of the arguments
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [own, *signature.parameters.values()]
    vars(forward)["__signature__"] = signature.replace(parameters=parameters)
    return types.MethodType(forward, state)


class Traced:
    """The state behind a module's edited ``forward``: the graph's code, run on the module itself.

    A deep copy or a pickle of the module refers to the copy: nothing is shared with the original.
    """

    def __init__(self, module: nn.Module, graphs: dict[bool, fx.Graph]) -> None:
        self.original, self.module = module.forward, module
        codes = {mode: graph.python_code("self") for mode, graph in graphs.items()}
        self.sources = {mode: code.src for mode, code in codes.items()}
        self.names = {k: _portable(v) for c in codes.values() for k, v in c.globals.items()}
        self._compile()

    def _compile(self) -> None:
        names = {k: v.get() if isinstance(v, _Imported) else v for k, v in self.names.items()}
        self.functions: dict[bool, Callable[..., Any]] = {}
        for mode, source in self.sources.items():
            made: dict[str, Any] = dict(names)
            exec(compile(source, "<the edited forward>", "exec"), made)
            self.functions[mode] = made["forward"]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "functions"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._compile()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the edited graph on the module."""
        mode = self.module.training and len(self.functions) > 1
        return self.functions[mode](self.module, *args, **kwargs)


class _Imported:
    """A Python module by its name: modules themselves neither copy nor pickle."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get(self) -> types.ModuleType:
        return importlib.import_module(self.name)


def _portable(value: Any) -> Any:
    return _Imported(value.__name__) if isinstance(value, types.ModuleType) else value
