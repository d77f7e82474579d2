"""One table, written twice: as aligned text and as HTML that says the same."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from . import typesetting

WIDTH = 120  # columns of a terminal, and of a printed page

Rows = Sequence[Sequence[str]]


class Table(typesetting.Shown):
    """A report that is one table, in a terminal and in a notebook.

    A dataclass that is one has `_parts`, and is declared with ``repr=False``.
    """

    def _parts(self) -> tuple[str, Sequence[str], Rows, Iterable[str]]:
        """Return title, columns, rows and notes."""
        raise NotImplementedError

    def __str__(self) -> str:
        return text(*self._parts())

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
    below = "".join(map(typesetting.paragraph, notes))
    return typesetting.table(columns, rows, title) + below


def shortened(name: str, width: int) -> str:
    """Return `name` in at most `width` characters; the end of a node's name says the most."""
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]


def clipped(name: str, width: int) -> str:
    """Return `name` in at most `width` characters; the start of a class name says the most."""
    return name if len(name) <= width else name[: width - 1] + "…"


def _wrapped(note: str) -> list[str]:
    return textwrap.wrap(note, WIDTH, subsequent_indent="  ")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
    return "  ".join(aligned).rstrip()
