"""PyTorch to a description, by torch.export: every call becomes a layer of one of few kinds."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from ..errors import TranslationError
from . import patterns
from .description import Description, Layer, as_written
from .operator import KINDS, Call, Operator, imported
from .program import (
    FOR_TWO,
    call,
    changes_nothing,
    constants,
    differs,
    exported,
    is_tensor,
    module,
    modules,
    refuse_shared_writes,
    shape,
    target,
)
from .shape_operators import RESHAPES, Expand, Parameter

Weights = dict[str, torch.Tensor]


def import_torch(
    network: nn.Module, size: int | tuple[int, int], name: str = "network"
) -> tuple[Description, Weights]:
    """Return a network's description, and its weights by the names of its parameters.

    Parameters
    ----------
    network
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
    picture = (3, height, width)
    made = _Import(*exported(network, picture, name), name)
    layers, output = made.run()
    return Description(name, picture, layers, output), made.weights


@dataclass(frozen=True)
class _Plan:
    """What becomes of a node: a layer with its inputs; without a kind it is its input itself."""

    inputs: tuple[Any, ...]
    made: Operator | None = None
    weights: str = ""
    values: Weights = dataclasses.field(default_factory=dict)


class _Import:
    """One import: first what each node becomes, from the output on, then the layers in order."""

    def __init__(self, program: ExportedProgram, for_two: ExportedProgram, name: str) -> None:
        self.name, self.nodes = name, list(program.graph.nodes)
        signature = program.graph_signature
        self.stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.state = {**program.state_dict, **program.constants}
        self.results = signature.user_outputs
        self.picture = next(n for n in self.nodes if n.name in signature.user_inputs)
        self.constants, self.constants_for_two = constants(program), constants(for_two)
        refuse_shared_writes(program, self.constants, name)
        self.layers: list[Layer] = []
        self.layer_of = {self.picture: "input"}
        self.weights: Weights = {}

    def run(self) -> tuple[tuple[Layer, ...], str]:
        """Return the layers, and the name of the last."""
        if len(self.results) != 1 or not isinstance(self.results[0], str):
            words = f"{self.name} has {len(self.results)} results; a description has one tensor."
            raise TranslationError(f"{words} Return only the logits, or use ONNX or .pt2.")
        output = next(n for n in self.nodes if n.name == self.results[0])
        self.plans = self._plans(output)
        self.names = _Names(self.plans)
        for node in self.nodes:
            if node in self.plans and not self._waits(node):
                self._put(node)
        self._put(output)
        return tuple(self.layers), self.layer_of[output]

    def _waits(self, node: Any) -> bool:
        """Whether a layer comes just before the first that takes it: a stored tensor."""
        return isinstance(self.plans[node].made, Parameter)

    def _put(self, node: Any) -> None:
        if node in self.layer_of:
            return
        plan = self.plans[node]
        for given in plan.inputs:
            self._put(given)
        inputs = tuple(self.layer_of[given] for given in plan.inputs)
        if plan.made is None:
            self.layer_of[node] = inputs[0]
            return
        self._add(node, Layer(self.names.of(node, plan), plan.made, inputs, plan.weights))
        self.weights |= plan.values
        if self._waits(node) and -1 in shape(node):
            name = self.names.new(f"{self.layer_of[node]}_each")
            self._add(node, Layer(name, Expand(), (self.layer_of[node], "input")))

    def _add(self, node: Any, layer: Layer) -> None:
        self.layers.append(layer)
        self.layer_of[node] = layer.name

    def _plans(self, output: Any) -> dict[Any, _Plan]:
        """Return what becomes of each node that the output depends on."""
        wanted, plans = {output} - {self.picture}, dict[Any, _Plan]()
        problem: TranslationError | None = None
        for node in reversed(self.nodes):
            if node not in wanted:
                continue
            try:
                plans[node] = self._plan(node)
                wanted |= {*plans[node].inputs} - {self.picture}
            except TranslationError as error:  # the first in the network is told
                problem = error
                wanted |= {n for n in node.all_input_nodes if is_tensor(n)} - {self.picture}
        if problem:
            raise problem
        return plans

    def _plan(self, node: Any) -> _Plan:
        if node in self.constants:
            return self._constant(node)
        if node.op == "placeholder":
            return self._parameter(node)
        if pattern := patterns.found(node):
            return _Plan((pattern[1],), pattern[0])
        if not hasattr(node.target, "_schema"):  # one of several results, or a context
            of_many = node.args and is_tensor(node.args[0])
            raise self._unknown(node, target(node.args[0] if of_many else node))
        if not any(_type(given) == _type(node) for given in node.all_input_nodes):
            raise self._unknown(node, f"{target(node)} with a result of {_type(node)}")
        if changes_nothing(node):
            return _Plan((node.args[0],))
        return self._layer(node, call(node))

    def _layer(self, node: Any, said: Call) -> _Plan:
        if differs(node) and target(node) not in RESHAPES | {"expand"}:
            raise self._unknown(node, f"{target(node)} by the number of pictures")
        made = imported(said)
        if made is None:
            raise self._unknown(node, target(node))
        prefix, values = self._weights_of(node, said, made)
        more = (self.picture,) if isinstance(made, Expand) else ()
        return _Plan((*_inputs(said, made), *more), made, prefix, values)

    def _weights_of(self, node: Any, said: Call, made: Operator) -> tuple[str, Weights]:
        """Return what the names of a call's weights begin with, and the weights."""
        prefix: str | None = None
        values: Weights = {}
        for argument, own in made.weights.items():
            value = said.arguments.get(argument)
            if value is None:
                continue
            full = self.stored.get(value.name, "")
            begin = full.removesuffix(own)
            if begin == full or prefix not in (None, begin):
                raise self._unknown(node, f"{said.target} with the weights {full or value.name}")
            prefix = begin
            values[full] = self.state[full].detach().contiguous()
        return as_written(prefix or ""), values

    def _parameter(self, node: Any) -> _Plan:
        full = self.stored.get(node.name)
        if full is None:
            raise self._unknown(node, f"the input {node.name}")
        head, _, tail = full.rpartition(".")
        return self._tensor(node, self.state[full], head, tail)

    def _constant(self, node: Any) -> _Plan:
        """Return a layer for what is the same for all pictures, its value kept as a weight."""
        value, two = self.constants[node], self.constants_for_two[node.meta[FOR_TWO]]
        alike = value.shape in (two.shape, (1, *two.shape[1:]))
        if not alike or not (two == value).all():
            raise self._unknown(node, f"{target(node)} by the number of pictures")
        return self._tensor(node, value, "constants", node.name)

    def _tensor(self, node: Any, value: torch.Tensor, prefix: str, own: str) -> _Plan:
        if value.dtype not in (torch.float32, torch.int64):
            raise self._unknown(node, f"a tensor of {_type(node)}")
        dtype: Literal["float32", "int64"] = "int64" if value.dtype == torch.int64 else "float32"
        made = Parameter(own, tuple(value.shape), dtype)
        full = f"{prefix}.{own}" if prefix else own
        return _Plan((), made, prefix, {full: value.detach().contiguous()})

    def _unknown(self, node: Any, what: str) -> TranslationError:
        where = module(node)
        return TranslationError(
            f"{self.name}: no kind of layers stands for {what}, in {where or 'the network itself'}"
            f". The {len(KINDS)} kinds are {', '.join(KINDS)}. Register one "
            "(labutils/representation/operator.py), or use ONNX or .pt2, which keep everything.",
            node=node.name, op_type=target(node), module=where,
        )  # fmt: skip


