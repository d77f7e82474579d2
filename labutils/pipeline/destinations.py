"""Where a conversion for a target goes: a ``.dlc`` or a ``.tflite``, refused before any work."""

from __future__ import annotations

from pathlib import Path

from .. import dlc, litert, targets

ENDINGS = (".dlc", ".tflite")


def ending(target: str) -> str:
    """Return how the files of a target end; ``.dlc`` for one that does not exist."""
    entry = targets.TARGETS.get(target)
    return entry.ending if entry else ENDINGS[0]


def refuse_impossible(target: str, destination: Path) -> None:
    """Raise when the lab cannot convert for `target`, or not into such a file: before any work.

    Raises
    ------
    UnknownNameError
        No such target.
    UsageError
        A check-only target, another ending than the target's, or a folder that cannot be written.
    """
    if ending(target) == litert.ENDING:
        litert.refuse_impossible(destination)
    else:
        dlc.refuse_impossible(target, destination)
