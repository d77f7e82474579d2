"""What ONNX lets a file leave loose, and other readers stumble over: names, order, shapes.

Two nodes of one name, a graph without one, nodes that come before what they read, an optional input
that is left out by an empty name at the end, the standard domain by its other name, stated shapes
that the network no longer has, outputs that state none, and one weight that layers of several kinds
read. What a network computes, and the names of its inputs, outputs and tensors, stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import counted
from . import contrib_operators, group_normalization, shapes
from .edit import free_name, graphs_within, nodes_within, subgraphs

if TYPE_CHECKING:
    import onnx

_STANDARD, _ALIAS = "", "ai.onnx"
_Use = tuple[object, ...]
_CARRIERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def is_regular(model: onnx.ModelProto) -> bool:
    """Return whether `regularize_` has nothing to do."""
    nodes = list(nodes_within(model.graph))
    named = [node.name for node in nodes if node.name]
    ends = [output.name for output in model.graph.output]
    return not (
        len(set(named)) < len(named)
        or len(set(ends)) < len(ends)
        or any(node.domain == _ALIAS for node in nodes)
        or any(entry.domain == _ALIAS for entry in model.opset_import)
        or any(_left_out(node) for node in nodes)
        or not _is_sorted(model.graph, set())
        or contrib_operators.fused(model.graph)
        or group_normalization.written_out(model)
        or _tied(model.graph)
        or _negative(model.graph)
        or not all(owner.name for owner in graphs_within(model.graph))
        or shapes.contradicted(model)
        or shapes.unstated(model)
    )


def regularize_(model: onnx.ModelProto) -> list[str]:
    """Make a file regular, in place; return what was changed, as text."""
    steps = (
        _list_outputs_once_, _name_domain_, _name_graphs_, _name_nodes_, _trim_, _sort_,
        contrib_operators.expand_, _untie_, _open_, _forget_shapes_, group_normalization.expand_,
        _state_outputs_,
    )  # fmt: skip
    return [change for step in steps for change in step(model)]


def _list_outputs_once_(model: onnx.ModelProto) -> list[str]:
    names = [output.name for output in model.graph.output]
    repeated = [i for i, name in enumerate(names) if name in names[:i]]
    if not repeated:
        return []
    for i in reversed(repeated):
        del model.graph.output[i]
    return [f"{counted(len(repeated), 'output')} that was listed twice is listed once"]


def _name_domain_(model: onnx.ModelProto) -> list[str]:
    owners = [model, *model.functions]
    nodes = [*nodes_within(model.graph), *(n for f in model.functions for n in f.node)]
    found = 0
    for node in nodes:
        if node.domain == _ALIAS:
            node.domain, found = _STANDARD, found + 1
    for owner in owners:
        known = {entry.domain for entry in owner.opset_import}
        for entry in list(owner.opset_import):
            if entry.domain == _ALIAS:
                found += 1
                if _STANDARD in known:
                    owner.opset_import.remove(entry)
                else:
                    entry.domain = _STANDARD
    return ["its operators of 'ai.onnx' are those of the standard domain"] if found else []


def _name_graphs_(model: onnx.ModelProto) -> list[str]:
    nameless = [owner for owner in graphs_within(model.graph) if not owner.name]
    for owner in nameless:
        owner.name = "graph"
    found = len(nameless)
    return [f"{counted(found, 'graph')} without a name given one"] if found else []


def _name_nodes_(model: onnx.ModelProto) -> list[str]:
    nodes = [node for node in nodes_within(model.graph) if node.name]
    taken, met = {node.name for node in nodes}, set[str]()
    renamed = 0
    for node in nodes:
        if node.name in met:
            node.name = free_name(node.name, taken)
            renamed += 1
        met.add(node.name)
    return [f"{counted(renamed, 'node')} renamed: others had the same names"] if renamed else []


def _left_out(node: onnx.NodeProto) -> bool:
    """Whether inputs, or outputs but the first, are left out at the end by an empty name."""
    return bool(node.input and not node.input[-1]) or (len(node.output) > 1 and not node.output[-1])


def _trim_(model: onnx.ModelProto) -> list[str]:
    trimmed = 0
    for node in nodes_within(model.graph):
        trimmed += _left_out(node)
        while node.input and not node.input[-1]:
            del node.input[-1]
        while len(node.output) > 1 and not node.output[-1]:
            del node.output[-1]
    return [f"empty names at the end of {counted(trimmed, 'node')} taken away"] if trimmed else []


def _reads(node: onnx.NodeProto) -> set[str]:
    """Return what a node reads, and what the graphs inside it read of the graph around them."""
    read = {name for name in node.input if name}
    for graph in subgraphs(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own |= {name for inner in graph.node for name in inner.output}
        inside = {name for inner in graph.node for name in _reads(inner)}
        read |= (inside | {value.name for value in graph.output}) - own
    return read


def _is_sorted(graph: onnx.GraphProto, around: set[str]) -> bool:
    """Whether every node comes after those whose outputs it reads, in the graphs inside too."""
    made = {name for node in graph.node for name in node.output if name}
    known = set(around)
    for node in graph.node:
        if not _reads(node) & made <= known:
            return False
        known.update(node.output)
        if not all(_is_sorted(inner, set()) for inner in subgraphs(node)):
            return False
    return True


def _sort_(model: onnx.ModelProto) -> list[str]:
    if _is_sorted(model.graph, set()) or not _order_(model.graph):
        return []
    return ["its nodes are in the order of their computation"]


def _order_(graph: onnx.GraphProto) -> bool:
    """Sort a graph and those inside it, keeping the order otherwise; return False for a cycle."""
    made = {name for node in graph.node for name in node.output if name}
    waiting, known, order = list(graph.node), set[str](), []
    while waiting:
        ready = [node for node in waiting if _reads(node) & made <= known]
        if not ready:
            return False
        for node in ready:
            known.update(node.output)
        order += ready
        held = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in held]
    copies = [type(node).FromString(node.SerializeToString()) for node in order]
    del graph.node[:]
    graph.node.extend(copies)
    return all(_order_(inner) for node in graph.node for inner in subgraphs(node))


def _use(node: onnx.NodeProto, index: int) -> _Use:
    """Return how a node uses a weight: uses that differ have other axes and other layouts."""
    settings = {a.name: a.i for a in node.attribute if a.name in ("group", "transA", "transB")}
    kind = node.op_type if node.op_type in _CARRIERS else "other"
    return kind, index if kind != "other" else 0, *sorted(settings.items())


def _uses(graph: onnx.GraphProto) -> dict[str, dict[_Use, list[tuple[onnx.NodeProto, int]]]]:
    """Return how each weight and bias is used, and where."""
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 0}
    weights -= {value.name for value in graph.output}
    found: dict[str, dict[_Use, list[tuple[onnx.NodeProto, int]]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in weights:
                found.setdefault(name, {}).setdefault(_use(node, index), []).append((node, index))
    return found


def _tied(graph: onnx.GraphProto) -> list[str]:
    """Return the weights that layers of several kinds read."""
    return [
        name
        for name, uses in _uses(graph).items()
        if len(uses) > 1 and any(use[0] in _CARRIERS for use in uses)
    ]


def _untie_(model: onnx.ModelProto) -> list[str]:
    """Give every kind of layer its own copy of a weight that several read."""
    graph = model.graph
    tied = _tied(graph)
    if not tied:
        return []
    uses = _uses(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    taken = set(weights) | {name for node in nodes_within(graph) for name in node.output}
    for name in tied:
        for places in list(uses[name].values())[1:]:
            copy = type(weights[name])()
            copy.CopyFrom(weights[name])
            copy.name = free_name(name, taken)
            graph.initializer.append(copy)
            for node, index in places:
                node.input[index] = copy.name
    words = "that layers of several kinds read copied for each"
    return [f"{counted(len(tied), 'weight')} {words}"]


def _negative(graph: onnx.GraphProto) -> list[Any]:
    """Return the dimensions that are stated as negative numbers: those mean an open one."""
    values = (*graph.input, *graph.output, *graph.value_info)
    return [d for v in values for d in v.type.tensor_type.shape.dim if d.dim_value < 0]


def _open_(model: onnx.ModelProto) -> list[str]:
    found = _negative(model.graph)
    for dim in found:
        dim.Clear()
    return [f"{counted(len(found), 'negative size')} left open"] if found else []


def _forget_shapes_(model: onnx.ModelProto) -> list[str]:
    """Take away the shapes inside the network, and state those of the outputs, where some lie."""
    wrong = shapes.contradicted(model)
    if not wrong:
        return []
    found = shapes.inferred(model)
    del model.graph.value_info[:]
    for output in model.graph.output:
        if output.name in wrong:
            output.type.CopyFrom(found[output.name].type)
    return [f"{counted(len(wrong), 'stated shape')} corrected: the network has others"]


def _state_outputs_(model: onnx.ModelProto) -> list[str]:
    """State the shapes of the outputs that the file leaves out, where they follow."""
    found = shapes.unstated(model)
    for output in model.graph.output:
        if output.name in found:
            output.type.CopyFrom(found[output.name].type)
    return [f"the shape of {counted(len(found), 'output')} stated"] if found else []
