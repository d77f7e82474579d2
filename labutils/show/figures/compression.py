"""The stages of a compression: points against MACs and against megabytes, with the budget."""

from __future__ import annotations

from matplotlib.axes import Axes

from ...pipeline.compression import CompressionLadder, CompressionRung
from ..graphs.picture import COLORS, GREY, MARKERS, Picture, blank, styled

_UNTRAINED = ("pruned", "surgery")
_PANELS = (("macs", "MACs, % of the original's", 100.0), ("megabytes", "file, MB", 1.0))


@styled
def compression_front(ladder: CompressionLadder) -> Picture:
    """Draw what each stage loses in points against what it costs, and the Pareto front.

    A stage on the front (filled) is one that no other beats in both. Dashed lines are the budget.
    A stage far below the others, as a network is that was pruned and not yet trained, has an arrow
    with its points at the lower edge.

    Parameters
    ----------
    ladder
        From `compression.compress`.
    """
    rows = ladder.rows
    picture = blank(4.3, _described(ladder))
    for axes, (cost, label, factor) in zip(picture.subplots(1, 2), _PANELS, strict=True):
        _draw_panel(axes, rows, cost, factor)
        for row in (row for row in rows if row.points.value < _lowest(ladder)):
            axes.annotate(
                f"↓ {row.points.value:.0f}", (factor * getattr(row, cost), _lowest(ladder)),
                xytext=(0, 3), textcoords="offset points", ha="center",
            )  # fmt: skip
        limit = getattr(ladder.budget, cost)
        if limit is not None:
            axes.axvline(factor * limit, color=GREY, linestyle="--", linewidth=1)
        if ladder.budget.points is not None:
            axes.axhline(-ladder.budget.points, color=GREY, linestyle="--", linewidth=1)
        axes.set(xlabel=label, xlim=(0, None))
        axes.grid(True)
    lowest = _lowest(ladder)
    for axes in picture.axes:
        axes.set_ylim(lowest, None)
    first = picture.axes[0]
    first.set_ylabel(f"points against {ladder.reference}")
    handles, labels = first.get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return picture


def _draw_panel(axes: Axes, rows: tuple[CompressionRung, ...], cost: str, factor: float) -> None:
    front = [row for row in rows if not _is_beaten(row, rows, cost)]
    line = sorted((factor * getattr(row, cost), row.points.value) for row in front)
    axes.plot(*zip(*line, strict=True), color=GREY, linewidth=0.8, zorder=1)
    for place, row in enumerate(rows):
        low, high = row.points.interval
        value, color = row.points.value, COLORS[place % len(COLORS)]
        axes.errorbar(
            [factor * getattr(row, cost)], [value], yerr=[[value - low], [high - value]],
            marker=MARKERS[place % len(MARKERS)], color=color, elinewidth=0.9, markersize=7,
            markerfacecolor=color if row in front else "white", linestyle="none", zorder=2,
            label=row.name,
        )  # fmt: skip


def _lowest(ladder: CompressionLadder) -> float:
    """Return where the axis of points ends: all stages but the untrained ones are above it."""
    shown = [row for row in ladder.rows if row.name not in _UNTRAINED] or list(ladder.rows)
    ends = [row.points.interval[0] for row in shown]
    if ladder.budget.points is not None:
        ends.append(-ladder.budget.points)
    return 1.15 * min(ends) - 0.5


def _is_beaten(row: CompressionRung, rows: tuple[CompressionRung, ...], cost: str) -> bool:
    """Whether another stage costs no more and loses no more, and is better in one of them."""
    own = getattr(row, cost), -row.points.value
    others = ((getattr(other, cost), -other.points.value) for other in rows)
    return any(c <= own[0] and p <= own[1] and (c, p) != own for c, p in others)


def _described(ladder: CompressionLadder) -> str:
    if ladder.result is None:
        end = "no file passed the gate"
    else:
        row = ladder[ladder.result]
        end = (
            f"{row.name} ends at {100 * row.macs:.0f} % of the MACs, {row.megabytes:.2f} MB and "
            f"{row.points.value:+.2f} points"
        )
    met = "the budget is met" if ladder.ok else "the budget is not met"
    return f"{len(ladder.rows)} stages of {ladder.model}, budget {ladder.budget}: {end}; {met}."
