"""What each quantized layer costs at the logits, measured both ways, and why.

*Alone*: only this layer is quantized, everything else is float. *Without*: everything is quantized
but this layer. The first says how much noise a layer makes, the second how much would be won by
sparing it; they differ where noise of several layers adds up or is masked.
"""

from __future__ import annotations

import fnmatch
import functools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import metrics
from ..errors import LabError, UnknownNameError
from ..graph import read, with_shapes
from ..runtime import OrtRunner, Runner, connect
from . import tabular
from .qdq_edit import Unit, in_float, units
from .reasons import Facts, facts, sentences

if TYPE_CHECKING:
    import onnx
    import pandas as pd

Progress = Callable[[Iterable, str], Iterable]


@dataclass(frozen=True)
class Cost:
    """One layer's cost.

    Attributes
    ----------
    name, op, module, tensor
        The node, its operator, its module, and the tensor that it writes.
    alone_db
        Logit SQNR when only this layer is quantized; low is costly. NaN where it was refused.
    without_db
        Logit SQNR when all but this layer is quantized; high is costly. NaN where refused.
    gain_db
        `without_db` minus the logit SQNR of the whole quantized model.
    share
        Part of the sum of all layers' noise alone, 0 to 1.
    facts
        What was measured on the layer's own tensors.
    why
        Sentences that follow from `facts`, the weightiest first.
    refused
        Why a runtime did not take one of the two graphs, ``""`` if it took both.
    """

    name: str
    op: str
    module: str
    tensor: str
    alone_db: float
    without_db: float
    gain_db: float
    share: float
    facts: Facts
    why: tuple[str, ...]
    refused: str = ""

    @property
    def label(self) -> str:
        """Module and operator, or the node's name where it knows no module."""
        return f"{self.module} {self.op}" if self.module else self.name


