"""Two models, tensor by tensor.

Tensors are matched by name. In a quantized graph the twin of a float tensor is its dequantized
value, so its own rounding is included. Making inner tensors visible changes what Qualcomm's
compiler may fuse, and can make a fault vanish: see `divergence`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import metrics, paths, tabular
from ..errors import UsageError, counted
from ..onnxfile.edit import cut, producers
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import module_path
from ..runtime import OrtRunner, TensorRunner, connect
from ..tracking import Progress, tracked

if TYPE_CHECKING:
    import onnx
    import pandas as pd


_CHUNK = 4  # images per call: keeps two simulator workers busy and the memory bounded
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_EXPOSED = (
    "Inner tensors were made outputs to be seen; on the HTP that keeps nodes from being fused, so "
    "a fault of a fusion does not show here (the parity gate looks for those)."
)


@dataclass(frozen=True)
class Twins:
    """A tensor that two graphs share: its name in the reference and in the candidate."""

    reference: str
    candidate: str
    op: str
    candidate_op: str
    module: str


@dataclass(frozen=True)
class Layer:
    """Figures of one tensor over all images; `cosine` is NaN when a value is not finite.

    `low` and `high` are the reference's range; `clipped` is the share of its values beyond what
    the candidate's codes reach, NaN where the tensor has none.
    """

    tensor: str
    op: str
    module: str
    cosine: float
    sqnr_db: float
    low: float = math.nan
    high: float = math.nan
    clipped: float = math.nan


@dataclass(frozen=True, repr=False)
class LayerReport(tabular.Table):
    """Every shared tensor, in topological order.

    Attributes
    ----------
    reference, candidate
        File names.
    runtime
        What ran the candidate; the reference ran on ONNX Runtime, unoptimized.
    n
        Number of images.
    rows
        One `Layer` per tensor.
    """

    reference: str
    candidate: str
    runtime: str
    n: int
    rows: tuple[Layer, ...]

    def worst(self, k: int = 5) -> tuple[Layer, ...]:
        """Return the `k` tensors with the lowest SQNR, worst first."""
        return tuple(sorted(self.rows, key=lambda row: row.sqnr_db)[:k])

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a pandas table."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def _parts(self) -> tuple:
        title = (
            f"{self.candidate} on {self.runtime}, against {self.reference} on ONNX Runtime: "
            f"{counted(len(self.rows), 'tensor')}, {counted(self.n, 'image')}"
        )
        rows = [
            (
                tabular.shortened(r.tensor, 50), r.op, f"{r.sqnr_db:.1f}", f"{r.cosine:.5f}",
                f"{r.low:.3g} to {r.high:.3g}",
                "-" if math.isnan(r.clipped) else f"{100 * r.clipped:.2g}",
            )
            for r in self.rows
        ]  # fmt: skip
        worst = ", ".join(f"{r.module or r.tensor} ({r.sqnr_db:.1f})" for r in self.worst())
        notes = (f"Lowest SQNR (dB): {worst}.", _EXPOSED)
        return title, ("tensor", "op", "SQNR dB", "cosine", "range", "clipped %"), rows, notes


def per_layer(
    float_onnx: OnnxFile | str | Path,
    quantized_onnx: OnnxFile | str | Path,
    inputs: np.ndarray,
    backend: str = "ort",
    soc: str = "SM8550",
    progress: Progress | None = None,
) -> LayerReport:
    """Compare every shared tensor of two ONNX files.

    Parameters
    ----------
    float_onnx, quantized_onnx
        The reference, always run by ONNX Runtime, and the candidate (which may be a float file).
    inputs
        (n, 3, size, size) float32, normalized. On the simulator, 4 to 16 images are enough.
    backend
        ``"ort"`` or ``"htp"`` for the candidate. ONNX Runtime runs unoptimized, so that no inner
        tensor disappears.
    soc
        The chip, for ``"htp"``.
    progress
        Called as ``progress(iterable, description)`` around the chunks of images.

    Raises
    ------
    UsageError
        The two files share no tensor name.
    ConvertError
        The HTP refuses the graph.
    """
    float_onnx, quantized_onnx = OnnxFile.of(float_onnx), OnnxFile.of(quantized_onnx)
    settings = {"soc": soc} if backend == "htp" else {"optimize": False, "threads": 1}
    open_: Callable[..., Any] = functools.partial(connect, backend=backend, **settings)
    reference, candidate = float_onnx.whole, quantized_onnx.whole
    pairs = twins(reference, candidate)
    if not pairs:
        raise UsageError(
            f"{float_onnx.name} and {quantized_onnx.name} share no tensor name. Compare a model "
            "with a file that was made from it."
        )
    with (
        opened(reference, (p.reference for p in pairs)) as ours,
        opened(candidate, (p.candidate for p in pairs), open_) as theirs,
    ):
        reach = {p.candidate: codes_reach(candidate, p.candidate) for p in pairs}
        rows = measure(ours, theirs, pairs, inputs, progress, reach)
        runtime = theirs.runtime
    return LayerReport(float_onnx.name, quantized_onnx.name, runtime, len(inputs), rows)


def twins(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> list[Twins]:
    """Return the tensors that both graphs compute, in the reference's topological order."""
    ours, theirs = Names(reference), Names(candidate)
    pairs: dict[str, Twins] = {}
    for node in reference.graph.node:
        if node.op_type in (*_QDQ, "Constant"):
            continue
        for name in filter(None, node.output):
            left, right = ours.visible(name), theirs.visible(name)
            if left and right:
                op = theirs.op(name) or theirs.op(right)
                pairs.setdefault(left, Twins(left, right, node.op_type, op, module_path(node)))
    return list(pairs.values())


