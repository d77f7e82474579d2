"""The table of a vendor's sample for this machine: accuracy, latency, frames per second.

    python benchmarks/performance.py --whole                 # what is recorded
    python benchmarks/performance.py -o FOLDER MODEL...      # a trial: few images, few rounds

Each network with the weights that learned Marked Things, where there are any: parameters, MACs,
top-1 in float and in int8 on the same images of `test`, and latency and frames per second of its
float and its int8 file under concurrent requests (`labutils perf` measures the same way). Times are
those of this machine, in turns. A network without such weights has its times, of random ones, and
no accuracy. D-Robotics' row stands beside, cited, and so do the figures of the paper for
MobileNetV2 and V3. The figure of latency against requests is written as a PNG with `-o`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
import results

from labutils import metrics, paths, quantize, runtime, tabular
from labutils.errors import LabError
from labutils.images import data
from labutils.measure import complexity, throughput
from labutils.models import zoo
from labutils.pipeline import steps
from labutils.show.figures import concurrency

PROGRAM = "performance"
SET, SIZE = "marked-things", 128
MODELS = (
    "tv:mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "fbnet_a", "efficientnet_lite0",
)  # fmt: skip
WHOLE = {"images": 11_200, "calibration": 256, "rounds": 9, "frames": 20}
TRIAL = {"images": 64, "calibration": 32, "rounds": 2, "frames": 3}
VENDOR = (
    "D-Robotics, mobilenetv3_large_100 on RDK X5 (cited, README of rdk_model_zoo at 1d3c726)",
    "224", "1000", "5.47", "-", "74.75 %", "64.75 %", "2.02", "5.53", "714.22",
)  # fmt: skip
PAPER = (  # Howard et al. 2019, table 3: top-1, M multiply-adds, M parameters, ms on a Pixel 1
    ("MobileNetV2 1.0", "72.0 %", "300", "3.4", "64"),
    ("MobileNetV3-Large 1.0", "75.2 %", "219", "5.4", "51"),
    ("MobileNetV3-Small 1.0", "67.4 %", "56", "2.5", "15.8"),
)
_MULTI = 4  # concurrent requests of "multi-threaded", as the vendor's notes have it


@dataclasses.dataclass(frozen=True)
class Row:
    """One network."""

    model: str
    size: int
    classes: int
    parameters: int
    macs: int
    float_top1: str
    int8_top1: str
    latency_ms: str
    latency_multi_ms: str
    frames_per_second: str
    int8_latency_ms: str
    int8_frames_per_second: str


def loaded(name: str) -> zoo.Model:
    """Return a network with the set's weights, else with random ones, at the set's size."""
    try:
        return zoo.load(name, SET)
    except LabError:
        return zoo.load(name, "random", SIZE)


def files(model: zoo.Model, folder: Path, calibration: int) -> tuple[Path, Path]:
    """Return the float file of a network and its int8 file."""
    source = steps.as_onnx(model, folder / "float.onnx", 17).path
    made = folder / "int8.onnx"
    images = data.calibration(calibration, model.known_preprocessing().size, SET)
    quantize.static(source, made, images, "int8", preprocessing=model.preprocessing)
    return source, made


def top1(model: zoo.Model, file: Path, images: int) -> str:
    """Return the accuracy of a file on `test`; "-" where the weights did not learn the set."""
    if not model.trained or data.set_of(model.classes) != SET:
        return "-"
    judged = data.load("test", images, SIZE, SET)
    with runtime.connect(file, threads=1) as runner:
        parts = [runner.run(batch) for batch, _ in judged.batches(32, model.known_preprocessing())]
    return str(metrics.accuracy(np.concatenate(parts), judged.labels))


def measured(made: dict[str, tuple[Path, Path]], counts: dict[str, int]) -> throughput.Throughput:
    """Return latency and frame rate of all files, in turns."""
    plan = throughput.Plan(throughput.THREADS, counts["rounds"], counts["frames"])
    models = {}
    for name, (source, rounded) in made.items():
        models[name] = throughput.opener(source)
        models[f"{name}, int8"] = throughput.opener(rounded)
    return throughput.measure(models, plan)


def row(
    name: str, model: zoo.Model, made: tuple[Path, Path], images: int, times: throughput.Throughput
) -> Row:
    """Return a network's line."""
    found = {(r.model, r.requests): r for r in times.rows}
    size = data.sides(model.known_preprocessing().size)[0]
    counted = complexity.count(model)
    one, four = found[name, 1], found[name, _MULTI]
    small = found[f"{name}, int8", 1], found[f"{name}, int8", _MULTI]
    return Row(
        name, size, len(model.classes), counted.parameters, counted.macs,
        *(top1(model, file, images) for file in made),
        one.latency_ms.text(2), four.latency_ms.text(2), four.frames_per_second.text(1),
        small[0].latency_ms.text(2), small[1].frames_per_second.text(1),
    )  # fmt: skip


