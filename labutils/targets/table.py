"""Checking an ONNX file against the operator table of a target: `load`, `check`."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import paths, untrusted
from ..errors import TableError, UnknownNameError, counted, worded
from ..onnxfile.file import OnnxFile
from .limits import CHECKS
from .onnx_nodes import Graph, Node, read
from .partition import subgraphs
from .report import CheckReport, NodeVerdict
from .schema import Constraint, Op, Table, parse


@dataclass(frozen=True)
class Target:
    """A target by name: its table, and what the lab can do for it.

    Attributes
    ----------
    name, table
        The name that users type, and the file in ``data/targets`` without its suffix.
    check, convert, run
        How each is done, as a phrase; empty where the lab cannot do it.
    ending
        Of the file that a conversion writes.
    """

    name: str
    table: str
    check: str
    convert: str = ""
    run: str = ""
    ending: str = ".dlc"


_HTP, _CPU = "HTP simulator", "LiteRT on this CPU"
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("snpe-2.7", "snpe_2_7", "replica; the real tool when on PATH", "DLC by QNN", _HTP),
        Target("qnn", "ort_qnn_ep", "table, then by asking QNN", "DLC, context binary", _HTP),
        Target("qairt-2025", "snpe_qairt_2025", "table", "DLC, context binary", _HTP),
        Target("tidl-11", "ti_tidl_11_00", "table, with the partition it would make"),
        Target("rdk-x5", "rdk_x5_hb_mapper", "table"),
        Target("onnx-tf-1.10", "onnx_tf_1_10", "table"),
        Target("litert", "litert_tflite", "table", "TFLite by Google's tools", _CPU, ".tflite"),
        Target("rknn-2.3", "rknn_toolkit2_2_3_2", "table"),
    )
}


def load(name: str) -> Table:
    """Return the operator table of a target.

    Parameters
    ----------
    name
        One of `TARGETS`, e.g. ``"snpe-2.7"``.

    Raises
    ------
    UnknownNameError
        No target has this name; the message suggests the nearest.
    TableError
        The table's file is malformed.
    """
    if name not in TARGETS:
        raise UnknownNameError("target", name, TARGETS)
    return _load(paths.OPERATOR_TABLES / f"{TARGETS[name].table}.yaml")


@functools.cache
def _load(file: Path) -> Table:
    try:
        text = untrusted.text(file)
    except (OSError, ValueError) as error:
        raise TableError(f"Cannot read the operator table {file}: {worded(error)}.") from None
    return parse(text, file.name)


def check(file: OnnxFile | str | Path, target: str) -> CheckReport:
    """Judge every node of an ONNX file by the operator table of a target.

    Nothing is converted and nothing native runs: this is what the documents say. Nodes come in
    topological order, whatever the order in the file. Constant nodes are data, and judged only
    where the table has a line for them.

    Parameters
    ----------
    file
        The model; weights in other files must be there.
    target
        One of `TARGETS`.

    Raises
    ------
    UnknownNameError
        No target has this name.
    ModelFileError
        The file is missing, empty, truncated, not ONNX, or its weights are missing.

    Examples
    --------
    >>> from labutils import export, targets
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Hardswish(), nn.Flatten())
    >>> _ = export.to_onnx(net, "net.onnx", size=32)
    >>> report = targets.check("net.onnx", "snpe-2.7")
    >>> report.ok, [node.op_type for node in report.blockers]
    (False, ['HardSwish'])
    """
    table = load(target)
    return judge_graph(read(file), table)


def judge_graph(graph: Graph, table: Table) -> CheckReport:
    """Judge the nodes of a graph that is already open; see `check`."""
    data = [n for n in graph.nodes if n.op_type == "Constant" and "Constant" not in table.ops]
    dropped = {node.index for node in data}
    nodes = [node for node in graph.nodes if node.index not in dropped]
    verdicts = [judge(node, table) for node in nodes]
    opset = _judge_opset(graph.opset, table)
    groups = None
    if table.on_unsupported == "partition":
        # an unknown node is left on the CPU: that is the safe guess, and the report counts it
        groups = subgraphs(nodes, [v.verdict in ("supported", "constrained") for v in verdicts])
    verdicts = _with_actions(verdicts, table, groups, stopped=opset is not None)
    return CheckReport(
        file=graph.file.name,
        table=table,
        opset=graph.opset,
        nodes=tuple(verdicts),
        opset_blocker=opset,
        constants=len(data),
        subgraphs=None if groups is None else len({*groups} - {0}),
        warnings=tuple(_warnings(graph, table, verdicts)),
    )


def judge(node: Node, table: Table) -> NodeVerdict:
    """Return the verdict of the table on one node; limits are checked where a machine can."""
    op = table.ops.get(node.op_type) if node.standard else None
    missed: tuple[Constraint, ...] = ()
    refusal = None if node.standard else table.messages.get("custom_domain")
    if refusal is not None:
        words = refusal.template.format(node=node.name, domain=node.proto.domain)
        verdict, evidence = "unsupported", f"{refusal.evidence}: {words}"
    elif op is None:
        verdict, evidence = "unknown", _why_unknown(node, table)
    elif op.verdict == "unsupported":
        verdict, evidence = "unsupported", _known(op, op.detail)
    else:
        verdict, evidence, missed = _judge_limits(node, op, table)
    return NodeVerdict(
        node=node.name,
        op_type=node.op_type,
        module=node.module,
        verdict=verdict,
        evidence=evidence,
        source=", ".join(refusal.source if refusal else op.source if op else ()),
        confidence="high" if refusal else op.confidence if op else "",
        version=node.version,
        silent=any(limit.silent for limit in missed),
        aborts=op is not None and op.aborts,
        fails=(op is not None and op.fails) or any(limit.fails for limit in missed),
    )


def _why_unknown(node: Node, table: Table) -> str:
    if not node.standard:
        return f"an operator of the domain {node.proto.domain!r}, which the table does not cover"
    return table.unknown.get(node.op_type) or f"the table of {table.target} does not list it"


def _known(op: Op, *parts: str) -> str:
    workaround = f"instead: {op.workaround}" if op.workaround else ""
    text = "; ".join(part for part in (*parts, workaround, op.note) if part)
    where = f", on {op.placement}" if op.placement else ""
    return f"{op.evidence}{where}: {text}" if text else f"{op.evidence}{where}"


def _judge_limits(node: Node, op: Op, table: Table) -> tuple[str, str, tuple[Constraint, ...]]:
    """Verdict, evidence, and the limits that are missed."""
    listed = ", ".join(map(str, op.op_versions))
    other = bool(op.op_versions) and node.version not in op.op_versions
    version = f"version {node.version} of the operator, documented: {listed}" if other else ""
    if other and table.on_other_version == "unsupported":
        return "unsupported", _known(op, version), ()
    answers = [(c, _answer(node, c.check)) for c in op.constraints]
    found = tuple(limit for limit, met in answers if met is False)
    missed = "; ".join(limit.text for limit in found)
    unclear = "; ".join(limit.text for limit, met in answers if met is None)
    met = sum(met is True for _, met in answers)
    if missed and table.on_limit_missed == "unsupported":
        return "unsupported", _known(op, f"misses a limit: {missed}"), found
    if missed:
        evidence = _known(op, f"misses a limit, so it runs on the CPU: {missed}", version)
        return "constrained", evidence, found
    if unclear:
        return "constrained", _known(op, f"for you to look at: {unclear}", version), ()
    limits = f"within its {met} limit{'s' * (met > 1)}" if met else ""
    return "constrained" if other else "supported", _known(op, limits, version), ()


def _answer(node: Node, check: dict[str, Any] | None) -> bool | None:
    if check is None:
        return None
    ((name, argument),) = check.items()
    return CHECKS[name](node, argument)


def _judge_opset(opset: int, table: Table) -> NodeVerdict | None:
    """Return the blocker that the file's opset is, None where the tool would read it."""
    span = table.opset_range
    below = span.min is not None and opset < span.min and span.below == "reject"
    above = span.max is not None and opset > span.max and span.above == "reject"
    if not (below or above):
        return None
    message = table.messages.get(span.message)
    text = message.template.format(v=opset) if message else span.note
    return NodeVerdict(
        node="",
        op_type=f"opset {opset}",
        module="",
        verdict="unsupported",
        evidence=f"{message.evidence}: {text}" if message else text,
        source=", ".join(message.source) if message else "",
        confidence="high",
        version=opset,
        action="the tool stops here",
    )


