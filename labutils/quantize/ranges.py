"""What calibration saw of every tensor, and the ranges that four methods make of it.

``minmax`` keeps the least and greatest value of every tensor *per image*, so that the few most
extreme images can be left out. The other three look at a histogram of the values:

``percentile``
    keeps that share of the values, the rest cut off equally at both ends.
``mse``
    takes the range with the least mean squared error, rounding and clipping together.
``entropy``
    takes the range whose quantized histogram has the least Kullback-Leibler divergence from the
    clipped one (Migacz, 8-bit Inference with TensorRT, GTC 2017).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..compare.layerwise import opened
from ..errors import ModelFileError, UsageError
from ..images.data import ImageSet, Preprocessing
from ..onnxfile.file import OnnxFile
from ..tracking import Progress, tracked
from . import gates
from .prepare import PER_CHANNEL, prepared
from .recipe import Calibration, Recipe

if TYPE_CHECKING:
    import onnx


BINS = 2048
EXAMPLES = 128
"""Images that go with ranges: what corrects biases looks at as many."""
_BATCH = 32
_SHARES = np.geomspace(0.05, 1.0, 64)  # of a tensor's range, tried by mse and entropy


@dataclass(frozen=True)
class Ranges:
    """What calibration saw.

    Attributes
    ----------
    tensors
        Names of the float activations, the input among them.
    low, high
        (images, tensors) float32: least and greatest value in each image.
    histograms
        By tensor: how many values lie in each of `BINS` equal bins from the least value (or 0) to
        the greatest (or 0). Empty unless asked for.
    examples
        The first of the images, at most `EXAMPLES`: (n, 3, size, size) float32.
    factors
        By which the channels before gates are divided, for a recipe that equalizes them; None
        where the network was measured as it is alone.
    vectors
        Of `tensors` those with one value per channel and image.
    """

    tensors: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    examples: np.ndarray = field(default_factory=lambda: np.zeros((0,), np.float32), repr=False)
    factors: gates.Factors | None = field(default=None, repr=False)
    vectors: frozenset[str] = field(default=frozenset(), repr=False)

    def limits(
        self, outliers: float = 0.0, vector_outliers: float | None = None
    ) -> dict[str, tuple[float, float]]:
        """Return (low, high) per tensor, leaving out that share of the images on either side.

        0 is plain min-max. The images left out are chosen tensor by tensor. `vector_outliers` is
        the share for `vectors`; None takes the same for all.
        """
        low = np.quantile(self.low, outliers, axis=0)
        high = np.quantile(self.high, 1 - outliers, axis=0)
        found = {
            name: (float(a), float(b)) for name, a, b in zip(self.tensors, low, high, strict=True)
        }
        if vector_outliers is not None and vector_outliers != outliers:
            own = self.limits(vector_outliers)
            found |= {name: own[name] for name in self.vectors}
        return found

    def chosen(self, calibration: Calibration, bits: int = 8) -> dict[str, tuple[float, float]]:
        """Return (low, high) per tensor by the recipe's method, for codes of `bits` bits.

        Raises
        ------
        UsageError
            The method looks at histograms and these ranges have none.
        """
        if calibration.method == "minmax":
            return self.limits(calibration.outliers, calibration.vector_outliers)
        if not self.histograms:
            raise UsageError(
                f"Method {calibration.method} needs histograms: measure_ranges(histograms=True)."
            )
        return {name: self._chosen(name, calibration, bits) for name in self.tensors}

    def _chosen(self, name: str, calibration: Calibration, bits: int) -> tuple[float, float]:
        index = self.tensors.index(name)
        edges = _edges(self.low[:, index].min(), self.high[:, index].max())
        counts = self.histograms[name]
        if calibration.method == "percentile":
            return _percentile(counts, edges, calibration.percentile)
        if calibration.method == "mse":
            return least_error(counts, (edges[1:] + edges[:-1]) / 2, bits)
        return _least_divergence(counts, edges, min(bits, 8))


def measure_ranges(
    source: OnnxFile | str | Path | onnx.ModelProto,
    calibration: np.ndarray | ImageSet,
    preprocessing: Preprocessing | None = None,
    progress: Progress | None = None,
    histograms: bool = False,
    equalize_gates: bool = True,
) -> Ranges:
    """Run the float model on every calibration image and keep each tensor's range per image.

    Parameters
    ----------
    source
        A float ONNX file, or a model in memory.
    calibration, preprocessing, progress
        As for `static`. One image's activations are in memory at a time.
    histograms
        Run the images a second time and count values too, which percentile, entropy and mse need.
    equalize_gates
        Also measure the tensors of the network whose gates are equalized, so that the ranges serve
        recipes with `equalize_gates` and without.
    """
    model = prepared(source) if isinstance(source, OnnxFile | str | Path) else source
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    found = _Columns()
    seen = functools.partial(_seen, model, calibration, preprocessing, progress)
    found.measure(_outputs(model), seen, histograms)
    factors = None
    if equalize_gates:
        few = checked_inputs(calibration, 0, preprocessing, shape, gates.IMAGES)
        factors = gates.factors(model, few)
    if factors:
        equal = type(model)()
        equal.CopyFrom(model)
        gates.equalize_(equal, factors)
        added = [name for name in _outputs(equal) if name not in set(found.names)]
        seen = functools.partial(_seen, equal, calibration, preprocessing, progress)
        found.measure(added, seen, histograms)
    examples = checked_inputs(calibration, 0, preprocessing, shape, EXAMPLES)
    return Ranges(
        tuple(found.names), np.concatenate(found.low, axis=1), np.concatenate(found.high, axis=1),
        found.counts, examples.copy(), factors, frozenset(found.vectors),
    )  # fmt: skip


def _outputs(model: onnx.ModelProto) -> list[str]:
    return [n for node in model.graph.node if node.op_type != "Constant" for n in node.output if n]


class _Columns:
    """What is known of tensors, column by column: (images, tensors) each."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.low: list[np.ndarray] = []
        self.high: list[np.ndarray] = []
        self.vectors: set[str] = set()
        self.counts: dict[str, np.ndarray] = {}

    def measure(
        self, names: list[str], seen: Callable[..., Iterable[dict]], histograms: bool
    ) -> None:
        """Add columns for tensors, of those that are floating-point numbers."""
        kept: list[str] = []
        lows, highs = [], []
        for tensors in seen(names, "calibration"):
            if not kept:
                new = ((n, t) for n, t in tensors.items() if n not in self.names)
                kept = [n for n, t in new if t.dtype.kind == "f" and t.size]
                self.vectors |= {n for n in kept if _is_vector(tensors[n])}
            lows.append([tensors[name].min() for name in kept])
            highs.append([tensors[name].max() for name in kept])
        low, high = np.array(lows, np.float32), np.array(highs, np.float32)
        bad = ~(np.isfinite(low) & np.isfinite(high)).all(axis=0)
        if bad.any():
            raise ModelFileError(
                f"Tensor {kept[int(bad.argmax())]!r} of the float model is NaN or infinite on the "
                "calibration images. Check the weights and the preprocessing before quantizing."
            )
        if histograms:
            edges = {n: _edges(low[:, i].min(), high[:, i].max()) for i, n in enumerate(kept)}
            self.counts |= {name: np.zeros(BINS, np.int64) for name in kept}
            for tensors in seen(names, "histograms"):
                for name in kept:
                    span = edges[name][0], edges[name][-1]
                    self.counts[name] += np.histogram(tensors[name], BINS, span)[0]
        self.names += kept
        self.low.append(low)
        self.high.append(high)