def table(rows: list[Row]) -> str:
    """Return the vendor's columns as text, its own row last."""
    columns = ("model", "size", "classes", "M par.", "M MACs", "float", "int8", "1 request, ms",
               f"{_MULTI} requests, ms", "frames/s")  # fmt: skip
    cells = [
        (
            r.model, str(r.size), str(r.classes), f"{r.parameters / 1e6:.2f}",
            f"{r.macs / 1e6:.0f}", r.float_top1, r.int8_top1, r.latency_ms, r.latency_multi_ms,
            r.frames_per_second,
        )
        for r in rows
    ]  # fmt: skip
    notes = [
        f"Top-1 on test of {SET}; '-': there are no weights that learned it, and the times are of "
        "random ones (time does not depend on them). Times of the float files, medians with 95 %.",
        "int8 on this machine, 1 request, ms; frames/s: "
        + "; ".join(f"{r.model} {r.int8_latency_ms}; {r.int8_frames_per_second}" for r in rows),
        "The vendor's row is another network size, another processor and another data set: it "
        "stands here for its columns, and nothing is compared with it.",
    ]
    return tabular.text("Accuracy, latency and frames per second", columns, [*cells, VENDOR], notes)


def beside(rows: list[Row]) -> str:
    """Return MobileNetV2 beside V3, ours measured, the paper's cited."""
    columns = ("network", "top-1", "M MACs", "M parameters", "ms, one request")
    ours = [
        (f"{r.model} (ours, {SET}, {r.size} px)", r.float_top1, f"{r.macs / 1e6:.0f}",
         f"{r.parameters / 1e6:.2f}", r.latency_ms)
        for r in rows if "mobilenet" in r.model
    ]  # fmt: skip
    cited = [(f"{name} (paper, ImageNet, 224 px)", *rest) for name, *rest in PAPER]
    notes = [
        "Paper: Howard et al., Searching for MobileNetV3, ICCV 2019, table 3; its milliseconds are "
        "of a Pixel 1. The sample's claims, 3.2 % more accurate and 15 % faster than V2, are those "
        "of the paper's first version (1905.02244v1); the last one says 20 %, as 64 to 51 ms are.",
    ]
    return tabular.text("MobileNetV2 beside V3", columns, [*ours, *cited], notes)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="all of the table by default")
    parser.add_argument("--whole", action="store_true", help="all test images, nine rounds")
    for name, value in TRIAL.items():
        parser.add_argument(f"--{name}", type=int, help=f"of a trial ({value})")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    given = {name: getattr(chosen, name) for name in TRIAL if getattr(chosen, name)}
    place = results.place(chosen.output, chosen.whole and not given and not chosen.models)
    if place is None:
        parser.error("pass -o FOLDER, or --whole alone: a trial does not replace what is recorded")
    counts = (WHOLE if chosen.whole else TRIAL) | given
    names = tuple(dict.fromkeys(chosen.models or MODELS))
    with paths.scratch() as folder:
        models = {name: loaded(name) for name in names}
        made = {
            name: files(model, paths.folder(folder / str(i)), counts["calibration"])
            for i, (name, model) in enumerate(models.items())
        }
        times = measured(made, counts)
        rows = [row(n, models[n], made[n], counts["images"], times) for n in names]
    _write(rows, times, place, results.command("performance.py", arguments), counts)
    if chosen.output:
        floats = tuple(line for line in times.rows if line.model in names)
        shown = dataclasses.replace(times, rows=floats)
        (place / f"{PROGRAM}.png").write_bytes(concurrency.latency_by_requests(shown).png())
    return 0


def _write(
    rows: list[Row],
    times: throughput.Throughput,
    place: Path,
    command: str,
    counts: dict[str, int],
) -> None:
    images = f"split test of {SET} (drawn), {counts['images']:,} images at {SIZE} px"
    head = results.head(command, images, "torch", "onnxruntime", developed=False)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dataclasses.asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(line) for line in rows)
    paths.write_text(place / f"{PROGRAM}.csv", results.commented(head) + text.getvalue())
    parts = [table(rows), beside(rows), str(times)]
    paths.write_text(place / f"{PROGRAM}.txt", "\n".join([*head, "", "\n\n".join(parts)]) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    sys.exit(main())
