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
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import complexity
from ..compare import tabular
from ..compare.gating import Parity, parity
from ..data import ImageSet, Preprocessing
from ..errors import UsageError
from ..runtime import OrtRunner
from . import recipe as recipes
from .noise import END, START, Edge, Meter, edges
from .prepare import prepared
from .ptq import static
from .ranges import Ranges, checked_inputs, measure_ranges
from .recipe import Override, Recipe

if TYPE_CHECKING:
    import onnx

Progress = Callable[[Iterable, str], Iterable]

_FREE = 2e-4  # of all MACs: the price of widening a node that has none, so that few are
_LEAST = 1e-3  # of the noise: what a step must save to be a point of the front
_METERED = 32  # images for the noise
_AT_ONCE = 16  # images between two moves of a progress bar


@dataclass(frozen=True)
class Budget:
    """What a mixed recipe may cost or must reach; exactly one but `megabytes`, or both.

    Attributes
    ----------
    mac_share
        At most this share of the multiply-accumulates with 16-bit activations, 0 to 1.
    agreement, sqnr_db
        At least this top-1 agreement (0 to 1), or logit SQNR, with the float model.
    megabytes
        At most this many for the stored weights; layers go down to 4 bits for it.
    """

    mac_share: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    megabytes: float | None = None

    def __post_init__(self) -> None:
        said = [self.mac_share, self.agreement, self.sqnr_db]
        if sum(value is not None for value in said) > 1 or (
            self.megabytes is None and all(value is None for value in said)
        ):
            raise UsageError(
                "A budget is one of mac_share, agreement or sqnr_db, or megabytes, or megabytes "
                "and one of them."
            )
        for name in ("mac_share", "agreement"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is a share, 0 to 1, not {value}.")

    def __str__(self) -> str:
        words = {
            "mac_share": lambda v: f"at most {100 * v:g} % of the MACs at 16 bits",
            "agreement": lambda v: f"top-1 agreement of at least {100 * v:g} %",
            "sqnr_db": lambda v: f"logit SQNR of at least {v:g} dB",
            "megabytes": lambda v: f"weights of at most {v:g} MB",
        }
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return ", ".join(words[k](v) for k, v in found.items() if v is not None)


@dataclass(frozen=True)
class Point:
    """One mixed recipe on the way from all 8 to all that pays.

    Attributes
    ----------
    wide
        Nodes with 16-bit activations, in the order of the search.
    mac_share
        Share of the multiply-accumulates that they do, 0 to 1.
    predicted_db
        Logit SQNR from the sum of the single noises.
    bytes
        Of the stored weights.
    converts
        Tensors that are converted between widths.
    measured
        Parity with the float model where this point was quantized and run.
    """

    wide: tuple[str, ...]
    mac_share: float
    predicted_db: float
    bytes: int
    converts: int
    measured: Parity | None = None


@dataclass(frozen=True)
class MixedReport:
    """The front, and the point that the budget buys.

    Attributes
    ----------
    source, budget, n
        The float file; what was asked; images that measured points were judged on.
    recipe
        The chosen point as a recipe.
    front
        From all 8 bits on, by MAC share.
    chosen
        Index of the chosen point.
    narrow
        Layers with 4-bit weights.
    reached
        Whether the wanted agreement or SQNR was reached; the last point was taken if not.
    base
        The recipe that the search started from.
    nodes
        All nodes that a point can widen, in topological order.
    judge
        What `measure` asks: quantizes a point and returns it measured.
    """

    source: str
    budget: Budget
    n: int
    recipe: Recipe
    front: tuple[Point, ...]
    chosen: int
    narrow: tuple[str, ...]
    reached: bool
    base: Recipe
    nodes: tuple[str, ...]
    judge: Callable[..., Point] | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def point(self) -> Point:
        """The chosen point."""
        return self.front[self.chosen]

    def recipe_of(self, index: int) -> Recipe:
        """Return another point of the front as a recipe."""
        if index == self.chosen:
            return self.recipe
        return _recipe(self.base, self.front[index].wide, self.narrow, f"point {index}")

    def measure(self, index: int, progress: Progress | None = None) -> MixedReport:
        """Return the report with this point quantized and run, on the images of the search.

        Parameters
        ----------
        index
            Of the point in `front`.
        progress
            Called as ``progress(iterable, description)`` around the images.

        Raises
        ------
        UsageError
            The report was not made by `search` in this process.
        """
        if self.front[index].measured is not None:
            return self
        if self.judge is None:
            raise UsageError(
                "This report came without its model and images: nothing can be measured. Search "
                "again (quantize.mixed.search)."
            )
        found = self.judge(self.front[index], progress)
        front = (*self.front[:index], found, *self.front[index + 1 :])
        return dataclasses.replace(self, front=front)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {
            "source": self.source, "budget": str(self.budget), "n": self.n,
            "recipe": self.recipe.to_dict(), "chosen": self.chosen, "reached": self.reached,
            "narrow": list(self.narrow), "front": [dataclasses.asdict(p) for p in self.front],
        }  # fmt: skip

    def _parts(self) -> tuple:
        title = f"Mixed precision for {self.source}: {self.budget}"
        rows = []
        for index in self._shown():
            p, found = self.front[index], self.front[index].measured
            rows.append((
                f"{'> ' if index == self.chosen else '  '}{index}",
                str(len(p.wide)), f"{100 * p.mac_share:.1f}", str(p.converts),
                f"{p.bytes / 1e6:.2f}", f"{p.predicted_db:.1f}",
                f"{found.sqnr_db:.1f}" if found else "-", str(found.agreement) if found else "-",
            ))  # fmt: skip
        columns = (
            "point", "16-bit nodes", "% of MACs", "converts", "MB", "predicted dB", "measured dB",
            "agreement",
        )  # fmt: skip
        notes = [
            f"Measured on {self.n} calibration images with ONNX Runtime, for choosing only: "
            "accuracy is judged on others.",
            "Wide nodes of the chosen point: " + (", ".join(self.point.wide) or "none") + ".",
        ]
        if self.narrow:
            notes.append(f"4-bit weights: {', '.join(self.narrow)}.")
        if not self.reached:
            notes.append("The budget was not reached; this is the nearest point of the front.")
        return title, columns, rows, notes

    def _shown(self) -> list[int]:
        """Return at most 16 points: the ends, the measured ones, and some between."""
        some = set(np.linspace(0, len(self.front) - 1, 9).astype(int).tolist())
        measured = {i for i, p in enumerate(self.front) if p.measured}
        return sorted(some | measured | {self.chosen})

    def __str__(self) -> str:
        return tabular.text(*self._parts())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return tabular.markup(*self._parts())


def search(
    source: str | Path,
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
    source, base = Path(source), recipes.load(base)
    if base.activations.bits != 8:
        raise UsageError(f"Recipe {base.name} has 16-bit activations; start from one with 8.")
    model = prepared(source)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    histograms = base.calibration.method != "minmax"
    ranges = measure_ranges(model, calibration, preprocessing, progress, histograms)
    images = checked_inputs(calibration, 0, preprocessing, shape, max(judged, _METERED))
    meter = Meter(model, base, ranges, images[:: max(1, len(images) // _METERED)][:_METERED])
    macs = _macs(source, model, shape)
    places = edges(model, ranges, base)
    tried = progress(places, "noise of activations") if progress else places
    noise = {edge: meter.of_edge(edge, 8) for edge in tried}
    narrow, size, weight_noise = _narrowed(meter, budget, base, progress)
    front = _front(noise, macs, weight_noise, size)
    taken = functools.partial(checked_inputs, calibration, 0, preprocessing, shape, judged)
    judge = _Judge(source, base, ranges, taken, model, narrow)
    chosen, front, reached = _choose(front, budget, judge)
    recipe = _recipe(base, judge.spread(front[chosen].wide), narrow, str(budget))
    front = [dataclasses.replace(p, wide=judge.spread(p.wide)) for p in front]
    return MixedReport(
        source.name, budget, len(images[:judged]), recipe, tuple(front), chosen, narrow, reached,
        base, tuple(name for name in judge.owner if name in front[-1].wide), judge,
    )  # fmt: skip


def _macs(source: Path, model: onnx.ModelProto, shape: Sequence[int]) -> dict[str, float]:
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
        split = {e.tensor for e in noise if (e.producer in inside) != (e.reader in inside)}
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
    tried = progress(layers, "noise of weights") if progress else layers
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


class _Judge:
    """Quantizes a point of the front and measures it against the float model.

    It lives as long as the report, so it takes its images anew each time: pixels weigh little.
    """

    def __init__(
        self,
        source: Path,
        base: Recipe,
        ranges: Ranges,
        images: Callable[[], np.ndarray],
        model: onnx.ModelProto,
        narrow: tuple[str, ...],
    ) -> None:
        from .noise import owners

        self.source, self.base, self.ranges, self.images = source, base, ranges, images
        self.narrow = narrow
        self.owner = owners(model, base)
        with OrtRunner(source) as runner:
            self.exact = runner.run(images())

    def spread(self, wide: Sequence[str]) -> tuple[str, ...]:
        """Return the nodes with the ReLUs that take their width."""
        return tuple(
            name for chosen in wide for name, owner in self.owner.items() if owner == chosen
        )

    def __call__(self, point: Point, progress: Progress | None = None) -> Point:
        recipe = _recipe(self.base, self.spread(point.wide), self.narrow, "judged")
        needs_images = recipe.equalize or recipe.correct_bias or recipe.rounding != "nearest"
        images = self.images()
        known = images if needs_images else self.ranges
        with tempfile.TemporaryDirectory(prefix="labutils-mixed-") as folder:
            file = Path(folder) / "point.onnx"
            static(self.source, file, known, recipe)
            starts = range(0, len(images), _AT_ONCE)
            with OrtRunner(file) as runner:
                found = [
                    runner.run(images[start : start + _AT_ONCE])
                    for start in (progress(starts, "measuring") if progress else starts)
                ]
        return dataclasses.replace(point, measured=parity(self.exact, np.concatenate(found)))


def _choose(
    front: list[Point], budget: Budget, judge: Callable[[Point], Point]
) -> tuple[int, list[Point], bool]:
    """Return the chosen index, the front with what was measured, and whether it suffices."""
    front = list(front)

    def reaches(index: int) -> bool:
        if front[index].measured is None:
            front[index] = judge(front[index])
        found = front[index].measured
        if budget.agreement is not None:
            return found.agreement.share >= budget.agreement
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


def _recipe(base: Recipe, wide: Sequence[str], narrow: Sequence[str], about: str) -> Recipe:
    import glob

    added = [Override(node=glob.escape(name), activations=16) for name in wide]
    added += [Override(node=glob.escape(name), weights=4) for name in narrow]
    return base.replaced(
        name=f"{base.name}_mixed" if not base.name.endswith("_mixed") else base.name,
        about=f"mixed precision: {about}",
        overrides=(*base.overrides, *added),
    )
