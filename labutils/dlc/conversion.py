"""ONNX to a DLC that was run and compared: `convert` returns nothing else.

The DLC is written beside its destination under a temporary name, checked against the ONNX file,
executed, and compared with the model that the user brought. Only then does it get its name.
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import compare, manifests, paths, runtime, typesetting
from ..errors import (
    ConvertError,
    MissingToolError,
    ParityError,
    TranslationError,
    UnknownNameError,
    UsageError,
    counted,
)
from ..onnxfile.file import OnnxFile
from ..runtime import qnn
from ..targets import snpe, table
from . import refusals, writing

PRECISIONS = ("fp32", "fp16", "int8", "a16w8")
_KINDS = {"fp32": "htp_fp16", "fp16": "htp_fp16", "int8": "htp_int8", "a16w8": "htp_a16w8"}


@dataclass(frozen=True)
class Gate:
    """What a DLC is compared with before it counts, and how strictly.

    Attributes
    ----------
    reference
        The model that the user brought (never a repaired one), on its runner.
    inputs
        (n, 3, size, size) float32, normalized; 32 images are usual.
    original
        An ONNX file of `reference`, to name the first tensor that departs when the gate fails.
    min_cosine
        Another threshold; it is printed and kept in the manifest.
    check_top1
        False for untrained weights.
    keep_failed
        Keep a DLC that fails as ``NAME.failed.dlc``, for inspection, instead of raising
        ParityError.
    memory
        Takes what the simulator computes here, for a runner of the same DLC that comes later.
    """

    reference: runtime.Runner
    inputs: np.ndarray
    original: OnnxFile | str | Path | None = None
    min_cosine: float | None = None
    check_top1: bool = True
    keep_failed: bool = False
    memory: qnn.Memory | None = None


@dataclass(frozen=True)
class Device:
    """What a DLC is made for.

    Attributes
    ----------
    soc
        The chip whose compiler and simulator run the DLC.
    precision
        One of `PRECISIONS`; ``int8`` and ``a16w8`` need a quantized file.
    """

    soc: str = "SM8550"
    precision: str = "fp32"


@dataclass(frozen=True)
class Notes:
    """What is kept beside a DLC.

    Attributes
    ----------
    caveat
        What the claim must begin with, for a reference that is not the user's own model.
    edits
        YAML of the surgery that made the ONNX file; None when there was none.
    facts
        More for the manifest (preprocessing, classes, repair).
    """

    caveat: str = ""
    edits: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Conversion(typesetting.Shown):
    """A DLC that was run and compared, and the evidence.

    Attributes
    ----------
    file, target, precision
        The DLC (``.failed.dlc`` where the gate failed and was told to keep it), the target's
        name, one of `PRECISIONS`.
    source
        The ONNX file that was written into it.
    check
        The float graph against the target's operator table.
    transcript
        What the SNPE tool (or its replica) logged; None for other targets.
    info
        What is in the DLC.
    gate
        The comparison with the model that the user brought.
    claim
        One sentence: what was and what was not tested.
    manifest
        The file beside the DLC that records all of this.
    """

    file: Path
    target: str
    precision: str
    source: Path
    check: table.CheckReport
    transcript: snpe.Transcript | None
    info: writing.DlcInfo
    gate: compare.GateReport
    claim: str
    manifest: Path

    def to_dict(self) -> dict[str, Any]:
        """Return the conversion as plain values, for ``--json``."""
        return {
            "file": str(self.file),
            "bytes": self.file.stat().st_size,
            "target": self.target,
            "precision": self.precision,
            "source": str(self.source),
            "check": self.check.counts,
            "unknown": self.check.unknown,
            "gate": self.gate.to_dict(),
            "claim": self.claim,
            "manifest": str(self.manifest),
        }

    def __str__(self) -> str:
        size = self.file.stat().st_size / 1e6
        head = f"{self.file.name}: {self.precision} DLC for {self.target}, {size:.2f} MB"
        return "\n".join([head, f"  {self.claim}", str(self.gate)])


def convert(
    source: OnnxFile | str | Path,
    target: str,
    destination: str | Path,
    gate: Gate,
    device: Device | None = None,
    *,
    quantized: OnnxFile | str | Path | None = None,
    notes: Notes | None = None,
    echo: Callable[[str], object] | None = None,
) -> Conversion:
    """Write a DLC for a target, run it, compare it with the original, and only then keep it.

    Parameters
    ----------
    source
        The float ONNX file, static shapes, one float32 image input.
    target
        A name in `table.TARGETS` that the lab can convert for.
    destination
        The ``.dlc`` to write.
    gate
        The model that the user brought, and the images that both are compared on.
    device
        The chip, and the precision; fp32 for `Device.soc` by default.
    quantized
        The QDQ file made from `source`, when an integer DLC is wanted.
    notes
        What is kept beside the DLC.
    echo
        Called with each line of the converter's log.

    Raises
    ------
    UsageError
        The target is check-only, or the precision does not fit the files.
    TranslationError
        The target's table (or the real SNPE tool) has no translation for a node.
    ConvertError
        QNN refuses a node, or the DLC is not what the ONNX file says.
    ParityError
        The DLC runs and computes something else, and the gate does not keep such a file.

    Examples
    --------
    >>> import numpy as np
    >>> from labutils import dlc, export, runtime
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Hardswish(), nn.Flatten())
    >>> _ = export.to_onnx(net, "net.onnx", size=32)
    >>> images = np.random.default_rng(0).standard_normal((8, 3, 32, 32), np.float32)
    >>> gate = dlc.Gate(runtime.connect(net), images)
    >>> made = dlc.convert("net.onnx", "qnn", "net.dlc", gate)
    >>> made.gate.passed, made.file.name
    (True, 'net.dlc')
    """
    destination, device, notes = Path(destination), device or Device(), notes or Notes()
    say = echo or (lambda line: None)
    refuse_impossible(target, destination)
    _refuse_misfit(device.precision, quantized)
    qnn.require()
    source = OnnxFile.of(source)
    written = source if quantized is None else OnnxFile.of(quantized)
    check = table.check(source, target)
    with paths.scratch(destination.parent) as folder:
        draft = folder / destination.name
        precision = _precision_of(written, device)
        say(f"writing the {precision} DLC ...")
        transcript = _write(source, written, check, draft, device.precision, say)
        images = counted(len(gate.inputs), "image")
        say(f"comparing {images} with the original on the simulated {device.soc} ...")
        report = _judge(draft, written, gate, replace(device, precision=precision))
        if not report.passed:
            draft, destination = _rename(draft), failed_place(destination)
        claim = ". ".join(filter(None, [notes.caveat, _claim(target, transcript, report)]))
        story = {
            "target": target,
            "precision": precision,
            "claim": claim,
            "source": {"file": written.name, "sha256": paths.sha256(written)},
            "opset": check.opset,
            "soc": device.soc,
            "gate": report.to_dict(),
        }
        manifests.write(draft, story | notes.facts)
        if notes.edits is not None:
            paths.write_text(paths.edits_file(draft), notes.edits)
        _publish(folder, destination)
    return Conversion(
        file=destination, target=target, precision=precision, source=written.path, check=check,
        transcript=transcript, info=writing.info(destination), gate=report, claim=claim,
        manifest=paths.manifest(destination),
    )  # fmt: skip


def _precision_of(written: OnnxFile, device: Device) -> str:
    """Return what a DLC holds, and is judged as: a quantized file is written in its integers."""
    from onnx import TensorProto

    graph = written.proto.graph
    quantizing = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    points = {node.input[2] for node in quantizing if len(node.input) > 2}
    if not quantizing or device.precision in ("int8", "a16w8"):
        return device.precision
    wide = (TensorProto.UINT16, TensorProto.INT16)
    kinds = {tensor.data_type for tensor in graph.initializer if tensor.name in points}
    return "a16w8" if kinds.issubset(wide) and kinds else "int8"


def failed_place(destination: Path) -> Path:
    """Return where a DLC goes that failed the gate: ``x.failed.dlc`` for ``x.dlc``."""
    return destination.with_suffix(".failed.dlc")


def _refuse_misfit(precision: str, quantized: OnnxFile | str | Path | None) -> None:
    if precision not in PRECISIONS:
        raise UsageError(f"precision={precision!r}: choose {', '.join(PRECISIONS)}.")
    if (precision in ("int8", "a16w8")) != (quantized is not None):
        raise UsageError(f"Precision {precision} and quantized={quantized} cannot be combined.")


def _rename(draft: Path) -> Path:
    """Give a draft that failed, and what lies beside it, the name of a failed one."""
    failed = failed_place(draft)
    for made in sorted(draft.parent.glob(f"{glob.escape(draft.name)}*")):
        made.replace(made.with_name(failed.name + made.name.removeprefix(draft.name)))
    return failed


def _publish(folder: Path, destination: Path) -> None:
    """Give the DLC and what describes it their names; a kill leaves no description of another."""
    with paths.locked(destination):
        beside = (paths.manifest, paths.edits_file, paths.earlier_edits_file, writing.sidecar)
        for stale in (destination, failed_place(destination)):  # left by an earlier attempt
            for name in beside:
                name(stale).unlink(missing_ok=True)
        failed_place(destination).unlink(missing_ok=True)
        for made in sorted(folder.iterdir()):  # the DLC's name is the shortest: it comes first
            made.replace(destination.parent / made.name)


def refuse_impossible(target: str, destination: Path) -> None:
    """Raise when the lab cannot convert for `target`, or not into such a file: before any work.

    Raises
    ------
    UnknownNameError
        No such target.
    UsageError
        A check-only target, another suffix than ``.dlc``, or a folder that cannot be written.
    """
    if target not in table.TARGETS:
        raise UnknownNameError("target", target, table.TARGETS)
    able = [name for name, entry in table.TARGETS.items() if entry.convert.startswith("DLC")]
    if target not in able and table.TARGETS[target].convert:
        raise UsageError(
            f"For {target} no DLC is written: `labutils convert --target {target}` makes its file. "
            f"A DLC is for {', '.join(able)}."
        )
    if target not in able:
        others = [name for name, entry in table.TARGETS.items() if entry.convert]
        raise UsageError(
            f"The lab checks models for {target} against its documented operators only, and does "
            f"not convert for it. {table.load(target).availability} Use `labutils diagnose`, or "
            f"convert for {', '.join(others)}."
        )
    if destination.suffix.lower() != ".dlc":
        raise UsageError(f"{destination}: for {target} the output is a .dlc file.")
    paths.refuse_unwritable(destination)


def _write(
    source: OnnxFile,
    written: OnnxFile,
    check: table.CheckReport,
    draft: Path,
    precision: str,
    echo: Callable[[str], object],
) -> snpe.Transcript | None:
    """Translate as the target does, then write the DLC and check it against the ONNX file."""

    def write() -> None:
        inside = "fp16" if precision == "fp16" else "auto"
        notes = {"target": check.target, "precision": precision, "made_from": written.name}
        writing.write(written, draft, inside, notes)

    refusals.refuse_never_written(source)
    if check.target == snpe.TARGET:
        transcript = snpe.translate(source, draft, echo=echo, write=write)
        if transcript.real:  # its DLC is kept, but only what can be run and compared counts
            draft.replace(draft.with_suffix(".snpe.dlc"))
            write()
        return transcript
    # QNN itself judges for "qnn"; for a documented version the documents do.
    if check.target != "qnn" and check.first_blocker:
        first = check.first_blocker
        raise TranslationError(
            f"{check.target}: the documented operator table does not take {first.op_type} "
            f"(node {first.node or '-'}, module {first.module or '-'}): {first.evidence}. "
            f"{counted(len(check.blockers), 'node')} in all; see `labutils diagnose`.",
            node=first.node,
            op_type=first.op_type,
            module=first.module,
        )
    write()
    return None


def _judge(draft: Path, written: OnnxFile, gate: Gate, device: Device) -> compare.GateReport:
    """Return the gate's report; for a failed DLC only if the gate keeps failed ones."""
    try:
        return _compare(draft, written, gate, device)
    except ParityError as error:
        if not gate.keep_failed or not isinstance(error.report, compare.GateReport):
            raise
        return error.report


