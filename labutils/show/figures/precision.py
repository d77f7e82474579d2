"""Figures of precision: what each layer costs, and the front of mixed recipes."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.transforms import blended_transform_factory

from ...compare.sensitivity import SensitivityReport
from ...errors import UsageError
from ...onnxfile.graph import module_of_name
from ...quantize.mixed import MixedReport, Point
from ..graphs.picture import BLUE, GREY, INK, VERMILION, Picture, blank, percent, styled
from .comparison import numbered, stage_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 92  # of the words below the bars: they begin at the edge of the picture


@styled
def layer_costs(report: SensitivityReport, worst: int = 5) -> Picture:
    """Draw every layer's share of the noise, and what sparing it would win, first to last.

    Parameters
    ----------
    report
        From `compare.sensitivity`.
    worst
        How many to number and name, with the first reason.
    """
    named = report.costliest(worst)
    if not named:
        raise UsageError("The report holds no layer that ran: there is nothing to draw.")
    first = named[0]
    listed = []
    for i, row in enumerate(named, 1):
        why = (row.why or ("its bits",))[0]
        text = f"{i}  {100 * row.share:4.1f} %  {row.label}: {why}"
        listed += textwrap.wrap(text, _COLUMNS, subsequent_indent=" " * 11)
    picture = blank(
        4.6 + 0.19 * len(listed),
        f"Noise at the logits of {len(report.rows)} layers quantized alone ({report.candidate} on "
        f"{report.runtime}, {report.n} images): {first.label} makes {percent(first.share)} of it; "
        f"the whole network keeps {report.whole_db:.1f} dB.",
    )
    heights = (1, 0.8, 0.075 * len(listed) + 0.05)
    above, middle, below = picture.subplots(3, 1, height_ratios=heights)
    places = np.arange(len(report.rows))
    shares = [100 * row.share for row in report.rows]
    marked = {row.name for row in named}
    colors = [VERMILION if row.name in marked else BLUE for row in report.rows]
    above.bar(places, shares, color=colors, width=0.9)
    order = [report.rows.index(row) for row in named]
    numbered(above, order, shares, 1.08 * max(shares))
    above.set(ylabel="alone: share of\nthe noise, %", ylim=(0, 1.25 * max(shares)))
    gains = [row.gain_db for row in report.rows]
    middle.bar(places, gains, color=colors, width=0.9)
    middle.axhline(0, color=GREY, linewidth=0.8)
    middle.set(ylabel="spared:\ngain, dB")
    for axes in (above, middle):
        axes.grid(True, axis="y")
        axes.set_xlim(-1, len(places))
        axes.set_xticks([])
    stage_ticks(middle, [row.module or module_of_name(row.tensor) for row in report.rows])
    below.set_axis_off()
    words = below.text(
        0.01, 1, "\n".join(listed), va="top", family="DejaVu Sans Mono", size=9,
        transform=blended_transform_factory(picture.transFigure, below.transAxes),
    )  # fmt: skip
    words.set_in_layout(False)  # it is as wide as the picture; the bars keep their width
    return picture


@styled
def front(report: MixedReport, picked: int | None = None) -> Picture:
    """Draw what 16-bit activations buy: logit SQNR against the share of MACs that have them.

    Parameters
    ----------
    report
        From `quantize.mixed.search`.
    picked
        Index of a point to mark, besides the one that the budget chose.
    """
    point = report.point
    reached = reached_db(point)
    picture = blank(
        3.6,
        f"Front of mixed recipes for {report.source}: from {report.front[0].predicted_db:.1f} dB "
        f"with 8 bits everywhere to {report.front[-1].predicted_db:.1f} dB with 16; the chosen "
        f"point has {len(point.wide)} wide nodes, {percent(point.mac_share)} of the MACs and "
        f"{reached:.1f} dB.",
    )
    axes = picture.subplots()
    shares = [100 * p.mac_share for p in report.front]
    axes.step(
        shares, [p.predicted_db for p in report.front], where="post", color=BLUE,
        marker="o", markersize=4, label="predicted from single noises",
    )  # fmt: skip
    measured = [p for p in report.front if p.measured]
    axes.scatter(
        [100 * p.mac_share for p in measured], [p.measured.sqnr_db for p in measured if p.measured],
        marker="s", s=44, facecolor="none", edgecolor=VERMILION, linewidth=1.6, zorder=3,
        label=f"measured, and same top-1 as float, {report.n} calibration images",
    )  # fmt: skip
    for p in _spread(measured, [report.front[report.chosen if picked is None else picked], point]):
        if p.measured and p.measured.agreement:
            _label(axes, f"{100 * p.measured.agreement.value:.1f} %", p, 9, size=8.5)
    if picked != report.chosen:
        _label(axes, "chosen", point, 21, color=GREY)
    if report.budget.mac_share is not None:
        axes.axvline(100 * report.budget.mac_share, color=GREY, linestyle="--", linewidth=1)
    if picked is not None:
        _mark(axes, report, picked)
        picture.alt += f" Marked: point {picked}, {reached_db(report.front[picked]):.1f} dB."
    axes.set(xlabel="MACs with 16-bit activations, %", ylabel="logit SQNR, dB")
    axes.grid(True)
    axes.legend(loc="lower right", facecolor="white", edgecolor="none", framealpha=0.85)
    return picture


def reached_db(point: Point) -> float:
    """Return a point's logit SQNR: measured where it was, else predicted."""
    return point.measured.sqnr_db if point.measured else point.predicted_db


def _spread(measured: list[Point], first: list[Point]) -> list[Point]:
    """Return those that can be labelled without one label over another; `first` come first."""
    kept: list[Point] = []
    for point in [p for p in first if p.measured] + measured:
        if all(abs(point.mac_share - other.mac_share) > 0.08 for other in kept):
            kept.append(point)
    return kept


def _mark(axes: Axes, report: MixedReport, picked: int) -> None:
    """Ring a point, with lines to both axes; nothing else moves for it."""
    point = report.front[picked]
    x, y = 100 * point.mac_share, reached_db(point)
    axes.axvline(x, color=INK, linestyle=":", linewidth=1, zorder=1)
    axes.axhline(y, color=INK, linestyle=":", linewidth=1, zorder=1)
    axes.scatter([x], [y], s=150, facecolor="none", edgecolor=INK, linewidth=2.2, zorder=4)
    words = f"point {picked}" + ", chosen" * (picked == report.chosen)
    _label(axes, words, point, 23, weight="bold")


def _label(axes: Axes, words: str, point: Point, rise: int, **looks: Any) -> None:
    """Write `rise` points above a point, where a front leaves room; the axes do not move."""
    share = point.mac_share
    side, shift = ("left", -10) if share < 0.1 else ("right", 10) if share > 0.9 else ("center", 0)
    low, high = axes.get_ylim()
    near = reached_db(point) > high - 0.15 * (high - low)  # no room above: below, then
    label = axes.annotate(
        words, (100 * share, reached_db(point)), xytext=(shift, -rise - 9 if near else rise),
        textcoords="offset points", ha=side, zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}, **looks,
    )  # fmt: skip
    label.set_in_layout(False)
