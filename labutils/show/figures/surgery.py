"""Figures about surgery: what a gate is fed with, and how a changed network comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ...errors import UsageError
from ..graphs.picture import BLUE, COLORS, GREEN, INK, VERMILION, Picture, blank, percent, styled

if TYPE_CHECKING:
    from ...compare import Ladder

_STYLES = ("-", "--", ":", "-.")
_SMOOTHED = 8  # steps that one point of a curve is the mean of


@styled
def gate_inputs(values: Mapping[str, ArrayLike]) -> Picture:
    """Draw the range of what goes into each gate, beside the 0 to 1 that a gate gives.

    Parameters
    ----------
    values
        Name of the gate -> the tensor that goes into it, any shape.
    """
    found = {name: np.asarray(tensor, np.float64).ravel() for name, tensor in values.items()}
    if not found or any(not tensor.size for tensor in found.values()):
        raise UsageError("gate_inputs draws tensors by name, and there were none, or an empty one.")
    lows = np.array([tensor.min() for tensor in found.values()])
    highs = np.array([tensor.max() for tensor in found.values()])
    most = list(found)[int(highs.argmax())]
    picture = blank(
        1.5 + 0.32 * len(found),
        f"Inputs of {len(found)} gates reach from {lows.min():.3g} to {highs.max():.3g} (in "
        f"{most}): hard-sigmoid makes 0 to 1 of them, and a ReLU would let the positive ones pass "
        "as they are.",
    )
    axes = picture.subplots()
    axes.axvspan(0, 1, color=GREEN, alpha=0.25, label="what hard-sigmoid gives: 0 to 1")
    for place, (low, high) in enumerate(zip(lows, highs, strict=True)):
        passed = (max(low, 0), max(high, 0))
        axes.hlines(place, low, high, color=BLUE, linewidth=2,
                    label="what goes in" if not place else "")  # fmt: skip
        axes.hlines(place, *passed, color=VERMILION, linewidth=7, alpha=0.55,
                    label="what a ReLU lets pass" if not place else "")  # fmt: skip
        axes.annotate(f"{high:.3g}", (high, place), xytext=(6, 0), textcoords="offset points",
                      va="center")  # fmt: skip
    axes.set_xscale("symlog", linthresh=1, linscale=2)  # room for -1, 0 and 1 side by side
    axes.set_xlim(min(1.8 * lows.min(), -2), max(4 * highs.max(), 2))
    axes.set_yticks(range(len(found)), [name.split(".block")[0] for name in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("value (logarithmic beyond ±1)")
    axes.grid(True, axis="x")
    picture.legend(loc="outside upper center", ncols=3, frameon=False)
    return picture


@styled
def training_losses(curves: Mapping[str, Sequence[float]], chance: float | None = None) -> Picture:
    """Draw the loss of each training over its steps, smoothed over a few.

    Parameters
    ----------
    curves
        Name -> the loss of every step.
    chance
        The loss of a network that guesses, as a line; None for no line.
    """
    if not curves or any(len(losses) == 0 for losses in curves.values()):
        raise UsageError("training_losses draws losses by name, and there were none.")
    smooth = {name: _smoothed(losses) for name, losses in curves.items()}
    listed = ", ".join(f"{name} from {s[0]:.2f} to {s[-1]:.2f}" for name, s in smooth.items())
    picture = blank(3.1, f"Loss over the steps of training, smoothed: {listed}.")
    axes = picture.subplots()
    for number, (name, losses) in enumerate(smooth.items()):
        steps = np.arange(1, len(losses) + 1)
        color, style = COLORS[number % len(COLORS)], _STYLES[number % len(_STYLES)]
        axes.plot(steps, losses, style, color=color, label=name, linewidth=2)
    if chance is not None:
        axes.axhline(chance, color=INK, linewidth=1, linestyle=(0, (1, 3)), label="guessing")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.grid(True)
    picture.legend(loc="outside upper center", ncols=3, frameon=False)
    return picture


@styled
def cuts(ladder: Ladder, classes: int) -> Picture:
    """Draw top-1 of each stage with its 95 % interval, and the share that guessing would reach.

    Parameters
    ----------
    ladder
        From `compare.ladder`, on images whose classes are known.
    classes
        How many there are to guess from.
    """
    rows = [(row, row.top1) for row in ladder.rows if row.top1]
    if not rows or classes < 1:
        raise UsageError("cuts draws stages with a top-1, and there were none: no label counts.")
    listed = ", ".join(f"{row.name} {percent(top1.value)}" for row, top1 in rows)
    picture = blank(1.5 + 0.36 * len(rows), f"Top-1 on {rows[0][0].n} images: {listed}.")
    axes = picture.subplots()
    axes.axvline(100 / classes, color=INK, linewidth=1, linestyle=(0, (1, 3)), label="guessing")
    for place, (_, top1) in enumerate(rows):
        value, (low, high) = top1.value, top1.interval
        style: dict[str, Any] = {
            "color": COLORS[0] if value > 0.5 else VERMILION,
            "fmt": "o" if value > 0.5 else "s",
        }
        axes.errorbar(100 * value, place, xerr=[[100 * (value - low)], [100 * (high - value)]],
                      capsize=4, markersize=6, **style)  # fmt: skip
        axes.annotate(percent(value), (100 * high, place), xytext=(8, 0),
                      textcoords="offset points", va="center")  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.name for row, _ in rows])
    axes.set(xlabel="top-1, % (with 95 % interval)", xlim=(0, 112), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(0, 101, 20))
    axes.grid(True, axis="x")
    picture.legend(loc="outside upper center", frameon=False)
    return picture


def _smoothed(losses: Sequence[float]) -> np.ndarray:
    """Return the mean of each loss and those before it, over as many steps as there are."""
    import pandas as pd

    return pd.Series(losses, dtype=float).rolling(_SMOOTHED, min_periods=1).mean().to_numpy()
