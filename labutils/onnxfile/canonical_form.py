"""The canonical form of an ONNX network: one spelling of what ONNX lets files spell in many ways.

Functions are inlined, constants are dense initializers, Identity is gone, half precision is
float32, a settled If is the branch it takes, a Gemm has no factors, sizes that are static are
constants, operators mean inference, and every output is computed. What a network computes, and the
names of its inputs and outputs, stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import ModelFileError, counted
from . import (
    constants,
    gemm_factors,
    half_precision,
    idle_outputs,
    operator_versions,
    quantized_weights,
    static_sizes,
    training_mode,
)
from .edit import nodes_within, unlist_weights_
from .graph import opset, with_shapes
from .regularity import is_regular, regularize_

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_STANDARD = ("", "ai.onnx")
_CARRIERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "PRelu")
_ROUNDS = 8  # a settled branch may hold what settles another one
_LONGEST = 120  # characters of a reason
_RESIZES_ALIKE = 11  # the opset since which Resize says how it maps and rounds
_IR_VERSIONS = {20: 9, 13: 7, 12: 7, 11: 6, 10: 5}  # of the onnx package that brought each opset


def is_canonical(model: onnx.ModelProto) -> bool:
    """Return whether `canonicalize_` has nothing to do; it may find nothing where this is False."""
    graph = model.graph
    if model.functions or graph.sparse_initializer or half_precision.half_types(model):
        return False
    if constants.computed_constants(graph) or not is_regular(model):
        return False
    weights = {tensor.name: tensor for tensor in graph.initializer}
    if any(value.name in weights for value in graph.input):
        return False
    if quantized_weights.foldable(graph):
        return False
    if not _is_plain(model) or idle_outputs.idle_outputs(graph) or gemm_factors.odd_gemms(graph):
        return False
    written = {node.output[0] for node in graph.node if node.op_type == "Constant"}
    for node in nodes_within(graph):
        if node.domain not in _STANDARD:
            continue
        if node.op_type in ("Identity", "If") or _is_rare_constant(node):
            return False
        if node.op_type in _CARRIERS and not written.isdisjoint(node.input[1:]):
            return False
    return True


def _is_plain(model: onnx.ModelProto) -> bool:
    """Return whether `_plain_operators_` has nothing to do."""
    return (
        training_mode.is_plain(model)
        and static_sizes.is_folded(model)
        and not operator_versions.padded_axes(model)
        and not operator_versions.idle_reductions(model)
    )


def _is_rare_constant(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and [a.name for a in node.attribute] != ["value"]


def canonicalize_(model: onnx.ModelProto, generated: int = 0) -> list[str]:
    """Bring a model into canonical form, in place; return what was changed.

    Parameters
    ----------
    model
        With its weights.
    generated
        How many elements of a ConstantOfShape become a constant; see `constants.fold_`.

    Raises
    ------
    ModelFileError
        A sparse weight cannot be read, one of float64 is too large for float32, or nothing
        computes the outputs.
    """
    changes: list[str] = []
    for step in (_dense_, _unlist_weights_, _inline_functions_, regularize_):
        changes += step(model)
    attempts: tuple[Callable[[onnx.ModelProto], list[str]], ...] = (
        lambda changed: _settle_(changed, generated),
        lambda changed: _plain_operators_(changed, generated),
        _widen_, _fold_quantized_weights_, _plain_gemms_,
    )  # fmt: skip
    for attempt in attempts:
        trial = type(model)()
        trial.CopyFrom(model)
        try:
            done = attempt(trial)
        except ModelFileError:
            raise
        except Exception as error:  # of onnx_ir, onnxscript and onnx, which share no base
            reason = " ".join(str(error.__cause__ or error).split())[:_LONGEST]
            changes.append(f"its constants could NOT be simplified ({reason})")
            continue
        if done:
            model.CopyFrom(trial)
            changes += done
    changes += regularize_(model)  # where constants and Identity hid something
    return list(dict.fromkeys(changes + idle_outputs.leave_out_(model)))


def _dense_(model: onnx.ModelProto) -> list[str]:
    count = constants.dense_(model)
    return [f"{counted(count, 'sparse weight')} written in full"] if count else []


def _unlist_weights_(model: onnx.ModelProto) -> list[str]:
    """Take the weights off the list of inputs: every stage may then rely on them."""
    listed = unlist_weights_(model)
    return [f"{listed} weights that were listed as inputs are constants"] if listed else []


def _inline_functions_(model: onnx.ModelProto) -> list[str]:
    from onnx import inliner

    if not model.functions:
        return []
    count = len(model.functions)
    try:
        # a function of another opset is converted, which takes the types of what it is called with
        model.CopyFrom(inliner.inline_local_functions(with_shapes(model), convert_version=True))
        del model.graph.value_info[:]
    except Exception as error:  # whatever its C++ raises
        reason = " ".join(str(error).split())[:_LONGEST]
        return [f"its functions could NOT be inlined ({reason})"]
    return [f"{counted(count, 'local function')} inlined"]


def _settle_(model: onnx.ModelProto, generated: int) -> list[str]:
    """Lift and fold constants, settle branches, take out Identity; say what went."""
    import onnx_ir as ir

    before = _census(model)
    computed = len(constants.computed_constants(model.graph))
    read = ir.from_proto(model)
    identities = _pass_(read, generated)
    made = ir.to_proto(read)
    after = _census(made)
    gone = Counter({op: before[op] - after[op] for op in ("Constant", "ConstantOfShape", "If")})
    computed -= len(constants.computed_constants(made.graph))
    said = [
        (gone["Constant"], "Constant node", "stored as weights"),
        (gone["ConstantOfShape"], "generated constant", "stored as weights"),
        (identities, "Identity node", "taken out"),
        (computed, "computed constant", "folded"),
        (gone["If"], "If node", "with a constant condition replaced by the branch taken"),
    ]
    changes = [f"{counted(n, what)} {done}" for n, what, done in said if n > 0]
    if changes:
        model.CopyFrom(made)
    return changes


def _plain_operators_(model: onnx.ModelProto, generated: int) -> list[str]:
    """Write operators as every reader takes them; settle what that makes constant or Identity."""
    changes: list[str] = []
    for _ in range(_ROUNDS):
        done = [*training_mode.rewrite_(model), *operator_versions.pass_on_(model)]
        done += [*static_sizes.fold_(model), *operator_versions.pad_all_axes_(model)]
        if not done:
            break
        changes += done + _settle_(model, generated)
    return changes


def _pass_(model: ir.Model, generated: int) -> int:
    import onnx_ir.passes.common as common

    constants.lift_(model)
    found = constants.drop_identities_(model)
    constants.fold_(model, generated)
    found += constants.drop_identities_(model)
    with constants.quiet():
        common.RemoveUnusedNodesPass()(model)
    return found


def _census(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in nodes_within(model.graph))


def _widen_(model: onnx.ModelProto) -> list[str]:
    """Write half precision in float32, once what is constant has been folded as it is."""
    found = half_precision.widen_(model)
    if not found:
        return []
    _settle_(model, 0)
    return [f"its {' and '.join(sorted(found))} is computed in float32"]


def _fold_quantized_weights_(model: onnx.ModelProto) -> list[str]:
    done = quantized_weights.fold_(model)
    if done:
        _settle_(model, 0)  # what only turned or shaped them
    return done


def _plain_gemms_(model: onnx.ModelProto) -> list[str]:
    count = gemm_factors.plain_gemms_(model)
    return [f"the factors or the bias of {counted(count, 'Gemm')} written plainly"] if count else []


def raise_opset_(model: onnx.ModelProto, oldest: int) -> list[str]:
    """Bring a file older than an opset to it, where onnx's own version converter can.

    Returns
    -------
    list of str
        What was done, or why it could NOT be.
    """
    from onnx import version_converter

    before = opset(model)
    if before >= oldest:
        return []
    unlist_weights_(model)
    try:
        raised = version_converter.convert_version(model, oldest)
    except Exception as error:  # the converter raises whatever its C++ does
        reason = " ".join(str(error).split())[:_LONGEST]
        return [f"its opset {before} could NOT be raised to {oldest} ({reason})"]
    if before < _RESIZES_ALIKE:
        operator_versions.pin_resizes_(raised)
    model.CopyFrom(raised)
    model.ir_version = max(model.ir_version, _IR_VERSIONS.get(oldest, 3))
    return [f"its opset {before} was raised to {oldest}"]
