"""Gated activations whose channels differ: the value equalized, the gate left as it is.

HardSwish is a value times its gate, ``z * HardSigmoid(z)``; SiLU is ``z * Sigmoid(z)``. One channel
that reaches ten times as far as the others takes nearly all codes of z and of the product. Through
the gate no factor passes, so cross-layer equalization ends here. Apart, they can be told apart: the
convolution gives ``z / s``, with a factor s per channel that makes the channels reach equally far;
a depthwise convolution of 1 x 1 multiplies by s again, for the gate only; the product is exactly
the activation divided by s, and the convolutions that read it have weights multiplied by s. Who
cannot be scaled so, as the Add of a residual, reads the product times s: another such convolution.
No tensor's range grows: s is at most 1, and a channel is stretched to what the farthest reaches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..compare.layerwise import opened
from ..errors import counted
from ..onnxfile.edit import free_name, readers, redirect_
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

_LEAST = 1 / 32  # of the farthest channel's reach: what a channel is taken to reach at least
GATE = ("Add", "Sub", "Mul", "Div", "Clip", "Min", "Max", "Relu", "HardSigmoid", "Sigmoid")
PASS = ("Relu", "GlobalAveragePool", "AveragePool", "MaxPool", "Identity", "LeakyRelu", "Flatten")
_SHUT = -3.0  # HardSwish's gate is shut below, SiLU's nearly
_KEPT = 0.98  # of the images: the others may reach farther


@dataclass(frozen=True)
class _Site:
    """A convolution, the nodes that make its gated activation, and who reads that.

    Attributes
    ----------
    layer, entry
        The convolution; the first node of the gate, or a whole HardSwish.
    product
        The product of both; where it is divided by a number after that, as HardSwish by 6, the
        division.
    readers
        The layers that take the factors into their weights.
    scaled
        The tensors that are divided, from what divides the value by numbers to the pools.
    others
        The nodes that read the product and cannot take the factors.
    """

    layer: onnx.NodeProto
    entry: onnx.NodeProto
    product: onnx.NodeProto
    readers: list[onnx.NodeProto]
    scaled: list[str]
    others: list[onnx.NodeProto]


def factors(model: onnx.ModelProto, images: np.ndarray) -> Factors:
    """Return s per channel of the convolutions before gates, where one channel is an outlier.

    Parameters
    ----------
    model
        A prepared float model.
    images
        (n, 3, size, size) float32: how far channels reach is measured on the first `IMAGES`.
    """
    sites = list(_sites(model, _weights(model)))
    found = {}
    for site, reach in zip(sites, _reaches(model, sites, images[:IMAGES]), strict=True):
        if (one := factor(reach)) is not None:
            found[site.layer.name] = one
    return found


def factor(reach: np.ndarray) -> np.ndarray | None:
    """Return s per channel, float32, at most 1; None where no channel is an outlier.

    Parameters
    ----------
    reach
        (tensors, channels): how far each channel reaches, from `kept`; the value comes first.
    """
    if reach[0].max() <= OUTLIER * np.median(reach[0]):
        return None
    shares = (reach / reach.max(axis=1, keepdims=True)).max(axis=0)
    return np.maximum(shares, _LEAST).astype(np.float32)


def kept(ends: np.ndarray, is_value: bool) -> np.ndarray:
    """Return how far the channels of a tensor reach, (channels,): a few images may reach farther.

    Parameters
    ----------
    ends
        (2, n, channels): the smallest and the largest value of each image.
    is_value
        Whether a gate reads the tensor: below -3 the gate is shut, and nothing reaches there.
    """
    shut = _SHUT if is_value else -np.inf
    return np.quantile(np.abs(np.maximum(ends, shut)).max(axis=0), _KEPT, axis=0)


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
        own = found[site.layer.name]
        _apart_(model.graph, site, own)
        divide_(site.layer, weights, own)
        for layer in site.readers:
            multiply_(layer, weights, own)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    del model.graph.value_info[:]  # of tensors under other names
    return f"equalized the channels before {counted(len(found), 'gate')}: {', '.join(found)}"


def pad_wide_(model: onnx.ModelProto, widths: dict[str, int]) -> None:
    """Give those of the added convolutions that compute at 16 bits a kernel of 3 x 3, in place.

    It is 0 but for its middle, so nothing changes. Qualcomm's HTP dies (SIGSEGV, QNN 2.51) when it
    builds a depthwise convolution of 1 x 1 with 16-bit activations.
    """
    from onnx import helper, numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and DERIVED in node.name and widths[node.name] == 16:
            tensor = stored[node.input[1]]
            kernel = np.pad(numpy_helper.to_array(tensor), ((0, 0), (0, 0), (1, 1), (1, 1)))
            tensor.CopyFrom(numpy_helper.from_array(kernel, tensor.name))
            node.attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))


def _weights(model: onnx.ModelProto) -> Weights:
    from onnx import numpy_helper

    return {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}


def _reaches(model: onnx.ModelProto, sites: list[_Site], images: np.ndarray) -> list[np.ndarray]:
    """Return how far channels reach, (tensors, channels) for each site: the value comes first."""
    values = [site.layer.output[0] for site in sites]
    tensors = [[value, *site.scaled] for value, site in zip(values, sites, strict=True)]
    names = [name for group in tensors for name in group]
    if not names:
        return []
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with opened(model, names) as runner:
        for image in images:
            for name, array in runner.tensors(image[None]).items():
                rows = array[0].reshape(array.shape[1], -1)
                seen[name].append(np.stack([rows.min(axis=1), rows.max(axis=1)]))
    reach = {name: kept(np.stack(ends, axis=1), name in values) for name, ends in seen.items()}
    return [np.array([reach[name] for name in group]) for group in tensors]


def _sites(model: onnx.ModelProto, weights: Weights) -> Iterator[_Site]:
    by, uses = readers(model.graph.node), Counter[str]()
    ends = {entry.name for entry in model.graph.output}
    for node in model.graph.node:
        uses.update(node.input)
    for layer in model.graph.node:
        if layer.op_type != "Conv" or layer.input[1] not in weights:
            continue
        gate = _gate(layer.output[0], by, weights)
        if gate is None or layer.output[0] in ends:
            continue
        entry, before, product = gate
        if ends & {node.output[0] for node in before}:
            continue
        products = [*before, *_divided(product, by, weights, ends)]
        site = _read(model.graph, layer, entry, products, by, weights)
        names = [name for node in (layer, *site.readers) for name in node.input[1:]]
        if site.readers and all(uses[name] == 1 for name in names):
            yield site


def _gate(
    value: str, by: dict[str, list[onnx.NodeProto]], weights: Weights
) -> tuple[onnx.NodeProto, list[onnx.NodeProto], onnx.NodeProto] | None:
    """Return the first node of a gate, what divides the value by numbers, and their product.

    None where there is no gate. A whole HardSwish is its own gate and product.
    """
    behind = by.get(value, [])
    if [node.op_type for node in behind] == ["HardSwish"]:
        return behind[0], [], behind[0]
    if len(behind) != 2:
        return None
    (one, product), (other, same) = (_chain(node, by, weights) for node in behind)
    if product is None or product is not same:
        return None
    linear = [all(_is_by_a_number(node, weights) for node in chain) for chain in (one, other)]
    apart = told_apart((one, other), linear)
    return None if apart is None else (apart[0][0], apart[1], product)


def told_apart(chains: tuple[list, list], linear: list[bool]) -> tuple[list, list] | None:
    """Return the gate and the plain side of a product; None where not exactly one is linear.

    Parameters
    ----------
    chains
        The nodes on either side, from a value to the product.
    linear
        Whether all of a side only multiply by numbers.
    """
    if linear[0] == linear[1]:
        return None
    return (chains[1], chains[0]) if linear[0] else chains


def _chain(
    node: onnx.NodeProto, by: dict[str, list[onnx.NodeProto]], weights: Weights
) -> tuple[list[onnx.NodeProto], onnx.NodeProto | None]:
    """Return the nodes from a reader of a value to the product that it ends in; None: in none."""
    found: list[onnx.NodeProto] = []
    while True:
        data = [name for name in node.input if name and name not in weights]
        if node.op_type == "Mul" and len(data) == 2:
            return found, node
        if node.op_type not in GATE or len(data) != 1:
            return found, None
        found.append(node)
        behind = by.get(node.output[0], [])
        if len(behind) != 1:
            return found, None
        node = behind[0]


def _divided(
    product: onnx.NodeProto,
    by: dict[str, list[onnx.NodeProto]],
    weights: Weights,
    ends: set[str],
) -> list[onnx.NodeProto]:
    """Return a product and the nodes that divide it by numbers before anyone else reads it."""
    found = [product]
    while found[-1].output[0] not in ends:
        behind = by.get(found[-1].output[0], [])
        if len(behind) != 1 or not _is_by_a_number(behind[0], weights):
            break
        found.append(behind[0])
    return found


def _is_by_a_number(node: onnx.NodeProto, weights: Weights) -> bool:
    """Whether a node multiplies a tensor by one number, or divides it by one."""
    numbers = [name in weights and weights[name].size == 1 for name in node.input]
    return (node.op_type, numbers) in (
        ("Mul", [True, False]), ("Mul", [False, True]), ("Div", [False, True]),
    )  # fmt: skip


def _read(
    graph: onnx.GraphProto,
    layer: onnx.NodeProto,
    entry: onnx.NodeProto,
    products: list[onnx.NodeProto],
    by: dict[str, list[onnx.NodeProto]],
    weights: Weights,
) -> _Site:
    """Return who takes the factors of a layer's channels, directly or through pools."""
    channels, ends = len(weights_out_of(layer, weights)), {entry.name for entry in graph.output}

    def taken(node: onnx.NodeProto, name: str) -> tuple[list[onnx.NodeProto], list[str]] | None:
        """Return the layers and tensors that a reader passes factors to; None where it cannot."""
        if node.op_type in ("Conv", "Gemm"):
            fits = node.input[0] == name and node.input[1] in weights
            fits = fits and channelwise(node, weights)
            return ([node], []) if fits and len(weights_into(node, weights)) == channels else None
        passes = node.op_type in PASS and name == node.input[0]
        passes = (passes or _is_by_a_number(node, weights)) and node.output[0] not in ends
        behind = [taken(reader, node.output[0]) for reader in by.get(node.output[0], [])]
        if not passes or not behind or None in behind:
            return None
        found = [part for part in behind if part is not None]
        layers = [one for part in found for one in part[0]]
        return layers, [node.output[0], *(one for part in found for one in part[1])]

    whole = products[-1].output[0]
    site = _Site(layer, entry, products[-1], [], [node.output[0] for node in products], [])
    for node in by.get(whole, []):
        part = taken(node, whole)
        if part is None:
            site.others.append(node)
        else:
            site.readers.extend(part[0])
            site.scaled.extend(part[1])
    return site


