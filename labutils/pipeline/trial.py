"""Trying the rules of the book on a copy of a model: what is refused then, and who objects."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .. import surgery, targets
from ..errors import NothingMatchedError, SurgeryError
from ..onnxfile.file import OnnxFile
from ..surgery import Left, Report

if TYPE_CHECKING:
    import onnx

Writer = Callable[[OnnxFile], Sequence[targets.NodeVerdict]]
"""Asks what writes the target's file which nodes it refuses, and why."""

_TOLD = 3  # reasons of one rule that the plan tells


@dataclass
class Trial:
    """A repair under way: the file reached, what was done to it, and what blocks it now.

    Attributes
    ----------
    source, file
        The model, and the copy of it reached so far.
    check, now
        Both against the target's table; once the writer is asked, with what it refuses.
    reports
        Of the rules that were applied.
    outline
        Of `source`, for the edits.
    offered
        Approximate rules that were not allowed -> how many blocking nodes they are for.
    left
        Rule -> what it left, and why.
    writer
        Asked after each change, where the repair is for what it refuses.
    """

    source: onnx.ModelProto
    file: OnnxFile
    check: targets.CheckReport
    now: targets.CheckReport
    reports: list[Report]
    outline: tuple[str, ...]
    offered: dict[str, int] = field(default_factory=dict)
    left: dict[str, tuple[Left, ...]] = field(default_factory=dict)
    writer: Writer | None = None

    def judge(self, file: OnnxFile) -> targets.CheckReport:
        """Return a file against the target's table, and against the writer where it is asked."""
        check = targets.check(file, self.check.target)
        return check if self.writer is None else refuse_nodes(check, self.writer(file))

    def attempt(self, names: Sequence[str], folder: Path, helping: bool = False) -> bool:
        """Apply rules to a copy; keep it unless nothing matched or the target likes it less.

        With `helping`, only a copy that the target likes better is kept.
        """
        name = f"{self.check.target}.{len(self.reports)}.{'+'.join(names)[:40]}.onnx"
        model = self.file.copy(shaped=True)  # many rules need shapes
        try:
            report = surgery.replace_(model, tuple(names), "onnx")
        except NothingMatchedError as nothing:
            self._note(names, nothing.left)
            return False
        except SurgeryError as error:
            self._note(names, [Left("the graph", "it", str(error))])
            return False
        self._note(names, report.left)
        copy = OnnxFile.write(folder / name, model, checked=True)  # replace_ has checked it
        after = self.judge(copy)
        if not report.matches or _score(after) > _score(self.now):
            return False
        if helping and _score(after) == _score(self.now):
            return False
        self.file, self.now = copy, after
        self.reports.append(report)
        return True

    def try_each(self, names: Iterable[str], folder: Path, together: bool = True) -> None:
        """Apply the rules that are for what blocks, until none of them helps."""
        left = list(names)
        while fitting := [n for n in left if surgery.RULES[n].ops & _ops(self.now)]:
            left = [n for n in left if n not in fitting]
            if together and self.attempt(fitting, folder, helping=True):
                continue
            for name in fitting:
                if surgery.RULES[name].ops & _ops(self.now):
                    self.attempt([name], folder, helping=True)

    def matches(self, name: str) -> bool:
        """Return whether a rule finds anything to replace in the file as it is now."""
        try:
            surgery.replace_(self.file.copy(shaped=True), name, "onnx")
        except NothingMatchedError:
            return False
        except SurgeryError:  # it says why when it is allowed
            return True
        return True

    def _note(self, names: Sequence[str], left: Iterable[object]) -> None:
        places = [place for place in left if isinstance(place, Left)]
        for name in names:
            ops = surgery.RULES[name].ops
            mine = [p for p in places if len(names) == 1 or p.what in ops]
            self.left[name] = tuple(mine)


