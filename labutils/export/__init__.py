"""PyTorch to ONNX: the opset asked for is the opset written, and the file was run before it counts.

Two exporters write ONNX, and both stay selectable. The TorchScript exporter traces and writes
opsets 11 to 20; the dynamo exporter goes through `torch.export` and writes 18 and newer (asked for
less, it silently writes 18). ``auto`` takes TorchScript up to opset 17, because nothing else
writes those, and dynamo from 18 on, because it is the one that PyTorch develops.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import metrics, paths, provenance, typesetting
from ..errors import ExportError, ModelFileError, UsageError, counted
from ..images import data
from ..models import modes, zoo
from ..onnxfile import export_cleanup
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import serialized
from ..onnxfile.session import Session
from ..onnxfile.wall import wall
from ..runtime import outputs
from . import exporters
from .exporters import OPSETS

__all__ = ["MAX_RELATIVE_ERROR", "MIN_COSINE", "OPSETS", "ExportReport", "to_onnx", "unchecked"]

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

MIN_COSINE = 0.9999
MAX_RELATIVE_ERROR = 1e-3  # of the largest logit; float32 rounding in another order is ~1e-5

_CHECK_IMAGES = 4


@dataclass(frozen=True, repr=False)
class ExportReport(typesetting.Shown):
    """What was written, read back from the file, and how it compares with PyTorch.

    Attributes
    ----------
    path, opset, exporter
        The file, the opset that it declares, and the exporter that wrote it.
    nodes
        How many nodes of each operator.
    max_error
        Largest absolute difference of a logit, ONNX Runtime against PyTorch.
    cosine
        Smallest cosine similarity of the logits over the inputs compared.
    compared
        What they were compared on.
    onnx
        The file, opened.
    """

    path: Path
    opset: int
    exporter: str
    nodes: Counter[str]
    max_error: float
    cosine: float
    compared: str
    onnx: OnnxFile | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for ``--json``."""
        return {
            "opset": self.opset, "exporter": self.exporter, "nodes": dict(self.nodes),
            "max_error": self.max_error, "cosine": self.cosine, "compared": self.compared,
        }  # fmt: skip

    def __str__(self) -> str:
        ops = ", ".join(f"{op} {n}" for op, n in self.nodes.most_common())
        nodes = counted(self.nodes.total(), "node")
        return (
            f"{self.path.name}: ONNX opset {self.opset} ({self.exporter} exporter), "
            f"{self.path.stat().st_size / 1e6:.2f} MB, {nodes}\n"
            f"  {ops}\n"
            f"  against PyTorch on {self.compared}: cosine {self.cosine:.6f}, "
            f"largest difference {self.max_error:.2g}"
        )


def to_onnx(
    model: nn.Module | zoo.Model,
    path: str | Path,
    *,
    size: data.Size | None = None,
    example: torch.Tensor | None = None,
    opset: int = 17,
    exporter: str = "auto",
    preprocessing: data.Preprocessing | None = None,
    simplify: bool = False,
) -> ExportReport:
    """Write `model` as one ONNX file, check it, and compare it with PyTorch.

    The input is ``input``, the output ``logits`` (of several, their names; see
    `labutils.runtime.outputs.named`), shapes are static; node and weight names carry
    the module path. The file holds no stack traces and no local paths. `model` is left as it was.

    Parameters
    ----------
    model
        A classifier in float32, or a zoo model (whose preprocessing and class names then travel
        in the file's metadata).
    path
        The ``.onnx`` file; it appears only when every check has passed.
    size
        Image side in pixels, or (height, width), for an input (1, 3, height, width); default from
        `preprocessing`, which knows the channels too.
    example
        An input instead, float32, for other shapes.
    opset
        11 to 23; the device's tools decide.
    exporter
        ``torchscript`` (11 to 20), ``dynamo`` (18 to 23), or ``auto`` (see the module's text).
    preprocessing
        Recorded in the file, and used for the images of the comparison.
    simplify
        Also run onnxsim: folds constants, removes no-ops. Beware that it merges scale-and-shift
        pairs into a convolution, and so undoes parts of a replaced activation.

    Raises
    ------
    ExportError
        An operator that cannot be exported, data-dependent control flow, another opset than the
        one asked for, outputs that are not tensors, or results that differ from PyTorch's.

    Examples
    --------
    >>> from labutils import export
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Hardswish(), nn.Flatten())
    >>> report = export.to_onnx(net, "net.onnx", size=32)
    >>> report.opset, dict(report.nodes)
    (17, {'Conv': 1, 'HardSwish': 1, 'Flatten': 1})
    >>> report.cosine > 0.9999  # against PyTorch
    True
    """
    path = Path(path)
    origin = model if isinstance(model, zoo.Model) else None
    module = model.module if isinstance(model, zoo.Model) else model
    if module is None:
        raise UsageError(f"{model.name} is a file already; there is nothing to export.")
    preprocessing = preprocessing or (origin.preprocessing if origin else None)
    exporter = exporters.choose(exporter, opset)  # before anything runs
    example = _example(example, size, preprocessing, origin)
    device = next((p.device for p in module.parameters()), example.device)
    example = example.to(device)
    with modes.evaluating(module), paths.atomic(path) as temporary:
        written = unchecked(module, example, opset, exporter, preprocessing, origin, simplify)
        _check(written, opset, exporter)
        temporary.write_bytes(serialized(written, path.name))
        error, cosine, compared = _compare(module, temporary, example, preprocessing)
    nodes = Counter(node.op_type for node in written.graph.node)
    file = OnnxFile.written(path, written, checked=True)
    return ExportReport(path, opset, exporter, nodes, error, cosine, compared, file)


