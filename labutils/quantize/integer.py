"""A second export of a QDQ file: operators on integers, as QLinearConv, instead of Q and DQ pairs.

ONNX Runtime makes such operators of the pairs in memory, whenever it loads a QDQ file; here its
optimizer writes what it made to a file. It has none for an activation like HardSwish. Where that
is a function of one tensor of 8 bits, it becomes a table of the function's 256 values, read by
Gather: the same numbers, and what a device without floats does. What is left computes in float
between DequantizeLinear and QuantizeLinear, and the report names it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import paths, runtime, typesetting
from ..compare.gating import GateReport, gate
from ..errors import ModelFileError, UsageError
from ..onnxfile.edit import free_name, producers, readers, remove_unused_
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import serialized
from ..onnxfile.session import Session

if TYPE_CHECKING:
    import onnx

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_ONE_BY_ONE = frozenset({
    "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Gelu", "QuickGelu", "Erf", "Relu", "Clip",
    "LeakyRelu", "Elu", "Selu", "Celu", "Mish", "Softplus", "Softsign", "Abs", "Neg", "Exp", "Log",
    "Sqrt", "Reciprocal", "ThresholdedRelu", "Floor", "Ceil", "Round", "Sign",
})  # fmt: skip
"""Operators whose value is a function of one number."""

_WITH_A_NUMBER = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu"})
"""Operators that are such a function where all inputs but one are a single number."""

_INTEGER_FORM = frozenset({"Sigmoid", "LeakyRelu", "Relu", "Clip"})  # ONNX Runtime's optimizer

_CODES = 256


@dataclass(frozen=True, repr=False)
class IntegerReport(typesetting.Shown):
    """What computes on integers in a file, what does not, and how it compares with the QDQ file.

    Attributes
    ----------
    source, file
        The QDQ file and the integer one.
    integer
        Nodes that compute on integers, by operator.
    tables
        How many nodes became a table, by the operator that they were.
    floating
        Nodes that compute in float, as ``LayerNormalization '/norm/LayerNormalization'``.
    ends
        Nodes between integers and float, by operator: at the ends, and around what is in float.
    gate
        The comparison with the QDQ file, both on ONNX Runtime, whose integers are the same.
    bytes
        Size of the file.
    """

    source: Path
    file: Path
    integer: Counter
    tables: Counter
    floating: tuple[str, ...]
    ends: Counter
    gate: GateReport
    bytes: int

    @property
    def whole(self) -> bool:
        """Whether every node computes on integers."""
        return not self.floating

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {
            "source": str(self.source), "file": str(self.file), "integer": dict(self.integer),
            "tables": dict(self.tables), "floating": list(self.floating),
            "ends": dict(self.ends), "gate": self.gate.to_dict(), "bytes": self.bytes,
        }  # fmt: skip

    def __str__(self) -> str:
        def counted(counter: Counter) -> str:
            return ", ".join(f"{n} {op}" for op, n in counter.most_common()) or "none"

        lines = [
            f"{self.file.name}: integer operators of {self.source.name}, {self.bytes / 1e6:.2f} MB",
            f"  on integers  {sum(self.integer.values())} nodes: {counted(self.integer)}",
        ]
        if self.tables:
            lines.append(f"  as tables    {counted(self.tables)}, each of 256 codes")
        left = ", ".join(self.floating[:4]) + (", ..." if len(self.floating) > 4 else "")
        lines.append(f"  in float     {len(self.floating)} nodes{': ' if left else ''}{left}")
        lines.append(f"  between them {counted(self.ends)}")
        return "\n".join([*lines, str(self.gate)])


def write_integer(
    source: OnnxFile | str | Path,
    destination: str | Path,
    inputs: np.ndarray,
    *,
    check_top1: bool = True,
) -> IntegerReport:
    """Write a QDQ file with operators on integers, after comparing the two.

    Parameters
    ----------
    source
        A QDQ file, from `static`, `qat.to_qdq` or elsewhere.
    destination
        The ``.onnx`` to write; it appears when the comparison has passed, or not at all.
    inputs
        (n, channels, height, width) float32 to compare on.
    check_top1
        As for `compare.gate`.

    Raises
    ------
    UsageError
        There are no inputs, or the destination is the source.
    ModelFileError
        The source has no QuantizeLinear, or ONNX Runtime does not take it.
    ParityError
        The integer file departs from the QDQ file.
    """
    source, destination = OnnxFile.of(source), Path(destination)
    source.require_valid()
    if not any(node.op_type == _Q for node in source.proto.graph.node):
        raise ModelFileError(
            f"{source.name} is not quantized: it has no QuantizeLinear. Quantize it first "
            "(quantize.static, or `labutils quantize`)."
        )
    if not len(inputs):
        raise UsageError("The comparison with the QDQ file needs inputs; there were none.")
    if destination.exists() and destination.samefile(source.path):
        raise UsageError(f"{destination} is the QDQ file itself. Pass another name.")
    model = source.copy()
    tables = _write_tables_(model, _ONE_BY_ONE - _INTEGER_FORM)
    model = _optimized(model, source.name)
    tables += _write_tables_(model, _ONE_BY_ONE | _WITH_A_NUMBER)  # what it left
    _declare_domains_(model)
    with paths.atomic(destination) as temporary:
        temporary.write_bytes(serialized(model, destination.name))
        with (
            runtime.OrtRunner(source) as pairs,
            runtime.OrtRunner(temporary, name=destination.name) as made,
        ):
            # the same integers on the same runtime: every image counts
            how: dict[str, Any] = {"kind": "ort_fp32", "check_top1": check_top1, "locate": False}
            found = gate(pairs, made, inputs, **how)
    integer, floating, ends = _sorted(model)
    size = destination.stat().st_size
    return IntegerReport(source.path, destination, integer, tables, floating, ends, found, size)


def _optimized(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the model as ONNX Runtime's optimizer makes it for the CPU, without its layouts."""
    with paths.scratch() as folder:
        file = folder / "integer.onnx"
        Session(model, optimize="extended", optimized=file, name=name)
        return OnnxFile(file).whole


