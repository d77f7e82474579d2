"""The two levels of a PyTorch model together: modules first, then the functions still called."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import fx

from ...errors import SurgeryError, UsageError
from ..report import Check, Left, Match, Report, measure, nothing_matched
from ..rules.squeeze_excitation import watching
from . import forwards, functions, graph_edit, modules

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
    weights, has = modules.parameters(model), modules.has(model)
    before = after = gates = None
    macs = [None, None]
    if inputs is not None:
        with watching(modules.bounded(model, rules)) as watch:
            before, macs[0] = modules.outputs_and_macs(model, inputs)
        gates = watch.gates
    matches: list[Match] = []
    left: list[Left] = []
    calls: list[functions.Call] = []
    with ExitStack() as undo:  # an error leaves the model as it was
        if level in ("auto", "module"):
            matches, left, swaps = modules.replace_modules_(model, rules, gates)
            undo.callback(modules.put_, model, swaps)
        in_graph = (
            [] if level in ("module", "function") else _edit_graph_(model, rules, level, undo)
        )
        for part in in_graph:
            (matches if isinstance(part, Match) else left).append(part)
        if inputs is not None and level != "graph" and not isinstance(model, fx.GraphModule):
            calls, after = functions.find(model, rules, inputs, left)
            found = [call.match for call in calls if not call.why]
            places = {item.where for item in left}
            left += [c.left for c in calls if c.why and c.owner not in places]
            if found and level == "module":
                left += [
                    Left(c.where, c.was, "a function; level 'module' leaves it") for c in found
                ]
            elif found:
                undo.callback(functions.bake_(model, calls))
                matches += found
                reached = {call.owner for call in calls if not call.why}
                left = [item for item in left if not _by_its_function(item, reached)]
        if inputs is not None:
            after, macs[1] = modules.outputs_and_macs(model, inputs)
        if not matches:
            raise nothing_matched(
                type(model).__name__, level, rules, has, left, _hint(model, level, inputs)
            )
        check = None if inputs is None else measure(before, after, "the example inputs")
        report = Report(
            target=type(model).__name__,
            level="+".join(dict.fromkeys(match.level for match in matches)),
            rules=tuple(rules),
            matches=tuple(matches),
            left=tuple(left),
            parameters=(weights, modules.parameters(model)),
            check=check,
            macs=None if inputs is None else tuple(macs),
            notes=_notes(level, matches, inputs, before, check),
        )
        _refuse_lost_effects(report, [c.where for c in calls if c.in_place and not c.why])
        undo.pop_all()
    return report


def _by_its_function(item: Left, reached: set[str]) -> bool:
    """Whether a module was left for its class, and the function that it calls was replaced."""
    return item.where in reached and item.why.startswith(modules.SUBCLASS)


def replace_in_program_(
    program: ExportedProgram, rules: Sequence[Rule], example_inputs: Any
) -> Report:
    """Replace in an exported program; `labutils.surgery.replace_` says what, and calls this."""
    inputs = None if example_inputs is None else modules.as_arguments(example_inputs)
    graph_module = program.graph_module
    has = modules.has_calls(graph_module.graph)
    weights, original = modules.parameters(program), copy.deepcopy(graph_module.graph)
    signature = copy.deepcopy(program.graph_signature)
    before, macs = (None, 0) if inputs is None else _run_program(program, inputs)
    try:
        hook = program.graph_signature.get_replace_hook()
        with graph_module._set_replace_hook(hook):  # an output may get another name
            matches, left = graph_edit.edit_(graph_module, graph_module.graph, rules)
        graph_module.recompile()
        if not matches:
            raise nothing_matched("the exported program", "graph", rules, has, left, "")
        after, fewer = (None, 0) if inputs is None else _run_program(program, inputs)
        check = None if inputs is None else measure(before, after, "the example inputs")
    except Exception:
        graph_module.graph = original
        vars(program.graph_signature).update(vars(signature))
        raise
    return Report(
        target="the exported program",
        level="graph",
        rules=tuple(rules),
        matches=tuple(matches),
        left=tuple(left),
        parameters=(weights, modules.parameters(program)),
        check=check,
        macs=None if inputs is None else (macs, fewer),
        notes=() if inputs else ("without example_inputs nothing was run or compared",),
    )


def _run_program(program: ExportedProgram, inputs: tuple) -> tuple[list[ndarray], int]:
    return modules.outputs_and_macs(program.module(check_guards=False), inputs)


def _edit_graph_(
    model: nn.Module, rules: Sequence[Rule], level: str, undo: ExitStack
) -> list[Match | Left]:
    """Edit a graph module, or the forwards of a model that hold a rule's pattern."""
    deep = level == "graph"
    if not deep and not isinstance(model, fx.GraphModule) and not any(r.graph for r in rules):
        return []
    if isinstance(model, fx.GraphModule):
        matches, left, back = graph_edit.edit_graph_module_(model, rules)
    else:
        matches, left, back = forwards.edit_forwards_(model, rules, deep)
    undo.callback(back)
    return [*matches, *left]


def _refuse_lost_effects(report: Report, in_place: Sequence[str]) -> None:
    """Raise when a call was made for its effect on its argument: the replacement has none."""
    if report.exact and report.check and not report.check.rounding and in_place:
        raise SurgeryError(
            f"The outputs changed ({report.check}), and these calls work in place: "
            f"{', '.join(dict.fromkeys(in_place))}. The replacement only returns its result. "
            "Use the result in the model's source: x = F.hardswish(x). The model was left as it "
            "was."
        )


def _hint(model: nn.Module, level: str, inputs: tuple | None) -> str:
    if functions.baked_rules(model):
        names = ", ".join(rule.name for rule in functions.baked_rules(model))
        return f"Functions were replaced in it already, by: {names}."
    if inputs is None and level == "auto":
        return "Calls of functions were not looked for: pass example_inputs= for that."
    return ""


def _notes(
    level: str,
    matches: Sequence[Match],
    inputs: tuple | None,
    before: list[ndarray] | None,
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
            "were traced and edited; surgery.restore_(model) takes that back"
        )
    if any(m.level == "function" for m in matches):
        notes.append(
            "functions are replaced while the model runs: by a function mode in its forward, which "
            "exporters follow; surgery.restore_(model) takes it back"
        )
    return tuple(notes)
