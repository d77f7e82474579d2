"""Where the RDK X5's tools put each node, in the manner of ``hb_mapper checker``; an emulation.

It follows the operator table (``data/targets/rdk_x5_hb_mapper.yaml``): an operator that misses a
limit, or has no BPU kernel, runs on the CPU. Names of the BPU's operators are those that were seen.
A last Gemm, which becomes a convolution, is followed by a Reshape on the CPU (checker's table of
RepVGG on RDK X5 in rdk_model_zoo; run by us on MobileNetV3-Large).
"""

from __future__ import annotations

from collections.abc import Mapping

from .. import targets
from ..onnxfile import edit
from ..onnxfile.file import OnnxFile
from ..targets import onnx_nodes, partition
from . import bpu_form, hb_mapper
from .vendor_log import NodeLine

_LUT = "HzLut"
_RESHAPED = "_reshape_output"
_ON_CPU = ("CPU", "--", "Reshape")


def lines(
    file: OnnxFile, form: OnnxFile, said: Mapping[str, hb_mapper.Node] | None = None
) -> tuple[NodeLine, ...]:
    """Return one line per node of a network, as checker has it: without cosine and threshold.

    Parameters
    ----------
    file
        The network as it is given to the tool, opset 11.
    form
        What `bpu_form.joined` made of it.
    said
        What an hb_mapper YAML says of single nodes.
    """
    said = said or {}
    report = targets.check(file, "rdk-x5")
    on_cpu = {node.node for node in report.nodes if _on_cpu(node, report.table)}
    on_cpu |= {name for name, node in said.items() if node.on == "CPU"}
    nodes = [node for node in onnx_nodes.read(form).nodes if node.op_type != "Constant"]
    offloaded = [node.name not in on_cpu for node in nodes]
    numbers = partition.subgraphs(nodes, offloaded)
    protos = [node.proto for node in nodes]
    made, read = edit.producers(protos), edit.readers(protos)
    last = {value.name for value in form.outputs}
    found = []
    for node, on, number in zip(nodes, offloaded, numbers, strict=True):
        if on and bpu_form.is_absorbed(node.proto, made, read):
            continue
        kind = _kind(node.op_type, report.table) if on else node.op_type
        own = said.get(node.name) or hb_mapper.Node()
        ends = last & set(node.proto.output)
        wide = "int32" if ends and bpu_form.keeps_sums(node.proto) else f"int{own.output or 8}"
        reads = max((bits for _, bits in own.each), default=0) or own.inputs or 8
        bits = f"int{reads}/{wide}" if on else "float/float"
        where = ("BPU", f"id({number - 1})") if on else ("CPU", "--")
        found.append(NodeLine(node.name, *where, kind, None, None, bits))
        if on and ends and node.op_type == "Gemm":
            found.append(NodeLine(f"{node.name}{_RESHAPED}", *_ON_CPU, None, None, "float/float"))
    return tuple(found)


def _on_cpu(node: targets.NodeVerdict, table: targets.Table) -> bool:
    op = table.ops.get(node.op_type)
    placed = op is None or not op.placement.startswith("BPU")
    return placed or node.verdict == "unsupported" or "misses a limit" in node.evidence


def _kind(op_type: str, table: targets.Table) -> str:
    """Return what the BPU's operator is called, where that was seen; else the ONNX operator."""
    if op_type == "HardSwish":  # joined: the table knows its two halves
        return _LUT
    op = table.ops.get(op_type)
    return (op.maps_to if op else "") or op_type
