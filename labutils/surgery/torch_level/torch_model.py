"""The levels of a PyTorch model: modules, traced patterns, and functions that are still called."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import fx

from ...errors import SurgeryError, UsageError
from ..report import Check, Left, Match, Report, check_outputs, nothing_matched, require_same
from . import forwards, functions, graph_edit, in_place, modules
from .gates import watching

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import nn
    from torch.export import ExportedProgram

    from ..rule import Rule


def replace_in_module_(
    model: nn.Module, rules: Sequence[Rule], level: str, example_inputs: Any
) -> Report:
    """Replace in a PyTorch model; `labutils.surgery.replace_` says what, and calls this."""
    if level == "function" and example_inputs is None:
        raise UsageError(
            "Level 'function' needs example_inputs: only a run can prove that a call was replaced."
        )
    inputs = None if example_inputs is None else modules.as_arguments(example_inputs)
    attempt = _Attempt(model, rules, level, inputs)
    with attempt.undo:  # an error leaves the model as it was
        if level in ("auto", "module"):
            attempt.replace_modules_()
        if level in ("auto", "graph"):
            attempt.edit_graph_()
        if inputs is not None and level != "graph" and not isinstance(model, fx.GraphModule):
            attempt.replace_functions_(inputs)
        report = attempt.make_report()
        require_same(report)
        attempt.undo.pop_all()
    return report


class _Attempt:
    """One replacement in a model: its state before, what was done so far, and how to undo it."""

    def __init__(
        self, model: nn.Module, rules: Sequence[Rule], level: str, inputs: tuple | None
    ) -> None:
        self.model, self.rules, self.level, self.inputs = model, rules, level, inputs
        self.weights, self.kinds = modules.count_parameters(model), modules.count_kinds(model)
        self.undo = ExitStack()
        self.matches: list[Match] = []
        self.left: list[Left] = []
        self.before: list[ndarray] = []
        self.macs = 0
        self.gates: set[nn.Module] | None = None
        if inputs is not None:
            with watching(modules.possible_gates(model, rules)) as watch:
                self.before, self.macs = modules.run_and_count(model, inputs)
            self.gates = watch.gates
        self.read_again = in_place.layers_read_again(model, inputs, self.before)

    def replace_modules_(self) -> None:
        """Replace submodules."""
        matches, left, swaps = modules.replace_modules_(
            self.model, self.rules, self.gates, self.read_again
        )
        self.undo.callback(modules.put_, self.model, swaps)
        self.matches += matches
        self.left += left

    def edit_graph_(self) -> None:
        """Edit a graph module, or the forwards of a model that hold a rule's pattern."""
        if isinstance(self.model, fx.GraphModule):
            change = graph_edit.edit_graph_module_(self.model, self.rules)
        elif self.level == "graph" or any(rule.graph for rule in self.rules):
            change = forwards.edit_forwards_(self.model, self.rules, deep=self.level == "graph")
        else:
            return
        matches, left, put_back = change
        self.undo.callback(put_back)
        self.matches += matches
        self.left += left

    def replace_functions_(self, inputs: tuple) -> None:
        """Replace the functions that are still called; level 'module' only lists them."""
        calls, _ = functions.find_calls(self.model, self.rules, inputs, self.left)
        places = {item.where for item in self.left}
        self.left += [c.left for c in calls if c.why and c.owner not in places]
        found = [call for call in calls if not call.why]
        if self.level == "module":
            why = "a function; level 'module' leaves it"
            self.left += [Left(call.where, call.was, why) for call in found]
        elif found:
            _refuse_lost_effects(self.model, self.rules, inputs, found)
            self.undo.callback(functions.bake_(self.model, calls))
            self.matches += [call.match for call in found]
            reached = {call.owner for call in found}
            self.left = [item for item in self.left if not _by_its_function(item, reached)]

    def make_report(self) -> Report:
        """Compare the outputs before and after, and report what was done.

        Raises
        ------
        SurgeryError
            Nothing matched, or the outputs' shapes changed.
        """
        name = type(self.model).__name__
        after, macs, check = None, None, None
        if self.inputs is not None:
            after, now = modules.run_and_count(self.model, self.inputs)
            macs = (self.macs, now)
        if not self.matches:
            hint = _hint(self.model, self.level, self.inputs)
            raise nothing_matched(name, self.level, self.rules, self.kinds, self.left, hint)
        if after is not None:
            check = check_outputs(self.before, after, "the example inputs")
        return Report(
            target=name,
            level="+".join(dict.fromkeys(match.level for match in self.matches)),
            rules=tuple(self.rules),
            matches=tuple(self.matches),
            left=tuple(self.left),
            parameters=(self.weights, modules.count_parameters(self.model)),
            check=check,
            macs=macs,
            notes=_notes(self.level, self.matches, self.inputs, check),
        )


