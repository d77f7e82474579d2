"""Editing traced graphs in place, of `torch.fx` and of `torch.export`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from ...errors import UsageError
from ..forms import FunctionForm, GraphForm, Leave, ask
from ..naming import resolve
from ..report import Left, Match
from ..rule import Rule
from . import graph_match
from .gates import GATE
from .graph_match import Found, name_of, operation

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
    normalized = graph_match.normalize(root, graph)
    for rule, form in sorted(forms, key=lambda pair: -_size(pair[1])):
        found = graph_match.find_occurrences(normalized, form)
        done, not_done = _edit_occurrences_(root, graph, rule, form, found, path, layers)
        matches += done
        left += not_done
        if done:
            normalized = graph_match.normalize(root, graph)
    if functions:
        done, not_done = _edit_calls_(root, graph, rules, path)
        matches += done
        left += not_done
    graph.lint()
    return matches, left


def _edit_occurrences_(
    root: nn.Module, graph: fx.Graph, rule: Rule, form: GraphForm, occurrences: Sequence[Found],
    path: str, layers: dict[tuple, str],
) -> tuple[list[Match], list[Left]]:  # fmt: skip
    """Replace the occurrences of one pattern."""
    matches: list[Match] = []
    left: list[Left] = []
    moved: dict[fx.Node, Any] = {}  # one occurrence may read what another computed
    for n, found in enumerate(occurrences):
        where = _where(found.last, path)
        leave = _check_occurrence(rule, form, found, where)
        if leave is not None:
            left += [Left(where, form.label, leave.why)] if leave.reported else []
            continue
        made: Any = form.make(found)
        if isinstance(made, nn.Module):
            made = layers.get((form.label, n)) or _add_(root, made)
            layers[form.label, n] = made
        inputs: Any = fx.node.map_arg(found.inputs, lambda node: moved.get(node, node))
        new, became = _put_(root, graph, found.last, made, inputs)
        moved[found.last] = new
        _erase_(graph, found.nodes)
        matches.append(Match(rule.name, "graph", where, form.label, became))
    return matches, left


def _edit_calls_(
    root: nn.Module, graph: fx.Graph, rules: Sequence[Rule], path: str
) -> tuple[list[Match], list[Left]]:
    """Replace single calls: functions, methods, aten operators, in place or not."""
    words = {
        name_of(function): (rule, form)
        for rule in rules
        for form in rule.functions
        for function in form.resolved()
    }
    matches: list[Match] = []
    left: list[Left] = []
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method") or operation(node) not in words:
            continue
        rule, form = words[operation(node)]
        where, was = _where(node, path), _label(node)
        leave = _check_call(rule, form, node, where)
        if leave is not None:
            left += [Left(where, was, leave.why)] if leave.reported else []
            continue
        made = resolve(form.replacement)
        _, became = _put_(root, graph, node, made, node.args, node.kwargs)
        _erase_(graph, (node,))
        matches.append(Match(rule.name, "graph", where, was, became))
    return matches, left


def _check_occurrence(rule: Rule, form: GraphForm, found: Found, where: str) -> Leave | None:
    return (
        rule.excludes(where, found.last.name)
        or next(filter(None, map(_check_effect, found.nodes)), None)
        or ask(form.check, found)
    )


def _check_call(rule: Rule, form: FunctionForm, node: fx.Node, where: str) -> Leave | None:
    leave = rule.excludes(where, node.name) or _check_effect(node)
    if leave is None and rule.leaves_gates and _is_gate(node):
        leave = Leave(f"{GATE} (seen in the graph)")
    if leave is None and form.check is not None:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), _value)
        try:
            leave = ask(form.check, *args, **kwargs)
        except UsageError:  # what the check answers is not an answer
            raise
        except Exception as error:  # a check of shapes, and the graph does not know them
            leave = Leave(f"its arguments are not known in the graph ({type(error).__name__})")
    return leave


def _value(node: fx.Node) -> Any:
    return node.meta.get("val", node)


def _check_effect(node: fx.Node) -> Leave | None:
    """Leave a call in place whose argument is read later: out of place it would read old values."""
    name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
    in_place = (name.endswith("_") and not name.endswith("__")) or node.kwargs.get("inplace")
    owner = node.graph.owning_module
    if node.op == "call_module" and owner is not None:
        in_place = getattr(owner.get_submodule(str(node.target)), "inplace", False)
    source = node.args[0] if node.args else None
    if not in_place or not isinstance(source, fx.Node):
        return None
    places = {n: i for i, n in enumerate(node.graph.nodes)}
    later = [user for user in source.users if places[user] > places[node]]
    if not later:
        return None
    return Leave(f"it works in place, and {later[0].name} reads its argument later")


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
) -> tuple[Any, str]:  # fmt: skip
    """Write a function, or a call of a layer, before `node`; its users get the new value."""
    before = set(graph.nodes)
    with graph.inserting_before(node):
        if isinstance(made, str):
            new = graph.call_module(made, args)
        elif _is_aten(graph):
            new = _as_aten(graph, made, args, kwargs or {})
        else:
            new = _as_calls(graph, made, args, kwargs or {})
    written = [n for n in graph.nodes if n not in before]
    for n in written:
        n.meta = {**{k: v for k, v in node.meta.items() if k != "val"}, **n.meta}
    node.replace_all_uses_with(new)
    words = [_label(n) for n in written if n.op != "get_attr"]
    return new, ", ".join(words) if words else "its input"


def _as_calls(graph: fx.Graph, made: Callable, args: tuple, kwargs: dict) -> Any:
    """Write a function as the calls that it makes; one that asks for shapes as a call of itself."""
    before = set(graph.nodes)
    tracer = fx.proxy.GraphAppendingTracer(graph)

    def proxy(node: fx.Node) -> Any:
        return fx.Proxy(node, tracer)

    positional, named = fx.node.map_arg((args, kwargs), proxy)
    try:
        result = made(*positional, **named)
        return result.node if isinstance(result, fx.Proxy) else result
    except Exception:  # a proxy has no shape, no device, no truth value
        for node in reversed([n for n in graph.nodes if n not in before]):
            graph.erase_node(node)
        return graph.call_function(made, args, kwargs)


def _is_aten(graph: fx.Graph) -> bool:
    return any(isinstance(node.target, torch._ops.OpOverload) for node in graph.nodes)


def _as_aten(graph: fx.Graph, made: Callable, args: tuple, kwargs: dict) -> Any:
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


def drop_unused_(root: nn.Module, before: set[str], *graphs: fx.Graph) -> Callable[[], None]:
    """Remove the layers and weights that the graph read before and no longer reads.

    An unused weight would stop DistributedDataParallel.
    """
    unused = before - {name for graph in graphs for name in names_read(graph)}
    parents = {name.rpartition(".")[0] for name in unused}
    modules = [root.get_submodule(path) for path in parents]
    tables: list[Any] = [t for m in modules for t in (m._modules, m._parameters, m._buffers)]
    saved = [(table, dict(table)) for table in tables]
    for name in unused:
        path, _, last = name.rpartition(".")
        delattr(root.get_submodule(path), last)

    def undo() -> None:
        for table, old in saved:
            table.clear()
            table.update(old)

    return undo


def names_read(graph: fx.Graph) -> set[str]:
    """Return the layers and weights that a graph calls or reads."""
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
    return sum(n.op == "call_function" for n in graph_match.patterns_of(form)[0].nodes)


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
    """Edit a graph module in place; return what changed, what was left, and how to undo it."""
    before, children, read = copy.deepcopy(gm.graph), set(gm._modules), names_read(gm.graph)
    matches, left = edit_(gm, gm.graph, rules)
    put_back = drop_unused_(gm, read, gm.graph)
    gm.recompile()

    def undo() -> None:
        put_back()
        gm.graph = before
        remove_new_(gm, children)

    return matches, left, undo


def remove_new_(module: nn.Module, children: set[str]) -> None:
    """Remove the children that were not there before."""
    for name in set(module._modules) - children:
        delattr(module, name)
