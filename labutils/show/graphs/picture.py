"""A matplotlib figure that knows what there is to see on it, and the style that all share."""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.figure import Figure

from ... import paths, typesetting
from ...errors import UsageError
from . import long_names

P = ParamSpec("P")
R = TypeVar("R")

WIDTH = 7.6
"""Inches; at `DPI` as wide as the text of a notebook."""
DPI = 100

# Okabe & Ito, "Color Universal Design" (2008): told apart with every common colour vision. The
# markers and hatches are the second carrier, for print in grey as well.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9",
)  # fmt: skip
GREY, INK = "#6b6b6b", "#1a1a1a"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.7,
}


class Picture(Figure):
    """A figure with its sentence.

    It belongs to no pyplot state: nothing to close, and nothing is drawn before it is shown.

    Attributes
    ----------
    alt
        One sentence that says what to see.
    """

    alt: str = ""
    _settled: bool = False

    def png(self, dpi: int = DPI) -> bytes:
        """Return the picture as PNG; equal bytes for equal data on one machine."""
        buffer = io.BytesIO()
        with _style():
            self._settle()
            self.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
        return buffer.getvalue()

    def _settle(self) -> None:
        """Lay out once and for all: every further drawing, at any dpi, stands in the same place."""
        if not self._settled:
            long_names.fold_beside(self)
            self.draw_without_rendering()
            long_names.fold_around(self)
            for _ in "ab":  # room for ticks depends on the size, and the size on that room
                self.draw_without_rendering()
            self.set_layout_engine("none")
            self._settled = True

    def save(self, path: str | Path) -> Path:
        """Write the picture as ``.png``, all of it or nothing, and return the path."""
        path = Path(path)
        if path.suffix != ".png":
            raise UsageError(f"A figure is written as .png, not as {path.suffix or 'no type'}.")
        with paths.atomic(path) as temporary:
            temporary.write_bytes(self.png())
        return path

    def __str__(self) -> str:
        return self.alt

    def _repr_png_(self) -> bytes:
        return self.png()

    def __repr__(self) -> str:
        return f"<Picture: {self.alt}>"

    def _repr_html_(self) -> str:
        # twice the pixels: sharp on the screens of today
        said, coded = html.escape(self.alt), base64.b64encode(self.png(2 * DPI)).decode()
        width = round(DPI * self.get_figwidth())
        image = (
            f'<img alt="{said}" width="{width}" style="{typesetting.shrinking(width)}" '
            f'src="data:image/png;base64,{coded}">'
        )
        return (
            f'<figure style="margin:0">{typesetting.scrolling(image)}'
            f'<figcaption aria-hidden="true">{typesetting.words(self.alt)}</figcaption></figure>'
        )


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Let `draw` work in the lab's style, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with _style():
            return draw(*args, **kwargs)

    return drawn


def blank(height: float, alt: str = "") -> Picture:
    """Return an empty picture of the usual width and `height` inches."""
    picture = Picture(figsize=(WIDTH, height), facecolor="white")
    picture.set_layout_engine("constrained", w_pad=0.07, h_pad=0.07)  # inches
    picture.alt = alt
    return picture


def percent(value: float) -> str:
    """Return a share as ``"97.5 %"``; shares that are not quite all or nothing do not say so."""
    text = f"{100 * value:.1f}"
    if text == "0.0" and value > 0:
        return "< 0.1 %"
    if text == "100.0" and value < 1:
        return "> 99.9 %"
    return f"{text} %"


def decibels(value: float) -> str:
    """Return an SQNR as text: ``"31.2 dB"``, ``"no noise"`` (equal tensors), ``"not finite"``."""
    return f"{value:.1f} dB" if math.isfinite(value) else "no noise" if value > 0 else "not finite"


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """Set matplotlib's own defaults, whatever the user's are, with the lab's style on top."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield
