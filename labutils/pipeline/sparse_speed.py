"""Which runtimes compute faster where weights are zeros: measured here, on the network itself."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import export, paths, quantize, runtime, tabular
from ..errors import UsageError
from ..quantize import PRESETS

if TYPE_CHECKING:
    from torch import nn

PROFIT = 0.9
"""A runtime profits where it takes at most this share of the time: less is noise of the clock."""

STEADY = 0.1
"""By how much two identical networks may differ, for a measurement to count."""

_WARM = 3  # turns that do not count

_NOT_MEASURED = (
    "Not measured: chips. The HTP simulator tells no time, and its DLC stores these weights dense. "
    "NVIDIA's sparse tensor cores document 2:4, TI's MMA documents 41:64; ask the vendor's tool."
)


@dataclass(frozen=True)
class SparseTime:
    """A runtime's time with zeros among the weights, beside that without.

    Attributes
    ----------
    runtime
        What ran.
    ratio
        Shortest time with zeros as a share of that without, in turns, one thread.
    control
        The same for a second copy without zeros: what the clock alone does.
    """

    runtime: str
    ratio: float
    control: float

    @property
    def clear(self) -> bool:
        """Whether two networks without zeros took nearly the same time."""
        return abs(self.control - 1) <= STEADY

    @property
    def profits(self) -> bool:
        """Whether the zeros make it faster, beyond what the clock does."""
        return self.clear and self.ratio <= PROFIT * min(1.0, self.control)

    @property
    def word(self) -> str:
        """``yes``, ``no`` or ``unclear``."""
        return "yes" if self.profits else "no" if self.clear else "unclear"


@dataclass(frozen=True, repr=False)
class SparseSpeed(tabular.Table):
    """What zeros save, runtime by runtime.

    Attributes
    ----------
    network
        Its class.
    zeros_share
        Zeros among the weights under masks.
    rows
        One per runtime.
    """

    network: str
    zeros_share: float
    rows: tuple[SparseTime, ...]

    @property
    def verdict(self) -> str:
        """Which runtimes profit, in a sentence; where none does, it says none."""
        names = [row.runtime for row in self.rows if row.profits]
        unclear = [row.runtime for row in self.rows if not row.clear]
        said = f"The zeros make these faster: {', '.join(names)}."
        if not names:
            said = "None of these runtimes profits from the zeros: their kernels multiply by them."
            if len(unclear) == len(self.rows):
                said = "Nothing is known of these runtimes."
        if unclear:
            said += f" Unclear, because the machine was busy: {', '.join(unclear)}."
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        rows = [asdict(row) | {"profits": row.word} for row in self.rows]
        return {
            "network": self.network, "zeros_share": self.zeros_share, "rows": rows,
            "verdict": self.verdict,
        }  # fmt: skip

    def _parts(self) -> tuple[str, Sequence[str], tabular.Rows, Iterable[str]]:
        title = f"{self.network} with {100 * self.zeros_share:.0f} % zeros in masked weights: time"
        rows = [
            (row.runtime, f"{row.ratio:.2f}", f"{row.control:.2f}", row.word) for row in self.rows
        ]
        note = (
            "with zeros: time as a share of that without, shortest in turns, one thread; without, "
            f"again: the same of a second copy. It profits at {PROFIT:g} of that or less."
        )
        columns = ("runtime", "with zeros", "without, again", "profits")
        return title, columns, rows, (self.verdict, note, _NOT_MEASURED)


def measure_sparse_speed(
    model: nn.Module, *, size: int | None = None, turns: int = 30
) -> SparseSpeed:
    """Time a network with masks against itself without them, on each runtime of this machine.

    Parameters
    ----------
    model
        A network with masks of single weights; it is left as it is.
    size
        Side of the input in pixels; `prune.DEFAULT_SIZE` without.
    turns
        That count.

    Returns
    -------
    SparseSpeed
        PyTorch, ONNX Runtime in float and with 8-bit weights and activations.

    Raises
    ------
    UsageError
        There are no masks.
    """
    from .. import prune

    masks = {name: mask.keep for name, mask in prune.masks_of(model).items()}
    if not masks:
        raise UsageError(
            f"{type(model).__name__} has no masks: call prune.apply_masks_(model, plan) first."
        )
    side = size or prune.DEFAULT_SIZE
    image = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    kept = [keep for keep in masks.values() if keep.ndim > 1]
    share = 1 - sum(int(k.sum()) for k in kept) / max(1, sum(k.numel() for k in kept))
    zeros, dense = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    prune.set_masks_(zeros, masks)  # hard, also where a schedule is on its way
    prune.remove_(zeros)
    prune.remove_(dense, zeros=False)
    rows = [_row("PyTorch", {"zeros": zeros, "dense": dense}, image, turns)]
    with paths.scratch() as folder:
        for kind, suffix in (("float32", ".onnx"), ("int8", ".int8.onnx")):
            files = {
                name: _written(network, folder / f"{name}{suffix}", image, kind)
                for name, network in (("zeros", zeros), ("dense", dense))
            }
            rows.append(_row(f"ONNX Runtime, {kind}", files, image, turns))
    return SparseSpeed(type(model).__name__, share, tuple(rows))


def _written(network: nn.Module, file: Path, image: np.ndarray, kind: str) -> Path:
    """Write a network as ONNX; int8 as ONNX Runtime's own operators on integers."""
    import torch

    plain = file.with_name(f"{file.name.partition('.')[0]}.onnx")
    if not plain.exists():
        export.to_onnx(network, plain, example=torch.from_numpy(image))
    if kind == "float32":
        return plain
    recipe = PRESETS["int8_minmax"]
    counted = dataclasses.replace(recipe.calibration, images=len(image))
    quantize.static(plain, file, image, recipe.replaced(calibration=counted))
    return file


def _row(name: str, networks: dict[str, Any], image: np.ndarray, turns: int) -> SparseTime:
    import torch

    chosen = {
        "zeros": networks["zeros"], "dense": networks["dense"], "again": networks["dense"],
    }  # fmt: skip
    runners = {key: _connect(item) for key, item in chosen.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = _least_seconds(runners, image, turns)
    finally:
        torch.set_num_threads(before)
        for runner in runners.values():
            runner.close()
    whole = seconds["dense"]
    return SparseTime(name, seconds["zeros"] / whole, seconds["again"] / whole)


def _connect(item: Any) -> runtime.Runner:
    return runtime.connect(item, threads=1) if isinstance(item, Path) else runtime.connect(item)


def _least_seconds(
    runners: dict[str, runtime.Runner], image: np.ndarray, turns: int
) -> dict[str, float]:
    """Return each runner's shortest run, in turns.

    Not the median, as elsewhere: what is asked is whether kernels do less, and whatever else the
    machine does only adds to a run.
    """
    least = dict.fromkeys(runners, math.inf)
    for turn in range(_WARM + turns):
        for name, runner in runners.items():
            began = time.perf_counter()
            runner.run(image)
            if turn >= _WARM:
                least[name] = min(least[name], time.perf_counter() - began)
    return least
