"""An ONNX file as a PyTorch network, for converters that take PyTorch alone.

Each node becomes a module that is called as the node, so that what a converter writes can be
traced back. (The library onnx2torch was tried first: its reshapes and slices depend on tensors, so
torch.export took two of four networks, and one of them gave an error when it ran.)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import TranslationError, UsageError, counted
from ..onnxfile import constants
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import module_path, opset
from ..onnxfile.wall import wall
from . import onnx_windows  # noqa: F401 - registers its operators
from .onnx_operators import OPERATORS, Call
from .rounded_onnx import is_rounded, take_apart

if TYPE_CHECKING:
    import onnx

_MOST_GENERATED = 1 << 22  # elements of a mask that the file generates
_STANDARD = ("", "ai.onnx")
_QUANTIZED = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm",
              "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")  # fmt: skip


class Step(nn.Module):
    """One node."""

    def __init__(self, call: Call, inputs: list[str], weights: dict[int, np.ndarray]) -> None:
        super().__init__()
        self.call, self.names = call, inputs
        for position, values in weights.items():
            self.register_buffer(f"constant_{position}", torch.from_numpy(values.copy()))
        self.stored = tuple(weights)

    def forward(self, *given: Tensor) -> Any:
        """Return what the node computes, from those of its inputs that are computed."""
        left = list(given)
        inputs: list[Tensor | None] = []
        for position, name in enumerate(self.names):
            if position in self.stored:
                inputs.append(getattr(self, f"constant_{position}"))
            elif position in self.call.constants or not name:
                inputs.append(None)
            else:
                inputs.append(left.pop(0))
        while inputs and inputs[-1] is None:
            inputs.pop()
        return OPERATORS[self.call.op_type](self.call, *inputs)


class OnnxNetwork(nn.Module):
    """An ONNX file, computed by PyTorch; see `read`."""

    def __init__(self, name: str, model: onnx.ModelProto) -> None:
        super().__init__()
        known = _constants(model)
        graph = model.graph
        self.title, self.input = name, _image(name, graph, known)
        self.given = [value.name for value in graph.output]
        self.order: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        taken: set[str] = set()
        for node in graph.node:
            if node.op_type == "Constant":
                continue
            place = _place(node, taken)
            step = _step(node, known, opset(model), name)
            self.add_module(place, step)
            reads = tuple(n for n in node.input if n and n not in known)
            self.order.append((place, reads, tuple(node.output)))

    def forward(self, x: Tensor) -> Any:
        """Return the output, or a dict of all outputs by name."""
        values: dict[str, Tensor] = {self.input: x}
        for place, reads, writes in self.order:
            made = getattr(self, place)(*(values[name] for name in reads))
            made = made if isinstance(made, tuple) else (made,)
            values |= {name: value for name, value in zip(writes, made, strict=False) if name}
        if len(self.given) == 1:
            return values[self.given[0]]
        return {name: values[name] for name in self.given}


def read(file: OnnxFile | str | Path) -> OnnxNetwork:
    """Return an ONNX file with static shapes and one image input as a PyTorch network.

    Of a QDQ file, the float network behind it; see `rounded_onnx`.

    Raises
    ------
    TranslationError
        It has an operator, or a form of one, that is not taken here; with node and operator.
    UsageError
        It computes on integers, or has inputs other than one image.
    """
    import onnx_ir as ir

    file = OnnxFile.of(file)
    whole = take_apart(file).model if is_rounded(file) else file.copy(shaped=True)
    _refuse_quantized(file.name, whole)
    with wall("onnx_ir cannot read", file.name, model=whole):
        model = ir.from_proto(whole)
        constants.fold_(model, generated=_MOST_GENERATED, shapes=True)
        constants.lift_(model)
        plain = ir.to_proto(model)
    return OnnxNetwork(file.name, plain).eval()


def _refuse_quantized(name: str, model: onnx.ModelProto) -> None:
    node = next((n for n in model.graph.node if n.op_type in _QUANTIZED), None)
    if node is not None:
        raise UsageError(
            f"{name} computes on integers ({node.op_type} {node.name or '-'}). Convert the QDQ "
            "file, or the float file with --quantize."
        )


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _image(name: str, graph: onnx.GraphProto, known: dict[str, np.ndarray]) -> str:
    inputs = [value.name for value in graph.input if value.name not in known]
    if len(inputs) != 1:
        raise UsageError(f"{name} has {counted(len(inputs), 'input')}; LiteRT gets one image here.")
    return inputs[0]


def _place(node: onnx.NodeProto, taken: set[str]) -> str:
    """Return what a node's module is called: as the node, in letters, digits and _."""
    base = re.sub(r"\W+", "_", node.name or node.output[0]).strip("_") or node.op_type
    name, number = base, 1
    while name in taken or hasattr(nn.Module, name):
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return name


def _step(node: onnx.NodeProto, known: dict[str, np.ndarray], version: int, file: str) -> Step:
    from onnx import helper

    module = module_path(node)
    where = f"node {node.name or '-'}" + (f", module {module}" if module else "")
    if node.domain not in _STANDARD or node.op_type not in OPERATORS:
        own = f" of the domain {node.domain!r}" if node.domain not in _STANDARD else ""
        raise TranslationError(
            f"{file}: {node.op_type}{own} ({where}) is not among the {len(OPERATORS)} operators "
            "that are taken on the way from ONNX to LiteRT, whose converter reads PyTorch alone. "
            "If you have the PyTorch network, convert that (a .pt2, or its name).",
            node=node.name, op_type=node.op_type, module=module,
        )  # fmt: skip
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    stored = {i: known[name] for i, name in enumerate(node.input) if name in known}
    if node.op_type == "Pow" and 1 in stored:  # of any type; the result has that of the base
        stored[1] = stored[1].astype(np.float32)
    weights = {i: values for i, values in stored.items() if values.dtype.kind in "fb"}
    call = Call(
        node.op_type, node.name, attributes | {"opset": version}, stored, tuple(node.input),
        len(node.output),
    )  # fmt: skip
    return Step(call, list(node.input), weights)
