"""Operators that are one call in PyTorch and several nodes in ONNX, written as those nodes.

A QDQ file rounds between the nodes that it has. So a traced network is brought to them before
quantizers go in: SiLU is a sigmoid and a product, attention two matrix products around a softmax,
and a linear layer over tokens a matrix product and a sum, as TorchScript's exporter writes them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from ...errors import SurgeryError


class Product(nn.Module):
    """A product with a constant matrix, as ONNX's MatMul has it: one scale serves all of it.

    Parameters
    ----------
    weight
        (in, out).
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().contiguous())
        self.bias = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x @ weight``, float32 (..., out)."""
        return torch.matmul(x, self.weight)


class Swish(nn.Module):
    """SiLU as the two operators of its ONNX form; in place where it was."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x sigmoid(x)``, of the same shape."""
        if self.in_place:
            x *= torch.sigmoid(x)
            return x
        return x * torch.sigmoid(x)


def write_out_modules_(model: nn.Module) -> None:
    """Replace, before a network is traced, the modules that ONNX writes in several nodes.

    Raises
    ------
    SurgeryError
        A module that hides what is rounded: torch.fx does not look into it.
    """
    for name, module in list(model.named_modules()):
        if type(module) is nn.SiLU:
            model.set_submodule(name, Swish(module.inplace))
        elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            kind = type(module).__name__
            raise SurgeryError(
                f"'{name}' is a {kind}, which torch.fx takes as one operator, while its ONNX file "
                "rounds between the products inside it: it cannot be trained with the rounding in "
                "place. Write it with linear layers and "
                "torch.nn.functional.scaled_dot_product_attention (as timm's networks do), or "
                "quantize after training (quantize.static)."
            )


