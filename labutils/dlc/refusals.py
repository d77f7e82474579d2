"""What Qualcomm's writer makes of an ONNX file before one is written: the nodes it does not take.

A target may have another table of operators; its DLC is written by QNN and runs on the HTP. Both
have a say: QNN with its REASON per node, and what was measured of nodes that QNN silently takes and
the HTP computes as something else or does not run, or that end QNN's process.
"""

from __future__ import annotations

from .. import paths
from ..errors import ConvertError, TranslationError, counted
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import module_of_name
from ..runtime import qnn
from ..runtime.qnn import options
from ..targets import NodeVerdict, check, load

WRITER = "qnn"
"""The target whose table says what the writer does; every DLC is written by it."""


def never_written(source: OnnxFile) -> tuple[NodeVerdict, ...]:
    """Return the nodes that QNN takes and the HTP does not compute, or that end QNN's process."""
    nodes = check(source, WRITER).nodes
    return tuple(node for node in nodes if node.silent or node.aborts or node.fails)


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
        _ask(source, chip)
    except ConvertError as error:
        version = qnn.require().versions["QNN"]
        refused = [
            NodeVerdict(name, op_type, module_of_name(name), "unsupported",
                        f"QNN {version} refuses it: {reason}", "QNN's log", "high")
            for op_type, name, reason in error.nodes
        ]  # fmt: skip
        return (*known, *refused)
    return known


def _ask(source: OnnxFile, chip: options.Soc) -> None:
    """Raise ConvertError where QNN refuses a node, or takes the graph in parts."""
    with paths.scratch() as folder:
        settings = options.htp(chip, dump_qnn_ir_dlc=1, dump_qnn_ir_dlc_dir=folder)
        asked = qnn.Graph.of(source, settings)
        qnn.shared().build(asked, "asking QNN", keep=False)
        if len(list(folder.glob("*.dlc"))) != 1:
            raise qnn.shared().why_split(asked, "asking QNN")


def refuse_never_written(source: OnnxFile) -> None:
    """Raise TranslationError for a file with a node that `never_written` names."""
    found = never_written(source)
    if not found:
        return
    first = found[0]
    what = "silently computes another function for"
    if not first.silent:
        what = "ends its process over" if first.aborts else "does not write a working DLC for"
    more = f" {counted(len(found), 'node')} in all." if len(found) > 1 else ""
    known = load(WRITER).ops.get(first.op_type)
    rules = "" if known and known.workaround else " `--repair` replaces what a rule can;"
    raise TranslationError(
        f"{source.name}: QNN {what} {first.op_type} {first.node!r} (module {first.module or '-'}): "
        f"{first.evidence}.{more}{rules} see `labutils diagnose --target qnn`.",
        node=first.node,
        op_type=first.op_type,
        module=first.module,
    )
