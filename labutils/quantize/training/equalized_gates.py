"""Channels before gates equalized in the graph that is trained, as `static` does it in a file.

The factors are measured in the same way (see `quantize.gates`), and nodes and tensors have the
names that they have there, so a recipe that was searched on an equalized file means the same nodes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from .. import gates
from ..recipe import Recipe, fits
from . import tracing
from .node_names import CALLED, NodeName, node_names

_BATCH = 32
_NOTHING = (nn.Dropout, nn.Dropout2d, nn.Identity)


@dataclass(frozen=True)
class _Site:
    """A convolution, what makes its gated activation, and who reads that; see `gates`."""

    layer: fx.Node
    entry: fx.Node
    product: fx.Node
    readers: list[fx.Node]
    scaled: list[fx.Node]
    others: list[fx.Node]


def equalize_(graph: fx.GraphModule, images: np.ndarray, recipe: Recipe) -> tuple[str, ...]:
    """Equalize channels before gates in place, where one is an outlier; the function stays.

    Parameters
    ----------
    graph
        A traced network with shapes, before quantizers go in.
    images
        (n, channels, height, width) float32: reaches are measured on the first `gates.IMAGES`.
    recipe
        Tells at how many bits the added convolutions compute.

    Returns
    -------
    tuple of str
        The convolutions whose channels were divided, by module path.
    """
    _erase_identities_(graph)
    names = node_names(graph)
    sites = list(_sites(graph, names))
    tensors = [[site.layer, *site.scaled] for site in sites]
    seen = _reaches(graph, {node for group in tensors for node in group}, images[: gates.IMAGES])
    for node, called in names.items():
        node.meta[CALLED] = called
    done = []
    for site, group in zip(sites, tensors, strict=True):
        kept = [gates.kept(seen[node], is_value=node is site.layer) for node in group]
        factor = gates.factor(np.array(kept))
        if factor is not None:
            own = torch.from_numpy(factor).to(next(graph.parameters()).device)
            _divide_(graph, site, own)
            _apart_(graph, site, own, names, recipe)
            done.append(str(site.layer.target))
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return tuple(done)


def _erase_identities_(graph: fx.GraphModule) -> None:
    """Take out what no file has: timm's networks have one between a BatchNorm and its gate."""
    for node in list(graph.graph.nodes):
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def known(recipe: Recipe, graph: fx.GraphModule) -> Recipe:
    """Return the recipe without overrides of added nodes that are not there.

    Other images than those of a search may find other gates to equalize.
    """
    there = {called.name for called in node_names(graph).values()}
    own = (o for o in recipe.overrides if gates.DERIVED not in o.node or _any(o.node, there))
    return recipe.replaced(overrides=tuple(own))


def _any(glob: str, names: set[str]) -> bool:
    return any(fits(name, glob) for name in names)


class _Watching(fx.Interpreter):
    """Runs a graph, and notes the ends of what some nodes give, per image and channel."""

    def __init__(self, graph: fx.GraphModule, watched: Iterable[fx.Node]) -> None:
        super().__init__(graph)
        self.seen: dict[fx.Node, list[np.ndarray]] = {node: [] for node in watched}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.seen:
            flat = result.reshape(*result.shape[:2], -1)
            self.seen[n].append(torch.stack([flat.amin(2), flat.amax(2)]).cpu().numpy())
        return result


@torch.no_grad()
def _reaches(
    graph: fx.GraphModule, watched: Iterable[fx.Node], images: np.ndarray
) -> dict[fx.Node, np.ndarray]:
    """Return (2, n, channels) of each node: the smallest and the largest values of an image."""
    run = _Watching(graph, watched)
    device = next(graph.parameters()).device
    for start in range(0, len(images), _BATCH):
        run.run(torch.from_numpy(images[start : start + _BATCH]).to(device))
    return {node: np.concatenate(parts, axis=1) for node, parts in run.seen.items()}


