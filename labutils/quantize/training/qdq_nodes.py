"""Marker nodes in an exported graph become QuantizeLinear and DequantizeLinear.

Knows ONNX only: `qdq_export` puts the markers there and says what each stands for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...onnxfile.edit import (
    lift_constants_,
    producers,
    readers,
    redirect_,
    remove_unused_,
    rename_tensors_,
)
from .graph import scope_of

if TYPE_CHECKING:
    import onnx

DOMAIN, MARK = "labutils", "FakeQuant"
"""Domain and operator of a marker; its attribute `key` says which quantizer it stands for."""

_LAST = "_QuantizeLinear_Input"  # how ONNX Runtime calls what is rounded into a graph output


@dataclass(frozen=True)
class Stored:
    """A quantizer as the file holds it: scale, zero point (of the stored type) and axis."""

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None

    def quantized(self, values: np.ndarray) -> np.ndarray:
        """Return the integers of float32 `values`, of the zero point's type."""
        import ml_dtypes

        shape = [1] * values.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        kind = self.zero_point.dtype
        limits = ml_dtypes.iinfo(kind)
        scale, zero = self.scale.reshape(shape), self.zero_point.astype(np.int64).reshape(shape)
        integers = np.rint(values / scale).astype(np.int64) + zero
        # weights leave out the most negative integer, as in training
        lowest = limits.min + (1 if limits.min < 0 else 0)
        return np.clip(integers, lowest, limits.max).astype(kind)


def name_(graph: onnx.GraphProto, scopes: dict[str, list[str]]) -> None:
    """Give operators the names that an export of the float network gives them.

    Tensors can then be compared one by one (`compare.per_layer`), and a recipe's globs mean the
    same node here and there.
    """
    maker = producers(graph.node)
    outputs = {entry.name for entry in graph.output}
    left = {key: list(names) for key, names in scopes.items()}
    taken: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    for mark in graph.node:
        node = maker.get(mark.input[0]) if mark.domain == DOMAIN else None
        if node is None or node.domain == DOMAIN or not left.get(_key(mark)):
            continue
        chain = [(node, left[_key(mark)].pop(0))]
        before = maker.get(node.input[0])
        if node.op_type == "Relu" and before is not None and before.op_type in ("Conv", "Gemm"):
            weight = maker.get(before.input[1])
            if weight is not None and weight.domain == DOMAIN:
                chain.insert(0, (before, scope_of(_key(weight).removesuffix(".weight"))))
        for one, scope in chain:
            name = f"{scope}/{one.op_type}"
            number, taken[name] = taken[name], taken[name] + 1
            one.name = f"{name}_{number}" if number else name
            last = one is node and mark.output[0] in outputs
            name = f"{mark.output[0]}{_LAST}" if last else f"{one.name}_output_0"
            renamed[one.output[0]] = name
    rename_tensors_(graph, renamed)


def replace_marks_(model: onnx.ModelProto, stored: dict[str, Stored], opset: int) -> dict[str, Any]:
    """Turn every marker into Q and DQ, or into DQ of integers; return what was counted."""
    graph = model.graph
    narrow = any(s.zero_point.dtype.name not in ("int8", "uint8", "int32") for s in stored.values())
    write = _Writer(model, stored, "com.microsoft" if narrow and opset < 21 else "")
    lift_constants_(model)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    first, later = [], []
    for node in graph.node:
        if node.domain != DOMAIN:
            later.append(node)
        elif node.input[0] in constants:
            first.append(write.constant(node, constants[node.input[0]]))
        else:
            later.extend(write.pair(node))
    del graph.node[:]
    graph.node.extend([*first, *later])
    redirect_(graph.node, write.renamed)
    _absorb_rectifiers_(graph)
    _quantize_scalars_(graph, write)
    _finish_(model, write)
    return write.counts


