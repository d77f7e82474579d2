"""An exact rule that writes an ONNX graph in an older opset, for tools that cannot read newer ones.

ONNX's version converter cannot downgrade most of these operators. What changed in them is how they
are written: where axes are given, which types they take. What else is new, ONNX's definitions of
both opsets say: an attribute or an input that the older one lacks. A node that uses it is left,
and so is the opset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..forms import OnnxPass
from ..onnx_level.nodes import optional_input, required_input
from ..report import Left, Match
from ..rule import Rule

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..onnx_level.writing import Writer

_BEYOND = 64  # more than ONNX has; these are names only
OLDEST = 11
"""The opset written: Clip, Pad and Resize took their settings as inputs then, as they do now."""

# After opset 11 these changed in the types that they take, and in how axes are given. What else is
# new is an attribute or an input, and a node that uses it is found by ONNX's definitions.
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
        "If",
        "InstanceNormalization",
        "LeakyRelu",
        "Less",
        "Log",
        "Loop",
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
        "Relu",
        "Reshape",
        "Scan",
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
        "ThresholdedRelu",
        "Tile",
        "TopK",
        "Transpose",
        "Where",
    ]
)
# op -> attributes that opset 11 does not know, with the value that can be dropped
_NEW_ATTRIBUTES: dict[str, dict[str, int | str | None]] = {
    "Reshape": {"allowzero": 0},
    "Shape": {"start": 0, "end": None},
    "ArgMax": {"select_last_index": 0},
    "ArgMin": {"select_last_index": 0},
    "BatchNormalization": {"training_mode": 0},
    "AveragePool": {"dilations": 1},
    "Cast": {"saturate": 1, "round_mode": "up"},  # of float8 only
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": "stretch"},
}
_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_AXES = ("Squeeze", "Unsqueeze", *_REDUCTIONS)


def _lower(model: ir.Model, rule: Rule) -> tuple[list[Match], list[Left]]:
    import onnx_ir.passes.common as common

    from ..onnx_level.writing import Writer, label

    opset = model.opset_imports.get("", 1)
    if opset <= OLDEST:
        return [], []
    # a Constant may hold a number or a list since opset 12
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    nodes = list(model.graph.all_nodes())
    left = [Left(label(n), n.op_type, why) for n in nodes if (why := _objection(n))]
    if left:
        return [], left
    writer = Writer(model)
    for node in nodes:
        _downgrade_(node, writer)
    model.opset_imports[""] = OLDEST
    model.graph.opset_imports[""] = OLDEST
    model.ir_version = min(model.ir_version, 7)  # of the onnx package that brought opset 12
    return [Match(rule.name, "onnx", "the file", f"opset {opset}", f"opset {OLDEST}")], []


def _objection(node: ir.Node) -> str:
    """Return why a node cannot be written in the older opset, "" if it can."""
    op = node.op_type
    if node.domain not in ("", "ai.onnx"):
        return f"an operator of the domain {node.domain}"
    for name, harmless in _NEW_ATTRIBUTES.get(op, {}).items():
        given = name in node.attributes and not _is_all(node.attributes[name].value, harmless)
        if given and not _is_idle(node, name):
            return f"{name} = {node.attributes[name].value}"
    if op in (*_AXES, "Split", "Softmax", "LogSoftmax", "Resize", "Pad"):
        return _special_objection(node)
    if op not in _SAME and op != "BatchNormalization":
        return f"opset {OLDEST} has no such operator, or a different one of this name"
    return _news(node)


def _is_all(value: Any, harmless: int | str | None) -> bool:
    """Whether an attribute, or each element of one, has the value that may be dropped."""
    values = value if isinstance(value, list | tuple) else [value]
    return all(v == harmless for v in values)


def _is_idle(node: ir.Node, name: str) -> bool:
    """Whether what an attribute asks for changes nothing here."""
    from ..onnx_level.writing import array_of

    if name == "allowzero":  # a 0 in the shape is then a size
        shape = array_of(optional_input(node, 1))
        return shape is not None and bool(shape.all())
    if name == "antialias":  # of what becomes smaller
        factors = _factors(node)
        return factors is not None and all(factor >= 1 for factor in factors)
    return False


def _factors(node: ir.Node) -> list[float] | None:
    """Return how many times as long a Resize makes each axis that it names; None where unknown."""
    from ..onnx_level.writing import array_of

    scales, sizes = (array_of(optional_input(node, index)) for index in (2, 3))
    if scales is not None and scales.size:
        return [float(scale) for scale in scales]
    shape, axes = required_input(node).shape, _resized_axes(node)
    lengths = [
        shape[axis] if shape is not None and axes is not None else None for axis in axes or ()
    ]
    if sizes is None or not lengths or len(sizes) != len(lengths):
        return None
    known = [length for length in lengths if isinstance(length, int) and length > 0]
    if len(known) != len(lengths):
        return None
    return [int(size) / length for size, length in zip(sizes, known, strict=True)]


def _resized_axes(node: ir.Node) -> list[int] | None:
    """Return the axes that a Resize's factors are for; None where the rank is unknown."""
    from ..onnx_level.writing import rank_of

    rank = rank_of(node.inputs[0])
    if rank is None:
        return None
    named = node.attributes.get_ints("axes", None)
    return list(range(rank)) if named is None else [int(axis) % rank for axis in named]


