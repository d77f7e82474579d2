"""Editing traced graphs, and a model's forward by way of one.

A graph module is edited in place. Of an ordinary model only those modules are traced whose own
forward holds a pattern; the model keeps its classes, names, weights, attributes and hooks, and
each such module gets a new ``forward``: the edited graph, running on the module itself.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from . import graph_match
from .attention_gates import GATE
from .graph_match import Found, Tracer, name_of, operation
from .report import Left, Match
from .rule import NOT_MINE, GraphForm, Rule, resolve

Change = tuple[list[Match], list[Left], Callable[[], None]]


def edit_(
    root: nn.Module, graph: fx.Graph, rules: Sequence[Rule], path: str = "",
    functions: bool = True, layers: dict[tuple, str] | None = None,
) -> tuple[list[Match], list[Left]]:  # fmt: skip
    """Replace in a graph what the rules' patterns and functions match; larger patterns first.

    Parameters
    ----------
    root
        Whose submodules the graph calls; new layers become submodules of it.
    path
        Of `root` in the model, for the report.
    functions
        Whether single calls are replaced too.
    layers
        New layers by what they replace: a second graph of the same module takes those of the first.
    """
    layers = {} if layers is None else layers
    matches: list[Match] = []
    left: list[Left] = []
    forms = [(rule, form) for rule in rules for form in rule.graph]
    spelling = graph_match.spell(root, graph)
    for rule, form in sorted(forms, key=lambda pair: -_size(pair[1])):
        done = len(matches)
        for n, found in enumerate(graph_match.find(spelling, form)):
            where = _where(found.last, path)
            why = _objection(rule, form, found, where)
            if why:
                left += [Left(where, form.label, why)] if why != NOT_MINE else []
                continue
            made = form.build(found) if form.build else form.replacement
            if isinstance(made, nn.Module):
                made = layers.get((form.label, n)) or _add_(root, made)
                layers[form.label, n] = made
            became = _put_(root, graph, found.last, made, found.inputs)
            _erase_(graph, found.nodes)
            matches.append(Match(rule.name, "graph", where, form.label, became))
        if len(matches) > done:
            spelling = graph_match.spell(root, graph)
    if functions:
        for part in _edit_calls_(root, graph, rules, path):
            (matches if isinstance(part, Match) else left).append(part)
    graph.lint()
    return matches, left


def _edit_calls_(
    root: nn.Module, graph: fx.Graph, rules: Sequence[Rule], path: str
) -> list[Match | Left]:
    """Replace single calls: functions, methods, aten operators, in place or not."""
    words = {name_of(resolve(f)): rule for rule in rules if rule.function for f in rule.functions}
    parts: list[Match | Left] = []
    for node in list(graph.nodes):
        rule = words.get(operation(node)) if node.op in ("call_function", "call_method") else None
        if rule is None:
            continue
        where, was = _where(node, path), _label(node)
        why = _call_objection(rule, node, where)
        if why:
            parts += [Left(where, was, why)] if why != NOT_MINE else []
            continue
        became = _put_(root, graph, node, rule.function, node.args, node.kwargs)
        _erase_(graph, (node,))
        parts.append(Match(rule.name, "graph", where, was, became))
    return parts


def _objection(rule: Rule, form: GraphForm, found: Found, where: str) -> str:
    return (
        rule.excludes(where, found.last.name)
        or next(filter(None, map(_in_place_objection, found.nodes)), "")
        or (form.check(found) if form.check else "")
    )


def _call_objection(rule: Rule, node: fx.Node, where: str) -> str:
    why = rule.excludes(where, node.name) or _in_place_objection(node)
    if not why and rule.leaves_gates and _is_gate(node):
        why = f"{GATE} (seen in the graph)"
    if not why and rule.function_check:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), _value)
        try:
            why = rule.function_check(*args, **kwargs)
        except Exception as error:  # a check of shapes, and the graph does not know them
            why = f"its arguments are not known in the graph ({type(error).__name__})"
    return why


def _value(node: fx.Node) -> Any:
    return node.meta.get("val", node)


def _in_place_objection(node: fx.Node) -> str:
    """Leave a call in place whose argument is read later: out of place it would read the old."""
    name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
    in_place = (name.endswith("_") and not name.endswith("__")) or node.kwargs.get("inplace")
    source = node.args[0] if node.args else None
    if not in_place or not isinstance(source, fx.Node):
        return ""
    places = {n: i for i, n in enumerate(node.graph.nodes)}
    later = [user for user in source.users if places[user] > places[node]]
    return f"it works in place, and {later[0].name} reads its argument later" if later else ""


def _is_gate(node: fx.Node) -> bool:
    """Whether the value scales another one, itself or after views and scalings."""
    for user in node.users:
        others = [n for n in user.all_input_nodes if n is not node]
        if operation(user) == "mul" and others and not _smaller(others[0], node):
            return True
        if not others and user.op != "output" and _is_gate(user):
            return True
    return False


def _smaller(one: fx.Node, other: fx.Node) -> bool:
    values = one.meta.get("val"), other.meta.get("val")
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    return len(tensors) == 2 and tensors[0].numel() < tensors[1].numel()


def _put_(
    root: nn.Module, graph: fx.Graph, node: fx.Node, made: Callable | str, args: tuple,
    kwargs: dict | None = None,
) -> str:  # fmt: skip
    """Write a function, or a call of a layer, before `node`; its users get the new value."""
    before = set(graph.nodes)
    with graph.inserting_before(node):
        if isinstance(made, str):
            new = graph.call_module(made, args)
        elif _is_aten(graph):
            new = _as_aten(graph, made, args, kwargs or {})
        else:
            tracer = fx.proxy.GraphAppendingTracer(graph)
            wrapped = fx.node.map_arg((args, kwargs or {}), lambda n: fx.Proxy(n, tracer))
            result = made(*wrapped[0], **wrapped[1])
            new = result.node if isinstance(result, fx.Proxy) else result
    written = [n for n in graph.nodes if n not in before]
    for n in written:
        n.meta = {**{k: v for k, v in node.meta.items() if k != "val"}, **n.meta}
    node.replace_all_uses_with(new)
    words = [_label(n) for n in written if n.op != "get_attr"]
    return ", ".join(words) if words else "its input"


def _is_aten(graph: fx.Graph) -> bool:
    return any(isinstance(node.target, torch._ops.OpOverload) for node in graph.nodes)


def _as_aten(graph: fx.Graph, made: Callable, args: tuple, kwargs: dict) -> fx.Node:
    """Write a function into a graph of aten operators, as its aten operators."""
    from torch.fx.experimental.proxy_tensor import make_fx

    flat, spec = torch.utils._pytree.tree_flatten((args, kwargs))
    nodes = [a for a in flat if isinstance(a, fx.Node)]
    values = [n.meta["val"] for n in nodes]

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        given = iter(tensors)
        filled = [next(given) if isinstance(a, fx.Node) else a for a in flat]
        positional, named = torch.utils._pytree.tree_unflatten(filled, spec)
        return made(*positional, **named)

    part = make_fx(run, pre_dispatch=True)(*values).graph
    inputs = [n for n in part.nodes if n.op == "placeholder"]
    return graph.graph_copy(part, dict(zip(inputs, nodes, strict=True)))


def _erase_(graph: fx.Graph, nodes: Sequence[fx.Node]) -> None:
    """Erase nodes that nothing uses, and the weights that only they read."""
    for node in reversed(nodes):
        if not node.users:
            read = [n for n in node.all_input_nodes if n.op == "get_attr"]
            graph.erase_node(node)
            for weight in (n for n in read if not n.users):
                graph.erase_node(weight)


def _drop_unused_(root: nn.Module, before: set[str], *graphs: fx.Graph) -> Callable[[], None]:
    """Take out the layers and weights that the graph read before and reads no more.

    A weight that takes no part would stop DistributedDataParallel.
    """
    unused = before - {name for graph in graphs for name in _read(graph)}
    parents = {name.rpartition(".")[0] for name in unused}
    tables = [t for path in parents for m in [root.get_submodule(path)]
              for t in (m._modules, m._parameters, m._buffers)]  # fmt: skip
    saved = [(table, dict(table)) for table in tables]
    for name in unused:
        path, _, last = name.rpartition(".")
        delattr(root.get_submodule(path), last)

    def undo() -> None:
        for table, old in saved:
            table.clear()
            table.update(old)

    return undo


def _read(graph: fx.Graph) -> set[str]:
    return {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}


def _add_(root: nn.Module, layer: nn.Module) -> str:
    name = _free_name(root, type(layer).__name__.lower())
    root.add_module(name, layer.train(root.training))
    return name


def _free_name(root: nn.Module, name: str) -> str:
    taken = {name for name, _ in root.named_children()} | set(dir(root))
    numbers = (f"{name}_{n}" for n in range(len(taken) + 1))
    return next(candidate for candidate in numbers if candidate not in taken)


def _size(form: GraphForm) -> int:
    return sum(n.op == "call_function" for n in graph_match._patterns(form)[0].nodes)


def _label(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    text = str(node.target).removesuffix(".default")
    if isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return text
    return operation(node)


def _where(node: fx.Node, path: str) -> str:
    """Return the module path of a node: of the module that was traced, or as the trace says."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(value[0]) for value in stack.values() if isinstance(value, tuple)]
    inner = names[-1].removeprefix("L['self'].") if names else ""
    return ".".join(filter(None, (path, inner))) or f"node {node.name}"