def _with_actions(
    verdicts: list[NodeVerdict], table: Table, groups: list[int] | None, stopped: bool
) -> list[NodeVerdict]:
    """Say of each node what the tool does with it."""
    done = []
    for index, verdict in enumerate(verdicts):
        if groups is not None:
            action = f"accelerator, subgraph {groups[index]}" if groups[index] else "CPU"
        elif stopped:
            action = "not reached"
        elif verdict.verdict == "unsupported":
            action, stopped = "the tool stops here", True
        else:
            action = "unknown" if verdict.verdict == "unknown" else "taken"
        done.append(dataclasses.replace(verdict, action=action))
    return done


def _warnings(graph: Graph, table: Table, verdicts: list[NodeVerdict]) -> list[str]:
    found = []
    span = table.opset_range
    low = span.min is not None and graph.opset < span.min and span.below == "warn"
    high = span.max is not None and graph.opset > span.max and span.above == "warn"
    if low or high:
        found.append(f"opset {graph.opset} is outside the documented range. {span.note}")
    if span.max_ir_version and graph.model.ir_version > span.max_ir_version:
        version, most = graph.model.ir_version, span.max_ir_version
        refusal = table.messages.get("ir_version")
        words = f"ONNX IR version {version} is above the documented {most}."
        if refusal is not None:
            words = f"the tool stops: {refusal.template.format(v=version, most=most)}"
        found.append(words)
    unknown = Counter((v.op_type, v.evidence) for v in verdicts if v.verdict == "unknown")
    for (op_type, why), count in unknown.items():
        found.append(f"{op_type} ({counted(count, 'node')}) is unknown: {why}.")
    return found
