"""What a check against an operator table found, as text, HTML and plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from .. import typesetting
from ..errors import counted
from .schema import Table

_WORDS = ("supported", "constrained", "unsupported", "unknown")


@dataclass(frozen=True)
class NodeVerdict:
    """The table's verdict on one node.

    Attributes
    ----------
    node, op_type, module
        The node's name, its operator, and the module path it came from ("" where unknown).
    verdict
        ``supported``, ``constrained``, ``unsupported`` or ``unknown``.
    evidence, source, confidence
        What is known and how; ids of the table's sources; how sure the table is.
    version
        Version of the operator that the file's opset selects.
    action
        What the tool does with the node.
    silent
        Whether the tool takes the node silently, and computes another function.
    aborts
        Whether the tool's process ends over the node.
    fails
        Whether the tool writes the node, and the device does not run what was written.
    """

    node: str
    op_type: str
    module: str
    verdict: str
    evidence: str
    source: str
    confidence: str = ""
    version: int | None = None
    action: str = ""
    silent: bool = False
    aborts: bool = False
    fails: bool = False


@dataclass(frozen=True, repr=False)
class CheckReport(typesetting.Shown):
    """An ONNX file against an operator table, node by node in topological order.

    Attributes
    ----------
    file, table, opset
        The file's name, the table, and the file's opset.
    nodes
        One verdict per node.
    opset_blocker
        The file's opset as a blocker, where the tool refuses it before any node.
    constants
        How many Constant nodes were left out: data, which the table has no line for.
    subgraphs
        For a tool that splits the graph: how many accelerator subgraphs it would make (by our
        estimate); else None.
    warnings
        One sentence each: unknown operators, an opset outside the documented range.
    """

    file: str
    table: Table
    opset: int
    nodes: tuple[NodeVerdict, ...]
    opset_blocker: NodeVerdict | None = None
    constants: int = 0
    subgraphs: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """Name of the target."""
        return self.table.target

    @property
    def counts(self) -> dict[str, int]:
        """Number of nodes per verdict, all four verdicts named."""
        found = Counter(node.verdict for node in self.nodes)
        return {word: found[word] for word in _WORDS}

    @property
    def blockers(self) -> list[NodeVerdict]:
        """What the target does not take: its opset if refused, then the unsupported nodes."""
        unsupported = [node for node in self.nodes if node.verdict == "unsupported"]
        return [self.opset_blocker, *unsupported] if self.opset_blocker else unsupported

    @property
    def first_blocker(self) -> NodeVerdict | None:
        """The first of `blockers`: where a tool that aborts stops."""
        return next(iter(self.blockers), None)

    @property
    def ok(self) -> bool:
        """Whether nothing blocks; unknown nodes do not block, and promise nothing."""
        return not self.blockers

    @property
    def unknown(self) -> dict[str, int]:
        """Number of nodes per operator that the table does not know."""
        return dict(Counter(n.op_type for n in self.nodes if n.verdict == "unknown"))

    def summary(self) -> list[str]:
        """Return the sentences that head the report."""
        table, counts = self.table, self.counts
        listed = ", ".join(f"{counts[word]} {word}" for word in _WORDS)
        lines = [
            f"{self.file} (opset {self.opset}) against the operator table of {self.target}",
            f"Table: {table.vendor}, {table.toolchain}, {table.version}; "
            f"documents read {table.retrieved}; this check does not run the tool.",
            f"{counted(len(self.nodes), 'node')}: {listed}"
            + (f"; {self.constants} Constant nodes not counted" if self.constants else ""),
            self.conclusion,
        ]
        return lines + [f"Warning: {warning}" for warning in self.warnings]

    @property
    def conclusion(self) -> str:
        """What the target would do with the file, in one sentence."""
        first = self.first_blocker
        if self.subgraphs is not None:
            on_cpu = sum(node.action == "CPU" for node in self.nodes)
            if self.subgraphs == 1 and not on_cpu:
                return "The accelerator would take the whole graph (an estimate from documents)."
            return (
                f"The graph would be split: {counted(self.subgraphs, 'accelerator subgraph')}, "
                f"{counted(on_cpu, 'node')} on the CPU (an estimate: the tool's own rules may join "
                "less)."
            )
        if first is None:
            known = "every node" if not self.unknown else "every node that the table knows"
            return f"Nothing blocks: the table takes {known}."
        where = f" in {first.module}" if first.module else ""
        node = f" (node {first.node})" if first.node else ", before it reads any node"
        return f"The tool would stop at {first.op_type}{where}{node}."

    def groups(self) -> list[tuple[str, str, int, str, str]]:
        """Return (operator, verdict, nodes, first module or node, evidence), blockers first."""
        found: dict[tuple[str, str, str], list[NodeVerdict]] = {}
        for node in [*self.blockers, *(n for n in self.nodes if n.verdict != "unsupported")]:
            found.setdefault((node.op_type, node.verdict, node.evidence), []).append(node)
        order = {"unsupported": 0, "unknown": 1, "constrained": 2, "supported": 3}
        rows = [
            (op, verdict, len(nodes), nodes[0].module or nodes[0].node or "the file", evidence)
            for (op, verdict, evidence), nodes in found.items()
        ]
        return sorted(rows, key=lambda row: order[row[1]])

    def __str__(self) -> str:
        head = ("operator", "verdict", "nodes", "first in", "evidence")
        rows = [head, *(tuple(map(str, row)) for row in self.groups())]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        table = ["  ".join([*(row[i].ljust(widths[i]) for i in range(4)), row[4]]) for row in rows]
        return "\n".join([*self.summary(), "", *table])

    def _repr_html_(self) -> str:
        summary = "".join(map(typesetting.paragraph, self.summary()))
        head = ("operator", "verdict", "nodes", "first in", "evidence")
        return summary + typesetting.table(head, [[*map(str, row)] for row in self.groups()])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for ``--json``."""
        table, first = self.table, self.first_blocker
        used = {
            name for n in [*self.nodes, *self.blockers] for name in n.source.split(", ") if name
        }
        return {
            "file": self.file,
            "target": self.target,
            "table": table.name,
            "tool": f"{table.toolchain}, {table.version}",
            "opset": self.opset,
            "ok": self.ok,
            "counts": self.counts,
            "constants": self.constants,
            "subgraphs": self.subgraphs,
            "unknown": self.unknown,
            "warnings": list(self.warnings),
            "first_blocker": asdict(first) if first else None,
            "blockers": [asdict(node) for node in self.blockers],
            "nodes": [asdict(node) for node in self.nodes],
            "sources": {
                name: {key: text for key, text in asdict(table.sources[name]).items() if text}
                for name in sorted(used)
            },
        }
