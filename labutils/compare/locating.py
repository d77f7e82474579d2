"""Where an artifact departs: the first tensor of its file that is not the original's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import LabError
from ..onnxfile.file import OnnxFile
from ..runtime import HtpRunner, LiteRtRunner, Runner
from . import tflite_divergence
from .divergence import Divergence, first_divergence

_IMAGES_FOR_SEARCH = 2

_NO_TENSORS = (
    "No tensor is named: the reference is not an ONNX file whose tensors could be compared "
    "(from Python, pass its export as reference_onnx=)."
)


def locate(
    reference: Runner,
    candidate: Runner,
    inputs: np.ndarray,
    cosine: float,
    reference_onnx: OnnxFile | str | Path | None = None,
) -> tuple[Divergence | None, str]:
    """Return the first tensor that departs; where none is found, a sentence that says why.

    Parameters
    ----------
    reference, candidate, inputs, reference_onnx
        As for `gate`.
    cosine
        Below it a tensor departs.
    """
    file = reference_onnx or _onnx(reference)
    if isinstance(candidate, LiteRtRunner):
        return _locate_in_tflite(file, candidate, inputs, cosine)
    if not _onnx(candidate):
        return None, "No tensor is named: the candidate has no ONNX file to inspect."
    own = file is None and isinstance(candidate, HtpRunner)
    if own:
        file = _onnx(candidate)
    if file is None:
        return None, _NO_TENSORS
    try:
        found = first_divergence(file, candidate, inputs[:_IMAGES_FOR_SEARCH], cosine)
    except LabError as error:
        return None, f"The search for the first tensor that departs stopped: {error}"
    if found:
        return found, ""
    if own:
        return None, (
            "The file computes on ONNX Runtime what it computes on the simulator: the fault is in "
            "the file, not in the runtime."
        )
    return None, "No tensor that the two graphs share falls below the cosine threshold."


def _locate_in_tflite(
    file: OnnxFile | str | Path | None, candidate: LiteRtRunner, inputs: np.ndarray, limit: float
) -> tuple[Divergence | None, str]:
    if file is None:
        return None, _NO_TENSORS
    few = inputs[: max(_IMAGES_FOR_SEARCH, candidate.shape[0] or 1)]
    try:
        found = tflite_divergence.first_divergence(file, candidate, few, limit)
    except LabError as error:
        return None, f"The search for the first tensor that departs stopped: {error}"
    if found:
        return found, ""
    return None, (
        "Without XNNPACK, which shows no tensors inside, the last tensor agrees: the fault is "
        "in what XNNPACK makes of the file, or shows on other images."
    )


def _onnx(runner: Runner) -> OnnxFile | Path | None:
    file = getattr(runner, "onnx", None) or runner.file  # runners of a learner's own have a path
    return file if file is not None and Path(file).suffix == ".onnx" else None
