"""Snapdragon artifacts: the DLC and the context binary, written by QNN, read and checked by us.

`write` gives a file that was compared with its ONNX source operator by operator and weight by
weight; whether it also *computes* the same is the parity gate's question, and the DLC itself can
be run for that (``runtime.connect("model.dlc")``).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import paths, typesetting, untrusted
from ..errors import ConvertError, ModelFileError, UsageError
from ..onnxfile import graph
from ..onnxfile.file import OnnxFile
from ..onnxfile.wall import wall
from ..runtime import qnn
from ..runtime.qnn import dlc_file, options, refusal
from .verification import Verification, verify

__all__ = [
    "ContextInfo",
    "DlcInfo",
    "Verification",
    "context_binary",
    "info",
    "sidecar",
    "to_fp16",
    "verify",
    "write",
]

PRECISIONS = ("auto", "fp32", "fp16")


@dataclass(frozen=True, repr=False)
class DlcInfo(typesetting.Shown):
    """What a DLC holds, read from the file itself.

    Attributes
    ----------
    file
        The DLC.
    contents
        Operators in order, tensors, weights, and who wrote it when.
    notes
        What its sidecar ``<name>.dlc.json`` adds (source file, target, ...); empty without one.
    """

    file: Path
    contents: dlc_file.Contents = field(repr=False)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> Counter[str]:
        """Operators by type."""
        return Counter(op.type for op in self.contents.ops)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and fully connected layers, for one image."""
        return sum(op.macs for op in self.contents.ops)

    @property
    def parameters(self) -> int:
        """Weight values in the file."""
        return sum(weight.size for weight in self.contents.weights.values())

    @property
    def inputs(self) -> list[dlc_file.Tensor]:
        """The graph's inputs."""
        return [t for t in self.contents.tensors.values() if t.kind == "input"]

    @property
    def outputs(self) -> list[dlc_file.Tensor]:
        """The graph's outputs."""
        return [t for t in self.contents.tensors.values() if t.kind == "output"]

    @property
    def precision(self) -> str:
        """fp32, fp16, int8 or a16w8 after the most common type of the inner tensors."""
        kinds = Counter(t.dtype for t in self.contents.tensors.values() if t.kind == "native")
        common = kinds.most_common(1)[0][0] if kinds else "float32"
        names = {"float32": "fp32", "float16": "fp16", "uint8 q": "int8", "uint16 q": "a16w8"}
        return names.get(common, common)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per operator: type, shape, types, scale, zero point, MACs, name."""
        return [_row(op, self.contents.tensors) for op in self.contents.ops]

    def summary(self) -> str:
        """Return the file in one line."""
        shapes = ", ".join(f"{t.name} {list(t.shape)} {t.dtype}" for t in self.inputs)
        return (
            f"{self.file.name}: {self.precision}, {len(self.contents.ops)} QNN operators, "
            f"{self.macs / 1e6:.1f} M MACs, {self.parameters / 1e6:.2f} M parameters, "
            f"{self.file.stat().st_size:,} bytes; input {shapes}; "
            f"written by {self.contents.writer} at {self.contents.written}"
        )

    def __str__(self) -> str:
        lines = [self.summary(), f"{'type':<18}{'shape':<18}{'out':<10}{'weight':<10}{'MACs':>12}"]
        for row in self.rows():
            scale = "" if row["scale"] is None else f"scale {row['scale']:.5g}"
            point = "" if row["zero_point"] is None else f" zero {row['zero_point']}"
            lines.append(
                f"{row['type']:<18}{row['shape']:<18}{row['dtype']:<10}{row['weight']:<10}"
                f"{row['macs']:>12,}  {scale}{point}  {row['name'][-60:]}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        columns = ("type", "shape", "dtype", "weight", "scale", "zero_point", "macs", "name")
        rows = [[_cell(row[name]) for name in columns] for row in self.rows()]
        return typesetting.paragraph(self.summary()) + typesetting.table(columns, rows)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def _row(op: dlc_file.Op, tensors: dict[str, dlc_file.Tensor]) -> dict[str, Any]:
    out = tensors[op.outputs[0]]
    weights = [tensors[n] for n in op.inputs if n in tensors and tensors[n].kind == "static"]
    return {
        "name": op.name,
        "type": op.type,
        "module": graph.module_of_name(op.name),
        "shape": "x".join(map(str, out.shape)),
        "dtype": out.dtype,
        "weight": weights[0].dtype if weights else "-",
        "scale": out.scale,
        "zero_point": out.zero_point,
        "macs": op.macs,
        "attributes": op.attributes,
    }


def info(file: str | Path) -> DlcInfo:
    """Return what the DLC at `file` holds; nothing but the file itself is needed.

    Raises
    ------
    ModelFileError
        The file is missing, truncated, no DLC, or of a layout that is not known here; or the
        summary beside it is damaged.
    """
    file = Path(file)
    contents = dlc_file.read(file)
    return DlcInfo(file, contents, _notes(file))


def _notes(file: Path) -> dict[str, Any]:
    """Return the facts in a DLC's summary; none where that is absent, or of another file."""
    try:
        entry = untrusted.json_file(sidecar(file))
        notes = entry["notes"] if entry["sha256"] == paths.sha256(file) else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ModelFileError(
            f"The summary beside {file}, {sidecar(file).name}, is damaged. Delete it, or convert "
            "the model again."
        ) from None
    return notes if isinstance(notes, dict) else {}


def sidecar(file: Path) -> Path:
    """Return the name of the readable summary beside a DLC."""
    return file.with_name(file.name + ".json")


