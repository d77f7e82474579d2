"""From a network with fake quantization to the QDQ file that computes the same.

The exporter sees a marker where a quantizer stood. Each marker then becomes a QuantizeLinear and
a DequantizeLinear; in front of a weight or a bias only the DequantizeLinear stays, and the file
holds the integers. What is written is what ONNX Runtime's own quantizer writes for QNN: unsigned
activations, signed weights, 32-bit biases, and from 16 or 4 bits on below opset 21 the operators
of com.microsoft.
"""

from __future__ import annotations

import copy
import html
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .. import data, export, metrics, paths
from ..errors import LabError, UsageError
from ..runtime import OrtRunner
from . import qat_graph
from .fake_quant import FakeQuant, quantizers

if TYPE_CHECKING:
    import onnx

LEAST_SQNR_DB = 30.0
"""Of the file on ONNX Runtime, unoptimized, against the network it was made from.

Typically 40 to 75 dB, and with powers of two bit-equal. What is left is the order of summation:
once in a million values it tips one to the neighbouring integer, and the layers behind make more of
it (in MobileNetV3-Large, int8, 1 of 295,000 in the fifth layer becomes 1 % of the twentieth). A
quantizer at a wrong place leaves less than 20 dB.
"""

_DOMAIN, _MARK = "labutils", "FakeQuant"
_LAST = "_QuantizeLinear_Input"  # how ONNX Runtime calls what is rounded into a graph output
_CHECKED_IMAGES = 16


@dataclass(frozen=True)
class QdqReport:
    """What was written, and how it compares with the network that was trained.

    Attributes
    ----------
    path, opset
        The file, and the opset that it declares.
    activations, weights
        Number of tensors by type, as ``uint8``.
    biases
        Number of biases, all int32.
    bytes
        Size of the file.
    sqnr_db, max_error
        Of the logits, ONNX Runtime without optimizations against the fake-quantized network;
        infinity and 0 when they are bit-equal.
    compared
        What they were compared on.
    """

    path: Path
    opset: int
    activations: Counter
    weights: Counter
    biases: int
    bytes: int
    sqnr_db: float
    max_error: float
    compared: str

    def __str__(self) -> str:
        def counted(counter: Counter) -> str:
            return ", ".join(f"{n} {kind}" for kind, n in sorted(counter.items())) or "none"

        equal = (
            "bit-equal" if math.isinf(self.sqnr_db) else f"{self.sqnr_db:.1f} dB, "
            f"largest difference {self.max_error:.2g}"
        )  # fmt: skip
        return (
            f"{self.path.name}: QDQ, opset {self.opset}, {self.bytes / 1e6:.2f} MB\n"
            f"  activations {counted(self.activations)}; weights {counted(self.weights)}; "
            f"biases {self.biases} int32\n"
            f"  unoptimized ONNX Runtime against the trained network on {self.compared}: {equal}"
        )

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {**self.__dict__, "path": str(self.path)}


@dataclass(frozen=True)
class _Stored:
    """A quantizer as the file holds it: scale, zero point (of the stored type) and axis."""

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None

    def quantized(self, values: np.ndarray) -> np.ndarray:
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


class _Mark(torch.autograd.Function):
    """An identity that TorchScript's exporter writes as a marker node."""

    @staticmethod
    def forward(ctx, x, key):  # noqa: ANN001
        return x.clone()

    @staticmethod
    def symbolic(g, x, key):  # noqa: ANN001
        return g.op(f"{_DOMAIN}::{_MARK}", x, key_s=key).setType(x.type())


