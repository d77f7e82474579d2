"""Several calls of a program that are one layer together."""

from __future__ import annotations

import operator as python_operator
from typing import Any

from . import shape_operators, tensor_operators
from .operator import Operator
from .program import call, is_tensor, shape, target
from .shape_operators import RESHAPES

_SPLITS = {"chunk", "split", "split_with_sizes"}


def found(node: Any) -> tuple[Operator, Any] | None:
    """Return the layer that a node is the last call of, and the node that it takes; or None."""
    return _part(node) or _shuffle(node) or _normalize(node)


def _part(node: Any) -> tuple[Operator, Any] | None:
    """Return one result of a split as what it is of the whole."""
    if node.target is not python_operator.getitem:
        return None
    parts, index = node.args
    kind = target(parts)
    if kind not in _SPLITS | {"unbind"}:
        return None
    whole, dim = parts.args[0], call(parts)["dim"] % len(shape(parts.args[0]))
    if shape(whole)[dim] == -1:  # parts of the pictures
        return None
    if kind == "unbind":
        return shape_operators.Select(dim, index), whole
    sides = [value.shape[dim] for value in parts.meta["val"]]
    start = sum(sides[:index])
    return shape_operators.Slice(dim, start, start + sides[index]), whole


def _shuffle(node: Any) -> tuple[Operator, Any] | None:
    """Return what channel_shuffle is, or a view, a transposition and a view that do the same."""
    if target(node) == "channel_shuffle":
        return shape_operators.Shuffle(int(node.args[1])), node.args[0]
    if target(node) not in RESHAPES:
        return None
    turned = node.args[0]
    while target(turned) in ("contiguous", "clone"):
        turned = turned.args[0]
    grouped = turned.args[0] if turned.args and is_tensor(turned.args[0]) else None
    if grouped is None or target(grouped) not in RESHAPES:
        return None
    before, inner, after = shape(grouped.args[0]), shape(grouped), shape(node)
    swapped = target(turned) == "transpose" and sorted(turned.args[1:3]) == [1, 2]
    swapped |= target(turned) == "permute" and list(turned.args[1]) == [0, 2, 1, 3, 4]
    same = len(before) == 4 and before == after and len(inner) == 5
    fits = same and (inner[0], inner[1] * inner[2], *inner[3:]) == before
    return (shape_operators.Shuffle(inner[1]), grouped.args[0]) if swapped and fits else None


def _normalize(node: Any) -> tuple[Operator, Any] | None:
    """Return what torch.nn.functional.normalize is: x / expand(clamp_min(norm(x), eps))."""
    chain = [node]
    for kind in ("div", "expand_as", "clamp_min", "linalg_vector_norm"):
        if not is_tensor(chain[-1]) or target(chain[-1]) != kind:
            return None
        chain.append(chain[-1].args[1 if kind == "div" else 0])
    norm, eps = call(chain[3]), float(chain[2].args[1])
    plain = norm["ord"] == 2 and norm["keepdim"] and norm["dim"] and len(norm["dim"]) == 1
    if not plain or norm["self"] is not node.args[0]:
        return None
    dim = norm["dim"][0] % len(norm.shapes["self"])
    return tensor_operators.Normalize(dim, eps), node.args[0]
