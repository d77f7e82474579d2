"""Marker nodes in an exported graph become QuantizeLinear and DequantizeLinear.

Knows ONNX only: `qdq_export` puts the markers there and says what each stands for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...onnxfile.edit import (
    free_name,
    lift_constants_,
    producers,
    readers,
    redirect_,
    remove_unused_,
    rename_tensors_,
)
from .node_names import NodeName

if TYPE_CHECKING:
    import onnx

DOMAIN, MARK = "labutils", "FakeQuant"
"""Domain and operator of a marker; its attribute `key` says which quantizer it stands for."""

_FLOAT32 = 1e-6  # relative: the end of a grid, of a step that was rounded to float32
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


def name_(graph: onnx.GraphProto, names: dict[str, list[tuple[NodeName, ...]]]) -> None:
    """Give operators the names that an export of the float network gives them.

    Tensors can then be compared one by one (`compare.per_layer`), and a recipe's globs mean the
    same node here and there.

    Parameters
    ----------
    graph
        With markers.
    names
        Of the nodes that each marker stands behind, in order, by the marker's key.
    """
    maker = producers(graph.node)
    outputs = {entry.name for entry in graph.output}
    left = {key: list(entries) for key, entries in names.items()}
    taken: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    for mark in graph.node:
        node = maker.get(mark.input[0]) if mark.domain == DOMAIN else None
        if node is None or node.domain == DOMAIN or not left.get(_key(mark)):
            continue
        known = left[_key(mark)].pop(0)
        before = maker.get(node.input[0]) if len(known) > 1 else None
        chain = [(node, known[-1])] if before is None else [(before, known[0]), (node, known[-1])]
        for one, called in chain:
            if one.output[0] not in renamed:  # its first output's name is that of the node
                one.name = _name(one, called, taken)
            tensor = mark.input[0] if one is node else one.output[0]
            last = one is node and mark.output[0] in outputs
            place = list(one.output).index(tensor)
            name = called.tensor or f"{one.name}_output_{place}"
            renamed[tensor] = f"{mark.output[0]}{_LAST}" if last else name
    _make_way_(graph, renamed)
    rename_tensors_(graph, renamed)


def _make_way_(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    """Give what has a name that is now another's a free one: sums of shapes, as a Concat."""
    news = set(renamed.values())
    stored = [tensor.name for tensor in graph.initializer]
    made = [name for node in graph.node for name in node.output]
    taken = {*news, *stored, *made, *(node.name for node in graph.node)}
    for name in (*stored, *made):
        if name in news and name not in renamed:
            renamed[name] = free_name(name, taken)
    called = {name.removesuffix("_output_0") for name in news}
    for node in graph.node:
        if node.name in called and node.output[0] not in renamed:
            node.name = free_name(node.name, taken)


def _name(node: onnx.NodeProto, known: NodeName, taken: Counter[str]) -> str:
    """Return a node's name; one made of its operator where the exporter wrote another one."""
    name = known.name if known.op_type == node.op_type else f"{known.scope}/{node.op_type}"
    number, taken[name] = taken[name], taken[name] + 1
    return f"{name}_{number}" if number else name


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
        self.rounded: set[str] = set()
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
        base = free_name(base, self.rounded)  # an exporter makes one of two equal nodes
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
    """Drop a Relu or Clip in front of a Q whose integers end where it clips: the Q does it."""
    maker = producers(graph.node)
    values = {tensor.name: tensor for tensor in graph.initializer}
    read_by, dropped = readers(graph.node), []
    for node in graph.node:
        before, after = maker.get(node.input[0]), read_by.get(node.output[0], [])
        if (
            node.op_type in ("Relu", "Clip")
            and before is not None
            and before.op_type not in ("QuantizeLinear", "DequantizeLinear")
            and len(before.output) == len(read_by[node.input[0]]) == 1
            and [n.op_type for n in after] == ["QuantizeLinear"]
            and _clips_as(after[0], node, values)
        ):
            before.output[0] = node.output[0]
            dropped.append(node)
    for node in dropped:
        graph.node.remove(node)


def _clips_as(
    rounding: onnx.NodeProto, node: onnx.NodeProto, values: dict[str, onnx.TensorProto]
) -> bool:
    """Return whether a Q lets nothing pass that a Relu or Clip before it does not."""
    from onnx import numpy_helper

    scale, zero = (numpy_helper.to_array(values[name]) for name in rounding.input[1:3])
    if node.op_type == "Relu":
        return not zero.any()
    ends = [values.get(name) for name in node.input[1:3]]
    if len(ends) != 2 or any(end is None for end in ends):
        return False
    low, high = (float(numpy_helper.to_array(end)) for end in ends if end is not None)
    reach = float(scale) * (np.iinfo(zero.dtype).max - int(zero))
    return low == 0 and not zero.any() and reach <= high * (1 + _FLOAT32)


def _quantize_scalars_(graph: onnx.GraphProto, write: _Writer) -> None:
    """Give float constants of elementwise operators a DQ: codes hold a single number exactly.

    They have the width of the other operand, as a device wants both.
    """
    from onnx import numpy_helper

    values = {t.name: t for t in graph.initializer}
    made = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    added: dict[tuple[str, str], Any] = {}
    for node in graph.node:
        others = [made[name] for name in node.input if name in made]
        if node.op_type not in ("Add", "Sub", "Mul", "Div") or not others:
            continue
        wide = numpy_helper.to_array(values[others[0].input[2]]).dtype == np.uint16
        kind = np.dtype(np.uint16 if wide else np.uint8)
        for index, name in enumerate(node.input):
            if name not in values or values[name].data_type != 1:
                continue
            if (name, kind.name) not in added:
                array = numpy_helper.to_array(values[name])
                grid = _of_constant(array, kind)
                base = f"{name}_{kind.name}" if wide else name
                inputs = [
                    write.tensor(
                        f"{base}_quantized", grid.quantized(numpy_helper.to_array(values[name]))
                    ),
                    write.tensor(f"{base}_scale", grid.scale),
                    write.tensor(f"{base}_zero_point", grid.zero_point),
                ]
                dq = f"{base}_DequantizeLinear"
                added[name, kind.name] = write.node(
                    "DequantizeLinear", inputs, f"{dq}_Output", None, dq
                )
            node.input[index] = added[name, kind.name].output[0]
    for node in reversed(list(added.values())):
        graph.node.insert(0, node)


def _of_constant(array: np.ndarray, kind: np.dtype) -> Stored:
    """Return the grid of a constant, unsigned; a single number is one step from zero."""
    low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
    levels = 1 if np.unique(array).size == 1 else np.iinfo(kind).max
    scale = np.float32((high - low) / levels or 1.0)
    zero = np.rint(-low / scale).astype(kind)
    return Stored(np.array(scale), np.array(zero), None)


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
