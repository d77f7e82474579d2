"""Whether the globs of a recipe name nodes that a network has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...errors import UnknownNameError, UsageError
from ..recipe import Override, Recipe


def check(recipe: Recipe, nodes: Sequence[tuple[str, str]]) -> None:
    """Refuse overrides and exclusions that would do nothing.

    Parameters
    ----------
    recipe
        What is asked for.
    nodes
        What a glob may call each node, and its operator in ONNX ("" where it has none).

    Raises
    ------
    UnknownNameError
        No node has such a name.
    UsageError
        Nodes have, and they are of other operators than the override's.
    """
    names = [name for name, _ in nodes]
    for override in recipe.overrides:
        if any(override.matches(*node) for node in nodes):
            continue
        _refuse_operator(override, nodes)
        asked = override.node if override.node != "*" else override.op_type
        raise UnknownNameError("node", asked, names)
    for glob in recipe.exclude:
        if not any(Recipe(exclude=(glob,)).excluded(name) for name in names):
            raise UnknownNameError("node", glob, names)


def _refuse_operator(override: Override, nodes: Sequence[tuple[str, str]]) -> None:
    """Say of an override that names nodes of other operators what these are."""
    named = replace(override, op_type="*")
    found = sorted({op for name, op in nodes if named.matches(name, op) and op})
    if override.node != "*" and found:
        raise UsageError(
            f"The override of {override.node!r} is for op_type {override.op_type!r}, and what it "
            f"names is {' or '.join(found)}: change its op_type, or leave it out."
        )
