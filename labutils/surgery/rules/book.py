"""The rule book: every rule by name, the rule sets, and the selection of some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import SurgeryError, UnknownNameError, UsageError
from ..naming import full_name
from ..onnx_level import passes
from ..rule import Rule
from ..user_rules import from_mapping
from . import (
    convnext,
    convolution,
    hard_activations,
    idle_nodes,
    in_place,
    normalization,
    onnx_convolutions,
    onnx_functions,
    onnx_operators,
    onnx_opset,
    onnx_padding,
    onnx_resizing,
    pooling,
    products,
    resizing,
    smooth_activations,
    squeeze_excitation,
    to_relu,
)

RULES: dict[str, Rule] = {
    rule.name: rule
    for family in (
        hard_activations,
        smooth_activations,
        normalization,
        pooling,
        convolution,
        resizing,
        products,
        in_place,
        idle_nodes,
        squeeze_excitation,
        convnext,
        to_relu,
    )
    for rule in family.RULES
}
EXACT = tuple(name for name, rule in RULES.items() if rule.exact)
"""Rules that compute the same, within the error that each states."""

ONNX_ONLY: dict[str, Rule] = {
    rule.name: rule
    for family in (
        passes,
        onnx_convolutions,
        onnx_functions,
        onnx_operators,
        onnx_padding,
        onnx_resizing,
        onnx_opset,
    )
    for rule in family.RULES
}
"""Also exact, but for particular targets: some enlarge a graph. By name, or through `repair`."""
RULES |= ONNX_ONLY

TIDY = ("fold-constants", "merge-branches", "five-dimensions")
"""What only simplifies a graph, for every target."""

DEFAULT = ("hardsigmoid", "hardswish")
"""What MobileNetV3 needs, and what `replace_` does when no rules are given."""

LITE = (
    "convnext-block",
    "se-to-identity",
    "hardswish-to-relu",
    "hardsigmoid-to-relu",
    "gelu-to-relu",
    "silu-to-relu",
    "relu6-to-relu",
    "leaky-relu-to-relu",
    "relu-out-of-place",
    "dropout-out-of-place",
    "large-maxpool",
    "large-avgpool",
    "resize-to-scale",
    "conv6-to-conv5",
)
"""TI's default surgery, without its faults: for a network that will be retrained."""

LITE_OPTIONAL = (
    "layernorm-to-batchnorm",
    "layernorm2d-to-batchnorm",
    "groupnorm-to-batchnorm",
    "instancenorm-to-batchnorm",
    "focus",
    "large-kernel-to-stack",
    "even-kernel",
)
"""What else TI's toolkit offers; request "conv-to-separable" by name and place."""

SETS: dict[str, tuple[str, ...]] = {
    "exact": EXACT,
    "mobilenetv3": DEFAULT,
    "lite": LITE,
    "lite-optional": LITE_OPTIONAL,
    "tidy": TIDY,
}


def select(rules: Any) -> tuple[Rule, ...]:
    """Return the rules of these names, sets, dicts; `Rule` objects pass.

    Parameters
    ----------
    rules
        A name of `RULES` or `SETS`, a `Rule`, a dict (`from_mapping` says of what), or several.

    Raises
    ------
    UnknownNameError
        No rule or set has this name; the message suggests the nearest.
    SurgeryError
        Two rules claim the same layer, so the order would decide.
    """
    given = [rules] if isinstance(rules, str | Rule | Mapping) else list(rules)
    chosen = {rule.name: rule for item in given for rule in _rules_of(item)}
    if not chosen:
        raise UsageError(
            f"No rules were given. Sets: {', '.join(SETS)}; rules: {', '.join(sorted(RULES))}."
        )
    _refuse_conflicts(chosen.values())
    return tuple(chosen.values())


def _rules_of(item: Any) -> list[Rule]:
    if isinstance(item, Rule):
        return [item]
    if isinstance(item, Mapping):
        return from_mapping(item)
    if item in SETS:
        return [RULES[name] for name in SETS[item]]
    if item not in RULES:
        raise UnknownNameError("surgery rule or rule set", str(item), (*RULES, *SETS))
    return [RULES[item]]


def _refuse_conflicts(rules: Iterable[Rule]) -> None:
    """Raise when two rules would take the same layer: a check or a place may tell them apart."""
    claimed: dict[str, str] = {}
    for rule in rules:
        if rule.include:
            continue
        classes = [cls for form in rule.modules if form.check is None for cls in form.classes]
        calls = [call for form in rule.functions if form.check is None for call in form.functions]
        for thing in (*classes, *calls):
            other = claimed.setdefault(full_name(thing), rule.name)
            if other != rule.name:
                raise SurgeryError(
                    f"The rules {other!r} and {rule.name!r} both replace {full_name(thing)}. "
                    "Give one of them, or a place to each: rule.only('features.*')."
                )
