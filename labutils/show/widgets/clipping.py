"""A slider for what a quantizer keeps: bits and clipping, on the values of a real layer."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets as widgets
import numpy as np
from numpy.typing import ArrayLike

from ... import metrics
from ...errors import UsageError
from ..figures import clipping_histogram, quantized
from ..graphs.picture import decibels, percent
from .panel import Panel, labelled, on_change, pictured, row

_MIN_BITS, _MAX_BITS = 2, 16


class ClippingSlider(Panel):
    """Choose a layer, the bits, and how much of its values the range keeps.

    Parameters
    ----------
    values_by_layer
        Name -> the layer's values over some images, any shape.
    bits
        To begin with.

    Raises
    ------
    UsageError
        No layers, or one without values or with values that are not finite.
    """

    def __init__(self, values_by_layer: Mapping[str, ArrayLike], bits: int = 8) -> None:
        self.values = {
            name: _finite(name, values) for name, values in dict(values_by_layer).items()
        }
        if not self.values:
            raise UsageError("The slider needs the values of at least one layer.")
        self.layer = labelled(widgets.Dropdown, "Layer", options=list(self.values), width="36em")
        self.bits = labelled(
            widgets.IntSlider, "Bits", min=_MIN_BITS, max=_MAX_BITS, value=bits,
            continuous_update=False,
        )  # fmt: skip
        self.kept = labelled(
            widgets.FloatSlider, "Values kept, %", min=80, max=100, step=0.1, value=100,
            readout_format=".1f", continuous_update=False,
        )  # fmt: skip
        self.picture = widgets.HTML()
        controls = [self.layer, row(self.bits, self.kept)]
        super().__init__("Bits and clipping of a layer", controls, results=[self.picture])
        for control in (self.layer, self.bits, self.kept):
            on_change(control, self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Quantize the chosen layer's values as the sliders stand."""
        with self.working("Quantizing ..."):
            name, bits, share = self.layer.value, self.bits.value, self.kept.value / 100
            values = self.values[name]
            low, high = kept_range(values, share)
            figure = clipping_histogram(values, low, high, bits, name)
            self.picture.value = pictured(figure)
            self.say(_words(values, low, high, bits), "note")


def kept_range(values: np.ndarray, share: float) -> tuple[float, float]:
    """Return the range that keeps this share of the values, as many cut off on either side.

    The range always contains 0, which a quantizer represents exactly; 1.0 is min-max.

    Raises
    ------
    UsageError
        The values are all 0: there is nothing to quantize.
    """
    rest = (1 - share) / 2
    low, high = np.quantile(values, [rest, 1 - rest])
    low, high = min(0.0, float(low)), max(0.0, float(high))
    if low == high:
        raise UsageError(
            f"The range that keeps {percent(share)} of these values is only 0: nothing is left to "
            "quantize. Keep more of them, or choose another layer."
        )
    return low, high


def _words(values: np.ndarray, low: float, high: float, bits: int) -> str:
    step, kept = quantized(values, low, high, bits)
    outside = float(np.mean((values < low) | (values > high)))
    now = metrics.sqnr_db(values, kept)
    whole = metrics.sqnr_db(values, quantized(values, *kept_range(values, 1.0), bits)[1])
    words = (
        f"{bits} bits over [{low:.3g}, {high:.3g}]: {2**bits} levels, step {step:.3g}, "
        f"{percent(outside)} of {values.size:,} values clipped, SQNR {decibels(now)}."
    )
    if not outside:
        return f"{words} Nothing is clipped: this is min-max."
    change = "better" if now > whole else "worse" if now < whole else "as good"
    return f"{words} Min-max with the same bits: {decibels(whole)}, so clipping here is {change}."


def _finite(name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, np.float64).ravel()
    if not values.size or not np.isfinite(values).all():
        raise UsageError(f"Layer {name!r} needs values, all of them finite.")
    return values
