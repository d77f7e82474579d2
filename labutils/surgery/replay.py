"""Replay the edits of a surgery on other weights of the same network."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SurgeryError
from .edits import Edit, Edits, outline
from .replacing import replace_
from .report import Report
from .rule import Rule
from .rules.book import select

if TYPE_CHECKING:
    import onnx
    from torch import nn


def replay_(
    model: nn.Module | onnx.ModelProto,
    edits: Edits | str | Path,
    rules: Iterable[Rule] = (),
    example_inputs: Any = None,
) -> tuple[Report, ...]:
    """Do to `model`, in place, what the edits say; return one report per edit.

    Parameters
    ----------
    model
        The same network with other weights, at the level that the edits were made at.
    edits
        `Edits`, or the path of their YAML file.
    rules
        Rules of your own that the edits name.
    example_inputs
        As in `replace_`.

    Raises
    ------
    SurgeryError
        Another network (the message names the first difference), or the rules match other places
        than they did; `model` is left as it was.
    UnknownNameError
        A rule that is neither in the rule book nor in `rules`.
    """
    import copy

    edits = edits if isinstance(edits, Edits) else Edits.read(edits)
    _refuse_another(model, edits)
    trial = copy.deepcopy(model)  # a later step may fail
    reports = _performed(trial, edits, rules, example_inputs)
    onnx = sys.modules.get("onnx")
    if onnx is not None and isinstance(model, onnx.ModelProto):
        model.CopyFrom(trial)
        return reports
    return _performed(model, edits, rules, example_inputs)


def _performed(
    model: nn.Module | onnx.ModelProto, edits: Edits, rules: Iterable[Rule], example_inputs: Any
) -> tuple[Report, ...]:
    own = {rule.name: rule for rule in rules}
    reports = []
    for number, step in enumerate(edits.steps, start=1):
        chosen = [_limited(rule, step) for rule in select([own.get(n, n) for n in step.rules])]
        report = replace_(model, chosen, step.level, example_inputs)
        found = {name: n for name, n in report.counts.items() if n}
        if step.replaced and found != step.replaced:
            raise SurgeryError(
                f"Step {number} of the edits replaced {step.replaced} when it was made and "
                f"{found} now: the rule book has changed since. The model was left as it was; "
                "make the edits again."
            )
        reports.append(report)
    return tuple(reports)


def _limited(rule: Rule, step: Edit) -> Rule:
    if rule.name in step.only:
        rule = rule.only(*step.only[rule.name])
    return rule.without(*step.without[rule.name]) if rule.name in step.without else rule


def _refuse_another(model: nn.Module | onnx.ModelProto, edits: Edits) -> None:
    ours, whose = outline(model), f" ({edits.model})" if edits.model else ""
    pairs = itertools.zip_longest(edits.outline, ours, fillvalue="nothing")
    for number, (wanted, found) in enumerate(pairs, start=1):
        if wanted != found:
            raise SurgeryError(
                f"The edits were made for another network{whose}: layer or node {number} is "
                f"'{found}' here and '{wanted}' there ({len(ours)} here, {len(edits.outline)} "
                "there). Nothing was changed."
            )
