"""How fast this machine simulates the HTP, and how fast it converts.

Usage: ``python benchmarks/simulator.py [--model NAME] [--size 128] [--images 16]``

Host time of one run on this machine: it says how long the lab waits, and nothing about the latency
of a Snapdragon chip. Compare ratios within one table only.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from labutils import dlc, export, quantize, runtime
from labutils.images import data
from labutils.models import zoo
from labutils.runtime import qnn


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the shortest of `repeats` timings, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def images_per_second(file: Path, batch: np.ndarray, workers: int) -> float:
    """Return the simulator's throughput, compiled and warm, with its own workers."""
    with (
        qnn.Pool(workers) as pool,
        runtime.connect(file, "htp", pool=pool) as runner,
    ):
        runner.run(batch[: 2 * workers])  # every worker compiles
        return len(batch) / seconds(lambda: runner.run(batch), repeats=2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenet_v3_large")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--images", type=int, default=16)
    args = parser.parse_args()
    available = qnn.probe()
    if not available.ok:
        raise SystemExit(str(available))
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder), available)


def measure(args: argparse.Namespace, folder: Path, available: qnn.Availability) -> None:
    """Export, quantize, convert and run `args.model`; print one line per precision."""
    model = zoo.load(args.model, size=args.size)
    images = data.load("val", args.images, args.size).images
    batch = model.preprocessing(images)
    source = folder / "model.onnx"
    export.to_onnx(model.module, source, size=args.size)
    calibration = model.preprocessing(data.calibration(32, args.size).images)
    files = {"fp16": source}
    for recipe in ("int8", "a16w8"):
        files[recipe] = folder / f"{recipe}.onnx"
        quantize.static(source, files[recipe], calibration, recipe)
    print(f"{args.model}, {args.size} px, {args.images} images; {available}")
    print(f"{platform.machine()}, host time, best of several; not the latency of a Snapdragon")
    print("precision  DLC written, s  1 worker, img/s  2 workers  ratio")
    for precision, file in files.items():
        inside = "fp16" if precision == "fp16" else "auto"
        convert = seconds(lambda f=file, i=inside: dlc.write(f, folder / "x.dlc", i))
        one, two = (images_per_second(file, batch, workers) for workers in (1, 2))
        print(f"{precision:<9}{convert:>16.2f}{one:>17.2f}{two:>11.2f}{two / one:>7.2f}")


if __name__ == "__main__":
    main()
