"""Where fake quantization goes: quantizers are inserted into the graph of a network.

The places are those of the QDQ files that `static` writes, so that Qualcomm's compiler finds the
same shape: after the input, and after every operator that makes new values; not between a
convolution and the ReLU that follows it; and the same quantizer again after an operator that only
moves values (flatten, max pool).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils import parametrize

from ...errors import SurgeryError, UsageError
from ..recipe import Recipe
from . import globs, lowering, tracing
from .fake_quant import BiasQuant, FakeQuant, Grid, quantizers
from .lowering import Product
from .node_names import NodeName, node_names

CARRIERS: dict[type, int | None] = {
    nn.Conv1d: 0, nn.Conv2d: 0, nn.Linear: 0, nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 1,
    Product: None,
}  # fmt: skip
"""Modules with a weight to quantize, and the axis of their output channels (None: one scale)."""

_ENTERED = (*CARRIERS, nn.LayerNorm)  # whose bias has the step of the input times the weight's
_MOVES = (nn.Flatten, nn.MaxPool2d, nn.MaxPool1d, nn.PixelShuffle, nn.ChannelShuffle)
_MOVING_CALLS = {
    torch.flatten, operator.getitem, torch.reshape, torch.permute, torch.transpose, torch.squeeze,
    torch.unsqueeze, torch.chunk, torch.split, nn.functional.max_pool2d,
    "flatten", "reshape", "view", "permute", "transpose", "contiguous", "squeeze", "unsqueeze",
    "chunk", "split",
}  # fmt: skip
_SPLITTING_CALLS = {torch.chunk, torch.split, "chunk", "split"}
_NOTHING = (nn.Dropout, nn.Dropout2d, nn.Identity)
_RECTIFIERS = (nn.ReLU,)
_RECTIFYING_CALLS = (nn.functional.relu, torch.relu, "relu")
_CLIPPERS = (nn.ReLU6,)
_CLIPPING_CALLS = (nn.functional.relu6,)
_TAKE_OPERANDS = ("Add", "Sub", "Mul", "Div", "MatMul", "Concat")


def lower_(graph: fx.GraphModule, example: torch.Tensor) -> None:
    """Write a traced graph as the operators of its ONNX file, and note every tensor's shape.

    Parameters
    ----------
    graph
        What `tracing.trace` returns.
    example
        (1, channels, height, width) float32: one run tells which values are float tensors.
    """
    ShapeProp(graph).propagate(example)
    lowering.write_out_calls_(graph)
    ShapeProp(graph).propagate(example)


def insert_(graph: fx.GraphModule, recipe: Recipe, example: torch.Tensor) -> None:
    """Insert activation quantizers into a traced graph and parametrize its weights and biases.

    Parameters
    ----------
    graph
        After `lower_`.
    recipe
        Bits, symmetry, granularity, overrides and exclusions. Globs are matched with the name
        that the node has in an ONNX export (``/features/features.0/features.0.0/Conv``) and with
        its module path (``features.0.0``).
    example
        As for `lower_`.

    Raises
    ------
    UnknownNameError
        A glob of the recipe that no node matches.
    SurgeryError
        A layer whose weight would be rounded is used more than once.
    """
    ShapeProp(graph).propagate(example)
    modules, places = dict(graph.named_modules()), _Places(graph, recipe)
    globs.check(recipe, [(c, n.op_type) for v, n in places.names.items() for c in places.called(v)])
    _refuse_shared(graph, places)
    of_parameters = _made_of_parameters(graph)
    learned = recipe.qat is None or recipe.qat.scales == "learned"
    for node in list(graph.graph.nodes):
        kind = type(modules.get(node.target)) if node.op == "call_module" else None
        if kind in CARRIERS and not places.excluded(node):
            _quantize_weight_(modules[node.target], CARRIERS[kind], places, node, learned)
        elif kind is nn.LayerNorm and not places.excluded(node):
            _quantize_factors_(modules[node.target], recipe, learned)
    made: dict[fx.Node, str] = {}
    widths: dict[str, int] = {}
    names: dict[str, list[tuple[NodeName, ...]]] = {}
    for node in list(graph.graph.nodes):
        if not places.wants(node):
            continue
        source, bits = places.origin(node), places.bits(node)
        name, grid = f"quantizers.{node.name}", places.grid(node, bits)
        if source in made:
            name = made[source]  # it moves the same values
            if widths[name] != bits:
                name, grid = f"{name}_{bits}bit", places.grid(source, bits)
        if name not in widths:
            rounding = FakeQuant(grid, learned=learned, constant=node in of_parameters)
            graph.add_submodule(name, rounding)
            widths[name] = bits
        made[node] = name
        names.setdefault(name, []).append(places.chain(node))
        _after_(graph, node, name)
    places.check_ranges(made)
    _convert_(graph, places, made, widths, learned)
    graph.recompile()
    graph.meta["names"] = names
    _quantize_biases_(graph)
    graph.eval()


def _refuse_shared(graph: fx.GraphModule, places: _Places) -> None:
    """Refuse a layer with rounded weights that is used twice: its bias has one input's step."""
    modules, used = dict(graph.named_modules()), tracing.uses(graph)
    for node in graph.graph.nodes:
        name = str(node.target)
        kind = type(modules.get(name)) if node.op == "call_module" else None
        if kind in (*CARRIERS, nn.LayerNorm) and used[name] > 1 and not places.excluded(node):
            raise SurgeryError(
                f"'{name}' ({kind.__name__}) is used {used[name]} times, and a device stores the "
                "integers of a layer for one place: the step of its bias is that of its input. "
                "Give each place a separate layer (copy.deepcopy), or leave this one in float "
                f"(exclude: ['{name}'])."
            )