# ---------------------------------------------------------------- where


def _sites(graph: fx.GraphModule, names: dict[fx.Node, NodeName]) -> Iterator[_Site]:
    modules, used = dict(graph.named_modules()), tracing.uses(graph)
    for layer in graph.graph.nodes:
        if type(modules.get(str(layer.target))) is not nn.Conv2d or layer.op != "call_module":
            continue
        gate = _gate(layer, names)
        if gate is None:
            continue
        entry, before, product = gate
        products = [*before, *_divided(product, names)]
        site = _read(layer, entry, products, modules, names)
        if site.readers and all(used[str(n.target)] == 1 for n in (layer, *site.readers)):
            yield site


def _gate(
    value: fx.Node, names: dict[fx.Node, NodeName]
) -> tuple[fx.Node, list[fx.Node], fx.Node] | None:
    """Return the first node of a gate, what divides the value by numbers, and their product.

    None where there is no gate. A whole HardSwish is its own gate and product.
    """
    users = list(value.users)
    if [_op(node, names) for node in users] == ["HardSwish"]:
        return users[0], [], users[0]
    if len(users) != 2:
        return None
    (one, product), (other, same) = (_chain(node, names) for node in users)
    if product is None or product is not same:
        return None
    linear = [all(_by_a_number(node, names) for node in chain) for chain in (one, other)]
    apart = gates.told_apart((one, other), linear)
    return None if apart is None else (apart[0][0], apart[1], product)


def _chain(node: fx.Node, names: dict[fx.Node, NodeName]) -> tuple[list[fx.Node], fx.Node | None]:
    """Return the nodes from a reader of a value to the product that it ends in; None: in none."""
    found: list[fx.Node] = []
    while True:
        if _op(node, names) == "Mul" and len(node.all_input_nodes) == 2:
            return found, node
        if _op(node, names) not in gates.GATE or len(node.all_input_nodes) != 1:
            return found, None
        found.append(node)
        if len(node.users) != 1:
            return found, None
        node = next(iter(node.users))


def _op(node: fx.Node, names: dict[fx.Node, NodeName]) -> str:
    return names[node].op_type if node in names else ""


def _divided(product: fx.Node, names: dict[fx.Node, NodeName]) -> list[fx.Node]:
    """Return a product and the nodes that divide it by numbers before anyone else reads it."""
    found = [product]
    while len(found[-1].users) == 1 and _by_a_number(next(iter(found[-1].users)), names):
        found.append(next(iter(found[-1].users)))
    return found


def _by_a_number(node: fx.Node, names: dict[fx.Node, NodeName]) -> bool:
    """Whether a node multiplies a tensor by a number, or divides it by one."""
    if _op(node, names) not in ("Mul", "Div") or len(node.args) != 2:
        return False
    tensors = [isinstance(argument, fx.Node) for argument in node.args]
    return tensors == [True, False] or (tensors == [False, True] and _op(node, names) == "Mul")


def _read(
    layer: fx.Node,
    entry: fx.Node,
    products: list[fx.Node],
    modules: dict[str, nn.Module],
    names: dict[fx.Node, NodeName],
) -> _Site:
    """Return who takes the factors of a layer's channels, directly or through pools."""
    channels = int(_weight(modules[str(layer.target)]).shape[0])

    def taken(node: fx.Node) -> tuple[list[fx.Node], list[fx.Node]] | None:
        module: Any = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(module) in (nn.Conv2d, nn.Linear):
            fits = type(module) is nn.Linear or module.groups == 1 or module.weight.shape[1] == 1
            return ([node], []) if fits and len(_into(module)) == channels else None
        passes = isinstance(module, _NOTHING) or _op(node, names) in gates.PASS
        passes = passes or _by_a_number(node, names)
        behind = [taken(user) for user in node.users]
        if not passes or not behind or None in behind:
            return None
        found = [part for part in behind if part is not None]
        return [n for part in found for n in part[0]], [node, *(n for p in found for n in p[1])]

    site = _Site(layer, entry, products[-1], [], list(products), [])
    for node in products[-1].users:
        part = taken(node)
        if part is None:
            site.others.append(node)
        else:
            site.readers.extend(part[0])
            site.scaled.extend(part[1])
    return site


