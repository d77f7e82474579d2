"""Where fake quantization goes: the graph of a network, BatchNorm folded, quantizers inserted.

The places are those of the QDQ files that `static` writes, so that Qualcomm's compiler finds the
same shape: after the input, and after every operator that makes new values; not between a
convolution and the ReLU that follows it; and the same quantizer again after an operator that only
moves values (flatten, max pool).
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils import parametrize

from ...errors import SurgeryError, UnknownNameError
from ..recipe import Recipe
from .fake_quant import BiasQuant, FakeQuant, Grid, quantizers

CARRIERS: dict[type, int] = {
    nn.Conv1d: 0, nn.Conv2d: 0, nn.Linear: 0, nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 1,
}  # fmt: skip
"""Modules with a weight to quantize, and the axis of their output channels."""

_OP_TYPES = {
    nn.Conv1d: "Conv", nn.Conv2d: "Conv", nn.Linear: "Gemm", nn.ConvTranspose1d: "ConvTranspose",
    nn.ConvTranspose2d: "ConvTranspose", nn.Hardswish: "HardSwish", nn.Hardsigmoid: "HardSigmoid",
    nn.ReLU: "Relu", nn.ReLU6: "Clip", nn.AdaptiveAvgPool2d: "GlobalAveragePool",
    nn.Sigmoid: "Sigmoid", nn.AvgPool2d: "AveragePool", nn.MaxPool2d: "MaxPool",
    operator.add: "Add", operator.iadd: "Add", torch.add: "Add", operator.mul: "Mul",
    operator.imul: "Mul", torch.mul: "Mul", torch.flatten: "Flatten", torch.clamp: "Clip",
}  # fmt: skip
_MOVES = (nn.Flatten, nn.MaxPool2d, nn.MaxPool1d, nn.PixelShuffle, nn.ChannelShuffle)
_MOVING_CALLS = {
    torch.flatten, operator.getitem, torch.reshape, torch.permute, torch.transpose, torch.squeeze,
    torch.unsqueeze, torch.chunk, torch.split, nn.functional.max_pool2d,
    "flatten", "reshape", "view", "permute", "transpose", "contiguous", "squeeze", "unsqueeze",
    "chunk", "split",
}  # fmt: skip
_NOTHING = (nn.Dropout, nn.Dropout2d, nn.Identity)
_RECTIFIERS = (nn.ReLU,)


def trace(model: nn.Module) -> fx.GraphModule:
    """Return a copy of `model` as a graph, in evaluation mode, BatchNorm folded into convolutions.

    Raises
    ------
    SurgeryError
        The forward method cannot be traced: it decides by the values of its input.
    """
    model = copy.deepcopy(model).eval()
    for name, module in list(model.named_modules()):
        if (
            isinstance(module, nn.BatchNorm2d)
            and type(module).forward is not nn.BatchNorm2d.forward
        ):
            model.set_submodule(name, _plain_norm(module))
        elif getattr(module, "inplace", False):
            module.inplace = False  # a quantizer's gradient needs what it was given
    try:
        graph: Any = fuse(model)
    except (fx.proxy.TraceError, TypeError, NotImplementedError, RuntimeError) as error:
        raise SurgeryError(
            f"{type(model).__name__} cannot be traced by torch.fx, which quantization-aware "
            f"training needs: {str(error).splitlines()[0]} Rewrite the forward method without "
            "Python control flow on tensors, or quantize after training (quantize.static)."
        ) from None
    return graph


def _plain_norm(module: nn.BatchNorm2d) -> nn.Module:
    """Return a BatchNorm with an activation inside (timm's) as BatchNorm and activation."""
    norm = nn.BatchNorm2d(module.num_features, module.eps, module.momentum, module.affine)
    norm.load_state_dict(module.state_dict(), strict=False)
    inner = [getattr(module, name) for name in ("drop", "act") if hasattr(module, name)]
    return nn.Sequential(norm, *inner).eval()


def insert_(graph: fx.GraphModule, recipe: Recipe, example: torch.Tensor) -> None:
    """Insert activation quantizers into a traced graph and parametrize its weights and biases.

    Parameters
    ----------
    graph
        What `trace` returns.
    recipe
        Bits, symmetry, granularity, overrides and exclusions. Globs are matched with the name
        that the node has in an ONNX export (``/features/features.0/features.0.0/Conv``) and with
        its module path (``features.0.0``).
    example
        (1, 3, size, size) float32: one run tells which values are float tensors.

    Raises
    ------
    UnknownNameError
        A glob of the recipe that no node matches.
    """
    ShapeProp(graph).propagate(example)
    modules, places = dict(graph.named_modules()), _Places(graph, recipe)
    places.check_globs()
    learned = recipe.qat is None or recipe.qat.scales == "learned"
    for node in list(graph.graph.nodes):
        kind = type(modules.get(node.target)) if node.op == "call_module" else None
        if kind in CARRIERS and not places.excluded(node):
            _quantize_weight_(modules[node.target], CARRIERS[kind], places, node, learned)
    made: dict[fx.Node, str] = {}
    scopes: dict[str, list[str]] = {}
    for node in list(graph.graph.nodes):
        if not places.wants(node):
            continue
        source = places.origin(node)
        if source is not None and source in made:
            name = made[source]
        else:
            name = f"quantizers.{node.name}"
            grid = _activation_grid(recipe, places.bits(node))
            graph.add_submodule(name, FakeQuant(grid, learned=learned))
        made[node] = name
        scopes.setdefault(name, []).append(places.scope(node))
        _after_(graph, node, name)
    _convert_(graph, recipe, places, made, learned)
    graph.recompile()
    graph.meta["scopes"] = scopes
    _quantize_biases_(graph)
    graph.eval()


def entries(graph: fx.GraphModule) -> dict[str, str]:
    """Return the name of the quantizer that feeds each convolution or linear module."""
    modules, found = dict(graph.named_modules()), {}
    for node in graph.graph.nodes:
        if node.op == "call_module" and _is_carrier(modules[node.target]):
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
        self.names = {node: self._names(node) for node in graph.graph.nodes}

    def _names(self, node: fx.Node) -> tuple[tuple[str, str], str]:
        """Return ((ONNX name, module path), operator type)."""
        module = self.modules.get(node.target) if node.op == "call_module" else None
        op = _OP_TYPES.get(type(module) if module is not None else node.target, "")
        path = str(node.target) if module is not None else node.name
        return (f"{self.scope(node)}/{op}", path), op

    def scope(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return scope_of(str(node.target))
        return scope_of(next(reversed(node.meta.get("nn_module_stack") or {"": None})))

    def excluded(self, node: fx.Node) -> bool:
        return any(self.recipe.excluded(name) for name in self.names[node][0])

    def setting(self, node: fx.Node, what: str) -> Any:
        names, op = self.names[node]
        found = [self.recipe.setting(name, op, what) for name in names]
        return next((value for value in found if value is not None), None)

    def bits(self, node: fx.Node) -> int:
        return self.setting(node, "activations") or self.recipe.activations.bits

    def check_globs(self) -> None:
        everything = [(name, op) for names, op in self.names.values() for name in names]
        for override in self.recipe.overrides:
            if not any(override.matches(*pair) for pair in everything):
                raise UnknownNameError(
                    "node", override.node if override.node != "*" else override.op_type,
                    [name for name, _ in everything],
                )  # fmt: skip
        for glob in self.recipe.exclude:
            if not any(Recipe(exclude=(glob,)).excluded(name) for name, _ in everything):
                raise UnknownNameError("node", glob, [name for name, _ in everything])

    def wants(self, node: fx.Node) -> bool:
        """Return whether a quantizer follows `node`."""
        if node.op in ("output", "get_attr") or not _is_float(node):
            return False
        module = self.modules.get(node.target) if node.op == "call_module" else None
        if isinstance(module, _NOTHING) or not node.users:
            return False
        if self.excluded(node) and all(u.op == "output" or self.excluded(u) for u in node.users):
            return False
        return not (_is_carrier(module) and self._rectified(node))

    def _rectified(self, node: fx.Node) -> bool:
        if len(node.users) != 1:
            return False
        user = next(iter(node.users))
        module = self.modules.get(user.target) if user.op == "call_module" else None
        return isinstance(module, _RECTIFIERS) or user.target in (nn.functional.relu, torch.relu)

    def origin(self, node: fx.Node) -> fx.Node | None:
        """Return the node whose values `node` only moves, None when it makes new ones."""
        module = self.modules.get(node.target) if node.op == "call_module" else None
        if not (isinstance(module, _MOVES) or (module is None and node.target in _MOVING_CALLS)):
            return None
        source = node.args[0]
        while isinstance(source, fx.Node) and source.op == "call_module":
            module = self.graph.get_submodule(str(source.target))
            if not isinstance(module, (FakeQuant, *_NOTHING)):
                break
            source = source.args[0]
        return source if isinstance(source, fx.Node) else None


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


def _is_float(node: fx.Node) -> bool:
    meta = node.meta.get("tensor_meta")
    dtype = getattr(meta, "dtype", None)
    return dtype is not None and dtype.is_floating_point


def _is_carrier(module: nn.Module | None) -> bool:
    return isinstance(module, tuple(CARRIERS))


def _activation_grid(recipe: Recipe, bits: int) -> Grid:
    chosen = recipe.activations
    return Grid(bits, symmetric=chosen.symmetric, power_of_two=chosen.power_of_two)


def _after_(graph: fx.GraphModule, node: fx.Node, name: str) -> None:
    with graph.graph.inserting_after(node):
        rounded = graph.graph.call_module(name, (node,))
    rounded.meta["tensor_meta"] = node.meta.get("tensor_meta")
    node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)


def _convert_(
    graph: fx.GraphModule, recipe: Recipe, places: _Places, made: dict[fx.Node, str], learned: bool
) -> None:
    """Where a reader wants other bits than the maker of a tensor, quantize it again for it."""
    for node, name in list(made.items()):
        rounded = next(iter(node.users))
        quantizer: Any = graph.get_submodule(name)
        have = quantizer.grid.bits
        for reader in list(rounded.users):
            if reader not in places.names or reader.op == "output":
                continue
            want = places.bits(reader)
            if want == have or places.origin(reader) is not None or places.excluded(reader):
                continue
            again = f"{name}_{want}bit"
            if again not in dict(graph.named_modules()):
                graph.add_submodule(
                    again, FakeQuant(_activation_grid(recipe, want), learned=learned)
                )
            with graph.graph.inserting_before(reader):
                reader.replace_input_with(rounded, graph.graph.call_module(again, (rounded,)))


def _quantize_weight_(
    module: Any, axis: int, places: _Places, node: fx.Node, learned: bool
) -> None:
    recipe = places.recipe
    bits = places.setting(node, "weights") or recipe.weights.bits
    per_channel = places.setting(node, "per_channel")
    per_channel = recipe.weights.per_channel if per_channel is None else per_channel
    grid = Grid(
        bits, signed=True, symmetric=True, axis=axis if per_channel else None,
        power_of_two=recipe.weights.power_of_two,
    )  # fmt: skip
    channels = module.weight.shape[axis] if per_channel else 1
    quantizer = FakeQuant(grid, channels, learned=learned)
    quantizer.fit_weight_(module.weight)
    parametrize.register_parametrization(module, "weight", quantizer)


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
    """Return the quantizers of activations by name."""
    return {name: q for name, q in quantizers(graph).items() if not q.grid.signed}
