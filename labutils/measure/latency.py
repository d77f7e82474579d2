"""Latencies of MobileNetV3 on real chips, published by others: quoted with their source.

Nothing here was measured by the lab. The HTP simulator takes this computer's time, which says
nothing about a chip's: neither milliseconds nor which of two models is faster.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

from .. import paths, tabular, typesetting
from ..errors import TableError

FILE = "published_latency.yaml"
_COLUMNS = ("chip", "device", "precision", "ms per image", "input", "runtime", "source")


@dataclass(frozen=True)
class Source:
    """Who published figures, where, and when they were read."""

    name: str
    url: str
    read: str
    runtime: str
    weights: str


@dataclass(frozen=True)
class Figure:
    """One published latency.

    Attributes
    ----------
    chip, part
        Its name, and Qualcomm's part number where it is one of `qnn.SOCS` ("" otherwise).
    device
        What it was measured in.
    precision
        ``int8``, ``a16w8``, ``float``, or what else the source says.
    ms
        Milliseconds for one image, the network alone.
    size
        Side of the input, in pixels.
    where
        Where in the source it stands.
    source
        The source.
    """

    chip: str
    part: str
    device: str
    precision: str
    ms: float
    size: int
    where: str
    source: Source


@dataclass(frozen=True, repr=False)
class Published(typesetting.Shown):
    """All published figures, as a table whose last column leads to the source."""

    rows: tuple[Figure, ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources, in the order of the rows."""
        return tuple(dict.fromkeys(row.source for row in self.rows))

    def of(self, part: str) -> Published:
        """Return the figures of one chip, by part number."""
        return Published(tuple(row for row in self.rows if row.part == part))

    def _cells(self, row: Figure) -> tuple[str, ...]:
        number = self.sources.index(row.source) + 1
        return (
            row.chip, row.device, row.precision, f"{row.ms:g}", f"{row.size} px",
            row.source.runtime, f"[{number}]",
        )  # fmt: skip

    def _notes(self) -> list[str]:
        return [
            f"[{i}] {source.name}, {source.weights}; read on {source.read}: {source.url}"
            for i, source in enumerate(self.sources, 1)
        ]

    def __str__(self) -> str:
        return tabular.text(_TITLE, _COLUMNS, [self._cells(r) for r in self.rows], self._notes())

    def _repr_html_(self) -> str:
        table = tabular.markup(_TITLE, _COLUMNS, [self._cells(row) for row in self.rows])
        links = "".join(
            f'<li><a href="{html.escape(source.url)}">{typesetting.words(source.name)}</a>, '
            f"{typesetting.words(f'{source.weights}; read on {source.read}')}</li>"
            for source in self.sources
        )
        return f"{table}<ol>{links}</ol>"


_TITLE = "Published by others, not measured here: MobileNetV3-Large on real chips"


def published() -> Published:
    """Return the figures of ``data/published_latency.yaml``.

    Raises
    ------
    TableError
        The file lacks something; the message names the row.
    """
    import yaml

    entries = yaml.safe_load((paths.DATA / FILE).read_text("utf-8"))
    try:
        sources = {
            key: Source(**{name: str(value) for name, value in fields.items()})
            for key, fields in entries["sources"].items()
        }
        rows = [Figure(**{**row, "source": sources[row["source"]]}) for row in entries["rows"]]
    except (KeyError, TypeError) as error:
        raise TableError(f"{FILE}: {error}") from None
    return Published(tuple(rows))
