"""A float ONNX file made ready to be quantized: checked, named, in canonical form, with shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ModelFileError
from ..onnxfile import attention_masks, gelu
from ..onnxfile.canonical_form import canonicalize_, is_canonical, raise_opset_
from ..onnxfile.constants import MOST_ELEMENTS
from ..onnxfile.edit import (
    lift_constants_,
    name_nodes_,
    nodes_within,
    readers,
    subgraphs,
    unshare_weights_,
)
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import opset, with_shapes
from .carriers import CARRIERS, NORMALIZATION, weight_axis

if TYPE_CHECKING:
    import onnx

_FIRST_OPSET = 7  # that ONNX Runtime runs
PER_CHANNEL = 13  # the opset that gave DequantizeLinear its axis


def prepared(
    source: OnnxFile | str | Path,
    changes: list[str] | None = None,
    *,
    least_opset: int = PER_CHANNEL,
) -> onnx.ModelProto:
    """Return the model in `source`, ready to be quantized; it computes what the file computes.

    It is checked, in canonical form, of `least_opset` or later, with shapes, and every node has a
    name. A GELU is one node, for which the opset is 20 or later.

    Parameters
    ----------
    source
        A float ONNX file; it is not changed.
    changes
        What was done to the network is appended, as text.
    least_opset
        An earlier one than 13 is for who only edits the float network: scales per channel came
        with 13. GELUs stay as they are then.

    Raises
    ------
    ModelFileError
        The file is damaged, quantized already, too old, of an open shape, or it has a node whose
        branches the quantizer does not look into.
    """
    source = OnnxFile.of(source)
    source.require_valid()
    model = source.copy()
    if opset(model) < _FIRST_OPSET:
        raise ModelFileError(
            f"{source.name} is of opset {opset(model)}; ONNX Runtime runs {_FIRST_OPSET} and "
            "later. Export it again, at opset 17."
        )
    _refuse_quantized(model, source)
    done = _canonicalize_(model, source, least_opset)
    _check_input(model, source)
    _refuse_branches(model, source)
    name_nodes_(model.graph)  # ranges and exclusions go by name
    _drop_idle_dilations_(model)
    # the quantizer takes the output of a Constant node for an activation without a range
    stored = {tensor.name for tensor in source.proto.graph.initializer}
    lift_constants_(model)
    lifted = {tensor.name for tensor in model.graph.initializer} - stored
    unshare_weights_(model.graph, lifted | _of_two_scales(model.graph))
    done += attention_masks.make_finite_(model)
    _check_weights(model, source)
    if changes is not None:
        changes += done
    return with_shapes(model)


def _drop_idle_dilations_(model: onnx.ModelProto) -> None:
    """Leave dilations of 1 unsaid: ONNX Runtime's integer pooling does not know the attribute."""
    for node in model.graph.node:
        for attribute in list(node.attribute) if node.op_type == "AveragePool" else ():
            if attribute.name == "dilations" and set(attribute.ints) == {1}:
                node.attribute.remove(attribute)


def _refuse_quantized(model: onnx.ModelProto, source: OnnxFile) -> None:
    for node in nodes_within(model.graph):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or "Integer" in node.op_type:
            raise ModelFileError(
                f"{source.name} is quantized already ({node.op_type} '{node.name}'). Quantize the "
                "float file that it was made from."
            )


def _canonicalize_(model: onnx.ModelProto, source: OnnxFile, least_opset: int) -> list[str]:
    """Bring a model into the form that the quantizer reads; return what was changed."""
    done: list[str] = []
    generated = any(node.op_type == "ConstantOfShape" for node in model.graph.node)
    if generated or not is_canonical(model):
        done += canonicalize_(model, MOST_ELEMENTS)
    if least_opset < PER_CHANNEL:
        return done
    raised = raise_opset_(model, PER_CHANNEL)
    if opset(model) < PER_CHANNEL:
        raise ModelFileError(
            f"{source.name} cannot be quantized: {'; '.join(raised)}, and scales per channel came "
            f"with opset {PER_CHANNEL}. Export it again, at opset 17."
        )
    return done + raised + contract_gelus_(model)


