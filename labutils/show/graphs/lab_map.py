"""The way through the lab as a picture: its notebooks, and what each leaves for the next."""

from __future__ import annotations

from dataclasses import dataclass

from ... import paths
from .svg import Svg, text

__all__ = ["lab_map"]


@dataclass(frozen=True)
class _Stop:
    number: str
    title: str
    question: str
    leaves: str
    files: str = ""  # glob in the folder of artifacts


_STOPS = (
    _Stop("00", "Start here", "What can this machine do?", "nothing, yet"),
    _Stop("01", "Fetch MobileNetV3", "What do I have?", "ONNX, opset 13 and 17", "01_*.onnx"),
    _Stop("02", "Converter errors", "Why does it say no?", "a diagnosis", "02_*"),
    _Stop("03", "Replace layers", "Same answers, new parts?", "a repaired network", "03_*.onnx"),
    _Stop(
        "04", "Export and convert", "It succeeded. Is it right?", "a DLC that was run", "04_*.dlc"
    ),
    _Stop("05", "Quantize", "What do 8 bits cost?", "int8 and a16w8 files", "05_*.onnx"),
    _Stop("06", "Run on device", "What arrives at the chip?", "context binary, ladder", "06_*"),
    _Stop("07", "Model surgery", "What does a cut cost?", "a lite network, its edits", "07_*"),
    _Stop("08", "Quantization in depth", "Where does it hurt, and why?", "a mixed recipe", "08_*"),
    _Stop("09", "Your own data", "Does it hold for mine?", "a DLC of your own", "09_*"),
    _Stop("10", "Prune", "Which parts are not needed?", "a smaller network", "10_*"),
    _Stop("11", "LiteRT", "And on any other phone?", "four .tflite files", "11_*.tflite"),
    _Stop("12", "The RDK X5", "And on another board?", "nothing here"),
)
_WIDTH, _BOX, _HIGH, _GAP = 772, 236, 104, 28
_COLUMNS = 3
_INK, _LINE = "#1a1a1a", "#5a5a5a"
_TINTS = (
    "#ececec", "#dce9f5", "#fad9c8", "#f0dfec", "#dce9f5", "#fbe7c0", "#d5efe6", "#ececec",
    "#dce9f5", "#d5efe6", "#fad9c8", "#fbe7c0", "#f0dfec",
)  # fmt: skip


def lab_map() -> Svg:
    """Draw the notebooks with their questions and what they leave behind.

    Returns
    -------
    Svg
        Files that are on this machine already are marked "here already".
    """
    parts = [_stop(number) for number in range(len(_STOPS))]
    rows = -(-len(_STOPS) // _COLUMNS)
    height = rows * _HIGH + (2 * rows - 1) * _GAP
    here = [stop.number for stop in _STOPS if _present(stop)]
    done = f" Left behind already: by {', '.join(here)}." if here else " Nothing was made yet."
    alt = "; ".join(f"{s.number} {s.title} leaves {s.leaves}" for s in _STOPS)
    alt = f"The way through the lab: {alt}."
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    font = 'font-family="DejaVu Sans, Verdana, sans-serif"'
    ground = f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>'
    inside = f"{ground}{_arrows()}{''.join(parts)}"
    return Svg(f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>{inside}</svg>', alt + done)


def _present(stop: _Stop) -> bool:
    return bool(stop.files) and any(paths.generated().glob(stop.files))


def _corner(number: int) -> tuple[int, int]:
    """Return the upper left corner of a box: rows of three."""
    row, column = divmod(number, _COLUMNS)
    return 6 + column * (_BOX + 26), _GAP // 2 + row * (_HIGH + 2 * _GAP)


def _stop(number: int) -> str:
    stop, (x, y) = _STOPS[number], _corner(number)
    border = 'stroke-width="3"' if _present(stop) else 'stroke-width="1.2"'
    leaves = f"✓ {stop.leaves}" if _present(stop) else f"→ {stop.leaves}"
    below = "here already" if _present(stop) else ""
    return (
        f'<rect x="{x}" y="{y}" width="{_BOX}" height="{_HIGH}" rx="8" fill="{_TINTS[number]}" '
        f'stroke="{_INK}" {border}/>'
        + text(x + 12, y + 25, f"{stop.number}  {stop.title}", 'font-size="13" font-weight="bold"')
        + text(x + 12, y + 49, stop.question, 'font-size="11" font-style="italic"')
        + text(x + 12, y + 75, leaves, 'font-size="11"')
        + text(x + 12, y + 93, below, 'font-size="10.5"')
    )


def _arrows() -> str:
    lines = []
    for number in range(len(_STOPS) - 1):
        (x, y), (a, b) = _corner(number), _corner(number + 1)
        if y == b:
            lines.append(f"M{x + _BOX} {y + _HIGH // 2}H{a - 3}")
        else:  # from the end of the first row to the start of the second
            turn = y + _HIGH + _GAP
            lines.append(f"M{x + _BOX // 2} {y + _HIGH}V{turn}H{a + _BOX // 2}V{b - 3}")
    path = "".join(lines)
    return (
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{_LINE}"/></marker></defs>'
        + "".join(
            f'<path d="M{line}" fill="none" stroke="{_LINE}" stroke-width="2" '
            'marker-end="url(#a)"/>'
            for line in path.split("M")[1:]
        )
    )
