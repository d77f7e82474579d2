"""Gated activations whose channels differ: the value equalized, the gate left as it is.

HardSwish is a value times its gate, ``z * HardSigmoid(z)``; SiLU is ``z * Sigmoid(z)``. One channel
that reaches ten times as far as the others takes nearly all codes of z and of the product. Through
the gate no factor passes, so cross-layer equalization ends here. Apart, they can be told apart: the
convolution gives ``z / s``, with a factor s per channel that makes the channels reach equally far;
a depthwise convolution of 1 x 1 multiplies by s again, for the gate only; the product is exactly
the activation divided by s, and the layers that read it have weights multiplied by s.
Where it goes through an Add, the convolutions that meet it there are divided as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..compare.layerwise import opened
from ..errors import counted
from ..onnxfile.edit import free_name, producers, readers, redirect_, rename_tensors_
from .channel_scales import Weights, channelwise, divide_, multiply_, weights_into, weights_out_of

if TYPE_CHECKING:
    import onnx

OUTLIER = 5.0
"""Equalized is where the farthest channel of the value reaches so many times as far as the median.

In MobileNetV3 of both sizes, trained on two sets: the stem (6.5 to 16) and the last convolution (6
to 60); at the other gates it is 4.5 at most, and the three nodes that a gate costs are not spent.
"""

IMAGES = 128
"""As many are looked at to see how far channels reach; more change little."""

Factors = dict[str, np.ndarray]
"""By the name of the convolution before a gate: s per channel, (channels,) float32, at most 1."""

DERIVED = "/equalized"
"""What the names of tensors and nodes end with, or contain, that are not the network's own."""

_SWEEPS = 3
_LONGER = np.geomspace(1, 32, 21)  # steps of a tensor that are tried
_LEAST = 1 / 32  # of the farthest channel's reach: what a channel is taken to reach at least
_GATE = ("Add", "Sub", "Mul", "Div", "Clip", "Relu", "HardSigmoid", "Sigmoid")
_PASS = ("Relu", "GlobalAveragePool", "AveragePool", "MaxPool", "Identity", "LeakyRelu", "Flatten")
_SHUT = -3.0  # HardSwish's gate is shut below, SiLU's nearly
_KEPT = 0.98  # of the images: the others may reach farther


@dataclass(frozen=True)
class _Site:
    """A convolution, the nodes that make its gated activation, and who meets and reads that."""

    layer: onnx.NodeProto
    entry: onnx.NodeProto  # the first node of the gate, or a whole HardSwish
    product: onnx.NodeProto
    met: tuple[onnx.NodeProto, ...]
    readers: tuple[onnx.NodeProto, ...]
    scaled: frozenset[str]  # the tensors that are divided


def factors(model: onnx.ModelProto, images: np.ndarray) -> Factors:
    """Return s per channel of the convolutions before gates, where one channel is an outlier.

    Parameters
    ----------
    model
        A prepared float model.
    images
        (n, 3, size, size) float32: how far channels reach is measured on the first `IMAGES`.
    """
    weights = _weights(model)
    sites = list(_sites(model, weights))
    found = {}
    for site, reach in zip(sites, _reaches(model, sites, images[:IMAGES]), strict=True):
        squares = [weights_into(r, weights).astype(np.float64) ** 2 for r in site.readers]
        heard = sum(array.reshape(len(array), -1).sum(axis=1) for array in squares)
        chosen = least_noise(reach, heard)
        odd = reach[0].max() > OUTLIER * np.median(reach[0])
        if odd and noise(reach, heard, chosen) < noise(reach, heard, np.ones(len(chosen))):
            found[site.layer.name] = chosen.astype(np.float32)
    return found


def noise(reach: np.ndarray, heard: np.ndarray, factors: np.ndarray) -> float:
    """Return the rounding noise of tensors that share channels, as their readers hear it.

    A tensor's step is as long as its farthest channel is divided by that channel's factor; what a
    step of a channel means is multiplied by its factor again.

    Parameters
    ----------
    reach
        (tensors, channels): greatest magnitudes.
    heard
        (channels,): sum of the squared weights that read a channel.
    factors
        (channels,): s, by which every tensor is divided.
    """
    steps = (reach / factors).max(axis=1)
    return float((steps**2).sum() * (heard * factors**2).sum())


