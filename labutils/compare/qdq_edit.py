"""A QDQ graph as units that can be quantized or left in float one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..onnxfile.edit import producers, readers, redirect_, remove_unused_, rename_tensors_
from ..onnxfile.graph import module_path

if TYPE_CHECKING:
    import onnx

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Unit:
    """A node with all that quantizing it rounds.

    Attributes
    ----------
    name, op, module
        The node's name, operator and module; ``"input"`` and ``"Input"`` for the image.
    tensor
        The float tensor that it writes, before rounding.
    constants
        (input index, name of the dequantized tensor) of its weights and bias.
    rounded
        Names of the dequantized values of `tensor`.
    """

    name: str
    op: str
    module: str
    tensor: str
    constants: tuple[tuple[int, str], ...]
    rounded: tuple[str, ...]


def units(quantized: onnx.ModelProto) -> list[Unit]:
    """Return the quantized nodes of a QDQ graph in topological order, the image first.

    Raises
    ------
    UsageError
        Nothing is quantized.
    """
    graph = quantized.graph
    producer, read_by = producers(graph.node), readers(graph.node)

    def rounded(tensor: str) -> list[str]:
        """Return what comes out of every Q and DQ behind `tensor`, conversions included."""
        found = []
        for first in read_by.get(tensor, []):
            if first.op_type != _Q:
                continue
            for second in read_by.get(first.output[0], []):
                found += [second.output[0], *rounded(second.output[0])]
        return found

    stored = {tensor.name for tensor in graph.initializer}
    entry = graph.input[0].name
    found = [Unit("input", "Input", "", entry, (), tuple(rounded(entry)))]
    for node in graph.node:
        if node.op_type in (_Q, _DQ, "Constant"):
            continue
        constants = []
        for index, name in enumerate(node.input):
            maker = producer.get(name)
            if maker is not None and maker.op_type == _DQ and maker.input[0] in stored:
                constants.append((index, name))
        behind = rounded(node.output[0])
        if constants or behind:
            found.append(
                Unit(
                    node.name, node.op_type, module_path(node), node.output[0],
                    tuple(constants), tuple(behind),
                )
            )  # fmt: skip
    if not any(unit.rounded or unit.constants for unit in found):
        raise UsageError("Nothing in this graph is quantized: give the QDQ file.")
    return [unit for unit in found if unit.rounded or unit.constants]


def in_float(
    quantized: onnx.ModelProto, reference: onnx.ModelProto, chosen: Iterable[Unit]
) -> onnx.ModelProto:
    """Return the QDQ graph with the chosen units in float again.

    Parameters
    ----------
    quantized, reference
        The QDQ model and the float model that it was made from; neither is changed.
    chosen
        Some of `units(quantized)`.
    """
    model = type(quantized)()
    model.CopyFrom(quantized)
    graph = model.graph
    outputs = {entry.name for entry in graph.output}
    originals = {node.name: node for node in reference.graph.node}
    values = {tensor.name: tensor for tensor in reference.graph.initializer}
    stored = {tensor.name for tensor in graph.initializer}
    chosen = list(chosen)
    _restore_activations_(graph, reference.graph, chosen)
    renamed: dict[str, str] = {}
    for unit in chosen:
        renamed |= dict.fromkeys(unit.rounded, unit.tensor)
        for index, name in unit.constants:
            original = originals[unit.name].input[index] if unit.name in originals else ""
            if original in values:
                renamed[name] = f"{original}.float"
                if renamed[name] not in stored:
                    stored.add(renamed[name])
                    copied = graph.initializer.add()
                    copied.CopyFrom(values[original])
                    copied.name = renamed[name]
    redirect_((node for node in graph.node if node.op_type != _DQ), renamed)
    ends = {renamed[name]: name for name in outputs & set(renamed)}  # logits keep their name
    dead = set(renamed) & outputs
    kept = [node for node in graph.node if not dead & set(node.output)]
    del graph.node[:]
    graph.node.extend(kept)
    rename_tensors_(graph, ends)
    _keep_what_is_read_(graph)
    return model


def _keep_what_is_read_(graph: onnx.GraphProto) -> None:
    """Drop what no output needs, in a graph without graphs inside.

    A ranking makes hundreds of such models, and `remove_unused_` was half of its time.
    """
    needed, kept = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)


def for_htp(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a partly quantized graph as QNN takes it and its compiler leaves it; same function.

    QNN dequantizes no constant per channel for a float node, so the weights of such a node become
    the floats that their codes stand for. And the compiler takes Q and DQ away between two float
    nodes, the rounding with them: a max-pooling of one value, on the codes, keeps them there.

    Parameters
    ----------
    model
        From `in_float`. It is not changed.
    """
    copied = type(model)()
    copied.CopyFrom(model)
    graph = copied.graph
    maker, read_by = producers(graph.node), readers(graph.node)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    inner = [node for node in graph.node if node.op_type not in (_Q, _DQ, "Constant")]
    integer = {node.output[0] for node in inner if _computes_on_codes(node, maker, read_by, stored)}
    for node in inner:
        if node.output[0] not in integer:
            _bake_weights_(graph, node, maker, stored)
    for node in list(graph.node):
        before = maker.get(node.input[0]) if node.op_type == _DQ else None
        if before is None or before.op_type != _Q or before.input[0] in integer:
            continue
        after = read_by.get(node.output[0], [])
        if after and not any(reader.output[0] in integer for reader in after):
            _pool_codes_(graph, before, node)
    remove_unused_(copied)
    return copied