def contract_gelus_(model: onnx.ModelProto) -> list[str]:
    """Write each GELU as one operator, so that no rounding comes between its parts."""
    if not gelu.written_out(model):
        return []
    trial = type(model)()
    trial.CopyFrom(model)
    done = raise_opset_(trial, gelu.SINCE)
    if opset(trial) < gelu.SINCE:
        return [f"GELU left in several nodes: {'; '.join(done)}"]
    done += gelu.contract_(trial)
    model.CopyFrom(trial)
    return done


def _refuse_branches(model: onnx.ModelProto, source: OnnxFile) -> None:
    for node in model.graph.node:
        if any(True for _ in subgraphs(node)):
            what, cure = (
                "decides while the network runs what is computed",
                "without it (no `if` or loop that depends on the input)",
            )
            if node.op_type in ("Loop", "Scan"):
                what = "repeats the nodes inside it while the network runs"
                cure = "with these repetitions written out (traced, not scripted)"
            raise ModelFileError(
                f"{source.name} cannot be quantized: {node.op_type} '{node.name}' {what}, and a "
                f"quantizer does not look into its branches. Export the network {cure}, or "
                "quantize the part before it (labutils.onnxfile.parts.extract)."
            )


def _of_two_scales(graph: onnx.GraphProto) -> set[str]:
    """Return the weights that readers need at different scales: shared biases, other axes."""
    uses: dict[str, set[tuple[str, int | str | None]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if node.op_type in CARRIERS and index == 2:
                use = ("bias", node.name)
            elif node.op_type in CARRIERS and index == 1:
                use = ("weight", str(weight_axis(node)))
            elif node.op_type == NORMALIZATION and index:
                use = ("normalization", f"{node.name} {index}")
            else:
                use = ("operand", None)
            uses.setdefault(name, set()).add(use)
    stored = {tensor.name for tensor in graph.initializer}
    return {name for name, found in uses.items() if len(found) > 1 and name in stored}


def _check_weights(model: onnx.ModelProto, source: OnnxFile) -> None:
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        try:
            values = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, MemoryError) as error:
            raise ModelFileError(
                f"Weight {tensor.name!r} of {source.name} cannot be read: {error}. The file is "
                "damaged."
            ) from None
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ModelFileError(_of_no_scale(model, source, tensor.name, values))


def _of_no_scale(model: onnx.ModelProto, source: OnnxFile, name: str, values: np.ndarray) -> str:
    """Return what to do with a weight that no scale holds."""
    reader = next(iter(readers(model.graph.node).get(name, ())), None)
    by = f", read by {reader.op_type} '{reader.name}'," if reader else ""
    kind = "NaN" if np.isnan(values).any() else "infinity"
    cure = "Its training or its export went wrong: export it from weights that are finite."
    if kind == "infinity":
        cure = "No scale holds that: export the network with a finite number in its place."
    return f"Weight {name!r} of {source.name}{by} holds {kind}. {cure}"


def _check_input(model: onnx.ModelProto, source: OnnxFile) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    if len(inputs) != 1:
        raise ModelFileError(f"{source.name} has {len(inputs)} inputs; calibration feeds one.")
    shape = [d.dim_param or d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    if len(shape) > 1 and all(isinstance(d, int) and d > 0 for d in shape) and shape[0] > 1:
        raise ModelFileError(_of_batches(model, source, inputs[0].name, shape))
    if not all(isinstance(d, int) and d > 0 for d in shape) or shape[:1] != [1]:
        raise ModelFileError(
            f"{source.name} takes the shape {shape}; calibration and the HTP need a fixed shape "
            "with batch 1. Export it again with one example image."
        )


def _of_batches(
    model: onnx.ModelProto, source: OnnxFile, name: str, shape: Sequence[int | str]
) -> str:
    """Return what to do with a network that takes several images at once."""
    opened = {name: ["n", *shape[1:]]}
    given = {}
    for output in model.graph.output:
        dims = [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim]
        given[output.name] = ["n", *dims[1:]] if dims[:1] == [shape[0]] else dims
    return (
        f"{source.name} takes {shape[0]} images at once ({name} {list(shape)}); calibration and "
        "the HTP need a fixed shape with batch 1. Export it again with one example image, or open "
        "its batch, which is then fixed to 1: "
        "onnx.tools.update_model_dims.update_inputs_outputs_dims("
        f"model, {opened}, {given}) changes a model that onnx has loaded; save it with onnx.save. "
        f"A Reshape that states {shape[0]} needs the new export."
    )
