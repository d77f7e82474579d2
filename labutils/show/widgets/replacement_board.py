"""The replacement board: a target and a file, a diagnosis, ticked rules, a repair, a verdict."""

from __future__ import annotations

import dataclasses
import html
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from ... import paths, pipeline, surgery, targets
from ...errors import LabError, UsageError, counted
from ...typesetting import words
from ..graphs.graph_svg import before_after, subgraph
from ..graphs.svg import Svg
from .panel import Panel, banner, labelled, on_change, row, table

_LITE = "Lite rules, off unless you want them: another network, to be trained again:"
_PROSE = "line-height:1.4;white-space:normal"
_LONGEST = 170  # characters of evidence in the table; the tooltip has all


class ReplacementBoard(Panel):
    """Find out what stops a model on a target, and replace it until the verdict is green.

    Nothing of the given files is changed: a repaired copy goes to ``generated_models``.

    Parameters
    ----------
    files
        Name -> ONNX file, such as ``lesson.files``.
    target
        A name in ``targets.TARGETS``, to begin with.

    Attributes
    ----------
    boxes
        Rule name -> its checkbox, for the rules that match something in the file.
    plan
        What `pipeline.suggest` found; None before a diagnosis.
    report, check
        The surgery's report and the repaired file's check; None before a repair.
    """

    def __init__(self, files: Mapping[str, str | Path], target: str = "snpe-2.7") -> None:
        self.plan: pipeline.Plan | None = None
        self.report: Any = None
        self.check: targets.CheckReport | None = None
        self.files = {str(name): Path(path) for name, path in files.items()}
        if not self.files:
            raise UsageError("The board needs at least one ONNX file: {name: path}.")
        targets.load(target)  # an unknown name ends here, with the nearest
        named = [(f"{name}: {path.name}", name) for name, path in self.files.items()]
        self.target = labelled(
            widgets.Dropdown, "Target", options=list(targets.TARGETS), value=target
        )
        self.file = labelled(widgets.Dropdown, "File", options=named, width="38em")
        self.diagnose_button = _button("Diagnose", "search")
        self.repair_button = _button("Repair", "wrench")
        self.rules = widgets.VBox()
        self.verdict, self.account, self.graph, self.operators = (widgets.HTML() for _ in range(4))
        self.verdict.add_class("lab-verdict")
        super().__init__(
            "Replacement board",
            [row(self.target, self.file, self.diagnose_button), self.rules],
            [self.diagnose_button, self.repair_button],
            [self.verdict, self.account, self.operators, self.graph],
        )
        heading, choice, *_ = self.parts()
        self.children = (
            heading, choice, self.verdict, self.rules, self.bar, self.status,
            self.account, self.operators, self.graph,
        )  # fmt: skip
        for control in (self.target, self.file):
            on_change(control, self._clear)
        self.diagnose_button.on_click(lambda button: self.diagnose())
        self.repair_button.on_click(lambda button: self.repair())
        self.diagnose()

    @property
    def source(self) -> Path:
        """The file that is chosen."""
        return self.files[self.file.value]

    @property
    def ticked(self) -> tuple[str, ...]:
        """The rules that are ticked."""
        return tuple(name for name, box in self.boxes.items() if box.value)

    def diagnose(self) -> None:
        """Check the file against the target, and offer the rules that would repair it."""
        self._clear()
        with self.working(f"Checking {self.source.name} against {self.target.value} ..."):
            plan = pipeline.suggest(self.source, self.target.value)
            self._show_check(plan.check)
            self.graph.value = _drawn(lambda: _blocker(self.source, plan.check))
            self._offer(plan)
            self.plan = plan
            self._diagnosis = [result.value for result in self.results]
            first, *_ = str(plan).splitlines()
            self.say(first if not plan.rules else f"{first} The rules that help are ticked.")
        self._allow()

    def repair(self) -> None:
        """Replace by the ticked rules in a copy, compare the outputs, and check the copy."""
        for result, seen in zip(self.results, self._diagnosis, strict=True):
            result.value = seen
        with self.working(f"Replacing in a copy of {self.source.name} ...", keep=True):
            if self.plan is None:
                raise UsageError("Press Diagnose first: then the board knows what there is.")
            if not self.ticked:
                raise UsageError("No rule is ticked: nothing would change.")
            name = f"board_{self.source.stem}_{self.target.value}.onnx"
            copy = paths.generated() / name
            report = _replaced_in(self.source, copy, self.ticked)
            self.say(f"Checking {name} against {self.target.value} ...", "busy")
            check = targets.check(copy, self.target.value)
            self.report, self.check = report, check
            self._show_check(check)
            self.account.value = _account(report, self.plan.check, check)
            place = _replaced(self.plan.check, check) or report.matches[0].where
            checks = (self.plan.check, check)
            self.graph.value = _drawn(
                lambda: before_after(self.source, copy, place, reports=checks)
            )
            self.say(*_outcome(name, report, check, self.plan))
        self._allow()

    def _allow(self) -> None:
        """Repair can be pressed while a rule is ticked."""
        self.repair_button.disabled = bool(self.boxes) and not self.ticked

    def _clear(self) -> None:
        self.plan = self.report = self.check = None
        self._diagnosis = ["" for _ in self.results]
        self.boxes: dict[str, widgets.Checkbox] = {}
        self.rules.children = ()
        for result in self.results:
            result.value = ""
        self.say(f"Press Diagnose: {self.source.name} against {self.target.value}.")

    def _show_check(self, check: targets.CheckReport) -> None:
        self.verdict.value = _verdict(check)
        self.operators.value = _operators(check)

    def _offer(self, plan: pipeline.Plan) -> None:
        """Show every rule that finds something in this file; apart, those that need training."""
        ops = {node.op_type for node in (*plan.check.nodes, *plan.check.blockers)}
        rules = [rule for rule in surgery.RULES.values() if rule.ops & ops]
        fitting = [
            r for r in rules if r.name in plan.rules or surgery.preview(self.source, r)[r.name]
        ]
        fitting.sort(key=lambda rule: rule.needs_training)
        self.boxes = {rule.name: _checkbox(rule, plan.rules) for rule in fitting}
        for box in self.boxes.values():
            on_change(box, self._allow)
        lines = [row(self.boxes[rule.name], _promise(rule)) for rule in fitting]
        trained = sum(not rule.needs_training for rule in fitting)  # as good as before
        head = "Rules that match something here:" if lines else "No rule matches this file."
        lite = [_said(_LITE)] if trained < len(lines) else []
        last = [self.repair_button] if lines else []
        self.rules.children = (
            _said(head), *lines[:trained], *lite, *lines[trained:], *last,
        )  # fmt: skip


