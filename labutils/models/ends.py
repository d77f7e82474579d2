"""The input and the outputs of a model file: what pictures can feed, and what scores come from."""

from __future__ import annotations

import atexit
import contextlib
import functools
import math
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import paths
from ..errors import ModelFileError, UnknownNameError, UsageError, counted
from ..onnxfile import edit
from ..onnxfile.file import OnnxFile
from ..runtime import outputs
from ..runtime.outputs import Output

if TYPE_CHECKING:
    import onnx
    import torch

    from .model import Model

PICTURES = (1, 3)
"""How many channels can be made of a picture: gray, RGB."""


def outputs_of(file: OnnxFile) -> tuple[Output, ...]:
    """Return the outputs that an ONNX file declares; their shapes are inferred where it does not.

    A size that is left open is None.
    """
    declared = file.outputs
    if not all(value.type.tensor_type.HasField("shape") for value in declared):
        declared = list(file.shaped.graph.output)
    return tuple(map(_output, declared))


def _output(value: onnx.ValueInfoProto) -> Output:
    from onnx import TensorProto

    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value or None for dim in tensor.shape.dim)
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    return Output(value.name, shape, tensor.elem_type in floats)


def outputs_of_program(
    program: torch.export.ExportedProgram, values: dict[str, Any]
) -> tuple[Output, ...]:
    """Return the outputs of an exported program; `values` are its nodes' examples, by name."""
    from torch.utils import _pytree

    given = [values.get(name) for name in program.graph_signature.user_outputs]
    try:
        named = outputs.named(_pytree.tree_unflatten(given, program.call_spec.out_spec))
    except TypeError:  # a number among the outputs: running it will say so
        return ()
    return tuple(Output(n, tuple(t.shape), t.is_floating_point()) for n, t in named.items())


def chosen(
    file: OnnxFile, wanted: str | None, changes: Sequence[str] = ()
) -> tuple[OnnxFile, str, str]:
    """Return a file whose outputs are those that the user means.

    Parameters
    ----------
    file
        The model.
    wanted
        One of its outputs; or a tensor inside it, and then the network ends there. None leaves
        the choice to `outputs.scores_of`.
    changes
        What was done to the user's file, as text: it may have lost the output that is wanted.

    Returns
    -------
    tuple
        The file, or a copy that ends at `wanted` and lives as long as the process; the output
        that has a classifier's scores, "" where none has; what was changed, as text.

    Raises
    ------
    UnknownNameError
        There is no such tensor; the message suggests the nearest.
    UsageError
        The output was left out; the message says why.
    """
    known, change = outputs_of(file), ""
    if wanted and wanted not in (names := [output.name for output in known]):
        _refuse_left_out(file, wanted, names, changes)
        inside = edit.producers(file.proto.graph.node)
        if wanted not in inside:
            raise UnknownNameError(f"output of {file.name}", wanted, {*names, *inside})
        file, change = _ending_at(file, wanted), f"it ends at {wanted!r}, as asked"
        known = outputs_of(file)
    return file, outputs.scores_of(known, wanted, file.name, file.proto), change


def _refuse_left_out(
    file: OnnxFile, wanted: str, names: Sequence[str], changes: Sequence[str]
) -> None:
    """Raise UsageError for an output of the user's file that was left out of its copy."""
    head = f"output {wanted!r} left out: "
    why = next((change.removeprefix(head) for change in changes if change.startswith(head)), "")
    if why:
        raise UsageError(
            f"Output {wanted!r} of {file.name} was left out: {why}, so nothing computes it. Choose "
            f"one that is computed: {', '.join(names)}."
        )


def _ending_at(file: OnnxFile, name: str) -> OnnxFile:
    cut = edit.cut(file.shaped, [name])
    place = _folder() / secrets.token_hex(4)
    place.mkdir()
    return OnnxFile.write(place / file.name, cut)


@functools.cache
def _folder() -> Path:
    kept = contextlib.ExitStack()
    atexit.register(kept.close)
    return kept.enter_context(paths.scratch())


def classes_of(known: Sequence[Output], scores: str) -> int:
    """Return how many classes the scores are of; 0 where there are none, or that is left open."""
    shape: tuple[Any, ...] = next((o.shape for o in known if o.name == scores), ())
    inner = shape[1:]
    return math.prod(inner) if inner and None not in inner else 0


def refuse_labels(model: Model) -> None:
    """Refuse a network that gives labels and no scores, before anything is done with it.

    Raises
    ------
    ModelFileError
        The message names the tensor that has the scores.
    """
    file = model.onnx
    if file is None or model.output:
        return
    found = [(o, outputs.labelling(file.proto, o.name)) for o in outputs_of(file)]
    floats = [o for o, node in found if o.is_float and node is None]
    choosing = [node for _, node in found if node is not None]
    if floats or not choosing:
        return
    node = choosing[0]
    if node.op_type == "NonMaxSuppression":
        boxes, scores = node.input[:2]
        raise ModelFileError(
            f"{model.name} ends in NonMaxSuppression (node {node.name or '-'}): it gives which "
            "boxes are kept, and how close two networks are cannot be said from that. Cut the "
            "network before it, and select the boxes outside: labutils.onnxfile.parts.extract("
            f"file, new_file, inputs={[value.name for value in file.inputs]}, outputs="
            f"[{boxes!r}, {scores!r}]) ends at the boxes and their scores."
        )
    before = node.input[0]
    raise ModelFileError(
        f"{model.name} ends in {node.op_type} (node {node.name or '-'}): it gives labels, not "
        "scores, and how close two networks are cannot be said from labels. Pass --output "
        f"{before} to work on the network that ends at its scores (zoo.load(..., "
        f"output={before!r})); the labels of these scores are the same."
    )


