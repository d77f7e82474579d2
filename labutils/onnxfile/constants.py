"""Constants of an ONNX graph as dense initializers: sparse ones, Constant nodes, computed ones."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ModelFileError
from .edit import nodes_within, subgraphs

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

MOST_ELEMENTS = 2**27
"""Of one constant that is written out: half a gigabyte of float32."""

STAY = ("ConstantOfShape", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
"""Operators whose result stays computed: it is larger than what it is made of."""

_LIBRARIES = ("onnx_ir", "onnxscript")
_ROUNDS = 8  # a folded branch may hold another one


def dense_(model: onnx.ModelProto) -> int:
    """Write sparse weights and sparse Constants out in full; return how many there were.

    Raises
    ------
    ModelFileError
        One is damaged, or would have more than `MOST_ELEMENTS`.
    """
    return sum(_dense_graph_(graph) for graph in _graphs(model.graph))


def _dense_graph_(graph: onnx.GraphProto) -> int:
    sparse = list(graph.sparse_initializer)
    graph.initializer.extend(_dense(tensor, tensor.values.name) for tensor in sparse)
    del graph.sparse_initializer[:]
    count = len(sparse)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "sparse_value":
                tensor = _dense(attribute.sparse_tensor, node.output[0])
                attribute.Clear()
                attribute.name, attribute.type = "value", type(attribute).TENSOR
                attribute.t.CopyFrom(tensor)
                count += 1
    return count


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    from onnx import numpy_helper

    shape = tuple(sparse.dims)
    try:
        if any(dim < 0 for dim in shape) or math.prod(shape) > MOST_ELEMENTS:
            raise ValueError(f"its shape is {shape}")
        values = numpy_helper.to_array(sparse.values)
        places = numpy_helper.to_array(sparse.indices)
        if (places < 0).any():
            raise ValueError("an index is negative")
        whole = np.zeros(shape, values.dtype)
        if places.ndim == 2:
            whole[tuple(places.T)] = values
        else:
            whole.reshape(-1)[places] = values
    except (ValueError, IndexError, TypeError, MemoryError) as error:
        raise ModelFileError(
            f"The sparse weight {name!r} cannot be read: {error}. Export it again, dense."
        ) from None
    tensor: onnx.TensorProto = numpy_helper.from_array(whole, name)
    return tensor


def lift_(model: ir.Model) -> None:
    """Turn Constant nodes of every form into initializers, those inside branches too."""
    import onnx_ir.passes.common as common

    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def fold_(model: ir.Model, generated: int = 0, shapes: bool = False) -> None:
    """Compute, once, what no input of the network reaches; put the branch taken for a settled If.

    Parameters
    ----------
    model
        Changed in place. The names of inputs and outputs stay.
    generated
        How many elements a ConstantOfShape may make.
    shapes
        Whether sizes that are known are computed too.
    """
    import onnx_ir.passes.common as common
    from onnxscript import optimizer

    def should_fold(node: ir.Node) -> bool | None:
        if node.op_type == "ConstantOfShape":
            return 0 < _elements(node) <= generated
        if node.op_type in STAY:
            return False
        return None if node.op_type in _GROWING else True

    nodes = -1
    with quiet():
        for _ in range(_ROUNDS):
            optimizer.fold_constants(
                model, onnx_shape_inference=shapes, should_fold=should_fold,
                output_size_limit=MOST_ELEMENTS,
            )  # fmt: skip
            common.NameFixPass()(model)  # two branches may have had the same names
            common.RemoveUnusedNodesPass()(model)
            lift_(model)
            if nodes == (nodes := sum(1 for _ in model.graph.all_nodes())):
                break


# What may make a large tensor of a small one is folded where both are small.
_GROWING = frozenset((
    "ConvTranspose", "EyeLike", "Expand", "Loop", "MatMul", "OneHot", "Pad", "Range", "Resize",
    "Scan", "Tile", "Upsample",
))  # fmt: skip


def _elements(node: ir.Node) -> int:
    """Return how many elements a ConstantOfShape makes; 0 where its shape is computed."""
    tensor = node.inputs[0].const_value if node.inputs[0] is not None else None
    return 0 if tensor is None else math.prod(int(dim) for dim in tensor.numpy().reshape(-1))


def drop_identities_(model: ir.Model) -> int:
    """Take Identity nodes out; return how many. The names of inputs and outputs stay.

    One stays where an output repeats an input, a weight, another output, or, inside a branch, a
    tensor of the graph around it: nothing else could carry the output's name.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    identities = [node for node in ir.traversal.RecursiveGraphIterator(model.graph)
                  if node.op_type == "Identity" and node.domain == ""]  # fmt: skip
    named = set[ir.Value]()
    kept = [node for node in identities
            if node.outputs[0].is_graph_output() and not _gives_name(node, named)]  # fmt: skip
    for node in kept:
        node.domain = "labutils.kept"  # what the pass passes by
    with quiet():
        common.IdentityEliminationPass()(model)
    for node in kept:
        node.domain = ""
    return len(identities) - len(kept)


def _gives_name(node: ir.Node, named: set[ir.Value]) -> bool:
    """Whether what an Identity repeats can take its output's name; then it is added to `named`."""
    source = _source(node)
    maker = source.producer() if source is not None else None
    if source is None or maker is None or maker.graph is not node.graph:
        return False
    if source in named or source.is_graph_output():
        return False
    named.add(source)
    return True


def _source(node: ir.Node) -> ir.Value | None:
    """Return what an Identity repeats, through all others before it."""
    value = node.inputs[0]
    while value is not None and (maker := value.producer()) is not None:
        if maker.op_type != "Identity" or maker.domain != "" or value.is_graph_output():
            break
        value = maker.inputs[0]
    return value


def computed_constants(graph: onnx.GraphProto) -> set[str]:
    """Return the nodes' outputs that depend on constants alone, and could be constants."""
    known = {tensor.name for tensor in graph.initializer}
    known -= {value.name for value in graph.input}
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == "Constant":
            known.update(node.output)
        elif node.op_type not in STAY and not any(True for _ in subgraphs(node)):
            inputs = [name for name in node.input if name]
            if inputs and known.issuperset(inputs):
                known.update(node.output)
                found.update(node.output if node.op_type != "Identity" else ())
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings of the libraries off the screen: what they leave, they leave."""
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    within = [inner for node in nodes_within(graph) for inner in subgraphs(node)]
    return [graph, *within]
