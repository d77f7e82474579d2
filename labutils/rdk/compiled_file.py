"""A ``.bin`` of the RDK X5, opened and described on any machine.

What the quantizer returns is an ONNX file: nodes of the BPU's domain, with the compiled code as an
attribute, among quantize and dequantize nodes (run by us with dg-nn-toolkit 1.0.0, 2026-11-28). The
packed form that hb_mapper puts around it for a board's runtime is documented nowhere; it is said
to be such, and opened on the board (``hrt_model_exec model_info``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import paths, typesetting
from ..errors import ModelFileError, counted
from ..onnxfile import graph

if TYPE_CHECKING:
    import onnx

_COMPILED = "HzBpuHBM"
End = tuple[str, str, tuple[int | str, ...]]


@dataclass(frozen=True, repr=False)
class CompiledFile(typesetting.Shown):
    """What stands in a ``.bin``.

    Attributes
    ----------
    file, bytes, sha256
        Its name, size and hash.
    inputs, outputs
        (name, type, shape); a size that is open is a name, or ``?``.
    operators
        Nodes by operator.
    compiled
        (node, bytes of its code) of each part that the BPU runs.
    producer
        Who wrote it, as it says.
    """

    file: str
    bytes: int
    sha256: str
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    operators: Counter[str]
    compiled: tuple[tuple[str, int], ...]
    producer: str = ""

    @property
    def on_cpu(self) -> int:
        """How many nodes are not a part of the BPU."""
        return sum(self.operators.values()) - len(self.compiled)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for JSON."""
        return {
            "file": self.file, "bytes": self.bytes, "sha256": self.sha256,
            "inputs": [list(entry) for entry in self.inputs],
            "outputs": [list(entry) for entry in self.outputs],
            "operators": dict(self.operators), "compiled": [list(entry) for entry in self.compiled],
            "on_cpu": self.on_cpu, "producer": self.producer,
        }  # fmt: skip

    def __str__(self) -> str:
        rows = [f"{self.file}: {self.bytes:,} bytes, SHA-256 {self.sha256}"]
        for what, entries in (("input", self.inputs), ("output", self.outputs)):
            rows += [f"  {what:<8}{n}: {kind} {' x '.join(map(str, s))}" for n, kind, s in entries]
        parts = [f"{name} ({size:,} bytes)" for name, size in self.compiled]
        rows.append(
            f"  BPU     {counted(len(parts), 'compiled part')}: {', '.join(parts) or 'none'}"
        )
        listed = ", ".join(f"{n} {op}" for op, n in self.operators.items() if op != _COMPILED)
        rows.append(f"  CPU     {counted(self.on_cpu, 'node')}{f': {listed}' if listed else ''}")
        rows += [f"  made by {self.producer}"] if self.producer else []
        return "\n".join(rows)


def describe(file: str | Path) -> CompiledFile:
    """Return what stands in a ``.bin``.

    Raises
    ------
    ModelFileError
        It is missing, or is not the ONNX form; the message says how the packed one is opened.
    """
    file = Path(file)
    if not file.is_file():
        raise ModelFileError(f"There is no file {file}. Check the path.")
    try:
        model = graph.read(file)
    except ModelFileError as error:
        raise ModelFileError(
            f"{file.name} is not the quantizer's .bin, an ONNX file with {_COMPILED} nodes "
            f"({str(error).rstrip('.')}). If it is hb_mapper's packed file, the board opens it: "
            f"hrt_model_exec model_info --model_file {file.name}."
        ) from None
    compiled = tuple(
        (node.name or node.output[0], _code_bytes(node))
        for node in model.graph.node
        if node.op_type == _COMPILED
    )
    if not compiled:
        raise ModelFileError(
            f"{file.name} is an ONNX file without {_COMPILED} nodes: nothing in it is compiled for "
            "a BPU. `labutils diagnose` opens it."
        )
    return CompiledFile(
        file.name, file.stat().st_size, paths.sha256(file),
        tuple(map(_end, graph.inputs(model))), tuple(map(_end, model.graph.output)),
        Counter(node.op_type for node in model.graph.node), compiled,
        " ".join(filter(None, (model.producer_name, model.producer_version))),
    )  # fmt: skip


def _end(value: onnx.ValueInfoProto) -> End:
    from onnx import TensorProto

    tensor = value.type.tensor_type
    known = {number: name.lower() for name, number in TensorProto.DataType.items()}
    kind = known.get(tensor.elem_type, f"type {tensor.elem_type}, which ONNX does not have")
    return value.name, kind, tuple(d.dim_value or d.dim_param or "?" for d in tensor.shape.dim)


def _code_bytes(node: onnx.NodeProto) -> int:
    """Return the size of what a node carries as attributes."""
    return sum(attribute.ByteSize() for attribute in node.attribute)
