"""YAML whose mistakes are told by file, line and key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from .errors import LabError

Path = tuple[str | int, ...]
Fail = Callable[[Path, str], LabError]
"""Called with where and what is wrong; returns the error to raise."""


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, which YAML would silently overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # the base class refuses it
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(text: str, file: str, what: str, error: type[LabError]) -> tuple[Any, Fail]:
    """Return what `text` holds, and a function that makes an error naming a key's line.

    Parameters
    ----------
    text, file
        The YAML text; its name, for messages.
    what
        What the text should be, for messages, e.g. ``"a recipe"``.
    error
        The exception to raise and to make.
    """
    try:
        data = yaml.load(text, _Loader)  # a SafeLoader
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(problem, "problem", None) or "no YAML"
        raise error(f"{file}{where}: not readable as {what}: {reason}.") from None

    def fail(path: Path, problem: str) -> LabError:
        key = ".".join(map(str, path)) or "(the whole file)"
        end = "" if problem.endswith("?") else "."
        return error(f"{file}, line {_line(root, path)}: {key}: {problem}{end}")

    return data, fail


def _line(node: yaml.Node | None, path: Path) -> int:
    """Return the line of the last element of `path` that exists."""
    line = node.start_mark.line + 1 if node else 1
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(step)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            found = [(v, v) for v in node.value[step : step + 1]]
        else:
            found = []
        if not found:
            break
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return line
