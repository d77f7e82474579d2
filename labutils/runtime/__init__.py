"""Running a model: PyTorch, ONNX Runtime, the HTP simulator, LiteRT, a phone."""

from .litert import LiteRtRunner
from .runner import Runner, TensorRunner
from .runners import (
    HtpRunner,
    Mirrored,
    OrtRunner,
    TorchRunner,
    connect,
    run_all,
    scores_name,
)
from .timing import seconds_in_turns

__all__ = [
    "HtpRunner",
    "LiteRtRunner",
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
