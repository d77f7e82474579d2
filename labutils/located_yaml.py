"""YAML whose mistakes are reported by file, line and key."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from . import untrusted
from .errors import LabError

Path = tuple[str | int, ...]
Fail = Callable[[Path, str], LabError]
"""Called with where and what is wrong; returns the error to raise."""


_MAX_NODES = 10_000  # aliases counted as what they stand for; the largest table has 1,437
_TOO_MANY = "it holds more than {:,} values, what aliases stand for included"


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, which YAML would silently overwrite.

    It also refuses what is nested too deep, and aliases that stand for too much. It reads ``1e-4``
    as a number, as JSON and YAML 1.2 do, and a tab of indented JSON as a space.
    """

    _depth = _nodes = 0
    most = _MAX_NODES

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._nodes += 1
        if self._nodes > self.most:
            words = _TOO_MANY.format(self.most)
            raise yaml.composer.ComposerError(None, None, words, self._place())
        if self._depth > untrusted.MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None,
                None,
                f"nested more than {untrusted.MAX_DEPTH} deep",
                self._place(),
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _place(self) -> Any:
        reader: Any = self  # PyYAML has no types for its own steps
        return reader.peek_event().start_mark

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # the base class refuses it
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{untrusted.shown(key.value)} is given twice", key.start_mark
                )
            seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number: int = super().construct_yaml_int(node)
        if abs(number) >= 2**63:  # beyond 4,300 digits Python cannot even print it
            raise yaml.constructor.ConstructorError(
                None, None, "an integer of more than 64 bits", node.start_mark
            )
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    """Puts into quotes what `_Loader` would read as a number."""


_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def written(data: Any) -> str:
    """Return plain values as YAML that `read` reads back, keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)


def read(
    text: str, file: str, what: str, error: type[LabError], most: int = _MAX_NODES
) -> tuple[Any, Fail]:
    """Return what `text` holds, and a function that makes an error naming a key's line.

    Parameters
    ----------
    text, file
        The YAML text; its name, for messages.
    what
        What the text should be, for messages, e.g. ``"a recipe"``.
    error
        The exception to raise and to make.
    most
        Values that the text may hold.
    """
    if len(text) > untrusted.MAX_TEXT_BYTES:
        raise error(f"{file} has {len(text):,} characters, too many for {what}.")
    try:
        loader = _Loader(text.replace("\t", " ") if text.lstrip()[:1] in "{[" else text)
        loader.most = most
        root = loader.get_single_node()
        _refuse_bomb(root, most)
        data = None if root is None else loader.construct_document(root)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(problem, "problem", None) or "no YAML"
        raise error(f"{file}{where}: not readable as {what}: {reason}.") from None
    except _NOT_A_VALUE as problem:  # the 31st of February, a number of 5,000 digits
        reason = str(problem).partition(";")[0][:200]
        raise error(f"{file}: not readable as {what}: {reason}.") from None

    def fail(path: Path, problem: str) -> LabError:
        key = ".".join(str(step)[:100] for step in path) or "(the whole file)"
        end = "" if problem.endswith("?") else "."
        return error(f"{file}, line {_line(root, path)}: {key}: {problem}{end}")

    return data, fail


_NOT_A_VALUE = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError)


def _refuse_bomb(root: yaml.Node | None, most: int) -> None:
    """Refuse aliases that refer to what they are in, or stand for too many values in all."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = most  # until it is known: what holds itself holds too much
            parts = node.value
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in node.value for part in pair]
            sizes[id(node)] = 1 + sum(map(size, parts))
        if sizes[id(node)] > most:
            words = _TOO_MANY.format(most)
            raise yaml.constructor.ConstructorError(None, None, words, node.start_mark)
        return sizes[id(node)]

    if root is not None:
        size(root)


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
