"""Statements that write into a tensor, of a traced network, written as ones that make a new one.

A quantizer's gradient needs what it was given, and a statement whose result nobody reads
(``x.mul_(0.5)``) would be dropped from the graph as dead code. So what is read after such a
statement reads its result instead. That is the same function unless the tensor is read under
another name as well (a view of it, a buffer of the network): then the network is refused.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from ...errors import SurgeryError

STATEMENT = "written in place"
"""In a node's meta: Python's ``x += y``, which torch.fx records as a sum."""

_STATEMENTS = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod, operator.ipow: operator.pow, operator.imatmul: operator.matmul,
}  # fmt: skip
_ABOUT_SHAPE = ("size", "dim", "numel", "stride")
_ATTRIBUTES_OF_SHAPE = ("shape", "ndim", "dtype", "device")


class Tracer(fx.Tracer):
    """Records the forward of one image; further parameters have their defaults."""

    def create_args_for_root(
        self, root_fn: Callable, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable, list[Any]]:
        """Return the forward method and its arguments."""
        names = list(inspect.signature(root_fn).parameters)
        image = self.create_proxy("placeholder", names[1] if len(names) > 1 else "x", (), {})
        return root_fn, [self.root, image]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for a value while the network is traced."""
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    def __setitem__(self, place: object, value: object) -> None:
        raise TypeError(
            "it assigns to elements of a tensor (x[...] = value), which a graph cannot hold."
        )


def _stated(function: Callable) -> Callable:
    def statement(self: fx.Proxy, other: Any) -> fx.Proxy:
        made = function(self, other)
        made.node.meta[STATEMENT] = True
        return made

    return statement


for _name, _function in _STATEMENTS.items():
    setattr(_Proxy, f"__{_name.__name__}__", _stated(_function))


def write_out_of_place_(graph: fx.GraphModule, example: torch.Tensor) -> None:
    """Have every node of a traced network leave its inputs as they are.

    Parameters
    ----------
    graph
        In evaluation mode, no node left out.
    example
        (n, channels, height, width) float32: one run tells who writes, and who shares memory.

    Raises
    ------
    SurgeryError
        Something is written that is read under another name as well, or is part of the network.
    """
    run, modules = _Watched(graph), dict(graph.named_modules())
    with torch.inference_mode(False), torch.no_grad():
        run.run(example.clone())
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    became: dict[fx.Node, fx.Node] = {}  # what is read instead of what was written into
    for node in list(graph.graph.nodes):
        written, target = run.written[node], _first(node)
        if not (written or _claims(node, modules)):
            continue
        if target is not None and not isinstance(run.env[target], torch.Tensor):
            target = None
        if target is None and not written:
            continue  # a number: n += 1
        if target is None or (written and target not in _latest(written, became)):
            raise _refusal(node, "what it writes into is not its first argument")
        _refuse_shared(node, target, run.env, order)
        if not _change_(node, modules):
            raise _refusal(node, "there is no form of it that makes a new tensor")
        became[target] = node
        for user in list(target.users):
            if order[user] > order[node]:
                user.replace_input_with(target, node)
    graph.recompile()


class _Watched(fx.Interpreter):
    """Runs a graph, keeps all values, and notes which inputs a node has written into."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.written: dict[fx.Node, list[fx.Node]] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = {node: _versions(self.env[node]) for node in n.all_input_nodes}
        result = super().run_node(n)
        self.written[n] = [node for node, v in before.items() if _versions(self.env[node]) != v]
        return result


def _latest(nodes: list[fx.Node], became: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    found = set()
    for node in nodes:
        while node in became:
            node = became[node]
        found.add(node)
    return found


def _versions(value: Any) -> list[int]:
    return [t._version for t in tree_leaves(value) if isinstance(t, torch.Tensor)]


def _first(node: fx.Node) -> fx.Node | None:
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, fx.Node) else None


def _claims(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether a node says that it works in place; in evaluation dropout does not."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op not in ("call_method", "call_function"):
        return False
    name = getattr(node.target, "__name__", str(node.target))
    return (
        node.meta.get(STATEMENT, False)
        or node.target in _STATEMENTS
        or (name.endswith("_") and not name.endswith("__"))
        or _argument(node, "inplace") is True
        or "out" in node.kwargs
    )


def _argument(node: fx.Node, name: str) -> Any:
    place = _place(node, name)
    if place is not None and place < len(node.args):
        return node.args[place]
    return node.kwargs.get(name)


def _place(node: fx.Node, name: str) -> int | None:
    """Return where a Python function takes an argument."""
    if node.op != "call_function" or not inspect.isfunction(node.target):
        return None
    names = list(inspect.signature(node.target).parameters)
    return names.index(name) if name in names else None


def _refuse_shared(
    node: fx.Node, target: fx.Node, values: dict[fx.Node, Any], order: dict[fx.Node, int]
) -> None:
    """Refuse to change a tensor whose memory is read later under another name."""
    for other, value in values.items():
        if order[other] >= order[node] or not _overlap(value, values[target]):
            continue
        if other.op == "get_attr":
            raise _refusal(node, f"'{other.target}' of the network is what it writes into")
        later = [
            user for user in other.users if order[user] > order[node] and not _asks_for_shape(user)
        ]
        if later and other is not target:
            raise _refusal(
                node, f"'{later[0].name}' reads the same memory later, as '{other.name}'"
            )


def _overlap(value: Any, tensor: torch.Tensor) -> bool:
    """Return whether one of the tensors in `value` shares memory with `tensor`."""
    start, end = _extent(tensor)
    extents = [_extent(t) for t in tree_leaves(value) if isinstance(t, torch.Tensor)]
    return any(low < end and start < high for low, high in extents)


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps) if tensor.numel() else -1
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _asks_for_shape(node: fx.Node) -> bool:
    if node.target is getattr:
        return node.args[1] in _ATTRIBUTES_OF_SHAPE
    return node.op == "call_method" and node.target in _ABOUT_SHAPE


def _change_(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Have a node make a new tensor; return False where it cannot."""
    if node.op == "call_module":
        module: Any = modules[str(node.target)]
        known = hasattr(module, "inplace")
        module.inplace = False
        return known
    if "out" in node.kwargs:
        return False
    if node.meta.pop(STATEMENT, False):
        return True
    if _argument(node, "inplace") is True:
        place = _place(node, "inplace")
        if place is not None and place < len(node.args):
            node.update_arg(place, False)
        else:
            node.update_kwarg("inplace", False)
        return True
    if node.target in _STATEMENTS:
        node.target = _STATEMENTS[node.target]
        return True
    name = getattr(node.target, "__name__", str(node.target)).removesuffix("_")
    if node.op == "call_method":
        node.target = name
        return hasattr(torch.Tensor, name)
    owner = next((m for m in (torch, nn.functional) if callable(getattr(m, name, None))), None)
    if owner is None:
        return False
    node.target = getattr(owner, name)
    return True


def _refusal(node: fx.Node, reason: str) -> SurgeryError:
    path = str(node.target) if node.op == "call_module" else node.name
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    inside = f" in '{stack[-1][0]}'" if stack and node.op != "call_module" and stack[-1][0] else ""
    return SurgeryError(
        f"'{path}'{inside} writes into a tensor in place, and {reason}: training with the rounding "
        "in place cannot carry that. Have it make a new tensor (y = torch.relu(x) for x.relu_(), "
        "nn.ReLU() for nn.ReLU(inplace=True)), or quantize after training (quantize.static)."
    )