def try_rules(
    source: OnnxFile,
    target: str,
    folder: Path,
    allow_approximate: bool,
    writer: Writer | None = None,
) -> Trial:
    """Tidy, then exact rules, then approximate ones if allowed, then the opset, then the writer."""
    check = targets.check(source, target)
    model = source.shaped
    trial = Trial(model, source, check, check, [], surgery.outline(model))
    for name in surgery.TIDY:
        trial.attempt([name], folder)
    opset = {
        n for n, rule in surgery.RULES.items() if any(op.startswith("opset") for op in rule.ops)
    }
    book = {n: rule for n, rule in surgery.RULES.items() if n not in (*surgery.TIDY, *opset)}
    exact = [n for n, rule in book.items() if rule.exact]
    trial.try_each(exact, folder)
    approximate = [n for n, rule in book.items() if not rule.exact and rule.onnx]
    if allow_approximate:
        trial.try_each(approximate, folder, together=False)
    trial.try_each(opset, folder)
    _clear_the_way_(trial, exact, opset, folder)
    if writer is not None:
        _ask_writer_(trial, writer, exact, folder)
    blocking = Counter(node.op_type for node in trial.now.blockers)
    if not allow_approximate:
        offers = {n: sum(blocking[op] for op in book[n].ops) for n in approximate}
        trial.offered = {n: count for n, count in offers.items() if count and trial.matches(n)}
    return trial


def _clear_the_way_(trial: Trial, exact: Sequence[str], opset: Iterable[str], folder: Path) -> None:
    """Replace the nodes that the opset rule objects to, and try it again."""
    if not any(op.startswith("opset") for op in _ops(trial.now)):
        return
    objected = {place.what for name in opset for place in trial.left.get(name, ())}
    fitting = [name for name in exact if surgery.RULES[name].ops & objected]
    done = [trial.attempt([name], folder) for name in fitting]
    if any(done):
        trial.try_each(opset, folder)


def _ask_writer_(trial: Trial, writer: Writer, exact: Sequence[str], folder: Path) -> None:
    """Repair what the writer refuses; it is asked first of the file as it is now."""
    refused = writer(trial.file)
    if not refused:
        return
    trial.writer = writer
    trial.check = refuse_nodes(trial.check, refused)
    trial.now = refuse_nodes(trial.now, refused)
    trial.try_each(exact, folder)


def refuse_nodes(
    check: targets.CheckReport, refused: Sequence[targets.NodeVerdict]
) -> targets.CheckReport:
    """Return a report in which the nodes that the writer refuses are unsupported."""
    by_name = {verdict.node: verdict for verdict in refused}
    nodes = [by_name.pop(node.node, node) for node in check.nodes]
    return dataclasses.replace(check, nodes=(*nodes, *by_name.values()))


def objections_to(
    blockers: Sequence[targets.NodeVerdict], trial: Trial
) -> dict[str, tuple[str, ...]]:
    """Return for each operator that blocks why the rules that are for it left it."""
    found: dict[str, tuple[str, ...]] = {}
    for op in dict.fromkeys(node.op_type for node in blockers):
        told = [
            f"rule {name!r} leaves it: {_reasons(places)}"
            for name, places in trial.left.items()
            if places and op in surgery.RULES[name].ops
        ]
        if told:
            found[op] = tuple(told)
    return found


def _reasons(places: Sequence[Left]) -> str:
    grouped: dict[tuple[str, str], list[str]] = {}
    for place in places:
        grouped.setdefault((place.what, place.why), []).append(place.where)
    told = [
        f"{what} {where[0]!r}{f' and {len(where) - 1} more' if len(where) > 1 else ''}: {why}"
        for (what, why), where in list(grouped.items())[:_TOLD]
    ]
    more = len(grouped) - len(told)
    return "; ".join(told) + (f"; and {more} more reasons" if more > 0 else "")


def _ops(check: targets.CheckReport) -> set[str]:
    return {node.op_type for node in check.blockers}


def _score(check: targets.CheckReport) -> tuple[int, int]:
    """Count what blocks, then what the table does not know: a rule may raise neither."""
    return len(check.blockers), check.counts["unknown"]
