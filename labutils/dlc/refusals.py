"""What Qualcomm's writer makes of an ONNX file before one is written: the nodes it does not take.

A target may have another table of operators; its DLC is written by QNN and runs on the HTP. Both
have a say: QNN with its REASON per node, and what was measured of nodes that QNN silently takes and
the HTP computes as something else, or that end QNN's process.
"""

from __future__ import annotations

from ..errors import ConvertError, TranslationError, counted
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import module_of_name
from ..runtime import qnn
from ..runtime.qnn import options
from ..targets import NodeVerdict, check

WRITER = "qnn"
"""The target whose table says what the writer does; every DLC is written by it."""


def never_written(source: OnnxFile) -> tuple[NodeVerdict, ...]:
    """Return the nodes that QNN takes for another function, or that end its process."""
    return tuple(node for node in check(source, WRITER).nodes if node.silent or node.aborts)


def refused_nodes(source: OnnxFile, soc: str = "SM8550") -> tuple[NodeVerdict, ...]:
    """Ask QNN which nodes of a float file it refuses for a chip, and add what it computes wrong.

    Parameters
    ----------
    soc
        A chip; one without float16 leaves the question to SM8550, for the operators are the same.

    Raises
    ------
    MissingToolError, WorkerError
        QNN is not here, or died.
    """
    chip = qnn.soc(soc) if qnn.soc(soc).fp16 else qnn.soc("SM8550")
    known = never_written(source)
    if any(node.aborts for node in known):
        return known
    try:
        qnn.shared().build(qnn.Graph.of(source, options.htp(chip)), "asking QNN", keep=False)
    except ConvertError as error:
        version = qnn.require().versions["QNN"]
        refused = [
            NodeVerdict(name, op_type, module_of_name(name), "unsupported",
                        f"QNN {version} refuses it: {reason}", "QNN's log", "high")
            for op_type, name, reason in error.nodes
        ]  # fmt: skip
        return (*known, *refused)
    return known


def refuse_never_written(source: OnnxFile) -> None:
    """Raise TranslationError for a file with a node that `never_written` names."""
    found = never_written(source)
    if not found:
        return
    first = found[0]
    what = "ends its process over" if first.aborts else "silently computes another function for"
    more = f" {counted(len(found), 'node')} in all." if len(found) > 1 else ""
    raise TranslationError(
        f"{source.name}: QNN {what} {first.op_type} {first.node!r} (module {first.module or '-'}): "
        f"{first.evidence}.{more} `--repair` replaces what a rule can; see `labutils diagnose "
        "--target qnn`.",
        node=first.node,
        op_type=first.op_type,
        module=first.module,
    )
