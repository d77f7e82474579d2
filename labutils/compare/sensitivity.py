"""What each quantized layer costs at the logits, measured both ways, and why.

*Alone*: only this layer is quantized, everything else is float. *Without*: everything is quantized
but this layer. The first says how much noise a layer makes, the second how much would be won by
sparing it; they differ where noise of several layers adds up or is masked.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import metrics, paths, tabular
from ..errors import ConvertError, LabError, MissingToolError, UnknownNameError, UsageError
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import with_shapes
from ..runtime import OrtRunner, Runner, connect
from ..tracking import Progress, tracked
from .qdq_edit import Unit, for_htp, in_float, units
from .reasons import Facts, facts, sentences

_EQUALIZED = "/equalized."  # in the names of nodes that `quantize.gates` adds

if TYPE_CHECKING:
    import onnx
    import pandas as pd


_COLUMNS = 96  # of a notebook's plain text


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
        Part of the sum of all layers' noise alone, 0 to 1; on ONNX Runtime, if only the `worst`
        were asked of another runtime.
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


@dataclass(frozen=True, repr=False)
class SensitivityReport(tabular.Table):
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
    ranked
        Of how many layers these are the costliest on ONNX Runtime; 0 if none were left out.
    """

    reference: str
    candidate: str
    runtime: str
    n: int
    whole_db: float
    rows: tuple[Cost, ...]
    ranked: int = 0

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
            "n": self.n, "whole_db": self.whole_db, "ranked": self.ranked,
            "rows": [asdict(row) for row in self.rows],
        }  # fmt: skip

    def explained(self) -> str:
        """Return the five costliest layers and why, as text, in lines that fit a notebook."""
        return "\n".join(
            textwrap.fill(line, _COLUMNS, subsequent_indent=" " * 10) for line in self._reasons()
        )

    def _reasons(self) -> list[str]:
        costliest = self.costliest(5)
        count = {2: "two", 3: "three", 4: "four", 5: "five"}.get(len(costliest), len(costliest))
        these = "This layer costs" if count == 1 else f"These {count} layers cost"
        lines = [f"{these} most (share of all layers' noise at the logits):"]
        for row in costliest:
            why = "; ".join(row.why[:2]) or "nothing stands out: its noise is that of its bits"
            lines.append(f"  {100 * row.share:4.1f} %  {row.label}: {why}.")
        return lines

    def _parts(self) -> tuple:
        count = f"{len(self.rows)} layer" + "s" * (len(self.rows) != 1)
        of = f" (the costliest of {self.ranked})" if self.ranked else ""
        title = (
            f"{self.candidate} on {self.runtime}, against {self.reference}: {count}{of}, "
            f"{self.n} images; the whole: {self.whole_db:.1f} dB at the logits"
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
        refused = dict.fromkeys(f"{r.label}: {r.refused}" for r in self.rows if r.refused)
        notes = [*self._reasons(), *(f"Refused, {reason}" for reason in refused)]
        return title, columns, rows, notes


def _db(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1f}"


def sensitivity(
    float_onnx: OnnxFile | str | Path,
    quantized_onnx: OnnxFile | str | Path,
    inputs: np.ndarray,
    backend: str = "ort",
    *,
    layers: Sequence[str] = ("*",),
    worst: int | None = None,
    soc: str = "SM8550",
    progress: Progress | None = None,
) -> SensitivityReport:
    """Quantize each layer alone, leave each layer in float, and say what it costs and why.

    Parameters
    ----------
    float_onnx, quantized_onnx
        The float file and the QDQ file that was made from it (for a recipe that equalizes
        weights, inner tensors differ by a factor; the logits do not). For a recipe with
        `equalize_gates` the float file is that of `quantize.ranges.equalized_gates`: layers are
        left in float with its weights.
    inputs
        (n, 3, size, size) float32, normalized; 16 to 64. Not images that accuracy is judged on.
    backend
        ``"ort"`` or ``"htp"``. The simulator compiles two graphs per layer: choose `layers`, or
        the `worst`. It may refuse a float layer between integers; the row then carries its REASON.
        What its compiler would take away or refuse for form is written so that it stays
        (`qdq_edit.for_htp`).
    layers
        Globs over node names.
    worst
        At most this many: those that cost most on ONNX Runtime, which is asked about all first.
    soc
        The chip, for ``"htp"``.
    progress
        Called as ``progress(iterable, description)`` around the layers.

    Raises
    ------
    UsageError
        The second file is not quantized, or has equalized gates, and the float file has not.
    UnknownNameError
        No layer has such a name.
    """
    float_onnx, quantized_onnx = OnnxFile.of(float_onnx), OnnxFile.of(quantized_onnx)
    reference, quantized = float_onnx.whole, quantized_onnx.whole
    known = units(quantized)
    _refuse_other_gates(reference, known, float_onnx.name, quantized_onnx.name)
    chosen = [u for u in known if any(fnmatch.fnmatchcase(u.name, g) for g in layers)]
    if not chosen:
        raise UnknownNameError("layer", layers[0], [unit.name for unit in known])
    if worst is not None and worst < 1:
        raise UsageError(f"worst={worst}: one layer or more.")
    settings = {"soc": soc} if backend == "htp" else {"threads": 1}
    open_ = functools.partial(connect, backend=backend, **settings)
    with OrtRunner(float_onnx, threads=1) as runner:
        exact = runner.run(inputs)
        open_ = functools.partial(open_, output=runner.output or None)
    whole, reason, runtime = _run(quantized, inputs, open_)
    if whole is None:
        raise ConvertError(f"{quantized_onnx.name} as a whole is refused: {reason}")
    asked = _Asked(
        quantized, reference, known, inputs, exact, backend == "htp", runner.output or None
    )
    ranking = asked.ranked(chosen, progress) if (worst or len(chosen)) < len(chosen) else {}
    kept = chosen
    if ranking:
        costliest = sorted(ranking, key=lambda name: ranking[name])[:worst]
        kept = [unit for unit in chosen if unit.name in costliest]
    whole_db = _sqnr(exact, whole)
    measured = facts(reference, quantized, kept, inputs)
    rows = []
    for unit in tracked(kept, "sensitivity", "layers", progress):
        (alone, first), (without, second) = asked.alone(unit, open_), asked.without(unit, open_)
        rows.append((unit, alone, without, first or second))
    noise = {
        name: 10 ** (-db / 10)
        for name, db in (ranking or {unit.name: db for unit, db, *_ in rows}).items()
    }
    total = np.nansum(list(noise.values())) or 1.0
    costs = tuple(
        _cost(row, whole_db, float(noise[row[0].name] / total), measured[row[0].name])
        for row in rows
    )
    return SensitivityReport(
        float_onnx.name, quantized_onnx.name, runtime, len(inputs), whole_db, costs,
        len(chosen) if ranking else 0,
    )  # fmt: skip


def _refuse_other_gates(
    reference: onnx.ModelProto, known: list[Unit], name: str, quantized: str
) -> None:
    """Refuse layers whose weights are scaled in one file, and in the other as they were."""
    there = {node.name for node in reference.graph.node}
    added = [u.name for u in known if _EQUALIZED in u.name and u.name not in there]
    if added:
        raise UsageError(
            f"{quantized} has equalized gates ({added[0]}), and {name} has not: a layer left in "
            "float would have other weights than its neighbours expect. Pass the float file that "
            "quantize.ranges.equalized_gates(...) writes from the same images."
        )


@dataclass(frozen=True)
class _Asked:
    """What every layer is asked with: both models, all units, images and their exact logits."""

    quantized: onnx.ModelProto
    reference: onnx.ModelProto
    known: list[Unit]
    inputs: np.ndarray
    exact: np.ndarray
    htp: bool
    output: str | None = None

    def alone(self, unit: Unit, open_: Callable[[OnnxFile], Runner]) -> tuple[float, str]:
        """Return the logit SQNR with only this unit quantized, and why there is none."""
        return self._found([u for u in self.known if u.name != unit.name], open_)

    def without(self, unit: Unit, open_: Callable[[OnnxFile], Runner]) -> tuple[float, str]:
        """Return the logit SQNR with all but this unit quantized, and why there is none."""
        return self._found([unit], open_)

    def ranked(self, chosen: list[Unit], progress: Progress | None) -> dict[str, float]:
        """Return each unit's logit SQNR alone, on ONNX Runtime."""
        ort = dataclasses.replace(self, htp=False)
        on_ort: Callable[[OnnxFile], Runner] = functools.partial(
            OrtRunner, threads=1, output=self.output
        )
        tried = tracked(chosen, "ranking", "layers", progress)
        return {unit.name: ort.alone(unit, on_ort)[0] for unit in tried}

    def _found(self, floats: list[Unit], open_: Callable[[OnnxFile], Runner]) -> tuple[float, str]:
        model = in_float(self.quantized, self.reference, floats)
        if self.htp:
            model = for_htp(with_shapes(model))
        logits, refused, _ = _run(model, self.inputs, open_)
        return _sqnr(self.exact, logits), refused


def _cost(row: tuple[Unit, float, float, str], whole: float, share: float, found: Facts) -> Cost:
    unit, alone, without, refused = row
    return Cost(
        unit.name, unit.op, unit.module, unit.tensor, alone, without, without - whole, share,
        found, sentences(found), refused,
    )  # fmt: skip


def _run(
    model: onnx.ModelProto, inputs: np.ndarray, open_: Callable[[OnnxFile], Runner]
) -> tuple[np.ndarray | None, str, str]:
    """Return logits, why there are none, and the runtime's words."""
    with paths.scratch() as folder:
        file = OnnxFile.write(folder / "variant.onnx", with_shapes(model))
        try:
            with open_(file) as runner:
                return runner.run(inputs), "", runner.runtime
        except MissingToolError:
            raise
        except LabError as error:
            return None, _reason(error), ""


def _reason(error: LabError) -> str:
    """Return what a runtime said of single nodes, without the headline; else all but the cure."""
    said = [line.strip(" -") for line in str(error).splitlines() if line.startswith("  - ")]
    whole = " ".join(str(error).partition("What to do:")[0].split())
    return ("; ".join(dict.fromkeys(said)) or whole)[:600]


def _sqnr(exact: np.ndarray, found: np.ndarray | None) -> float:
    return float("nan") if found is None else float(metrics.sqnr_db(exact, found))