class Names:
    """Looks up who makes a tensor, and under which name its dequantized value is found."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.producer = producers(model.graph.node)
        self.dequantized: dict[str, str] = {}
        for node in model.graph.node:
            source = self.producer.get(node.input[0]) if node.op_type == _QDQ[1] else None
            if source is not None and source.op_type == _QDQ[0]:
                self.dequantized.setdefault(source.input[0], node.output[0])

    def visible(self, name: str) -> str | None:
        """Return the name to look at for tensor `name`, None when this graph lacks it."""
        return self.dequantized.get(name) or (name if name in self.producer else None)

    def op(self, name: str) -> str:
        """Return the operator behind `name`, looking through quantization."""
        node = self.producer.get(name)
        while node is not None and node.op_type in _QDQ:
            node = self.producer.get(node.input[0])
        return node.op_type if node is not None else ""

    def feeding(self, name: str) -> list[str]:
        """Return the names of what the node behind `name` reads (weights among them)."""
        node = self.producer[name]
        while node.op_type in _QDQ:
            node = self.producer[node.input[0]]
        return list(node.input)


def unoptimized(file: OnnxFile | Path) -> TensorRunner:
    """Return a runner that keeps every inner tensor as it is written."""
    return OrtRunner(file, optimize=False, threads=1)


@contextlib.contextmanager
def opened(
    model: onnx.ModelProto,
    names: Iterable[str],
    open_: Callable[[OnnxFile], TensorRunner] = unoptimized,
) -> Iterator[TensorRunner]:
    """Yield a runner of the part of `model` that computes `names`; its file is temporary."""
    with paths.scratch() as folder:
        runner = open_(OnnxFile.write(folder / "part.onnx", cut(model, list(names))))
        try:
            yield runner
        finally:
            runner.close()


def measure(
    ours: TensorRunner,
    theirs: TensorRunner,
    pairs: list[Twins],
    inputs: np.ndarray,
    progress: Progress | None = None,
    reach: dict[str, tuple[float, float]] | None = None,
) -> tuple[Layer, ...]:
    """Stream the images through both and return figures per tensor that both hold.

    `reach` is what the candidate's codes can say, by its tensor.
    """
    sums = np.zeros((len(pairs), 4))
    ends = np.tile([np.inf, -np.inf, 0.0, 0.0], (len(pairs), 1))
    limits = [(reach or {}).get(p.candidate, (math.nan, math.nan)) for p in pairs]
    known = np.ones(len(pairs), bool)
    chunks = [inputs[i : i + _CHUNK] for i in range(0, len(inputs), _CHUNK)]
    for chunk in tracked(chunks, "layers", "batches", progress):
        left, right = ours.tensors(chunk), theirs.tensors(chunk)
        for i, pair in enumerate(pairs):
            a, b = left[pair.reference], right[pair.candidate]
            if a.dtype.kind != "f" or b.dtype.kind != "f" or a.shape != b.shape:
                known[i] = False  # one name for two different things
                continue
            a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
            sums[i] += a @ a, b @ b, a @ b, ((a - b) ** 2).sum()
            beyond = ((a < limits[i][0]) | (a > limits[i][1])).sum()
            least, most = min(ends[i, 0], a.min()), max(ends[i, 1], a.max())
            ends[i] = least, most, ends[i, 2] + beyond, ends[i, 3] + a.size
    return tuple(
        _layer(pair, total, low, high, math.nan if math.isnan(limit[0]) else beyond / size)
        for pair, total, (low, high, beyond, size), limit, ok in zip(
            pairs, sums.tolist(), ends.tolist(), limits, known, strict=True
        )
        if ok
    )


def codes_reach(model: onnx.ModelProto, name: str) -> tuple[float, float]:
    """Return the least and greatest value that a dequantized tensor can have; NaN for others."""
    from onnx import numpy_helper

    node = next((n for n in model.graph.node if name in n.output), None)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    if node is None or node.op_type != _QDQ[1] or not {*node.input[1:3]} <= set(stored):
        return math.nan, math.nan
    scale, zero = (numpy_helper.to_array(stored[entry]) for entry in node.input[1:3])
    if scale.size != 1 or zero.dtype.kind not in "iu":
        return math.nan, math.nan
    codes, step, origin = np.iinfo(zero.dtype), float(scale.item()), int(zero.item())
    half = 0.5  # what rounds to the last code is not cut off
    return (codes.min - origin - half) * step, (codes.max - origin + half) * step


def _layer(pair: Twins, sums: Sequence[float], low: float, high: float, clipped: float) -> Layer:
    aa, bb, ab, noise = sums
    if not math.isfinite(bb + noise):
        cosine, sqnr = math.nan, -math.inf
    else:
        cosine = metrics.cosine_of_sums(aa, bb, ab, equal=noise == 0)
        sqnr = metrics.sqnr_of_sums(aa, noise)
    return Layer(pair.reference, pair.op, pair.module, cosine, sqnr, low, high, clipped)
