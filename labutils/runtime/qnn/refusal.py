"""QNN's refusals: from its verbose log to a sentence that names node, operator and module.

A refusal comes in three shapes: a node that would fall back to the CPU; a layout-sensitive node
that was claimed and then rejected after the layout change; a graph that validates, node by node,
and then does not compile. In all three the cause is only in the log.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConvertError, ModelFileError
from ...onnxfile.edit import producers
from ...onnxfile.file import OnnxFile
from ...onnxfile.graph import module_of_name, module_path
from ...processes.worker import plain
from .options import Soc

if TYPE_CHECKING:
    import onnx

_NODE = re.compile(
    r"Operator type: (\S+) Node name: (\S*) Node index: \d+[^\n]*\n\s*REASON : ([^\n]*)"
)
_NOTE = re.compile(
    "failed for node|SetupBackend failed|Unable to load"
    r"|\[ ERROR \] (?!Op specific)|Failed to validate op"  # when a DLC is composed
)
_TOKEN = re.compile(r"_token_\d+(_\d+)*$")
_TAKEN = re.compile(r"QNNExecutionProvider_\d+_")  # a part of the graph that QNN did take
_FALLBACK = "fallback to CPU EP has been explicitly disabled"
_LAYOUT = "was inserted using the NHWC format"
_DOMAINS = ("", "ai.onnx", "com.microsoft", "com.ms.internal.nhwc")
_COMPILE = "Failed to finalize QNN graph"
_FOUND = "the part of the graph up to here does not compile, without this node it does"
_COMPOSE = "Failed to compose the DLC's graph"


class Refused(Exception):  # noqa: N818 - it crosses the channel as facts, never reaches a user
    """QNN would not make the session; `facts` is what `message` turns into a sentence."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(facts["error"])
        self.facts = facts


def parse(error: str, log: str) -> dict[str, Any]:
    """Return the facts of a refusal: ``{"error", "nodes": [[op, name, reason]], "notes"}``.

    Parameters
    ----------
    error
        The exception's text from ONNX Runtime.
    log
        The verbose log of the attempt.
    """
    log = plain(log)
    nodes: dict[tuple[str, str], str] = {}
    for op_type, name, reason in _NODE.findall(log):
        nodes.setdefault((op_type, _TOKEN.sub("", name)), _tidy(reason, op_type))
    nodes = {key: reason for key, reason in nodes.items() if not _TAKEN.match(key[0])}
    # Layout changes add Transposes; they only repeat the trouble of the node that they serve.
    real = {k: v for k, v in nodes.items() if not re.fullmatch(r"(?:Transpose)?", k[1])} or nodes
    notes = [
        re.sub(r"^.*?(\] |<E> )", "", line).strip()
        for line in log.splitlines()
        if _NOTE.search(line)
    ]
    return {
        "error": plain(error).strip(),
        "nodes": [[op_type, name, reason] for (op_type, name), reason in real.items()],
        "notes": list(dict.fromkeys(notes)),
    }


def precheck(file: OnnxFile | str | Path, chip: Soc | None = None) -> None:
    """Refuse what QNN would refuse with a worse text, or only on the chip.

    Parameters
    ----------
    file
        The ONNX file.
    chip
        The chip that it is for; None for a DLC, which is not compiled for one.

    Raises
    ------
    ConvertError
        A dynamic input shape (every node would go to the CPU), an operator of a domain that
        nobody implements, or a float graph for a v68 chip, whose HTP has no float16.
    ModelFileError
        The file cannot be read.
    """
    file = OnnxFile.of(file)
    model = file.proto
    for entry in model.graph.input:
        dims = [d.dim_param or d.dim_value or "?" for d in entry.type.tensor_type.shape.dim]
        if any(isinstance(d, str) for d in dims):
            raise ConvertError(
                f"{file.name}: input '{entry.name}' has the dynamic shape {dims}. QNN needs static "
                "shapes and would leave every node to the CPU: export with batch 1."
            )
    functions = {(f.domain, f.name) for f in model.functions}
    for node in model.graph.node:
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in functions:
            raise ConvertError(
                f"{file.name}: node '{node.name}' is the custom operator {node.domain}:"
                f"{node.op_type}. QNN has no such operator: replace it by standard ones."
            )
    ops = {node.op_type for node in model.graph.node}
    if chip and not ops & {"QuantizeLinear", "EPContext"}:
        refuse_float(file.path, chip)


def refuse_float(file: Path, chip: Soc) -> None:
    """Raise ConvertError when `chip` cannot compute the float graph in `file`."""
    if not chip.fp16:
        raise ConvertError(
            f"{file.name} is a float graph and {chip} has no float16 on its HTP. Quantize it to "
            "int8 (quantize.static), or choose a chip with HTP v69 or later, e.g. SM8550."
        )