def _is_vector(values: np.ndarray) -> bool:
    """Return whether a tensor of one image has one value per channel, and several channels."""
    return values.ndim > 1 and 1 < values.size == values.shape[1]


def gate_factors(
    model: onnx.ModelProto,
    calibration: np.ndarray | ImageSet | Ranges,
    recipe: Recipe,
    preprocessing: Preprocessing | None,
) -> gates.Factors:
    """Return the factors of `gates` that a recipe asks for: from images, or from its ranges.

    Raises
    ------
    UsageError
        The ranges were measured without those of the network that the recipe quantizes.
    """
    if not recipe.equalize_gates:
        return {}
    if not isinstance(calibration, Ranges):
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        few = checked_inputs(calibration, 0, preprocessing, shape, gates.IMAGES)
        return gates.factors(model, few)
    if calibration.factors is None:
        raise UsageError(
            f"Recipe {recipe.name} equalizes the channels before gates, and these ranges were "
            "measured without that: pass calibration images, or ranges of measure_ranges() with "
            "equalize_gates."
        )
    return calibration.factors


def equalized_gates(
    source: OnnxFile | str | Path,
    destination: Path,
    calibration: np.ndarray | ImageSet,
    preprocessing: Preprocessing | None = None,
    *,
    least_opset: int = PER_CHANNEL,
    changes: list[str] | None = None,
) -> OnnxFile:
    """Write the float network that a recipe with `equalize_gates` rounds; it computes the same.

    Parameters
    ----------
    source
        A float ONNX file.
    destination
        The ``.onnx`` to write.
    calibration, preprocessing
        Pictures on which it is measured how far channels reach.
    least_opset
        As in `prepared`: for tools that read an earlier one than 13.
    changes
        What was equalized is appended, as text; nothing where no gate needs it.
    """
    model = prepared(source, least_opset=least_opset)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    few = checked_inputs(calibration, 0, preprocessing, shape, gates.IMAGES)
    factors = gates.factors(model, few)
    done = gates.equalize_(model, factors)
    if changes is not None and factors:
        changes.append(done)
    return OnnxFile.write(destination, model)


