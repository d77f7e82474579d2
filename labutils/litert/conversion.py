"""A network to a ``.tflite`` that was run and compared: `convert` returns nothing else.

The file is written beside its destination under a temporary name, run on LiteRT, and compared with
the model that the user brought. An integer file is made from a float one that has passed, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import compare, manifests, paths, runtime, typesetting
from ..errors import ParityError, UsageError, counted
from ..onnxfile.file import OnnxFile
from ..runtime import litert
from ..tools import environment
from ..tools.calling import Tool
from . import converter, quantization
from .layout import Layout
from .quantization import Quantization

if TYPE_CHECKING:
    from torch import nn

ENDING = ".tflite"
PRECISIONS = ("fp32", "fp16")
"""Of a float file; in fp16 the weights are stored so, and computed with in float32."""


@dataclass(frozen=True)
class Gate:
    """What a ``.tflite`` is compared with before it counts, and how strictly.

    Attributes
    ----------
    reference
        The model that the user brought, on its runner.
    inputs
        (n, channels, height, width) float32, normalized; 32 images are usual.
    original
        Returns an ONNX file of `reference`, to name the first tensor that departs; it is called
        only when the gate fails. None names no tensor.
    min_cosine
        Another threshold; it is printed and kept in the manifest.
    check_top1
        False for untrained weights.
    rounded
        Whether the reference rounds itself: the float file is then as far from it as an int8 one.
    """

    reference: runtime.Runner
    inputs: np.ndarray
    original: Callable[[], OnnxFile] | None = None
    min_cosine: float | None = None
    check_top1: bool = True
    rounded: bool = False


@dataclass(frozen=True)
class Form:
    """What the file is to be.

    Attributes
    ----------
    layout
        Of the image that it takes: ``nhwc``, as usual for LiteRT, or ``nchw``.
    batch
        How many images it takes at once.
    precision
        One of `PRECISIONS`, where nothing is quantized.
    quantization
        How it is quantized; None keeps floats.
    """

    layout: Layout = "nhwc"
    batch: int = 1
    precision: str = "fp32"
    quantization: Quantization | None = None


@dataclass(frozen=True, repr=False)
class Conversion(typesetting.Shown):
    """A ``.tflite`` that was run and compared, and the evidence.

    Attributes
    ----------
    file
        The ``.tflite``.
    precision
        What is in it: ``fp32``, ``fp16``, ``int8``, ``int16x8``, ``mixed`` or ``w8``.
    layout
        Of the image that it takes.
    contents
        Its operators and tensors.
    gate
        The comparison with the model that the user brought.
    float_gate
        Of an integer file: the same for the float file that it was made from.
    claim
        One sentence: what was and what was not tested.
    not_carried
        What of a recipe the format does not take.
    manifest
        The file beside it that records all of this.
    """

    file: Path
    precision: str
    layout: str
    contents: litert.Contents
    gate: compare.GateReport
    float_gate: compare.GateReport | None
    claim: str
    not_carried: tuple[str, ...]
    manifest: Path

    def to_dict(self) -> dict[str, Any]:
        """Return the conversion as plain values, for ``--json``."""
        return {
            "file": str(self.file), "bytes": self.file.stat().st_size, "target": "litert",
            "precision": self.precision, "layout": self.layout,
            "operators": dict(self.contents.counts), "in_float": dict(self.contents.in_float),
            "not_carried": list(self.not_carried), "gate": self.gate.to_dict(),
            "claim": self.claim, "manifest": str(self.manifest),
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [str(self.contents), f"  {self.claim}"]
        lines += [f"  not carried: {note}" for note in self.not_carried]
        return "\n".join([*lines, str(self.gate)])


def convert(
    network: nn.Module,
    destination: str | Path,
    gate: Gate,
    form: Form | None = None,
    *,
    name: str = "",
    facts: dict[str, Any] | None = None,
    echo: Callable[[str], object] = lambda line: None,
) -> Conversion:
    """Write a ``.tflite``, run it, compare it with the original, and only then keep it.

    Parameters
    ----------
    network
        It takes one image (1, channels, height, width).
    destination
        The ``.tflite`` to write.
    gate
        The model that the user brought, and the images that both are compared on.
    form
        Layout and precision; channels last and fp32 by default.
    name
        What messages call the network.
    facts
        More for the manifest.
    echo
        Called with a line before each step that takes time.

    Raises
    ------
    UsageError
        The destination is not a ``.tflite``.
    MissingToolError
        The runtime or the converter is not here; the message says how to get it.
    ExportError, TranslationError, ConvertError
        torch.export, litert-torch or ai-edge-quantizer does not take the network.
    ParityError
        The file runs and computes something else.
    """
    destination, form = Path(destination), form or Form()
    refuse_impossible(destination)
    require_tools()
    with paths.scratch(destination.parent) as folder, converter.opened() as tool:
        draft = folder.absolute() / destination.name  # the tool works in another folder
        shape = (form.batch, *gate.inputs.shape[1:])
        echo("converting with litert-torch ...")
        converter.convert(tool, network, shape, draft, form.layout, name)
        earlier, left = None, tuple[str, ...]()
        if form.quantization or form.precision != "fp32":
            earlier = _judge(draft, gate, form, "int8" if gate.rounded else "fp32")
            echo(f"the float file passed (cosine {_least(earlier)}); changing its numbers ...")
            left = _change_numbers(tool, draft, form)
        found = litert.contents(draft)
        images = counted(len(gate.inputs), "image")
        echo(f"comparing {images} with the original on LiteRT ...")
        report = _judge(draft, gate, form, found.precision)
        claim = _claim(tool, report, form)
        noted = (form.quantization.facts if form.quantization else {}) | (facts or {})
        noted["not_carried"] = [*noted.get("not_carried", ()), *left]
        story = {
            "target": "litert", "precision": found.precision, "layout": form.layout,
            "claim": claim, "operators": dict(found.counts), "gate": report.to_dict(),
            "float_gate": earlier and earlier.to_dict(),
        }  # fmt: skip
        manifests.write(draft, story | noted)
        _publish(folder, draft, destination)
    return Conversion(
        destination, found.precision, form.layout,
        replace(found, file=destination, layout=form.layout), report,
        earlier, claim, tuple(noted["not_carried"]), paths.manifest(destination),
    )  # fmt: skip


def require_tools() -> None:
    """Refuse to begin where the runtime or the converter is not here.

    Raises
    ------
    MissingToolError
        The message says how to get it.
    """
    litert.require()
    _ = environment.survey(converter.TOOL).python


def refuse_impossible(destination: Path) -> None:
    """Raise UsageError for a file that is not a ``.tflite`` or cannot be written: before any work.

    Raises
    ------
    UsageError
        Another ending, or a folder that takes no files.
    """
    if destination.suffix.lower() != ENDING:
        raise UsageError(f"{destination}: for litert the output is a .tflite file.")
    paths.refuse_unwritable(destination)


def _least(report: compare.GateReport) -> str:
    return f"{report.parity.cosine_min:.6f}" if report.parity else "not known"


def _change_numbers(tool: Tool, draft: Path, form: Form) -> tuple[str, ...]:
    """Put a quantized or halved file in the place of a float one; return what is not carried."""
    made = draft.with_name(f"changed{ENDING}")
    if form.quantization:
        left = quantization.quantize(tool, draft, made, form.quantization, form.layout)
    else:
        left = ()
        quantization.halve(tool, draft, made)
    made.replace(draft)
    return left


def _judge(draft: Path, gate: Gate, form: Form, precision: str) -> compare.GateReport:
    """Run a file and gate it; where it fails, name the first tensor that departs."""
    settings: dict[str, Any] = {
        "kind": f"litert_{precision}",
        "min_cosine": gate.min_cosine,
        "check_top1": gate.check_top1,
    }
    with runtime.connect(draft, "litert", layout=form.layout) as candidate:
        try:
            return compare.gate(gate.reference, candidate, gate.inputs, locate=False, **settings)
        except ParityError:
            if gate.original is None:
                raise
        return compare.gate(
            gate.reference, candidate, gate.inputs, reference_onnx=gate.original(), **settings
        )


def _claim(tool: Tool, gate: compare.GateReport, form: Form) -> str:
    versions = tool.lock.versions
    by = f"litert-torch {versions['litert-torch']}"
    if form.quantization or form.precision != "fp32":
        by += f" and ai-edge-quantizer {versions['ai-edge-quantizer']}"
    return f"Written by {by}; run as {gate.candidate}; not run on a phone."


def _publish(folder: Path, draft: Path, destination: Path) -> None:
    """Give the file and its manifest their names; a kill leaves no manifest of another file."""
    with paths.locked(destination):
        paths.manifest(destination).unlink(missing_ok=True)
        draft.replace(destination)
        paths.manifest(draft).replace(paths.manifest(destination))
