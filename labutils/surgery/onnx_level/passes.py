"""Exact rules for whole ONNX graphs: what conversion needs and no single pattern can express.

Each has a pass: it takes the graph, changes it in place, and returns what it replaced and what it
left. The network computes the same; only its file is written differently.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..forms import OnnxPass
from ..report import Left, Match
from ..rule import Rule

if TYPE_CHECKING:
    import onnx_ir as ir

_ROUNDS = 8  # shapes become known in waves; torchvision's swin_t needs two
_MOST_INPUTS = 2**20  # elements of a weight that a folded node may read


def _foldable(model: ir.Model) -> bool:
    """Whether a node other than an Identity depends on no input, or asks for a shape."""
    from .writing import array_of

    return any(
        node.op_type == "Shape" or all(array_of(value) is not None for value in node.inputs)
        for node in model.graph.all_nodes()
        if node.op_type not in ("Constant", "Identity") and list(node.inputs)
    )


def _fold_constants(model: ir.Model, rule: Rule) -> tuple[list[Match], list[Left]]:
    """Compute the nodes that no input of the network reaches, once."""
    import onnx_ir.passes.common as common
    from onnxscript import optimizer

    from .writing import label

    if not _foldable(model):
        return [], []
    before = {id(node): node for node in model.graph.all_nodes()}
    counts = Counter(node.op_type for node in before.values())
    nodes = -1
    for _ in range(_ROUNDS):
        optimizer.fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=_MOST_INPUTS,
            # kept by default to save bytes; here it keeps every later shape from being known
            should_fold=lambda node: True if node.op_type == "ConstantOfShape" else None,
        )
        common.RemoveUnusedNodesPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        if nodes == (nodes := sum(1 for _ in model.graph.all_nodes())):
            break
    kept = {id(node) for node in model.graph.all_nodes()}
    left_over = counts - Counter(node.op_type for node in model.graph.all_nodes())
    matches = [
        Match(rule.name, "onnx", label(node), node.op_type, "a constant, or removed")
        for key, node in before.items()
        if key not in kept and node.op_type != "Constant" and left_over[node.op_type]
    ]
    return matches, []


FOLD_CONSTANTS = Rule(
    name="fold-constants",
    exact=True,
    error="none: the same numbers, computed once by ONNX's reference implementation",
    source="constant folding of onnxscript's optimizer, repeated while shapes become known",
    keeps="names of the nodes that stay; nodes that depend on an input are unchanged",
    onnx_passes=(OnnxPass(_fold_constants),),
)

RULES = (FOLD_CONSTANTS,)
