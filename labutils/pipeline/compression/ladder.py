"""The stages of a compression beside each other, and what is missing of the budget."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ... import paths, tabular
from ...metrics import PairedDifference, Proportion
from .plan import CompressionBudget

_COLUMNS = ("stage", "n", "top-1 %", "points [95 %]", "agrees %", "MACs", "MB", "time", "gate")


@dataclass(frozen=True)
class CompressionRung:
    """A stage and what was measured of it.

    Attributes
    ----------
    name, file
        The stage, and its file's name.
    n
        Images.
    top1, agreement
        Share that is right; share with the same first class as the original.
    points
        Top-1 minus that of the better original, in percentage points, on the same images.
    macs, parameters
        As shares of the original's.
    megabytes
        Of the file.
    latency
        Time on ONNX Runtime as a share of the original's; None where the file does not run there.
    gate
        ``passed``, ``FAILED``, or nothing for what the others are compared with.
    """

    name: str
    file: str
    n: int
    top1: Proportion
    agreement: Proportion
    points: PairedDifference
    macs: float
    parameters: float
    megabytes: float
    latency: float | None
    gate: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, shares from 0 to 1."""
        return {
            "stage": self.name, "file": self.file, "n": self.n,
            "top1": self.top1.value, "top1_low": self.top1.interval[0],
            "top1_high": self.top1.interval[1], "agreement": self.agreement.value,
            "points": self.points.value, "points_low": self.points.interval[0],
            "points_high": self.points.interval[1], "macs": self.macs,
            "parameters": self.parameters, "megabytes": self.megabytes, "latency": self.latency,
            "gate": self.gate,
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class CompressionLadder(tabular.Table):
    """What a compression made.

    Attributes
    ----------
    model, target, images
        What was compressed, for what, and measured on which pictures.
    budget
        What was wanted.
    rows
        The stages, the original first.
    reference
        The stage that points are against.
    artifact
        The file that passed every gate; None where none did.
    result
        The stage of the artifact in ONNX Runtime, which the budget is about; None without one.
    missed
        What of the budget it misses, and what would reach it.
    """

    model: str
    target: str
    images: str
    budget: CompressionBudget
    rows: tuple[CompressionRung, ...]
    reference: str
    artifact: Path | None
    result: str | None
    missed: tuple[str, ...]

    def __getitem__(self, name: str) -> CompressionRung:
        return next(row for row in self.rows if row.name == name)

    @property
    def ok(self) -> bool:
        """Whether there is an artifact, and it keeps to the budget."""
        return self.artifact is not None and not self.missed

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "model": self.model, "target": self.target, "images": self.images,
            "budget": asdict(self.budget), "reference": self.reference,
            "rows": [row.to_dict() for row in self.rows],
            "artifact": self.artifact and self.artifact.name, "result": self.result,
            "missed": list(self.missed), "ok": self.ok,
        }  # fmt: skip

    def to_csv(self, file: str | Path) -> Path:
        """Write one line per stage; the file appears at once."""
        text = io.StringIO()
        rows = [row.to_dict() for row in self.rows]
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        paths.write_text(file, text.getvalue())
        return Path(file)

    def _parts(self) -> tuple[str, Sequence[str], tabular.Rows, Iterable[str]]:
        title = f"{self.model} for {self.target}, budget: {self.budget}"
        rows = [
            (
                row.name, str(row.n), f"{100 * row.top1.value:.2f}", _points(row.points),
                f"{100 * row.agreement.value:.1f}", f"{100 * row.macs:.1f} %",
                f"{row.megabytes:.2f}", "-" if row.latency is None else f"{row.latency:.2f}",
                row.gate or "-",
            )
            for row in self.rows
        ]  # fmt: skip
        notes = [
            f"points: against {self.reference}, on the same n images; agrees: with the original. "
            "MACs and time: shares of the original's, time on ONNX Runtime, one thread, in turns.",
            f"Images: {self.images}. The DLC runs on the simulator, on fewer of them.",
        ]
        if self.artifact is None:
            notes.append("No file passed the gate: nothing is handed on.")
        else:
            notes.append(f"Artifact: {self.artifact.name}, from the stage {self.result}.")
        if self.missed:
            notes.append("The budget is NOT met; this is the nearest point:")
            notes += [f"- {line}" for line in self.missed]
        elif self.artifact is not None:
            notes.append("The budget is met.")
        return title, _COLUMNS, rows, notes


def _points(points: PairedDifference) -> str:
    low, high = points.interval
    return f"{points.value:+.2f} [{low:+.2f}, {high:+.2f}]"


def missed(
    budget: CompressionBudget,
    rows: Sequence[CompressionRung],
    result: str,
    float_stage: str,
    short: Sequence[str],
    refused: Sequence[str],
) -> tuple[str, ...]:
    """Return what of a budget a result misses, and what would reach it, a sentence each.

    Parameters
    ----------
    budget
        What was wanted.
    rows, result, float_stage
        The ladder; its stage that is judged; the stage in float that it was made from.
    short
        What the searches said of widths and bits: said where MACs, parameters, time or size are
        missed.
    refused
        Why a file is not handed on: always said.
    """
    by_name = {row.name: row for row in rows}
    found, floating = by_name[result], by_name[float_stage]
    said = []
    shares = {"macs": found.macs, "parameters": found.parameters, "latency": floating.latency}
    words = {"macs": "MACs", "parameters": "parameters", "latency": "time"}
    for name, share in shares.items():
        wanted = getattr(budget, name)
        if wanted is not None and (share is None or share > wanted):
            found_share = "unknown" if share is None else f"{100 * share:.1f} %"
            said.append(f"{name}: {found_share} of the {words[name]}, not {100 * wanted:g} %.")
    if budget.megabytes is not None and found.megabytes > budget.megabytes:
        said.append(f"megabytes: {found.megabytes:.2f} MB, not {budget.megabytes:g}.")
    said += [line for line in short if said and line]
    if budget.points is not None and found.points.value < -budget.points:
        said.append(_points_missed(budget.points, found, floating))
    return tuple(said + [line for line in refused if line])


def _points_missed(wanted: float, found: CompressionRung, floating: CompressionRung) -> str:
    """Say where the points were lost, and what would bring them back."""
    lost, in_float = -found.points.value, -floating.points.value
    line = (
        f"points: {found.points}, not at least {-wanted:g}. {floating.name}: {-in_float:+.2f}; "
        f"from there to {found.name}: {in_float - lost:+.2f}."
    )
    if in_float > wanted and floating.macs < 1:
        share = 1 - (1 - floating.macs) * wanted / in_float
        return (
            f"{line} What would reach it: more steps of pruning, or about macs={share:.2f} (on a "
            "straight line from the original to this point; points fall faster below)."
        )
    if in_float > wanted:
        return f"{line} What would reach it: more steps after the surgery, or exact rules."
    return (
        f"{line} What would reach it: more steps with the rounding in place, a greater mac_share "
        "in the plan (16 bits for more layers), or more megabytes (fewer layers at 4 bits)."
    )
