"""Names, prose and tables as HTML that no page cuts, in a window of any width.

A name breaks after a dot, a slash or an underscore, never inside a word; a table that is wider than
its place scrolls there. JupyterLab's own style does neither.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

LONGEST = 32
"""Letters: a part of a name that is longer breaks inside, because no narrow column holds it."""

WRAPPED = "text-align:left;word-break:normal;overflow-wrap:break-word"
"""Style of words, in HTML: at the left, wrapped at spaces."""

_LONG = 20  # letters: a shorter word is never broken
_SEPARATORS = r"./_:,;=|&?\\"
_AFTER = re.compile(rf"(?<=[{_SEPARATORS}])(?=[^{_SEPARATORS}])")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # of a class name
_FIGURE = re.compile(r"[-+<>≥≤~ ]*(\d|inf|nan|$)")
_PROSE = 40  # letters: a column with longer cells is not squeezed to a word
_RULED = "text-align:right;white-space:nowrap"
_LEGIBLE = 0.7  # of a picture's size; where the page is narrower, it scrolls
_EDGE = r"[^\w\u202a-\u202e\u2066-\u2069]*"  # punctuation around a name; no mark of direction
_TURNING = {"R", "AL", "RLE", "RLO", "LRE", "LRO", "PDF", "RLI", "LRI", "FSI", "PDI"}


class Html(str):
    """Text that is HTML already: it is not escaped again."""


def words(text: str) -> Html:
    """Return `text` escaped, with the places where a long name may break.

    Parameters
    ----------
    text
        Prose or a name; `Html` is returned as it is.

    Returns
    -------
    Html
        Says and copies as the same text: a break is a ``<wbr>``, which is not a letter.
    """
    if isinstance(text, Html):
        return text
    return Html("".join(part if part.isspace() else _isolated(part) for part in _split(text)))


def paragraph(text: str) -> Html:
    """Return `text` as a paragraph."""
    return Html(f'<p style="{WRAPPED}">{words(text)}</p>')


def code(text: str) -> Html:
    """Return a command or a name within a text, set as code."""
    return Html(f"<code>{words(text)}</code>")


def listing(text: str) -> Html:
    """Return lines as they stand, wrapped between words where the page is narrow."""
    style = "white-space:pre-wrap;word-break:normal;overflow-wrap:break-word"
    return Html(f'<pre style="{style}">{words(text)}</pre>')


class Shown:
    """A report with one text, in a terminal and in a notebook: its lines, as they stand.

    A subclass has `__str__`; a dataclass that is one is declared with ``repr=False``.
    """

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return listing(str(self))


class Paragraph(Shown):
    """A report of one or two sentences."""

    def _repr_html_(self) -> str:
        return paragraph(str(self))


def columns(text: str) -> Html:
    """Return lines that are aligned below each other: never wrapped, scrolled where too wide."""
    style = "white-space:pre;word-break:normal;overflow-wrap:normal;overflow-x:auto;font-size:85%"
    return Html(f'<pre style="{style}">{html.escape(text)}</pre>')


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    *,
    named: bool = False,
) -> Html:
    """Return a table in its own box, in which it scrolls where the page is narrow.

    Parameters
    ----------
    head
        Names of the columns; none, or only empty ones, for a table without a head.
    rows
        Text, or `Html`; a row of one cell spans all columns.
    caption
        Above it.
    named
        Whether the first cell of a row is its head.

    Returns
    -------
    Html
        Figures stand at the right, words at the left.
    """
    wide = max([len(head), *map(len, rows)])
    full = [row for row in rows if len(row) == wide]
    styles = [_style([row[i] for row in full]) for i in range(wide)]
    top = "".join(
        f'<th scope="col" style="{_headed(style)}">{words(name)}</th>'
        for name, style in zip(head, styles, strict=False)
    )
    top = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    body = "".join(f"<tr>{_row(row, styles, named)}</tr>" for row in rows)
    said = f'<caption style="{WRAPPED}">{words(caption)}</caption>' if caption else ""
    return scrolling(f"<table>{said}{top}<tbody>{body}</tbody></table>")


def scrolling(markup: str) -> Html:
    """Return a wide part of a page in a box in which it scrolls."""
    # asks for no width and takes what there is: a flexible box, as of a widget, would grow with it
    return Html(f'<div style="overflow-x:auto;width:0;min-width:100%">{markup}</div>')


def shrinking(width: int) -> str:
    """Return the style of a picture of `width` pixels: it shrinks while its letters can be read."""
    return f"display:block;max-width:100%;min-width:{round(_LEGIBLE * width)}px;height:auto"


def lines(text: str, room: float, measure: Callable[[str], float] = len) -> list[str]:
    """Break `text` into lines of at most `room`: after a space, or where a long name may break.

    Parameters
    ----------
    text
        One line.
    room
        In the unit of `measure`: letters, by default.
    """
    found = [""]
    for part in re.findall(r"\S+\s*", text):
        for piece in pieces(part):
            if found[-1] and measure(found[-1] + piece.rstrip()) > room:
                found.append("")
            found[-1] += piece
    return [line.rstrip() for line in found]


def pieces(word: str) -> Iterator[str]:
    """Yield the parts of a name between which it may break; joined, they are the name."""
    for part in _AFTER.split(word):
        humps = _HUMP.split(part) if len(part) > LONGEST else [part]
        for piece in humps:
            yield from (piece[i : i + LONGEST] for i in range(0, len(piece), LONGEST))


def _row(row: Sequence[str], styles: Sequence[str], named: bool) -> str:
    if len(row) == 1 < len(styles):
        return f'<td colspan="{len(styles)}" style="{WRAPPED}">{words(row[0])}</td>'
    cells = [
        f'<td style="{style}">{words(cell)}</td>' for cell, style in zip(row, styles, strict=False)
    ]
    if named:
        cells[0] = f'<th scope="row" style="{styles[0]}">{words(row[0])}</th>'
    return "".join(cells)


def _style(cells: Sequence[str]) -> str:
    """Return the style of a column: right where every cell begins as a figure does."""
    longest = max((len(cell) for cell in cells if not isinstance(cell, Html)), default=0)
    figures = all(_FIGURE.match(cell) for cell in cells)
    if figures and longest <= LONGEST:
        return _RULED
    return f"{WRAPPED};min-width:16em" if longest > _PROSE else WRAPPED


def _headed(style: str) -> str:
    return "text-align:right" if style == _RULED else style


def _split(text: str) -> Iterable[str]:
    return filter(None, re.split(r"(\s+)", text))


def _word(word: str) -> str:
    if len(word) > _LONG:
        shown = "<wbr>".join(html.escape(piece) for piece in pieces(word))
    else:
        shown = html.escape(word)
        if re.search(r"\w-\w", word):  # 1e-7, snpe-2.7: a browser breaks after the hyphen
            shown = f'<span style="white-space:nowrap">{shown}</span>'
    return shown


def _isolated(word: str) -> str:
    """Keep a right-to-left name from turning the text around it."""
    if not any(unicodedata.bidirectional(letter) in _TURNING for letter in word):
        return _word(word)
    before, name, after = re.findall(f"\\A({_EDGE})(.*?)({_EDGE})\\Z", word, re.DOTALL)[0]
    return f"{html.escape(before)}<bdi>{_word(name)}</bdi>{html.escape(after)}"
