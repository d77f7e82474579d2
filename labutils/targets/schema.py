"""The one schema of the operator tables in ``data/targets``, checked when a table is loaded."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Any, Literal

from .. import located_yaml, untrusted, validation
from ..errors import TableError
from .limits import CHECKS

EVIDENCE = ("documented", "source", "observed", "measured", "inferred")

Verdict = Literal["supported", "constrained", "unsupported"]
Confidence = Literal["high", "medium", "low"]
Outside = Literal["unknown", "warn", "reject"]
_Path = located_yaml.Path


@dataclass(frozen=True)
class OpsetRange:
    """The opsets that a tool takes, and what it does outside: unknown, warn or reject."""

    min: int | None
    max: int | None
    below: Outside
    above: Outside
    note: str
    message: str = ""
    max_ir_version: int | None = None


@dataclass(frozen=True)
class Constraint:
    """A limit as text, and where a machine can check it ``{name of the check: argument}``.

    `silent`: the tool silently takes a node that misses the limit, and computes another
    function. Such a node is never converted, even where QNN is asked and accepts it. `fails`: the
    tool writes such a node, and the device does not run what was written.
    """

    text: str
    check: dict[str, Any] | None = None
    silent: bool = False
    fails: bool = False


@dataclass(frozen=True)
class Source:
    """Where something is known from: a repository's file, a page, or what was run."""

    kind: str
    repo: str = ""
    url: str = ""
    what: str = ""
    path: str = ""
    commit: str = ""
    date: str = ""
    page: str = ""


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
    aborts
        Whether the tool's process ends over the operator, and names no node.
    fails
        Whether what the tool writes of the operator is of no use, though it may take it.
    """

    verdict: Verdict
    evidence: str
    source: tuple[str, ...]
    confidence: Confidence
    op_versions: tuple[int, ...] = ()
    opsets_tried: tuple[int, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    since: str = ""
    detail: str = ""
    workaround: str = ""
    placement: str = ""
    maps_to: str = ""
    note: str = ""
    aborts: bool = False
    fails: bool = False


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
    kind: Literal["converter", "compiler", "execution provider", "runtime format"]
    about: str
    retrieved: str
    opset_range: OpsetRange
    on_unsupported: Literal["abort", "partition", "reject_opset"]
    on_limit_missed: Literal["unsupported", "cpu"]
    on_other_version: Literal["warn", "unsupported"]
    sources: dict[str, Source]
    notes: tuple[str, ...]
    messages: dict[str, Message]
    ops: dict[str, Op]
    unknown: dict[str, str] = field(default_factory=dict)
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
    table, fail = validation.read_as(Table, text, file, "a table", TableError)
    opsets = table.opset_range
    if opsets.message and opsets.message not in table.messages:
        problem = f"there is no message {untrusted.shown(opsets.message)}"
        raise fail(("opset_range", "message"), problem)
    for name, message in table.messages.items():
        _refuse_message(message, ("messages", name), table, fail)
    for name, op in table.ops.items():
        _refuse_op(op, ("ops", name), table, fail)
    for name in table.unknown:
        if name in table.ops:
            raise fail(("unknown", name), "the operator also has a verdict under ops")
    return table


def _refuse_message(message: Message, path: _Path, table: Table, fail: located_yaml.Fail) -> None:
    _refuse_evidence(message, path, table, fail)
    try:
        list(string.Formatter().parse(message.template))
    except ValueError as error:
        raise fail((*path, "template"), f"not a format template: {error}") from None


def _refuse_op(op: Op, path: _Path, table: Table, fail: located_yaml.Fail) -> None:
    _refuse_evidence(op, path, table, fail)
    if (op.verdict == "constrained") != bool(op.constraints):
        raise fail((*path, "constraints"), "exactly the constrained operators have constraints")
    for index, limit in enumerate(op.constraints):
        check = limit.check
        if check is not None and (len(check) != 1 or next(iter(check)) not in CHECKS):
            raise fail(
                (*path, "constraints", index, "check"),
                f"expected exactly one of {', '.join(CHECKS)}",
            )


def _refuse_evidence(
    stated: Message | Op, path: _Path, table: Table, fail: located_yaml.Fail
) -> None:
    if not stated.evidence.startswith(EVIDENCE):
        raise fail((*path, "evidence"), f"starts with none of {', '.join(EVIDENCE)}")
    absent = [name for name in stated.source if name not in table.sources]
    if absent:
        raise fail((*path, "source"), f"there is no source {untrusted.shown(absent[0])}")
    if not stated.source:
        raise fail((*path, "source"), "names no source")
