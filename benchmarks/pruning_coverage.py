"""Which networks lose 30 % of their channels: the 39 classifiers of surgery_coverage.py.

    python benchmarks/pruning_coverage.py [--models NAME ... -o FOLDER] [--fresh]

Each network is built with random weights (seed 0, conditioned as in surgery_coverage.py) at a small
size. 30 % of the channels of every group that can go are masked (L1, per layer, multiples of 8) and
removed; the smaller network must compute what the masked one does. It is exported, compared with
PyTorch in ONNX Runtime, repaired with exact rules, written as a DLC and run through the parity gate
on the HTP simulator (fp16). A failure is a row with its reason. Every network has its own process,
and what is done is kept by the content of the code: a run that was stopped resumes.

Writes benchmarks/results/pruning_coverage.csv and .txt.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import content_cache
import numpy as np
import results
import surgery_coverage
from surgery_coverage import CLASSIFIERS, GATE_IMAGES, TIMEOUT, built, on_target, one_line

import labutils
from labutils import export, paths, prune, tabular
from labutils.errors import LabError
from labutils.images import data

RATIO, TARGET = 0.3, "qnn"
PROGRAM = "pruning_coverage"


@dataclass(frozen=True)
class Row:
    """A network.

    Attributes
    ----------
    groups, refused
        Groups of channels that can go; layers that are refused.
    macs, macs_left, parameters, parameters_left
        For one image.
    departure
        Of the smaller network from the masked one, relative to its outputs' spread, in double
        precision.
    onnx
        Cosine of the exported file and PyTorch.
    dlc, gate
        Whether a DLC was written strictly, and its lowest cosine on the HTP simulator.
    reason
        What failed.
    left
        Why layers were refused, with how many.
    """

    model: str
    size: int = 0
    groups: int = 0
    refused: int = 0
    macs: int = 0
    macs_left: int = 0
    parameters: int = 0
    parameters_left: int = 0
    departure: str = ""
    onnx: str = ""
    dlc: str = ""
    gate: str = ""
    reason: str = ""
    left: str = ""
    seconds: float = 0.0


def main() -> None:
    """Run what has not been run, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*CLASSIFIERS], metavar="NAME")
    parser.add_argument("--fresh", action="store_true", help="forget what was done before")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(asdict(row_of(chosen.one))), flush=True)
        return
    place = results.place(chosen.output, chosen.models == [*CLASSIFIERS])
    if place is None:
        parser.error("pass -o FOLDER: some of the networks do not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    key = content_cache.key(
        code=content_cache.code(labutils, Path(__file__)),
        versions=paths.versions("torch", "torchvision", "timm", "torch-pruning", "onnxruntime"),
    )
    state = content_cache.folder(PROGRAM) / f"rows_{key}.jsonl"
    kept = results.KeptRows(state, Row, lambda row: row.model)
    done = kept.complete(chosen.models, in_a_process_of_its_own)
    write([done[name] for name in chosen.models], place)


def in_a_process_of_its_own(name: str) -> list[Row]:
    """Return a network's row; a crash or a hang is one, too."""
    rows, why = results.rows_of_a_process(__file__, name, Row, TIMEOUT)
    return rows or [Row(name, reason=why)]


def row_of(name: str) -> Row:
    """Prune, compare, export, convert and gate a network."""
    began, row = time.monotonic(), Row(name)
    try:
        network, preprocessing = built(name)
        row = dataclasses.replace(row, size=max(data.sides(preprocessing.size)))
        masked = copy.deepcopy(network)
        plan = prune.plan(masked, ratio=RATIO, size=row.size)
        (macs, parameters), (fewer, smaller) = plan.cost.total(), plan.cost.total(plan.stays)
        why = Counter(refusal.reason for refusal in plan.left)
        row = dataclasses.replace(
            row, groups=len(plan.parts), refused=len(plan.left), macs=macs, macs_left=fewer,
            parameters=parameters, parameters_left=smaller,
            left=one_line("; ".join(f"{n} x {reason}" for reason, n in why.items())),
        )  # fmt: skip
        prune.apply_masks_(masked, plan)
        removal = prune.removed(masked, size=row.size)
        row = dataclasses.replace(row, departure=f"{removal.departure:.0e}")
        row = exported(row, removal.network, preprocessing)
    except LabError as error:
        row = dataclasses.replace(row, reason=one_line(error))
    return dataclasses.replace(row, seconds=round(time.monotonic() - began, 1))


def exported(row: Row, network: object, preprocessing: data.Preprocessing) -> Row:
    """Export the smaller network, and take it to a DLC that passed the gate."""
    inputs = preprocessing(np.asarray(data.load("val", GATE_IMAGES, preprocessing.size).images))
    with tempfile.TemporaryDirectory(prefix="labutils-pruning-") as folder:
        file = Path(folder, "model.onnx")
        report = export.to_onnx(network, file, preprocessing=preprocessing)
        row = dataclasses.replace(row, onnx=f"{report.cosine:.6f}")
        found = on_target(
            surgery_coverage.Row(row.model, TARGET, row.size), network, file, inputs, {}
        )
    return dataclasses.replace(row, dlc=found.dlc, gate=found.gate, reason=found.reason)


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write the CSV, and the text table with its totals."""
    images = f"split val (drawn), {GATE_IMAGES} per network for the gate; random weights"
    head = results.head(
        results.command("pruning_coverage.py"), images, "torch", "torchvision", "timm",
        "torch-pruning", "onnxruntime", "onnxruntime-qnn", developed=False,
    )  # fmt: skip
    results.write_csv(folder / "pruning_coverage.csv", head, rows)
    columns = ("model", "px", "groups", "refused", "MACs", "parameters", "equal", "DLC", "gate")
    cells = [
        (r.model, str(r.size), str(r.groups), str(r.refused), change(r.macs, r.macs_left),
         change(r.parameters, r.parameters_left), r.departure or "-", r.dlc or "-", r.gate or "-")
        for r in rows
    ]  # fmt: skip
    made = [row for row in rows if row.departure]
    passed = sum(bool(row.gate) and not row.gate.startswith("FAILED") for row in rows)
    notes = [
        f"Of {len(rows)} classifiers {len(made)} lost channels and compute what the masked network "
        f"computes; {passed} of the smaller ones became a DLC and passed the HTP fp16 gate.",
        "",
        *(f"{row.model}: {row.reason}" for row in rows if row.reason),
        *(f"{row.model}, refused: {row.left}" for row in rows if row.left),
    ]
    title = "Channels that 39 classifiers can lose: 30 % of every group, multiples of 8"
    words = "\n".join((__doc__ or "").strip().splitlines()[4:-2])
    table = tabular.text(title, columns, cells, notes)
    text_file = "\n".join([*head, "", words, "", table]) + "\n"
    paths.write_text(folder / "pruning_coverage.txt", text_file)
    print(notes[0])


def change(before: int, after: int) -> str:
    """Return the change in percent."""
    return f"{100 * (after / before - 1):+.1f} %" if before else "-"


if __name__ == "__main__":
    main()