def write(
    source: OnnxFile | str | Path,
    target: str | Path,
    precision: str = "auto",
    notes: dict[str, Any] | None = None,
    pool: qnn.Pool | None = None,
) -> DlcInfo:
    """Write the ONNX file `source` as the DLC `target`, verified, with a ``.dlc.json`` beside it.

    Parameters
    ----------
    source
        Static shapes; float, or QDQ-quantized (int8, a16w8), which is kept as it is.
    target
        The DLC's name; nothing is written under it unless everything succeeds.
    precision
        ``"auto"`` keeps the file's; ``"fp16"`` converts a float graph's inside to float16, its
        inputs and outputs stay float32.
    notes
        Facts for the sidecar, such as the target that the graph was checked against.
    pool
        Your own workers, instead of the shared ones.

    Raises
    ------
    ConvertError
        QNN refuses the graph (each node with its reason), or the DLC does not hold it.
    ModelFileError, WorkerError, MissingToolError
        The source cannot be read; the writer died; QNN is not here.
    """
    source, target = OnnxFile.of(source), Path(target)
    if precision not in PRECISIONS:
        raise UsageError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}.")
    refusal.precheck(source)
    with paths.scratch() as folder:
        model, out = source, folder / "out"
        out.mkdir()  # QNN aborts the process when its folder is missing
        if precision == "fp16":
            model = to_fp16(source, folder / source.name)
        asked = qnn.Graph.of(model, options.dlc(out))
        workers = pool or qnn.shared()
        workers.build(asked, "writing a DLC", keep=False)
        made = sorted(out.glob("*.dlc"))
        if len(made) != 1:
            raise workers.why_split(asked, "writing a DLC")
        verified = verify(made[0], model, target.name)
        with paths.atomic(target) as temporary:
            shutil.copyfile(made[0], temporary)
            sidecar(target).unlink(missing_ok=True)  # it described another file
    facts = {"source": source.name, "source_sha256": paths.sha256(source), **(notes or {})}
    written = DlcInfo(target, dlc_file.read(target), facts | {"verified": str(verified)})
    paths.write_text(sidecar(target), json.dumps(_describe(written), indent=1) + "\n")
    return written


def _describe(written: DlcInfo) -> dict[str, Any]:
    contents = written.contents
    return {
        "file": written.file.name,
        "bytes": written.file.stat().st_size,
        "sha256": paths.sha256(written.file),
        "writer": contents.writer,
        "written": contents.written,
        "precision": written.precision,
        "parameters": written.parameters,
        "macs": written.macs,
        "inputs": [asdict(tensor) for tensor in written.inputs],
        "outputs": [asdict(tensor) for tensor in written.outputs],
        "notes": written.notes,
        "operators": written.rows(),
    }


def to_fp16(source: OnnxFile | str | Path, target: str | Path) -> OnnxFile:
    """Write `source` with float16 inside and float32 inputs and outputs; return the file made."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    source = OnnxFile.of(source)
    if any(node.op_type == "QuantizeLinear" for node in source.proto.graph.node):
        raise UsageError(f"{source.name} is quantized: precision fp16 is for float graphs.")
    model = source.copy()
    with wall(
        "ONNX Runtime's converter to float16 cannot take",
        source.name,
        error=ConvertError,
        model=source.proto,
        advice="Convert with --precision fp32: the HTP computes a float graph in float16 anyway.",
    ):
        half = convert_float_to_float16(model, keep_io_types=True)
    return OnnxFile.write(target, half)


@dataclass(frozen=True, repr=False)
class ContextInfo(typesetting.Paragraph):
    """A context binary: a graph compiled ahead of time for one chip."""

    file: Path
    wrapper: Path
    soc: qnn.Soc
    size: int
    writer: str

    def __str__(self) -> str:
        return (
            f"{self.file.name}: {self.size:,} bytes, compiled for {self.soc} by {self.writer}; "
            f"{self.wrapper.name} lets ONNX Runtime load it"
        )


def context_binary(
    source: OnnxFile | str | Path, target: str | Path, soc: str = "SM8550"
) -> ContextInfo:
    """Compile the ONNX file `source` for one chip into the context binary `target`.

    Beside it lies ``<stem>.ctx.onnx``, the small graph through which ONNX Runtime on the device
    (and the simulator here) loads the binary.

    Raises
    ------
    UnknownNameError
        The chip is not in the table; the message lists those that are.
    ConvertError
        QNN refuses the graph, or the chip's HTP has no float16.
    """
    source, target = OnnxFile.of(source), Path(target)
    chip = qnn.soc(soc)
    refusal.precheck(source, chip)
    version = qnn.require().versions["QNN"]
    with paths.scratch() as folder:
        config = {
            "ep.context_enable": "1",
            "ep.context_file_path": str(folder / "made_ctx.onnx"),
            "ep.context_embed_mode": "0",
        }
        asked = qnn.Graph.of(source, options.htp(chip, enable_htp_prepare_only=1), config)
        qnn.shared().build(asked, f"compiling it for {chip}", keep=False)
        binaries = list(folder.glob("*.bin"))
        if len(binaries) != 1:
            raise qnn.shared().why_split(asked, f"compiling it for {chip}")
        small = OnnxFile(folder / "made_ctx.onnx").copy()
        for attribute in small.graph.node[0].attribute:
            if attribute.name == "ep_cache_context":
                attribute.s = target.name.encode()
        wrapper = target.with_name(target.stem + ".ctx.onnx")
        with paths.atomic(target) as temporary:
            shutil.copyfile(binaries[0], temporary)
            wrapper.unlink(missing_ok=True)  # it belonged to another binary
        OnnxFile.write(wrapper, small)
    return ContextInfo(target, wrapper, chip, target.stat().st_size, f"QNN {version}")
