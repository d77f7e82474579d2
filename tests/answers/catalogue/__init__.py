"""The catalogue: answers that learners give, and the whole sentence that each wrong one gets.

One module per notebook. ``@right("03.1")`` and ``@wrong("03.1", sentence)`` stand above a function
or class that is the answer; ``@right_value`` and ``@wrong_value`` above one that returns it.
"""

import ast
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from labutils.lab.exercises import NOTEBOOKS


@dataclass(frozen=True)
class Case:
    """One answer: its exercise, the sentence that it gets ("" for a right one), and where it is."""

    id: str
    sentence: str
    written: Callable
    returned: bool
    line: int  # of its decorator

    def answer(self) -> Any:
        """Return the answer; made anew where a function returns it."""
        return self.written() if self.returned else self.written

    @property
    def source(self) -> str:
        """The code of the answer, without its decorator, which holds the sentence."""
        return _sources(Path(inspect.getfile(self.written)))[self.line]


@cache
def _sources(file: Path) -> dict[int, str]:
    """Map the line of each decorator to the code below it; many answers have the same name."""
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.decorator_list:
            line = node.decorator_list[0].lineno
            node.decorator_list = []
            found[line] = ast.unparse(node)
    return found


_CASES: list[Case] = []


def _registered(id: str, sentence: str, returned: bool) -> Callable:
    line = inspect.currentframe().f_back.f_back.f_lineno

    def register(written: Callable) -> Callable:
        _CASES.append(Case(id, sentence, written, returned, line))
        return written

    return register


def right(id: str) -> Callable:
    """Register a right answer."""
    return _registered(id, "", False)


def right_value(id: str) -> Callable:
    """Register a right answer that the function below returns."""
    return _registered(id, "", True)


def wrong(id: str, sentence: str) -> Callable:
    """Register a wrong answer, with the sentence that it gets."""
    return _registered(id, sentence, False)


def wrong_value(id: str, sentence: str) -> Callable:
    """Register a wrong answer that the function below returns."""
    return _registered(id, sentence, True)


def right_cases(id: str = "") -> list[Case]:
    """List the right answers to an exercise, or to all."""
    return [case for case in _all() if not case.sentence and case.id.startswith(id)]


def wrong_cases(id: str = "") -> list[Case]:
    """List the wrong answers to an exercise, or to all."""
    return [case for case in _all() if case.sentence and case.id.startswith(id)]


def _all() -> list[Case]:
    for notebook in NOTEBOOKS:
        importlib.import_module(f"{__name__}.ex{notebook}")
    return _CASES
