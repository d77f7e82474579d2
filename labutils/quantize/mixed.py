"""Mixed precision: bits spent where they buy most, within a budget.

A node computes at one width, so a tensor keeps 16 bits only between nodes that both have them.
The search starts from all nodes at 8 bits and widens nodes, always by the tensor whose noise at the
logits costs least multiply-accumulates to spare: every state on the way is a point of the front.
Weights go from 8 to 4 bits in the order of noise per byte saved. Points are predicted from noise
measured one rounding at a time; those that decide are quantized and measured.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import paths
from ..compare.gating import parity
from ..errors import UsageError
from ..images.data import ImageSet, Preprocessing
from ..measure import complexity
from ..onnxfile.file import OnnxFile
from ..runtime import OrtRunner
from ..tracking import Progress, tracked
from . import gates, presets
from .carriers import CARRIERS
from .mixed_report import Budget, MixedReport, Point, mixed_recipe
from .prepare import prepared
from .ptq import QuantizeReport, static
from .ranges import Ranges, checked_inputs, measure_ranges
from .recipe import Recipe
from .rounding_noise import END, START, Edge, Meter, edges

if TYPE_CHECKING:
    import onnx

__all__ = ["Budget", "MixedReport", "Point", "least_megabytes", "search"]


_FREE = 2e-4  # of all MACs: the price of widening a node that has none, so that few are
_LEAST = 1e-3  # of the noise: what a step must save to be a point of the front
_METERED = 32  # images for the noise
_AT_ONCE = 16  # images between two moves of a progress bar


def search(
    source: OnnxFile | str | Path,
    calibration: np.ndarray | ImageSet,
    budget: Budget,
    base: str | Path | Recipe = "int8",
    *,
    preprocessing: Preprocessing | None = None,
    judged: int = 256,
    progress: Progress | None = None,
) -> MixedReport:
    """Return the recipe that spends 16-bit activations (and 4-bit weights) best within a budget.

    Parameters
    ----------
    source
        The float ONNX file.
    calibration, preprocessing
        As for `static`: images, not ranges.
    budget
        What it may cost, or must reach.
    base
        The recipe to start from: 8-bit activations.
    judged
        Calibration images on which points are measured.
    progress
        Called as ``progress(iterable, description)``.

    Raises
    ------
    UsageError
        The base has 16-bit activations already, or the bytes cannot be reached with 4 bits.
    """
    source, base = OnnxFile.of(source), presets.load(base)
    if base.activations.bits != 8:
        raise UsageError(f"Recipe {base.name} has 16-bit activations; start from one with 8.")
    model = prepared(source)
    OrtRunner(source).close()  # what ONNX Runtime does not take is refused in its words, once
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    histograms = base.calibration.method != "minmax"
    ranges = measure_ranges(
        model, calibration, preprocessing, progress, histograms, base.equalize_gates
    )
    if base.equalize_gates and ranges.factors:
        gates.equalize_(model, ranges.factors)
    images = checked_inputs(calibration, 0, preprocessing, shape, max(judged, _METERED))
    meter = Meter(model, base, ranges, images[:: max(1, len(images) // _METERED)][:_METERED])
    macs = _macs(source, model, shape)
    places = edges(model, ranges, base)
    tried = tracked(places, "noise of activations", "tensors", progress)
    noise = {edge: meter.of_edge(edge, 8) for edge in tried}
    narrow, size, weight_noise = _narrowed(meter, budget, base, progress)
    front = _front(noise, macs, weight_noise, size)
    first = functools.partial(checked_inputs, calibration, 0, preprocessing, shape)
    judge = _Measurement(source, base, ranges, first, judged, model, narrow)
    chosen, front, reached = _choose(front, budget, judge)
    recipe = mixed_recipe(base, judge.spread(front[chosen].wide), narrow, str(budget))
    front = [dataclasses.replace(p, wide=judge.spread(p.wide)) for p in front]
    return MixedReport(
        source.name, budget, len(images[:judged]), recipe, tuple(front), chosen, narrow, reached,
        base, tuple(name for name in judge.owner if name in front[-1].wide), judge,
    )  # fmt: skip


def least_megabytes(source: OnnxFile | str | Path, base: str | Path | Recipe = "int8") -> float:
    """Return what the stored weights take with all that can be narrowed at 4 bits, in MB.

    Less than that no budget of `search` may ask for.
    """
    from onnx import numpy_helper

    base = presets.load(base)
    graph = prepared(OnnxFile.of(source)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    carried = {
        node.input[1] for node in graph.node
        if node.op_type in CARRIERS and node.input[1] in arrays and not base.excluded(node.name)
    }  # fmt: skip
    others = sum(
        a.nbytes for name, a in arrays.items() if name not in carried and a.dtype.kind == "f"
    )
    return (others + sum(arrays[name].size // 2 for name in carried)) / 1e6


def _macs(source: OnnxFile, model: onnx.ModelProto, shape: Sequence[int]) -> dict[str, float]:
    """Return each node's share of all multiply-accumulates."""
    counted = complexity.count(source, shape)
    named = {row.name: row.macs for row in counted.rows}
    total = counted.macs or 1
    return {node.name: named.get(node.name, 0) / total for node in model.graph.node}


