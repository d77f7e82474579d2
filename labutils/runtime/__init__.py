"""Running a model: PyTorch, ONNX Runtime, the HTP simulator, a phone."""

from .runners import (
    HtpRunner,
    Mirrored,
    OrtRunner,
    Runner,
    TensorRunner,
    TorchRunner,
    connect,
    run_all,
    scores_name,
)
from .timing import seconds_in_turns

__all__ = [
    "HtpRunner",
    "Mirrored",
    "OrtRunner",
    "Runner",
    "TensorRunner",
    "TorchRunner",
    "connect",
    "run_all",
    "scores_name",
    "seconds_in_turns",
]