class _Writer:
    """Writes Q and DQ nodes with ONNX Runtime's names, each scale once."""

    def __init__(self, model: onnx.ModelProto, stored: dict[str, Stored], domain: str) -> None:
        self.graph, self.stored, self.domain = model.graph, stored, domain
        self.outputs = {entry.name for entry in model.graph.output}
        self.written: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.counts: dict[str, Any] = {"activations": Counter(), "weights": Counter(), "biases": 0}

    def tensor(self, name: str, values: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self.written:
            self.graph.initializer.append(numpy_helper.from_array(values, name))
            self.written.add(name)
        return name

    def node(self, op: str, inputs: list[str], output: str, axis: int | None, name: str) -> Any:
        from onnx import helper

        extra: dict[str, Any] = {"axis": axis} if axis is not None else {}
        return helper.make_node(op, inputs, [output], name=name, domain=self.domain, **extra)

    def constant(self, mark: onnx.NodeProto, tensor: onnx.TensorProto) -> onnx.NodeProto:
        """Store the integers of a weight or bias, and return its DQ."""
        from onnx import numpy_helper

        key = _key(mark)
        grid = self.stored[key]
        values = grid.quantized(numpy_helper.to_array(tensor))
        if values.dtype == np.int32:
            self.counts["biases"] += 1
        else:
            self.counts["weights"][values.dtype.name] += 1
        inputs = [
            self.tensor(f"{key}_quantized", values),
            self.tensor(f"{key}_scale", grid.scale),
            self.tensor(f"{key}_zero_point", grid.zero_point),
        ]
        name = f"{key}_DequantizeLinear"
        self.renamed[mark.output[0]] = f"{name}_Output"
        return self.node("DequantizeLinear", inputs, f"{name}_Output", grid.axis, name)

    def pair(self, mark: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return Q and DQ of an activation."""
        key, source = _key(mark), self.renamed.get(mark.input[0], mark.input[0])
        grid = self.stored[key]
        # consecutive markers (another number of bits) need their own names
        source_base = source.removesuffix(_LAST)
        base = source_base.removesuffix("_DequantizeLinear_Output")
        base = base if base == source_base else f"{base}_{grid.zero_point.dtype.name}"
        output = mark.output[0]
        if output not in self.outputs:
            self.renamed[output] = f"{base}_DequantizeLinear_Output"
            output = self.renamed[output]
        grids = [
            self.tensor(f"{key}_scale", grid.scale),
            self.tensor(f"{key}_zero_point", grid.zero_point),
        ]
        self.counts["activations"][grid.zero_point.dtype.name] += 1
        middle, q, dq = (
            f"{base}_QuantizeLinear_Output",
            f"{base}_QuantizeLinear",
            f"{base}_DequantizeLinear",
        )
        return [
            self.node("QuantizeLinear", [source, *grids], middle, None, q),
            self.node("DequantizeLinear", [middle, *grids], output, None, dq),
        ]


def _key(mark: onnx.NodeProto) -> str:
    return next(a.s.decode() for a in mark.attribute if a.name == "key")


def _absorb_rectifiers_(graph: onnx.GraphProto) -> None:
    """Drop a Relu between a convolution and a Q whose integers begin at zero: the Q clips."""
    from onnx import numpy_helper

    maker = producers(graph.node)
    values = {tensor.name: tensor for tensor in graph.initializer}
    read_by, dropped = readers(graph.node), []
    for node in graph.node:
        before, after = maker.get(node.input[0]), read_by.get(node.output[0], [])
        if (
            node.op_type == "Relu"
            and before is not None
            and before.op_type in ("Conv", "Gemm", "ConvTranspose", "MatMul", "Add")
            and len(read_by[node.input[0]]) == 1
            and [n.op_type for n in after] == ["QuantizeLinear"]
            and not numpy_helper.to_array(values[after[0].input[2]]).any()
        ):
            before.output[0] = node.output[0]
            dropped.append(node)
    for node in dropped:
        graph.node.remove(node)


def _quantize_scalars_(graph: onnx.GraphProto, write: _Writer) -> None:
    """Give float constants of elementwise operators a DQ: 8 bits hold a single number exactly."""
    from onnx import numpy_helper

    values = {t.name: t for t in graph.initializer}
    made = {out for n in graph.node if n.op_type == "DequantizeLinear" for out in n.output}
    added: dict[str, Any] = {}
    for node in graph.node:
        if node.op_type not in ("Add", "Sub", "Mul", "Div") or not made & set(node.input):
            continue
        for index, name in enumerate(node.input):
            if name not in values or values[name].data_type != 1:
                continue
            if name not in added:
                array = numpy_helper.to_array(values[name])
                low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
                one = np.unique(array).size == 1
                scale = np.float32((high - low) / (1 if one else 255) or 1.0)
                zero = np.uint8(np.rint(-low / scale))
                grid = Stored(np.array(scale), np.array(zero), None)
                inputs = [
                    write.tensor(f"{name}_quantized", grid.quantized(array)),
                    write.tensor(f"{name}_scale", grid.scale),
                    write.tensor(f"{name}_zero_point", grid.zero_point),
                ]
                dq = f"{name}_DequantizeLinear"
                added[name] = write.node("DequantizeLinear", inputs, f"{dq}_Output", None, dq)
            node.input[index] = added[name].output[0]
    for node in reversed(list(added.values())):
        graph.node.insert(0, node)


def _finish_(model: onnx.ModelProto, write: _Writer) -> None:
    """Remove what is unused, and declare domains and IR version as they are used."""
    import onnx

    graph = model.graph
    remove_unused_(model)
    del graph.value_info[:]
    domains = [e for e in model.opset_import if e.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(domains)
    if write.domain:
        model.opset_import.append(onnx.helper.make_opsetid(write.domain, 1))
    narrow = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    if any(tensor.data_type in narrow for tensor in graph.initializer):
        model.ir_version = max(model.ir_version, 10)  # the first that knows 4 bits
