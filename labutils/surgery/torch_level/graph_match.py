"""Finding several operations in a traced graph by their edges, however each of them was called.

A graph of `torch.fx` or `torch.export` and a pattern are normalized first:
``F.hardswish(x, inplace=True)``, ``torch.ops.aten.hardswish_`` and ``nn.Hardswish`` are one
operation, and so are ``x.clamp(min=0, max=6)`` and ``F.relu6(x)``. Then torch's own matcher,
which follows edges and not the order of nodes, compares the two.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.utils.matcher_utils import SubgraphMatcher
from torch.utils import _pytree as pytree

from ...errors import UsageError
from ..forms import GraphForm
from ..naming import resolve

_SAME = {
    "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "truediv": "div",
    "true_divide": "div", "divide": "div", "multiply": "mul", "subtract": "sub", "clip": "clamp",
    "radd": "add", "rmul": "mul", "concat": "cat", "concatenate": "cat",
}  # fmt: skip
_COMMUTING = {"add", "mul"}
# Layers with weights: known by what they do, as a module or as a call with its weights.
_LAYERS = {
    nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d", nn.Linear: "linear",
    nn.BatchNorm1d: "batch_norm", nn.BatchNorm2d: "batch_norm", nn.LayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm",
}  # fmt: skip
# Layers without weights, by the function that they call.
_FUNCTIONS = {
    nn.ReLU: "relu", nn.SiLU: "silu", nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid",
    nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.Mish: "mish", nn.ReLU6: "relu6",
}  # fmt: skip
_MOST_COMMUTED = 4  # a pattern with more sums and products is matched as it is written


@dataclass(frozen=True)
class Found:
    """One occurrence of a pattern.

    Attributes
    ----------
    inputs
        The nodes or literals in the place of the pattern's arguments.
    nodes
        The nodes that are replaced, in the order of the graph; the last one's value is.
    modules
        The layers among them, for a graph that calls modules.
    numbers
        The literals of the occurrence, in the order of the pattern's own.
    """

    inputs: tuple[Any, ...]
    nodes: tuple[fx.Node, ...]
    modules: tuple[nn.Module, ...]
    numbers: tuple[Any, ...]

    def kernel_sizes(self) -> list[tuple[int, ...]]:
        """Return the kernels of the convolutions among the nodes, modules or calls."""
        weights = [m.weight for m in self.modules if isinstance(m, nn.Conv2d)]
        calls: list[Any] = [
            n.args[1]
            for n in self.nodes
            if n.op == "call_function" and operation(n).startswith("conv")
        ]
        weights += [n.meta["val"] for n in calls if "val" in n.meta]
        return [tuple(weight.shape[2:]) for weight in weights]

    @property
    def last(self) -> fx.Node:
        """The node whose value the replacement computes."""
        return self.nodes[-1]


class _Matcher(SubgraphMatcher):
    """torch's matcher; a number of the pattern may stand for any number, but not for a tensor."""

    any_numbers = False

    def _match_literals(self, pn: Any, gn: Any, match: Any) -> bool:
        if self.any_numbers and isinstance(pn, float) and isinstance(gn, float):
            return True
        return super()._match_literals(pn, gn, match)


@dataclass(frozen=True)
class NormalizedGraph:
    """A graph in normal form, and the original node behind each of its nodes."""

    root: nn.Module
    graph: fx.Graph
    normalized: fx.Graph
    origin: dict[fx.Node, fx.Node]
    present: frozenset[Any]


def normalize(root: nn.Module, graph: fx.Graph) -> NormalizedGraph:
    """Bring a graph to normal form; it calls the submodules of `root`."""
    made, origin = _normalize(root, graph)
    present = frozenset(n.target for n in made.nodes)
    return NormalizedGraph(root, graph, made, origin, present)


def find_occurrences(subject: NormalizedGraph, form: GraphForm) -> list[Found]:
    """Return the occurrences of a form in a graph; they do not overlap."""
    root, graph, origin, present = subject.root, subject.graph, subject.origin, subject.present
    found: list[Found] = []
    taken: set[fx.Node] = set()
    for pattern in patterns_of(form):
        if not {n.target for n in pattern.nodes if n.op == "call_function"} <= present:
            return []
        matcher = _Matcher(pattern)
        matcher.any_numbers = form.any_numbers
        for match in matcher.match(subject.normalized):
            inner = [gn for pn, gn in match.nodes_map.items() if pn.op == "call_function"]
            if inner and taken.isdisjoint(inner):
                taken.update(inner)
                found.append(_occurrence(root, graph, pattern, match, origin, inner))
    return found


