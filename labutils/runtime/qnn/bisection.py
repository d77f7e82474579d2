"""Which node an HTP compiler error is about, where the log names none: parts of the graph compile.

The compiler takes a whole graph, and fails without a name. The nodes up to a certain one, in the
order of computation, are a graph as well: some eight compiles find the first one that fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ... import paths
from ...onnxfile.file import OnnxFile

if TYPE_CHECKING:
    import onnx

MOST_NODES = 4096


def first_refused(model: OnnxFile, compiles: Callable[[Path], bool]) -> onnx.NodeProto | None:
    """Return the node with which a graph stops compiling.

    Parameters
    ----------
    model
        A file that does not compile as a whole.
    compiles
        Whether the HTP compiles an ONNX file.

    Returns
    -------
    onnx.NodeProto or None
        The first node, in the order of computation, whose part of the graph does not compile.
        None where parts cannot be cut out: tensors of unknown type, more than `MOST_NODES` nodes.
    """
    from onnx.utils import Extractor

    whole = model.shaped
    nodes = [node for node in whole.graph.node if node.op_type != "Constant"]
    known = _floats(whole)
    ends = [k for k, node in enumerate(nodes) if _is_end(node, nodes, known)]
    if not ends or len(nodes) > MOST_NODES:
        return None
    with paths.scratch() as folder:
        extractor = Extractor(whole)
        inputs = [value.name for value in whole.graph.input]

        def fails(position: int) -> bool:
            part = folder / f"part{position}.onnx"
            cut = _frontier(nodes, ends[position], known)
            OnnxFile.write(part, extractor.extract_model(inputs, cut))
            return not compiles(part)

        low, high = 0, len(ends) - 1
        if not fails(high):
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fails(middle) else (middle + 1, high)
    return _named(nodes, ends[low])


def _floats(model: onnx.ModelProto) -> set[str]:
    """Return the tensors of type float whose shape is known: those that can end a graph."""
    import onnx

    values = (*model.graph.value_info, *model.graph.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
            and v.type.tensor_type.HasField("shape")}  # fmt: skip


def _is_end(node: onnx.NodeProto, nodes: list[onnx.NodeProto], known: set[str]) -> bool:
    """Whether a graph may end here; a quantized one ends in the float of a rounded tensor."""
    if not set(node.output) & known:
        return False
    if not any(other.op_type == "QuantizeLinear" for other in nodes):
        return True
    rounded = {n for other in nodes if other.op_type == "QuantizeLinear" for n in other.output}
    return node.op_type == "DequantizeLinear" and node.input[0] in rounded


def _frontier(nodes: list[onnx.NodeProto], last: int, known: set[str]) -> list[str]:
    """Return what the nodes up to `last` hand on to later ones, and the output of `last`."""
    made = [name for node in nodes[: last + 1] for name in node.output if name in known]
    inside = {name for node in nodes[: last + 1] for name in node.input}
    later = {name for node in nodes[last + 1 :] for name in node.input}
    return [name for name in made if name in later or name not in inside]


def _named(nodes: list[onnx.NodeProto], found: int) -> onnx.NodeProto:
    """Return the node itself; for the float of a rounded tensor what computes that tensor."""
    makers = {name: node for node in nodes[: found + 1] for name in node.output}
    node = nodes[found]
    while node.op_type in ("DequantizeLinear", "QuantizeLinear") and node.input[0] in makers:
        node = makers[node.input[0]]
    return node
