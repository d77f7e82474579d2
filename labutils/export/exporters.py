"""torch's two exporters of ONNX: called in silence, and their errors as one sentence."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ExportError, UnknownNameError
from ..onnxfile.wall import reason_of, wall

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

OPSETS = {"torchscript": range(11, 21), "dynamo": range(18, 24)}

TRACING_CURE = (
    "An ONNX graph has no Python control flow: express the choice with torch.where, or export "
    "the branch that the device needs."
)


def choose(exporter: str, opset: int) -> str:
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


def write(
    module: nn.Module,
    example: torch.Tensor,
    opset: int,
    exporter: str,
    outputs: Sequence[str] = ("logits",),
) -> onnx.ModelProto:
    """Return what an exporter writes of a module; its errors become one sentence.

    Raises
    ------
    ExportError
        An operator without an ONNX form, or control flow that depends on values.
    """
    import onnx
    import torch

    options: dict[str, Any] = {
        "opset_version": opset,
        "input_names": ["input"],
        "output_names": list(outputs),
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
                # Tracing wrote one branch of an `if`. Where it depends on shapes that is right;
                # torch.export fails where it depends on the values.
                torch.export.export(module, (example,), strict=False)
    except Exception as error:  # exporters raise a dozen kinds
        raise _explained(error, module, opset, exporter) from error
    with wall("onnx does not read", "what the exporter wrote", error=ExportError):
        return onnx.load_from_string(buffer.getvalue())


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Switch off the fused attention of inference: it is one operator that ONNX does not have."""
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
    # C's buffered output is from before this block: flush it now, or it appears out of order.
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
        return ExportError(f"{what}: an `if` or loop depends on the input's values. {TRACING_CURE}")
    old = re.search(r"operator '([\w:]+)' to ONNX opset version", texts)
    new = re.search(r"OpOverload\(op='([\w.]+)'", texts)
    named = old or new
    if not named:
        return ExportError(f"{what}: {first_line(chain[-1])}")
    added = re.search(r"was added in version (\d+)", texts)
    cure = f"ask for opset {added[1]} or later" if added else "replace it by ONNX's own operators"
    if old and not added:
        cure = f"try exporter='dynamo' (opset 18 or later), or {cure}"
    return ExportError(f"{what}: the operator {named[1]} has no ONNX form there; {cure}.")


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model as onnxsim simplifies it.

    Raises
    ------
    ExportError
        onnxsim says that it computes something else now.
    """
    import onnxsim

    advice = "Export with simplify=False."
    with (
        wall(
            "onnxsim cannot simplify", "the export", error=ExportError, model=model, advice=advice
        ),
        _quiet(),
    ):
        simplified, same = onnxsim.simplify(model)
    if not same:
        raise ExportError("onnxsim changed what the model computes; export with simplify=False.")
    return simplified


def first_line(error: BaseException) -> str:
    """Return what an error says, as much as fits a line; its kind where it says nothing."""
    return reason_of(error, lines=1)