def _seen(
    model: onnx.ModelProto,
    calibration: np.ndarray | ImageSet,
    preprocessing: Preprocessing | None,
    progress: Progress | None,
    names: list[str],
    words: str,
) -> Iterable[dict[str, np.ndarray]]:
    """Yield tensors of one calibration image after the other, the input among them."""
    entry = model.graph.input[0]
    shape = [d.dim_value for d in entry.type.tensor_type.shape.dim]
    starts = list(_starts(calibration))
    with opened(model, names) as runner:
        for start in tracked(starts, words, "batches", progress):
            for image in checked_inputs(calibration, start, preprocessing, shape):
                yield {entry.name: image[None], **runner.tensors(image[None])}


def _starts(calibration: np.ndarray | ImageSet) -> range:
    if not len(calibration):
        raise UsageError("Quantization needs calibration images; there were none.")
    return range(0, len(calibration), _BATCH)


def checked_inputs(
    calibration: np.ndarray | ImageSet,
    start: int,
    preprocessing: Preprocessing | None,
    shape: list[int],
    count: int = _BATCH,
) -> np.ndarray:
    """Return `count` checked inputs from `start` on, float32 (n, 3, size, size).

    Raises
    ------
    UsageError
        Of another shape or type than the model's input, or not finite.
    """
    part = slice(start, start + count)
    if isinstance(calibration, ImageSet):
        if preprocessing is None:
            raise UsageError("An ImageSet holds pixels: say how to prepare them (preprocessing=).")
        inputs = preprocessing(calibration.images[part])
    else:
        inputs = np.asarray(calibration[part])
    if inputs.dtype != np.float32 or list(inputs.shape[1:]) != shape[1:]:
        raise UsageError(
            f"The model takes float32 (n, {', '.join(map(str, shape[1:]))}); the calibration "
            f"images are {inputs.dtype} {inputs.shape}."
        )
    if not np.isfinite(inputs).all():
        index = start + int(np.argmax(~np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1)))
        raise UsageError(f"Calibration image {index} holds NaN or infinite values.")
    return inputs


def _edges(low: float, high: float) -> np.ndarray:
    """Return the edges of the histogram, (BINS + 1,) float64; the range holds 0."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    return np.linspace(low, high if high > low else low + 1e-6, BINS + 1)


def _percentile(counts: np.ndarray, edges: np.ndarray, percent: float) -> tuple[float, float]:
    share = np.cumsum(counts) / counts.sum()
    cut = (100 - percent) / 200
    left, right = np.searchsorted(share, [cut, 1 - cut - 1e-12])
    return float(edges[left]), float(edges[min(right, BINS - 1) + 1])


def least_error(counts: np.ndarray, values: np.ndarray, bits: int) -> tuple[float, float]:
    """Return the (low, high) around 0 with the least squared error at `bits` bits.

    Parameters
    ----------
    counts, values
        How often each value occurs, both (n,).

    Notes
    -----
    Each end is shrunk on its own, twice in turn, over 64 steps down to a twentieth: the error of
    the two ends interacts only through the step.
    """
    low, high = min(float(values[0]), 0.0), max(float(values[-1]), 0.0)
    steps = 2**bits - 1

    def error(a: float, b: float) -> float:
        scale = (b - a) / steps or 1.0
        kept = np.clip(np.round((values - a) / scale), 0, steps) * scale + a
        return float((counts * (values - kept) ** 2).sum())

    best = low, high
    for _ in range(2):
        best = best[0], min((high * s for s in _SHARES), key=lambda b: error(best[0], b))
        if low:
            best = min((low * s for s in _SHARES), key=lambda a: error(a, best[1])), best[1]
    return best


def _least_divergence(counts: np.ndarray, edges: np.ndarray, bits: int) -> tuple[float, float]:
    """Return the (low, high) whose quantized histogram diverges least from the clipped one.

    The bin that holds 0 is left out: after a ReLU half of all values lie in it, and it would
    outvote everything else.
    """
    counts = counts.copy()
    counts[np.clip(np.searchsorted(edges, 0.0, side="right") - 1, 0, BINS - 1)] = 0
    if not counts.any():
        return float(edges[0]), float(edges[-1])
    levels, best = 2**bits, (np.inf, float(edges[0]), float(edges[-1]))
    for share in _SHARES:
        first, last = np.searchsorted(edges, [edges[0] * share, edges[-1] * share])
        last = max(int(last), first + 1)
        inside = counts[first:last].astype(np.float64)
        level = np.arange(len(inside)) * levels // len(inside)
        occupied = inside > 0
        mass = np.bincount(level, inside, levels)
        places = np.bincount(level, occupied, levels)
        spread = np.where(occupied, (mass / np.maximum(places, 1))[level], 0)
        clipped = inside.copy()
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[last:].sum()
        p, q = clipped / clipped.sum(), np.maximum(spread / max(spread.sum(), 1e-12), 1e-12)
        held = p > 0
        divergence = float((p[held] * np.log(p[held] / q[held])).sum())
        best = min(best, (divergence, float(edges[first]), float(edges[last])))
    return best[1], best[2]
