"""PyTorch to a description, by torch.export: every call becomes a layer of one of few kinds."""

from __future__ import annotations

import operator as python_operator
from typing import Any

import torch
from torch import nn

from ..errors import ExportError, TranslationError
from . import tensor_operators
from .description import Description, Layer
from .operator import KINDS, Call, imported

_SKIPPED = {
    "dropout", "dropout_", "feature_dropout", "contiguous", "clone", "alias", "detach", "detach_",
    "identity", "lift_fresh_copy",
}  # fmt: skip
"""Calls that change nothing in a network that is not trained."""

_PARTS = {"chunk", "split", "split_with_sizes"}

Weights = dict[str, torch.Tensor]


def import_torch(
    module: nn.Module, size: int | tuple[int, int], name: str = "network"
) -> tuple[Description, Weights]:
    """Return a network's description, and its weights by the names of its parameters.

    Parameters
    ----------
    module
        A classifier that takes pictures (n, 3, height, width); it is looked at in `eval` mode.
    size
        Side of the picture, or (height, width).
    name
        What the description is called.

    Raises
    ------
    ExportError
        torch.export cannot take the network.
    TranslationError
        It calls an operator for which no kind is registered; with the operator and the module.
    """
    height, width = (size, size) if isinstance(size, int) else size
    example = torch.zeros(1, 3, height, width)
    training = module.training
    try:
        program = torch.export.export(module.eval(), (example,))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"torch.export cannot take {name}: {reason}") from error
    finally:
        module.train(training)
    return _Import(program, module, name, (3, height, width)).run()


class _Import:
    """One import: what is known of each node of the program so far."""

    def __init__(
        self, program: torch.export.ExportedProgram, module: nn.Module, name: str,
        shape: tuple[int, ...],
    ) -> None:  # fmt: skip
        self.program, self.module, self.name, self.shape = program, module, name, shape
        signature = program.graph_signature
        self.stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.layer_of: dict[str, str] = {}  # node -> layer, through what was skipped
        self.layers: list[Layer] = []
        self.weights: Weights = {}
        self.state = {**program.state_dict}
        self.calls = _calls_by_module(program)
        self.taken: set[str] = set()

    def run(self) -> tuple[Description, Weights]:
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in self.program.graph_signature.user_inputs:
                self.layer_of[node.name] = "input"
            elif node.op == "call_function":
                self._add(node)
        (result,) = self.program.graph_signature.user_outputs
        output = self.layer_of[str(result)]
        return Description(self.name, self.shape, tuple(self.layers), output), self.weights

    def _add(self, node: Any) -> None:
        target = _target(node)
        if target in _PARTS or _is_inside_shuffle(node):
            return  # their users say what they are
        if target in _SKIPPED:
            self.layer_of[node.name] = self._layer(node.args[0], node)
        elif node.target is python_operator.getitem:
            self._add_part(node)
        elif source := _shuffled(node):
            self._put(
                node, tensor_operators.Shuffle(_groups(node)), (self._layer(source, node),), ""
            )
        else:
            call = _call(node)
            found = imported(call)
            if found is None:
                raise self._unknown(node, target)
            inputs = self._inputs(node, call, found)
            self._put(node, found, inputs, self._weights_of(node, call, found))

    def _add_part(self, node: Any) -> None:
        """Make one result of a chunk or a split a slice of its input."""
        parts, index = node.args
        if _target(parts) not in _PARTS:
            raise self._unknown(node, _target(parts))
        call, values = _call(parts), parts.meta["val"]
        dim = call["dim"] % values[0].ndim
        start = sum(value.shape[dim] for value in values[:index])
        made = tensor_operators.Slice(dim, start, start + values[index].shape[dim])
        self._put(node, made, (self._layer(parts.args[0], node),), "")

    def _inputs(self, node: Any, call: Call, made: Any) -> tuple[str, ...]:
        found: list[Any] = []
        names = made.inputs or [n for n in call.arguments if n not in made.weights]
        for name in names:
            value = call[name]
            found += [v for v in (value if isinstance(value, list | tuple) else [value]) if _is(v)]
        return tuple(self._layer(value, node) for value in found)

    def _layer(self, value: Any, user: Any) -> str:
        if value.name not in self.layer_of:
            stored = self.stored.get(value.name)
            what = f"the weights {stored}" if stored else f"the constant {value.name}"
            raise TranslationError(
                f"{self.name}: {_target(user)} in {_module(user) or 'the network'} takes {what} as "
                "an input, for which the representation has no kind of layers. Register one "
                "(labutils/representation/operator.py), or use ONNX or .pt2.",
                node=user.name, op_type=_target(user), module=_module(user),
            )  # fmt: skip
        return self.layer_of[value.name]

    def _weights_of(self, node: Any, call: Call, made: Any) -> str:
        """Keep the weights of a call, and return what their names begin with."""
        prefix = ""
        for argument, own in made.weights.items():
            value = call.arguments.get(argument)
            if value is None:
                continue
            full = self.stored.get(value.name, "")
            head, _, tail = full.rpartition(".")
            if tail != own or prefix not in ("", head):
                raise self._unknown(node, f"{call.target} with the weights {full or value.name}")
            prefix = head
            self.weights[full] = self.state[full].detach().contiguous()
        return prefix

    def _put(self, node: Any, made: Any, inputs: tuple[str, ...], weights: str) -> None:
        name = self._named(node, made.kind)
        self.taken.add(name)
        self.layer_of[node.name] = name
        self.layers.append(Layer(name, made, inputs, weights))

    def _named(self, node: Any, kind: str) -> str:
        """Return the module's path where it makes only this call; else a name inside it."""
        path = _module(node)
        leaf = path and not list(self.module.get_submodule(path).children())
        if leaf and self.calls.get(path) == 1 and path not in self.taken:
            return path
        base = f"{path}.{kind}" if path else kind
        inside = {name for name, _ in self.module.named_modules()}
        name, number = base, 1
        while name in self.taken or name in inside:
            number += 1
            name = f"{base}_{number}"
        return name

    def _unknown(self, node: Any, what: str) -> TranslationError:
        module = _module(node)
        return TranslationError(
            f"{self.name}: no kind of layers stands for {what}, in {module or 'the network itself'}"
            f". The {len(KINDS)} kinds are {', '.join(KINDS)}. Register one "
            "(labutils/representation/operator.py), or use ONNX or .pt2, which keep everything.",
            node=node.name, op_type=_target(node), module=module,
        )  # fmt: skip


