"""What the nodes of a traced network are called in its ONNX file, so that a recipe means both.

A recipe that a search wrote names the nodes of the exported float network. TorchScript's exporter
makes such a name of the modules around an operator, and numbers what repeats: the second call of
``relu`` in ``layer1.0`` is ``/layer1/layer1.0/relu_1/Relu``, the second sum in one forward is
``/Add_1``. The same is counted here over the calls that torch.fx recorded.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from .lowering import Product

CALLED = "called"
"""In a node's ``meta``: its `NodeName`, where the graph was changed after names were given."""

_ERF = ("Div", "Erf", "Add", "Mul", "Mul")  # GELU, as torch writes it below opset 20
_TANH = ("Mul", "Mul", "Mul", "Add", "Mul", "Tanh", "Add", "Mul", "Mul")

_ONE: dict[str, tuple[Any, ...]] = {
    "Conv": (nn.Conv1d, nn.Conv2d),
    "ConvTranspose": (nn.ConvTranspose1d, nn.ConvTranspose2d),
    "Gemm": (nn.Linear, functional.linear),  # over tokens it is a Product
    "HardSwish": (nn.Hardswish, functional.hardswish),
    "HardSigmoid": (nn.Hardsigmoid, functional.hardsigmoid),
    "Relu": (nn.ReLU, functional.relu, torch.relu, "relu"),
    "Clip": (nn.ReLU6, nn.Hardtanh, functional.relu6, functional.hardtanh, torch.clamp, "clamp"),
    "LeakyRelu": (nn.LeakyReLU, functional.leaky_relu),
    "Elu": (nn.ELU, functional.elu),
    "PRelu": (nn.PReLU,),
    "Sigmoid": (nn.Sigmoid, torch.sigmoid, functional.sigmoid, "sigmoid"),
    "Tanh": (nn.Tanh, torch.tanh, functional.tanh, "tanh"),
    "Softmax": (nn.Softmax, torch.softmax, functional.softmax, "softmax"),
    "LayerNormalization": (nn.LayerNorm, functional.layer_norm),
    "AveragePool": (nn.AvgPool2d, functional.avg_pool2d),
    "MaxPool": (nn.MaxPool2d, functional.max_pool2d, torch.max_pool2d),
    "ReduceMean": (torch.mean, "mean"),
    "Add": (operator.add, operator.iadd, torch.add, "add", "add_"),
    "Sub": (operator.sub, operator.isub, torch.sub, "sub", "sub_"),
    "Mul": (operator.mul, operator.imul, torch.mul, "mul", "mul_"),
    "Div": (operator.truediv, operator.itruediv, torch.div, "div", "div_"),
    "MatMul": (operator.matmul, torch.matmul, torch.bmm, Product, "matmul", "bmm"),
    "Concat": (torch.cat, torch.concat),
    "Flatten": (nn.Flatten, torch.flatten, "flatten"),
    "Reshape": (torch.reshape, "reshape", "view"),
    "Transpose": (torch.permute, torch.transpose, "permute", "transpose"),
    "Squeeze": (torch.squeeze, "squeeze"),
    "Unsqueeze": (torch.unsqueeze, "unsqueeze"),
    "Split": (torch.split, "split"),
    "Expand": ("expand",),
}  # fmt: skip
_CHUNKS = (torch.chunk, "chunk")
_OPERATOR = {called: op for op, calls in _ONE.items() for called in calls}


@dataclass(frozen=True)
class NodeName:
    """One node of the exported float network.

    Attributes
    ----------
    name, op_type
        The node's, as ``/features/features.0/features.0.0/Conv`` and ``Conv``; the name ends in a
        slash where nothing is known of the operator.
    tensor
        What its output is called there; "" for the node's name and ``_output_0``.
    """

    name: str
    op_type: str
    tensor: str = ""

    @property
    def scope(self) -> str:
        """The modules around the operator."""
        return self.name.rpartition("/")[0]


