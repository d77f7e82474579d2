"""What a replacement reports: what matched where, what was left and why, and the numeric check."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import metrics, typesetting
from ..errors import NothingMatchedError, SurgeryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rule import Rule

_LIMIT = 1e-4  # of the largest output: what rounding explains
_LIMITS = {"float16": 2e-2, "bfloat16": 0.16}  # 41 units of the last place, both
_LISTED = 3  # matches of one kind that the text names; to_dict() has all


@dataclass(frozen=True)
class Match:
    """One replacement: rule, level, place (module path, call site, node name), from, to."""

    rule: str
    level: str
    where: str
    was: str
    became: str


@dataclass(frozen=True)
class Left:
    """A place where a rule could apply that was left alone, and why."""

    where: str
    what: str
    why: str


@dataclass(frozen=True)
class Check:
    """The outputs before and after on the same inputs.

    Attributes
    ----------
    max_error
        Largest absolute difference.
    peak
        Largest absolute value before.
    sqnr_db
        Signal to noise ratio in dB, `inf` when equal.
    limit
        `max_error / peak` up to which the difference is rounding.
    inputs
        Which inputs.
    """

    max_error: float
    peak: float
    sqnr_db: float
    limit: float
    inputs: str

    @property
    def relative_error(self) -> float:
        """`max_error` in units of the largest output."""
        return self.max_error / self.peak if self.peak else self.max_error

    @property
    def rounding(self) -> bool:
        """Whether the difference is what rounding explains."""
        return self.relative_error <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON; an infinite SQNR (equal outputs) is None."""
        finite = self.sqnr_db if np.isfinite(self.sqnr_db) else None
        return {**asdict(self), "sqnr_db": finite, "rounding": self.rounding}

    def __str__(self) -> str:
        verdict = "equal" if not self.max_error else "rounding" if self.rounding else "DIFFERENT"
        return (
            f"{verdict}: max error {self.max_error:.2e} ({self.relative_error:.1e} of the largest "
            f"output), SQNR {self.sqnr_db:.1f} dB, on {self.inputs}"
        )

    def __repr__(self) -> str:
        return str(self)


def check_outputs(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], inputs: str
) -> Check | None:
    """Compare the outputs of a model before and after; None when they are not finite.

    Raises
    ------
    SurgeryError
        The number of outputs or a shape changed.
    """
    shapes = [a.shape for a in before], [b.shape for b in after]
    if shapes[0] != shapes[1]:
        raise SurgeryError(
            f"The replacement changed the outputs' shapes from {shapes[0]} to {shapes[1]}; "
            "the model was left as it was."
        )
    kinds = {a.dtype.name for a in (*before, *after)}
    limit = max(_LIMITS.get(kind, _LIMIT) for kind in kinds) if kinds else _LIMIT
    a, b = (np.concatenate([x.ravel().astype(np.float64) for x in xs]) for xs in (before, after))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    return Check(
        max_error=float(np.abs(a - b).max()),
        peak=float(np.abs(a).max()),
        sqnr_db=metrics.sqnr_db(a, b),
        limit=limit,
        inputs=inputs,
    )


def require_same(report: Report) -> None:
    """Refuse a replacement by exact rules that changed the outputs by more than rounding.

    Raises
    ------
    SurgeryError
        It did; the caller undoes it.
    """
    if report.check and report.exact and not report.check.rounding:
        found = [rule for rule in report.rules if report.counts[rule.name]]
        names = ", ".join(repr(rule.name) for rule in found)
        promise = f"The rule {names} promises" if len(found) == 1 else f"The rules {names} promise"
        one = "" if len(found) == 1 else " Apply them one by one to see which one it is."
        raise SurgeryError(
            f"{promise} the same result, and the outputs changed by more than rounding "
            f"({report.check}).{one} {report.target} was left as it was. A rule that is meant to "
            "change the function says exact=False."
        )


