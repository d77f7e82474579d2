"""PyTorch to ONNX: the opset asked for is the opset written, and the file was run before it counts.

Two exporters write ONNX, and both stay selectable. The TorchScript exporter traces and writes
opsets 11 to 20; the dynamo exporter goes through `torch.export` and writes 18 and newer (asked for
less, it silently writes 18). ``auto`` takes TorchScript up to opset 17, because nothing else
writes those, and dynamo from 18 on, because it is the one that PyTorch develops.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import metrics, paths, provenance, typesetting
from .errors import ExportError, UnknownNameError, UsageError, counted
from .images import data
from .models import modes, zoo
from .onnxfile import tidy

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

OPSETS = {"torchscript": range(11, 21), "dynamo": range(18, 24)}
MIN_COSINE = 0.9999
MAX_RELATIVE_ERROR = 1e-3  # of the largest logit; float32 rounding in another order is ~1e-5

_CHECK_IMAGES = 4
_TRACING_CURE = (
    "An ONNX graph has no Python control flow: express the choice with torch.where, or export "
    "the branch that the device needs."
)


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
    """

    path: Path
    opset: int
    exporter: str
    nodes: Counter[str]
    max_error: float
    cosine: float
    compared: str

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
    size: int | None = None,
    example: torch.Tensor | None = None,
    opset: int = 17,
    exporter: str = "auto",
    preprocessing: data.Preprocessing | None = None,
    simplify: bool = False,
) -> ExportReport:
    """Write `model` as one ONNX file, check it, and compare it with PyTorch.

    The input is ``input``, the output ``logits``, shapes are static; node and weight names carry
    the module path. The file holds no stack traces and no local paths. `model` is left as it was.

    Parameters
    ----------
    model
        A classifier in float32, or a zoo model (whose preprocessing and class names then travel
        in the file's metadata).
    path
        The ``.onnx`` file; it appears only when every check has passed.
    size
        Image side in pixels, for an input (1, 3, size, size); default from `preprocessing`.
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
        one asked for, more than one output, or results that differ from PyTorch's.

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
    exporter = _exporter(exporter, opset)  # before anything runs
    example = _example(example, size, preprocessing, origin)
    device = next((p.device for p in module.parameters()), example.device)
    example = example.to(device)
    with modes.evaluating(module), paths.atomic(path) as temporary:
        written = unchecked(module, example, opset, exporter, preprocessing, origin, simplify)
        _check(written, opset, exporter)
        temporary.write_bytes(written.SerializeToString(deterministic=True))
        error, cosine, compared = _compare(module, temporary, example, preprocessing)
    nodes = Counter(node.op_type for node in written.graph.node)
    return ExportReport(path, opset, exporter, nodes, error, cosine, compared)


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

    For a writer that goes on with the graph (`quantize.qat.to_qdq`) and checks its own result;
    everyone else wants `to_onnx`.
    """
    exporter = _exporter(exporter, opset)
    shape = _outputs(module, example).shape
    written = _written(module, example, opset, exporter)
    if simplify:
        written = _simplified(written)
    tidy.tidy_(written, {name for name, _ in module.named_modules()})
    _describe(written, preprocessing, origin)
    _set_output_shape(written, shape)
    return written


def _exporter(exporter: str, opset: int) -> str:
    """Return the exporter that writes `opset`, refusing what it would silently not write."""
    if exporter == "auto":
        exporter = "torchscript" if opset < OPSETS["dynamo"].start else "dynamo"
    elif exporter not in OPSETS:
        raise UnknownNameError("exporter", exporter, [*OPSETS, "auto"])
    if opset not in OPSETS[exporter]:
        other = [name for name, opsets in OPSETS.items() if opset in opsets]
        cure = f"use exporter={other[0]!r}" if other else "ask for opset 11 to 23"
        raise ExportError(
            f"The {exporter} exporter writes opset {OPSETS[exporter].start} to "
            f"{OPSETS[exporter].stop - 1}, not {opset}: {cure}."
        )
    return exporter


