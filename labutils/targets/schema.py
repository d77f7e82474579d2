"""The one schema of the operator tables in ``data/targets``, checked when a table is loaded."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

from .. import located_yaml, untrusted
from ..errors import TableError
from .limits import CHECKS

VERDICTS = ("supported", "constrained", "unsupported")
EVIDENCE = ("documented", "source", "observed", "measured", "inferred")
CONFIDENCE = ("high", "medium", "low")

_TEXT, _WHOLE = (str,), (int, type(None))
# key -> (types, required, allowed values or None)
_Spec = dict[str, tuple[tuple[type, ...], bool, tuple[str, ...] | None]]
_TABLE: _Spec = {
    "name": (_TEXT, True, None),
    "target": (_TEXT, True, None),
    "vendor": (_TEXT, True, None),
    "toolchain": (_TEXT, True, None),
    "version": (_TEXT, True, None),
    "kind": (_TEXT, True, ("converter", "compiler", "execution provider", "runtime format")),
    "about": (_TEXT, True, None),
    "retrieved": (_TEXT, True, None),
    "command": (_TEXT, False, None),
    "availability": (_TEXT, False, None),
    "opset_range": ((dict,), True, None),
    "on_unsupported": (_TEXT, True, ("abort", "partition", "reject_opset")),
    "on_limit_missed": (_TEXT, True, ("unsupported", "cpu")),
    "on_other_version": (_TEXT, True, ("warn", "unsupported")),
    "sources": ((dict,), True, None),
    "notes": ((list,), True, None),
    "messages": ((dict,), True, None),
    "ops": ((dict,), True, None),
    "unknown": ((dict,), False, None),
}
_OPSETS: _Spec = {
    "min": (_WHOLE, True, None),
    "max": (_WHOLE, True, None),
    "below": (_TEXT, True, ("unknown", "warn", "reject")),
    "above": (_TEXT, True, ("unknown", "warn", "reject")),
    "message": (_TEXT, False, None),
    "max_ir_version": (_WHOLE, False, None),
    "note": (_TEXT, True, None),
}
_SOURCE: _Spec = {
    key: (_TEXT, key == "kind", None)
    for key in ("repo", "url", "what", "path", "commit", "date", "page", "kind")
}
_MESSAGE: _Spec = {
    "template": (_TEXT, True, None),
    "verbatim": ((bool,), True, None),
    "when": (_TEXT, False, None),
    "example": (_TEXT, False, None),
    "evidence": (_TEXT, True, None),
    "source": ((list,), True, None),
}
_OP: _Spec = {
    "verdict": (_TEXT, True, VERDICTS),
    "since": (_TEXT, False, None),
    "op_versions": ((list,), False, None),
    "opsets_tried": ((list,), False, None),
    "constraints": ((list,), False, None),
    "detail": (_TEXT, False, None),
    "workaround": (_TEXT, False, None),
    "placement": (_TEXT, False, None),
    "maps_to": (_TEXT, False, None),
    "note": (_TEXT, False, None),
    "evidence": (_TEXT, True, None),
    "source": ((list,), True, None),
    "confidence": (_TEXT, True, CONFIDENCE),
}
_CONSTRAINT: _Spec = {"text": (_TEXT, True, None), "check": ((dict,), False, None)}


@dataclass(frozen=True)
class OpsetRange:
    """The opsets that a tool takes, and what it does outside: unknown, warn or reject."""

    min: int | None
    max: int | None
    below: str
    above: str
    note: str
    message: str = ""
    max_ir_version: int | None = None


@dataclass(frozen=True)
class Constraint:
    """A limit as text, and the name and argument of its check where a machine can check it."""

    text: str
    check: tuple[str, Any] | None = None


@dataclass(frozen=True)
class Message:
    """A message of the tool as a `str.format` template; `verbatim` is False for its shape only."""

    template: str
    verbatim: bool
    evidence: str
    source: tuple[str, ...]
    when: str = ""
    example: str = ""


@dataclass(frozen=True)
class Op:
    """What a tool does with one operator, and how that is known.

    Attributes
    ----------
    verdict
        ``supported``, ``constrained`` or ``unsupported``.
    evidence, source, confidence
        One of the words of `EVIDENCE`, possibly qualified; ids of the table's sources; how sure.
    op_versions
        Versions of the operator that the tool is documented for; empty where not stated.
    opsets_tried
        Opsets of the models that were measured; not a limit.
    constraints
        The limits of a constrained operator.
    since, detail, workaround, placement, maps_to, note
        First release, the text of the refusal, a replacement, the processor it runs on, the
        target's own operator, anything else. Empty where not stated.
    """

    verdict: str
    evidence: str
    source: tuple[str, ...]
    confidence: str
    op_versions: tuple[int, ...] = ()
    opsets_tried: tuple[int, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    since: str = ""
    detail: str = ""
    workaround: str = ""
    placement: str = ""
    maps_to: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """One operator table: the tool, its messages, and a verdict per ONNX operator.

    An operator that is neither in `ops` nor in `unknown` is unknown; `unknown` holds what little
    is known about some of those. `availability` says what the tool is, and how one gets it: of
    those that the lab does not call.
    """

    name: str
    target: str
    vendor: str
    toolchain: str
    version: str
    kind: str
    about: str
    retrieved: str
    opset_range: OpsetRange
    on_unsupported: str
    on_limit_missed: str
    on_other_version: str
    sources: dict[str, dict[str, str]]
    notes: tuple[str, ...]
    messages: dict[str, Message]
    ops: dict[str, Op]
    unknown: dict[str, str]
    command: str = ""
    availability: str = ""


def parse(text: str, file: str) -> Table:
    """Return the table in `text`, every key of it checked.

    Parameters
    ----------
    text
        The YAML text.
    file
        Its name, for messages.

    Raises
    ------
    TableError
        Not YAML, or a key is missing, unknown, given twice, of a wrong type or value; the
        message names the file, the line and the key.
    """
    data, fail = located_yaml.read(text, file, "a table", TableError)
    return _table(data, fail)


def _fields(
    data: Any, path: tuple[str | int, ...], spec: _Spec, fail: located_yaml.Fail
) -> dict[str, Any]:
    """Return `data` after checking that it is a mapping with the keys that `spec` wants."""
    if not isinstance(data, dict):
        raise fail(path, f"expected a mapping, found {type(data).__name__}")
    for key in data:
        if key not in spec:
            raise fail((*path, key), f"unknown key; expected one of {', '.join(spec)}")
    for key, (types, required, allowed) in spec.items():
        if key not in data:
            if required:
                raise fail(path, f"the key {key!r} is missing")
            continue
        value = data[key]
        # bool is an int in Python; "min: yes" is a mistake all the same
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = " or ".join(t.__name__ for t in types)
            raise fail((*path, key), f"expected {wanted}, found {type(value).__name__}")
        if allowed and value not in allowed:
            raise fail((*path, key), f"{untrusted.shown(value)} is not one of {', '.join(allowed)}")
    return data


def _table(data: Any, fail: located_yaml.Fail) -> Table:
    data = dict(_fields(data, (), _TABLE, fail))
    for name, source in data["sources"].items():
        _fields(source, ("sources", name), _SOURCE, fail)
    sources = set(data["sources"])
    opsets = OpsetRange(**_fields(data["opset_range"], ("opset_range",), _OPSETS, fail))
    if opsets.message and opsets.message not in data["messages"]:
        raise fail(
            ("opset_range", "message"), f"there is no message {untrusted.shown(opsets.message)}"
        )
    messages = {
        name: _message(m, ("messages", name), sources, fail) for name, m in data["messages"].items()
    }
    ops = {str(name): _op(op, ("ops", name), sources, fail) for name, op in data["ops"].items()}
    unknown = data.get("unknown", {})
    for name, note in unknown.items():
        if name in ops:
            raise fail(("unknown", name), "the operator also has a verdict under ops")
        if not isinstance(note, str):
            raise fail(("unknown", name), f"expected str, found {type(note).__name__}")
    notes = tuple(_list_of(data["notes"], str, ("notes",), fail))
    parts = {"opset_range": opsets, "messages": messages, "ops": ops, "unknown": unknown}
    return Table(**{**data, **parts, "notes": notes})


def _message(
    data: Any,
    path: tuple[str | int, ...],
    sources: set[str],
    fail: located_yaml.Fail,
) -> Message:
    data = _fields(data, path, _MESSAGE, fail)
    _known_evidence(data, path, sources, fail)
    try:
        list(string.Formatter().parse(data["template"]))
    except ValueError as error:
        raise fail((*path, "template"), f"not a format template: {error}") from None
    return Message(**{**data, "source": tuple(data["source"])})


def _op(
    data: Any,
    path: tuple[str | int, ...],
    sources: set[str],
    fail: located_yaml.Fail,
) -> Op:
    data = _fields(data, path, _OP, fail)
    _known_evidence(data, path, sources, fail)
    limits = data.get("constraints", [])
    if (data["verdict"] == "constrained") != bool(limits):
        raise fail((*path, "constraints"), "exactly the constrained operators have constraints")
    constraints = tuple(
        _constraint(limit, (*path, "constraints", index), fail)
        for index, limit in enumerate(limits)
    )
    versions = {
        key: tuple(_list_of(data.get(key, []), int, (*path, key), fail))
        for key in ("op_versions", "opsets_tried")
    }
    return Op(**{**data, **versions, "constraints": constraints, "source": tuple(data["source"])})


def _constraint(data: Any, path: tuple[str | int, ...], fail: located_yaml.Fail) -> Constraint:
    data = _fields(data, path, _CONSTRAINT, fail)
    check = data.get("check")
    if check is None:
        return Constraint(data["text"])
    if len(check) != 1 or next(iter(check)) not in CHECKS:
        raise fail((*path, "check"), f"expected exactly one of {', '.join(CHECKS)}")
    return Constraint(data["text"], next(iter(check.items())))


def _list_of(
    values: list[Any], kind: type, path: tuple[str | int, ...], fail: located_yaml.Fail
) -> list[Any]:
    for index, value in enumerate(values):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise fail((*path, index), f"expected {kind.__name__}, found {type(value).__name__}")
    return values


def _known_evidence(
    data: dict[str, Any], path: tuple[str | int, ...], sources: set[str], fail: located_yaml.Fail
) -> None:
    if not data["evidence"].startswith(EVIDENCE):
        raise fail((*path, "evidence"), f"starts with none of {', '.join(EVIDENCE)}")
    named = _list_of(data["source"], str, (*path, "source"), fail)
    absent = [name for name in named if name not in sources]
    if absent or not named:
        problem = (
            f"there is no source {untrusted.shown(absent[0])}" if absent else "names no source"
        )
        raise fail((*path, "source"), problem)
