"""Dropout and BatchNormalization of a file that was exported with or without ``model.eval()``.

Dropout in inference passes its input on. BatchNormalization in training normalizes by the
statistics of the batch: those of the one image where the batch is 1, which is what
InstanceNormalization computes (both operators' pages at onnx.ai/onnx/operators).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelFileError, counted
from . import shapes
from .edit import graphs_within, nodes_within
from .graph import opset

if TYPE_CHECKING:
    import onnx

_FLAG_OF_DROPOUT = 12  # the opset that gave Dropout its input `training_mode`
_FLAG_OF_NORMALIZATION = 14  # before, more outputs than one meant training
_SCALES = 3  # inputs that InstanceNormalization shares: x, scale, bias


def is_plain(model: onnx.ModelProto) -> bool:
    """Return whether `rewrite_` has nothing to do."""
    return not (_idle_dropouts(model) or _per_image(model))


def rewrite_(model: onnx.ModelProto) -> list[str]:
    """Write inference Dropout as Identity and, at batch 1, training BatchNormalization plainly.

    Returns
    -------
    list of str
        What was changed.
    """
    dropouts = _idle_dropouts(model)
    for node in dropouts:
        node.op_type = "Identity"
        del node.input[1:], node.output[1:], node.attribute[:]
    count = 0
    while nodes := _per_image(model):  # shapes behind one are known once it is written plainly
        for node in nodes:
            node.op_type = "InstanceNormalization"
            del node.input[_SCALES:], node.output[1:]
            kept = [a for a in node.attribute if a.name == "epsilon"]
            del node.attribute[:]
            node.attribute.extend(kept)
        count += len(nodes)
    changes = (
        [f"{counted(len(dropouts), 'inference Dropout')} written as Identity"] if dropouts else []
    )
    if count:
        changes.append(
            f"{counted(count, 'BatchNormalization')} in training mode, which normalizes each image "
            "by its own statistics, written as InstanceNormalization (for the trained statistics, "
            "call model.eval() before the export)"
        )
    return changes


def refuse(model: onnx.ModelProto, name: str) -> None:
    """Refuse a network that still trains while it runs.

    Parameters
    ----------
    model
        After `rewrite_`.
    name
        Of its file, for the message.

    Raises
    ------
    ModelFileError
        The message names the first such node.
    """
    node = next(iter(training(model)), None)
    if node is None:
        return
    what = "its result is random" if node.op_type == "Dropout" else (
        "it normalizes by the statistics of the batch, not by the trained ones"
    )  # fmt: skip
    raise ModelFileError(
        f"{name} was exported in training mode: {node.op_type} '{node.name or node.output[0]}' has "
        f"training_mode=1, so {what}. Call model.eval() and export it again."
    )


def training(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the Dropout and BatchNormalization nodes that are in training mode."""
    constants = _constants(model.graph)
    version = opset(model)
    return [
        node
        for node in nodes_within(model.graph)
        if _normalizes_batches(node, version) or _drops(node, version, constants) is True
    ]


def _idle_dropouts(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the Dropouts that pass their input on, and whose mask nobody reads."""
    version = opset(model)
    found = [n for n in nodes_within(model.graph) if n.op_type == "Dropout" and not n.domain]
    if not found:
        return []
    constants, read = _constants(model.graph), _read(model.graph)
    return [
        node
        for node in found
        if _drops(node, version, constants) is False and read.isdisjoint(node.output[1:])
    ]


def _drops(node: onnx.NodeProto, version: int, constants: dict[str, bool]) -> bool | None:
    """Whether a node is a Dropout in training mode; None where that is computed, or no Dropout."""
    if node.op_type != "Dropout" or node.domain:
        return None
    flag = node.input[2] if version >= _FLAG_OF_DROPOUT and len(node.input) > 2 else ""
    return constants.get(flag) if flag else False


def _normalizes_batches(node: onnx.NodeProto, version: int) -> bool:
    if node.op_type != "BatchNormalization" or node.domain:
        return False
    if version < _FLAG_OF_NORMALIZATION:
        return sum(1 for name in node.output if name) > 1
    return any(a.name == "training_mode" and a.i for a in node.attribute)


def _per_image(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the batch normalizations in training mode that see one image."""
    version = opset(model)
    found = [node for node in nodes_within(model.graph) if _normalizes_batches(node, version)]
    if not found:
        return []
    known, read = shapes.inferred(model), _read(model.graph)
    return [node for node in found if _sees_one_image(node, known, read)]


def _sees_one_image(
    node: onnx.NodeProto, known: dict[str, onnx.ValueInfoProto], read: set[str]
) -> bool:
    size = shapes.sizes(known[node.input[0]]) if node.input[0] in known else None
    per_channel = not any(a.name == "spatial" and not a.i for a in node.attribute)
    one = size is not None and len(size) > 2 and size[0] == 1
    return one and per_channel and read.isdisjoint(node.output[1:])


def _constants(graph: onnx.GraphProto) -> dict[str, bool]:
    """Return the truth of the constants of one boolean, by name."""
    from onnx import TensorProto, numpy_helper

    tensors = {
        tensor.name: tensor for owner in graphs_within(graph) for tensor in owner.initializer
    }
    for node in nodes_within(graph):
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {
        name: bool(numpy_helper.to_array(tensor).all())
        for name, tensor in tensors.items()
        if tensor.data_type == TensorProto.BOOL and set(tensor.dims) <= {1}
    }


def _read(graph: onnx.GraphProto) -> set[str]:
    """Return the names that nodes read or graphs give; the empty name is not one."""
    names = {name for node in nodes_within(graph) for name in node.input}
    names |= {value.name for owner in graphs_within(graph) for value in owner.output}
    return names - {""}