def _apart_(graph: onnx.GraphProto, site: _Site, factors: np.ndarray) -> None:
    """Write value and gate apart; the gate gets the value times the factors.

    What is divided gets another name, so that nobody compares it with what is not; the gate's
    input has the value's name, because it is what the value was.
    """
    from onnx import helper, numpy_helper

    taken = {n for node in graph.node for n in (node.name, *node.output)}
    taken |= {tensor.name for tensor in graph.initializer}
    value, base, whole = site.layer.output[0], site.product.name, site.product.output[0]

    def times_factors(name: str, result: str, what: str) -> onnx.NodeProto:
        kernel = free_name(f"{base}{DERIVED}.{what}.weight", taken)
        graph.initializer.append(numpy_helper.from_array(factors.reshape(-1, 1, 1, 1), kernel))
        called = free_name(f"{base}{DERIVED}.{what}", taken)
        return helper.make_node("Conv", [name, kernel], [result], called, group=len(factors))

    ends = {entry.name for entry in graph.output}
    divided = {name: free_name(f"{name}{DERIVED}", taken) for name in (value, *site.scaled)}
    place = list(graph.node).index(site.entry)
    for node in graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = divided.get(name, name)
        if node not in site.others and node is not site.entry:
            redirect_([node], divided)
    new = [times_factors(divided[value], value, "scale")]
    if site.entry.op_type == "HardSwish":
        gate = free_name(f"{base}{DERIVED}.gate", taken)
        new.append(helper.make_node("HardSigmoid", [value], [gate], gate, alpha=1 / 6, beta=0.5))
        new.append(helper.make_node("Mul", [divided[value], gate], [divided[whole]], base))
        graph.node.remove(site.entry)
    for node in reversed(new):
        graph.node.insert(place, node)
    if site.others or whole in ends:
        made = next(i for i, node in enumerate(graph.node) if divided[whole] in node.output)
        graph.node.insert(made + 1, times_factors(divided[whole], whole, "restore"))
