"""The table of a vendor's sample for this machine: accuracy, latency, frames per second.

    python benchmarks/performance.py --whole                 # what is recorded
    python benchmarks/performance.py -o FOLDER MODEL...      # a trial: few images, few rounds

Each network with the weights that learned Marked Things, where there are any: parameters, MACs,
top-1 in float and in int8 on the same images of `test`, and latency and frames per second of its
float and its int8 file under concurrent requests (`labutils perf` measures the same way), in ONNX
Runtime, and in LiteRT where its runtime and its converter are here. Times are those of this
machine, in turns. A network without such weights has its times, of random ones, and no accuracy;
EfficientNet-Lite0 has ImageNet's, so how far its int8 file agrees with the float one on crops of
photographs, and the accuracy that Google published. D-Robotics' row stands beside, cited; so do
the figures of the paper for MobileNetV2 and V3. Last, the command beside a bare loop
(bare_loop.py), each in a fresh process, in turns.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import results

from labutils import metrics, paths, pipeline, quantize, runtime, tabular
from labutils.errors import LabError, MissingToolError, UsageError
from labutils.images import crops, data
from labutils.measure import complexity, throughput
from labutils.models import zoo
from labutils.pipeline import steps
from labutils.runtime import litert
from labutils.show.figures import concurrency

PROGRAM = "performance"
SET, SIZE = "marked-things", 128
MODELS = (
    "tv:mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "fbnet_a", "efficientnet_lite0",
)  # fmt: skip
PUBLISHED = {"efficientnet_lite0": "75.1 % (Google, fp32, ImageNet)"}
WHOLE = {"images": 11_200, "calibration": 256, "rounds": 9, "frames": 20, "turns": 45}
TRIAL = {"images": 64, "calibration": 32, "rounds": 2, "frames": 3, "turns": 1}
CROPS = 600  # of photographs, at most
VENDOR = (
    "D-Robotics, mobilenetv3_large_100 on RDK X5 (cited, README of rdk_model_zoo at 1d3c726)",
    "224", "1000", "5.47", "-", "74.75 %", "64.75 %", "-", "-", "2.02", "5.53", "714.22",
)  # fmt: skip
PAPER = (  # Howard et al. 2019, table 3: top-1, M multiply-adds, M parameters, ms on a Pixel 1
    ("MobileNetV2 1.0", "72.0 %", "300", "3.4", "64"),
    ("MobileNetV3-Large 1.0", "75.2 %", "219", "5.4", "51"),
    ("MobileNetV3-Small 1.0", "67.4 %", "56", "2.5", "15.8"),
)
_MULTI = 4  # concurrent requests of "multi-threaded", as the vendor's notes have it
_NEAR = 0.05  # how far the command may be from a bare loop


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
    agreement: str = "-"
    published: str = "-"


def loaded(name: str) -> zoo.Model:
    """Return a network with the set's weights, or ImageNet's, else with random ones."""
    try:
        return zoo.load(name, "imagenet" if name in PUBLISHED else SET)
    except MissingToolError as error:
        why = error
    except UsageError as error:
        if type(error) is not UsageError:  # a damaged checkpoint, or an unknown name
            raise
        why = error
    print(f"{name}: no accuracy, and times of random weights. {why}", flush=True)
    return zoo.load(name, "random", SIZE)


def calibration_of(model: zoo.Model, n: int) -> data.ImageSet:
    """Return pictures of the kind that a network's weights learned."""
    size = model.known_preprocessing().size
    return (
        crops.load("calib", n, size) if model.weights == "imagenet"
        else data.calibration(n, size, SET)
    )  # fmt: skip


def files(model: zoo.Model, folder: Path, images: data.ImageSet) -> tuple[Path, Path]:
    """Return the float file of a network and its int8 file."""
    source = steps.as_onnx(model, folder / "float.onnx", 17).path
    made = folder / "int8.onnx"
    quantize.static(source, made, images, "int8", preprocessing=model.preprocessing)
    return source, made


def litert_files(
    name: str, model: zoo.Model, folder: Path, images: data.ImageSet
) -> tuple[dict[str, Path], list[str]]:
    """Return a network's files for LiteRT by row, and why one was not made."""
    if not litert.probe().ok:
        return {}, []
    made, missing = {}, []
    comparison = pipeline.Comparison(images.head(steps.GATE_IMAGES), calibration=images)
    for kind, recipe in (("", None), (", int8", "int8")):
        file = folder / f"{recipe or 'float'}.tflite"
        try:
            pipeline.convert_to_litert(model, file, recipe=recipe, comparison=comparison)
        except LabError as error:
            missing.append(f"{name}{kind}, LiteRT: not made: {' '.join(str(error).split())[:200]}")
        else:
            made[f"{name}{kind}, LiteRT"] = file
    return made, missing


def answers(model: zoo.Model, file: Path, judged: data.ImageSet) -> np.ndarray:
    """Return the logits of a file."""
    with runtime.connect(file, threads=1) as runner:
        batches = judged.batches(32, model.known_preprocessing())
        return np.concatenate([runner.run(batch) for batch, _ in batches])


def top1(model: zoo.Model, file: Path, images: int) -> str:
    """Return the accuracy of a file on `test`; "-" where the weights did not learn the set."""
    if not model.trained or data.set_of(model.classes) != SET:
        return "-"
    judged = data.load("test", images, SIZE, SET)
    return str(metrics.accuracy(answers(model, file, judged), judged.labels))


