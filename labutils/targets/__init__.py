"""Targets: what their tools take, as documented operator tables."""

from .report import CheckReport, NodeVerdict
from .schema import Table
from .table import TARGETS, Target, check, load

__all__ = [
    "TARGETS",
    "CheckReport",
    "NodeVerdict",
    "Table",
    "Target",
    "check",
    "load",
]