@dataclass(frozen=True)
class Report:
    """The report of one call of `replace_`.

    Attributes
    ----------
    target
        The class of the model, or the name of the graph.
    level
        ``"module"``, ``"function"``, ``"module+function"`` or ``"onnx"``.
    rules
        The rules that were requested.
    matches, left
        What was replaced; what was not, and why.
    parameters
        Number of weights before and after (in ONNX: in tensors of one dimension or more).
    check
        The numeric check, None when there was none (`notes` say why).
    notes
        Further remarks.
    macs
        Multiply-accumulates before and after: of a run on the example inputs, or of an ONNX graph
        with known shapes; else None.
    outline
        The network before, one line per layer or node: what the edits of this surgery fit.
    """

    target: str
    level: str
    rules: tuple[Rule, ...]
    matches: tuple[Match, ...]
    left: tuple[Left, ...]
    parameters: tuple[int, int]
    check: Check | None = None
    notes: tuple[str, ...] = ()
    macs: tuple[int, int] | None = None
    outline: tuple[str, ...] = field(default=(), repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Replacements per rule, in the order of the rules, zeros included."""
        found = Counter(match.rule for match in self.matches)
        return {rule.name: found[rule.name] for rule in self.rules}

    @property
    def exact(self) -> bool:
        """Whether every rule that matched promises the same result."""
        return all(rule.exact for rule in self.rules if self.counts[rule.name])

    def _rows(self) -> list[tuple[str, str]]:
        """Return the report as (subject, text) pairs, for both the plain and the HTML form."""
        rows, idle = [], []
        for rule in self.rules:
            kind = "exact" if rule.exact else "APPROXIMATE"
            n = self.counts[rule.name]
            if not n and len(self.rules) > _LISTED:
                idle.append(rule.name)
                continue
            rows.append((rule.name, f"{n or 'NOTHING'} replaced; {kind}: {rule.error}"))
            rows += _listed([m for m in self.matches if m.rule == rule.name])
        if idle:
            rows.append(("NOTHING", f"replaced by {', '.join(idle)}"))
        for (what, why), places in _grouped(self.left):
            rows.append(("left", f"{len(places)} x {what}: {why} ({_some(places)})"))
        before, after = self.parameters
        same = "unchanged" if before == after else "CHANGED"
        rows.append(("parameters", f"{before:,} -> {after:,} ({same})"))
        if self.macs:
            before, after = self.macs
            same = "unchanged" if before == after else "CHANGED"
            rows.append(("MACs", f"{before / 1e6:,.2f} M -> {after / 1e6:,.2f} M ({same})"))
        rows.append(("check", str(self.check) if self.check else "not run"))
        return [*rows, *(("note", note) for note in self.notes)]

    def __str__(self) -> str:
        rows = self._rows()
        width = max(len(subject) for subject, _ in rows)
        where = f"{self.target}, level {self.level}"
        if self.level == "onnx":
            where = f"the ONNX graph {self.target!r}"
        head = f"Surgery on {where}: {len(self.matches)} replaced"
        return "\n".join([head, *(f"  {subject:<{width}}  {text}" for subject, text in rows)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head, *_ = str(self).partition("\n")
        return typesetting.table((), [*self._rows()], head, named=True)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain types, for JSON."""
        return {
            "target": self.target,
            "level": self.level,
            "rules": {rule.name: {"exact": rule.exact, "error": rule.error, "source": rule.source}
                      for rule in self.rules},
            "counts": self.counts,
            "matches": [asdict(match) for match in self.matches],
            "left": [asdict(left) for left in self.left],
            "parameters": list(self.parameters),
            "macs": self.macs and list(self.macs),
            "check": self.check and self.check.to_dict(),
            "notes": list(self.notes),
        }  # fmt: skip


def _listed(matches: Sequence[Match]) -> list[tuple[str, str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for match in matches:
        groups.setdefault((match.was, match.became), []).append(match.where)
    return [
        ("", f"{len(places)} x {was} -> {became}: {_some(places)}")
        for (was, became), places in groups.items()
    ]


def _grouped(left: Sequence[Left]) -> list[tuple[tuple[str, str], list[str]]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for item in left:
        groups.setdefault((item.what, item.why), []).append(item.where)
    return list(groups.items())


def _some(places: Sequence[str]) -> str:
    more = len(places) - _LISTED
    return ", ".join(places[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def nothing_matched(
    target: str,
    level: str,
    rules: Sequence[Rule],
    has: Counter[str],
    left: Sequence[Left],
    hint: str,
) -> NothingMatchedError:
    """Return the error for rules that matched nothing: what the model has instead, what to do."""
    found = ", ".join(f"{n} {name}" for name, n in has.most_common(12)) or "nothing"
    names = ", ".join(rule.name for rule in rules)
    asked = f"The rule {names}" if len(rules) == 1 else f"The rules {names}"
    lines = [f"{asked} matched nothing in {target} (level {level}).", f"It has: {found}."]
    lines += [f"Left: {len(p)} x {what}: {why} ({_some(p)})." for (what, why), p in _grouped(left)]
    error = NothingMatchedError(" ".join([*lines, hint]).strip())
    error.left = tuple(left)
    return error