def _computes_on_codes(
    node: onnx.NodeProto, maker: dict, read_by: dict, stored: dict[str, onnx.TensorProto]
) -> bool:
    """Return whether a node lies between DQs and Qs on all sides."""
    inputs = [name for name in node.input if name and name not in stored]
    into = all(name in maker and maker[name].op_type == _DQ for name in inputs)
    outof = [reader.op_type for name in node.output for reader in read_by.get(name, [])]
    return into and bool(outof) and set(outof) == {_Q}


def _bake_weights_(
    graph: onnx.GraphProto, node: onnx.NodeProto, maker: dict, stored: dict[str, onnx.TensorProto]
) -> None:
    """Give a float node its dequantized constants as floats."""
    import numpy as np
    from onnx import numpy_helper

    for index, name in enumerate(node.input):
        source = maker.get(name)
        if source is None or source.op_type != _DQ or source.input[0] not in stored:
            continue
        codes, scale, zero = (numpy_helper.to_array(stored[n]) for n in source.input)
        axis = next((a.i for a in source.attribute if a.name == "axis"), 1)
        shape = [-1 if i == axis else 1 for i in range(codes.ndim)] if scale.ndim else []
        floats = (codes.astype(np.int64) - zero.reshape(shape)) * scale.reshape(shape)
        baked = f"{name}.baked"
        if not any(tensor.name == baked for tensor in graph.initializer):
            tensor = numpy_helper.from_array(floats.astype(np.float32), baked)
            graph.initializer.append(tensor)
        node.input[index] = baked


def _pool_codes_(graph: onnx.GraphProto, first: onnx.NodeProto, last: onnx.NodeProto) -> None:
    """Put DQ, a max-pooling of one value and Q between a Q and its DQ, for images."""
    from onnx import helper

    entry = next((e for e in (*graph.value_info, *graph.input) if e.name == first.input[0]), None)
    if entry is None or len(entry.type.tensor_type.shape.dim) != 4:
        return
    name, settings = last.output[0], list(last.input[1:])
    added = [
        helper.make_node("MaxPool", [f"{name}.read"], [f"{name}.pooled"],
                         f"{last.name}.pool", kernel_shape=[1, 1]),
        helper.make_node(_Q, [f"{name}.pooled", *settings], [f"{name}.codes"], f"{last.name}.q"),
        helper.make_node(_DQ, [f"{name}.codes", *settings], [name], f"{last.name}.dq"),
    ]  # fmt: skip
    for node in added[1:]:
        node.domain = last.domain
    last.output[0] = f"{name}.read"
    position = next(i for i, node in enumerate(graph.node) if node is last or node == last)
    for node in reversed(added):
        graph.node.insert(position + 1, node)


def _restore_activations_(
    graph: onnx.GraphProto, reference: onnx.GraphProto, chosen: list[Unit]
) -> None:
    """Put back the ReLU that the quantizer left to the lower end of the codes."""
    import onnx

    made = producers(reference.node)
    values = {tensor.name: tensor for tensor in reference.initializer}
    present = {name: node.op_type for name, node in producers(graph.node).items()}
    for unit in chosen:
        original = made.get(unit.tensor)
        if original is None or original.op_type not in ("Relu", "Clip"):
            continue
        if present.get(unit.tensor) == original.op_type:
            continue
        before = f"{unit.tensor}.before"
        position = next(i for i, n in enumerate(graph.node) if unit.tensor in n.output)
        graph.node[position].output[0] = before
        back = onnx.NodeProto()
        back.CopyFrom(original)
        back.input[0] = before
        graph.node.insert(position + 1, back)
        for name in original.input[1:]:
            if name in values and not any(t.name == name for t in graph.initializer):
                graph.initializer.add().CopyFrom(values[name])