def _occurrence(
    root: nn.Module, graph: fx.Graph, pattern: fx.Graph, match: Any, origin: dict, inner: list
) -> Found:
    places = {node: n for n, node in enumerate(graph.nodes)}
    nodes = sorted((origin[node] for node in inner), key=places.__getitem__)
    inputs = tuple(
        origin.get(given, given) if isinstance(given, fx.Node) else given
        for given in (match.nodes_map.get(p) for p in pattern.nodes if p.op == "placeholder")
    )
    layers = (root.get_submodule(n.target) for n in nodes if n.op == "call_module")
    literals = (a for n in nodes for a in pytree.tree_leaves(n.args))
    numbers = tuple(a for a in literals if isinstance(a, int | float))
    return Found(inputs, tuple(nodes), tuple(layers), numbers)


@functools.lru_cache(maxsize=256)
def patterns_of(form: GraphForm) -> tuple[fx.Graph, ...]:
    """Return the pattern, and it with the operands of its sums and products exchanged."""
    pattern = resolve(form.pattern)
    if isinstance(pattern, type):
        pattern = pattern()
    if inspect.isbuiltin(pattern):  # F.gelu: the tracer reads signatures
        builtin = pattern

        def pattern(x: Any) -> Any:
            return builtin(x)

    root = pattern if isinstance(pattern, nn.Module) else nn.Module()
    base, _ = _normalize(root, _traced(pattern, form.label))
    turning = [n for n in base.nodes if n.op == "call_function"
               and n.target.__name__ in _COMMUTING][:_MOST_COMMUTED]  # fmt: skip
    made = []
    for turned in itertools.product((False, True), repeat=len(turning)):
        names = {node.name for node, turn in zip(turning, turned, strict=True) if turn}
        graph = fx.Graph()
        graph.output(graph.graph_copy(base, {}))
        for node in graph.nodes:
            if node.name in names:
                first, second, *rest = node.args
                node.args = (second, first, *rest)
        made.append(graph)
    return tuple(made)


def _traced(pattern: Callable, label: str) -> fx.Graph:
    try:
        return Tracer().trace(pattern)
    except NameError:  # what fx says of a layer that belongs to no module
        raise UsageError(
            f"The pattern {label} makes a layer while it runs. Write it with functions, such as "
            "torch.sigmoid(x), or as an nn.Module that holds the layer."
        ) from None


def _normalize(root: nn.Module, graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """Return the graph in normal form, and the original node behind each of its nodes."""
    result = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: new[n])
        if node.op == "output":
            result.output(args[0])
            continue
        if node.op in ("placeholder", "get_attr"):
            new[node] = result.placeholder(node.name)
            continue
        name, args = _call(root, node, args, kwargs)
        args = fx.node.map_aggregate(args, lambda a: float(a) if type(a) is int else a)  # 3 is 3.0
        new[node] = result.call_function(_operation(name), args)
    return result, {made: node for node, made in new.items()}


def _call(root: nn.Module, node: fx.Node, args: tuple, kwargs: dict) -> tuple[str, tuple]:
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if type(module) in _FUNCTIONS:
            return _one_of_many(_FUNCTIONS[type(module)], args[:1])
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return _one_of_many("adaptive_avg_pool2d", (*args, module.output_size))
        return _LAYERS.get(type(module), f"module {type(module).__qualname__}"), args[:1]
    name = operation(node)
    if name in _LAYERS.values():
        return name, args[:1]
    return _one_of_many(name, _arguments(node, name, args, kwargs))