def refuse_other_outputs(file: OnnxFile) -> None:
    """Refuse a file that gives anything but tensors, before anything is done with it.

    Raises
    ------
    ModelFileError
        The message names the output and its type, and how to get tensors instead.
    """
    plain = ("tensor_type", None)  # without a type, ONNX's checker has its say
    other = [value for value in file.outputs if value.type.WhichOneof("value") not in plain]
    if not other:
        return
    first = other[0]
    maker = edit.producers(file.proto.graph.node).get(first.name)
    by = f", made by {maker.op_type} '{maker.name}'" if maker else ""
    cure = "Export the network with tensors as its outputs."
    if maker is not None and maker.op_type == "ZipMap":
        cure = (
            "Export it without that node (skl2onnx: options={'zipmap': False}), or end the file "
            f"before it: onnx.utils.extract_model({file.name!r}, 'tensors.onnx', "
            f"{[value.name for value in file.inputs]}, [{maker.input[0]!r}])."
        )
    raise ModelFileError(
        f"Output {first.name!r} of {file.name} is {_described(first.type)}, not a tensor{by}; "
        f"every output that is run, compared or converted is a tensor. {cure}"
    )


def _described(kind: onnx.TypeProto) -> str:
    """Return a type in words: a sequence of maps."""
    name = (kind.WhichOneof("value") or "").removesuffix("_type").replace("_", " ")
    if name not in ("sequence", "optional"):
        return f"a {name}"
    inner = getattr(kind, f"{name}_type").elem_type
    within = (inner.WhichOneof("value") or "value").removesuffix("_type").replace("_", " ")
    return f"a sequence of {within}s" if name == "sequence" else f"an optional {within}"


def refuse_other_inputs(model: Model) -> None:
    """Refuse a file whose input is not one float32 image, before anything is done with it.

    Raises
    ------
    UsageError
        The message names inputs and types, and what works.
    """
    if model.onnx is None:
        return
    inputs = model.onnx.inputs
    said = ", ".join(f"{value.name!r} ({_typed(value)})" for value in inputs)
    only = inputs[0] if len(inputs) == 1 else None
    dims = only.type.tensor_type.shape.dim if only else ()
    is_image = only is not None and len(dims) == 4 and only.type.tensor_type.elem_type == 1
    if not is_image:
        raise UsageError(
            f"{model.name} takes {counted(len(inputs), 'input')}: {said}. Here a network takes one "
            "float32 image (n, channels, height, width), so there is nothing to calibrate or to "
            f"compare it on. `labutils diagnose {model.name} --target TARGET` and `labutils "
            "repair` take any input."
        )


def refuse_layout_of_one_processor(model: Model) -> None:
    """Refuse a file that ONNX Runtime has optimized for the processor that it ran on.

    Raises
    ------
    ModelFileError
        The message names the node, and the file to take instead.
    """
    nodes = model.onnx.proto.graph.node if model.onnx is not None else ()
    node = next((node for node in nodes if node.domain == "com.microsoft.nchwc"), None)
    if node is not None:
        raise ModelFileError(
            f"{model.name} was optimized by ONNX Runtime for the processor that it ran on: "
            f"{node.op_type} '{node.name}' is of the domain {node.domain}, which has another "
            "layout and no meaning elsewhere. Use the file as it was before the optimization, or "
            "optimize it at ORT_ENABLE_BASIC."
        )


def _typed(value: onnx.ValueInfoProto) -> str:
    """Return type and shape of an input, as ONNX Runtime says the type."""
    from onnx import TensorProto

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return (kind or "no type").removesuffix("_type")
    tensor = value.type.tensor_type
    names = {number: name.lower() for name, number in TensorProto.DataType.items()}
    names |= {TensorProto.FLOAT: "float", TensorProto.DOUBLE: "double"}
    name = names.get(tensor.elem_type, f"type {tensor.elem_type}, not an ONNX type")
    if not tensor.HasField("shape"):
        return f"tensor({name}) of any rank"
    sizes = ", ".join(str(d.dim_value or d.dim_param or "?") for d in tensor.shape.dim)
    return f"tensor({name}) of shape ({sizes})"


def refuse_no_pictures(model: Model, cure: str) -> None:
    """Refuse an input of a number of channels that no picture has.

    Parameters
    ----------
    model
        Whose input is one image.
    cure
        What the command takes instead.
    """
    channels = model.input_shape[1] if model.input_shape else 3
    if channels not in PICTURES:
        raise UsageError(
            f"{model.name} takes images of {channels} channels, and pictures have three or one, so "
            f"the lab's cannot feed it. {cure}"
        )
