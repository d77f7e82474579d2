"""Figures of comparisons: noise per tensor, the fidelity ladder, accuracy against size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ..compare import Ladder, Layer, LayerReport, Rung
from ..errors import UsageError
from ..graph import module_of_name
from .picture import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    INK,
    MARKERS,
    VERMILION,
    Picture,
    blank,
    decibels,
    percent,
    styled,
)

_KINDS = {  # name: (operators, colour, marker)
    "convolution, matrix product": (("Conv", "ConvTranspose", "Gemm", "MatMul"), BLUE, "o"),
    "activation": (
        ("HardSwish", "HardSigmoid", "Relu", "Clip", "Sigmoid", "PRelu", "Gelu", "Softmax"),
        VERMILION,
        "^",
    ),
    "addition, multiplication": (("Add", "Mul", "Div", "Sub"), GREEN, "s"),
    "other": ((), GREY, "D"),
}


@styled
def layer_sqnr(report: LayerReport, worst: int = 5) -> Picture:
    """Draw the signal to noise ratio of every tensor, first to last, with the worst ones named.

    Parameters
    ----------
    report
        From `compare.per_layer`. Tensors that are equal stand on the upper rim, tensors with
        values that are not finite on the lower.
    worst
        How many to number and name.
    """
    if not report.rows:
        raise UsageError("The report compares no tensors: there is nothing to draw.")
    named = report.worst(worst)
    lowest = named[0] if named else report.worst(1)[0]
    picture = blank(
        3.9 + 0.17 * len(named),
        f"SQNR of {len(report.rows)} tensors from input to output ({report.candidate} on "
        f"{report.runtime}, {report.n} images): the lowest is {decibels(lowest.sqnr_db)} in "
        f"{lowest.module or lowest.tensor} ({lowest.op}).",
    )
    axes, below = picture.subplots(2, 1, height_ratios=(1, 0.06 * len(named) + 0.01))
    finite = [row.sqnr_db for row in report.rows if math.isfinite(row.sqnr_db)] or [0.0]
    low, high = min(finite) - 4, max(finite) + 4
    heights = [float(np.clip(np.nan_to_num(r.sqnr_db, nan=low), low, high)) for r in report.rows]
    axes.plot(heights, color="#c9c9c9", linewidth=0.8, zorder=1)
    for kind, (_, color, marker) in _KINDS.items():
        places = [i for i, row in enumerate(report.rows) if _kind(row) == kind]
        if places:
            values = [heights[i] for i in places]
            axes.scatter(places, values, s=20, color=color, marker=marker, label=kind, zorder=2)
    _rims(axes, report, low, high)
    _numbers(axes, [report.rows.index(row) for row in named], heights, low)
    _stage_ticks(axes, [row.module or module_of_name(row.tensor) for row in report.rows])
    axes.set(ylabel="SQNR, dB (higher is better)", ylim=(low - 4.5, high + 2))
    axes.grid(True, axis="y")
    axes.legend(ncols=4, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0.2)
    below.set_axis_off()
    listed = [
        f"{i}  {decibels(row.sqnr_db):>9}  {row.op:<12} {row.module or row.tensor}"
        for i, row in enumerate(named, 1)
    ]
    below.text(0, 1, "\n".join(listed), va="top", family="DejaVu Sans Mono", size=9)
    return picture


def _kind(row: Layer) -> str:
    return next((kind for kind, (ops, *_) in _KINDS.items() if row.op in ops), "other")


def _numbers(axes: Axes, places: list[int], heights: list[float], low: float) -> None:
    """Write 1, 2, ... below the points at `places`, side by side where these stand close."""
    apart, right = len(heights) / 40, -math.inf
    for number, place in sorted(enumerate(places, 1), key=lambda pair: pair[1]):
        right = max(place - apart * (len(places) - 1) / 2, right + apart)
        axes.annotate(
            str(number), (place, heights[place]), xytext=(right, low - 4), ha="center",
            va="bottom", weight="bold", arrowprops={"arrowstyle": "-", "color": GREY},
        )  # fmt: skip


def _rims(axes: Axes, report: LayerReport, low: float, high: float) -> None:
    for rim, words, sign in ((high, "equal, no noise", 1), (low, "not finite", -1)):
        if any(not math.isfinite(r.sqnr_db) and (r.sqnr_db > 0) == (sign > 0) for r in report.rows):
            axes.axhline(rim, color=GREY, linestyle=":", linewidth=1)
            axes.annotate(words, (1, rim), xycoords=("axes fraction", "data"), ha="right",
                          xytext=(0, 3), textcoords="offset points", size=9)  # fmt: skip


def _stage_ticks(axes: Axes, modules: list[str]) -> None:
    starts: dict[str, int] = {}
    for place, module in enumerate(modules):
        stage = ".".join(module.split(".")[:2])
        if stage:
            starts.setdefault(stage, place)
    apart, last = max(1.0, len(modules) / 36), -math.inf  # room for a line of 9 points
    places = []
    for place in starts.values():
        if place - last >= apart:
            places.append(place)
            last = place
    names = {place: stage for stage, place in starts.items()}
    axes.set_xticks(places, [names[place] for place in places], rotation=90)
    axes.set_xlim(-1, len(modules))


@styled
def ladder_chart(ladder: Ladder) -> Picture:
    """Draw top-1 per stage and its difference from the first stage, with 95 % intervals."""
    rows = ladder.rows
    lows = [row for row in rows[1:] if row.difference.interval[1] < 0]
    told = "clearly below the first stage: " + ", ".join(row.name for row in lows)
    picture = blank(
        1.7 + 0.36 * len(rows),
        f"Top-1 of {len(rows)} stages, from {rows[0].name} ({percent(rows[0].top1.value)}) to "
        f"{rows[-1].name} ({percent(rows[-1].top1.value)}); "
        + (told if lows else "no stage is clearly below the first")
        + ", by 95 % intervals.",
    )
    left, right = picture.subplots(1, 2, sharey=True)
    runtimes = list(dict.fromkeys(row.runtime for row in rows))
    for place, row in enumerate(rows):
        kind = runtimes.index(row.runtime) % len(COLORS)
        style = {"color": COLORS[kind], "fmt": MARKERS[kind], "capsize": 4, "markersize": 6}
        _interval(left, 100 * row.top1.value, [100 * v for v in row.top1.interval], place, style)
        if place:
            _interval(right, row.difference.value, row.difference.interval, place, style)
    left.set_yticks(range(len(rows)), [f"{row.name}, n={row.n:,}" for row in rows])
    left.set(xlabel="top-1, %", ylim=(len(rows) - 0.5, -0.5))
    right.set(xlabel=f"top-1 minus {rows[0].name}, points")
    right.axvline(0, color=INK, linewidth=1)
    right.tick_params(left=False)
    for axes in (left, right):
        axes.grid(True, axis="x")
    _legend(picture, {name: (COLORS[i % 8], MARKERS[i % 8]) for i, name in enumerate(runtimes)})
    return picture


@styled
def accuracy_by_size(ladder: Ladder) -> Picture:
    """Draw top-1 against the size of each stage's file, with 95 % intervals.

    Raises
    ------
    UsageError
        No stage of the ladder has a file.
    """
    rows = [row for row in ladder.rows if row.bytes]
    if not rows:
        raise UsageError("No stage of this ladder has a file: there is no size to draw.")
    small, large = (f(rows, key=lambda row: row.bytes) for f in (min, max))
    left_out = len(ladder.rows) - len(rows)
    picture = blank(
        3.4 + 0.1 * len(rows),
        f"The smallest file is {_sized(small)}, the largest {_sized(large)}"
        + (f"; {left_out} stage(s) without a file are not shown." if left_out else "."),
    )
    axes = picture.subplots()
    handles = {}
    for i, row in enumerate(rows):
        low, high = row.top1.interval
        value, color, marker = row.top1.value, COLORS[i % 8], MARKERS[i % 8]
        axes.errorbar(
            row.bytes / 1e6, 100 * value, [[100 * (value - low)], [100 * (high - value)]],
            fmt=marker, color=color, mfc="none", mew=1.8, markersize=9, capsize=4,
        )  # fmt: skip
        handles[f"{row.name} ({row.runtime}, n={row.n:,})"] = color, marker
    axes.set(xlabel="file, MB (10⁶ bytes)", ylabel="top-1, %", xlim=(0, 1.08 * large.bytes / 1e6))
    axes.margins(y=0.08)
    axes.grid(True)
    _legend(picture, handles)
    return picture


def _sized(row: Rung) -> str:
    return f"{row.name} with {row.bytes / 1e6:.2f} MB and top-1 {percent(row.top1.value)}"


def _interval(
    axes: Axes, value: float, interval: Sequence[float], place: int, style: dict[str, object]
) -> None:
    low, high = interval
    axes.errorbar(value, place, xerr=[[value - low], [high - value]], **style)


def _legend(picture: Picture, marks: dict[str, tuple[str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=name)
        for name, (color, marker) in marks.items()
    ]
    columns = 1 if any(len(name) > 42 for name in marks) else 2
    picture.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