def _button(name: str, icon: str) -> widgets.Button:
    return widgets.Button(
        description=name, icon=icon, button_style="primary",
        layout={"width": "10em", "margin": "2px 2px 2px 8px"},
    )  # fmt: skip


def _checkbox(rule: surgery.Rule, needed: Mapping[str, int]) -> widgets.Checkbox:
    nodes = f" repairs {counted(needed[rule.name], 'node')}" if rule.name in needed else ""
    return widgets.Checkbox(
        value=rule.name in needed,
        description=f"{rule.name}{nodes}",
        indent=False,
        layout={"width": "19em", "margin": "0 2px 0 1em"},
    )


def _promise(rule: surgery.Rule) -> widgets.HTML:
    kind = "exact" if rule.exact else "<b>approximate</b>"
    kind += ", <b>needs training</b>" * rule.needs_training
    return widgets.HTML(
        f'<div style="{_PROSE};padding:.3em 0 .3em 1em">{kind}: {words(rule.error)}</div>',
        layout={"flex": "1 1 18em"},  # beside the box; below it where the page is narrow
    )


def _said(text: str) -> widgets.HTML:
    """Return a line above controls; a Label would be cut where the page is narrow."""
    return widgets.HTML(f'<p style="{_PROSE}">{words(text)}</p>')


def _verdict(check: targets.CheckReport) -> str:
    """Say in one line, with a colour and a mark, what becomes of the file."""
    _, _, counted, conclusion, *warnings = check.summary()
    kind = "bad" if check.blockers else "warn" if check.unknown or warnings else "good"
    word = {"bad": "Blocked", "warn": "Nothing blocks, but look", "good": "Accepted"}[kind]
    if check.subgraphs is not None and check.blockers:
        word = "Split"
    head = f"{word}: {check.file} for {check.target}. {conclusion}"
    read = check.table.retrieved
    if any(not node.node for node in check.blockers):
        counted = "The file as a whole is refused, whatever its operators."
    source = f"By the documented operator table (read {read}); this check does not run the tool."
    return banner("\n".join([head, counted, *warnings, source]), kind)


