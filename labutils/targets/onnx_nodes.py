"""Reading an ONNX file for inspection, and its nodes one by one with what is known about them."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelFileError
from ..onnxfile import edit, graph
from ..onnxfile.file import OnnxFile

if TYPE_CHECKING:
    import numpy as np
    import onnx

_STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Graph:
    """An ONNX file opened for inspection; `model` is without weights that lie in other files.

    Attributes
    ----------
    file, model
        Where it came from, and the parsed file.
    opset
        Version of the standard operator set that the file imports.
    nodes
        All nodes in topological order; those of subgraphs (If, Loop) follow their owner.
    """

    file: Path
    model: onnx.ModelProto
    opset: int
    nodes: list[Node]


@dataclass(frozen=True)
class _Facts:
    """What all nodes of a file share: opsets, constants and shapes by tensor name."""

    opsets: dict[str, int]
    constants: dict[str, onnx.TensorProto]
    derived: frozenset[str]  # computed from constants alone, e.g. by a weight's DequantizeLinear
    shapes: dict[str, tuple[int | None, ...]]
    boundary: frozenset[str]
    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    users: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)

    def is_constant(self, tensor: str) -> bool:
        return tensor in self.constants or tensor in self.derived


@dataclass(frozen=True)
class Node:
    """One ONNX node with its neighbourhood: shapes, constants, version, module path."""

    proto: onnx.NodeProto
    facts: _Facts = field(repr=False)
    index: int = 0

    @property
    def op_type(self) -> str:
        """Operator, e.g. ``HardSwish``."""
        return self.proto.op_type

    @property
    def name(self) -> str:
        """The node's name; nameless nodes are called after their first output."""
        return self.proto.name or f"(nameless, makes {(list(self.proto.output) or ['nothing'])[0]})"

    @property
    def standard(self) -> bool:
        """Whether the operator belongs to the standard ONNX domain."""
        return self.proto.domain in _STANDARD_DOMAINS

    @cached_property
    def version(self) -> int | None:
        """Version of the operator that the file's opset selects, None where ONNX has none."""
        import onnx

        domain = "" if self.standard else self.proto.domain
        opset = self.facts.opsets.get(domain)
        if opset is None or not onnx.defs.has(self.op_type, opset, domain):
            return None
        return onnx.defs.get_schema(self.op_type, opset, domain).since_version

    @cached_property
    def module(self) -> str:
        """Path of the PyTorch module that it came from, "" where the file does not say."""
        return graph.module_path(self.proto)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute; else the operator's default in ONNX; else `default`."""
        import onnx

        for attribute in self.proto.attribute:
            if attribute.name == name:
                return _plain(onnx.helper.get_attribute_value(attribute))
        if self.version is not None:
            domain = "" if self.standard else self.proto.domain
            schema = onnx.defs.get_schema(self.op_type, self.version, domain)
            known = schema.attributes.get(name)
            if known is not None and known.default_value.type:
                return _plain(onnx.helper.get_attribute_value(known.default_value))
        return default

    def shape(self, index: int) -> tuple[int | None, ...] | None:
        """Shape of input `index`, None where unknown; single dimensions may be None."""
        if index >= len(self.proto.input):
            return None
        return self.facts.shapes.get(self.proto.input[index])

    @property
    def output_shape(self) -> tuple[int | None, ...] | None:
        """Shape of the first output, None where unknown."""
        return self.facts.shapes.get(self.proto.output[0]) if self.proto.output else None

    def is_constant(self, index: int) -> bool:
        """Whether input `index` depends on no input of the model."""
        return index < len(self.proto.input) and self.facts.is_constant(self.proto.input[index])

    def value(self, index: int) -> np.ndarray | None:
        """Value of a constant input, None when it is absent, computed or in another file."""
        import onnx

        name = self.proto.input[index] if index < len(self.proto.input) else ""
        tensor = self.facts.constants.get(name)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return onnx.numpy_helper.to_array(tensor)

    @property
    def variable_inputs(self) -> list[int]:
        """Positions of the inputs that are neither absent nor constant."""
        is_constant = self.facts.is_constant
        return [i for i, n in enumerate(self.proto.input) if n and not is_constant(n)]

    def producer(self, index: int) -> Node | None:
        """Return the node that makes input `index`; None for weights, inputs and constants."""
        name = self.proto.input[index] if index < len(self.proto.input) else ""
        found = self.facts.producers.get(name)
        return None if found is None else Node(found, self.facts)

    def users(self) -> list[Node]:
        """Return the nodes that read its first output, past factors of one half."""
        found = [
            Node(proto, self.facts) for proto in self.facts.users.get(self.proto.output[0], ())
        ]
        if len(found) == 1 and found[0].op_type in ("Mul", "Div") and found[0].proto.output:
            return [*found, *found[0].users()] if len(found[0].variable_inputs) == 1 else found
        return found

    @property
    def at_boundary(self) -> bool:
        """Whether it reads an input of the model or makes an output of the model."""
        return not self.facts.boundary.isdisjoint([*self.proto.input, *self.proto.output])