def edit_graph_module_(gm: fx.GraphModule, rules: Sequence[Rule]) -> Change:
    """Edit a graph module in place; return what changed, what was left, and what takes it back."""
    before, children, read = copy.deepcopy(gm.graph), set(gm._modules), _read(gm.graph)
    matches, left = edit_(gm, gm.graph, rules)
    put_back = _drop_unused_(gm, read, gm.graph)
    gm.recompile()

    def undo() -> None:
        put_back()
        gm.graph = before
        _remove_new_(gm, children)

    return matches, left, undo


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
    undo = [change[2] for change in reversed(changes)]
    return (
        [match for change in changes for match in change[0]],
        list(dict.fromkeys(left for change in changes for left in change[1])),
        lambda: [step() for step in undo] and None,
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
    except Exception:  # control flow on values, arguments that are no tensors, ...
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
    read = {name for graph in graphs.values() for name in _read(graph)}
    edits = [edit_(module, g, rules, path, functions, layers) for g in graphs.values()]
    matches, left = edits[0]
    if not matches:
        return [], left, lambda: None
    put_back = _drop_unused_(module, read, *graphs.values())
    holder = Traced(module, graphs)
    module.forward = types.MethodType(_forward_like(module.forward), holder)

    def undo() -> None:
        put_back()
        _remove_new_(module, children)
        vars(module).pop("forward", None)
        if previous is not None:
            module.forward = previous

    return matches, left, undo


def _graphs(module: nn.Module, tracer: fx.Tracer) -> dict[bool, fx.Graph]:
    """Return the graph of a forward by `training`; a single one where training changes nothing."""
    modes = (False, True) if graph_match.asks_for_training(type(module)) else (False,)
    was, graphs = module.training, {}
    try:
        for mode in modes:
            module.training = mode
            graphs[mode] = _trace(module, tracer)
    finally:
        module.training = was
    return {} if None in graphs.values() else graphs


def _remove_new_(module: nn.Module, children: set[str]) -> None:
    for name in set(module._modules) - children:
        delattr(module, name)


def _forward_like(original: Callable) -> Callable:
    def forward(self: Traced, *args: Any, **kwargs: Any) -> Any:
        return Traced.forward(self, *args, **kwargs)

    signature = inspect.signature(original)  # exporters read the names of the arguments
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])
    return forward


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
        self.functions = {}
        for mode, source in self.sources.items():
            made = dict(names)
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