def _made_of_parameters(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that compute the same for every image."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op != "placeholder" and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def entries(graph: fx.GraphModule) -> dict[str, str]:
    """Return the name of the quantizer that feeds each convolution or linear module."""
    modules, found = dict(graph.named_modules()), {}
    for node in graph.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], _ENTERED):
            source = node.args[0]
            while source.op == "call_module" and isinstance(modules[source.target], _NOTHING):
                source = source.args[0]
            if source.op == "call_module" and isinstance(modules[source.target], FakeQuant):
                found[node.target] = source.target
    return found


class _Places:
    """Answers, for the nodes of one graph, what the recipe wants there."""

    def __init__(self, graph: fx.GraphModule, recipe: Recipe) -> None:
        self.graph, self.recipe = graph, recipe
        self.modules = dict(graph.named_modules())
        self.names = node_names(graph)
        self._bits = {node: self._width(node) for node in graph.graph.nodes}

    def called(self, node: fx.Node) -> tuple[str, str]:
        """Return what a glob may call a node: its name in an export, and its module path."""
        path = str(node.target) if node.op == "call_module" else node.name
        return self.names[node].name, path

    def excluded(self, node: fx.Node) -> bool:
        return any(self.recipe.excluded(name) for name in self.called(node))

    def setting(self, node: fx.Node, what: str) -> Any:
        op = self.names[node].op_type
        found = [self.recipe.setting(name, op, what) for name in self.called(node)]
        return next((value for value in found if value is not None), None)

    def bits(self, node: fx.Node) -> int:
        """Return the width that a node computes at; the image has the widest of its readers'."""
        return self._bits[node]

    def _width(self, node: fx.Node) -> int:
        default, source = self.recipe.activations.bits, self.origin(node)
        if node.op in ("placeholder", "get_attr") or self.excluded(node):
            readers = [r for _, r in self.readers(node) if not self.excluded(r)]
            return max((self._width(reader) for reader in readers), default=default)
        if source is not None and not self.names[node].op_type:
            (read,) = node.all_input_nodes[:1]
            return self._width(read)  # nobody can name it
        return self.setting(node, "activations") or default

    def readers(self, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Yield who reads a node, past dropout: (which node's output it reads, the reader)."""
        for user in node.users:
            if self._module(user, _NOTHING):
                yield from self.readers(user)
            elif user in self.names and user.op != "output":
                yield node, user

    def _module(self, node: fx.Node, kinds: tuple[type, ...]) -> bool:
        return node.op == "call_module" and isinstance(
            self.graph.get_submodule(str(node.target)), kinds
        )

    def grid(self, node: fx.Node, bits: int) -> Grid:
        """Return the grid of what a node writes."""
        chosen = self.recipe.activations
        own = self.setting(node, "range")
        return Grid(
            bits, symmetric=chosen.symmetric, power_of_two=chosen.power_of_two,
            range=own or chosen.range, whole=own is not None, limit=self._bound(node),
        )  # fmt: skip

    def check_ranges(self, made: Iterable[fx.Node]) -> None:
        """Refuse a range for nodes that write nothing which is rounded."""
        rounded = [
            (called, self.names[node].op_type) for node in made for called in self.called(node)
        ]
        for override in self.recipe.overrides:
            if override.range is not None and not any(override.matches(*pair) for pair in rounded):
                raise UsageError(override.idle_range())

    def wants(self, node: fx.Node) -> bool:
        """Return whether a quantizer follows `node`."""
        if node.op == "output" or not _is_float(node):
            return False
        if node.op == "get_attr":
            return self._is_operand(node)
        if self._module(node, _NOTHING) or not node.users:
            return False
        if self.excluded(node) and all(u.op == "output" or self.excluded(u) for u in node.users):
            return False
        return not self._rectified(node)

    def chain(self, node: fx.Node) -> tuple[NodeName, ...]:
        """Return the names of the nodes that one rounding stands behind, the last one last."""
        before = node.args[0] if node.args else None
        if isinstance(before, fx.Node) and before in self.names and self._rectified(before):
            return self.names[before], self.names[node]
        return (self.names[node],)

    def _rectified(self, node: fx.Node) -> bool:
        """Return whether a ReLU alone reads what `node` computes: it is rounded after that."""
        if len(node.users) != 1 or node.op == "placeholder" or self.origin(node) is not None:
            return False
        user = next(iter(node.users))
        if self.excluded(user) and not self.excluded(node):
            return False
        if self._module(user, _RECTIFIERS) or user.target in _RECTIFYING_CALLS:
            return True
        return self._bound(user) is not None

    def _bound(self, node: fx.Node) -> float | None:
        """Return the upper bound of a ReLU6 whose work the end of the grid does."""
        chosen, own = self.recipe.activations, self.setting(node, "range")
        if not (self._module(node, _CLIPPERS) or node.target in _CLIPPING_CALLS):
            return None
        if chosen.power_of_two or chosen.symmetric or chosen.range or own:
            return None  # such a grid may reach further: the Clip stays
        return 6.0

    def _is_operand(self, node: fx.Node) -> bool:
        """Return whether a parameter is an operand like an activation: of a sum, of a product."""
        readers = [reader for _, reader in self.readers(node)]
        return bool(readers) and all(
            self.names[reader].op_type in _TAKE_OPERANDS and not self.excluded(reader)
            for reader in readers
        )

    def origin(self, node: fx.Node) -> fx.Node | None:
        """Return the node whose values `node` only moves, None when it makes new ones."""
        module = self.modules.get(node.target) if node.op == "call_module" else None
        if not (isinstance(module, _MOVES) or (module is None and node.target in _MOVING_CALLS)):
            return None
        source = node.args[0]
        while isinstance(source, fx.Node) and (
            source.target in _SPLITTING_CALLS or self._module(source, (FakeQuant, *_NOTHING))
        ):
            source = source.args[0]
        return source if isinstance(source, fx.Node) else None


def _is_float(node: fx.Node) -> bool:
    meta = node.meta.get("tensor_meta")
    dtype = getattr(meta, "dtype", None)
    return dtype is not None and dtype.is_floating_point


def _after_(graph: fx.GraphModule, node: fx.Node, name: str) -> None:
    with graph.graph.inserting_after(node):
        rounded = graph.graph.call_module(name, (node,))
    rounded.meta["tensor_meta"] = node.meta.get("tensor_meta")
    node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)


def _convert_(
    graph: fx.GraphModule,
    places: _Places,
    made: dict[fx.Node, str],
    widths: dict[str, int],
    learned: bool,
) -> None:
    """Where readers want other bits than the maker of a tensor, quantize it again for them."""
    for node, name in list(made.items()):
        rounded = next(iter(node.users))
        converted: dict[tuple[fx.Node, int], fx.Node] = {}
        for read, reader in list(places.readers(rounded)):
            want = places.bits(reader)
            if want == widths[name] or places.excluded(reader):
                continue
            again = f"{name}_{want}bit"
            if again not in widths:
                graph.add_submodule(again, FakeQuant(places.grid(node, want), learned=learned))
                widths[again] = want
            if (read, want) not in converted:
                with graph.graph.inserting_before(read.next):
                    converted[read, want] = graph.graph.call_module(again, (read,))
            reader.replace_input_with(read, converted[read, want])


def _quantize_weight_(
    module: Any, axis: int | None, places: _Places, node: fx.Node, learned: bool
) -> None:
    recipe = places.recipe
    bits = places.setting(node, "weights") or recipe.weights.bits
    own, per_channel = (places.setting(node, what) for what in ("weight_range", "per_channel"))
    per_channel = recipe.weights.per_channel if per_channel is None else per_channel
    grid = Grid(
        bits, signed=True, symmetric=True, axis=axis if per_channel else None,
        power_of_two=recipe.weights.power_of_two, limit=recipe.weights.limit,
        range=None if own is None else (-own, own),
    )  # fmt: skip
    channels = 1 if grid.axis is None else module.weight.shape[grid.axis]
    quantizer = FakeQuant(grid, channels, learned=learned)
    quantizer.fit_weight_(module.weight)
    parametrize.register_parametrization(module, "weight", quantizer)
    quantizer.held_in = (module.parametrizations.weight,)


def _quantize_factors_(norm: Any, recipe: Recipe, learned: bool) -> None:
    """Round what a normalization multiplies by as devices have it: 8 bits, unsigned."""
    if norm.weight is not None:
        grid = Grid(8, power_of_two=recipe.weights.power_of_two)
        rounding = FakeQuant(grid, learned=learned, constant=True)
        parametrize.register_parametrization(norm, "weight", rounding)
        rounding.held_in = (norm.parametrizations.weight,)


def _quantize_biases_(graph: fx.GraphModule) -> None:
    for name, entry in entries(graph).items():
        module: Any = graph.get_submodule(name)
        if module.bias is not None and parametrize.is_parametrized(module, "weight"):
            (weight,) = module.parametrizations.weight
            maker: Any = graph.get_submodule(entry)
            rounding = BiasQuant(maker, weight)
            parametrize.register_parametrization(module, "bias", rounding)


def weights_of(graph: nn.Module) -> dict[str, tuple[nn.Module, FakeQuant]]:
    """Return each module with a quantized weight, and that weight's quantizer, by name."""
    return {
        name: (module, module.parametrizations.weight[-1])
        for name, module in graph.named_modules()
        if parametrize.is_parametrized(module, "weight")
        and isinstance(module.parametrizations.weight[-1], FakeQuant)
        and module.parametrizations.weight[-1].grid.signed
    }


def biases_of(graph: nn.Module) -> dict[str, tuple[nn.Module, BiasQuant]]:
    """Return each module with a quantized bias, and that bias's quantizer, by name."""
    return {
        name: (module, module.parametrizations.bias[-1])
        for name, module in graph.named_modules()
        if parametrize.is_parametrized(module, "bias")
        and isinstance(module.parametrizations.bias[-1], BiasQuant)
    }


def activations_of(graph: nn.Module) -> dict[str, FakeQuant]:
    """Return the quantizers of activations, and of parameters that are operands, by name."""
    return {name: q for name, q in quantizers(graph).items() if not q.grid.signed}