def read(file: OnnxFile | str | Path) -> Graph:
    """Open an ONNX file for inspection.

    Raises
    ------
    ModelFileError
        The file is missing, empty, truncated, not ONNX, cyclic, or its weights are missing.
    """
    file = OnnxFile.of(file)
    model, path = file.proto, file.path
    opsets = {
        ("" if o.domain in _STANDARD_DOMAINS else o.domain): o.version for o in model.opset_import
    }
    if "" not in opsets:
        raise ModelFileError(f"{path} names no opset of the standard operators: export it again.")
    _check_external(model, path)
    _check_inputs(model.graph, path)
    ordered, constants = _in_order(model.graph, path), _constants(model)
    file.require_valid()
    derived = _derived(ordered, constants)
    neighbours = edit.producers(ordered), edit.readers(ordered)
    shapes, boundary = _shapes(file), _boundary(model.graph)
    facts = _Facts(opsets, constants, derived, shapes, boundary, *neighbours)
    nodes = [Node(proto, facts, index) for index, proto in enumerate(ordered)]
    return Graph(path, model, opsets[""], nodes)


def _plain(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _check_external(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a model whose weights lie in a file that is absent or too short."""
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    for tensor in model.graph.initializer:
        if not uses_external_data(tensor):
            continue
        info = ExternalDataInfo(tensor)
        file = path.parent / info.location
        if not file.resolve().is_relative_to(path.parent.resolve()):
            raise ModelFileError(
                f"{path} wants the weights {tensor.name!r} from {info.location}, outside its own "
                "folder: refused. Put the data beside the file, and export it again."
            )
        needed = int(info.offset or 0) + int(info.length or 0)
        if not file.is_file():
            problem = f"{info.location}, which is not beside it"
        elif file.stat().st_size < needed:
            problem = f"{info.location}, which is too short (truncated)"
        else:
            continue
        raise ModelFileError(
            f"{path} keeps the weights {tensor.name!r} in {problem}: copy both files together."
        )


def _check_inputs(graph: onnx.GraphProto, path: Path) -> None:
    """Refuse a graph that reads a tensor which nothing makes: the file lost a part."""
    made = {v.name for v in [*graph.input, *graph.initializer]}
    made |= {tensor.values.name for tensor in graph.sparse_initializer}
    made |= {name for node in graph.node for name in node.output}
    for node in graph.node:
        missing = [name for name in node.input if name and name not in made]
        if missing:
            raise ModelFileError(
                f"{path} is damaged: node {node.name or node.op_type!r} reads {missing[0]!r}, "
                "which nothing in the file makes. Export it again."
            )


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    import onnx

    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in edit.nodes_within(model.graph):
        if node.op_type == "Constant" and node.domain in _STANDARD_DOMAINS and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = attribute.t
                elif attribute.name.startswith("value_"):
                    value = onnx.helper.get_attribute_value(attribute)
                    found[node.output[0]] = onnx.numpy_helper.from_array(_array(value))
    return found


def _derived(
    ordered: list[onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> frozenset[str]:
    known = set(constants)
    for node in ordered:
        inputs = [name for name in node.input if name]
        if inputs and known.issuperset(inputs) and not any(edit.subgraphs(node)):
            known.update(node.output)
    return frozenset(known - set(constants))


def _array(value: Any) -> np.ndarray:
    import numpy as np

    text = isinstance(value, bytes) or (isinstance(value, list) and bytes in map(type, value))
    return np.asarray(value, dtype=object if text else None)


def _shapes(file: OnnxFile) -> dict[str, tuple[int | None, ...]]:
    """Shapes by tensor name; where inference fails, only those that the file states."""
    inferred = file.shaped.graph
    shapes: dict[str, tuple[int | None, ...]] = {}
    for info in [*inferred.input, *inferred.value_info, *inferred.output]:
        if info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            shapes[info.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in dims
            )
    shapes.update({name: tuple(t.dims) for name, t in _constants(file.proto).items()})
    return shapes


def _boundary(graph: onnx.GraphProto) -> frozenset[str]:
    weights = {tensor.name for tensor in graph.initializer}
    return frozenset({v.name for v in [*graph.input, *graph.output]} - weights)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Tensors that a node needs, those that its subgraphs capture included."""
    nodes = (n for graph in edit.subgraphs(node) for n in edit.nodes_within(graph))
    inner = {name for n in nodes for name in n.input}
    return {name for name in {*node.input, *inner} if name}


def _in_order(graph: onnx.GraphProto, path: Path) -> list[onnx.NodeProto]:
    """Sort nodes topologically; of those that are ready, the first in the file comes first."""
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [{producer[n] for n in _reads(node) if n in producer} for node in graph.node]
    users: dict[int, list[int]] = {}
    for index, needed in enumerate(needs):
        for source in needed:
            users.setdefault(source, []).append(index)
    waiting = [len(needed) for needed in needs]
    ready = [index for index, count in enumerate(waiting) if not count]
    order: list[onnx.NodeProto] = []
    placed = 0
    while ready:
        index = heapq.heappop(ready)
        placed += 1
        order.append(graph.node[index])
        for inner in edit.subgraphs(graph.node[index]):
            order.extend(_in_order(inner, path))
        for user in users.get(index, ()):
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, user)
    if placed < len(graph.node):
        raise ModelFileError(f"{path}: the graph has a cycle, so it is not a valid ONNX model.")
    return order
