"""Figures of pruning: what each group of channels costs, and accuracy against MACs."""

from __future__ import annotations

from collections.abc import Sequence

from ... import metrics
from ...errors import UsageError
from ...prune import Search, Sensitivity
from ...prune.budget import Point
from ...prune.scan import Reading
from ..graphs.picture import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    Picture,
    blank,
    percent,
    styled,
)
from .comparison import stage_ticks

_MARKERS = "ovs^DP"
_COLORS = (GREEN, BLUE, ORANGE, VERMILION)


@styled
def channel_costs(scan: Sensitivity) -> Picture:
    """Draw what masking a share of each group's channels costs, from the first group to the last.

    Parameters
    ----------
    scan
        From `prune.sensitivity`.

    Raises
    ------
    UsageError
        It holds no reading.
    """
    if not scan.readings:
        raise UsageError("The scan holds no reading: there is nothing to draw.")
    labelled = scan.top1 is not None
    measure = "top-1" if labelled else "agreement with the whole network"
    worst = min(scan.readings, key=_quality)
    picture = blank(
        3.9,
        f"{measure[:1].upper() + measure[1:]} of {scan.network} with channels of one of "
        f"{len(scan.groups)} groups masked, without training, {scan.n} images: lowest with "
        f"{percent(worst.ratio)} of {worst.group}, {percent(_quality(worst))}.",
    )
    axes = picture.subplots()
    places = range(len(scan.groups))
    for i, ratio in enumerate(scan.ratios):
        shares = [_quality(scan.of(group)[i]) for group in scan.groups]
        known = [metrics.Proportion(round(value * scan.n), scan.n) for value in shares]
        reach = [[100 * abs(end - p.value) for end in p.interval] for p in known]
        axes.errorbar(
            places, [100 * p.value for p in known], yerr=list(zip(*reach, strict=True)),
            marker=_MARKERS[i % len(_MARKERS)], color=_COLORS[i % len(_COLORS)], linewidth=0.8,
            elinewidth=0.6, markersize=4.5, label=f"{100 * ratio:.0f} % of the channels",
        )  # fmt: skip
    if scan.top1 is not None:
        axes.axhline(100 * scan.top1, color=GREY, linestyle="--", linewidth=1)
    axes.set(ylabel=f"{measure}, %", ylim=(0, 104))
    axes.grid(True, axis="y")
    axes.legend(ncols=3, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0.2)
    stage_ticks(axes, list(scan.groups))
    return picture


@styled
def pruning_front(search: Search) -> Picture:
    """Draw accuracy (or agreement) without training against the MACs that stay, and the front.

    Parameters
    ----------
    search
        From `prune.search`.
    """
    labelled = search.whole.top1 is not None
    chosen = search.points[search.chosen]
    share = chosen.macs / search.whole.macs
    measure = "top-1" if labelled else "agreement"
    picture = blank(
        3.6,
        f"{search.plan.network} within {search.budget}: the chosen widths keep {percent(share)} of "
        f"the MACs; {measure} {100 * _quality(chosen):.1f} % without training, against "
        f"{100 * _quality(search.whole):.1f} % of the whole network; {search.n} images.",
    )
    axes = picture.subplots()
    points = [search.whole, *search.points]
    shares = [100 * p.macs / search.whole.macs for p in points]
    axes.plot(shares, [100 * _quality(p) for p in points], color=GREY, linewidth=0.8, zorder=1)
    front = [p for p in points if p in search.front or p is search.whole]
    axes.scatter(
        [100 * p.macs / search.whole.macs for p in front], [100 * _quality(p) for p in front],
        color=BLUE, marker="o", zorder=2, label="front",
    )  # fmt: skip
    axes.scatter(
        [100 * share], [100 * _quality(chosen)], marker="s", s=90, facecolor="none",
        edgecolor=VERMILION, linewidth=1.6, zorder=3, label="within the budget",
    )  # fmt: skip
    if search.budget.macs is not None:
        axes.axvline(100 * search.budget.macs, color=GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="MACs that stay, %", ylabel=f"{measure} without training, %", ylim=(0, 104))
    axes.grid(True)
    axes.legend(loc="lower right", facecolor="white", edgecolor="none", framealpha=0.85)
    return picture


@styled
def block_widths(search: Search, place: int | None = None) -> Picture:
    """Draw the channels of every group that stay, beside those that there were.

    Parameters
    ----------
    search
        From `prune.search`.
    place
        Number of the state in ``search.steps``; by default the one that was chosen.
    """
    if place is None:
        chosen = search.points[search.chosen].macs
        place = next(i for i, step in enumerate(search.steps) if step.macs <= chosen)
    whole, step = search.steps[0], search.steps[place]
    groups = list(whole.widths)
    before, after = ([at.widths[group] for group in groups] for at in (whole, step))
    share = step.macs / whole.macs
    least = min(groups, key=lambda group: step.widths[group] / whole.widths[group])
    picture = blank(
        3.9,
        f"Channels of {len(groups)} groups of {search.plan.network} at {percent(share)} of the "
        f"MACs: {sum(after):,} of {sum(before):,} stay; {least} loses most, "
        f"{whole.widths[least]} to {step.widths[least]}.",
    )
    axes, places = picture.subplots(), range(len(groups))
    axes.bar(places, before, color="white", edgecolor=GREY, linewidth=0.8, label="there were")
    axes.bar(places, after, color=BLUE, edgecolor=GREY, linewidth=0.8, label="stay")
    axes.set(ylabel="channels")
    axes.grid(True, axis="y")
    axes.legend(loc="upper left", frameon=False)
    stage_ticks(axes, groups)
    return picture


@styled
def accuracy_by_macs(rows: Sequence[tuple[str, float, metrics.Proportion]]) -> Picture:
    """Draw accuracy against the MACs that stay, one line per way of making the networks.

    Parameters
    ----------
    rows
        (way, share of the MACs that stay, top-1), as ``("trained", 0.7, ...)``; ways keep their
        order.

    Raises
    ------
    UsageError
        There is none.
    """
    if not rows:
        raise UsageError("There is no network to draw.")
    ways = list(dict.fromkeys(way for way, *_ in rows))
    ends = [min((r for r in rows if r[0] == way), key=lambda row: row[1]) for way in ways]
    said = "; ".join(f"{w}: {percent(t.value)} at {percent(m)} of the MACs" for w, m, t in ends)
    picture = blank(3.6, f"Top-1 against MACs, {len(rows)} networks. {said}.")
    axes = picture.subplots()
    for i, way in enumerate(ways):
        own = sorted(((m, t) for w, m, t in rows if w == way), key=lambda row: row[0])
        reach = [[100 * abs(end - p.value) for end in p.interval] for _, p in own]
        axes.errorbar(
            [100 * macs for macs, _ in own], [100 * p.value for _, p in own],
            yerr=list(zip(*reach, strict=True)), marker=_MARKERS[i % len(_MARKERS)],
            color=_COLORS[i % len(_COLORS)], linewidth=0.8, elinewidth=0.8, label=way,
        )  # fmt: skip
    axes.set(xlabel="MACs that stay, %", ylabel="top-1, %", ylim=(0, 104))
    axes.grid(True)
    axes.legend(loc="lower right", facecolor="white", edgecolor="none", framealpha=0.85)
    return picture


def _quality(measured: Reading | Point) -> float:
    return measured.agreement if measured.top1 is None else measured.top1