def _replaced(before: targets.CheckReport, after: targets.CheckReport) -> str:
    """Return the first blocking node that is gone: there is something to see."""
    there = {node.node for node in after.nodes}
    return next((n.node for n in before.blockers if n.node and n.node not in there), "")


def _replaced_in(source: Path, copy: Path, names: tuple[str, ...]) -> surgery.Report:
    """Replace in a copy; an older opset comes last, when what it does not know is gone."""
    older = tuple(n for n in names if any(op.startswith("opset") for op in surgery.RULES[n].ops))
    first = tuple(name for name in names if name not in older)
    report = surgery.replace_file(source, copy, first or older)
    if not (first and older):
        return report
    last = surgery.replace_file(copy, copy, older)
    return dataclasses.replace(
        report, rules=report.rules + last.rules, matches=report.matches + last.matches,
        left=report.left + last.left, parameters=(report.parameters[0], last.parameters[1]),
        notes=report.notes + last.notes,
    )  # fmt: skip


def _outcome(
    name: str, report: surgery.Report, check: targets.CheckReport, plan: pipeline.Plan
) -> tuple[str, str]:
    if check.ok and report.check and not report.check.rounding:
        return (
            f"Repaired, and not the same function any more: {name} in generated_models. Measure "
            "it, or train it again, before it counts."
        ), "warn"
    if check.ok:
        return f"Repaired: {name} in generated_models.", "good"
    left = f"{len(check.blockers)} of {len(plan.check.blockers)} blockers are left"
    hopeless = {node.op_type for node in plan.unrepairable} & {n.op_type for n in check.blockers}
    if hopeless:
        return f"{left}; no exact rule removes {', '.join(sorted(hopeless))}.", "warn"
    return f"{left}: error once again! Tick the other rules that help.", "warn"


def _account(
    report: surgery.Report, before: targets.CheckReport, after: targets.CheckReport
) -> str:
    """Say what was replaced, what that changed for the target, and whether the function is kept."""
    counts = ", ".join(f"{name}: {n}" for name, n in report.counts.items())
    check = str(report.check) if report.check else "; ".join(report.notes) or "not made"
    rows = [
        ("replaced nodes", counts),
        ("blockers", f"{len(before.blockers)} before, {len(after.blockers)} after"),
        ("same function?", check),
        ("parameters", "{:,} before, {:,} after".format(*report.parameters)),
    ]
    if not report.exact:
        rows.append(("note", "an approximate rule: another function, which may need retraining"))
    return table(("what", "found"), [(a, words(b)) for a, b in rows])


def _operators(check: targets.CheckReport) -> str:
    """List operators that need a look one by one, the supported ones in one line."""
    rows = []
    for op, verdict, nodes, place, evidence in check.groups():
        if verdict != "supported":
            short = evidence if len(evidence) <= _LONGEST else f"{evidence[:_LONGEST]}…"
            said = f'<span title="{html.escape(evidence)}">{words(short)}</span>'
            rows.append((*map(words, (op, verdict, str(nodes), place)), said))
    taken = Counter(node.op_type for node in check.nodes if node.verdict == "supported")
    listed = ", ".join(f"{op} × {n}" for op, n in taken.most_common()) or "none"
    caption = f"Supported: {words(listed)}."
    if not rows:
        return f'<p style="{_PROSE}">{caption}</p>'
    return table(("operator", "verdict", "nodes", "first in", "evidence"), rows, caption)


def _blocker(source: Path, check: targets.CheckReport) -> Svg | str:
    first = check.first_blocker
    if first is None:
        return ""
    if not first.node:  # the verdict above says why the file as a whole is refused
        return ""
    return subgraph(source, first.node, report=check)


def _drawn(draw) -> str:  # noqa: ANN001 - () -> Svg or words
    """Return a picture as HTML; where it cannot be drawn, the reason."""
    try:
        found = draw()
    except LabError as error:
        found = f"No picture: {error}"
    if isinstance(found, Svg):
        return found._repr_html_()
    return f'<p style="{_PROSE}">{words(found)}</p>' if found else ""