def _weight(module: Any) -> torch.Tensor:
    return module.weight


def _into(module: Any) -> torch.Tensor:
    """Return a view of a layer's weight with its input channels first."""
    weight: torch.Tensor = module.weight.data
    alone = isinstance(module, nn.Conv2d) and module.groups > 1
    return weight if alone else weight.transpose(0, 1)


# ---------------------------------------------------------------- how


def _divide_(graph: fx.GraphModule, site: _Site, factor: torch.Tensor) -> None:
    """Divide what a layer gives by a factor per channel, and multiply what its readers take."""
    layer: Any = graph.get_submodule(str(site.layer.target))
    layer.weight.data /= factor.reshape(-1, 1, 1, 1)
    if layer.bias is not None:
        layer.bias.data /= factor
    for node in site.readers:
        rows = _into(graph.get_submodule(str(node.target)))
        rows *= factor.reshape(-1, *[1] * (rows.ndim - 1))


def _apart_(
    graph: fx.GraphModule,
    site: _Site,
    factor: torch.Tensor,
    names: dict[fx.Node, NodeName],
    recipe: Recipe,
) -> None:
    """Write value and gate apart; the gate gets the value times the factors."""
    base, place = names[site.product].name, f"equalized.{site.product.name}"

    def added(what: str, module: nn.Module, read: fx.Node, after: fx.Node, op: str) -> fx.Node:
        graph.add_submodule(f"{place}.{what}", module)
        with graph.graph.inserting_after(after):
            made = graph.graph.call_module(f"{place}.{what}", (read,))
        called = f"{base}{gates.DERIVED}.{what}"
        made.meta[CALLED] = NodeName(called, op, called)
        return made

    def times_factors(what: str, read: fx.Node, result: str) -> fx.Node:
        wide = (
            recipe.setting(f"{base}{gates.DERIVED}.{what}", "Conv", "activations")
            or recipe.activations.bits
        ) == 16
        made = added(what, _depthwise(factor, 3 if wide else 1), read, read, "Conv")
        made.meta[CALLED] = NodeName(made.meta[CALLED].name, "Conv", result)
        return made

    value, product = site.layer, site.product
    for node in (value, *site.scaled):
        called = node.meta[CALLED]
        own = called.tensor or f"{called.name}_output_0"
        node.meta[CALLED] = NodeName(called.name, called.op_type, f"{own}{gates.DERIVED}")
    scaled = times_factors("scale", value, f"{names[value].name}_output_0")
    if site.entry is product:
        gate = added("gate", nn.Hardsigmoid(), scaled, scaled, "HardSigmoid")
        with graph.graph.inserting_after(gate):
            made = graph.graph.call_function(operator.mul, (value, gate))
        made.meta[CALLED] = NodeName(base, "Mul", product.meta[CALLED].tensor)
        product.replace_all_uses_with(made)
        graph.graph.erase_node(product)
        product = made
    else:
        site.entry.replace_input_with(value, scaled)
    if site.others:
        restored = times_factors("restore", product, f"{base}_output_0")
        for node in site.others:
            node.replace_input_with(product, restored)


def _depthwise(factor: torch.Tensor, side: int) -> nn.Conv2d:
    """Return a convolution that multiplies channels by factors, and is not trained.

    At 16 bits its kernel is 3 x 3, zeros around the middle: see `gates.pad_wide_`.
    """
    n, edge = len(factor), side // 2
    made = nn.Conv2d(n, n, side, padding=edge, groups=n, bias=False, device=factor.device)
    made.weight.data.zero_()[:, 0, edge, edge] = factor
    return made.requires_grad_(False)
