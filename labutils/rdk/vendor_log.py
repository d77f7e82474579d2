"""What D-Robotics' tools print while they build: the table of nodes, and the compiler's estimate.

The shapes are those of makertbin's logs in rdk_model_zoo (YOLO on RDK X5, hb_mapper 1.23 to 1.24),
and of one run of dg-nn-toolkit 1.0.0 and dgdk 1.0.0 by us, 2026-11-28.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_CELL = rf"-?(?:{_NUMBER}|nan|inf)|--"
_ESTIMATE = re.compile(
    rf"FPS\s*=\s*({_NUMBER}),\s*latency\s*=\s*({_NUMBER})\s*us(?:,\s*DDR\s*=\s*(\d+)\s*bytes)?",
    re.I,
)
_ROW = re.compile(
    r"(?P<node>\S+)\s+(?P<on>BPU|CPU)\s+(?P<subgraph>id\(\d+\)|--)\s+(?P<type>\S+)"
    rf"(?:\s+(?P<cosine>{_CELL}))?(?:\s+(?P<threshold>{_CELL}))?\s+(?P<bits>\S+)\s*$"
)
_LOGGED = re.compile(r"\d{4}-\d\d-\d\d[ T]|\[?\w{3} \w{3} +\d|.*\b(?:DEBUG|INFO|WARNING|ERROR)\b")


@dataclass(frozen=True)
class Estimate:
    """What the vendor's compiler estimates; nobody measured it on a board.

    Attributes
    ----------
    latency_ms, frames_per_second
        Of one frame, one core.
    ddr_bytes
        Traffic to memory of one frame; None where it is not said.
    """

    latency_ms: float
    frames_per_second: float
    ddr_bytes: int | None = None

    def __str__(self) -> str:
        ddr = f", {self.ddr_bytes:,} bytes of DDR traffic" if self.ddr_bytes is not None else ""
        return (
            f"the vendor's estimate, not measured on a board: {self.latency_ms:.3f} ms, "
            f"{self.frames_per_second:.1f} frames/s{ddr}"
        )


@dataclass(frozen=True)
class NodeLine:
    """A node as the vendor's table has it, or as ours emulates it.

    Attributes
    ----------
    node, on, subgraph, kind
        Its name, ``BPU`` or ``CPU``, ``id(0)`` or ``--``, and the operator that it became.
    cosine, threshold
        Similarity of its output to the float model's, and the value that its codes reach; None
        where they are not said, or not finite.
    bits
        ``int8``, ``int16``, ``float``, or ``int8/int8`` of input and output.
    """

    node: str
    on: str
    subgraph: str
    kind: str
    cosine: float | None
    threshold: float | None
    bits: str


def estimate(log: str) -> Estimate | None:
    """Return the last estimate in a log, None where there is none."""
    said = _ESTIMATE.findall(log)
    if not said:
        return None
    rate, microseconds, ddr = said[-1]
    return Estimate(float(microseconds) / 1000, float(rate), int(ddr) if ddr else None)


def nodes(log: str) -> tuple[NodeLine, ...]:
    """Return the rows of the last table of nodes in a log.

    A table ends with an empty line, or another line of the log; names that the tool shortened stay
    so.
    """
    tables: list[list[NodeLine]] = []
    open_ = False
    for line in log.splitlines():
        text = line.strip()
        if _is_head(text):
            tables.append([])
            open_ = True
        elif open_ and (row := _ROW.search(text)):
            tables[-1].append(_line(row))
        elif open_ and tables[-1] and (not text or _LOGGED.match(text)):
            open_ = False
    return tuple(tables[-1]) if tables else ()


def _is_head(text: str) -> bool:
    words = text.split()
    return "ON" in words and "Subgraph" in words and "Type" in words


def _line(row: re.Match[str]) -> NodeLine:
    cells = (row["cosine"], row["threshold"])
    found = [float("nan") if cell in (None, "--") else float(cell) for cell in cells]
    cosine, threshold = (value if math.isfinite(value) else None for value in found)
    return NodeLine(
        row["node"], row["on"], row["subgraph"], row["type"], cosine, threshold, row["bits"]
    )


def table(lines: tuple[NodeLine, ...], pairs: bool = False) -> list[str]:
    """Return nodes as the vendor's tools print them, without a frame of asterisks or date.

    Parameters
    ----------
    lines
        The nodes.
    pairs
        As ``hb_mapper checker`` has it: without cosine and threshold.
    """
    head = ["Node", "ON", "Subgraph", "Type"]
    head += [] if pairs else ["Cosine Similarity", "Threshold"]
    head.append("In/Out DataType" if pairs else "DataType")
    rows = []
    for line in lines:
        row = [line.node, line.on, line.subgraph, line.kind]
        if not pairs:
            row += [
                "--" if line.cosine is None else f"{line.cosine:.6f}",
                "--" if line.threshold is None else f"{line.threshold:.6g}",
            ]
        rows.append([*row, line.bits])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    text = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in [head, *rows]
    ]
    return [text[0].rstrip(), "-" * len(text[0]), *(row.rstrip() for row in text[1:])]
