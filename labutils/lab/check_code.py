"""The code that judges an exercise, to read as one reads a test.

`of` collects it from the source: the judge, the functions called ``judge_...`` that it hands parts
to, and the constants that these read. What makes their inputs, and what puts a mistake into words,
is listed by name, and follows with ``whole=True``.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from .exercise import Exercise

_HEAD = """\
# {id} {title}
# The check calls {judge}({answer}).
# `call` runs your code, with a limit on its time. `raise NotYet(...)` ends the check with that
# sentence; without one, you have PASSED.
"""


@dataclass(frozen=True)
class CheckCode:
    """Python code that a notebook shows in colors, and a terminal as it is."""

    code: str

    def __str__(self) -> str:
        return self.code

    def __repr__(self) -> str:
        return self.code

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.code}\n```"


def of(exercise: Exercise, *, whole: bool = False) -> CheckCode:
    """Collect the code that judges an exercise.

    Parameters
    ----------
    exercise
        Whose.
    whole
        With all the functions of the exercises that the judge leads to.
    """
    reached = list(_reached(exercise.judge))
    shown = [f for f in reached if whole or f.__name__.lstrip("_").startswith("judge_")]
    constants = {name: text for f in shown for name, text in _constants(f).items()}
    head = _HEAD.format(
        id=exercise.id, title=exercise.title, judge=exercise.judge.__name__, answer=exercise.answer
    )
    parts = [head.rstrip(), "\n".join(constants.values())]
    parts += [inspect.getsource(function).rstrip() for function in shown]
    parts += [_listed(exercise.id, [f for f in reached if f not in shown])]
    return CheckCode("\n\n\n".join(part for part in parts if part))


def _reached(judge: Callable) -> Iterator[Any]:
    """Yield a judge and the functions of the exercises that it reads, in the order of reading."""
    waiting, seen = [judge], {judge}
    while waiting:
        function = waiting.pop(0)
        yield function
        for name in _names(function):
            value = inspect.unwrap(function).__globals__.get(name)
            if _is_of_the_exercises(value) and value not in seen:
                seen.add(value)
                waiting.append(value)


def _is_of_the_exercises(value: Any) -> bool:
    value = inspect.unwrap(value) if callable(value) else value
    return isinstance(value, FunctionType) and value.__module__.startswith(
        f"{__package__}.exercises."
    )


def _names(function: Callable) -> list[str]:
    """Name what a function reads, in the order of its lines."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    read = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    read.sort(key=lambda node: (node.lineno, node.col_offset))
    return list(dict.fromkeys(node.id for node in read))


def _constants(function: Callable) -> dict[str, str]:
    """Return the constants of its module that a function reads: name -> source."""
    module = sys.modules[inspect.unwrap(function).__module__]
    source = inspect.getsource(module)
    names = set(_names(function))
    found = {}
    for node in ast.parse(source).body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        for target in targets:
            if isinstance(target, ast.Name) and target.id in names:
                lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
                found[target.id] = "\n".join(lines)
    return found


def _listed(id: str, functions: list[FunctionType]) -> str:
    """List functions that are not shown, each with what it says of itself."""
    if not functions:
        return ""
    lines = [f'# Not shown here; show_check("{id}", whole=True) has them too:']
    explain = [f.__name__ for f in functions if f.__name__.startswith("_explain")]
    for function in functions:
        if function.__name__ not in explain:
            doc = inspect.getdoc(function)
            lines += _comment(
                f"{function.__name__}: {doc.splitlines()[0]}" if doc else function.__name__
            )
    if explain:
        lines += _comment(f"{', '.join(explain)}: which sentence a mistake gets.")
    return "\n".join(lines)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 96, initial_indent="#   ", subsequent_indent="#     ")
