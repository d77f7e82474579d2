"""The first tensor at which a candidate leaves its reference.

Making all inner tensors visible changes what Qualcomm's compiler may fuse, and can make a fault
vanish: ``x * HardSigmoid(x)`` of opset 13 is computed wrongly by the HTP only as long as nobody
looks at the HardSigmoid. So on the HTP the graph is cut off after one tensor at a time, which
leaves the nodes before it as they were.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import LabError, UsageError
from ..onnxfile.file import OnnxFile
from ..runtime import HtpRunner, Runner, TensorRunner
from .layerwise import Layer, Names, Twins, measure, opened, twins

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Divergence:
    """The first tensor at which a candidate leaves its reference.

    Attributes
    ----------
    tensor, op, candidate_op, module
        The tensor's name, the operators that make it on either side, and the module.
    cosine, sqnr_db, limit
        Its figures, and the cosine below which it counts as departed.
    against
        What it was compared with.
    vanishes
        True when it computes correctly as soon as its inputs are made visible: then the compiler
        fuses the nodes, wrongly. None when that was not tried.
    """

    tensor: str
    op: str
    candidate_op: str
    module: str
    cosine: float
    sqnr_db: float
    limit: float
    against: str
    vanishes: bool | None = None

    def __str__(self) -> str:
        operators = self.op if self.op == self.candidate_op else f"{self.op} -> {self.candidate_op}"
        place = f", module {self.module}" if self.module else ""
        text = (
            f"First tensor that departs: {self.tensor} ({operators}{place}), "
            f"cosine {self.cosine:.4f}, below {self.limit:g}, SQNR {self.sqnr_db:.1f} dB, "
            f"against {self.against}."
        )
        if self.vanishes:
            text += (
                " The fault vanishes when the inputs of this node are made visible: the compiler "
                "fuses the nodes, and does it wrongly."
            )
        return text

    def __repr__(self) -> str:
        return str(self)


def first_divergence(
    reference_onnx: OnnxFile | str | Path, candidate: Runner, inputs: np.ndarray, limit: float
) -> Divergence | None:
    """Find the first tensor, in topological order, whose cosine falls below `limit`.

    On ONNX Runtime all tensors are looked at in one run. On the HTP the graph is cut off behind a
    tensor, compiled and run, because showing all tensors at once can hide the fault. The place is
    found in growing strides from the front, then by bisection of the last stride.

    Parameters
    ----------
    reference_onnx
        Run by ONNX Runtime. May be the candidate's own file: then it is the runtime that departs.
    candidate
        A runner with an ONNX file.
    inputs
        (n, 3, size, size) float32; a few images are enough.
    limit
        Cosine over all images.

    Returns
    -------
    Divergence or None
        None when every shared tensor agrees, up to and including the last.
    """
    reference_onnx = OnnxFile.of(reference_onnx)
    file = getattr(candidate, "onnx", None) or candidate.file
    if file is None:
        raise UsageError(f"{candidate.name} has no ONNX file whose tensors could be compared.")
    theirs = OnnxFile.of(file)
    reference, other = reference_onnx.whole, theirs.whole
    pairs = twins(reference, other)
    if not pairs:
        return None
    with opened(reference, (p.reference for p in pairs)) as ours:
        if isinstance(candidate, HtpRunner):
            open_ = functools.partial(HtpRunner, soc=candidate.soc, pool=candidate.pool)
            found = _bisect(ours, other, open_, pairs, inputs, limit)
        else:
            found = _scan(ours, other, pairs, inputs, limit)
    if found is None:
        return None
    pair, layer, vanishes = found
    same = theirs.path.resolve() == reference_onnx.path.resolve()
    against = ("its own file" if same else reference_onnx.name) + " on ONNX Runtime"
    return Divergence(
        layer.tensor, layer.op, pair.candidate_op, layer.module,
        layer.cosine, layer.sqnr_db, limit, against, vanishes,
    )  # fmt: skip


def _departs(layer: Layer, limit: float) -> bool:
    return not layer.cosine >= limit  # NaN departs


Found = tuple[Twins, Layer, bool | None] | None


def _scan(
    ours: TensorRunner,
    model: onnx.ModelProto,
    pairs: list[Twins],
    inputs: np.ndarray,
    limit: float,
) -> Found:
    by_name = {pair.reference: pair for pair in pairs}
    with opened(model, (p.candidate for p in pairs)) as theirs:
        for layer in measure(ours, theirs, pairs, inputs):
            if _departs(layer, limit):
                return by_name[layer.tensor], layer, None
    return None


def _bisect(
    ours: TensorRunner,
    model: onnx.ModelProto,
    open_: Callable[[OnnxFile], TensorRunner],
    pairs: list[Twins],
    inputs: np.ndarray,
    limit: float,
) -> Found:
    def probe(pair: Twins, also: tuple[str, ...] = ()) -> Layer | None:
        names = [pair.candidate, *also]
        with opened(model, names, open_) as theirs:
            return next(iter(measure(ours, theirs, [pair], inputs)), None)

    low, high = 0, len(pairs) - 1
    departed = probe(pairs[high])
    if departed is None or not _departs(departed, limit):
        return None
    reach = 0  # short graphs compile fast, and many faults begin early: 1, 2, 4, 8 ... tensors
    while reach < high:
        layer = probe(pairs[reach])
        if layer is not None and _departs(layer, limit):
            high, departed = reach, layer
        else:
            low, reach = reach + 1, 2 * reach + 1
    while low < high:
        middle = (low + high) // 2
        layer = probe(pairs[middle])
        if layer is not None and _departs(layer, limit):
            high, departed = middle, layer
        else:
            low = middle + 1
    pair = pairs[high]
    shown = {p.candidate for p in pairs}
    feeding = tuple(i for i in Names(model).feeding(pair.candidate) if i in shown)
    try:
        again = probe(pair, feeding) if feeding else None
        vanishes = None if again is None else not _departs(again, limit)
    except LabError:  # the graph with more outputs may be refused; then nothing is known
        vanishes = None
    return pair, departed, vanishes
