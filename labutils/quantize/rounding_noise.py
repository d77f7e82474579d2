"""How much noise each rounding puts on the logits, one at a time: what a mixed recipe is chosen by.

Noise is the mean square of what one rounding changes at the logits, relative to the mean square of
the logits. Of roundings at different places the noise adds up well enough to choose by: it is taken
as independent, and what a recipe chosen so comes to is measured afterwards, on the whole network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..onnxfile.edit import producers, redirect_
from ..onnxfile.session import Session
from .insertion import CARRIERS, limits_by_bits, scale_of
from .ranges import Ranges
from .recipe import Recipe
from .weight_scales import weight_scales

if TYPE_CHECKING:
    import onnx


_REMOVED = ("Relu", "Clip")  # after a carrier or an Add: the lower end of the codes does it
END = "(output)"
START = "(input)"


@dataclass(frozen=True)
class Edge:
    """A tensor on its way from the node that writes it to a node that reads it.

    `START` writes the image and `END` reads the logits.
    """

    tensor: str
    producer: str
    reader: str


def edges(model: onnx.ModelProto, ranges: Ranges, recipe: Recipe) -> list[Edge]:
    """Return where a recipe rounds activations, in topological order.

    A ReLU that the codes' lower end replaces makes one node with what it follows.
    """
    known = set(ranges.tensors)
    owner = owners(model, recipe)
    producer = {model.graph.input[0].name: START}
    producer |= {name: owner[node.name] for name, node in producers(model.graph.node).items()}
    found = [
        Edge(name, producer[name], owner[node.name])
        for node in model.graph.node
        for name in node.input
        if name in known and producer[name] != owner[node.name] and not recipe.excluded(node.name)
    ]
    found += [Edge(e.name, producer[e.name], END) for e in model.graph.output]
    return list(dict.fromkeys(found))


def owners(model: onnx.ModelProto, recipe: Recipe) -> dict[str, str]:
    """Return which node's width each node takes: a removed ReLU takes its predecessor's."""
    producer = producers(model.graph.node)
    owner: dict[str, str] = {}
    for node in model.graph.node:
        before = producer.get(node.input[0]) if node.input else None
        removed = before if node.op_type in _REMOVED else None
        owner[node.name] = node.name if removed is None else owner[removed.name]
    return owner


class Meter:
    """Measures noise at the logits with a float model, a few images and one rounding.

    Parameters
    ----------
    model
        The prepared float model.
    recipe, ranges
        Where scales come from.
    images
        (n, 3, size, size) float32 calibration images.
    """

    def __init__(
        self, model: onnx.ModelProto, recipe: Recipe, ranges: Ranges, images: np.ndarray
    ) -> None:
        from onnx import numpy_helper

        self.model, self.recipe, self.images = model, recipe, images
        self.limits = limits_by_bits(recipe, ranges, model)
        self.owner = owners(model, recipe)
        self.weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.exact = self._logits(model).astype(np.float64)

    def of_edge(self, edge: Edge, bits: int) -> float:
        """Return the noise of rounding one tensor, for one of its readers, to `bits` bits."""
        from onnx import TensorProto, helper

        model, graph = _copied(self.model)
        scale, zero = scale_of(
            self.limits[bits][edge.tensor], bits,
            self.recipe.activations.symmetric, self.recipe.activations.power_of_two,
        )  # fmt: skip
        # ONNX's own QuantizeLinear has 16 bits from opset 21 on; com.microsoft's before, too
        domain = "" if bits == 8 else "com.microsoft"
        kind = TensorProto.UINT8 if bits == 8 else TensorProto.UINT16
        source, result = edge.tensor, f"{edge.tensor}.rounded"
        if edge.reader == END:
            source, result = f"{edge.tensor}.exact", edge.tensor
            redirect_(graph.node, {result: source})
            last = producers(graph.node)[result]
            last.output[list(last.output).index(result)] = source
        else:
            users = (node for node in graph.node if self.owner[node.name] == edge.reader)
            redirect_(users, {source: result})
        graph.initializer.extend([
            helper.make_tensor("meter.scale", TensorProto.FLOAT, [], [scale]),
            helper.make_tensor("meter.zero", kind, [], [zero]),
        ])  # fmt: skip
        pair = [
            helper.make_node("QuantizeLinear", [source, "meter.scale", "meter.zero"],
                             ["meter.codes"], domain=domain),
            helper.make_node("DequantizeLinear", ["meter.codes", "meter.scale", "meter.zero"],
                             [result], domain=domain),
        ]  # fmt: skip
        position = next((i for i, n in enumerate(graph.node) if source in n.output), -1) + 1
        for node in reversed(pair):
            graph.node.insert(position, node)
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))
        return self._noise(model)

    def of_weights(self, node: onnx.NodeProto, bits: int) -> float:
        """Return the noise of rounding one layer's weights to `bits` bits."""
        from onnx import numpy_helper

        model, graph = _copied(self.model)
        tensor = next(t for t in graph.initializer if t.name == node.input[1])
        array = self.weights[tensor.name]
        scale, zero = weight_scales(self.recipe, node, array, bits)
        codes = np.clip(np.round(array / scale) + zero, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        rounded = ((codes - zero) * scale).astype(array.dtype)
        tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
        return self._noise(model)

    def carriers(self) -> list[onnx.NodeProto]:
        """Return the nodes whose weights are quantized."""
        return [
            node for node in self.model.graph.node
            if node.op_type in CARRIERS and node.input[1] in self.weights
            and not self.recipe.excluded(node.name)
        ]  # fmt: skip

    def _noise(self, model: onnx.ModelProto) -> float:
        error = self._logits(model) - self.exact
        return float((error**2).sum() / max((self.exact**2).sum(), 1e-30))

    def _logits(self, model: onnx.ModelProto) -> np.ndarray:
        session, entry = Session(model, threads=1), model.graph.input[0].name
        return np.concatenate([session.run({entry: x[None]})[0] for x in self.images])


def _copied(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.GraphProto]:
    copied = type(model)()
    copied.CopyFrom(model)
    del copied.graph.value_info[:]
    return copied, copied.graph
