"""Values that someone wrote, checked against a dataclass that declares what is allowed.

Types, `Literal` words, and limits (annotated_types) stand in the annotations of a frozen dataclass.
pydantic checks the values against them; this module turns the place and the kind of a mistake into
a line (`located_yaml`) and a sentence. msgspec, which is smaller, was tried: its errors are
finished sentences in which the keys of a mapping are ``[...]``, so the line would be lost.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import types
import typing
import warnings
from typing import Any, TypeVar, cast

import annotated_types

from . import located_yaml, untrusted
from .errors import EarlierFormatWarning, LabError, UsageError
from .located_yaml import Fail, Path

if typing.TYPE_CHECKING:
    from collections.abc import Hashable

    import pydantic

T = TypeVar("T")


def read_as(
    kind: type[T],
    text: str,
    file: str,
    what: str,
    error: type[LabError],
    *,
    newest: int | None = None,
    note: bool = False,
) -> tuple[T, Fail]:
    """Return what `text` holds as an instance of the dataclass `kind`, every value checked.

    Parameters
    ----------
    kind
        A dataclass; its annotations say what is allowed.
    text, file, what, error
        As in `located_yaml.read`.
    newest
        The newest ``format`` number that is read, for files that carry one.
    note
        Whether to say in a line that a file has no format number.

    Returns
    -------
    The instance, and the function that makes an error for what annotations cannot say.
    """
    data, fail = located_yaml.read(text, file, what, error)
    values = data if newest is None else without_format(data, newest, fail)
    made = checked(kind, values, fail)
    if note and newest is not None:
        note_missing_format(data, newest, file)
    return made, fail


def without_format(data: Any, newest: int, fail: Fail, path: Path = ()) -> Any:
    """Return a mapping without its ``format``, after checking that this lab reads that one.

    A mapping without one was written by hand or before there were format numbers, and is read.
    """
    if not isinstance(data, dict):
        return data
    number = data.get("format", 1)
    if type(number) is not int or number < 1:
        raise fail((*path, "format"), f"expected a whole number from 1 on, found {_found(number)}")
    if number > newest:
        raise fail(
            (*path, "format"),
            f"format {untrusted.shown(number)} was written by a newer version; this lab reads up "
            f"to {newest}. Update it to read this file",
        )
    return {key: value for key, value in data.items() if key != "format"}


def note_missing_format(data: Any, newest: int, file: str) -> None:
    """Say in a line that a file, which was read, has no format number."""
    if "format" not in data:
        warnings.warn(
            f"{file} has no format number: an earlier version wrote it, or you did. What it "
            f"leaves out has today's defaults; `format: {newest}` says that this is meant.",
            EarlierFormatWarning,
            stacklevel=2,
        )


def checked(kind: type[T], data: Any, fail: Fail, path: Path = ()) -> T:
    """Return plain values as an instance of the dataclass `kind`.

    Parameters
    ----------
    data
        As `located_yaml.read` returns it, or the part of that at `path`.
    """
    import pydantic

    _refuse_other_values(data, path, fail)
    try:
        # as JSON, because there a list is a tuple, and yet 1 is not True and "8" is not 8
        adapter: pydantic.TypeAdapter[T] = _adapter(cast("Hashable", kind))
        return adapter.validate_json(json.dumps(data), strict=True, extra="forbid")
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where, words = _worded(kind, problem)
        raise fail((*path, *where), words) from None


def check_fields(made: Any) -> None:
    """Check the values of a frozen dataclass that was made in Python, in its ``__post_init__``.

    So the annotations hold whichever way a value comes. A number of NumPy becomes Python's; a field
    that is a dataclass checks itself.

    Raises
    ------
    UsageError
        A value that is not allowed; the message begins with the name of its field.
    """
    kind = cast("Hashable", type(made))
    for name, declared in _hints(kind).items():
        value = getattr(made, name)
        if getattr(value, "ndim", None) == 0:
            value = value.item()
            object.__setattr__(made, name, value)
        if dataclasses.is_dataclass(declared):
            if not isinstance(value, cast("type", declared)):
                raise UsageError(
                    f"{name}: expected {cast('type', declared).__name__}(...), found "
                    f"{_found(value)}."
                )
        else:
            _check_field(type(made), name, declared, value)


def _check_field(kind: type, name: str, declared: Any, value: Any) -> None:
    import pydantic

    def fail(path: Path, words: str) -> UsageError:
        return UsageError(f"{'.'.join(map(str, path))}: {words}.")

    _refuse_other_values(value, (name,), fail)
    try:
        _adapter(declared).validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where, words = _worded(kind, {**problem, "loc": (name, *problem["loc"])})
        raise fail(where, words) from None


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    import pydantic

    return pydantic.TypeAdapter(kind)


def _refuse_other_values(data: Any, path: Path, fail: Fail) -> None:
    """Refuse what YAML has and JSON has not: dates, bytes, sets, numbers without an end."""
    if isinstance(data, dict):
        for key, value in data.items():
            if not isinstance(key, str | int):
                raise fail((*path, untrusted.shown(key)), f"a key is text, not {_found(key)}")
            _refuse_other_values(value, (*path, key), fail)
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            _refuse_other_values(value, (*path, index), fail)
    elif isinstance(data, float) and not math.isfinite(data):
        raise fail(path, f"{data} is not a finite number")
    elif isinstance(data, int) and data.bit_length() > _MOST_BITS:
        raise fail(path, "a number with more digits than are read")
    elif not isinstance(data, str | int | float | None):
        raise fail(path, f"expected text, a number, a list or a mapping, found {_found(data)}")


_MOST_BITS = 1024  # of a whole number; Python writes none of more than 4,300 digits

_WANTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
    "none_required": "nothing",
}
_LIMITS = {
    "greater_than_equal": ("ge", "is below"),
    "less_than_equal": ("le", "is above"),
    "greater_than": ("gt", "must be above"),
    "less_than": ("lt", "must be below"),
}


def _worded(kind: type, problem: Any) -> tuple[Path, str]:
    """Return the path of pydantic's `problem`, and what is wrong there."""
    path, type_, value = problem["loc"], problem["type"], problem["input"]
    described = _description(kind, path)
    if described:
        where, words = described
        return where, f"expected {words}"
    if type_ == "missing":
        return path[:-1], f"the key {path[-1]!r} is missing"
    if type_ == "unexpected_keyword_argument":
        known = [entry.name for entry in dataclasses.fields(_at(kind, path[:-1]))]
        near = difflib.get_close_matches(str(path[-1]), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return path, f"unknown key; {hint}"
    if type_ == "literal_error":
        allowed = typing.get_args(_at(kind, path))
        return path, f"{untrusted.shown(value)} is not one of {', '.join(map(str, allowed))}"
    if type_ in _LIMITS:
        name, words = _LIMITS[type_]
        limit = problem["ctx"][name]
        said = f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"
        return path, f"{untrusted.shown(value)} {words} {said}"
    if type_ == "too_short":
        return path, "at least one is needed"
    if type_ in _WANTED:
        empty = " or nothing" if _optional(kind, path) else ""
        return path, f"expected {_WANTED[type_]}{empty}, found {_found(value)}"
    return path, problem["msg"][:1].lower() + problem["msg"][1:]


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    names: dict[type, str] = {dict: "a mapping", list: "a list"}
    return names.get(type(value)) or untrusted.shown(value)


def _declared(kind: Any, path: Path) -> Any:
    """Return the annotation of the value at `path` in `kind`, as it was written."""
    for step in path:
        kind = _plain(kind)
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind, include_extras=True)[str(step)]
        else:
            arguments = typing.get_args(kind)  # of tuple[X, ...], list[X] or dict[str, X]
            kind = arguments[0] if typing.get_origin(kind) in (tuple, list) else arguments[-1]
    return kind


def _plain(kind: Any) -> Any:
    """Return an annotation without its limits, and without its None."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return _plain(next(a for a in typing.get_args(kind) if a is not types.NoneType))
    return kind


def _at(kind: Any, path: Path) -> Any:
    return _plain(_declared(kind, path))


def _optional(kind: Any, path: Path) -> bool:
    return types.NoneType in typing.get_args(_declared(kind, path))


def _description(kind: Any, path: Path) -> tuple[Path, str] | None:
    """Return the place and the words of an annotation around `path` that describes its values."""
    for end in range(1, len(path) + 1):
        try:
            found = _declared(kind, path[:end])
        except KeyError:  # an unknown key
            return None
        for extra in getattr(found, "__metadata__", ()):
            if isinstance(extra, annotated_types.DocInfo):
                return path[:end], extra.documentation
    return None