def _compare(draft: Path, written: OnnxFile, gate: Gate, device: Device) -> compare.GateReport:
    """Run the DLC itself and gate it; where it fails, the graph on the HTP tells more."""
    settings: dict[str, Any] = {
        "kind": _KINDS[device.precision],
        "min_cosine": gate.min_cosine,
        "check_top1": gate.check_top1,
    }
    try:
        with runtime.connect(draft, "htp", soc=device.soc, memory=gate.memory) as dlc_itself:
            return compare.gate(gate.reference, dlc_itself, gate.inputs, locate=False, **settings)
    except ParityError as failed:
        raise _with_place(failed, written, gate, device, settings) from None
    except ConvertError:
        _gate_graph(written, gate, device, settings)  # what is wrong with it says more
        raise
    except MissingToolError as missing:  # a QNN whose C interface is not the one we know
        with runtime.connect(written, "htp", soc=device.soc) as graph_on_htp:
            report = compare.gate(
                gate.reference, graph_on_htp, gate.inputs, reference_onnx=gate.original, **settings
            )
        note = f"The DLC itself was not executed, the same graph was: {missing}"
        return replace(report, notes=(*report.notes, note))


def _gate_graph(written: OnnxFile, gate: Gate, device: Device, settings: dict[str, Any]) -> None:
    """Gate the graph on the HTP, whose compiler names a node and whose tensors can be looked at."""
    few = {**settings, "check_top1": False}  # a flip among so few images says nothing
    with runtime.connect(written, "htp", soc=device.soc) as graph_on_htp:
        compare.gate(
            gate.reference, graph_on_htp, gate.inputs[:8], reference_onnx=gate.original, **few
        )


