"""What benchmarks/quantization.py measures of a file: accuracy, noise, widths, time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from labutils import metrics, runtime
from labutils.measure import complexity
from labutils.onnxfile.edit import producers
from labutils.runtime import timing

TURNS = 100
_MACS = ("Conv", "Gemm", "MatMul")
_WIDE = (TensorProto.UINT16, TensorProto.INT16)


def figures(logits: np.ndarray, exact: np.ndarray, labels: np.ndarray) -> dict[str, object]:
    """Return accuracy, agreement and SQNR of logits (n, classes) against the float ones."""
    return {
        "n": len(logits), "top1": metrics.accuracy(logits, labels),
        "agreement": metrics.agreement(logits, exact),
        "sqnr": metrics.sqnr_db(exact, logits), "right": metrics.correct(logits, labels),
    }  # fmt: skip


def compared(right: np.ndarray, references: list[np.ndarray]) -> dict[str, object]:
    """Return the paired difference to the best of some networks, and its half-width.

    Parameters
    ----------
    right
        (n,) bool: which images a file answers rightly.
    references
        The same of the float networks: the original, and where a row was trained, the original
        that was trained as long. The better one is what points are lost against.
    """
    best = max(references, key=lambda was: int(was.sum()))
    return {
        "difference": metrics.paired_difference(right, best), "half": half_width(right, best),
    }  # fmt: skip


def half_width(one: np.ndarray, other: np.ndarray) -> float:
    """Return 196 sqrt(d / n) points, d the share on which exactly one of the two is right.

    That is half of a 95 % interval of the paired difference of two rates that are about equal.
    """
    return 196 * math.sqrt(float(np.mean(one != other)) / len(one))


@dataclass(frozen=True)
class Widths:
    """What a QDQ file computes at which width.

    Attributes
    ----------
    floats
        Convolutions and matrix products whose weights, or whose input, stay in float.
    wide
        Share of the multiply-accumulates, 0 to 1, with an input of 16 bits.
    """

    floats: int
    wide: float


def widths(file: Path) -> Widths:
    """Return how many products of a QDQ file are left in float, and the share at 16 bits."""
    model = onnx.load(file)
    maker = producers(model.graph.node)
    macs = {row.name: row.macs for row in complexity.count(file).rows}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in _MACS]
    floats = wide = total = 0
    for node in products:
        entry, weight = (maker.get(name) for name in node.input[:2])
        whole = all(x is not None and x.op_type == "DequantizeLinear" for x in (entry, weight))
        floats += not whole
        total += macs.get(node.name, 0)
        if whole and len(entry.input) > 2 and types.get(entry.input[2]) in _WIDE:
            wide += macs.get(node.name, 0)
    return Widths(floats, wide / total if total else 0.0)


def ratio(file: Path, exact: Path, image: np.ndarray) -> float:
    """Return the time of an ONNX file by that of the float one, in turns on one thread each."""
    with (
        runtime.connect(file, "ort", threads=1) as this,
        runtime.connect(exact, "ort", threads=1) as fp32,
    ):
        taken = timing.seconds_in_turns({"this": this, "fp32": fp32}, image, TURNS)
    return taken["this"] / taken["fp32"]
