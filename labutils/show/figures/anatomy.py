"""Two figures of the first notebook: why hard-swish, and where weight, work and time lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...errors import UsageError
from ...onnxfile.graph import module_of_name
from ..graphs.picture import BLUE, GREEN, INK, ORANGE, VERMILION, Picture, blank, percent, styled

if TYPE_CHECKING:
    from ...measure.anatomy import Times
    from ...measure.complexity import Complexity

_TIE = 0.9  # of the largest share: closer than that, the next run may change the order

__all__ = ["hard_and_smooth", "weight_work_time"]


@styled
def hard_and_smooth() -> Picture:
    """Draw sigmoid and swish, which need an exponential, beside hard-sigmoid and hard-swish."""
    x = np.linspace(-6, 6, 601)
    sigmoid, hard = 1 / (1 + np.exp(-x)), np.clip(x + 3, 0, 6) / 6
    gap = np.abs(x * hard - x * sigmoid).max()
    picture = blank(
        2.9,
        "Hard-sigmoid and hard-swish follow sigmoid and swish with straight pieces and a parabola; "
        f"hard-swish is never more than {gap:.2f} from swish.",
    )
    left, right = picture.subplots(1, 2)
    left.plot(x, sigmoid, color=BLUE, linewidth=4, alpha=0.45, label="sigmoid")
    left.plot(x, hard, "--", color=INK, label="hard-sigmoid")
    right.plot(x, x * sigmoid, color=BLUE, linewidth=4, alpha=0.45, label="swish")
    right.plot(x, x * hard, "--", color=INK, label="hard-swish")
    right.plot(x, np.maximum(x, 0), ":", color=VERMILION, label="ReLU")
    left.set(title="the gate", xlabel="x")
    right.set(title="x times the gate", xlabel="x", ylim=(-0.6, 3.2), xlim=(-5, 3.4))
    for axes in (left, right):
        axes.grid(True)
        axes.legend(loc="upper left", frameon=False)
    return picture


@styled
def weight_work_time(network: Complexity, times: Times) -> Picture:
    """Draw each stage's share of the parameters, of the MACs and of the measured time.

    Parameters
    ----------
    network
        From `complexity.count`.
    times
        From `anatomy.times`, of the same network.
    """
    names = list(times.seconds)
    parameters, macs = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for row in network.rows:
        path = (module_of_name(row.name) or row.name).split(".")
        stage = next((n for n in (".".join(path[:2]), path[0]) if n in parameters), None)
        if stage is None:
            raise UsageError(f"{row.name} of {network.source} lies in no stage of {times.source}.")
        parameters[stage] += row.parameters
        macs[stage] += row.macs
    shares = [
        ("parameters", BLUE, "", [parameters[n] / network.parameters for n in names]),
        ("MACs", ORANGE, "///", [macs[n] / network.macs for n in names]),
        ("time (this computer)", GREEN, "...", [times.share(n) for n in names]),
    ]
    said = "; ".join(
        f"the largest share of the {what} is in {_leaders(names, values)}"
        for what, _, _, values in shares
    )
    picture = blank(0.9 + 0.21 * len(names), f"Three different profiles: {said}.")
    for number, (axes, (what, color, hatch, values)) in enumerate(
        zip(picture.subplots(1, 3, sharey=True), shares, strict=True)
    ):
        axes.barh(names, [100 * v for v in values], color=color, hatch=hatch, edgecolor="white")
        axes.set(title=what, xlabel="% of the network", ylim=(len(names) - 0.4, -0.6))
        axes.grid(True, axis="x")
        most = int(np.argmax(values))
        axes.annotate(percent(values[most]), (100 * values[most], most), xytext=(-3, 0),
                      textcoords="offset points", ha="right", va="center", color="white",
                      fontweight="bold", fontsize=8,
                      bbox={"facecolor": INK, "edgecolor": "none", "pad": 1.5})  # fmt: skip
        axes.tick_params(axis="y", length=0, labelleft=number == 0)
    return picture


def _leaders(names: list[str], values: list[float]) -> str:
    """Name the stage with the largest share, and those that all but tie with it."""
    order = np.argsort(values)[::-1]
    near = [names[i] for i in order if values[i] >= _TIE * values[order[0]]]
    largest = percent(values[order[0]])
    if len(near) == 1:
        return f"{near[0]} ({largest})"
    return f"no single stage ({', '.join(near)} lead with up to {largest})"
