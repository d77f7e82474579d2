"""A slider for the budget of a pruning: every block's width, and what it is predicted to cost."""

from __future__ import annotations

import ipywidgets as widgets

from ...errors import UsageError
from ...prune import Search
from ..figures.pruning import block_widths
from ..graphs.picture import percent
from .panel import Panel, labelled, on_change, pictured


class WidthSlider(Panel):
    """Drag the budget of MACs; see every block's width and the predicted cost.

    Parameters
    ----------
    search
        From `prune.search`; nothing is computed again.

    Attributes
    ----------
    share
        The slider: at most so many percent of the MACs.
    """

    def __init__(self, search: Search) -> None:
        if len(search.steps) < 2:
            raise UsageError("This search went through no steps: there is nothing to drag.")
        self.search = search
        first, last = search.steps[0].macs, search.steps[-1].macs
        least, chosen = 100 * last / first, search.points[search.chosen].macs
        self.share = labelled(
            widgets.FloatSlider, "MACs left, %", min=round(least + 0.5), max=100, step=1,
            value=100 * chosen / first, readout_format=".0f", continuous_update=False,
            width="34em",
        )  # fmt: skip
        self.picture = widgets.HTML()
        super().__init__("Widths within a budget", [self.share], results=[self.picture])
        on_change(self.share, self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the widths of the budget that the slider stands at."""
        with self.working("Looking up the widths ..."):
            place = self.search.within(self.share.value / 100)
            self.picture.value = pictured(block_widths(self.search, place))
            self.say(_words(self.search, place), "note")


def _words(search: Search, place: int) -> str:
    """Return what the widths save, and what they are predicted to cost."""
    whole, step = search.steps[0], search.steps[place]
    kept, there = sum(step.widths.values()), sum(whole.widths.values())
    noise = "nothing yet" if not place else (
        f"logit SQNR {step.predicted_db:.1f} dB before training (each block's cost was measured "
        "alone, so the sum is too good)"
    )  # fmt: skip
    return (
        f"{kept:,} of {there:,} channels stay ({percent(kept / there)}): "
        f"{percent(step.macs / whole.macs)} of the MACs, "
        f"{percent(step.parameters / whole.parameters)} of the parameters. "
        f"Predicted cost: {noise}."
    )