def least_noise(reach: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """Return the factors, at most 1, that make `noise` least.

    For given steps of the tensors the least factors are known, ``max(reach / step)`` over tensors;
    the steps are tried one tensor after the other.
    """
    tallest = np.maximum(reach.max(axis=1, keepdims=True), 1e-12)
    even = reach / tallest
    longer = np.ones(len(reach))

    def of(longer: np.ndarray) -> np.ndarray:
        found = (even / longer[:, None]).max(axis=0)
        return np.maximum(found / found.max(), _LEAST)

    for _ in range(_SWEEPS):
        for tensor in range(len(reach)):
            trials = []
            for length in _LONGER:
                trial = longer.copy()
                trial[tensor] = length
                trials.append((noise(reach, heard, of(trial)), length))
            longer[tensor] = min(trials)[1]
    return of(longer)


def equalize_(model: onnx.ModelProto, found: Factors) -> str:
    """Divide channels by factors in place; what the model computes stays the same.

    Returns
    -------
    str
        What was done, as a sentence.
    """
    from onnx import numpy_helper

    weights = _weights(model)
    for site in [site for site in _sites(model, weights) if site.layer.name in found]:
        factor = found[site.layer.name]
        _apart_(model.graph, site, factor)
        for layer in (site.layer, *site.met):
            divide_(layer, weights, factor)
        for layer in site.readers:
            multiply_(layer, weights, factor)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    del model.graph.value_info[:]  # of tensors under other names
    return f"equalized the channels before {counted(len(found), 'gate')}: {', '.join(found)}"


def _weights(model: onnx.ModelProto) -> Weights:
    from onnx import numpy_helper

    return {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}


def _reaches(model: onnx.ModelProto, sites: list[_Site], images: np.ndarray) -> list[np.ndarray]:
    """Return how far channels reach, (tensors, channels) for each site: the value comes first."""
    values = [site.layer.output[0] for site in sites]
    tensors = [[value, *sorted(site.scaled)] for value, site in zip(values, sites, strict=True)]
    names = [name for group in tensors for name in group]
    if not names:
        return []
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with opened(model, names) as runner:
        for image in images:
            for name, array in runner.tensors(image[None]).items():
                array = np.maximum(array, _SHUT) if name in values else array
                seen[name].append(np.abs(array[0]).reshape(array.shape[1], -1).max(axis=1))
    kept = {name: np.quantile(found, _KEPT, axis=0) for name, found in seen.items()}
    return [np.array([kept[name] for name in group]) for group in tensors]


def _sites(model: onnx.ModelProto, weights: Weights) -> Iterator[_Site]:
    graph = model.graph
    by, uses = readers(graph.node), Counter[str]()
    for node in graph.node:
        uses.update(node.input)
    for layer in graph.node:
        if layer.op_type != "Conv" or layer.input[1] not in weights:
            continue
        gate = _gate(layer.output[0], by, weights)
        group = gate and _group(graph, layer, gate[1].output[0], by, weights)
        if not gate or not group:
            continue
        changed = [layer, *group[0], *group[1]]
        names = [name for node in changed for name in node.input[1:]]
        if all(uses[name] == 1 for name in names) and len(set(names)) == len(names):
            yield _Site(layer, gate[0], gate[1], *group)


def _gate(
    value: str, by: dict[str, list[onnx.NodeProto]], weights: Weights
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """Return the first node of a gate and the product of the value and it; None for no gate."""
    behind = by.get(value, [])
    if [node.op_type for node in behind] == ["HardSwish"]:
        return behind[0], behind[0]
    products = [n for n in behind if n.op_type == "Mul" and not weights.keys() & set(n.input)]
    entries = [node for node in behind if node not in products]
    if len(products) != 1 or len(entries) != 1:
        return None
    node = entries[0]
    while node.op_type in _GATE and set(node.input[1:]) <= {*weights, ""}:
        following = by.get(node.output[0], [])
        if following == products:
            return entries[0], products[0]
        if len(following) != 1:
            return None
        node = following[0]
    return None


def _group(
    graph: onnx.GraphProto,
    layer: onnx.NodeProto,
    start: str,
    by: dict[str, list[onnx.NodeProto]],
    weights: Weights,
) -> tuple[tuple[onnx.NodeProto, ...], tuple[onnx.NodeProto, ...], frozenset[str]] | None:
    """Return the layers that meet a tensor in Adds and those that read it; None where one may not.

    Every tensor that holds the scaled channels is followed to all its readers, and through Adds
    back to what makes the other operand.
    """
    made, ends = producers(graph.node), {entry.name for entry in graph.output}
    channels = len(weights_out_of(layer, weights))
    scaled, pending = {start}, [start]
    met: list[onnx.NodeProto] = []
    found: list[onnx.NodeProto] = []

    def meet(name: str) -> bool:
        """Take the other operand of an Add into the group."""
        if name in scaled:
            return True
        maker = made.get(name)
        scaled.add(name)
        pending.append(name)
        if maker is None:
            return False
        if maker.op_type == "Add":
            return all(meet(operand) for operand in maker.input)
        linear = maker.op_type in ("Conv", "Gemm") and maker.input[1] in weights
        met.append(maker)
        return linear and len(weights_out_of(maker, weights)) == channels

    while pending:
        name = pending.pop()
        if name in ends:
            return None
        for node in by.get(name, []):
            if node.op_type in ("Conv", "Gemm") and node.input[0] == name:
                if node.input[1] not in weights or not channelwise(node, weights):
                    return None
                if len(weights_into(node, weights)) != channels:
                    return None
                found.append(node)
                continue
            others = [operand for operand in node.input if operand != name]
            scalar = all(operand in weights and weights[operand].size == 1 for operand in others)
            if node.op_type == "Add":
                if not all(map(meet, others)):
                    return None
            elif not (node.op_type in _PASS or (node.op_type in ("Mul", "Div") and scalar)):
                return None
            if node.output[0] not in scaled:
                scaled.add(node.output[0])
                pending.append(node.output[0])
    return tuple(met), tuple(found), frozenset(scaled)


def _apart_(graph: onnx.GraphProto, site: _Site, factors: np.ndarray) -> None:
    """Write value and gate apart; the gate gets the value times the factors.

    What is divided gets another name, so that nobody compares it with what is not; the gate's
    input has the value's name, because it is what the value was.
    """
    from onnx import helper, numpy_helper

    taken = {n for node in graph.node for n in (node.name, *node.output)}
    taken |= {tensor.name for tensor in graph.initializer}
    value, base = site.layer.output[0], site.product.name
    divided = free_name(f"{value}{DERIVED}", taken)
    kernel = free_name(f"{base}{DERIVED}.scale.weight", taken)
    graph.initializer.append(numpy_helper.from_array(factors.reshape(-1, 1, 1, 1), kernel))
    rename_tensors_(graph, {n: free_name(f"{n}{DERIVED}", taken) for n in sorted(site.scaled)})
    site.layer.output[0] = divided
    place = list(graph.node).index(site.entry)
    name = free_name(f"{base}{DERIVED}.scale", taken)
    new = [helper.make_node("Conv", [divided, kernel], [value], name, group=len(factors))]
    if site.entry.op_type == "HardSwish":
        gate = free_name(f"{base}{DERIVED}.gate", taken)
        new.append(helper.make_node("HardSigmoid", [value], [gate], gate, alpha=1 / 6, beta=0.5))
        new.append(helper.make_node("Mul", [divided, gate], list(site.product.output), base))
        graph.node.remove(site.entry)
    else:
        redirect_([site.product], {value: divided})
    for node in reversed(new):
        graph.node.insert(place, node)