def _by_its_function(item: Left, reached: set[str]) -> bool:
    """Whether a module was left for its class, and the function that it calls was replaced."""
    return item.where in reached and item.why.startswith(modules.SUBCLASS)


def replace_in_program_(
    program: ExportedProgram, rules: Sequence[Rule], example_inputs: Any
) -> Report:
    """Replace in an exported program; `labutils.surgery.replace_` says what, and calls this."""
    inputs = None if example_inputs is None else modules.as_arguments(example_inputs)
    graph_module = program.graph_module
    has = modules.count_calls(graph_module.graph)
    weights, original = modules.count_parameters(program), copy.deepcopy(graph_module.graph)
    signature = copy.deepcopy(program.graph_signature)
    before, macs = ([], 0) if inputs is None else _run_program(program, inputs)
    check = fewer = None
    try:
        hook = program.graph_signature.get_replace_hook()
        with graph_module._set_replace_hook(hook):  # an output may get another name
            matches, left = graph_edit.edit_(graph_module, graph_module.graph, rules)
        graph_module.recompile()
        if not matches:
            raise nothing_matched("the exported program", "graph", rules, has, left, "")
        if inputs is not None:
            after, fewer = _run_program(program, inputs)
            check = check_outputs(before, after, "the example inputs")
        report = Report(
            target="the exported program",
            level="graph",
            rules=tuple(rules),
            matches=tuple(matches),
            left=tuple(left),
            parameters=(weights, modules.count_parameters(program)),
            check=check,
            macs=None if fewer is None else (macs, fewer),
            notes=() if inputs else ("without example_inputs nothing was run or compared",),
        )
        require_same(report)
    except Exception:
        graph_module.graph = original
        vars(program.graph_signature).update(vars(signature))
        raise
    return report


def _run_program(program: ExportedProgram, inputs: tuple) -> tuple[list[ndarray], int]:
    return modules.run_and_count(program.module(check_guards=False), inputs)


def _refuse_lost_effects(
    model: nn.Module, rules: Sequence[Rule], inputs: tuple, calls: Sequence[functions.Call]
) -> None:
    """Raise if a call was made for its effect on its argument: the replacement has none."""
    places = [call.where for call in calls if call.in_place]
    known = [f for rule in rules for form in rule.functions for f in form.resolved()]
    if places and in_place.calls_read_again(model, inputs, functions.is_in_place, known):
        raise SurgeryError(
            f"These calls work in place, and their argument is read again: "
            f"{', '.join(dict.fromkeys(places))}. The replacement only returns its result, so the "
            "outputs would change. Use the result in the model's source: x = F.hardswish(x). The "
            "model was left as it was."
        )


def _hint(model: nn.Module, level: str, inputs: tuple | None) -> str:
    if functions.baked_rules(model):
        names = ", ".join(rule.name for rule in functions.baked_rules(model))
        return f"Functions in it were already replaced by: {names}."
    if inputs is None and level == "auto":
        return "Calls of functions were not looked for: pass example_inputs= for that."
    return ""


def _notes(
    level: str,
    matches: Sequence[Match],
    inputs: tuple | None,
    check: Check | None,
) -> tuple[str, ...]:
    notes = []
    if inputs is None:
        notes.append(
            "without example_inputs nothing was run: outputs not compared, and calls of functions "
            "not looked for"
        )
    elif check is None:
        notes.append("the outputs on the example inputs are not finite, so they were not compared")
    if level == "auto" and inputs is not None and not any(m.level == "function" for m in matches):
        notes.append("no call of a function was left on the example inputs: modules were enough")
    if any(m.level == "graph" for m in matches):
        notes.append(
            "patterns of several operations have no module to replace: the forwards that hold them "
            "were traced and edited; surgery.restore_(model) undoes that"
        )
    if any(m.level == "function" for m in matches):
        notes.append(
            "functions are replaced while the model runs: by a function mode in its forward, which "
            "exporters follow; surgery.restore_(model) undoes that"
        )
    return tuple(notes)