@dataclass(frozen=True)
class SensitivityReport:
    """Every layer's cost, in topological order.

    Attributes
    ----------
    reference, candidate, runtime
        File names, and what ran them.
    n
        Number of images.
    whole_db
        Logit SQNR of the whole quantized model.
    rows
        One `Cost` per layer.
    """

    reference: str
    candidate: str
    runtime: str
    n: int
    whole_db: float
    rows: tuple[Cost, ...]

    def costliest(self, k: int = 5) -> tuple[Cost, ...]:
        """Return the `k` layers that make most noise alone, the worst first."""
        known = [row for row in self.rows if np.isfinite(row.share)]
        return tuple(sorted(known, key=lambda row: -row.share)[:k])

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a pandas table, the facts as columns."""
        import pandas as pd

        rows = [{**asdict(row), **asdict(row.facts)} for row in self.rows]
        return pd.DataFrame(rows).drop(columns=["facts"])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {
            "reference": self.reference, "candidate": self.candidate, "runtime": self.runtime,
            "n": self.n, "whole_db": self.whole_db, "rows": [asdict(row) for row in self.rows],
        }  # fmt: skip

    def explained(self, k: int = 5) -> str:
        """Return the `k` costliest layers and why, in words."""
        named = {1: "layer costs", 2: "two layers cost", 3: "three layers cost"}
        count = named.get(k, f"{ {4: 'four', 5: 'five'}.get(k, k) } layers cost")
        lines = [f"These {count} most (share of all layers' noise at the logits):"]
        for row in self.costliest(k):
            why = "; ".join(row.why[:2]) or "nothing stands out: its noise is that of its bits"
            lines.append(f"  {100 * row.share:4.1f} %  {row.label}: {why}.")
        return "\n".join(lines)

    def _parts(self) -> tuple:
        title = (
            f"{self.candidate} on {self.runtime}, against {self.reference}: {len(self.rows)} "
            f"layers, {self.n} images; the whole: {self.whole_db:.1f} dB at the logits"
        )
        rows = [
            (
                tabular.shortened(r.label, 46), _db(r.alone_db), _db(r.without_db),
                f"{r.gain_db:+.1f}" if np.isfinite(r.gain_db) else "-",
                f"{100 * r.share:.1f}" if np.isfinite(r.share) else "-",
                _db(r.facts.sqnr_db), f"{100 * r.facts.clipped:.2g}",
            )
            for r in self.rows
        ]  # fmt: skip
        columns = ("layer", "alone dB", "without dB", "gain dB", "share %", "own dB", "clipped %")
        refused = {row.refused for row in self.rows if row.refused}
        notes = [*self.explained().splitlines(), *(f"Refused: {reason}" for reason in refused)]
        return title, columns, rows, notes

    def __str__(self) -> str:
        return tabular.text(*self._parts())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return tabular.markup(*self._parts())


def _db(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1f}"


def sensitivity(
    float_onnx: str | Path,
    quantized_onnx: str | Path,
    inputs: np.ndarray,
    backend: str = "ort",
    *,
    layers: Sequence[str] = ("*",),
    soc: str = "SM8550",
    progress: Progress | None = None,
) -> SensitivityReport:
    """Quantize each layer alone, leave each layer in float, and say what it costs and why.

    Parameters
    ----------
    float_onnx, quantized_onnx
        The float file and the QDQ file that was made from it (for a recipe that equalizes
        weights, inner tensors differ by a factor; the logits do not).
    inputs
        (n, 3, size, size) float32, normalized; 16 to 64. Not images that accuracy is judged on.
    backend
        ``"ort"`` or ``"htp"``. The simulator compiles two graphs per layer: choose `layers`. It
        may refuse a float layer between integers; the row then carries its REASON.
    layers
        Globs over node names.
    soc
        The chip, for ``"htp"``.
    progress
        Called as ``progress(iterable, description)`` around the layers.

    Raises
    ------
    UsageError
        The second file is not quantized.
    UnknownNameError
        No layer has such a name.
    """
    float_onnx, quantized_onnx = Path(float_onnx), Path(quantized_onnx)
    reference, quantized = read(float_onnx), read(quantized_onnx)
    known = units(quantized)
    chosen = [u for u in known if any(fnmatch.fnmatchcase(u.name, g) for g in layers)]
    if not chosen:
        raise UnknownNameError("layer", layers[0], [unit.name for unit in known])
    settings = {"soc": soc} if backend == "htp" else {"threads": 1}
    open_ = functools.partial(connect, backend=backend, **settings)
    with OrtRunner(float_onnx, threads=1) as runner:
        exact = runner.run(inputs)
    whole, _, runtime = _run(quantized, inputs, open_)
    whole_db = _sqnr(exact, whole)
    measured = facts(reference, quantized, chosen, inputs)
    rows = []
    for unit in progress(chosen, "sensitivity") if progress else chosen:
        others = [u for u in known if u.name != unit.name]
        alone, first, _ = _run(in_float(quantized, reference, others), inputs, open_)
        without, second, _ = _run(in_float(quantized, reference, [unit]), inputs, open_)
        rows.append((unit, _sqnr(exact, alone), _sqnr(exact, without), first or second))
    noise = np.array([10 ** (-alone / 10) for _, alone, _, _ in rows])
    shares = noise / np.nansum(noise) if np.nansum(noise) > 0 else np.zeros(len(rows))
    costs = tuple(
        _cost(row, whole_db, share, measured[row[0].name])
        for row, share in zip(rows, shares.tolist(), strict=True)
    )
    return SensitivityReport(
        float_onnx.name, quantized_onnx.name, runtime, len(inputs), whole_db, costs
    )


def _cost(row: tuple[Unit, float, float, str], whole: float, share: float, found: Facts) -> Cost:
    unit, alone, without, refused = row
    return Cost(
        unit.name, unit.op, unit.module, unit.tensor, alone, without, without - whole, share,
        found, sentences(found), refused,
    )  # fmt: skip


def _run(
    model: onnx.ModelProto, inputs: np.ndarray, open_: Callable[[Path], Runner]
) -> tuple[np.ndarray | None, str, str]:
    """Return logits, why there are none, and the runtime's words."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="labutils-") as folder:
        path = Path(folder) / "variant.onnx"
        onnx.save_model(with_shapes(model), str(path))
        try:
            with open_(path) as runner:
                return runner.run(inputs), "", runner.runtime
        except LabError as error:
            return None, " ".join(str(error).split())[:300], ""


def _sqnr(exact: np.ndarray, found: np.ndarray | None) -> float:
    return float("nan") if found is None else float(metrics.sqnr_db(exact, found))
