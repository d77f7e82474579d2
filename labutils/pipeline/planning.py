"""Which rules repair a model for a target: tried on a copy, step by step, and re-checked."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import paths, surgery, targets, typesetting
from ..errors import SurgeryError, TranslationError, counted
from ..onnxfile import constants
from ..onnxfile.canonical_form import canonicalize_, is_canonical
from ..onnxfile.file import OnnxFile
from ..surgery import Edits, Report

if TYPE_CHECKING:
    import onnx


class NothingToRepairError(SurgeryError):
    """Nothing blocks, and nothing can be tidied."""


@dataclass(frozen=True)
class Plan:
    """What blocks a model on a target, and what would repair it.

    Attributes
    ----------
    check
        The model against the target's table.
    rules
        Rule name -> number of places that it changes, in the order in which they are applied.
        Exact ones, and approximate ones where those were allowed.
    unrepairable
        What still blocks then.
    offered
        Approximate rules that were not allowed: name -> number of blocking nodes that they are for.
    after
        The model against the table after the rules; None when there are none.
    """

    check: targets.CheckReport
    rules: dict[str, int]
    unrepairable: tuple[targets.NodeVerdict, ...]
    offered: dict[str, int] = field(default_factory=dict)
    after: targets.CheckReport | None = None

    @property
    def needed(self) -> bool:
        """Whether anything blocks."""
        return bool(self.check.blockers)

    @property
    def complete(self) -> bool:
        """Whether the rules remove every blocker."""
        return not self.unrepairable

    @property
    def exact(self) -> bool:
        """Whether every rule promises the same result."""
        return all(surgery.RULES[name].exact for name in self.rules)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        facts = {
            "rules": self.rules,
            "unrepairable": [f"{n.op_type} {n.node}" for n in self.unrepairable],
        }
        if self.offered:
            facts["offered_approximate"] = self.offered
        if not self.exact:
            facts["approximate"] = [n for n in self.rules if not surgery.RULES[n].exact]
        return facts

    def __str__(self) -> str:
        target = self.check.target
        lines = [_rule_line(name, count) for name, count in self.rules.items()]
        if not self.needed:
            none = f"Nothing blocks this model on {target}: no repair is needed."
            return "\n".join([none, *lines]) if lines else none
        for op, count in Counter(node.op_type for node in self.unrepairable).items():
            first = next(node for node in self.unrepairable if node.op_type == op)
            place = first.module or first.node or "the file"
            lines.append(f"  no rule repairs {count} x {op}, first in {place}: {first.evidence}")
        for name, count in self.offered.items():
            rule = surgery.RULES[name]
            lines.append(
                f"  approximate rule {name!r} is for {count} of them: {rule.error} "
                "(--allow-approximate)"
            )
        if self.after is not None:
            counts = {k: (self.check.counts[k], self.after.counts[k]) for k in self.check.counts}
            lines.append(
                "  nodes before -> after: "
                + ", ".join(f"{a} -> {b} {word}" for word, (a, b) in counts.items())
            )
        head = f"Repair for {target}: {counted(len(self.check.blockers), 'blocking node')}."
        return "\n".join([head, *lines, *self._cure()])

    def _cure(self) -> list[str]:
        target, allow = self.check.target, "" if self.exact else " --allow-approximate"
        if not (self.rules and self.complete):
            return []
        if targets.TARGETS[target].convert:
            return [
                f"  Apply: labutils convert MODEL --target {target} --repair{allow} -o FILE.dlc"
            ]
        return [f"  Apply: labutils repair MODEL --target {target}{allow} -o FILE.onnx"]

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head, *lines = str(self).splitlines()  # a line begins with its subject: rule, no rule, ...
        rows = [
            re.split(r"(?<=') |(?<=repairs) |(?<=Apply:) ", s.strip(), maxsplit=1) for s in lines
        ]
        return typesetting.table((), rows, head)


def _rule_line(name: str, count: int) -> str:
    rule = surgery.RULES[name]
    if name in surgery.TIDY:
        tidied = f"would tidy {counted(count, 'place')}"
        return f"  rule {name!r} {tidied}; same function, error: {rule.error}"
    same = "same function" if rule.exact else "ANOTHER FUNCTION, retrain"
    return f"  rule {name!r} would repair {counted(count, 'node')}; {same}, error: {rule.error}"


@dataclass(frozen=True)
class Repair:
    """A repaired file.

    Attributes
    ----------
    file
        The repaired ONNX file.
    plan
        What blocked before; None when edits were replayed without a target.
    surgery
        What was replaced, with the numeric check: the file before against the file after.
    check
        The repaired file against the same table; None without a target.
    edits
        How to do it again to other weights.
    onnx
        `file`, opened.
    """

    file: Path
    plan: Plan | None
    surgery: Report
    check: targets.CheckReport | None
    edits: Edits
    onnx: OnnxFile | None = field(default=None, repr=False, compare=False)

    @property
    def exact(self) -> bool:
        """Whether the file computes what the original computes."""
        return self.edits.exact

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "file": str(self.file),
            "exact": self.exact,
            "edits": self.edits.to_dict(),
            "surgery": self.surgery.to_dict(),
            "counts_after": self.check.counts if self.check else None,
        }

    def __str__(self) -> str:
        lines = []
        if self.plan is not None and self.check is not None:
            before, after = len(self.plan.check.blockers), len(self.check.blockers)
            lines.append(
                f"Repaired for {self.check.target}: {counted(before, 'blocking node')} -> {after}"
            )
        if not self.exact:
            lines.append(
                "APPROXIMATED: this is another network now; fine-tune it, or do not use it"
            )
        return "\n".join([*lines, str(self.surgery)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head, *_ = str(self).partition("\n")
        return typesetting.paragraph(head) + self.surgery._repr_html_()


def suggest(file: OnnxFile | str | Path, target: str, *, allow_approximate: bool = False) -> Plan:
    """Check a model against a target, and name the rules that remove what blocks.

    The rules are tried on a copy, so the plan says what they do to this model, not what they might.
    Unknown operators do not block, and do not count as repaired.

    Parameters
    ----------
    file
        The model.
    target
        A name in ``targets.TARGETS``.
    allow_approximate
        Whether rules that change the function may be used where no exact one helps.

    Raises
    ------
    UnknownNameError, ModelFileError
        No such target; no such model.

    Examples
    --------
    >>> from labutils import export, pipeline
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Hardswish(), nn.Flatten())
    >>> _ = export.to_onnx(net, "net.onnx", size=32)
    >>> print(pipeline.suggest("net.onnx", "snpe-2.7"))  # doctest: +ELLIPSIS
    Repair for snpe-2.7: 1 blocking node.
      rule 'hardswish' would repair 1 node; ...
    """
    with paths.scratch() as folder:
        source = _canonical(OnnxFile.of(file), folder)
        return _try_rules(source, target, folder, allow_approximate).plan()


def apply(
    source: OnnxFile | str | Path,
    target: str,
    destination: str | Path,
    inputs: np.ndarray | None = None,
    *,
    allow_approximate: bool = False,
) -> Repair:
    """Write a copy of an ONNX file in which the target's blockers are replaced, and re-check it.

    The edits go into the file's metadata, and as ``<file>.edits.yaml`` beside it.

    Parameters
    ----------
    source, destination
        ONNX files; the source is not changed.
    target
        A name in ``targets.TARGETS``.
    inputs
        One input, float32, for the numeric check; seeded random numbers by default.
    allow_approximate
        As in `suggest`.

    Raises
    ------
    SurgeryError
        Nothing blocks and nothing can be tidied, or the rules do not remove all that blocks. A
        target that leaves what it does not take to the CPU takes a partial repair. Nothing is
        written then.
    """
    source, destination = OnnxFile.of(source), Path(destination)
    with paths.scratch() as folder:
        source = _canonical(source, folder)
        trial = _try_rules(source, target, Path(folder), allow_approximate)
        plan = trial.plan()
        if not plan.rules and not plan.needed:
            raise NothingToRepairError(f"{plan} Use the model as it is.")
        partial = plan.check.table.on_unsupported == "partition" and plan.rules
        if not plan.complete and not partial:
            raise SurgeryError(f"{source.name} cannot be repaired in full.\n{plan}")
        report = _join_reports(trial.reports, trial.source, trial.file, inputs)
        edits = surgery.edits_of(
            trial.reports, trial.outline, made_for=target, model=source.path.stem
        )
        made = _write(trial.file, destination, edits)
    return Repair(destination, plan, report, targets.check(made, target), edits, made)


def replay(
    source: OnnxFile | str | Path,
    edits: Edits | str | Path,
    destination: str | Path,
    inputs: np.ndarray | None = None,
) -> Repair:
    """Replay edits on an ONNX file, and write the result to another file.

    Raises
    ------
    SurgeryError
        The file is another network than the edits were made for; the first difference is named.
    UsageError
        The file of edits is faulty; the line is named.
    """
    edits = edits if isinstance(edits, Edits) else Edits.read(edits)
    with paths.scratch() as folder:
        source = _canonical(OnnxFile.of(source), folder)
        model, before = source.copy(shaped=True), source.shaped
        reports = surgery.replay_(model, edits)
        file = OnnxFile.write(folder / Path(destination).name, model, checked=True)
        report = _join_reports(reports, before, file, inputs)
        made = _write(file, Path(destination), edits)
    known = edits.made_for in targets.TARGETS
    check = targets.check(made, edits.made_for) if known else None
    return Repair(Path(destination), None, report, check, edits, made)


def refused_as_brought(file: OnnxFile | str | Path, plan: Plan) -> list[targets.NodeVerdict]:
    """Return what blocks a user's file on the plan's target, and no longer its adapted copy.

    Parameters
    ----------
    file
        The user's file.
    plan
        For the adapted copy.
    """
    with constants.quiet():
        found = targets.check(OnnxFile.of(file), plan.check.target).blockers
    kept = Counter(node.op_type for node in plan.check.blockers)
    gone = []
    for node in found:
        kept[node.op_type] -= 1
        if kept[node.op_type] < 0:
            gone.append(node)
    return gone


def _canonical(source: OnnxFile, folder: Path) -> OnnxFile:
    """Return a file in canonical form: itself, or a copy that is; a file of `zoo.load` is."""
    if is_canonical(source.proto):
        return source
    model = source.copy()
    if not canonicalize_(model):
        return source
    return OnnxFile.write(paths.folder(folder / "canonical") / source.path.name, model)


def refused(plan: Plan) -> TranslationError:
    """Return the error of a target that stops, with the nodes and the rules that would help."""
    first = plan.check.blockers[0]
    nodes = [f"  {n.op_type:<14} {n.node}  (module {n.module or '-'})" for n in plan.check.blockers]
    shown = nodes[:12] + ([f"  ... and {len(nodes) - 12} more"] if len(nodes) > 12 else [])
    listed = "\n".join(shown)
    return TranslationError(
        f"{plan.check.file} does not translate for {plan.check.target}:\n{listed}\n{plan}",
        node=first.node,
        op_type=first.op_type,
        module=first.module,
    )


def _write(file: OnnxFile, destination: Path, edits: Edits) -> OnnxFile:
    model = file.copy()
    surgery.record_edits_(model, edits)
    made = OnnxFile.write(destination, model)
    edits.write(paths.edits_file(destination))
    return made


@dataclass
class _Trial:
    """A repair under way: the file reached, what was done to it, and what the table says now."""

    source: onnx.ModelProto
    file: OnnxFile
    check: targets.CheckReport
    now: targets.CheckReport
    reports: list[Report]
    outline: tuple[str, ...]
    offered: dict[str, int] = field(default_factory=dict)

    def attempt(self, names: Sequence[str], folder: Path) -> bool:
        """Apply rules to a copy; keep it unless nothing matched or the target likes it less."""
        name = f"{self.check.target}.{len(self.reports)}.{'+'.join(names)[:40]}.onnx"
        model = self.file.copy(shaped=True)  # many rules need shapes
        try:
            report = surgery.replace_(model, tuple(names), "onnx")
        except SurgeryError:
            return False
        copy = OnnxFile.write(folder / name, model, checked=True)  # replace_ has checked it
        after = targets.check(copy, self.check.target)
        if _score(after) > _score(self.now) or not report.matches:
            return False
        self.file, self.now = copy, after
        self.reports.append(report)
        return True

    def try_each(self, names: Iterable[str], folder: Path, together: bool = True) -> None:
        """Apply the rules that are for what blocks, until none of them helps."""
        left = list(names)
        while fitting := [n for n in left if surgery.RULES[n].ops & _ops(self.now)]:
            left = [n for n in left if n not in fitting]
            if together and self.attempt(fitting, folder):
                continue
            for name in fitting:
                if surgery.RULES[name].ops & _ops(self.now):
                    self.attempt([name], folder)

    def plan(self) -> Plan:
        found: Counter[str] = Counter()
        for report in self.reports:
            found.update({name: n for name, n in report.counts.items() if n})
        after = self.now if self.reports else None
        return Plan(self.check, dict(found), tuple(self.now.blockers), self.offered, after)


def _join_reports(
    reports: Sequence[Report], source: onnx.ModelProto, file: OnnxFile, inputs: np.ndarray | None
) -> Report:
    """Return one report of all steps: the file at the end against the file at the beginning."""
    from ..surgery.onnx_level.check import compare_outputs

    first, last = reports[0], reports[-1]
    check, notes = last.check, last.notes
    if len(reports) > 1 or inputs is not None:
        check, notes = compare_outputs(source, file.whole, inputs)
    rules = {rule.name: rule for r in reports for rule in r.rules if r.counts[rule.name]}
    return dataclasses.replace(
        last,
        rules=tuple(rules.values()),
        matches=tuple(match for r in reports for match in r.matches),
        left=tuple(left for r in reports for left in r.left),
        parameters=(first.parameters[0], last.parameters[1]),
        check=check,
        notes=notes,
    )


def _try_rules(source: OnnxFile, target: str, folder: Path, allow_approximate: bool) -> _Trial:
    """Tidy, then exact rules, then approximate ones if allowed, then the opset."""
    check = targets.check(source, target)
    model = source.shaped
    trial = _Trial(model, source, check, check, [], surgery.outline(model))
    for name in surgery.TIDY:
        trial.attempt([name], folder)
    opset = {
        n for n, rule in surgery.RULES.items() if any(op.startswith("opset") for op in rule.ops)
    }
    book = {n: rule for n, rule in surgery.RULES.items() if n not in (*surgery.TIDY, *opset)}
    trial.try_each([n for n, rule in book.items() if rule.exact], folder)
    approximate = [n for n, rule in book.items() if not rule.exact and rule.onnx]
    if allow_approximate:
        trial.try_each(approximate, folder, together=False)
    trial.try_each(opset, folder)
    blocking = Counter(node.op_type for node in trial.now.blockers)
    if not allow_approximate:
        offers = {n: sum(blocking[op] for op in book[n].ops) for n in approximate}
        trial.offered = {n: count for n, count in offers.items() if count}
    return trial


def _ops(check: targets.CheckReport) -> set[str]:
    return {node.op_type for node in check.blockers}


def _score(check: targets.CheckReport) -> tuple[int, int]:
    """Count what blocks, then what the table does not know: a rule may raise neither."""
    return len(check.blockers), check.counts["unknown"]
