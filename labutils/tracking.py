"""Progress of long work: one type, and one way to report it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""Called as ``progress(items, description)`` around a loop; returns the items one after the other.

A description says what is done and what is counted: ``"calibration (images)"``.
"""


def tracked(items: Iterable[T], work: str, unit: str, progress: Progress | None) -> Iterable[T]:
    """Return `items`, and report each to `progress`, where somebody waits.

    Parameters
    ----------
    items
        What a loop goes through.
    work, unit
        What the loop does; what an item is, in the plural.
    progress
        None: nothing is reported.
    """
    return progress(items, f"{work} ({unit})") if progress else items
