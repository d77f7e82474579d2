"""Figures of quantization: ranges, steps, codes, and what is cut off."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from ... import metrics
from ...errors import UsageError, counted
from ...onnxfile.graph import module_of_name
from ...quantize import Ranges
from ...tabular import shortened
from ..graphs.picture import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILION,
    Picture,
    blank,
    decibels,
    percent,
    styled,
)
from .comparison import numbered, stage_ticks

_MOST_VALUES = 8
_FEW_CODES = 24  # so few that each can be drawn
_FEW_BITS = 6  # 64 codes stand apart in a histogram of this width
_NEAR = 4  # codes on either side of zero in the close-up


@styled
def clipping_histogram(
    values: ArrayLike, low: float, high: float, bits: int = 8, name: str = ""
) -> Picture:
    """Draw how values are distributed, and what a quantizer with this range does to them.

    Up to 6 bits every code has its tick, and a stem as high as the number of values on it.

    Parameters
    ----------
    values
        Any shape: a tensor's values over the calibration images.
    low, high
        The range that is kept; it must contain 0, which is represented exactly.
    bits
        Of the integers, 2 to 16.
    name
        Of the tensor.
    """
    values = np.asarray(values, np.float64).ravel()
    if not low <= 0 <= high or low == high or not 2 <= bits <= 16 or not values.size:
        raise UsageError(
            f"A range that contains 0, 2 to 16 bits and some values are needed, not "
            f"[{low:g}, {high:g}], {bits} bits and {values.size} values."
        )
    step, kept = quantized(values, low, high, bits)
    outside = float(np.mean((values < low) | (values > high)))
    sqnr = metrics.sqnr_db(values, kept)
    used = np.unique(kept).size
    few = used <= _FEW_CODES < 2**bits
    picture = blank(
        3.1,
        f"{name + ': ' if name else ''}{bits} bits over [{low:.3g}, {high:.3g}] make steps of "
        f"{step:.3g}; {percent(outside)} of the values lie outside and are clipped; "
        + (f"all lie on {used} of the {2**bits} codes; " if few or bits <= _FEW_BITS else "")
        + f"SQNR {decibels(sqnr)}.",
    )
    axes, *close = picture.subplots(1, 2 if few else 1, squeeze=False).flat
    if few:
        _few_steps(close[0], values, kept, step)
    ends = min(values.min(), low), max(values.max(), high)
    coarse = bits <= _FEW_BITS
    axes.hist(values, bins=np.linspace(*ends, 101), color=SKY if coarse else BLUE, label="values")
    axes.set_yscale("log")
    if coarse:
        _codes(axes, kept, step * (np.arange(2**bits) - np.round(-low / step)), step)
    margin = 0.03 * (ends[1] - ends[0])
    axes.set_xlim(ends[0] - margin, ends[1] + margin)
    for edge, end in ((low, ends[0] - margin), (high, ends[1] + margin)):
        if outside:
            words = "clipped to the edge" if edge == low else None
            axes.axvspan(edge, end, facecolor=ORANGE, alpha=0.3, hatch="//", edgecolor=INK,
                         linewidth=0, label=words)  # fmt: skip
        axes.axvline(edge, color=INK, linestyle="--", linewidth=1.4,
                     label="range" if edge == low else None)  # fmt: skip
    axes.set(xlabel=name or "value", ylabel="count (log scale)")
    picture.suptitle(
        f"{bits} bits: step {step:.3g}, {percent(outside)} clipped, SQNR {decibels(sqnr)}"
    )
    picture.legend(loc="outside lower center", ncols=5, frameon=False)
    return picture


def _codes(axes: Axes, kept: np.ndarray, codes: np.ndarray, step: float) -> None:
    """Draw a tick for each code, and above those in use how many values were rounded to it."""
    counts = np.histogram(kept, bins=np.append(codes, codes[-1] + step) - step / 2)[0]
    used = counts > 0
    axes.vlines(codes, 0, 0.035, color=INK, linewidth=1, transform=axes.get_xaxis_transform(),
                label="codes")  # fmt: skip
    axes.vlines(codes[used], 0.5, counts[used], color=VERMILION, linewidth=1.6)
    axes.plot(codes[used], counts[used], "o", color=VERMILION, markersize=3.5,
              label="values on a code")  # fmt: skip


def _few_steps(axes: Axes, values: np.ndarray, kept: np.ndarray, step: float) -> None:
    """Draw the same values close up, with a line where each code in use lies."""
    codes = np.unique(kept)
    ends = min(values.min(), codes[0]) - step / 2, max(values.max(), codes[-1]) + step / 2
    axes.hist(values, bins=np.linspace(*ends, 81).tolist(), color=BLUE)
    axes.vlines(codes, 0, 1, color=VERMILION, linewidth=1.2, transform=axes.get_xaxis_transform(),
                label="code in use")  # fmt: skip
    axes.set_yscale("log")
    axes.set(xlim=ends, xlabel="close up")


def quantized(values: np.ndarray, low: float, high: float, bits: int) -> tuple[float, np.ndarray]:
    """Return the step, and `values` after quantization to unsigned integers and back.

    The integers are ``clip(round(x / step) + zero_point, 0, 2**bits - 1)``, as in ONNX's
    QuantizeLinear (halves are rounded to even).
    """
    levels = 2**bits - 1
    step = (high - low) / levels
    zero_point = np.round(-low / step)
    integers = np.clip(np.round(values / step) + zero_point, 0, levels)
    return step, (integers - zero_point) * step


@styled
def quantization_grid(values: ArrayLike, scale: float, zero_point: int, bits: int = 8) -> Picture:
    """Draw the number line of a quantizer with a few values, their codes and what comes back.

    Parameters
    ----------
    values
        One to eight real numbers.
    scale
        The step between two codes; positive.
    zero_point
        The code of 0.0, 0 to ``2**bits - 1``.
    bits
        Of the unsigned codes, 2 to 16.

    Raises
    ------
    UsageError
        A scale that is not positive, a zero point that is not a code, no values, or too many.
    """
    values = np.asarray(values, np.float64).ravel()
    last = 2**bits - 1
    if not (scale > 0 and 2 <= bits <= 16 and zero_point == int(zero_point)):
        raise UsageError("A positive scale, 2 to 16 bits and a whole zero point are needed.")
    if not 0 <= zero_point <= last or not 1 <= values.size <= _MOST_VALUES:
        raise UsageError(
            f"The zero point is a code, 0 to {last}, and 1 to {_MOST_VALUES} values can be drawn; "
            f"these are zero point {zero_point:g} and {values.size} values."
        )
    low, high = -zero_point * scale, (last - zero_point) * scale
    codes = np.clip(np.round(values / scale) + zero_point, 0, last)
    back = (codes - zero_point) * scale
    cut = (values < low - scale / 2) | (values > high + scale / 2)
    inside = np.abs(back - values)[~cut]
    picture = blank(
        4.3,
        f"{last + 1} codes in steps of {scale:.4g} reach from {low:.4g} to {high:.4g}, and 0 has "
        f"the code {zero_point:g}; of {counted(values.size, 'value')} "
        f"{int(cut.sum())} beyond the ends"
        + (f", the others come back within {inside.max():.2g}." if inside.size else "."),
    )
    (line, steps, table) = picture.subplot_mosaic(
        [["line", "line"], ["steps", "table"]], height_ratios=(1, 2.2), width_ratios=(1, 1.25)
    ).values()
    _number_line(line, values, back, cut, (low, high, scale, zero_point, last))
    _steps_near_zero(steps, scale, zero_point, last)
    table.set_axis_off()
    rows = [f"{'value':>9} {'code':>6} {'back':>9} {'error':>9}"]
    rows += [
        f"{v:>9.4g} {c:>6g} {b:>9.4g} {b - v:>9.2g}" + (" cut" if off else "")
        for v, c, b, off in zip(values, codes, back, cut, strict=True)
    ]
    table.text(0.02, 0.96, "\n".join(rows), va="top", family="DejaVu Sans Mono", size=9,
               linespacing=1.5, transform=table.transAxes)  # fmt: skip
    return picture


def _number_line(
    axes: Axes, values: np.ndarray, back: np.ndarray, cut: np.ndarray, grid: tuple
) -> None:
    """Draw values above the line, what comes back on it, and the codes below."""
    low, high, scale, zero_point, last = grid
    axes.plot([low, high], [0, 0], color=INK, linewidth=5, solid_capstyle="butt", alpha=0.35)
    beyond = 0.12 * (high - low)  # far values stand at the rim, with their number
    for value, b, off in zip(values, back, cut, strict=True):
        color, marker = (VERMILION, "X") if off else (BLUE, "o")
        v = float(np.clip(value, low - beyond, high + beyond))
        if v != value:
            axes.annotate(f"{value:.3g}", (v, 1), xytext=(0, 7), textcoords="offset points",
                          ha="center", size=9)  # fmt: skip
        axes.plot([v, b], [1, 0], color=color, linewidth=1, linestyle="--" if off else "-")
        axes.plot(v, 1, marker, color=color, markersize=8)
        axes.plot(b, 0, "|", color=color, markersize=14, markeredgewidth=2)
    ticks: list[int] = []
    for code in (int(zero_point), 0, last, *range(0, last, (last + 1) // 4)):
        if all(abs(code - other) > 0.12 * last for other in ticks):
            ticks.append(code)
    places = [(t - zero_point) * scale for t in ticks]
    names = [f"{p:.4g}\ncode {t}" for t, p in zip(ticks, places, strict=True)]
    axes.set_xticks(places, names)
    axes.set(ylim=(-0.5, 1.9), yticks=[1, 0], yticklabels=["values", "come back as"])
    axes.tick_params(left=False)
    axes.margins(x=0.06)
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=GREY, linestyle=":", linewidth=1)
    if cut.any():
        axes.set_title("✗ beyond the ends: cut off to the first or the last code", size=9.5)


def _steps_near_zero(axes: Axes, scale: float, zero_point: int, last: int) -> None:
    """Draw value in, value out around zero: a staircase with one code per step."""
    first, final = max(0, zero_point - _NEAR), min(last, zero_point + _NEAR)
    x = np.linspace((first - zero_point - 0.45) * scale, (final - zero_point + 0.45) * scale, 2001)
    y = (np.clip(np.round(x / scale) + zero_point, 0, last) - zero_point) * scale
    axes.plot(x, x, color=GREY, linestyle="--", linewidth=1)
    axes.plot(x, y, color=BLUE, linewidth=2)
    codes = np.arange(first, final + 1)
    axes.set_yticks((codes - zero_point) * scale, [f"code {int(code)}" for code in codes])
    axes.set(xlabel="value", title="near zero: one step per code")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(True, axis="y")


@styled
def ranges(measured: Ranges, outliers: float = 0.01, worst: int = 4) -> Picture:
    """Draw the range of every activation over the calibration images, input to output.

    Parameters
    ----------
    measured
        From `quantize.measure_ranges`.
    outliers
        Share of the images left out on either side; the bar inside shows what stays.
    worst
        How many tensors to number and name: those whose range shrinks most without the outliers.
    """
    names = measured.tensors
    if not names:
        raise UsageError("These ranges hold no tensor: there is nothing to draw.")
    whole, kept = (np.array([measured.limits(s)[n] for n in names]) for s in (0.0, outliers))
    widths, inner = (np.maximum(np.ptp(pair, axis=1), 1e-12) for pair in (whole, kept))
    widest, factor = int(widths.argmax()), widths / inner
    order = [int(i) for i in np.argsort(-factor, kind="stable")[:worst] if factor[i] > 1.005]
    picture = blank(
        3.6 + 0.17 * len(order),
        f"Ranges of {len(names)} activations over {len(measured.low)} calibration images: the "
        f"widest is {whole[widest, 0]:.3g} to {whole[widest, 1]:.3g} ({_where(names[widest])}); "
        + (
            f"without {percent(outliers)} of them on either side {_where(names[order[0]])} "
            f"shrinks {factor[order[0]]:.1f}-fold."
            if order
            else "leaving out images changes none of them."
        ),
    )
    axes, below = picture.subplots(2, 1, height_ratios=(1, 0.06 * len(order) + 0.01))
    places = np.arange(len(names))
    axes.vlines(places, *whole.T, color=SKY, linewidth=3, label="all images")
    if outliers:
        axes.vlines(places, *kept.T, color=BLUE, linewidth=1.4,
                    label=f"without {percent(outliers)} on either side")  # fmt: skip
    axes.axhline(0, color=INK, linewidth=0.8)
    top = max(whole[:, 1].max(), 0)
    room = top - min(whole[:, 0].min(), 0)
    numbered(axes, order, whole[:, 1].tolist(), top + 0.05 * room)
    stage_ticks(axes, [module_of_name(name) for name in names])
    axes.set(ylabel="value", ylim=(min(whole[:, 0].min(), 0) - 0.04 * room, top + 0.14 * room))
    axes.grid(True, axis="y")
    axes.legend(ncols=2, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0.2)
    below.set_axis_off()
    rows = [
        f"{i}  {whole[k, 0]:>8.3g} to {whole[k, 1]:<8.3g} {factor[k]:>6.1f} × wider  "
        f"{shortened(_where(names[k]), 40)}"
        for i, k in enumerate(order, 1)
    ]
    below.text(0, 1, "\n".join(rows), va="top", family="DejaVu Sans Mono", size=9)
    return picture


def _where(tensor: str) -> str:
    """Return a tensor's module and operator, or its name when they are not known."""
    module = module_of_name(tensor)
    return f"{module} {tensor.rsplit('/', 1)[-1].removesuffix('_output_0')}" if module else tensor