def _front(
    noise: dict[Edge, float], macs: dict[str, float], weights: float, size: int
) -> list[Point]:
    """Return the states of the greedy search, from no wide node to all."""
    ends = {START, END}
    wide: list[str] = []
    spared: set[Edge] = set()
    total = sum(noise.values())

    def point() -> Point:
        left = total - sum(noise[e] for e in spared) + weights
        inside = set(wide) | ends
        inner = [e for e in noise if ends.isdisjoint((e.producer, e.reader))]
        split = {e.tensor for e in inner if (e.producer in inside) != (e.reader in inside)}
        share = sum(macs.get(name, 0) for name in wide)
        db = -10 * np.log10(max(left, 1e-12))
        return Point(tuple(wide), share, float(db), size, len(split))

    states = [point()]
    while len(spared) < len(noise):
        inside = set(wide) | ends
        best = max(
            (e for e in noise if e not in spared),
            key=lambda e: _worth(e, noise, spared, inside, macs),
        )
        wide += [n for n in dict.fromkeys((best.producer, best.reader)) if n not in inside]
        inside = set(wide) | ends
        spared = {e for e in noise if {e.producer, e.reader} <= inside}
        state = point()
        if 10 ** (-states[-1].predicted_db / 10) - 10 ** (-state.predicted_db / 10) > (
            _LEAST * (total + weights)
        ) or len(spared) == len(noise):
            states.append(state)
    return states


def _worth(
    edge: Edge, noise: dict[Edge, float], spared: set[Edge], inside: set[str], macs: dict
) -> float:
    """Return the noise that sparing `edge` saves, all edges that come along, per MAC added."""
    added = {edge.producer, edge.reader} - inside
    after = inside | added
    saved = sum(
        power for e, power in noise.items()
        if e not in spared and e.producer in after and e.reader in after
    )  # fmt: skip
    return saved / sum(macs.get(name, 0) + _FREE for name in added or [""])


