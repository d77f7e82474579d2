"""What the calibration methods cost in memory, and what their ranges are worth.

    python benchmarks/calibration.py
    python benchmarks/calibration.py --images 64 --judged 64 -o FOLDER

Quantizes the shipped MobileNetV3-Large by every method on the same calibration images of Marked
Things, each in a separate process, whose peak of resident memory is read at its end; the file then
answers 20,000 test images in ONNX Runtime. Twice: with nothing else done to the network (the rest
as in int8@1), and within today's int8. The answer of one process is one line of JSON; nothing is
kept between runs. Writes benchmarks/results/calibration.txt; a run on other images needs
`-o FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import results

from labutils import metrics, paths, tabular
from labutils.images import data

ARCHITECTURE, SET, SIZE, JUDGED = "mobilenet_v3_large", "marked-things", 128, 20_000
CALIBRATION = 1000
COLUMNS = (
    "ranges", "recipe", "points", "agrees with fp32", "SQNR dB", "peak MB", "before MB",
)  # fmt: skip
RECIPES = {"alone": "int8@1", "in int8": "int8"}
METHODS = {
    "min-max": {},
    "min-max without 1 %": {"outliers": 0.01},
    "min-max without 5 %": {"outliers": 0.05},
    "percentile 99.99": {"method": "percentile", "percentile": 99.99},
    "mean squared error": {"method": "mse"},
    "entropy": {"method": "entropy"},
}


def one(label: str, within: str, images: int, judged: int) -> dict[str, object]:
    """Quantize by one method; return the peak of memory, and the figures of its file."""
    import resource

    from labutils import export, quantize
    from labutils.models import zoo
    from labutils.quantize.recipe import Calibration

    model = zoo.load(ARCHITECTURE, weights=SET)
    before = _peak(resource)
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        export.to_onnx(model.module, source, size=SIZE, preprocessing=model.preprocessing)
        recipe = quantize.load_recipe(RECIPES[within]).replaced(
            name="measured", calibration=Calibration(images=images, **METHODS[label])
        )
        calibration = data.calibration(images, SIZE, SET)
        quantize.static(source, made, calibration, recipe, preprocessing=model.preprocessing)
        peak = _peak(resource)
        pictures = data.load("test", judged, SIZE, SET)
        exact, found = (answers(file, pictures, model.preprocessing) for file in (source, made))
    right = [metrics.correct(logits, pictures.labels) for logits in (found, exact)]
    return {"MB": peak, "MB before": before, "points": str(metrics.paired_difference(*right)),
            "agrees": str(metrics.agreement(exact, found)),
            "SQNR dB": metrics.sqnr_db(exact, found)}  # fmt: skip


def answers(file: Path, pictures: data.ImageSet, preprocessing: data.Preprocessing) -> np.ndarray:
    """Return a file's logits in ONNX Runtime."""
    from labutils.runtime import OrtRunner

    with OrtRunner(file) as runner:
        return np.concatenate([runner.run(x) for x, _ in pictures.batches(32, preprocessing)])


def _peak(resource: object) -> float:
    """Return the peak of resident memory so far, in MB (Linux counts in KiB, macOS in bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=CALIBRATION, help="for calibration")
    parser.add_argument("--judged", type=int, default=JUDGED, help="of test")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "WITHIN"), help="prints JSON")
    chosen = parser.parse_args(arguments)
    if chosen.one:
        print(json.dumps(one(*chosen.one, chosen.images, chosen.judged)))
        return 0
    whole = (chosen.images, chosen.judged) == (CALIBRATION, JUDGED)
    place = results.place(chosen.output, whole)
    if place is None:
        parser.error("pass -o FOLDER: another run does not replace the recorded results")
    data.calibration(chosen.images, SIZE, SET)  # drawn once, for all
    rows = [row(label, within, chosen) for within in RECIPES for label in METHODS]
    images = f"Marked Things, split test, {chosen.judged} images at {SIZE} px; {chosen.images} of "
    head = results.head(
        results.command("calibration.py", arguments), images + "calib for ranges", "torch",
        "onnxruntime", developed=False,
    )  # fmt: skip
    notes = [
        "alone: the recipe is int8@1 but for the ranges. In int8: it is int8@2 but for the ranges, "
        "so gates are equalized, ranges end where activations are flat, and biases are corrected.",
        "int8 files on ONNX Runtime. Points: top-1 against the float file, paired, with the 95 % "
        "interval. MB: peak of resident memory of the process that quantized, and what it held "
        "before: PyTorch and the network.",
    ]
    title = f"{ARCHITECTURE} (Marked Things), ranges from {chosen.images} calibration images"
    text = tabular.text(title, COLUMNS, rows, notes)
    paths.write_text(place / "calibration.txt", "\n".join([*head, "", text]) + "\n")
    print(text)
    return 0


def row(label: str, within: str, chosen: argparse.Namespace) -> tuple[str, ...]:
    """Return a line of the table, made in a separate process."""
    numbers = ["--images", str(chosen.images), "--judged", str(chosen.judged)]
    command = [sys.executable, __file__, "--one", label, within, *numbers]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(label, within, found, flush=True)
    return (label, within, found["points"], found["agrees"], f"{found['SQNR dB']:.1f}",
            f"{found['MB']:.0f}", f"{found['MB before']:.0f}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