def agreement(model: zoo.Model, made: tuple[Path, Path], images: int) -> str:
    """Return how often int8 and float agree on photographs; "-" without ImageNet's weights."""
    if model.weights != "imagenet":
        return "-"
    judged = crops.load("test", min(images, CROPS), model.known_preprocessing().size)
    return str(metrics.agreement(*(answers(model, file, judged) for file in made)))


def measured(
    made: dict[str, tuple[Path, Path]], lite: dict[str, Path], counts: dict[str, int]
) -> throughput.Throughput:
    """Return latency and frame rate of all files, in turns."""
    plan = throughput.Plan(throughput.THREADS, counts["rounds"], counts["frames"])
    models = {}
    for name, (source, rounded) in made.items():
        models[name] = throughput.opener(source)
        models[f"{name}, int8"] = throughput.opener(rounded)
    models |= {name: throughput.opener(file) for name, file in lite.items()}
    return throughput.measure(models, plan)


def to_a_bare_loop(file: Path, counts: dict[str, int]) -> throughput.Median:
    """Return the latency that `labutils perf` says by that of a bare loop, over some turns.

    Each is a fresh process; which of the two is first alternates.
    """
    rounds, frames = str(counts["rounds"]), str(counts["frames"])
    perf = ["-m", "labutils", "perf", str(file), "--threads", "1", "--rounds", rounds, "--frames",
            frames, "--json"]  # fmt: skip
    runs = str(counts["rounds"] * counts["frames"])
    bare = [str(Path(__file__).with_name("bare_loop.py")), str(file), runs]
    ratios = []
    for turn in range(counts["turns"]):
        said = {}
        for name, command in [("perf", perf), ("bare", bare)][:: -1 if turn % 2 else 1]:
            done = subprocess.run(
                [sys.executable, *command], cwd=paths.ROOT, check=True, capture_output=True,
                text=True,
            )  # fmt: skip
            said[name] = done.stdout
        perf_ms = json.loads(said["perf"])["rows"][0]["latency_ms"]["value"]
        ratios.append(perf_ms / float(said["bare"]))
    return throughput.median(ratios)


def bare_line(name: str, ratio: throughput.Median) -> str:
    """Return as a sentence how far the command is from a bare loop."""
    near = max(abs(ratio.low - 1), abs(ratio.high - 1)) <= _NEAR
    return (
        f"`labutils perf` beside a bare loop of InferenceSession.run, {name}, one request, each in "
        f"a fresh process, in turns: latency {ratio.text(3)} of the loop's ({ratio.n} turns). "
        f"Within {100 * _NEAR:.0f} %: {'yes' if near else 'no, or not enough turns to tell'}."
    )


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
        agreement(model, made, images), PUBLISHED.get(name, "-"),
    )  # fmt: skip


def table(rows: list[Row]) -> str:
    """Return the vendor's columns as text, its own row last."""
    columns = ("model", "size", "classes", "M par.", "M MACs", "float", "int8",
               "int8 agrees, photographs", "published", "1 request, ms", f"{_MULTI} requests, ms",
               "frames/s")  # fmt: skip
    cells = [
        (
            r.model, str(r.size), str(r.classes), f"{r.parameters / 1e6:.2f}",
            f"{r.macs / 1e6:.0f}", r.float_top1, r.int8_top1, r.agreement, r.published,
            r.latency_ms, r.latency_multi_ms, r.frames_per_second,
        )
        for r in rows
    ]  # fmt: skip
    notes = [
        f"Top-1 on test of {SET}; '-': there are no weights that learned it, and the times are of "
        "random ones, or of ImageNet's (time does not depend on them). Times of the float files, "
        "medians with 95 %.",
        "int8 agrees: the share of crops of photographs, which nobody labelled, on which int8 and "
        "float name the same class. Published: not measured here.",
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
        places = {name: paths.folder(folder / str(i)) for i, name in enumerate(names)}
        images = {n: calibration_of(m, counts["calibration"]) for n, m in models.items()}
        made = {n: files(m, places[n], images[n]) for n, m in models.items()}
        lite: dict[str, Path] = {}
        missing: list[str] = []
        for name, model in models.items():
            found, why = litert_files(name, model, places[name], images[name])
            lite |= found
            missing += why
        times = measured(made, lite, counts)
        rows = [row(n, models[n], made[n], counts["images"], times) for n in names]
        bare = bare_line(names[0], to_a_bare_loop(made[names[0]][0], counts))
    command = results.command("performance.py", arguments)
    _write(rows, times, place, command, counts, "\n".join([*missing, bare]))
    return 0


def _write(
    rows: list[Row],
    times: throughput.Throughput,
    place: Path,
    command: str,
    counts: dict[str, int],
    notes: str,
) -> None:
    images = f"split test of {SET} (drawn), {counts['images']:,} images at {SIZE} px"
    head = results.head(command, images, "torch", "onnxruntime", "ai-edge-litert", developed=False)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dataclasses.asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(line) for line in rows)
    paths.write_text(place / f"{PROGRAM}.csv", results.commented(head) + text.getvalue())
    parts = [table(rows), beside(rows), str(times), notes]
    paths.write_text(place / f"{PROGRAM}.txt", "\n".join([*head, "", "\n\n".join(parts)]) + "\n")
    print("\n\n".join(parts))
    floats = tuple(line for line in times.rows if line.model in {r.model for r in rows})
    picture = concurrency.latency_by_requests(dataclasses.replace(times, rows=floats))
    with paths.atomic(place / f"{PROGRAM}.png") as temporary:
        temporary.write_bytes(picture.png())


if __name__ == "__main__":
    sys.exit(main())
