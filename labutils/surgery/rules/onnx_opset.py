"""An exact rule that writes an ONNX graph in an older opset, for tools that cannot read newer ones.

ONNX's version converter cannot downgrade most of these operators. What changed in them is how they
are written: where axes are given, which types they take. Where the meaning of a node changed, the
node is left, and so is the opset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..forms import OnnxPass
from ..report import Left, Match
from ..rule import Rule

if TYPE_CHECKING:
    import onnx_ir as ir

OLDEST = 11
"""The opset written: Clip, Pad and Resize took their settings as inputs then, as they do now."""

# From opset 11 to 17 these changed in the types that they take, and in nothing else.
_SAME = frozenset(
    [
        "Abs",
        "Add",
        "ArgMax",
        "ArgMin",
        "AveragePool",
        "Cast",
        "Ceil",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "ConvTranspose",
        "CumSum",
        "DepthToSpace",
        "Div",
        "Dropout",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "Gemm",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Greater",
        "HardSigmoid",
        "Identity",
        "InstanceNormalization",
        "LeakyRelu",
        "Less",
        "Log",
        "LRN",
        "MatMul",
        "Max",
        "MaxPool",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "PRelu",
        "Pad",
        "Pow",
        "Range",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "Relu",
        "Reshape",
        "Selu",
        "Shape",
        "Sigmoid",
        "Sign",
        "Sin",
        "Slice",
        "Softplus",
        "SpaceToDepth",
        "Sqrt",
        "Sub",
        "Sum",
        "Tanh",
        "Tile",
        "TopK",
        "Transpose",
        "Where",
    ]
)
# op -> attributes that opset 11 does not know, with the value that can be dropped
_NEW_ATTRIBUTES: dict[str, dict[str, int | None]] = {
    "Reshape": {"allowzero": 0},
    "Shape": {"start": 0, "end": None},
    "ArgMax": {"select_last_index": 0},
    "ArgMin": {"select_last_index": 0},
    "BatchNormalization": {"training_mode": 0},
}
_AXES = ("Squeeze", "Unsqueeze", "ReduceSum")


def _lower(model: ir.Model, rule: Rule) -> tuple[list[Match], list[Left]]:
    from ..onnx_level.writing import label

    opset = model.opset_imports.get("", 1)
    if opset <= OLDEST:
        return [], []
    nodes = list(model.graph.all_nodes())
    left = [Left(label(n), n.op_type, why) for n in nodes if (why := _objection(n, opset))]
    if left:
        return [], left
    for node in nodes:
        _downgrade_(node)
    model.opset_imports[""] = OLDEST
    model.graph.opset_imports[""] = OLDEST
    model.ir_version = min(model.ir_version, 7)  # of the onnx package that brought opset 12
    return [Match(rule.name, "onnx", "the file", f"opset {opset}", f"opset {OLDEST}")], []


def _objection(node: ir.Node, opset: int) -> str:
    """Return why a node cannot be written in the older opset, "" if it can."""
    from ..onnx_level.writing import array_of, rank_of

    op = node.op_type
    if opset > 17:
        return f"opset {opset}: from 18 on, more than the notation changed; export at opset 17"
    if node.domain not in ("", "ai.onnx"):
        return f"an operator of the domain {node.domain}"
    if op in (*_AXES, "Split"):
        given = len(node.inputs) > 1 and node.inputs[1] is not None
        return "its axes are computed" if given and array_of(node.inputs[1]) is None else ""
    if op in ("Softmax", "LogSoftmax"):
        axis, rank = node.attributes.get_int("axis", -1), rank_of(node.inputs[0])
        return "" if axis == -1 or (rank and axis == rank - 1) else "not along the last axis"
    if op == "Resize":
        mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
        return "it reads a region of interest" if mode == "tf_crop_and_resize" else ""
    if op not in _SAME and op != "BatchNormalization":
        return f"opset {OLDEST} has no such operator, or a different one of this name"
    for name, harmless in _NEW_ATTRIBUTES.get(op, {}).items():
        if name in node.attributes and node.attributes[name].value != harmless:
            return f"{name} = {node.attributes[name].value}"
    return ""


def _downgrade_(node: ir.Node) -> None:
    import onnx_ir as ir

    from ..onnx_level.writing import array_of, rank_of

    op = node.op_type
    for name in _NEW_ATTRIBUTES.get(op, {}):
        node.attributes.pop(name, None)
    if op in (*_AXES, "Split") and len(node.inputs) > 1:
        values = array_of(node.inputs[1]) if node.inputs[1] is not None else None
        node.resize_inputs(1)
        if values is not None:
            name = "split" if op == "Split" else "axes"
            node.attributes[name] = ir.AttrInt64s(name, [int(v) for v in values.ravel()])
    if op == "ReduceSum":
        node.attributes.pop("noop_with_empty_axes", None)
    if op in ("Softmax", "LogSoftmax"):  # its default was another axis then
        rank = rank_of(node.inputs[0])
        node.attributes["axis"] = ir.AttrInt64("axis", rank - 1 if rank else -1)


LOWER_OPSET = Rule(
    name="opset-11",
    exact=True,
    error="none: the same operators in an older notation",
    source="ONNX's changelog of operators, opsets 12 to 17",
    keeps="everything; nothing is changed where one node has no older form",
    onnx_passes=(OnnxPass(_lower, frozenset({f"opset {n}" for n in range(OLDEST + 1, 18)})),),
)

RULES = (LOWER_OPSET,)