def _is(value: Any) -> bool:
    return isinstance(value, torch.fx.Node)


def _target(node: Any) -> str:
    """Return the operator without namespace and overload: ``conv2d``."""
    name = getattr(node.target, "_schema", None)
    return name.name.partition("::")[2] if name else getattr(node.target, "__name__", str(node))


def _module(node: Any) -> str:
    """Return the path of the module that makes a call; "" for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.partition("@")[0]  # a module that is called again has a number there


def _calls_by_module(program: torch.export.ExportedProgram) -> dict[str, int]:
    counted: dict[str, int] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and _target(node) not in _SKIPPED:
            counted[_module(node)] = counted.get(_module(node), 0) + 1
    return counted


def _call(node: Any) -> Call:
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
    shapes = {n: _shape(v) for n, v in arguments.items() if _is(v)}
    return Call(_target(node), arguments, shapes | {"result": _shape(node)})


def _shape(node: Any) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if hasattr(value, "shape") else ()


def _shuffled(node: Any) -> Any:
    """Return the node whose channels are shuffled, where `node` is the last of the three calls."""
    if _target(node) == "channel_shuffle":
        return node.args[0]
    chain = _chain(node)
    return chain[0].args[0] if chain else None


def _groups(node: Any) -> int:
    if _target(node) == "channel_shuffle":
        return int(node.args[1])
    return int(_shape(_chain(node)[0])[1])


_VIEWS = {"view", "reshape", "_unsafe_view"}


def _chain(node: Any) -> list[Any]:
    """Return what comes before a view that ends a shuffle: view, transpose, copies; or nothing."""
    if _target(node) not in _VIEWS or not _is(node.args[0]):
        return []
    chain = [node.args[0]]
    while _target(chain[0]) in ("contiguous", "clone"):
        chain.insert(0, chain[0].args[0])
    turned = chain[0]
    grouped = turned.args[0] if turned.args and _is(turned.args[0]) else None
    if grouped is None or grouped.op != "call_function" or _target(grouped) not in _VIEWS:
        return []
    before, inner, after = _shape(grouped.args[0]), _shape(grouped), _shape(node)
    swapped = _target(turned) == "transpose" and sorted(turned.args[1:3]) == [1, 2]
    swapped |= _target(turned) == "permute" and list(turned.args[1]) == [0, 2, 1, 3, 4]
    same = len(before) == 4 and before == after and len(inner) == 5
    fits = same and (inner[0], inner[1] * inner[2], *inner[3:]) == before
    return [grouped, *chain] if swapped and fits else []


def _is_inside_shuffle(node: Any) -> bool:
    """Whether a node's only use leads to the end of a shuffle."""
    ends = [node]
    for _ in range(4):
        users = list(ends[-1].users)
        if len(users) != 1:
            return False
        ends.append(users[0])
        chain = _chain(users[0]) if users[0].op == "call_function" else []
        if chain:
            return node in chain
    return False
