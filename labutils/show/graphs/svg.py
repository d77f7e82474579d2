"""SVG text: the picture object, the marks of the four verdicts, escaped words."""

from __future__ import annotations

import base64
import html
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from ... import paths, typesetting
from ...errors import UsageError

_INK = "#1a1a1a"

# Per verdict: dark colour (text and border), tint, border width, dash pattern, symbol as a path
# in a 12 px square. After Okabe & Ito's palette, darkened until text has a contrast above 5:1.
STYLES = {
    "supported": ("#00664a", "#d5efe6", 1.5, "", "M2 6.5L5 9.5L10.5 2.5"),
    "constrained": ("#7a5200", "#fbe7c0", 2, "7 3", "M6 1.5V7.5M6 9.5V11"),
    "unsupported": ("#9c3800", "#fad9c8", 3.5, "", "M2 2L10 10M10 2L2 10"),
    "unknown": ("#3d3d5c", "#e4e4ee", 2, "2 3", "M3 4A3 3 0 1 1 6 7V8M6 10V11"),
}


# Widths of letters in DejaVu Sans Bold, in parts of the size, by kind and rounded up: the widest of
# the fonts that a picture asks for.
_WIDE = dict.fromkeys("mwMW@%…—–→≠≤≥", 1.11)
_CAPITALS = dict.fromkeys("ABCDEFGHJKLNOPQRSTUVXYZ&×+=<>~−", 0.85)
_SLIM = dict.fromkeys("fijlrtI.,:;/|()[]'-! ", 0.5)
_LETTERS = _WIDE | _CAPITALS | _SLIM
_REGULAR = 0.93  # as wide as the bold letters, at most
_SMALL = 0.72  # any other letter of ASCII, bold


@dataclass(frozen=True)
class Svg:
    """A picture with the sentence that says what is on it.

    Attributes
    ----------
    data
        The SVG document.
    alt
        What to see; the HTML form carries it as alternative text.
    """

    data: str
    alt: str

    def __str__(self) -> str:
        return self.alt

    def __repr__(self) -> str:
        return f"<Svg: {self.alt}>"

    def _repr_svg_(self) -> str:
        return self.data

    @property
    def width(self) -> int:
        """In pixels; 0 where the document does not say."""
        found = re.search(r'viewBox="0 0 (\d+) \d+"', self.data)
        return int(found[1]) if found else 0

    def _repr_html_(self) -> str:
        # An image, not inline SVG: viewers that clean HTML keep it, and its alt text with it.
        coded = base64.b64encode(self.data.encode()).decode()
        return typesetting.scrolling(
            f'<img alt="{clean(self.alt)}" style="{typesetting.shrinking(self.width)}" '
            f'src="data:image/svg+xml;base64,{coded}">'
        )

    def save(self, path: str | Path) -> Path:
        """Write the picture to a ``.svg`` file, all of it or nothing, and return the path."""
        path = Path(path)
        if path.suffix != ".svg":
            raise UsageError(f"A graph is drawn as .svg, not as {path.suffix or 'no type'}: {path}")
        paths.write_text(path, self.data)
        return path


def symbol(verdict: str, x: int, y: int) -> str:
    """Return a verdict's mark: a tick, an exclamation mark, a cross or a question mark."""
    dark, *_, path = STYLES[verdict]
    return (
        f'<g transform="translate({x} {y})"><circle cx="6" cy="6" r="8" fill="#ffffff"/>'
        f'<path d="{path}" fill="none" stroke="{dark}" stroke-width="2.2"/></g>'
    )


def text(x: int, y: int, words: str, style: str = "") -> str:
    """Return `words`, escaped, with the baseline at (x, y)."""
    fill = "" if "fill=" in style else f' fill="{_INK}"'
    return f'<text x="{x}" y="{y}"{fill}{" " + style if style else ""}>{clean(words)}</text>'


def clean(words: str) -> str:
    """Escape a name for XML; characters that XML forbids become U+FFFD."""
    return html.escape(
        re.sub("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", words)
    )


def breadth(words: str, size: float, bold: bool = False) -> int:
    """Return how wide `words` are at most in a font of `size`, both in pixels.

    Estimated from kinds of letters, not measured: equal on every machine.
    """
    return round(size * (1 if bold else _REGULAR) * sum(map(_letter, words)) + 0.5)


def _letter(letter: str) -> float:
    if letter in _LETTERS:
        return _LETTERS[letter]
    if letter.isascii():
        return _SMALL
    if unicodedata.combining(letter):
        return 0.0
    return 1.1 if unicodedata.east_asian_width(letter) in "WF" else 0.9


def fitted(words: str, room: float, size: float, bold: bool = False) -> str:
    """Shorten a line to `room` pixels; a dotted path loses its start, all else its end."""
    path = "." in words and " " not in words
    short = words
    while breadth(short, size, bold) > room and len(short) > 2:
        short = "…" + short.removeprefix("…")[1:] if path else short.removesuffix("…")[:-1] + "…"
    return short


def wrapped(words: str, room: float, size: float, bold: bool = False) -> list[str]:
    """Break a line after a space, a dot, a slash or an underscore, to at most `room` pixels."""
    return typesetting.lines(words, room, lambda line: breadth(line, size, bold))