class _Marker(nn.Module):
    """Stands where a quantizer stood while the graph is exported."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting():
            return torch.onnx.ops.symbolic(
                f"{_DOMAIN}::{_MARK}", (x,), {"key": self.key}, dtype=x.dtype, shape=x.shape
            )
        return _Mark.apply(x, self.key)


def to_qdq(
    model: nn.Module,
    path: str | Path,
    *,
    size: int,
    opset: int = 17,
    exporter: str = "auto",
    preprocessing: data.Preprocessing | None = None,
    images: np.ndarray | None = None,
) -> QdqReport:
    """Write a network with fake quantization as a QDQ file, and compare the two.

    Parameters
    ----------
    model
        What `qat.prepare` returned, calibrated; it is left as it is.
    path
        The ``.onnx`` file; it appears only when the comparison has passed.
    size
        Image side in pixels; the input is (1, 3, size, size).
    opset
        13 to 23.
    exporter
        As for `export.to_onnx`.
    preprocessing
        Recorded in the file.
    images
        (n, 3, size, size) float32 for the comparison; default 16 Things-16 images.

    Raises
    ------
    UsageError
        The network holds no fake quantization, or was not calibrated; the opset is below 13.
    LabError
        The file does not compute what the network computes: an SQNR below 30 dB.
    """
    path = Path(path)
    if not quantizers(model):
        raise UsageError(
            f"{type(model).__name__} has no fake quantization: call qat.prepare first."
        )
    if opset < 13:
        raise UsageError(f"QDQ with one scale per channel needs opset 13 or later, not {opset}.")
    if images is None:
        shown = preprocessing or data.Preprocessing(size)
        images = shown(data.calibration(_CHECKED_IMAGES, size).images)
    marked, stored = _marked(model, opset)
    example = torch.zeros(1, 3, size, size)
    graph = export.unchecked(marked, example, opset, exporter, preprocessing)
    _name_(graph.graph, getattr(model, "meta", {}).get("scopes", {}))
    counts = _replace_marks_(graph, stored, opset)
    with paths.atomic(path) as temporary:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))
        sqnr, error = _compared(model, temporary, images)
        if sqnr < LEAST_SQNR_DB:
            raise LabError(
                f"{path.name} does not compute what the trained network computes: {sqnr:.1f} dB "
                f"on {len(images)} images, at least {LEAST_SQNR_DB:g} dB are wanted. Please report "
                "the network: a quantizer was written at another place than it was trained."
            )
    return QdqReport(
        path, opset, counts["activations"], counts["weights"], counts["biases"],
        path.stat().st_size, sqnr, error, f"{len(images)} images at {size} px",
    )  # fmt: skip


def _compared(model: nn.Module, file: Path, images: np.ndarray) -> tuple[float, float]:
    was = model.training
    device = next(model.parameters()).device
    with torch.no_grad(), OrtRunner(file, optimize=False) as runner:
        expected = model.eval()(torch.from_numpy(images).to(device)).float().cpu().numpy()
        got = runner.run(images)
    model.train(was)
    return metrics.sqnr_db(expected, got), float(np.abs(expected - got).max())


def _marked(model: nn.Module, opset: int) -> tuple[nn.Module, dict[str, _Stored]]:
    """Return a copy of `model` with markers for quantizers, and what each marker stands for."""
    marked, stored = copy.deepcopy(model).cpu().eval(), {}
    activations = qat_graph.activations_of(marked)
    weights, biases = qat_graph.weights_of(marked), qat_graph.biases_of(marked)
    with torch.no_grad():
        for name, (_, rounding) in biases.items():
            step, per_channel = rounding.step.numpy(), weights[name][1].grid.axis is not None
            # one scale per channel for the bias of a weight with one: the HTP misreads the rest
            step = step if per_channel else step.reshape(())
            stored[f"{name}.bias"] = _Stored(
                step, np.zeros(step.shape, np.int32), 0 if per_channel else None
            )
        for name, (_, quantizer) in weights.items():
            stored[f"{name}.weight"] = _stored(quantizer)
        for name, quantizer in activations.items():
            stored[name] = _stored(quantizer)
    for name, (module, _) in biases.items():
        module.parametrizations.bias[-1] = _Marker(f"{name}.bias")
    for name, (module, _) in weights.items():
        module.parametrizations.weight[-1] = _Marker(f"{name}.weight")
    for name in activations:
        marked.set_submodule(name, _Marker(name))
    return marked, stored


def _stored(quantizer: FakeQuant) -> _Stored:
    import ml_dtypes

    grid = quantizer.grid
    names = {4: ml_dtypes.int4 if grid.signed else ml_dtypes.uint4}
    kind = np.dtype(names.get(grid.bits) or f"{'' if grid.signed else 'u'}int{grid.bits}")
    scale = quantizer.step.detach().numpy().astype(np.float32)
    zero = np.broadcast_to(quantizer.zero_point.numpy(), scale.shape).astype(kind)
    if grid.axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    return _Stored(scale, zero, grid.axis)


def _name_(graph: onnx.GraphProto, scopes: dict[str, list[str]]) -> None:
    """Give operators the names that an export of the float network gives them.

    Tensors can then be compared one by one (`compare.per_layer`), and a recipe's globs mean the
    same node here and there.
    """
    maker = {out: node for node in graph.node for out in node.output}
    outputs = {entry.name for entry in graph.output}
    left = {key: list(names) for key, names in scopes.items()}
    taken, renamed = Counter(), {}
    for mark in graph.node:
        node = maker.get(mark.input[0]) if mark.domain == _DOMAIN else None
        if node is None or node.domain == _DOMAIN or not left.get(_key(mark)):
            continue
        chain = [(node, left[_key(mark)].pop(0))]
        before = maker.get(node.input[0])
        if node.op_type == "Relu" and before is not None and before.op_type in ("Conv", "Gemm"):
            weight = maker.get(before.input[1])
            if weight is not None and weight.domain == _DOMAIN:
                chain.insert(0, (before, qat_graph.scope_of(_key(weight).removesuffix(".weight"))))
        for one, scope in chain:
            name = f"{scope}/{one.op_type}"
            number, taken[name] = taken[name], taken[name] + 1
            one.name = f"{name}_{number}" if number else name
            last = one is node and mark.output[0] in outputs
            name = f"{mark.output[0]}{_LAST}" if last else f"{one.name}_output_0"
            renamed[one.output[0]] = name
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)


def _replace_marks_(
    model: onnx.ModelProto, stored: dict[str, _Stored], opset: int
) -> dict[str, Any]:
    """Turn every marker into Q and DQ, or into DQ of integers; return what was counted."""
    graph = model.graph
    narrow = any(s.zero_point.dtype.name not in ("int8", "uint8", "int32") for s in stored.values())
    write = _Writer(model, stored, "com.microsoft" if narrow and opset < 21 else "")
    _lift_constants_(model)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    first, later = [], []
    for node in graph.node:
        if node.domain != _DOMAIN:
            later.append(node)
        elif node.input[0] in constants:
            first.append(write.constant(node, constants[node.input[0]]))
        else:
            later.extend(write.pair(node))
    del graph.node[:]
    graph.node.extend([*first, *later])
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = write.renamed.get(name, name)
    _absorb_rectifiers_(graph)
    _quantize_scalars_(graph, write)
    _finish_(model, write)
    return write.counts


class _Writer:
    """Writes Q and DQ nodes with ONNX Runtime's names, each scale once."""

    def __init__(self, model: onnx.ModelProto, stored: dict[str, _Stored], domain: str) -> None:
        self.graph, self.stored, self.domain = model.graph, stored, domain
        self.outputs = {entry.name for entry in model.graph.output}
        self.written: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.counts = {"activations": Counter(), "weights": Counter(), "biases": 0}

    def tensor(self, name: str, values: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self.written:
            self.graph.initializer.append(numpy_helper.from_array(values, name))
            self.written.add(name)
        return name

    def node(self, op: str, inputs: list[str], output: str, axis: int | None, name: str) -> Any:
        from onnx import helper

        extra = {"axis": axis} if axis is not None else {}
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
        # markers behind each other (another number of bits) need names of their own
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


def _lift_constants_(model: onnx.ModelProto) -> None:
    """Turn Constant nodes into initializers, which is where weights are looked for."""
    graph = model.graph
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            graph.initializer.add().CopyFrom(node.attribute[0].t)
            graph.initializer[-1].name = node.output[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _absorb_rectifiers_(graph: onnx.GraphProto) -> None:
    """Drop a Relu between a convolution and a Q whose integers begin at zero: the Q clips."""
    from onnx import numpy_helper

    maker = {out: node for node in graph.node for out in node.output}
    values = {tensor.name: tensor for tensor in graph.initializer}
    readers, dropped = _readers(graph), []
    for node in graph.node:
        before, after = maker.get(node.input[0]), readers.get(node.output[0], [])
        if (
            node.op_type == "Relu"
            and before is not None
            and before.op_type in ("Conv", "Gemm", "ConvTranspose", "MatMul", "Add")
            and len(readers[node.input[0]]) == 1
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
                grid = _Stored(np.array(scale), np.array(zero), None)
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
    """Drop unused tensors, and declare domains and IR version as they are used."""
    import onnx

    graph = model.graph
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
    domains = [e for e in model.opset_import if e.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(domains)
    if write.domain:
        model.opset_import.append(onnx.helper.make_opsetid(write.domain, 1))
    if any(t.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) for t in kept):
        model.ir_version = max(model.ir_version, 10)  # the first that knows 4 bits