def write_out_calls_(graph: fx.GraphModule) -> None:
    """Replace, in a traced network whose shapes are known, calls that ONNX writes in several nodes.

    Parameters
    ----------
    graph
        After a `ShapeProp`, which has to run again afterwards.

    Raises
    ------
    SurgeryError
        Attention with a mask, or over grouped heads.
    """
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and type(modules.get(str(node.target))) is nn.Linear:
            _write_out_linear_(graph, node)
        for called, write in _WRITERS.items():
            if node.op != "call_module" and node.target == called:
                write(graph, node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _write_out_linear_(graph: fx.GraphModule, node: fx.Node) -> None:
    """Write a linear layer over more than two dimensions as MatMul and Add."""
    if len(_shape(node.args[0])) < 3:
        return
    linear: Any = graph.get_submodule(str(node.target))
    if type(linear) is nn.Linear:  # not at its second call
        product = Product(linear.weight.T)
        product.weight.requires_grad_(linear.weight.requires_grad)
        graph.set_submodule(str(node.target), product)
        if linear.bias is not None:
            offset = nn.Parameter(linear.bias.detach().clone(), linear.bias.requires_grad)
            product.register_parameter("offset", offset)
    if not hasattr(graph.get_submodule(str(node.target)), "offset"):
        return

    def added(make: fx.Graph) -> fx.Node:
        offset = make.get_attr(f"{node.target}.offset")
        offset.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
        return make.call_function(operator.add, (node, offset))

    _after(graph, node, added)


def _write_out_silu_(graph: fx.GraphModule, node: fx.Node) -> None:
    x = node.args[0]

    def product(make: fx.Graph) -> fx.Node:
        gate = make.call_function(torch.sigmoid, (x,))
        return make.call_function(operator.mul, (x, _in_scope_of(node, gate)))

    _instead(graph, node, product)


def _write_out_attention_(graph: fx.GraphModule, node: fx.Node) -> None:
    """Write attention as TorchScript's exporter does: half of the scale on either factor."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    values = {name: _default(given.get(name)) for name in names[3:]}
    if values["attn_mask"] is not None or values["is_causal"] or values["enable_gqa"]:
        raise SurgeryError(
            f"The attention '{node.name}' has a mask or grouped heads, and training with the "
            "rounding in place takes attention without them. Quantize after training "
            "(quantize.static)."
        )
    query, key, value = (given[name] for name in names[:3])
    scale = (values["scale"] or _shape(query)[-1] ** -0.5) ** 0.5

    def attended(make: fx.Graph) -> fx.Node:
        def call(function: Callable, *inputs: Any) -> fx.Node:
            return _in_scope_of(node, make.call_function(function, inputs))

        turned = call(torch.transpose, key, -2, -1)
        left, right = call(operator.mul, query, scale), call(operator.mul, turned, scale)
        weights = call(torch.softmax, call(torch.matmul, left, right), -1)
        return call(torch.matmul, weights, value)

    _instead(graph, node, attended)


def _write_out_norm_(graph: fx.GraphModule, node: fx.Node) -> None:
    """Give a normalization that is called with two parameters the module that holds them."""
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    parts: list[Any] = [given.get("weight"), given.get("bias")]
    if not all(isinstance(part, fx.Node) and part.op == "get_attr" for part in parts):
        return
    owners = {str(part.target).rpartition(".")[0] for part in parts if isinstance(part, fx.Node)}
    if len(owners) != 1 or not (owner := owners.pop()):
        return
    held: Any = graph.get_submodule(owner)
    weight, bias = (getattr(held, str(part.target).rpartition(".")[2]) for part in parts)
    norm = nn.LayerNorm(tuple(given["normalized_shape"]), given.get("eps", 1e-5))
    norm.weight, norm.bias = weight, bias
    graph.set_submodule(owner, norm)
    _instead(graph, node, lambda make: make.call_module(owner, (given["input"],)))


def _write_out_unbind_(graph: fx.GraphModule, node: fx.Node) -> None:
    """Write unbind as a split and a squeeze of each part."""
    x, dim = node.args[0], (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))
    if not all(user.target is operator.getitem for user in node.users):
        return
    with graph.graph.inserting_before(node):
        parts = _in_scope_of(node, graph.graph.call_method("split", (x, 1), {"dim": dim}))
    for user in list(node.users):
        with graph.graph.inserting_before(user):
            part = graph.graph.call_function(operator.getitem, (parts, user.args[1]))
            _in_scope_of(node, part)
            squeezed = graph.graph.call_method("squeeze", (part, dim))
        squeezed.meta["tensor_meta"] = user.meta.get("tensor_meta")
        user.replace_all_uses_with(_in_scope_of(user, squeezed))
        graph.graph.erase_node(user)
    graph.graph.erase_node(node)


_WRITERS: dict[Any, Callable[[fx.GraphModule, fx.Node], None]] = {
    functional.silu: _write_out_silu_,
    functional.scaled_dot_product_attention: _write_out_attention_,
    functional.layer_norm: _write_out_norm_,
    torch.unbind: _write_out_unbind_,
    "unbind": _write_out_unbind_,
}


def _instead(graph: fx.GraphModule, node: fx.Node, write: Callable[[fx.Graph], fx.Node]) -> None:
    with graph.graph.inserting_before(node):
        made = _in_scope_of(node, write(graph.graph))
    made.meta["tensor_meta"] = node.meta.get("tensor_meta")
    node.replace_all_uses_with(made)
    graph.graph.erase_node(node)


def _after(graph: fx.GraphModule, node: fx.Node, write: Callable[[fx.Graph], fx.Node]) -> None:
    with graph.graph.inserting_before(node.next):
        made = _in_scope_of(node, write(graph.graph))
    made.meta["tensor_meta"] = node.meta.get("tensor_meta")
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


def _in_scope_of(node: fx.Node, made: fx.Node) -> fx.Node:
    """Say of a new node that it was called where another one was."""
    made.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
    return made


def _default(value: Any) -> Any:
    """Return a constant, or the default of an argument that nobody passes."""
    if isinstance(value, fx.Node) and value.op == "placeholder":
        return value.args[0] if value.args else None
    return value


def _shape(value: Any) -> tuple[int, ...]:
    meta = value.meta.get("tensor_meta") if isinstance(value, fx.Node) else None
    return tuple(getattr(meta, "shape", ()))