def _news(node: ir.Node) -> str:
    """Return what a node has that the operator's older definition lacks."""
    import onnx

    schema = onnx.defs.get_schema(node.op_type, OLDEST, "")
    dropped = _NEW_ATTRIBUTES.get(node.op_type, {})
    handled = ("axes",) if node.op_type == "Resize" else ()
    new = [n for n in node.attributes if n not in (*schema.attributes, *dropped, *handled)]
    if new:
        return f"its attribute {new[0]!r} is newer than opset {OLDEST}"
    given = [k for k, value in enumerate(node.inputs) if value is not None]
    if given and given[-1] >= schema.max_input:
        return f"its input {given[-1]} is newer than opset {OLDEST}"
    return ""


def _special_objection(node: ir.Node) -> str:
    from ..onnx_level.writing import array_of, rank_of

    op, given = node.op_type, optional_input(node, 1)
    nothing = node.attributes.get_int("noop_with_empty_axes", 0) == 1
    if op in _REDUCTIONS and given is None and nothing:
        return "noop_with_empty_axes = 1, and no axes"
    if op == "Split" and "num_outputs" in node.attributes:
        return "" if _parts(node) else "num_outputs, and its input has no known size"
    if op in (*_AXES, "Split"):
        return "its axes are computed" if given is not None and array_of(given) is None else ""
    if op in ("Softmax", "LogSoftmax"):
        axis, rank = node.attributes.get_int("axis", -1), rank_of(node.inputs[0])
        return "" if axis == -1 or (rank and axis == rank - 1) else "not along the last axis"
    if op == "Pad":
        axes = optional_input(node, 3)
        known = array_of(axes) is not None and array_of(given) is not None
        if axes is not None and not (known and rank_of(node.inputs[0])):
            return "its axes or pads are computed, or its input has no known rank"
        wraps = node.attributes.get_string("mode", "constant") == "wrap"
        return "mode = wrap is of opset 19" if wraps else ""
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize":
        return "it reads a region of interest"
    if mode == "half_pixel_symmetric":
        return f"coordinate_transformation_mode = {mode} is of opset 19"
    if "axes" in node.attributes and _whole_axes(node) is None:
        return "axes, and its factors are computed or its input has no known size"
    return _news(node)


def _whole_axes(node: ir.Node) -> tuple[int, np.ndarray] | None:
    """Return which input of a Resize has its factors or sizes, and their values for all axes."""
    from ..onnx_level.writing import array_of

    axes, shape = _resized_axes(node), required_input(node).shape
    for index, kind in ((2, np.float32), (3, np.int64)):
        named = array_of(optional_input(node, index))
        if named is None or not named.size or axes is None or shape is None:
            continue
        lengths = [1 if index == 2 else length for length in shape]
        fixed = [length for k, length in enumerate(lengths) if k not in axes]
        if not all(isinstance(length, int) for length in fixed):
            return None
        whole = np.array([n if isinstance(n, int) else 0 for n in lengths], kind)
        whole[axes] = named.ravel()
        return index, whole
    return None