def _write_tables_(model: onnx.ModelProto, kinds: frozenset[str]) -> Counter[str]:
    """Make a table of each function of one tensor of 8 bits, in place; return what became one."""
    from onnx import TensorProto, helper, numpy_helper

    graph, done = model.graph, Counter[str]()
    maker, read_by = producers(graph.node), readers(graph.node)
    values = {tensor.name: tensor for tensor in graph.initializer}
    taken = {*values, *maker, *(node.name for node in graph.node)}
    replaced: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        before = _flowing(node, maker, values) if node.op_type in kinds else None
        after = read_by.get(node.output[0], [])
        if before is None or [n.op_type for n in after] != [_Q]:
            continue
        table = _table(model, before, node, after[0], values)
        if table is None:
            continue
        name, index = (free_name(f"{node.name}_{what}", taken) for what in ("table", "index"))
        graph.initializer.append(numpy_helper.from_array(table, name))
        cast = helper.make_node("Cast", [before.input[0]], [index], index, to=TensorProto.INT32)
        gather = helper.make_node("Gather", [name, index], [after[0].output[0]], node.name)
        replaced[after[0].output[0]] = [cast, gather]
        done[node.op_type] += 1
    nodes = []
    for node in graph.node:
        nodes += replaced.get(node.output[0], [node])
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused_(model)
    return done


def _flowing(
    node: onnx.NodeProto,
    maker: dict[str, onnx.NodeProto],
    values: dict[str, onnx.TensorProto],
) -> onnx.NodeProto | None:
    """Return the DequantizeLinear of the one input that is not constant; None of several."""
    made = {name: maker[name] for name in node.input if name in maker}
    flows = [n for n in made.values() if n.op_type != _DQ or n.input[0] not in values]
    return flows[0] if len(flows) == 1 and flows[0].op_type == _DQ else None


def _table(
    model: onnx.ModelProto,
    before: onnx.NodeProto,
    node: onnx.NodeProto,
    after: onnx.NodeProto,
    values: dict[str, onnx.TensorProto],
) -> np.ndarray | None:
    """Return the codes that a node gives for all 256 codes; None where it does more than that."""
    from onnx import TensorProto, helper

    maker = producers(model.graph.node)
    scalars = [maker[n] for n in node.input if n in maker and maker[n] is not before]
    names = [name for part in (before, after, *scalars) for name in part.input]
    names += [name for name in node.input if name and name not in maker]
    names = [name for name in names if name not in (before.input[0], after.input[0])]
    stored = {name: values[name] for name in names if name in values}
    grids = [values.get(part.input[2]) for part in (before, after) if len(part.input) > 2]
    if len(stored) < len(set(names)) or any(np.prod(t.dims) != 1 for t in stored.values()):
        return None
    if [grid.data_type for grid in grids if grid] != [TensorProto.UINT8] * 2:
        return None
    if any(scalar.op_type != _DQ for scalar in scalars):
        return None
    ends = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, [_CODES])
        for name in (before.input[0], after.output[0])
    ]
    graph = helper.make_graph(
        [*scalars, before, node, after], "table", ends[:1], ends[1:], list(stored.values())
    )
    small = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = Session(small, optimize="none", name=f"the table of {node.op_type} {node.name!r}")
    codes = np.arange(_CODES, dtype=np.uint8)
    return np.asarray(session.run({before.input[0]: codes})[0])


def _sorted(model: onnx.ModelProto) -> tuple[Counter, tuple[str, ...], Counter]:
    """Return the nodes on integers by operator, those in float, and those between by operator."""
    from onnx import TensorProto

    floats = {
        entry.name for entry in model.graph.input
        if entry.type.tensor_type.elem_type == TensorProto.FLOAT
    }  # fmt: skip
    integer, ends = Counter[str](), Counter[str]()
    floating = []
    for node in model.graph.node:
        if node.op_type == _DQ:
            floats.update(node.output)
        if node.op_type in (_Q, _DQ):
            ends[node.op_type] += 1
        elif floats & set(node.input):
            floats.update(node.output)
            floating.append(f"{node.op_type} '{node.name}'")
        else:
            integer[node.op_type] += 1
    return integer, tuple(floating), ends


def _declare_domains_(model: onnx.ModelProto) -> None:
    """Declare the operator sets that the nodes are of, and no others."""
    used = {node.domain or "ai.onnx" for node in model.graph.node} | {"ai.onnx"}
    kept = [entry for entry in model.opset_import if (entry.domain or "ai.onnx") in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