def _tidy(reason: str, op_type: str) -> str:
    # "... not supported by QNN EP.Erf node `Erf_0` will not be assigned to QNN EP.": said twice
    reason = re.sub(rf"(?<=\.){re.escape(op_type)} node `[^`]*` will not be assigned.*", "", reason)
    if reason.strip() == "Cannot get shape":
        return "Cannot get shape (a tensor of the node has no static shape in the file)"
    return reason.strip()


def refuse(model: OnnxFile | Path, facts: dict[str, Any], doing: str) -> ConvertError:
    """Return the error for `facts`: what QNN refused while `doing`, per node, and what to do."""
    facts = _of_own_nodes(model, facts)
    lines = _lines(model, facts) or facts["notes"]
    text, cure = _headline(facts["error"])
    head = f"QNN refused {model.name} while {doing}: {text}"
    listed = [f"  - {line}" for line in lines]
    nodes = tuple((op_type, name, reason) for op_type, name, reason in facts["nodes"])
    return ConvertError("\n".join([head, *listed, f"What to do: {cure}"]), nodes)


def split(model: OnnxFile | Path, facts: dict[str, Any], doing: str) -> ConvertError:
    """Return the error for a graph that QNN takes in parts, with the nodes that part it."""
    facts = _of_own_nodes(model, facts)
    nodes = tuple((op_type, name, reason) for op_type, name, reason in facts["nodes"])
    head = f"QNN does not take {model.name} as one graph while {doing}"
    if not nodes:
        return ConvertError(
            f"{head}, and names no node. What to do: see that the outputs are computed from the "
            "input by operators that `labutils diagnose --target qnn` calls supported."
        )
    listed = [f"  - {line}" for line in _lines(model, facts)]
    cure = (
        "pass --repair, which replaces what a rule can; write the others with the operators that "
        "`labutils diagnose --target qnn` calls supported."
    )
    return ConvertError(
        "\n".join([f"{head}; it is split at these nodes.", *listed, f"What to do: {cure}"]), nodes
    )


def names_no_node(facts: dict[str, Any]) -> bool:
    """Whether the HTP compiler failed on a graph whose nodes all validated."""
    return _COMPILE in facts["error"] and not facts["nodes"]


def with_node(facts: dict[str, Any], node: onnx.NodeProto) -> dict[str, Any]:
    """Return the facts with the node that the parts of the graph led to."""
    return {**facts, "nodes": [[node.op_type, node.name or node.output[0], _FOUND]]}


def _of_own_nodes(model: OnnxFile | Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts that name a network's nodes, not the QuantizeLinear behind each.

    QNN takes a node and the Q and DQ around it as one, and calls that by the last of them.
    """
    try:
        nodes = OnnxFile.of(model).proto.graph.node
    except ModelFileError:  # the refusal is the news here, not the file
        return facts
    made_by, own = producers(nodes), {}
    for node in nodes:
        inner = made_by.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if inner is not None and inner.op_type != "DequantizeLinear":
            own[node.name] = [inner.op_type, inner.name or inner.output[0]]
    named = [[*own.get(name, [op, name]), reason] for op, name, reason in facts["nodes"]]
    return {**facts, "nodes": named}


def _lines(model: OnnxFile | Path, facts: dict[str, Any]) -> list[str]:
    """Return a line per node of a refusal: operator, name, module, reason."""
    modules, lines = _modules(model), []
    for op_type, name, reason in facts["nodes"]:
        module = modules.get(name) or module_of_name(name)
        place = f" (module {module})" if module else ""
        lines.append(f"{op_type} '{name}'{place}: {reason}")
    return lines


def _headline(error: str) -> tuple[str, str]:
    replace = "replace the named operators (surgery, repair), or export another opset."
    if _FALLBACK in error:
        return "these nodes would fall back to the CPU, and strict mode forbids that.", replace
    if _LAYOUT in error:
        name = re.search(r"Node '([^']*)'", error)
        node = f" ('{_TOKEN.sub('', name[1])}')" if name else ""
        return f"a node was claimed, then rejected after the change to NHWC layout{node}.", (
            "give the node static shapes, or " + replace
        )
    if _COMPILE in error:
        return f"every node validated, but the HTP compiler failed: {_short(error)}", (
            "replace the node that is named (surgery, repair), or try int8, a16w8, another chip."
        )
    if _COMPOSE in error:
        return f"the graph in the DLC is not valid for this chip's HTP: {_short(error)}", (
            "export the source at another opset, or replace the named operators; convert again."
        )
    return _short(error), "read the reason above; check the file with onnx.checker."


def _short(error: str) -> str:
    error = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", error.split("\n")[0])
    return error if len(error) <= 300 else error[:297] + "..."


def _modules(model: OnnxFile | Path) -> dict[str, str]:
    try:
        return {node.name: module_path(node) for node in OnnxFile.of(model).proto.graph.node}
    except ModelFileError:  # the refusal is the news here, not the file
        return {}
