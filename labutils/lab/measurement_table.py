"""What a notebook measured, as a table that says in what unit, on how many, and where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .. import typesetting
from . import recorded


@dataclass(frozen=True, repr=False)
class Measurements(typesetting.Shown):
    """A table of measured values.

    Attributes
    ----------
    rows
        (what, value, unit, n), all as text.
    caption
        On which machine, and what of it was simulated.
    """

    rows: tuple[tuple[str, str, str, str], ...]
    caption: str

    _HEAD = ("what", "value", "unit", "n")

    def __str__(self) -> str:
        table = [self._HEAD, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        lines = [
            "  ".join(
                [
                    row[0].ljust(widths[0]),
                    row[1].rjust(widths[1]),
                    row[2].ljust(widths[2]),
                    row[3].rjust(widths[3]),
                ]
            )
            for row in table
        ]
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join([*lines, self.caption])

    def _repr_html_(self) -> str:
        return typesetting.table(self._HEAD, self.rows, self.caption, named=True)


def measurements(
    rows: Iterable[tuple[str, Any, str, int]], *, simulated: bool = False
) -> Measurements:
    """Return the table of what a notebook measured.

    Parameters
    ----------
    rows
        (what, value, unit, n): a value of None was not measured here. n is the number of images,
        runs or elements that the value rests on.
    simulated
        Whether rows come from the HTP simulator; the caption says so.
    """
    told = tuple((what, _text(value), unit, f"{n:,}") for what, value, unit, n in rows)
    caption = f"Measured on this machine: {recorded.machine()}."
    if simulated:
        caption += " HTP rows: simulated on this CPU, not run on a device."
    return Measurements(told, caption)


def _text(value: Any) -> str:
    if value is None:
        return "not run here"
    value = value.item() if hasattr(value, "item") else value  # numpy and torch scalars
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{float(value):.4g}"