def unchecked(
    module: nn.Module,
    example: torch.Tensor,
    opset: int = 17,
    exporter: str = "auto",
    preprocessing: data.Preprocessing | None = None,
    origin: zoo.Model | None = None,
    simplify: bool = False,
) -> onnx.ModelProto:
    """Return what the exporter writes, tidied and described, neither checked nor run.

    For a writer that continues with the graph (`quantize.qat.to_qdq`) and checks its own result;
    everyone else wants `to_onnx`.
    """
    exporter = exporters.choose(exporter, opset)
    shapes = {name: values.shape for name, values in _outputs(module, example).items()}
    written = exporters.write(module, example, opset, exporter, list(shapes))
    if simplify:
        written = exporters.simplify(written)
    export_cleanup.clean_up_(written, {name for name, _ in module.named_modules()})
    _describe(written, preprocessing, origin)
    _set_output_shapes(written, shapes)
    return written


def _example(
    example: torch.Tensor | None,
    size: data.Size | None,
    preprocessing: data.Preprocessing | None,
    origin: zoo.Model | None,
) -> torch.Tensor:
    import torch

    if example is not None:
        if size is not None or example.dtype != torch.float32:
            raise UsageError("Give either size=... or example=..., and the example in float32.")
        return example
    if size is None and preprocessing is not None:
        size = preprocessing.size
    elif preprocessing is not None and preprocessing.size != size:
        raise UsageError(f"size={size}, but the preprocessing makes {preprocessing.size} px.")
    if size is not None:
        batch = origin.input_shape[0] if origin is not None and origin.input_shape else 1
        channels = preprocessing.channels if preprocessing is not None else 3
        shape: tuple[int, ...] = (batch, channels, *data.sides(size))  # its own batch, if exported
    elif origin is not None and origin.input_shape:
        shape = origin.input_shape
    else:
        raise UsageError("The input's shape is needed: give size=..., example=... or a zoo model.")
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _outputs(module: nn.Module, inputs: torch.Tensor) -> dict[str, np.ndarray]:
    """Run `module` and return its outputs by name; what is not a tensor cannot be compared."""
    import torch

    try:
        with torch.no_grad():
            out = module(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ExportError(
            f"{type(module).__name__} does not run on a float32 input of shape "
            f"{tuple(inputs.shape)}: {exporters.first_line(error)}"
        ) from None
    try:
        named = outputs.named(out)
    except TypeError as error:
        raise ExportError(
            f"{type(module).__name__} returns {error}, and tensors are needed. Wrap it in a module "
            "whose forward returns a tensor, or a tuple, list or dict of tensors."
        ) from None
    if not named:
        raise ExportError(f"{type(module).__name__} returns nothing.")
    return {n: (t.float() if t.is_floating_point() else t).cpu().numpy() for n, t in named.items()}


def _describe(
    model: onnx.ModelProto, preprocessing: data.Preprocessing | None, origin: zoo.Model | None
) -> None:
    """Write into the file what `zoo.load` needs to use it."""
    if preprocessing is not None:
        facts = asdict(preprocessing)
        if preprocessing.resampling == "bilinear":
            del facts["resampling"]  # what a reader assumes, and what files always were
        text = json.dumps(facts)
        model.metadata_props.add(key=provenance.PREPROCESSING_KEY, value=text)
    if origin is not None:
        facts = {
            "name": origin.name,
            "note": origin.note,
            "trained": origin.trained,
            "classes": origin.classes,
        }
        model.metadata_props.add(key=provenance.MODEL_KEY, value=json.dumps(facts))


def _set_output_shapes(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Declare the outputs as PyTorch makes them; shape arithmetic in the graph may hide it."""
    for value in model.graph.output:
        dims = value.type.tensor_type.shape
        del dims.dim[:]
        for n in shapes[value.name]:
            dims.dim.add(dim_value=n)


def _check(model: onnx.ModelProto, opset: int, exporter: str) -> None:
    import onnx

    found = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if found != opset:
        raise ExportError(
            f"Asked for opset {opset}, and the {exporter} exporter wrote {found}. "
            "Choose the other exporter, or that opset."
        )
    what = f"what the {exporter} exporter wrote"
    advice = "Try the other exporter, or another opset."
    with wall("ONNX's checker refuses", what, error=ExportError, model=model, advice=advice):
        onnx.checker.check_model(model, full_check=True)


def _compare(
    module: nn.Module,
    path: Path,
    example: torch.Tensor,
    preprocessing: data.Preprocessing | None,
) -> tuple[float, float, str]:
    """Return (largest absolute difference, smallest cosine, inputs) of the file and `module`."""
    import torch

    try:  # the file as it is written: optimizations are the runtime's business
        session = Session(path, optimize="none", name="the export")
    except ModelFileError as error:
        raise ExportError(str(error)) from None
    inputs, words = _inputs(example, preprocessing)
    cosines, largest, peak, worst = [], 0.0, 0.0, 0.0
    for batch in inputs:
        expected = _outputs(module, torch.from_numpy(batch).to(example.device))
        found = session.run({"input": batch}, list(expected))
        for got, declared, (name, values) in zip(
            found, session.outputs, expected.items(), strict=True
        ):
            if not got.shape == values.shape == tuple(declared[1]):
                raise ExportError(
                    f"The shape of output {name!r} depends on the input's values ({values.shape} "
                    f"on one of {words}); devices need static shapes. {exporters.TRACING_CURE}"
                )
            cosines.append(metrics.cosine(values, got))
            difference = np.abs(values.astype(np.float64) - got).max()
            scale = float(np.abs(values).max())
            worst = max(worst, float(difference) / (scale or 1.0))
            largest, peak = max(largest, float(difference)), max(peak, scale)
    if not (min(cosines) >= MIN_COSINE and worst <= MAX_RELATIVE_ERROR):
        raise ExportError(
            f"The export does not compute what PyTorch computes: on {words}, cosine "
            f"{min(cosines):.6f} (at least {MIN_COSINE}), largest difference {largest:.3g} among "
            f"logits up to {peak:.3g}. A value computed from the input may have been frozen by "
            "the tracer: try exporter='dynamo' with opset 18 or later."
        )
    return largest, min(cosines), words


def _inputs(
    example: torch.Tensor, preprocessing: data.Preprocessing | None
) -> tuple[list[np.ndarray], str]:
    """Return arrays of the example's shape: drawn images where they fit, else noise."""
    shape = tuple(example.shape)
    if len(shape) != 4 or shape[1] not in (1, 3) or min(shape[2:]) < 16:
        noise = np.random.default_rng(0).standard_normal((_CHECK_IMAGES, *shape), np.float32)
        return list(noise), f"{_CHECK_IMAGES} random inputs {shape}"
    n, size = _CHECK_IMAGES * shape[0], data.square(shape[2:])
    usual = data.Preprocessing(size) if shape[1] == 3 else data.Preprocessing(size, (0.5,), (0.5,))
    preprocessing = preprocessing or usual
    images = data.calibration(n, size)
    batches = [inputs for inputs, _ in images.batches(shape[0], preprocessing)]
    return batches, f"{n} drawn images (Things-16) at {data.shown(size)}"