def _one_of_many(name: str, args: tuple) -> tuple[str, tuple]:
    """Return one operation for several that compute the same: the global mean, the clamp."""
    if name == "relu6":
        return "clamp", (args[0], 0.0, 6.0)
    if name == "hardtanh":
        return "clamp", args[:3]
    if name == "adaptive_avg_pool2d" and args[1] in (1, (1, 1), [1, 1]):
        return "mean", (args[0], (2, 3), True)
    dims = args[1] if name == "mean" and len(args) > 2 else None
    if isinstance(dims, list | tuple) and set(dims) in ({2, 3}, {-1, -2}):  # of images
        return "mean", (args[0], (2, 3), args[2])
    return name, args


def operation(node: fx.Node) -> str:
    """Return what a call does, one word: ``"hardswish"`` for its function, method, operator."""
    return name_of(node.target)


def name_of(target: Callable | str) -> str:
    """Return the word for a function, a method's name, an aten operator."""
    if isinstance(target, torch._ops.OpOverload):
        target = target.overloadpacket
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    name = name.strip("_")
    return _SAME.get(name, name)


def _arguments(node: fx.Node, name: str, args: tuple, kwargs: dict) -> tuple:
    """Return all arguments by position, defaults included, in the order of the aten operator."""
    kwargs = dict(kwargs)
    if inspect.isfunction(node.target):  # F.hardswish(x, True): which one is in place?
        try:
            bound = inspect.signature(node.target).bind(*args, **kwargs).arguments
        except TypeError:
            return (*args, *kwargs.values())
        args, kwargs = (), dict(bound)
    kwargs = {"self" if k == "input" else k: v for k, v in kwargs.items() if k != "inplace"}
    packet = getattr(torch.ops.aten, name, None)
    for overload in packet.overloads() if packet else ():
        schema = getattr(packet, overload)._schema.arguments
        positional = [a for a in schema if not a.kwarg_only]
        names = {a.name for a in schema}
        if len(args) > len(positional) or not kwargs.keys() <= names:
            continue
        given = {a.name: v for a, v in zip(positional, args, strict=False)} | kwargs
        if all(a.name in given or a.has_default_value() for a in schema):
            return tuple(given.get(a.name, a.default_value) for a in positional)
    return (*args, *kwargs.values())


@functools.cache
def _operation(name: str) -> Callable:
    """Return one function object per name, as the target of nodes."""

    def operation(*_: Any) -> None:
        raise AssertionError("a normal form is compared, never run")

    operation.__name__ = operation.__qualname__ = name
    return operation


class Tracer(fx.Tracer):
    """Traces a forward into its activations and pools, and not into what trains differently.

    BatchNorm, dropout and whatever asks for ``self.training`` stay modules, so nothing of eval
    mode is baked in; a module with hooks stays one, so that they are called.
    """

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        """Whether a module stays a module in the graph."""
        if any(v for k, v in vars(m).items() if k.endswith("_hooks")) or "forward" in vars(m):
            return True
        if type(m).__module__ in _TRACED_INTO and next(m.parameters(), None) is None:
            return False
        if is_chain(m):
            return False
        return super().is_leaf_module(m, qualified_name) or asks_for_training(m)


_TRACED_INTO = ("torch.nn.modules.activation", "torch.nn.modules.pooling")


class ShallowTracer(Tracer):
    """Traces one forward: its submodules stay, but for activations, pools and plain chains."""

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        """Whether a module stays a module in the graph."""
        if is_chain(m) or type(m).__module__ in _TRACED_INTO:
            return super().is_leaf_module(m, qualified_name)
        return True


def is_chain(module: nn.Module) -> bool:
    """Tell whether a module only calls its children in turn: it is traced with its parent."""
    return type(module).forward is nn.Sequential.forward


def asks_for_training(module: nn.Module) -> bool:
    """Tell whether a module's forward behaves differently in training, by reading its source."""
    kind: Any = type(module)
    return _reads_training(kind)


@functools.cache
def _reads_training(cls: type[Any]) -> bool:
    if issubclass(cls, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):
        return True
    try:
        return "self.training" in inspect.getsource(cls.forward)
    except (OSError, TypeError):
        return True  # no source to read: as if it did


def units(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules whose own forward may hold a pattern, the innermost first."""
    found = [
        (path, module)
        for path, module in model.named_modules()
        if not path or not (is_chain(module) or type(module).__module__.startswith("torch.nn"))
    ]
    yield from sorted(found, key=lambda item: -item[0].count(".") - bool(item[0]))
