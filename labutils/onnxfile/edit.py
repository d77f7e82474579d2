"""Editing ONNX graphs: who makes and who reads a tensor, names, and passes of onnx_ir.

What ends in an underscore changes the model that it is given: give it a copy
(`labutils.onnxfile.file.OnnxFile.copy`), never what a file's object hands out.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableSet, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ModelFileError
from .wall import wall

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


def producers(nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    """Return the node that makes each tensor; weights and inputs of the graph are made by none."""
    return {name: node for node in nodes for name in node.output if name}


def readers(nodes: Iterable[onnx.NodeProto]) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that read each tensor, in order; a node that reads it twice comes twice."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in filter(None, node.input):
            found.setdefault(name, []).append(node)
    return found


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs inside a node: the branches of an If, the body of a Loop."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs_within(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs_within(inner)


def nodes_within(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph, each followed by those of the graphs inside it."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from nodes_within(inner)


def free_name(name: str, taken: MutableSet[Any]) -> str:
    """Return `name`, with a number appended where it is taken, and take it.

    Examples
    --------
    >>> taken = {"conv", "conv_1"}
    >>> free_name("conv", taken), free_name("relu", taken), "conv_2" in taken
    ('conv_2', 'relu', True)
    """
    names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1)))
    free = next(candidate for candidate in names if candidate not in taken)
    taken.add(free)
    return free


def name_nodes_(graph: onnx.GraphProto) -> None:
    """Give every node a separate name, in place; those that have one keep it."""
    taken, met = {node.name for node in graph.node}, set[str]()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in met:
            node.name = free_name(node.name or f"{node.op_type}_{index}", taken)
        met.add(node.name)


def redirect_(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Let nodes read other tensors: name -> the name of what they read instead."""
    for node in nodes:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]


def rename_tensors_(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors wherever they occur, in the graphs inside nodes too; nothing is checked."""
    for values in (graph.input, graph.initializer, graph.output, graph.value_info):
        for value in values:
            if value.name in names:
                value.name = names[value.name]
    for node in graph.node:
        redirect_([node], names)
        for index, name in enumerate(node.output):
            if name in names:
                node.output[index] = names[name]
        for inner in subgraphs(node):
            rename_tensors_(inner, names)


def remove_unused_(model: onnx.ModelProto) -> None:
    """Remove the nodes and weights that no output needs."""
    import onnx_ir.passes.common as common

    _apply_(model, common.RemoveUnusedNodesPass())


def lift_constants_(model: onnx.ModelProto, per_use: bool = False) -> None:
    """Turn Constant nodes into initializers, which is where weights are looked for.

    Parameters
    ----------
    model
        Changed in place.
    per_use
        Whether every use gets its own copy, ``<constant>.<node>.<input>``: a quantizer gives a
        shared one a single scale for all its users.
    """
    import onnx_ir.passes.common as common

    lifted = {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    if lifted:
        lift = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
        _apply_(model, lift)
    if per_use:
        unshare_weights_(model.graph, lifted)


def unshare_weights_(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Give every use of these weights a copy, ``<weight>.<node>.<input>``.

    Where a graph inside a node reads one, it stays, too.
    """
    shared = {tensor.name: tensor for tensor in graph.initializer if tensor.name in names}
    inner = {n for node in graph.node for g in subgraphs(node) for m in nodes_within(g)
             for n in m.input}  # fmt: skip
    copies = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in shared:
                own = type(shared[name])()
                own.CopyFrom(shared[name])
                own.name = node.input[index] = f"{name}.{node.name}.{index}"
                copies.append(own)
    ends = {entry.name for entry in graph.output}
    kept = [t for t in graph.initializer if t.name not in shared or t.name in inner | ends]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *copies])


def unlist_weights_(model: onnx.ModelProto) -> int:
    """Take the weights off the list of inputs, where old files have them; return how many."""
    import onnx_ir.passes.common as common

    before = len(model.graph.input)
    weights = {tensor.name for tensor in model.graph.initializer}
    if weights.isdisjoint(value.name for value in model.graph.input):
        return 0
    _apply_(model, common.RemoveInitializersFromInputsPass())
    model.ir_version = max(model.ir_version, 4)  # 3 demands the list
    return before - len(model.graph.input)


def cut(
    model: onnx.ModelProto, outputs: Sequence[str], inputs: Sequence[str] | None = None
) -> onnx.ModelProto:
    """Return the part of `model` that computes some tensors from others.

    Parameters
    ----------
    model
        Not changed.
    outputs
        Names of the tensors that are the part's only outputs, in this order.
    inputs
        Names of the tensors that it computes them from; by default the model's inputs.

    Raises
    ------
    ModelFileError
        There is no such tensor, or the outputs depend on others than the inputs.
    """
    import onnx_ir as ir

    whole = _read(model)
    given = list(whole.graph.inputs) if inputs is None else list(inputs)
    advice = "Cut elsewhere, or check the file with `python -m onnx.checker`."
    with wall(
        "onnx_ir cannot cut", _called(model), error=ModelFileError, model=model, advice=advice
    ):
        whole.graph = ir.convenience.extract(whole.graph, given, list(dict.fromkeys(outputs)))
        made = ir.to_proto(whole)
    order = {tensor.name: index for index, tensor in enumerate(model.graph.initializer)}
    made.graph.initializer.sort(key=lambda tensor: order.get(tensor.name, len(order)))
    return made


def _apply_(model: onnx.ModelProto, change: ir.passes.InPlacePass) -> None:
    """Run a pass of onnx_ir over a model; its graph stays the object that callers may hold."""
    import onnx_ir as ir

    changed = _read(model)
    with wall("onnx_ir cannot edit", _called(model), error=ModelFileError, model=model):
        change(changed)
        made = ir.to_proto(changed)
    model.graph.CopyFrom(made.graph)
    del model.functions[:]
    model.functions.extend(made.functions)


def _read(model: onnx.ModelProto) -> ir.Model:
    import onnx_ir as ir

    advice = (
        "It is damaged, or has what onnx_ir does not know, such as sparse constants. Export it "
        "again."
    )
    with wall("onnx_ir does not read", _called(model), error=ModelFileError, advice=advice):
        return ir.from_proto(model)


def _called(model: onnx.ModelProto) -> str:
    return f"the graph {model.graph.name!r}" if model.graph.name else "the graph"