def _with_place(
    failed: ParityError, written: OnnxFile, gate: Gate, device: Device, settings: dict[str, Any]
) -> ParityError:
    """Return the error with the first tensor that departs, which only the graph can name."""
    if not isinstance(failed.report, compare.GateReport):
        return failed
    try:
        _gate_graph(written, gate, device, settings)
    except ParityError as graph:
        if not isinstance(graph.report, compare.GateReport):
            return failed
        told: dict[str, Any] = {"divergence": graph.report.divergence}
        notes = graph.report.notes
    else:
        told = {}
        notes = ("The same graph passes on 8 images before it is written: look at the DLC itself.",)
    kept = failed.report.notes
    told["notes"] = (*kept, *(note for note in notes if note not in kept))
    report = replace(failed.report, **told)
    return ParityError(str(report), report)


def _claim(target: str, transcript: snpe.Transcript | None, gate: compare.GateReport) -> str:
    version = qnn.require().versions["QNN"]
    if not gate.passed:
        return f"FAILED the parity gate ({'; '.join(gate.reasons)}); kept for inspection only."
    if target == snpe.TARGET:
        how = (
            "Translated by Qualcomm's snpe-onnx-to-dlc (its own DLC, not run here: NAME.snpe.dlc)"
            if transcript and transcript.real
            else "Checked against the documented SNPE 2.7 operator table (a replica of the tool)"
        )
        return f"{how}; written by QNN {version}; not tested on an SNPE 2.7 runtime."
    if target == "qnn":
        return f"Accepted and written by QNN {version}; executed as {gate.candidate}."
    return (
        f"Checked against the documented operator table of {target}; written by QNN {version}; "
        f"not tested on a runtime of {target}."
    )
