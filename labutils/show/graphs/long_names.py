"""Names of a stranger's network in a figure: folded into lines that fit their places.

A figure is drawn for names of the usual length. One that is longer than its place is broken as
`typesetting` breaks names, and cut to two lines where there is no room for more.
"""

from __future__ import annotations

from operator import attrgetter

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter

from ... import typesetting
from .svg import breadth

_POINT = 100 / 72  # pixels, at the usual resolution
_BESIDE, _ALL_BESIDE = 230, 280  # pixels of the names beside one axes, and beside all in a row
_HANDLE = 75  # pixels of a legend's entry that are not its name
_LINES = 2
_USUAL = 30  # letters: what the lab itself writes in a line, in place


def folded(said: str, room: float, size: float, lines: int = 8) -> str:
    """Break the lines of a text that are wider than its room.

    Parameters
    ----------
    said
        One line or more.
    room
        In pixels of 1/100 inch.
    size
        Of the letters, in points.
    lines
        More of them lose their start, which says less of a path than its end.
    """
    pixels = size * _POINT
    found = []
    for line in said.split("\n"):
        fits = breadth(line, pixels) <= room
        found += (
            [line] if fits else typesetting.lines(line, room, lambda part: breadth(part, pixels))
        )
    if len(found) > max(lines, said.count("\n") + 1):
        found = ["…" + found[-lines], *found[1 - lines :]] if lines > 1 else ["…" + found[-1]]
    return "\n".join(found)


def fold_beside(figure: Figure) -> None:
    """Fold names beside the axes and in legends, in place; they decide how wide the axes are."""
    named = [axes for axes in figure.axes if _names(axes)]
    room = min(_BESIDE, _ALL_BESIDE / max(len({_column(axes) for axes in named}), 1))
    for axes in named:
        size, names = float(axes.get_yticklabels()[0].get_fontsize()), _names(axes)
        rows = len({_row(other) for other in figure.axes}) * len(names)
        apart = 65 * figure.get_figheight() / rows  # pixels from name to name
        lines = max(1, min(_LINES, int(apart / (1.3 * _POINT * size))))
        names = [folded(name, room, size, lines) for name in names]
        axes.set_yticks(axes.get_yticks(), names)
    width = 100 * figure.get_figwidth()
    titled = [axes for axes in figure.axes if _left_title(axes).get_text()]
    for axes in titled:  # the layout makes room for it, so it comes first
        _fold(_left_title(axes), 0.9 * width / len({_column(other) for other in titled}) - 60)
    own = [axes.legend_ for axes in figure.axes if axes.legend_]
    for legend in [*figure.legends, *own]:
        for text in legend.get_texts():
            _fold(text, width / vars(legend)["_ncols"] - _HANDLE)


def fold_around(figure: Figure) -> None:
    """Fold titles and labels that are wider than their axes, in place, once those have a size."""
    for title in (vars(figure)["_suptitle"], vars(figure)["_supxlabel"]):
        if title is not None:
            _fold(title, 100 * figure.get_figwidth() - 20)
    for axes in figure.axes:
        left, bottom, right, top = (100 * v / figure.dpi for v in axes.bbox.extents)
        middle, width = (left + right) / 2, 100 * figure.get_figwidth()
        alone = len({_column(other) for other in figure.axes if _row(other) == _row(axes)}) < 2
        room = 2 * min(middle, width - middle) - 16 if alone else right - left + 12
        for text in (axes.title, axes.xaxis.label):
            _fold(text, room)
        _fold(axes.yaxis.label, top - bottom + 20)


def _fold(text: Text, room: float) -> None:
    said, size = text.get_text(), float(text.get_fontsize())
    longest = max(map(len, said.split("\n")))
    if longest > _USUAL and "$" not in said and breadth(said, size * _POINT) > room:
        text.set_text(folded(said, room, size))


def _names(axes: Axes) -> list[str]:
    """Return the words beside an axes; none where there are figures."""
    if not isinstance(axes.yaxis.get_major_formatter(), FixedFormatter | FuncFormatter):
        return []
    names = [label.get_text() for label in axes.get_yticklabels()]
    return names if any(names) else []


def _left_title(axes: Axes) -> Text:
    title: Text = vars(axes)["_left_title"]  # matplotlib hands out its words only
    return title


def _place(axes: Axes, which: str) -> tuple[int, ...]:
    spec = axes.get_subplotspec()
    return tuple(attrgetter(which)(spec)) if spec is not None else ()


def _column(axes: Axes) -> tuple[int, ...]:
    return _place(axes, "colspan")


def _row(axes: Axes) -> tuple[int, ...]:
    return _place(axes, "rowspan")
