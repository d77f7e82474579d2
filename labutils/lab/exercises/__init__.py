"""The exercises of the notebooks, one module per notebook: `find`, `of`, `everything`."""

from __future__ import annotations

import importlib

from ...errors import UnknownNameError
from ..exercise import Exercise

NOTEBOOKS = ("00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11", "12")
"""The numbers of the notebooks; all of them have exercises."""


def of(notebook: str) -> tuple[Exercise, ...]:
    """Return the exercises of a notebook such as ``"03"``, in order; () for none such."""
    if notebook not in NOTEBOOKS:
        return ()
    return importlib.import_module(f".ex{notebook}", __name__).EXERCISES


def everything() -> tuple[Exercise, ...]:
    """Return all exercises, in order."""
    return tuple(exercise for notebook in NOTEBOOKS for exercise in of(notebook))


def find(id: str) -> Exercise:
    """Return the exercise with this id, such as ``"03.1"``.

    Raises
    ------
    UnknownNameError
        There is none; the message suggests the nearest.
    """
    for exercise in of(str(id).partition(".")[0]):
        if exercise.id == id:
            return exercise
    raise UnknownNameError("exercise", str(id), [exercise.id for exercise in everything()])
