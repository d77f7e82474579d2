"""Replacing nodes in an ONNX model: rewrite, check, compare, and only then change the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import SurgeryError, counted
from ...onnxfile.wall import wall
from ..report import Report, nothing_matched, require_same
from .check import compare_outputs
from .rewriting import rewrite_

if TYPE_CHECKING:
    import onnx

    from ..report import Left, Match
    from ..rule import Rule

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def replace_nodes_(model: onnx.ModelProto, rules: Sequence[Rule], example_inputs: Any) -> Report:
    """Replace in an ONNX model; `labutils.surgery.replace_` says what, and calls this.

    Raises
    ------
    SurgeryError
        Nothing matched, the graph is quantized, or the checker refuses the result; the model is
        left as it was.
    """
    import onnx

    name = model.graph.name or "the graph"
    result, matches, left = _rewritten(model, rules)
    if not matches:
        raise nothing_matched(name, "onnx", rules, count_operators(model), left, "")
    _refuse_quantized(model)
    with wall(
        "The rewritten graph is not valid ONNX:", name, error=SurgeryError, model=result,
        advice="The model was left as it was.",
    ):  # fmt: skip
        onnx.checker.check_model(result, full_check=True)
    check, notes = compare_outputs(model, result, example_inputs)
    report = Report(
        target=name,
        level="onnx",
        rules=tuple(rules),
        matches=tuple(matches),
        left=tuple(left),
        parameters=(count_parameters(model), count_parameters(result)),
        check=check,
        notes=notes,
        macs=_macs(model, result),
    )
    require_same(report)
    model.CopyFrom(result)
    return report


def _macs(before: onnx.ModelProto, after: onnx.ModelProto) -> tuple[int, int] | None:
    from ...measure.complexity import graph_macs

    macs = graph_macs(before), graph_macs(after)
    return None if macs[0] is None or macs[1] is None else (macs[0], macs[1])


def count_matches(model: onnx.ModelProto, rules: Sequence[Rule]) -> dict[str, int]:
    """Return how often each rule would replace something in a graph; the graph stays as it is."""
    _, matches, _ = _rewritten(model, rules)
    found = Counter(match.rule for match in matches)
    return {rule.name: found[rule.name] for rule in rules}


def _rewritten(
    model: onnx.ModelProto, rules: Sequence[Rule]
) -> tuple[onnx.ModelProto, list[Match], list[Left]]:
    """Return a rewritten copy of a graph, what matched and what was left."""
    import onnx_ir as ir

    words = (w for node in model.graph.node for w in (node.name, *node.input, *node.output))
    if any(isinstance(word, bytes) for word in words):
        raise SurgeryError(
            f"{model.graph.name or 'The graph'!r} is damaged: a name in it is not UTF-8 text. "
            "Download the file again, or export it again."
        )
    name = model.graph.name or "the graph"
    read = "Is it damaged? Export it again."
    with wall("onnx_ir cannot read", name, error=SurgeryError, model=model, advice=read):
        copy = ir.from_proto(model)
    names = ", ".join(rule.name for rule in rules[:3]) + ", ..." * (len(rules) > 3)
    advice = f"The rules were {names}; the model was left as it was. Apply them one by one."
    with wall("Rules cannot rewrite", name, error=SurgeryError, model=model, advice=advice):
        matches, left = rewrite_(copy, rules)
        return ir.to_proto(copy), matches, left


def _refuse_quantized(model: onnx.ModelProto) -> None:
    found = [n for n in model.graph.node if n.op_type in _QUANTIZED or "QLinear" in n.op_type]
    if found:
        raise SurgeryError(
            f"The graph is quantized ({counted(len(found), 'node')} such as {found[0].name!r}). "
            "The new nodes would work in float between the scales. Replace in the float model, "
            "then quantize it. The model was left as it was."
        )


def count_operators(model: onnx.ModelProto) -> Counter[str]:
    """Count the operators of a graph."""
    return Counter(node.op_type for node in model.graph.node)


def count_parameters(model: onnx.ModelProto) -> int:
    """Return the number of weights: initializers and Constant nodes of one dimension or more.

    Scalars are literals of a formula, and surgery adds such.
    """
    constants = [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute]
    tensors = [t for t in (*model.graph.initializer, *constants) if t.dims]
    return sum(math.prod(t.dims) for t in tensors)
