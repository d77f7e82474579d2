"""Whether a DLC holds the graph of its ONNX file: operators, shapes, and every weight's values."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import paths
from ..errors import ConvertError
from ..onnxfile.edit import subgraphs
from ..onnxfile.file import OnnxFile
from ..onnxfile.session import Session
from ..runtime.qnn import dlc_file

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Verification:
    """What was compared between a DLC and its ONNX, and what is remarkable but not wrong."""

    operators: int
    weights: int
    values: int
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = (
            f"{self.operators} heavy operators, {self.weights} weights ({self.values:,} values), "
            "input and output shapes equal to the ONNX file's"
        )
        return text + "".join(f"; {remark}" for remark in self.remarks)

    def __repr__(self) -> str:
        return str(self)


# ONNX operators that must appear one for one, with the QNN types that they become.
_HEAVY = {
    "Conv": ("Conv2d", "DepthWiseConv2d", "Conv3d", "GroupedConv2d"),
    "ConvTranspose": ("TransposeConv2d", "TransposeConv3d"),
    "Gemm": ("FullyConnected", "MatMul"),
    "MatMul": ("FullyConnected", "MatMul"),
}
_PRODUCTS_INSIDE = {"Attention": 2}  # of ONNX: queries by keys, and what they select by values
_LIGHT = {
    "HardSwish": "HardSwish",
    "HardSigmoid": "HardSigmoid",
    "Sigmoid": "Sigmoid",
    "Mul": "Multiply",
    "Add": "Add",
    "Softmax": "Softmax",
}


_CURE_OF_ENDS = (
    "let nodes compute every output from the input, with a static shape in the file; an output "
    "that is a weight, or the input itself, has no place in a DLC: remove it from the graph."
)
_CURE_OF_WEIGHTS = (
    "do not use the DLC. Export the network again, at opset 17, and convert that; where it still "
    "differs, report the network: QNN wrote another one."
)
_CURE_OF_BRANCHES = (
    "{op} '{name}' decides while the network runs what is computed, and a DLC holds one graph "
    "without branches. Export the network without it (no `if` or loop that depends on the input), "
    "or convert the part before it (labutils.onnxfile.parts.extract)."
)


def verify(
    dlc: str | Path, source: OnnxFile | str | Path, called: str | None = None
) -> Verification:
    """Compare a DLC with its ONNX file: operators, input and output shapes, every weight.

    Weights are compared value by value, whatever order of axes QNN chose. Element-wise operators
    may be fused or split; a difference there is a remark, for the parity gate to judge.

    Parameters
    ----------
    dlc, source
        The files.
    called
        What errors call the DLC: a draft has another name than the user's file will have.

    Raises
    ------
    ConvertError
        The DLC is not the ONNX file's graph; the message lists the differences.
    """
    made, source = dlc_file.read(dlc), OnnxFile.of(source)
    model = source.proto
    nodes = list(model.graph.node)
    differences = _compare_interface(made, model)
    cure = _CURE_OF_ENDS if differences else _CURE_OF_WEIGHTS
    have, want = Counter(op.type for op in made.ops), Counter(n.op_type for n in nodes)
    heavy = sum(want[name] for name in _HEAVY)
    heavy += sum(_PRODUCTS_INSIDE.get(n.op_type, 0) for n in nodes if not n.domain)
    became = sum(have[name] for name in {t for types in _HEAVY.values() for t in types})
    merged = heavy - _heavy_once(source) if heavy > became else 0
    if heavy - merged != became:
        differences.append(
            f"{heavy} convolutions and matrix products in the ONNX, {became} in the DLC"
        )
    weights, wrong = _compare_weights(made, source)
    differences += wrong
    branching = next((node for node in nodes if any(True for _ in subgraphs(node))), None)
    if branching is not None:
        name = branching.name or branching.output[0]
        cure = _CURE_OF_BRANCHES.format(op=branching.op_type, name=name)
    if differences:
        listed = "".join(f"\n  - {line}" for line in differences[:20])
        raise ConvertError(
            f"{called or Path(dlc).name} does not hold the graph of {source.name}:{listed}\n"
            f"What to do: {cure}"
        )
    remarks = tuple(
        f"{want[name]} {name} in the ONNX are {have[kind]} {kind} in the DLC"
        for name, kind in _LIGHT.items()
        if want[name] != have[kind]
    )
    if merged:
        remarks += (f"{merged} of the ONNX's products repeat others and are computed once",)
    return Verification(heavy, len(weights), sum(w.size for w in weights), remarks)


def _compare_interface(made: dlc_file.Contents, model: onnx.ModelProto) -> list[str]:
    found = []
    static = {initializer.name for initializer in model.graph.initializer}
    for kind, entries in (("input", model.graph.input), ("output", model.graph.output)):
        want = {  # QNN has no tensor without dimensions: a single number is one of one element
            e.name: tuple(d.dim_value for d in e.type.tensor_type.shape.dim) or (1,)
            for e in entries
            if e.name not in static
        }
        have = {t.name: t.shape for t in made.tensors.values() if t.kind == kind}
        unsaid = {
            e.name
            for e in entries
            if not (e.type.tensor_type.HasField("shape") and all(want.get(e.name, ())))
        }
        if want.keys() != have.keys() or any(want[n] != have[n] for n in want.keys() - unsaid):
            found.append(f"{kind}s: ONNX {want}, DLC {have}")
    return found


def _compare_weights(
    made: dlc_file.Contents, source: OnnxFile
) -> tuple[list[np.ndarray], list[str]]:
    wanted = _weights_of(source)
    missing = [name for name in wanted if name not in made.weights]
    if missing:  # ONNX Runtime folds BatchNormalization into new weights before QNN sees them
        with _folded(source) as folded:
            wanted, missing = _weights_of(folded), []
    wrong = []
    spare = [w for name, w in made.weights.items() if name not in wanted]
    for name, values in wanted.items():
        if name in made.weights:
            if not _same(values, made.weights[name]):
                wrong.append(f"weight '{name}' {values.shape} has other values in the DLC")
        elif not any(_same(values, other) for other in spare if other.size == values.size):
            wrong.append(f"weight '{name}' {values.shape} is not in the DLC")
    return list(wanted.values()), wrong


def _weights_of(source: OnnxFile) -> dict[str, np.ndarray]:
    """Return the constant weights and biases of heavy operators, by initializer name."""
    from onnx import numpy_helper

    nodes = source.whole.graph.node
    constants = {i.name: i for i in source.whole.graph.initializer}
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    through = {n.output[0]: n.input[0] for n in nodes if n.op_type == "DequantizeLinear"}
    through |= {n.output[0]: n.input[0] for n in nodes if n.op_type == "Identity"}
    found = {}
    for node in nodes:
        for name in node.input[:3] if node.op_type in _HEAVY else ():
            while name in through:
                name = through[name]
            if name in constants:
                found[name] = numpy_helper.to_array(constants[name])
    return found


def _heavy_once(source: OnnxFile) -> int:
    """Return how many heavy operators are left where equal ones of equal inputs are one."""
    with _folded(source) as folded:
        return sum(node.op_type in _HEAVY for node in folded.proto.graph.node)


@contextlib.contextmanager
def _folded(source: OnnxFile) -> Iterator[OnnxFile]:
    """Yield the file after ONNX Runtime's basic optimization, which QNN's provider gets."""
    with paths.scratch() as folder:
        out = folder / "folded.onnx"
        Session(source, optimize="basic", optimized=out)
        yield OnnxFile(out)


def _same(values: np.ndarray, other: np.ndarray) -> bool:
    """Whether `other` holds `values` in some order of axes, in its own number format."""
    if values.dtype == np.int8 and other.dtype == np.uint8:
        values = (values.astype(np.int16) + 128).astype(np.uint8)
    if values.dtype != other.dtype and values.dtype.kind == other.dtype.kind == "f":
        values = values.astype(other.dtype)
    if values.dtype != other.dtype or values.size != other.size:
        return False
    squeezed = other.reshape([d for d in other.shape if d > 1])
    values = values.reshape([d for d in values.shape if d > 1])
    return any(
        np.array_equal(values.transpose(axes), squeezed)
        for axes in itertools.permutations(range(values.ndim))
        if tuple(values.shape[a] for a in axes) == squeezed.shape
    )
