"""Functions of a notebook as a program that a tool's environment runs."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import paths
from ..errors import UsageError


def write_program(file: str | Path, head: str, *functions: Callable[..., Any]) -> Path:
    """Write functions as a Python file, for `calling.opened`.

    Parameters
    ----------
    file
        The file to write.
    head
        What stands above the functions: the imports that they need there.
    *functions
        Defined in a notebook's cells, or in a file; only their text goes over, no values.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    UsageError
        The text of a function is not known.
    """
    paths.write_text(file, "\n\n\n".join([head.strip(), *map(_text, functions)]) + "\n")
    return Path(file)


def count_lines(*functions: Callable[..., Any]) -> int:
    """Return how many lines of text functions have, empty ones left out."""
    return sum(bool(line.strip()) for text in map(_text, functions) for line in text.splitlines())


def _text(function: Callable[..., Any]) -> str:
    try:
        return textwrap.dedent(inspect.getsource(function)).strip()
    except (OSError, TypeError):
        name = getattr(function, "__name__", str(function))
        raise UsageError(
            f"The text of {name} is not known. Define it in a cell of a notebook, or in a file."
        ) from None
