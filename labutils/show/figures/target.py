"""Figures of files against tools: verdicts per target, and the operators of two files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UsageError, counted
from ...onnxfile.file import OnnxFile
from ...onnxfile.graph import opset
from ...targets import CheckReport
from ..graphs.picture import BLUE, GREEN, INK, ORANGE, SKY, VERMILION, Picture, blank, styled

if TYPE_CHECKING:
    import onnx

_VERDICTS = {  # word: (colour, hatch)
    "supported": (GREEN, ""),
    "constrained": (ORANGE, ".."),
    "unsupported": (VERMILION, "xxx"),
    "unknown": ("#c9c9c9", "//"),
}
_MOST_OPERATORS = 32
_LEGIBLE = 0.03  # share of the axis that holds a number


@styled
def verdict_bars(reports: CheckReport | Sequence[CheckReport]) -> Picture:
    """Draw how many nodes of a file each target takes, and where its tool stops.

    Parameters
    ----------
    reports
        From `targets.check`: one file against several targets, or several files.

    Raises
    ------
    UsageError
        There is no report.
    """
    reports = [reports] if isinstance(reports, CheckReport) else list(reports)
    if not reports:
        raise UsageError("No report: check a file against one target at least, then draw it.")
    files = list(dict.fromkeys(report.file for report in reports))
    names = [r.target + (f", {r.file}" if len(files) > 1 else "") for r in reports]
    ends = [_end(report) for report in reports]
    listed = "; ".join(f"{name}: {end}" for name, end in zip(names, ends, strict=True))
    picture = blank(
        1.25 + 0.62 * len(reports), f"{' and '.join(files)} by operator tables: {listed}."
    )
    axes = picture.subplots()
    left = np.zeros(len(reports))
    most = max(len(report.nodes) for report in reports)
    for word, (color, hatch) in _VERDICTS.items():
        counts = [report.counts[word] for report in reports]
        axes.barh(range(len(reports)), counts, 0.5, left, color=color, hatch=hatch,
                  edgecolor="white", linewidth=0.8,
                  label=word if any(counts) else "")  # fmt: skip
        for place, (start, count) in enumerate(zip(left, counts, strict=True)):
            if count > _LEGIBLE * most:
                axes.text(start + count / 2, place, f"{count}", ha="center", va="center", size=9,
                          weight="bold", bbox={"facecolor": "white", "edgecolor": "none",
                                               "boxstyle": "round,pad=0.2"})  # fmt: skip
        left += counts
    for place, (end, report) in enumerate(zip(ends, reports, strict=True)):
        small = [f"{n} {w}" for w, n in report.counts.items() if 0 < n <= _LEGIBLE * most]
        end += f"; narrow, at the right: {', '.join(small)}" if small else ""
        axes.annotate(end, (0, place - 0.27), xytext=(4, 0), textcoords="offset points",
                      va="bottom", size=9)  # fmt: skip
    axes.set_yticks(range(len(reports)), [name.replace(", ", "\n") for name in names])
    axes.set(xlim=(0, 1.02 * most), ylim=(len(reports) - 0.6, -0.75), xlabel="nodes")
    axes.set_title(
        f"{files[0] if len(files) == 1 else f'{len(files)} files'} by operator tables\n"
        "(the tools themselves were not run)",
        loc="left",
    )
    picture.legend(loc="outside lower center", ncols=4, frameon=False)
    return picture


def _end(report: CheckReport) -> str:
    """Return in a few words how the tool would end, by its table."""
    first, unknown = report.first_blocker, report.counts["unknown"]
    if report.opset_blocker:
        return f"refuses opset {report.opset}"
    if report.subgraphs is not None:
        on_cpu = sum(node.action == "CPU" for node in report.nodes)
        if not on_cpu:
            return "takes the whole graph"
        parts = counted(report.subgraphs, "accelerator subgraph")
        return f"splits: {parts}, {counted(on_cpu, 'node')} on the CPU"
    if first:
        where = first.module or first.node
        return f"stops at {first.op_type}" + (f" in {where}" if where else "")
    return (
        f"nothing known blocks, {counted(unknown, 'node')} unknown" if unknown else "nothing blocks"
    )


@styled
def operator_counts(
    before: OnnxFile | str | Path | onnx.ModelProto,
    after: OnnxFile | str | Path | onnx.ModelProto,
    titles: Sequence[str] = (),
) -> Picture:
    """Draw how often each operator occurs in two ONNX files, with the differences marked.

    Parameters
    ----------
    before, after
        ONNX files, or models in memory. Constant nodes are data and not counted.
    titles
        A name for either; default is the file's name and its opset.

    Raises
    ------
    UsageError
        Too many operators for a page, or not two titles.
    ModelFileError
        A file is missing or no ONNX model.
    """
    if titles and len(titles) != 2:
        raise UsageError(f"Two files take two titles, not {len(titles)}.")
    (one, first), (two, second) = (_counted(model) for model in (before, after))
    titles = titles or (one, two)
    order = sorted(first | second, key=lambda op: (-max(first[op], second[op]), op))
    if len(order) > _MOST_OPERATORS:
        raise UsageError(
            f"{len(order)} operators do not fit a picture (at most {_MOST_OPERATORS})."
        )
    changed = [op for op in order if first[op] != second[op]]
    listed = ", ".join(f"{op} {first[op]} → {second[op]}" for op in changed)
    picture = blank(
        1.2 + 0.36 * len(order),
        f"{titles[0]} has {first.total()} nodes, {titles[1]} has {second.total()}; "
        + (f"different: {listed}." if changed else "every operator occurs equally often."),
    )
    axes = picture.subplots()
    places = np.arange(len(order))
    for counts, shift, color, hatch, title in (
        (first, -0.19, BLUE, "", titles[0]), (second, 0.19, SKY, "///", titles[1]),
    ):  # fmt: skip
        widths = [counts[op] for op in order]
        axes.barh(places + shift, widths, 0.36, color=color, hatch=hatch, edgecolor="white",
                  label=title)  # fmt: skip
        for place, width in zip(places + shift, widths, strict=True):
            axes.annotate(f"{width}", (width, place), xytext=(3, 0), textcoords="offset points",
                          va="center", size=9)  # fmt: skip
    axes.set_yticks(places, [f"≠ {op}" if op in changed else op for op in order])
    for tick, op in zip(axes.get_yticklabels(), order, strict=True):
        tick.set(weight="bold" if op in changed else "normal", color=INK)
    axes.set(ylim=(len(order) - 0.4, -0.6), xlabel="nodes (≠ marks operators whose numbers differ)")
    axes.margins(x=0.06)
    picture.legend(loc="outside lower center", ncols=2, frameon=False)
    return picture


def _counted(model: OnnxFile | str | Path | onnx.ModelProto) -> tuple[str, Counter[str]]:
    if isinstance(model, OnnxFile | str | Path):
        file = OnnxFile.of(model)
        proto, name = file.proto, file.name
    else:
        proto, name = model, "model in memory"
    counts = Counter(
        f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for node in proto.graph.node
        if node.op_type != "Constant"
    )
    return f"{name}, opset {opset(proto)}", counts
