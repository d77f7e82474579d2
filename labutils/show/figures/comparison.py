"""Figures of comparisons: noise per tensor, the fidelity ladder, accuracy against size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ...compare import Ladder, Layer, LayerReport, Rung
from ...errors import UsageError
from ...images.data import ImageSet
from ...metrics import Proportion
from ...onnxfile.graph import module_of_name
from ...tabular import clipped, shortened
from ..graphs.picture import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    INK,
    MARKERS,
    VERMILION,
    WIDTH,
    Picture,
    blank,
    decibels,
    percent,
    styled,
)

_ACROSS, _MOST_ANSWERED = 4, 12
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
    numbered(axes, [report.rows.index(row) for row in named], heights, low - 4)
    stage_ticks(axes, [row.module or module_of_name(row.tensor) for row in report.rows])
    axes.set(ylabel="SQNR, dB (higher is better)", ylim=(low - 4.5, high + 2))
    axes.grid(True, axis="y")
    axes.legend(ncols=4, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0.2)
    below.set_axis_off()
    listed = [
        f"{i}  {decibels(row.sqnr_db):>9}  {row.op:<12} {shortened(row.module or row.tensor, 46)}"
        for i, row in enumerate(named, 1)
    ]
    below.text(0, 1, "\n".join(listed), va="top", family="DejaVu Sans Mono", size=9)
    return picture


def _kind(row: Layer) -> str:
    return next((kind for kind, (ops, *_) in _KINDS.items() if row.op in ops), "other")


def numbered(axes: Axes, places: list[int], heights: Sequence[float], base: float) -> None:
    """Write 1, 2, ... at height `base` for the points at `places`, side by side where close."""
    apart = len(heights) / 40
    order = sorted(places)
    forth, back = list(map(float, order)), list(map(float, order))
    for i in range(1, len(order)):
        forth[i] = max(order[i], forth[i - 1] + apart)
        back[-1 - i] = min(order[-1 - i], back[-i] - apart)
    # the mean of both ways keeps the distance, and stays near the points
    for place, left, right in zip(order, back, forth, strict=True):
        axes.annotate(
            str(places.index(place) + 1), (place, heights[place]),
            xytext=((left + right) / 2, base), ha="center",
            va="bottom", weight="bold", arrowprops={"arrowstyle": "-", "color": GREY},
        )  # fmt: skip


def _rims(axes: Axes, report: LayerReport, low: float, high: float) -> None:
    for rim, words, sign in ((high, "equal, no noise", 1), (low, "not finite", -1)):
        if any(not math.isfinite(r.sqnr_db) and (r.sqnr_db > 0) == (sign > 0) for r in report.rows):
            axes.axhline(rim, color=GREY, linestyle=":", linewidth=1)
            axes.annotate(words, (1, rim), xycoords=("axes fraction", "data"), ha="right",
                          xytext=(0, 3), textcoords="offset points", size=9)  # fmt: skip


def stage_ticks(axes: Axes, modules: list[str]) -> None:
    """Label the x axis of tensors with the stages that they begin."""
    starts: dict[str, int] = {}
    for place, module in enumerate(modules):
        stage = shortened(".".join(module.split(".")[:2]), 24)
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
    """Draw top-1 per stage, its difference from the first stage, and the SQNR of the logits.

    Shares and differences have 95 % intervals. Where no image's class is known there is no top-1:
    then how often each stage agrees with the first is drawn instead. Where top-1 is the same at
    every stage the difference would say nothing, and is left out. Colour and marker of a stage are
    those of `accuracy_by_size`.
    """
    rows, judged = ladder.rows, _judged(ladder.rows)
    apart = judged and len({_share(row, judged).value for row in rows}) > 1
    picture = blank(1.7 + 0.36 * len(rows), _ladder_described(rows, judged))
    panels = picture.subplots(1, 3 if apart else 2, sharey=True)
    for place, (row, (color, marker)) in enumerate(zip(rows, _looks(rows).values(), strict=True)):
        style: dict[str, Any] = {"color": color, "fmt": marker, "capsize": 4, "markersize": 6}
        share = _share(row, judged)
        _interval(panels[0], 100 * share.value, [100 * v for v in share.interval], place, style)
        if place and apart and row.difference:
            _interval(panels[1], row.difference.value, row.difference.interval, place, style)
        if place:
            _loudness(panels[-1], row.parity.sqnr_db, place, color, marker)
    panels[0].set_yticks(range(len(rows)), [f"{row.name}, n={row.n:,}" for row in rows])
    panels[0].set(xlabel=f"{_share_word(rows, judged)}, %", ylim=(len(rows) - 0.5, -0.5))
    panels[-1].set(
        xlabel=f"SQNR against {clipped(rows[0].name, 14)}, dB", xlim=(0, 1.3 * _top_db(rows))
    )
    if apart:
        panels[1].set(xlabel=f"minus {clipped(rows[0].name, 14)}, points")
        panels[1].axvline(0, color=INK, linewidth=1)
    for panel in panels:
        panel.grid(True, axis="x")
        panel.tick_params(left=panel is panels[0])
    marks: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        marks.setdefault(row.runtime, []).append(_looks(rows)[row.name])
    _legend(picture, marks)
    return picture


def _looks(rows: Sequence[Rung]) -> dict[str, tuple[str, str]]:
    """Return stage -> colour and marker: the colour says what runs it, the marker which it is."""
    runtimes = list(dict.fromkeys(row.runtime for row in rows))
    return {
        row.name: (
            COLORS[runtimes.index(row.runtime) % len(COLORS)],
            MARKERS[place % len(MARKERS)],
        )
        for place, row in enumerate(rows)
    }


def _top_db(rows: Sequence[Rung]) -> float:
    finite = [row.parity.sqnr_db for row in rows if math.isfinite(row.parity.sqnr_db)]
    return max([20.0, *finite])


def _loudness(axes: Axes, sqnr_db: float, place: int, color: str, marker: str) -> None:
    """Draw one SQNR with its number; equal logits have none."""
    if not math.isfinite(sqnr_db):
        words = "equal" if sqnr_db > 0 else "not finite"
        axes.annotate(words, (0, place), xytext=(4, 0), textcoords="offset points", va="center")
        return
    axes.hlines(place, 0, sqnr_db, color=color, linewidth=1.2)
    axes.plot(sqnr_db, place, marker, color=color, markersize=6)
    axes.annotate(f"{sqnr_db:.0f}", (sqnr_db, place), xytext=(7, 0), textcoords="offset points",
                  va="center")  # fmt: skip


def _judged(rows: Sequence[Rung]) -> bool:
    return all(row.top1 and row.difference for row in rows)


def _share(row: Rung, judged: bool) -> Proportion:
    """Return top-1 where it is known for all, else the agreement with the first stage."""
    share = row.top1 if judged and row.top1 else row.parity.agreement
    if share is None:
        raise UsageError(
            f"{row.name} is not a classifier: there is no top-1 to draw. Show the ladder."
        )
    return share


def _share_word(rows: Sequence[Rung], judged: bool) -> str:
    return "top-1" if judged else f"agreement with {rows[0].name}"


def _ladder_described(rows: Sequence[Rung], judged: bool) -> str:
    first, last = rows[0], rows[-1]
    noise = ""
    if len(rows) > 1:
        loudest = min(rows[1:], key=lambda row: row.parity.sqnr_db)
        noise = f" The lowest SQNR is {decibels(loudest.parity.sqnr_db)}, of {loudest.name}."
    if not judged:
        lowest = min(rows, key=lambda row: _share(row, judged).value)
        share = percent(_share(lowest, judged).value)
        return (
            f"Top-1 of {len(rows)} stages is unknown, because no label counts for this model; "
            f"{lowest.name} agrees least with {first.name}: on {share} of the images.{noise}"
        )
    lows = [row.name for row in rows[1:] if row.difference and row.difference.interval[1] < 0]
    start, end = (percent(_share(row, judged).value) for row in (first, last))
    listed = f"clearly below the first stage: {', '.join(lows)}"
    return (
        f"Top-1 of {len(rows)} stages, from {first.name} ({start}) to "
        f"{last.name} ({end}); "
        f"{listed if lows else 'no stage is clearly below the first'}, by 95 % intervals.{noise}"
    )


@styled
def answers_apart(imageset: ImageSet, answers: dict[str, ArrayLike]) -> Picture:
    """Draw images with what several stages answer above each, right or wrong, and the truth.

    Parameters
    ----------
    imageset
        Pixels, labels and class names; at most twelve images.
    answers
        Stage -> class numbers, integers of shape (n,).

    Raises
    ------
    UsageError
        No images or more than twelve, or another number of answers than of images.
    """
    n = len(imageset)
    if not 1 <= n <= _MOST_ANSWERED or any(len(np.asarray(a)) != n for a in answers.values()):
        raise UsageError(f"1 to {_MOST_ANSWERED} images are drawn, with one answer each.")
    down = -(-n // _ACROSS)
    picture = blank((WIDTH / _ACROSS + 0.2 + 0.17 * len(answers)) * down)
    said = []
    for i, axes in enumerate(np.ravel(picture.subplots(down, _ACROSS, squeeze=False))):
        axes.set(xticks=[], yticks=[])
        if i >= n:
            axes.set_axis_off()
            continue
        truth = int(imageset.labels[i])
        named = {stage: int(np.asarray(a)[i]) for stage, a in answers.items()}
        lines = [
            f"{'✓' if k == truth else '✗'} {clipped(f'{stage}: {imageset.classes[k]}', 22)}"
            for stage, k in named.items()
        ]
        axes.imshow(imageset.images[i], interpolation="nearest")
        axes.set_title("\n".join(lines), size=9, pad=3, loc="left")
        axes.set_xlabel(clipped(f"is: {imageset.classes[truth]}", 25), size=9, labelpad=2)
        listed = ", ".join(f"{stage} says {imageset.classes[k]}" for stage, k in named.items())
        said.append(f"{imageset.classes[truth]}: {listed}")
    more = f"; and {n - 3} more" if n > 3 else ""
    picture.alt = f"{n} images with the answers above each. {'; '.join(said[:3])}{more}."
    return picture


@styled
def accuracy_by_size(ladder: Ladder) -> Picture:
    """Draw top-1 against the size of each stage's file, with 95 % intervals.

    Colour and marker of a stage are those of `ladder_chart`. Files of (nearly) one size stand side
    by side.

    Where no image's class is known, how often each stage agrees with the ladder's first one. Where
    that share is the same for every file, a second panel draws the SQNR of the logits.

    Raises
    ------
    UsageError
        No stage of the ladder has a file.
    """
    sizes = {row.name: row.bytes / 1e6 for row in ladder.rows if row.bytes}  # MB
    rows = [row for row in ladder.rows if row.bytes]
    if not rows:
        raise UsageError("No stage of this ladder has a file: there is no size to draw.")
    small, large = (f(rows, key=lambda row: sizes[row.name]) for f in (min, max))
    left_out, judged = len(ladder.rows) - len(rows), _judged(ladder.rows)
    word = _share_word(ladder.rows, judged)
    shares = {row.name: _share(row, judged) for row in rows}
    equal = len({share.value for share in shares.values()}) == 1
    stages = f"{left_out} stage{'s' * (left_out > 1)} without a file"
    picture = blank(
        3.4 + 0.1 * len(rows),
        f"The smallest file is {_sized(small, judged, word)}, "
        f"the largest {_sized(large, judged, word)}"
        + (f"; {stages} {'are' if left_out > 1 else 'is'} not shown." if left_out else "."),
    )
    axes, *loudness = picture.subplots(1, 2 if equal else 1, squeeze=False).flat
    places = _side_by_side(list(sizes.values()), 0.03 * sizes[large.name])
    handles, looks = {}, _looks(ladder.rows)
    for row, place in zip(rows, places, strict=True):
        share, (color, marker) = shares[row.name], looks[row.name]
        low, high = share.interval
        axes.errorbar(
            place, 100 * share.value, [[100 * (share.value - low)], [100 * (high - share.value)]],
            fmt=marker, color=color, mfc="none", mew=1.8, markersize=9, capsize=4,
        )  # fmt: skip
        handles[f"{row.name} ({row.runtime}, n={row.n:,})"] = [(color, marker)]
    for panel in (axes, *loudness):
        panel.set(xlabel="file, MB (10⁶ bytes)", xlim=(0, 1.08 * sizes[large.name]))
        panel.margins(y=0.08)
        panel.grid(True)
    axes.set_ylabel(f"{word}, %")
    for panel in loudness:
        _loudness_by_size(panel, rows, places, looks, ladder.rows)
    _legend(picture, handles)
    return picture


def _side_by_side(sizes: Sequence[float], apart: float) -> list[float]:
    """Return places on the axis: sizes closer than `apart` stand around their mean, in order."""
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    groups: list[list[int]] = []
    for i in order:
        if groups and sizes[i] - sizes[groups[-1][-1]] < apart:
            groups[-1].append(i)
        else:
            groups.append([i])
    places = list(sizes)
    for group in groups:
        middle = sum(sizes[i] for i in group) / len(group)
        for number, i in enumerate(group):
            places[i] = middle + apart * (number - (len(group) - 1) / 2)
    return places


def _loudness_by_size(
    axes: Axes,
    rows: Sequence[Rung],
    places: Sequence[float],
    looks: dict[str, tuple[str, str]],
    ladder: Sequence[Rung],
) -> None:
    """Draw the SQNR of the logits; a stage that is equal to the first stands on the upper rim."""
    top = 1.15 * _top_db(ladder)
    for row, place in zip(rows, places, strict=True):
        color, marker = looks[row.name]
        noise = row.parity.sqnr_db
        height = float(np.clip(np.nan_to_num(noise, nan=0), 0, top))
        axes.plot(place, height, marker, color=color, mfc="none", mew=1.8, markersize=9)
        axes.annotate(
            decibels(noise), (place, height), xytext=(0, 8), textcoords="offset points",
            ha="center", size=9,
        )  # fmt: skip
    axes.set(ylabel=f"SQNR against {clipped(ladder[0].name, 14)}, dB", ylim=(0, 1.12 * top))


def _sized(row: Rung, judged: bool, word: str) -> str:
    share, size = _share(row, judged), (row.bytes or 0) / 1e6
    return f"{row.name} with {size:.2f} MB and {word} {percent(share.value)}"


def _interval(
    axes: Axes, value: float, interval: Sequence[float], place: int, style: dict[str, Any]
) -> None:
    low, high = interval
    axes.errorbar(value, place, xerr=[[value - low], [high - value]], **style)


def _legend(picture: Picture, marks: dict[str, list[tuple[str, str]]]) -> None:
    """Tell what looks how: a text may have several colours and markers."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D

    handles = [
        tuple(Line2D([], [], color=color, marker=marker, linestyle="") for color, marker in looks)
        for looks in marks.values()
    ]
    columns = 1 if any(len(name) > 42 for name in marks) else 2
    together: dict[Any, Any] = {tuple: HandlerTuple(ndivide=None)}
    pairs: Any = handles  # several marks in one entry, which matplotlib's types do not know
    picture.legend(
        pairs, list(marks), loc="outside lower center", ncols=columns, frameon=False,
        handler_map=together,
    )  # fmt: skip
