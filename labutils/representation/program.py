"""What is known of an exported program: its calls, their shapes, and what is constant in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from ..errors import ExportError, TranslationError
from ..models.modes import evaluating
from .operator import Call
from .shape_operators import RESHAPES

_SKIPPED = {
    "dropout", "dropout_", "feature_dropout", "clone", "alias", "detach", "detach_", "identity",
    "lift_fresh_copy", "to",
}  # fmt: skip
"""Calls that change nothing in a network that is not trained; `to` where the type stays."""

_CUTS = {"expand", "expand_as", "slice", "narrow"}
"""Calls that change nothing where the shape stays."""

_MAY_SHARE = _SKIPPED | RESHAPES | {"contiguous"}
FOR_TWO = "for_two"  # in a node's meta: the same node of the program for two pictures


def exported(
    module: nn.Module, picture: tuple[int, ...], name: str
) -> tuple[torch.export.ExportedProgram, torch.export.ExportedProgram]:
    """Return a network's programs for one picture and for two; a node of the first has its twin.

    What differs between the two grows with the number of pictures. A network that takes one picture
    only, as many exported programs do, is its own twin: nothing grows.

    Raises
    ------
    ExportError
        torch.export cannot take it.
    """
    with evaluating(module):
        try:
            program = torch.export.export(module, (torch.zeros(1, *picture),))
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ExportError(f"torch.export cannot take {name}: {reason}") from error
        try:
            other = torch.export.export(module, (torch.zeros(2, *picture),))
        except Exception:
            other = program
    nodes, twins = list(program.graph.nodes), list(other.graph.nodes)
    if [*map(_form, nodes)] != [*map(_form, twins)]:
        other, twins = program, nodes
    for node, twin in zip(nodes, twins, strict=True):
        node.meta[FOR_TWO] = twin
    return program, other


def _form(node: Any) -> tuple[Any, int]:
    return node.target, getattr(node.meta.get("val"), "ndim", -1)


def is_tensor(value: Any) -> bool:
    """Whether an argument is a node that makes a tensor, or several."""
    if not isinstance(value, fx.Node):
        return False
    return isinstance(value.meta.get("val"), torch.Tensor | list | tuple)


def target(node: Any) -> str:
    """Return the operator without namespace and overload: ``conv2d``."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.partition("::")[2] if schema else getattr(node.target, "__name__", str(node))


def modules(node: Any) -> list[str]:
    """Return the paths of the modules that a call is in, from outside; "" is the network itself."""
    stack = (node.meta.get("nn_module_stack") or {}).values()
    return [str(path).partition("@")[0] for path, _ in stack]  # called again: a number after @


def module(node: Any) -> str:
    """Return the path of the module that makes a call."""
    return (modules(node) or [""])[-1]


def shape(node: Any) -> tuple[int, ...]:
    """Return a tensor's shape; -1 stands for a side that grows with the number of pictures."""
    value, twin = node.meta.get("val"), node.meta[FOR_TWO].meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ()
    sides = zip(value.shape, twin.shape, strict=True)
    return tuple(one if one == two else -1 for one, two in sides)


def changes_nothing(node: Any) -> bool:
    """Whether a call returns its tensor as it is, for one picture and for two."""
    if target(node) in _SKIPPED:
        return True
    twin = node.meta[FOR_TWO]
    if target(node) == "contiguous":
        return bool(twin.args[0].meta["val"].is_contiguous())
    return target(node) in _CUTS and all(
        each.meta["val"].shape == each.args[0].meta["val"].shape for each in (node, twin)
    )


def differs(node: Any) -> bool:
    """Whether a call has other numbers for two pictures than for one."""
    return str((node.args, node.kwargs)) != str(
        (node.meta[FOR_TWO].args, node.meta[FOR_TWO].kwargs)
    )


def call(node: Any) -> Call:
    """Return a node's arguments by the names of its schema, defaults included."""
    schema = node.target._schema.arguments
    given = dict(zip((a.name for a in schema), node.args, strict=False)) | dict(node.kwargs)
    arguments = {
        a.name: given[a.name]
        if a.name in given
        else a.default_value
        if a.has_default_value()
        else None
        for a in schema
    }
    shapes = {n: shape(v) for n, v in arguments.items() if is_tensor(v)}
    return Call(target(node), arguments, shapes | {"result": shape(node)})


def constants(program: torch.export.ExportedProgram) -> dict[Any, torch.Tensor]:
    """Return the values of nodes that depend on no picture and no weights: positions, masks."""
    stored = program.graph_signature.inputs_to_lifted_tensor_constants
    known: dict[Any, Any] = {}
    for node in program.graph.nodes:
        if node.name in stored:
            known[node] = program.constants[stored[node.name]].clone()
        elif node.op == "call_function" and (
            _makes_new(node) or all(given in known for given in node.all_input_nodes)
        ):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _value(n, known))
            known[node] = node.target(*args, **kwargs)
    return {node: value for node, value in known.items() if isinstance(value, torch.Tensor)}


def _makes_new(node: Any) -> bool:
    """Whether a call looks at no value of its tensor, only at its type and shape."""
    return target(node).startswith("new_") or target(node) in ("zeros_like", "ones_like")


def _value(node: Any, known: dict[Any, Any]) -> Any:
    if node in known:
        return known[node]
    value = node.meta["val"]
    return torch.zeros(value.shape, dtype=value.dtype)


def refuse_shared_writes(program: torch.export.ExportedProgram, known: Any, name: str) -> None:
    """Refuse a call that changes a tensor in place which others still see through another view.

    Raises
    ------
    TranslationError
        With the call and its module: as layers, one after another, it would be another network.
    """
    order = {node: number for number, node in enumerate(program.graph.nodes)}
    memory: dict[Any, Any] = {}
    for node in order:
        first = node.args[0] if node.op == "call_function" and node.args else None
        memory[node] = memory[first] if is_tensor(first) and _shares(node) else node
        if node in known or not _writes(node):
            continue
        for other in (n for n in memory if n is not node and memory[n] is memory[node]):
            if any(order[user] > order[node] for user in other.users):
                raise TranslationError(
                    f"{name}: {target(node)} in {module(node) or 'the network'} changes a tensor "
                    "in place that is used again through another view. Compute a new tensor "
                    "instead, or use ONNX or .pt2.",
                    node=node.name, op_type=target(node), module=module(node),
                )  # fmt: skip


def _schema(node: Any) -> Any:
    return getattr(node.target, "_schema", None)


def _writes(node: Any) -> bool:
    return bool(_schema(node) and _schema(node).is_mutable)


def _shares(node: Any) -> bool:
    """Whether what a call returns may lie in the memory of what it takes."""
    if target(node) in _MAY_SHARE or _schema(node) is None:  # no schema: a part of a split
        return True
    return any(value.alias_info is not None for value in _schema(node).returns)
