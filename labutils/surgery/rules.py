"""The rule book: every rule by name, and the selection of some."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import SurgeryError, UnknownNameError, UsageError
from . import onnx_convolutions, onnx_operators, onnx_opset, onnx_passes
from .activations import HARDSIGMOID, HARDSWISH, VENDOR_HARDSIGMOID
from .rule import Rule, full_name

ONNX_ONLY = {
    rule.name: rule
    for rule in (
        onnx_passes.FOLD_CONSTANTS,
        *onnx_convolutions.RULES,
        *onnx_operators.RULES,
        onnx_opset.LOWER_OPSET,
    )
}
RULES: dict[str, Rule] = {
    rule.name: rule for rule in (HARDSIGMOID, HARDSWISH, VENDOR_HARDSIGMOID)
} | ONNX_ONLY
EXACT = ("hardsigmoid", "hardswish")


def select(rules: str | Rule | Iterable[str | Rule]) -> tuple[Rule, ...]:
    """Return the rules with these names; `Rule` objects pass.

    Raises
    ------
    UnknownNameError
        No rule has this name; the message suggests the nearest.
    SurgeryError
        Two rules claim the same layer, so the order would decide.
    """
    rules = [rules] if isinstance(rules, str | Rule) else list(rules)
    if not rules:
        raise UsageError(f"No rules were given. Known: {', '.join(sorted(RULES))}.")
    for rule in rules:
        if not isinstance(rule, Rule) and rule not in RULES:
            raise UnknownNameError("surgery rule", str(rule), RULES)
    chosen = {r.name: r for r in (r if isinstance(r, Rule) else RULES[r] for r in rules)}
    claimed: dict[str, str] = {}
    for rule in chosen.values():
        for thing in (*rule.modules, *rule.functions):
            other = claimed.setdefault(full_name(thing), rule.name)
            if other != rule.name:
                raise SurgeryError(
                    f"The rules {other!r} and {rule.name!r} both replace {full_name(thing)}. "
                    "Give one of them."
                )
    return tuple(chosen.values())