def _narrowed(
    meter: Meter, budget: Budget, base: Recipe, progress: Progress | None
) -> tuple[tuple[str, ...], int, float]:
    """Return the layers with 4-bit weights, the bytes of all, and the noise of all weights."""
    layers = meter.carriers()
    sizes = {node.name: meter.weights[node.input[1]].size for node in layers}
    bits = {n.name: base.setting(n.name, n.op_type, "weights") or base.weights.bits for n in layers}
    quantized = {node.input[1] for node in layers}
    others = [a for n, a in meter.weights.items() if n not in quantized and a.dtype.kind == "f"]
    rest = sum(array.nbytes for array in others)
    size = rest + sum(sizes[name] * bits[name] // 8 for name in sizes)
    tried = tracked(layers, "noise of weights", "layers", progress)
    if budget.megabytes is None:
        return (), size, sum(meter.of_weights(node, bits[node.name]) for node in tried)
    found = {n.name: (meter.of_weights(n, bits[n.name]), meter.of_weights(n, 4)) for n in tried}
    total = sum(now for now, _ in found.values())
    order = sorted(
        (name for name in found if bits[name] > 4),
        key=lambda n: (found[n][1] - found[n][0]) / (sizes[n] * (bits[n] - 4) / 8),
    )
    narrow = []
    for name in order:
        if size <= budget.megabytes * 1e6:
            break
        narrow.append(name)
        size -= sizes[name] * (bits[name] - 4) // 8
        total += found[name][1] - found[name][0]
    if size > budget.megabytes * 1e6:
        raise UsageError(
            f"All weights at 4 bits take {size / 1e6:.2f} MB, more than the {budget.megabytes:g} "
            "of the budget."
        )
    return tuple(narrow), size, total


class _Measurement:
    """Quantizes a point of the front and measures it against the float model.

    Biases are not corrected for that, whatever the base says: it would take most of the time, and
    what is written is a little better than what was measured.

    It lives as long as the report, so it takes its images again each time: pixels weigh little.
    """

    def __init__(
        self,
        source: OnnxFile,
        base: Recipe,
        ranges: Ranges,
        first: Callable[[int], np.ndarray],
        judged: int,
        model: onnx.ModelProto,
        narrow: tuple[str, ...],
    ) -> None:
        from .rounding_noise import owners

        self.source, self.base, self.ranges = source, base, ranges
        self.first, self.judged = first, judged  # first(n): the first n calibration images
        self.narrow = narrow
        self.owner = owners(model, base)
        with OrtRunner(source) as runner:
            self.exact = runner.run(first(judged))
            self.output = runner.output or ""

    def spread(self, wide: Sequence[str]) -> tuple[str, ...]:
        """Return the nodes with the ReLUs that take their width."""
        return tuple(
            name for chosen in wide for name, owner in self.owner.items() if owner == chosen
        )

    def __call__(self, point: Point, progress: Progress | None = None) -> Point:
        base = self.base.replaced(correct_bias=False)  # which takes seconds, at every point
        recipe = mixed_recipe(base, self.spread(point.wide), self.narrow, "judged")
        images = self.first(self.judged)
        with paths.scratch() as folder:
            file = folder / "point.onnx"
            self.write(recipe, file)
            starts = range(0, len(images), _AT_ONCE)
            with OrtRunner(file, output=self.output or None) as runner:
                found = [
                    runner.run(images[start : start + _AT_ONCE])
                    for start in tracked(starts, "measuring", "batches", progress)
                ]
        measured = parity(self.exact, np.concatenate(found), top1=bool(self.output))
        return dataclasses.replace(point, measured=measured)

    def write(self, recipe: Recipe, destination: str | Path) -> QuantizeReport:
        """Quantize the searched model by a recipe, with the ranges that were measured."""
        needs_images = recipe.equalize or recipe.rounding != "nearest"
        known = self.first(recipe.calibration.images) if needs_images else self.ranges
        return static(self.source, destination, known, recipe)


def _choose(
    front: list[Point], budget: Budget, judge: Callable[[Point], Point]
) -> tuple[int, list[Point], bool]:
    """Return the chosen index, the front with what was measured, and whether it suffices."""
    front = list(front)

    def reaches(index: int) -> bool:
        if front[index].measured is None:
            front[index] = judge(front[index])
        found = front[index].measured
        assert found is not None  # `judge` measured it
        if budget.agreement is not None:
            return found.agreement is not None and found.agreement.value >= budget.agreement
        return found.sqnr_db >= (budget.sqnr_db or -np.inf)

    reaches(0)
    if budget.agreement is None and budget.sqnr_db is None:
        most = budget.mac_share if budget.mac_share is not None else 0.0
        index = max(i for i, point in enumerate(front) if point.mac_share <= most)
        reaches(index)
        return index, front, True
    low, high = 0, len(front) - 1
    if reaches(0):
        return 0, front, True
    if not reaches(high):
        return high, front, False
    while high - low > 1:  # the front gains nearly always, so halving finds its first good point
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high, front, True
