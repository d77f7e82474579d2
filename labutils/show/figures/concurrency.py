"""A figure of latency and frame rate against the number of concurrent requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..graphs.long_names import folded
from ..graphs.picture import COLORS, INK, MARKERS, Picture, blank, styled

if TYPE_CHECKING:
    from ...measure.throughput import Throughput

_LINES = ("-", "--", "-.", ":")


@styled
def latency_by_requests(measured: Throughput) -> Picture:
    """Draw each model's latency and frame rate against the number of concurrent requests.

    Parameters
    ----------
    measured
        From `throughput.measure`.
    """
    names = list(dict.fromkeys(row.model for row in measured.rows))
    picture = blank(
        3.2 + 0.4 * len(names),
        f"Latency and frames per second of {len(names)} models under "
        f"{min(measured.plan.threads)} to {max(measured.plan.threads)} concurrent requests on "
        f"{measured.cores} cores.",
    )
    left, right = picture.subplots(1, 2)
    for i, name in enumerate(names):
        rows = [row for row in measured.rows if row.model == name]
        style = {
            "marker": MARKERS[i % len(MARKERS)], "linestyle": _LINES[i % len(_LINES)],
            "color": COLORS[i % len(COLORS)],
        }  # fmt: skip
        for axes, figures in (
            (left, [row.latency_ms for row in rows]),
            (right, [row.frames_per_second for row in rows]),
        ):
            values = [figure.value for figure in figures]
            below = [figure.value - figure.low for figure in figures]
            above = [figure.high - figure.value for figure in figures]
            axes.errorbar(
                [row.requests for row in rows], values, yerr=[below, above], capsize=3,
                label=folded(name, 600, 10, 2), **style,
            )  # fmt: skip
    for axes, title in ((left, "latency, ms"), (right, "frames per second")):
        axes.axvline(measured.cores, color=INK, linewidth=0.8, linestyle=":")
        axes.set(title=title, xlabel="concurrent requests", ylim=(0, None))
        axes.set_xticks(measured.plan.threads)
        axes.grid(True)
    handles, labels = left.get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", frameon=False)
    return picture