def _parts(node: ir.Node) -> list[int]:
    """Return the sizes that ``num_outputs`` stands for: equal ones, the last one smaller."""
    shape, count = required_input(node).shape, node.attributes.get_int("num_outputs", 0)
    size = None if shape is None else shape[node.attributes.get_int("axis", 0)]
    if not isinstance(size, int) or not count:
        return []
    part = -(-size // count)
    last = size - part * (count - 1)
    return [*[part] * (count - 1), last] if last > 0 else []


def _downgrade_(node: ir.Node, writer: Writer) -> None:
    import onnx_ir as ir

    from ..onnx_level.writing import array_of, rank_of

    op, parts = node.op_type, _parts(node) if node.op_type == "Split" else []
    if op == "Resize" and "axes" in node.attributes:
        _write_all_factors_(node, writer)
    for name in _NEW_ATTRIBUTES.get(op, {}):
        node.attributes.pop(name, None)
    if op in (*_AXES, "Split") and len(node.inputs) > 1:
        values = array_of(node.inputs[1]) if node.inputs[1] is not None else None
        node.resize_inputs(1)
        if values is not None and values.size:
            name = "split" if op == "Split" else "axes"
            node.attributes[name] = ir.AttrInt64s(name, [int(v) for v in values.ravel()])
    if parts:
        node.attributes.pop("num_outputs", None)
        node.attributes["split"] = ir.AttrInt64s("split", parts)
    if op in _REDUCTIONS:
        node.attributes.pop("noop_with_empty_axes", None)
    if op in ("Softmax", "LogSoftmax"):  # its default was another axis then
        rank = rank_of(node.inputs[0])
        node.attributes["axis"] = ir.AttrInt64("axis", rank - 1 if rank else -1)
    if op == "Resize":
        _fill_inputs_(node, writer)
    if op == "Pad" and len(node.inputs) > 3:
        _write_all_pads_(node, writer)


def _fill_inputs_(node: ir.Node, writer: Writer) -> None:
    """Give a Resize the inputs that opset 11 demands: an empty region, empty scales with sizes."""
    node.resize_inputs(max(len(node.inputs), 3))
    for index in (1, 2):
        if node.inputs[index] is None:
            empty = writer.constant(np.zeros(0, np.float32), f"{node.outputs[0].name}.none")
            node.replace_input_with(index, empty)


def _write_all_factors_(node: ir.Node, writer: Writer) -> None:
    """Write the factors or sizes of some axes as those of all."""
    found = _whole_axes(node)
    assert found is not None  # `_special_objection` leaves a node without
    index, whole = found
    node.replace_input_with(index, writer.constant(whole, f"{node.outputs[0].name}.all"))
    node.attributes.pop("axes")


def _write_all_pads_(node: ir.Node, writer: Writer) -> None:
    """Write the pads of some axes as the pads of all."""
    from ..onnx_level.writing import array_of, rank_of

    axes, pads, rank = array_of(node.inputs[3]), array_of(node.inputs[1]), rank_of(node.inputs[0])
    if axes is not None and pads is not None and rank is not None:
        whole = np.zeros((2, rank), np.int64)
        whole[:, axes.ravel()] = pads.reshape(2, -1)
        value = writer.constant(whole.ravel(), f"{node.outputs[0].name}.pads")
        node.replace_input_with(1, value)
    node.resize_inputs(3 if node.inputs[2] is not None else 2)


LOWER_OPSET = Rule(
    name="opset-11",
    exact=True,
    error="none: the same operators in an older notation",
    source="ONNX's changelog of operators from opset 12 on, and its definitions of both opsets",
    keeps="everything; nothing is changed where one node has no older form",
    onnx_passes=(OnnxPass(_lower, frozenset({f"opset {n}" for n in range(OLDEST + 1, _BEYOND)})),),
)

RULES = (LOWER_OPSET,)
