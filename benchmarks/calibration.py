"""What the calibration methods cost in memory, and what their ranges are worth.

    python benchmarks/calibration.py [--images 1000]

Quantizes the shipped MobileNetV3-Large by every method on the same calibration images, each in a
separate process, whose peak of resident memory is read at its end; the file then answers 512 test
images in ONNX Runtime. The answer of one process is one line of JSON; nothing is kept between runs.
Writes benchmarks/results/calibration.txt; a run on other images needs `-o FOLDER`.
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

ARCHITECTURE, SIZE, JUDGED = "mobilenet_v3_large", 128, 512
METHODS = {
    "min-max": {},
    "min-max without 1 %": {"outliers": 0.01},
    "min-max without 5 %": {"outliers": 0.05},
    "percentile 99.99": {"method": "percentile", "percentile": 99.99},
    "mean squared error": {"method": "mse"},
    "entropy": {"method": "entropy"},
}


def one(label: str, images: int) -> dict[str, object]:
    """Quantize by one method; return its peak of memory, and its logits against the float file."""
    import resource

    from labutils import export, quantize
    from labutils.models import zoo
    from labutils.quantize.recipe import Calibration
    from labutils.runtime import OrtRunner

    model = zoo.load(ARCHITECTURE, weights="things16")
    before = _peak(resource)
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        export.to_onnx(model.module, source, size=SIZE, preprocessing=model.preprocessing)
        recipe = quantize.load_recipe("int8@1").replaced(
            name="measured", calibration=Calibration(images=images, **METHODS[label])
        )
        calibration = data.calibration(images, SIZE)
        quantize.static(source, made, calibration, recipe, preprocessing=model.preprocessing)
        peak = _peak(resource)
        judged = data.load("test", JUDGED, SIZE)
        answers = []
        for file in (source, made):
            with OrtRunner(file) as runner:
                parts = [
                    model.preprocessing(judged.images[i : i + 32]) for i in range(0, JUDGED, 32)
                ]
                answers.append(np.concatenate([runner.run(part) for part in parts]))
    exact, found = answers
    accuracy, agreement = metrics.accuracy(found, judged.labels), metrics.agreement(exact, found)
    return {"method": label, "MB": peak, "MB before": before, "top-1": str(accuracy),
            "agrees": str(agreement), "SQNR dB": metrics.sqnr_db(exact, found)}  # fmt: skip


def _peak(resource: object) -> float:
    """Return the peak of resident memory so far, in MB (Linux counts in KiB, macOS in bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000, help="for calibration")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    parser.add_argument("--one", choices=METHODS, help="one method in this process; prints JSON")
    chosen = parser.parse_args(arguments)
    if chosen.one:
        print(json.dumps(one(chosen.one, chosen.images)))
        return 0
    place = results.place(chosen.output, chosen.images == 1000)
    if place is None:
        parser.error("pass -o FOLDER: another run does not replace the recorded results")
    data.calibration(chosen.images, SIZE)  # drawn once, for all
    rows = []
    for label in METHODS:
        command = [sys.executable, __file__, "--one", label, "--images", str(chosen.images)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(found, flush=True)
        rows.append((label, found["agrees"], found["top-1"], f"{found['SQNR dB']:.1f}",
                     f"{found['MB']:.0f}", f"{found['MB before']:.0f}"))  # fmt: skip
    columns = ("ranges", "agrees with fp32", "top-1", "SQNR dB", "peak MB", "before MB")
    images = (
        f"split test (drawn), {JUDGED} images at {SIZE} px; {chosen.images} of calib for ranges"
    )
    head = results.head(
        results.command("calibration.py", arguments), images, "torch", "onnxruntime",
        developed=False,
    )  # fmt: skip
    notes = [
        "int8 files on ONNX Runtime; peak of resident memory of the process that quantized, and "
        "what it held before: PyTorch and the network.",
    ]
    title = f"{ARCHITECTURE} (Things-16), ranges from {chosen.images} calibration images"
    text = tabular.text(title, columns, rows, notes)
    paths.write_text(place / "calibration.txt", "\n".join([*head, "", text]) + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
