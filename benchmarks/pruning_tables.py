"""What benchmarks/pruning.py writes: the table, and TI's tables on our data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import results
from pruning_rows import LARGE, RESNET, SMALL, TRAINING_SIDE, V2
from torch import nn

from labutils import paths, tabular
from labutils.lab import recorded
from labutils.prune import single_weights

PROGRAM = "pruning"
PACKAGES = ("torch", "torchvision", "torch-pruning", "onnxruntime", "onnxruntime-qnn")
PUBLISHED = {
    "30 % of the channels": ("ti30", {"ResNet50": (76.13, 74.07)}),
    "41:64": ("41of64", {"MobileNetV2": (71.88, 70.37), "ResNet50": (76.13, 76.02)}),
}
"""TI's tables (the README of its toolkit): our row's name, and its figures of ImageNet."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row of the table.

    Attributes
    ----------
    row, kind, way
        As in `pruning_rows.Row`.
    side
        Of the images, in pixels.
    top1, hits, n
        On the split.
    points, low, high
        Against the better of the original and the original trained as long, paired, and the ends
        of the 95 % interval.
    agreement
        Share of images with the same first class as the original.
    macs, parameters, latency
        As shares of the original's.
    zeros
        Share of the weights.
    megabytes
        Of the ONNX file.
    minutes
        Of training.
    gate
        The lowest cosine of the float DLC, or what went wrong.
    """

    row: str
    kind: str
    way: str
    side: int
    top1: float
    hits: int
    n: int
    points: float
    low: float
    high: float
    agreement: float
    macs: float
    parameters: float
    zeros: float
    megabytes: float
    latency: float
    minutes: float
    gate: str

    @property
    def difference(self) -> str:
        """The points with their interval."""
        return f"{self.points:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def shape_of(network: nn.Module, original: nn.Module) -> dict[str, Any]:
    """Return what a network lost: channels of layers before and after, and shares of zeros."""
    before = {x.name: original.get_submodule(x.name) for x in single_weights.layers_of(original)}
    widths, zeros = {}, {}
    for layer in single_weights.layers_of(network):
        weight = network.get_parameter(layer.parameter)
        if layer.name in before and before[layer.name].weight.shape != weight.shape:
            widths[layer.name] = [len(before[layer.name].weight), len(weight)]
        if share := float((weight == 0).float().mean()):
            zeros[layer.name] = round(share, 4)
    return {"widths": widths, "zeros": zeros}


def write(rows: Sequence[Measured], head: list[str], chosen: Any, folder: Path) -> None:
    """Write the table as CSV and as text."""
    results.write_csv(folder / f"{PROGRAM}.csv", head, rows)
    title = f"Pruned networks on {chosen.image_set}, {chosen.steps} steps each"
    text = "\n".join([*head, "", table(rows, title), "", *ti_tables(rows, chosen.image_set)])
    paths.write_text(folder / f"{PROGRAM}.txt", text + "\n")
    print(text)


def table(rows: Sequence[Measured], title: str) -> str:
    """Return the rows as a table, with what its columns are."""
    columns = ("row", "by", "px", "top-1 %", "points [95 %]", "agrees %", "MACs", "zeros", "MB",
               "time", "minutes", "gate")  # fmt: skip
    cells = [
        (r.row, r.way, str(r.side), f"{100 * r.top1:.2f}", r.difference,
         f"{100 * r.agreement:.1f}", f"{100 * r.macs:.1f} %", f"{100 * r.zeros:.0f} %",
         f"{r.megabytes:.2f}", f"{r.latency:.2f}", f"{r.minutes:.0f}", r.gate)
        for r in rows
    ]  # fmt: skip
    notes = [
        "points: against the better of the original and the original trained as long, paired. "
        "agrees: with the original.",
        f"px: side of the images in rating and measurement. Trained at {TRAINING_SIDE} px, with "
        "the BatchNorm statistics measured again at the side of measurement; ResNet-18, which has "
        "no shipped checkpoint, was trained here from nothing, at 64 px.",
        "time: at 224 px, one thread, median of runs in turns on "
        f"{recorded.machine()}, as a share of the original's. minutes: of training, on one core. "
        "gate: lowest cosine of the float DLC on the HTP simulator.",
    ]
    return tabular.text(title, columns, cells, notes)


def ti_tables(rows: Sequence[Measured], image_set: str) -> list[str]:
    """Return TI's two tables, its own figures of ImageNet first, ours below."""
    by_name = {row.row: row for row in rows}
    columns = ("Models", "data", "Accuracy", "Pruned Model Accuracy", "difference", "MACs left")
    said = []
    for title, (name, published) in PUBLISHED.items():
        cells = [
            (model, "ImageNet (TI)", f"{whole:.2f}", f"{pruned:.2f}", f"{pruned - whole:+.2f}", "-")
            for model, (whole, pruned) in published.items()
        ]
        for architecture in (V2, LARGE, SMALL, RESNET):
            stem = architecture.removeprefix("tv:")
            whole, pruned = (by_name.get(f"{stem}/{x}") for x in ("original", name))
            if whole is None or pruned is None:
                cells.append((stem, image_set, "-", "-", "not made", "-"))
                continue
            cells.append(
                (stem, f"{image_set}, {pruned.side} px", f"{100 * whole.top1:.2f}",
                 f"{100 * pruned.top1:.2f}", pruned.difference, f"{100 * pruned.macs:.1f} %")
            )  # fmt: skip
        notes = [
            "TI's figures are of ImageNet and preliminary, as it says; they are not comparable "
            "with ours. Accuracy is top-1 in %, ours of the original as it is; the difference of "
            "ours is against the better of that and the original trained as long.",
        ]
        if name == "ti30":
            notes.append(
                "TI states 49 % of the operations for 30 % of the channels, which is 0.7 x 0.7: it "
                "holds for layers whose inputs and outputs both lose 30 %."
            )
        said += [tabular.text(f"TI's table: {title}", columns, cells, notes), ""]
    return said[:-1]