def node_names(graph: fx.GraphModule) -> dict[fx.Node, NodeName]:
    """Return what each node of a traced network is called in an export at opset 14 to 17.

    Of several ONNX nodes, the last one counts: its output is the fx node's.

    Parameters
    ----------
    graph
        In the order in which it is computed; `graph.ShapeProp` has run.
    """
    modules = dict(graph.named_modules())
    scopes: dict[str, str] = {}  # a call of a module -> its scope
    calls: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    parts: dict[fx.Node, list[str]] = {}  # of what one call writes as several slices
    found = {}
    for node in graph.graph.nodes:
        if CALLED in node.meta:
            found[node] = node.meta[CALLED]
            continue
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        written, op_type = _written(node, module)
        key, path = _call(node)
        if written and key not in scopes:
            scope = scope_of(path)
            scopes[key] = _numbered(scope, calls)
        scope = scopes.get(key, scope_of(path))
        if node.target is operator.getitem and node.args[0] in parts:
            found[node] = NodeName(parts[node.args[0]][node.args[1]], "Slice")
            continue
        names = [_numbered(f"{scope}/{op}", operators) for op in written]
        if node.target in _CHUNKS:
            parts[node] = [n for n, op in zip(names, written, strict=True) if op == "Slice"]
        found[node] = NodeName(names[-1] if names else f"{scope}/", op_type)
    return found


def scope_of(path: str) -> str:
    """Return what torch's TorchScript exporter puts in front of a module's operators.

    Children of a Sequential carry its name: ``features.0.0`` becomes
    ``/features/features.0/features.0.0``.
    """
    scopes, name = [], ""
    for part in path.split(".") if path else ():
        name = f"{name}.{part}" if part.isdigit() and name else part
        scopes.append(name)
    return "".join(f"/{scope}" for scope in scopes)


def _call(node: fx.Node) -> tuple[str, str]:
    """Return which call of which module a node belongs to: a key, and the module's path."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        path = str(node.target) if node.op == "call_module" else ""
        return path, path
    key = next(reversed(stack))
    return key, stack[key][0]


def _numbered(name: str, taken: Counter[str]) -> str:
    number, taken[name] = taken[name], taken[name] + 1
    return f"{name}_{number}" if number else name


def _written(node: fx.Node, module: nn.Module | None) -> tuple[tuple[str, ...], str]:
    """Return the operators that the exporter writes for a node, and the one that they are."""
    if node.op in ("placeholder", "output", "get_attr"):
        return (), ""
    called: type | Callable | str = type(module) if module is not None else node.target
    if called in (nn.GELU, functional.gelu):
        way = module.approximate if isinstance(module, nn.GELU) else node.kwargs.get("approximate")
        return (_TANH if way == "tanh" else _ERF), "Gelu"
    if called in (nn.AdaptiveAvgPool2d, functional.adaptive_avg_pool2d):
        size = module.output_size if isinstance(module, nn.AdaptiveAvgPool2d) else node.args[1]
        op = "GlobalAveragePool" if size in (1, (1, 1), [1, 1]) else "AveragePool"
        return (op,), op
    if called is operator.getitem:
        return _of_index(node)
    kinds = type(module).__mro__ if module is not None else (called,)
    op = next((_OPERATOR[kind] for kind in kinds if kind in _OPERATOR), "")
    if called in _CHUNKS:
        count: Any = node.args[1] if len(node.args) > 1 else node.kwargs["chunks"]
        return ("Shape", "Gather", "Add", "Div", *("Mul", "Slice") * count), ""
    if op == "Flatten" and _first_dimension(node, module) != 1:
        return ("Shape", "Slice", "Concat", "Reshape"), "Reshape"
    return ((op,) if op else ()), op


def _first_dimension(node: fx.Node, module: nn.Module | None) -> Any:
    if isinstance(module, nn.Flatten):
        return module.start_dim
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)


def _of_index(node: fx.Node) -> tuple[tuple[str, ...], str]:
    """Return what indexing writes: a part of a split is an output of that, and no node."""
    if not hasattr(node.args[0].meta.get("tensor_meta"), "shape"):  # type: ignore[union-attr]
        return (), ""
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    kinds = [
        "Gather" if isinstance(part, int) else "Slice" for part in index if part != slice(None)
    ]
    return tuple(kinds), kinds[-1] if kinds else ""
