"""Targets: what their tools take, and the conversions that are verified before they count."""

from .conversion import PRECISIONS, Conversion, convert, refuse_impossible
from .report import CheckReport, NodeVerdict
from .table import TARGETS, Target, check, load

__all__ = [
    "PRECISIONS",
    "TARGETS",
    "CheckReport",
    "Conversion",
    "NodeVerdict",
    "Target",
    "check",
    "convert",
    "load",
    "refuse_impossible",
]
