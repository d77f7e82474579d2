"""Execute the graph inside a DLC file."""

from __future__ import annotations


def load(path: str, options: dict[str, str]) -> object:
    """Not built yet."""
    raise NotImplementedError(path)
