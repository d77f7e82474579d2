"""One table, written twice: as aligned text and as HTML that says the same."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 120  # columns of a terminal, and of a printed page

WORDS = "text-align:left;word-break:normal;overflow-wrap:break-word"
"""Style of a cell with words, in HTML: at the left, wrapped at spaces (JupyterLab's is neither)."""

Rows = Sequence[Sequence[str]]


class Table:
    """A report that is one table, in a terminal and in a notebook.

    A dataclass that is one has `_parts`, and is declared with ``repr=False``.
    """

    def _parts(self) -> tuple[str, Sequence[str], Rows, Iterable[str]]:
        """Return title, columns, rows and notes."""
        raise NotImplementedError

    def __str__(self) -> str:
        return text(*self._parts())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return markup(*self._parts())


def text(title: str, columns: Sequence[str], rows: Rows, notes: Iterable[str] = ()) -> str:
    """Return `rows` under `columns` as aligned text; title and notes are wrapped to `WIDTH`."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [_line(columns, widths), _line(["-" * width for width in widths], widths)]
    lines += [_line(row, widths) for row in rows]
    return "\n".join(
        [*_wrapped(title), *lines, *(line for note in notes for line in _wrapped(note))]
    )


def markup(title: str, columns: Sequence[str], rows: Rows, notes: Iterable[str] = ()) -> str:
    """Return the same table as HTML: figures to the right, words to the left, all escaped."""
    sides = [_side([row[i] for row in rows]) for i in range(len(columns))]
    head = "".join(
        f'<th scope="col" {side}>{html.escape(name)}</th>'
        for name, side in zip(columns, sides, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td {s}>{html.escape(c)}</td>" for c, s in zip(row, sides, strict=True))
        + "</tr>"
        for row in rows
    )
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    caption = f"<caption>{html.escape(title)}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def shortened(name: str, width: int) -> str:
    """Return `name` in at most `width` characters; the end of a node's name says the most."""
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]


def clipped(name: str, width: int) -> str:
    """Return `name` in at most `width` characters; the start of a class name says the most."""
    return name if len(name) <= width else name[: width - 1] + "…"


def _side(cells: Sequence[str]) -> str:
    """Return the style of a column: right where every cell begins as a figure does."""
    figures = all(re.match(r"[-+<>≥≤~ ]*(\d|inf|nan|$)", cell) for cell in cells)
    # words wrap at spaces, whatever the page's own style does with long lines
    return 'style="text-align:right"' if figures else f'style="{WORDS}"'


def _wrapped(note: str) -> list[str]:
    return textwrap.wrap(note, WIDTH, subsequent_indent="  ")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
    return "  ".join(aligned).rstrip()
