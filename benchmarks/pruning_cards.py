"""Cards of benchmarks/pruning.py: what a row's network is, what was measured, and which are right.

A card knows which images of the split its network names rightly. So the rows of a table are
compared image by image although their networks were made on different days, and are gone.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labutils import paths

FOLDER = "pruned"


@dataclass(frozen=True)
class Card:
    """What is kept of a row.

    Attributes
    ----------
    row
        Its id.
    facts
        What its network is and was made from. A card holds for these, and for no others.
    found
        What is known of it only when it is made: its widths, zeros and digests.
    figures
        What was measured.
    right
        Which images of the split it names rightly, as bits in base64; None where the figures say
        already how it compares.
    made
        The command, the date and the versions.
    """

    row: str
    facts: dict[str, Any]
    found: dict[str, Any]
    figures: dict[str, Any]
    right: str | None
    made: list[str]

    def correct(self) -> np.ndarray:
        """Return for every image whether the network names it rightly."""
        assert self.right is not None
        bits = np.frombuffer(base64.b64decode(self.right), np.uint8)
        return np.unpackbits(bits, count=self.facts["images"]).astype(bool)

    def write(self, folder: Path) -> None:
        """Keep the card, below a folder of results."""
        paths.write_text(file(folder, self.row), json.dumps(vars(self), indent=1) + "\n")


def packed(correct: np.ndarray) -> str:
    """Return as text which of the images are right."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")


def file(folder: Path, row: str) -> Path:
    """Return where the card of a row is, below a folder of results."""
    return paths.folder(folder / FOLDER) / f"{row.translate(str.maketrans('/=,', '___'))}.json"


def read(folder: Path, row: str, facts: dict[str, Any]) -> Card | None:
    """Return the card of a row; None where there is none, or one of another network."""
    place = file(folder, row)
    if not place.is_file():
        return None
    card = Card(**json.loads(place.read_text("utf-8")))
    return card if card.facts == json.loads(json.dumps(facts)) else None