def _example(
    example: torch.Tensor | None,
    size: int | None,
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
        shape: tuple[int, ...] = (1, 3, size, size)
    elif origin is not None and origin.input_shape:
        shape = origin.input_shape
    else:
        raise UsageError("The input's shape is needed: give size=..., example=... or a zoo model.")
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _outputs(module: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    """Run `module` and return its logits; anything but one tensor cannot be compared."""
    import torch

    try:
        with torch.no_grad():
            out = module(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ExportError(
            f"{type(module).__name__} does not run on a float32 input of shape "
            f"{tuple(inputs.shape)}: {_first_line(error)}"
        ) from None
    if not isinstance(out, torch.Tensor):
        raise ExportError(
            f"{type(module).__name__} returns {_kind(out)}, and one output tensor is needed. "
            "Wrap it in a module whose forward returns the logits only."
        )
    return out.float().cpu().numpy()


def _kind(out: object) -> str:
    if isinstance(out, dict):
        return f"a dict with {', '.join(map(str, out))}"
    if isinstance(out, list | tuple):
        return f"a {type(out).__name__} of {len(out)}"
    return f"a {type(out).__name__}"


def _written(
    module: nn.Module, example: torch.Tensor, opset: int, exporter: str
) -> onnx.ModelProto:
    import onnx
    import torch

    options: dict[str, Any] = {
        "opset_version": opset,
        "input_names": ["input"],
        "output_names": ["logits"],
        "verbose": False,
    }
    try:
        with _quiet() as warned, _plain_attention():
            if exporter == "dynamo":
                program: Any = torch.onnx.export(
                    module, (example,), dynamo=True, external_data=False, **options
                )
                return program.model_proto
            buffer: Any = io.BytesIO()  # which the older exporter takes, whatever its type says
            torch.onnx.export(module, (example,), buffer, dynamo=False, **options)
            if any("to a Python boolean" in str(warning.message) for warning in warned):
                # Tracing wrote one branch of an `if`. Where it hangs on shapes that is right;
                # torch.export fails where it hangs on the values.
                torch.export.export(module, (example,), strict=False)
    except Exception as error:  # exporters raise a dozen kinds
        raise _explained(error, module, opset, exporter) from None
    return onnx.load_from_string(buffer.getvalue())


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Switch off the fused attention of inference: it is one operator, and ONNX has no such."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Keep the exporters' prints, log lines and warnings off the screen; yield the warnings."""
    before = logging.root.manager.disable
    with (
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        _silent_descriptors(),
    ):
        warnings.simplefilter("always")
        logging.disable(logging.CRITICAL)
        try:
            yield caught
        finally:
            logging.disable(before)


@contextlib.contextmanager
def _silent_descriptors() -> Iterator[None]:
    """Send file descriptors 1 and 2 nowhere: TorchScript's C++ prints the graph when it fails."""
    # What C still holds back belongs to before; later it would come out afterwards.
    flush = (lambda: ctypes.CDLL(None).fflush(None)) if os.name == "posix" else (lambda: None)
    flush()
    saved = [os.dup(1), os.dup(2)]
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        flush()
        for descriptor, copy in enumerate(saved, start=1):
            os.dup2(copy, descriptor)
            os.close(copy)


def _explained(error: Exception, module: nn.Module, opset: int, exporter: str) -> ExportError:
    """Return one error that names the operator and a cure, out of a chain of exporters' errors."""
    what = f"{type(module).__name__} cannot be exported to opset {opset} ({exporter})"
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    texts = "\n".join(str(link) for link in chain)
    if re.search(r"data-dependent|control flow", texts, re.IGNORECASE):
        return ExportError(
            f"{what}: an `if` or loop depends on the input's values. {_TRACING_CURE}"
        )
    old = re.search(r"operator '([\w:]+)' to ONNX opset version", texts)
    new = re.search(r"OpOverload\(op='([\w.]+)'", texts)
    named = old or new
    if not named:
        return ExportError(f"{what}: {_first_line(chain[-1])}")
    added = re.search(r"was added in version (\d+)", texts)
    cure = f"ask for opset {added[1]} or later" if added else "replace it by ONNX's own operators"
    if old and not added:
        cure = f"try exporter='dynamo' (opset 18 or later), or {cure}"
    return ExportError(f"{what}: the operator {named[1]} has no ONNX form there; {cure}.")


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    with _quiet():
        simplified, same = onnxsim.simplify(model)
    if not same:
        raise ExportError("onnxsim changed what the model computes; export with simplify=False.")
    return simplified


def _describe(
    model: onnx.ModelProto, preprocessing: data.Preprocessing | None, origin: zoo.Model | None
) -> None:
    """Write into the file what `zoo.load` needs to use it."""
    if preprocessing is not None:
        text = json.dumps(asdict(preprocessing))
        model.metadata_props.add(key=provenance.PREPROCESSING_KEY, value=text)
    if origin is not None:
        facts = {
            "name": origin.name,
            "note": origin.note,
            "trained": origin.trained,
            "classes": origin.classes,
        }
        model.metadata_props.add(key=provenance.MODEL_KEY, value=json.dumps(facts))


def _set_output_shape(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """Declare the output as PyTorch makes it; shape arithmetic in the graph may hide it."""
    dims = model.graph.output[0].type.tensor_type.shape
    del dims.dim[:]
    for n in shape:
        dims.dim.add(dim_value=n)


def _check(model: onnx.ModelProto, opset: int, exporter: str) -> None:
    import onnx

    found = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if found != opset:
        raise ExportError(
            f"Asked for opset {opset}, and the {exporter} exporter wrote {found}. "
            "Choose the other exporter, or that opset."
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"The {exporter} exporter wrote an invalid opset {opset} graph: {_first_line(error)}. "
            "Try the other exporter, or another opset."
        ) from None


def _compare(
    module: nn.Module,
    path: Path,
    example: torch.Tensor,
    preprocessing: data.Preprocessing | None,
) -> tuple[float, float, str]:
    """Return (largest absolute difference, smallest cosine, inputs) of the file and `module`."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The file as it is written: optimizations are the runtime's business.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own kinds
        raise ExportError(f"ONNX Runtime cannot load the export: {_first_line(error)}.") from None
    inputs, words = _inputs(example, preprocessing)
    cosines, largest, peak = [], 0.0, 0.0
    for batch in inputs:
        expected = _outputs(module, torch.from_numpy(batch).to(example.device))
        (got,) = session.run(["logits"], {"input": batch})
        if not got.shape == expected.shape == tuple(session.get_outputs()[0].shape):
            raise ExportError(
                f"The output's shape depends on the input's values ({expected.shape} on one of "
                f"{words}); devices need static shapes. {_TRACING_CURE}"
            )
        cosines.append(metrics.cosine(expected, got))
        largest = max(largest, float(np.abs(expected - got).max()))
        peak = max(peak, float(np.abs(expected).max()))
    if not (min(cosines) >= MIN_COSINE and largest <= MAX_RELATIVE_ERROR * peak):
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
    """Return arrays of the example's shape: Things-16 images where they fit, else noise."""
    shape = tuple(example.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[2] < 16:
        noise = np.random.default_rng(0).standard_normal((_CHECK_IMAGES, *shape), np.float32)
        return list(noise), f"{_CHECK_IMAGES} random inputs {shape}"
    n, size = _CHECK_IMAGES * shape[0], shape[2]
    preprocessing = preprocessing or data.Preprocessing(size)
    images = data.calibration(n, size)
    batches = [inputs for inputs, _ in images.batches(shape[0], preprocessing)]
    return batches, f"{n} Things-16 images at {size} px"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
