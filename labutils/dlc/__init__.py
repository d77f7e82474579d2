"""Qualcomm's DLC: written by QNN, read back, executed, and compared before it counts."""

from .conversion import PRECISIONS, Conversion, Device, Gate, Notes, convert, refuse_impossible
from .refusals import refuse_never_written, refused_nodes
from .verification import verify
from .writing import ContextInfo, DlcInfo, context_binary, info, sidecar, to_fp16, write

__all__ = [
    "PRECISIONS",
    "ContextInfo",
    "Conversion",
    "Device",
    "DlcInfo",
    "Gate",
    "Notes",
    "context_binary",
    "convert",
    "info",
    "refuse_impossible",
    "refuse_never_written",
    "refused_nodes",
    "sidecar",
    "to_fp16",
    "verify",
    "write",
]
