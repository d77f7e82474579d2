"""What TI's lite surgery costs, and what a short fine-tuning brings back: MobileNetV3 on Things-16.

    python benchmarks/lite.py
    python benchmarks/lite.py --split val --images 320 --steps 20 -o FOLDER

Squeeze-excitations go, every other activation becomes ReLU (the rule set ``lite``). Accuracy is
that of the exported ONNX files in ONNX Runtime on the same 20,000 images of test; so are size and
latency (CPU of this machine: compare the ratio). The fine-tuned weights are kept by the content of
all that they depend on (see content_cache.py), so that a second run only measures; `--fresh`
forgets them. Writes benchmarks/results/lite.csv and lite.txt; a shorter run needs `-o FOLDER`.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import dataclass
from pathlib import Path

import content_cache
import numpy as np
import results

from labutils import export, metrics, paths, runtime, surgery, tabular, train
from labutils.images import data
from labutils.lab import recorded
from labutils.measure import complexity
from labutils.models import zoo

PROGRAM = "lite"
ARCHITECTURE = "mobilenet_v3_large"
STEPS, IMAGES = 150, 20_000
LATE = 0.2  # share of the steps at the size of the validation images
CALIBRATION = 512
REPEATS = 30


@dataclass(frozen=True)
class Row(results.Judged):
    """One stage, with what it costs."""

    parameters: int
    macs: int
    bytes: int
    ms: float
    latency_ratio: float


def main() -> None:
    """Do the surgery, fine-tune, export and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--fresh", action="store_true", help="forget what is kept, train again")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args()
    whole = (chosen.split, chosen.steps, chosen.images) == ("test", STEPS, IMAGES)
    place = results.place(chosen.output, whole)
    if place is None:
        parser.error("pass -o FOLDER: a shorter run does not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    work = content_cache.folder(PROGRAM)
    model = zoo.load(ARCHITECTURE, "things16")
    example = model.preprocessing(data.load("calib", 4, model.preprocessing.size).images)
    lite = copy.deepcopy(model.module)
    report = replaced(lite, example)
    print(report, flush=True)
    tuned = fine_tuned(copy.deepcopy(lite), model, chosen.steps, work)
    stages = {
        "original": model.module,
        "lite, before training": lite,
        f"lite, {chosen.steps} steps later": tuned,
    }
    files = {}
    for number, (stage, network) in enumerate(stages.items()):
        files[stage] = work / f"{number}.onnx"
        export.to_onnx(network, files[stage], preprocessing=model.preprocessing)
    images = data.load(chosen.split, chosen.images, model.preprocessing.size)
    write(measured(files, images, model), chosen.split, report, place)


def replaced(network, example):
    """Replace by the rule set lite, and return the report."""
    import torch

    return surgery.replace_(network, "lite", example_inputs=torch.from_numpy(example))


def fine_tuned(network, original: zoo.Model, steps: int, work: Path):
    """Return the network after fine-tuning with the original as teacher, or the cached one."""
    import torch
    from safetensors.torch import load_file, save_file

    late = max(1, round(LATE * steps))
    phases = [(64, steps - late, 1.5e-3, 0), (original.preprocessing.size, late, 3e-4, 1)]
    key = content_cache.key(
        checkpoint=content_cache.checkpoint(ARCHITECTURE), phases=phases, calib=CALIBRATION,
        images=content_cache.drawn(),
        code=content_cache.code(train, surgery, Path(__file__)),
        versions=paths.versions("torch", "torchvision"),
    )  # fmt: skip
    kept = work / f"{ARCHITECTURE}_{key}.safetensors"
    if kept.is_file():
        network.load_state_dict(load_file(kept))
        return network.eval()
    teacher = original.module
    for size, count, rate, seed in phases:
        done = train.fine_tune(
            network, teacher=teacher, steps=count, size=size, learning_rate=rate, seed=seed
        )
        print(done, flush=True)
    images = data.calibration(CALIBRATION, original.preprocessing.size)
    print(train.estimate_batch_norm_(network, images, original.preprocessing), flush=True)
    with paths.atomic(kept) as temporary:
        state = {name: v.contiguous() for name, v in network.state_dict().items()}
        save_file(state, temporary)
    assert isinstance(network, torch.nn.Module)
    return network.eval()


def measured(files: dict[str, Path], images: data.ImageSet, model: zoo.Model) -> list[Row]:
    """Return one row per file; all see the same images, and are timed in turns."""
    right = {stage: hits(file, images, model) for stage, file in files.items()}
    seconds = latencies(files, model)
    first = next(iter(files))
    rows = []
    for stage, file in files.items():
        counted = complexity.count(file)
        rows.append(
            Row(
                stage, *results.judged(right[stage], right[first]), counted.parameters,
                counted.macs, file.stat().st_size,
                1000 * seconds[stage], seconds[stage] / seconds[first],
            )
        )  # fmt: skip
    return rows


def hits(file: Path, images: data.ImageSet, model: zoo.Model) -> np.ndarray:
    """Return which images the exported file names rightly."""
    with runtime.connect(file) as runner:
        parts = [runner.run(x) for x, _ in images.batches(32, model.preprocessing)]
    return metrics.correct(np.concatenate(parts), images.labels)


def latencies(files: dict[str, Path], model: zoo.Model) -> dict[str, float]:
    """Return seconds per image, one thread, the median of turns: this machine's processor."""
    size = model.preprocessing.size
    image = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    runners = {stage: runtime.connect(file, threads=1) for stage, file in files.items()}
    return runtime.seconds_in_turns(runners, image, REPEATS)


def write(rows: list[Row], split: str, report: surgery.Report, folder: Path) -> None:
    """Write the table as CSV and as text."""
    images = f"split {split} (drawn), {rows[0].n} images at the size of the checkpoint"
    head = results.head(
        results.command("lite.py"), images, "torch", "torchvision", "onnxruntime",
        developed=split == "val",
    )  # fmt: skip
    results.write_csv(folder / "lite.csv", head, rows)
    columns = ("stage", "top-1", "95 %", "points to the original", "M par", "M MAC", "MB", "ms",
               "ratio")  # fmt: skip
    cells = [
        (
            row.stage, *row.cells, f"{row.parameters / 1e6:.2f}", f"{row.macs / 1e6:.1f}",
            f"{row.bytes / 1e6:.1f}", f"{row.ms:.2f}", f"{row.latency_ratio:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    replaced_by = ", ".join(f"{n} {rule}" for rule, n in report.counts.items() if n)
    notes = [
        f"Surgery: {replaced_by}.",
        "Accuracy, size and latency are those of the exported ONNX files in ONNX Runtime.",
        f"ms: one image, one thread, median of {REPEATS} turns on {recorded.machine()}.",
    ]
    title = f"Lite surgery on {ARCHITECTURE} (Things-16)"
    table = tabular.text(title, columns, cells, notes)
    paths.write_text(folder / "lite.txt", "\n".join([*head, "", table]) + "\n")
    print(table)
    print(json.dumps(report.counts))


if __name__ == "__main__":
    main()
