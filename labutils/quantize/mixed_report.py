"""What a search for mixed precision was asked and what it found: a budget, points, the front."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import tabular
from ..compare.gating import Parity
from ..errors import UsageError
from ..onnxfile.graph import module_of_name
from ..tracking import Progress
from .ptq import QuantizeReport
from .recipe import Override, Recipe


class Judge(Protocol):
    """What a report keeps of its search, so that further points can be made and measured."""

    def __call__(self, point: Point, progress: Progress | None = None) -> Point:
        """Return the point, measured."""
        ...

    def write(self, recipe: Recipe, destination: str | Path) -> QuantizeReport:
        """Quantize the searched model by a recipe."""
        ...


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


@dataclass(frozen=True, repr=False)
class MixedReport(tabular.Table):
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
    judge: Judge | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def point(self) -> Point:
        """The chosen point."""
        return self.front[self.chosen]

    def recipe_of(self, index: int) -> Recipe:
        """Return another point of the front as a recipe."""
        if index == self.chosen:
            return self.recipe
        return mixed_recipe(self.base, self.front[index].wide, self.narrow, f"point {index}")

    def blocks(self, index: int | None = None) -> dict[str, tuple[tuple[str, ...], int]]:
        """Return the wide nodes of the chosen point, or another one, by block.

        Returns
        -------
        dict
            In topological order: block, its wide nodes (at least one), how many nodes it has.
        """
        wide = set(self.front[self.chosen if index is None else index].wide)
        blocks: dict[str, list[str]] = {}
        for name in self.nodes:
            blocks.setdefault(_block(name), []).append(name)
        inside = {block: tuple(n for n in names if n in wide) for block, names in blocks.items()}
        return {block: (inside[block], len(blocks[block])) for block in blocks if inside[block]}

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
        found = self._judge()(self.front[index], progress)
        front = (*self.front[:index], found, *self.front[index + 1 :])
        return dataclasses.replace(self, front=front)

    def write(self, destination: str | Path, index: int | None = None) -> QuantizeReport:
        """Quantize the chosen point, or another one, to a file, with the ranges of the search.

        Raises
        ------
        UsageError
            As for `measure`.
        """
        return self._judge().write(
            self.recipe_of(self.chosen if index is None else index), destination
        )

    def _judge(self) -> Judge:
        if self.judge is None:
            raise UsageError(
                "This report came without its model and images: nothing can be measured or "
                "written. Search again (quantize.mixed.search)."
            )
        return self.judge

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
                f"{found.sqnr_db:.1f}" if found else "-",
                str(found.agreement or "-") if found else "-",
            ))  # fmt: skip
        columns = (
            "point", "16-bit nodes", "% of MACs", "converts", "MB", "predicted dB", "measured dB",
            "agreement",
        )  # fmt: skip
        notes = [
            f"Measured on {self.n} calibration images with ONNX Runtime, for choosing only: "
            "accuracy is judged on others.",
        ]
        wide = [f"{block} ({len(names)} of {n})" for block, (names, n) in self.blocks().items()]
        notes.append(
            "Nodes at 16 bits in the chosen point, by block (its recipe names them): "
            + (", ".join(wide) or "none") + "."
        )  # fmt: skip
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


def _block(name: str) -> str:
    """Return the block of a node: ``features.4`` for what lies in it, else its module or name."""
    module = module_of_name(name)
    found = re.match(r"[^.]+\.\d+", module)
    return found[0] if found else module or name.strip("/")


def mixed_recipe(base: Recipe, wide: Sequence[str], narrow: Sequence[str], about: str) -> Recipe:
    """Return the base with 16-bit activations for some nodes and 4-bit weights for others."""
    import glob

    added = [Override(node=glob.escape(name), activations=16) for name in wide]
    added += [Override(node=glob.escape(name), weights=4) for name in narrow]
    return base.replaced(
        name=f"{base.name}_mixed" if not base.name.endswith("_mixed") else base.name,
        about=f"mixed precision: {about}",
        overrides=(*base.overrides, *added),
    )
