"""Which rules repair a model for a target: tried on a copy, step by step, and re-checked."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import paths, surgery, targets, typesetting
from ..errors import SurgeryError, TranslationError, counted
from ..onnxfile.file import OnnxFile
from ..surgery import Edits, Report
from .brought_files import canonical
from .trial import Trial, Writer, objections_to, try_rules

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
    objections
        Operator that still blocks -> why each rule that is for it left it, one line per rule.
    """

    check: targets.CheckReport
    rules: dict[str, int]
    unrepairable: tuple[targets.NodeVerdict, ...]
    offered: dict[str, int] = field(default_factory=dict)
    after: targets.CheckReport | None = None
    objections: dict[str, tuple[str, ...]] = field(default_factory=dict)

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
        if self.objections:
            facts["objections"] = {op: list(why) for op, why in self.objections.items()}
        if self.offered:
            facts["offered_approximate"] = self.offered
        if not self.exact:
            facts["approximate"] = [n for n in self.rules if not surgery.RULES[n].exact]
        return facts

    def __str__(self) -> str:
        target = self.check.target
        lines = [_rule_line(name, count) for name, count in self.rules.items()]
        if not self.needed:
            none = self._nothing()
            return "\n".join([none, *lines]) if lines else none
        for op, count in Counter(node.op_type for node in self.unrepairable).items():
            first = next(node for node in self.unrepairable if node.op_type == op)
            place = first.module or first.node or "the file"
            why = self.objections.get(op, ())
            head = "still blocks:" if why else "no rule repairs"
            lines.append(f"  {head} {count} x {op}, first in {place}: {first.evidence}")
            lines += [f"  {line}" for line in why]
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

    def _nothing(self) -> str:
        """Return that nothing blocks; where the table does not know an operator, who does."""
        target, unknown = self.check.target, self.check.unknown
        if not unknown:
            return f"Nothing blocks this model on {target}: no repair is needed."
        listed = ", ".join(f"{op} ({counted(count, 'node')})" for op, count in unknown.items())
        asked = "its converter says whether it takes them"
        if targets.TARGETS[target].convert:
            asked = "`labutils convert` asks the converter itself"
        return (
            f"Nothing that the table of {target} knows blocks this model. Unknown to it, and "
            f"perhaps refused: {listed}; {asked}."
        )

    def _cure(self) -> list[str]:
        target, allow = self.check.target, "" if self.exact else " --allow-approximate"
        if not (self.rules and self.complete):
            return []
        if targets.TARGETS[target].convert:
            end = targets.TARGETS[target].ending
            return [
                f"  Apply: labutils convert MODEL --target {target} --repair{allow} -o FILE{end}"
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
        source = canonical(OnnxFile.of(file), folder)
        return _plan_of(try_rules(source, target, folder, allow_approximate))


def apply(
    source: OnnxFile | str | Path,
    target: str,
    destination: str | Path,
    inputs: np.ndarray | None = None,
    *,
    allow_approximate: bool = False,
    writer: Writer | None = None,
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
    writer
        What will write the target's file: it is asked which nodes it refuses, whatever the table
        says of them, until it takes the file or no rule helps.

    Raises
    ------
    SurgeryError
        Nothing blocks and nothing can be tidied, or the rules do not remove all that blocks. A
        target that leaves what it does not take to the CPU takes a partial repair. Nothing is
        written then.
    """
    source, destination = OnnxFile.of(source), Path(destination)
    with paths.scratch() as folder:
        source = canonical(source, folder)
        trial = try_rules(source, target, folder, allow_approximate, writer)
        plan = _plan_of(trial)
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
    return Repair(destination, plan, report, trial.judge(made), edits, made)


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
        source = canonical(OnnxFile.of(source), folder)
        model, before = source.copy(shaped=True), source.shaped
        reports = surgery.replay_(model, edits)
        file = OnnxFile.write(folder / Path(destination).name, model, checked=True)
        report = _join_reports(reports, before, file, inputs)
        made = _write(file, Path(destination), edits)
    known = edits.made_for in targets.TARGETS
    check = targets.check(made, edits.made_for) if known else None
    return Repair(Path(destination), None, report, check, edits, made)


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


def _plan_of(trial: Trial) -> Plan:
    found: Counter[str] = Counter()
    for report in trial.reports:
        found.update({name: n for name, n in report.counts.items() if n})
    after = trial.now if trial.reports else None
    blockers = tuple(trial.now.blockers)
    return Plan(
        trial.check, dict(found), blockers, trial.offered, after, objections_to(blockers, trial)
    )


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
