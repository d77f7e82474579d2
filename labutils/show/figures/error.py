"""Figures of what rounding costs: a range's two errors, filters under one scale."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import ArrayLike

from ...errors import UsageError
from ..graphs.picture import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    VERMILION,
    Picture,
    blank,
    percent,
    styled,
)

_MARKERS = "ovs^DP"
_MOST_FILTERS = 640
_APART = 100  # so many bars can be told apart


@styled
def u_curve(
    ends: ArrayLike, clipping: ArrayLike, rounding: ArrayLike, marks: Mapping[str, float], name: str
) -> Picture:
    """Draw the error of clipping, that of rounding, and their sum, over the end of the range.

    Parameters
    ----------
    ends
        (n,) positive: the upper end of each range tried, ascending.
    clipping, rounding
        (n,) mean squared errors.
    marks
        Name of a method -> the upper end that it chose.
    name
        Of the tensor, with the bits.

    Raises
    ------
    UsageError
        Nothing to draw, or lists of other lengths.
    """
    ends, clipping, rounding = (np.asarray(a, np.float64) for a in (ends, clipping, rounding))
    if not ends.size or not ends.shape == clipping.shape == rounding.shape or ends.min() <= 0:
        raise UsageError("u_curve draws two errors for each of some positive ends of a range.")
    whole = clipping + rounding
    best = int(whole.argmin())
    chosen = ", ".join(f"{method} {end:.3g}" for method, end in marks.items())
    picture = blank(
        3.6,
        f"{name}: as the range shrinks, the error of rounding falls and that of clipping rises; "
        f"the sum is least at an end of {ends[best]:.3g}, "
        f"{whole[-1] / max(whole[best], 1e-300):.1f} times less than with the whole range. "
        f"Chosen: {chosen or 'none'}.",
    )
    axes = picture.subplots()
    floor = max(whole[best] / 300, 1e-300)  # what is far below the sum would stretch the axis
    axes.plot(ends, clipping, "--", color=VERMILION, label="clipping: beyond the range")
    axes.plot(ends, rounding, ":", color=BLUE, linewidth=2.2, label="rounding: inside it")
    axes.plot(ends, whole, color=INK, linewidth=2, label="both")
    for number, (method, end) in enumerate(marks.items()):
        height = np.exp(np.interp(np.log(end), np.log(ends), np.log(whole)))
        axes.plot(end, height, _MARKERS[number % len(_MARKERS)], color=ORANGE, markersize=9,
                  markeredgecolor=INK, label=f"{method}: {end:.3g}", zorder=3)  # fmt: skip
    axes.set(xscale="log", yscale="log", ylim=(floor, 3 * whole.max()),
             xlabel=f"upper end of the range of {name} (log scale)",
             ylabel="mean squared error")  # fmt: skip
    _plain_numbers(axes.xaxis)
    axes.grid(True)
    picture.legend(loc="outside right center", frameon=False)
    return picture


def _plain_numbers(axis: Axis) -> None:
    """Write 2, 5, 10 on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


@styled
def filter_reach(layers: Mapping[str, ArrayLike], bits: int = 8) -> Picture:
    """Draw the largest weight of each filter, as codes of one scale for the whole layer.

    Parameters
    ----------
    layers
        Name -> weights, filters first. One to three layers.
    bits
        Of the signed codes, 2 to 16.

    Raises
    ------
    UsageError
        No layer, too many, one of zeros, or other bits.
    """
    reach = {
        name: np.abs(np.asarray(w, np.float64)).reshape(np.shape(w)[0], -1).max(axis=1)
        for name, w in layers.items()
    }
    if not 1 <= len(reach) <= 3 or not 2 <= bits <= 16 or any(not r.any() for r in reach.values()):
        raise UsageError("filter_reach draws one to three layers with weights, of 2 to 16 bits.")
    most = 2 ** (bits - 1) - 1
    codes = {name: np.sort(r / r.max() * most)[::-1][:_MOST_FILTERS] for name, r in reach.items()}
    said = [
        f"{name}: the smallest of {len(c)} filters reaches {c[-1]:.2g} of {most} codes, half of "
        f"them at most {np.median(c):.2g}, and {percent(float(np.mean(c < 0.5)))} round to nothing"
        for name, c in codes.items()
    ]
    picture = blank(
        2.9, f"One scale for all filters at {bits} bits, largest filter first. {'; '.join(said)}."
    )
    panels = picture.subplots(1, len(codes), squeeze=False, sharey=True)[0]
    for axes, (name, found) in zip(panels, codes.items(), strict=True):
        places = np.arange(len(found))
        off, width = found < 0.5, 0.9 if len(found) <= _APART else 1.0
        axes.bar(places[~off], found[~off], width=width, color=BLUE, label="reach of a filter")
        if off.any():
            axes.bar(places[off], found[off], width=width, color=VERMILION, hatch="///",
                     edgecolor=INK, linewidth=0, label="all its codes are 0")  # fmt: skip
        axes.axhline(1, color=GREY, linestyle="--", linewidth=1)
        axes.axhline(float(np.median(found)), color=GREEN, linewidth=1.6, label="median")
        axes.set(yscale="log", ylim=(0.2, 1.6 * most), xlabel="filter, largest first", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _plain_numbers(axes.yaxis)
        axes.legend(frameon=False, loc="upper right")
    panels[0].set_ylabel(f"largest code of {most}")
    return picture