class _Names:
    """What layers are called: after the module that makes only this call, else inside it."""

    def __init__(self, plans: dict[Any, _Plan]) -> None:
        layers = [(_place(node, plan), node) for node, plan in plans.items() if plan.made]
        self.calls = Counter(place for place, _ in layers)
        inside = {path for place, node in layers for path in (place, *modules(node))}
        self.paths = {_above for path in inside for _above in _and_above(path)}
        self.outer = {path.rpartition(".")[0] for path in self.paths if path}
        self.taken = {"input"}

    def of(self, node: Any, plan: _Plan) -> str:
        """Return the name of a node's layer, which no other layer has."""
        place = _place(node, plan)
        if isinstance(plan.made, Parameter):
            return self.new(f"{place}.{plan.made.tensor}")
        if place and place not in self.outer and self.calls[place] == 1:
            return self.new(place, of_module=True)
        assert plan.made is not None
        return self.new(f"{place}.{plan.made.kind}")

    def new(self, base: str, of_module: bool = False) -> str:
        """Return a name that is still free: this, or with a number."""
        name = base = re.sub(r"[^\w.]", "_", base.removeprefix("."))
        number = 1
        while name in self.taken or (name in self.paths and not of_module):
            number += 1
            name = f"{base}_{number}"
        self.taken.add(name)
        return name


def _place(node: Any, plan: _Plan) -> str:
    """Return the path of the module that a layer belongs to; a parameter belongs to its owner."""
    return plan.weights if isinstance(plan.made, Parameter) else module(node)


def _and_above(path: str) -> Iterable[str]:
    """Yield a path and those of the modules that it is in."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _type(node: Any) -> str:
    """Return the type of a tensor's values: ``float32``."""
    return str(getattr(node.meta.get("val"), "dtype", "")).removeprefix("torch.")


def _inputs(said: Call, made: Operator) -> tuple[fx.Node, ...]:
    found: list[Any] = []
    for name in made.inputs or [n for n in said.arguments if n not in made.weights]:
        value = said[name]
        values = value if isinstance(value, list | tuple) else [value]
        found += [one for one in values if is_tensor(one)]
    return tuple(found)
