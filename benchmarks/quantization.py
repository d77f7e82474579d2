"""int8, mixed and 4-bit MobileNetV3, ours and those of others, on the same images.

    python benchmarks/quantization.py             # the table: benchmarks/results/quantization.*
    python benchmarks/quantization.py --train RECIPE ARCHITECTURE  # one QAT checkpoint, for later
    python benchmarks/quantization.py --htp ROW ARCHITECTURE    # a row on the simulator, too
    python benchmarks/quantization.py --litert-setup   # Google's quantizer, 1.2 GB, in the cache

Every row: the shipped Things-16 checkpoint, 256 calibration images, 1,600 validation images at
128 px. What is measured is the file that was written, in its runtime. Checkpoints, files and
logits are cached, so a run that was stopped goes on; `--fresh` quantizes and runs anew (the
trained checkpoints stay). Needs the cores for itself; the time of a row is that of quantizing (for
QAT: of training), on this machine.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from quantization_inputs import (
    CALIBRATION_IMAGES,
    PREPROCESSING,
    SIZE,
    calibration_set,
    float_file,
    folder,
    inputs,
)
from quantization_peers import (
    by_litert,
    by_onnxruntime,
    by_onnxruntime_qnn,
    by_torchao,
    by_torchao_xnnpack,
    litert_setup,
)

from labutils import data, metrics, paths, quantize, runtime, zoo
from labutils.errors import LabError
from labutils.quantize import mixed, qat, qat_corrections
from labutils.quantize import recipe as recipes

TRAINING_IMAGES = 8000
ARCHITECTURES = ("mobilenet_v3_large", "mobilenet_v3_small")


@dataclass(frozen=True)
class Row:
    """One line of the table; `make` writes the file and returns its training seconds, if any."""

    group: str
    ours: bool
    name: str
    make: Callable[[str, Path], float | None]
    backend: str = "ort"
    recipe: recipes.Recipe | None = None

    @property
    def key(self) -> str:
        """For file names: what was made by another recipe is not found again."""
        words = f"{self.group}/{self.name}/{self.recipe.to_yaml() if self.recipe else ''}"
        return hashlib.sha256(words.encode()).hexdigest()[:8]


# ---------------------------------------------------------------- ours


def checkpoint(architecture: str, recipe: recipes.Recipe) -> Path:
    """Return where the trained network of a recipe is cached: the name changes with either."""
    weights = paths.CHECKPOINTS / f"{architecture}.safetensors"
    key = hashlib.sha256((recipe.to_yaml() + paths.sha256(weights)).encode()).hexdigest()[:10]
    return paths.cache() / "quantization" / f"{architecture}_{recipe.name}_{key}.pt"


def trained(architecture: str, recipe: recipes.Recipe) -> tuple[torch.nn.Module, float]:
    """Return a network after QAT, and the seconds that its training took (once, when it ran)."""
    file = checkpoint(architecture, recipe)
    model = zoo.load(architecture, weights="things16").module
    network = qat.prepare(model, recipe, size=SIZE)
    if not file.exists():
        print(qat.calibrate_(network, calibration_set(), PREPROCESSING))
        start = time.time()

        def on_step(step: int, last: int, _: torch.nn.Module) -> None:
            if step % 10 == 0:
                print(f"  {architecture} {recipe.name}: step {step}/{last}, "
                      f"{time.time() - start:.0f} s", flush=True)  # fmt: skip

        done = qat.fit_(network, teacher=model, images=TRAINING_IMAGES, on_step=on_step)
        print(done, flush=True)
        with paths.atomic(file) as temporary:
            torch.save({"state": network.state_dict(), "seconds": done.seconds}, temporary)
    saved = torch.load(file, weights_only=True)
    network.load_state_dict(saved["state"])
    return network.eval(), saved["seconds"]


def ours(group: str, name: str, recipe: str | recipes.Recipe) -> Row:
    """Return a row of the lab's own: trained where the recipe says so, else after training."""
    chosen = recipes.load(recipe)

    def train(architecture: str, file: Path) -> float:
        network, seconds = trained(architecture, chosen)
        print(qat.to_qdq(network, file, size=SIZE, preprocessing=PREPROCESSING))
        return seconds

    def static(architecture: str, file: Path) -> None:
        quantize.static(float_file(architecture), file, calibration_set(), chosen,
                        preprocessing=PREPROCESSING)  # fmt: skip

    return Row(group, True, name, train if chosen.qat else static, recipe=chosen)


def corrected(name: str, ratio: float | None = None, *, biases: bool = False) -> Row:
    """Return a row for the counterparts of TI's weight constraint and bias calibration."""

    def make(architecture: str, file: Path) -> None:
        model = zoo.load(architecture, weights="things16").module
        network = qat.prepare(model, TENSOR, size=SIZE)
        if ratio is not None:
            print(qat_corrections.constrain_weights_(network, ratio))
        qat.calibrate_(network, calibration_set(), PREPROCESSING)
        if biases:
            print(qat_corrections.calibrate_bias_(network, inputs("calib", CALIBRATION_IMAGES)))
        qat.to_qdq(network, file, size=SIZE, preprocessing=PREPROCESSING)

    return Row("int8 per tensor", True, name, make)


def by_search(architecture: str, file: Path) -> None:
    """Search 16-bit activations within 15 % of the MACs, and quantize so."""
    found = mixed.search(
        float_file(architecture), calibration_set(), mixed.Budget(mac_share=0.15), TRIM,
        preprocessing=PREPROCESSING,
    )  # fmt: skip
    print(found)
    quantize.static(float_file(architecture), file, calibration_set(), found.recipe,
                    preprocessing=PREPROCESSING)  # fmt: skip


TRIM = recipes.PRESETS["int8_trim"]
TENSOR = TRIM.replaced(name="int8_trim_tensor", weights=recipes.Weights(per_channel=False))
W4A16 = recipes.PRESETS["w4a16"].replaced(
    name="w4a16_adaptive", rounding="adaptive", correct_bias=True
)
ROWS = (
    ours("int8", "PTQ int8", TRIM),
    ours("int8", "QAT int8", "int8_qat"),
    Row("int8", False, "ONNX Runtime, defaults", by_onnxruntime()),
    Row("int8", False, "ONNX Runtime, QNN configuration", by_onnxruntime_qnn("QInt8", True)),
    Row("int8", False, "torchao pt2e, XNNPACK quantizer", by_torchao_xnnpack(True)),
    Row("int8", False, "torchao pt2e, our recipe", by_torchao("int8")),
    Row("int8", False, "ai-edge-quantizer, static int8", by_litert("static_wi8_ai8"), "litert"),
    ours("int8 per tensor", "PTQ int8, one scale per tensor", TENSOR),
    corrected("and biases calibrated", biases=True),
    corrected("and weights within 32 medians", 32.0),
    corrected("and weights within 16 medians", 16.0),
    corrected("within 16 medians, biases calibrated", 16.0, biases=True),
    Row("int8 per tensor", False, "ONNX Runtime, QNN configuration",
        by_onnxruntime_qnn("QInt8", False)),
    Row("int8 per tensor", False, "torchao pt2e, XNNPACK quantizer", by_torchao_xnnpack(False)),
    ours("4-bit weights", "PTQ w4a8", "w4a8"),
    ours("4-bit weights", "PTQ w4a8, adaptive rounding", "w4a8_adaptive"),
    ours("4-bit weights", "QAT w4a8", "w4a8_qat"),
    ours("4-bit weights", "PTQ w4a16, adaptive rounding", W4A16),
    Row("4-bit weights", False, "ONNX Runtime, QNN configuration",
        by_onnxruntime_qnn("QInt4", True)),
    Row("4-bit weights", False, "torchao pt2e, our recipe", by_torchao("w4a8")),
    Row("4-bit weights", False, "ai-edge-quantizer, float activations",
        by_litert("dynamic_wi4_afp32"), "litert"),
    Row("16-bit where it pays", True, "mixed, 15 % of the MACs", by_search),
    ours("16-bit where it pays", "PTQ a16w8, all 16-bit", "a16w8"),
    ours("16-bit where it pays", "PTQ a16w8, ranges with room", "a16w8_room"),
    Row("16-bit where it pays", False, "ONNX Runtime, QNN, all 16-bit",
        by_onnxruntime_qnn("QInt8", True, "QUInt16")),
)  # fmt: skip


# ---------------------------------------------------------------- measuring


def logits_of(file: Path, backend: str = "ort", n: int = data.VALIDATION_IMAGES) -> np.ndarray:
    """Run the first `n` validation images, or load what an earlier run answered."""
    saved = file.with_suffix(f".{backend}.npy" if backend == "htp" else ".logits.npy")
    if not saved.exists():
        with runtime.connect(file, backend) as runner:
            images = inputs("val")[:n]
            parts = [runner.run(images[i : i + 32]) for i in _starts(len(images), file.stem)]
        with paths.atomic(saved) as temporary:
            np.save(temporary, np.concatenate(parts))
    return np.load(saved)


def _starts(n: int, name: str) -> Iterator[int]:
    start = time.time()
    for i in range(0, n, 32):
        if i and i % 320 == 0:
            print(f"  {name}: {i}/{n} images, {time.time() - start:.0f} s", flush=True)
        yield i


def measured(row: Row, architecture: str, fresh: bool, cached: bool = False) -> dict[str, object]:
    """Return one line of the table; with `cached`, only from what earlier runs left."""
    suffix = ".tflite" if row.backend == "litert" else ".onnx"
    file = folder() / f"{architecture}_{row.key}{suffix}"
    line = {"model": architecture, "group": row.group, "by": "ours" if row.ours else "peer",
            "what": row.name}  # fmt: skip
    seconds_file = file.with_suffix(".seconds")
    if fresh:
        for old in (file, seconds_file, file.with_suffix(".logits.npy")):
            old.unlink(missing_ok=True)
    try:
        if cached and not file.with_suffix(".logits.npy").exists():
            raise LabError("not run yet")
        made = not (file.exists() and seconds_file.exists())
        if made:
            start = time.time()
            training = row.make(architecture, file)
            seconds = time.time() - start if training is None else training
            seconds_file.write_text(f"{seconds:.1f}", encoding="utf-8")
        logits = logits_of(file)
    except Exception as error:  # a peer's own error is a result: it goes into the table
        reason = " ".join(str(error).split())[:160]
        return line | {"note": f"{type(error).__name__}: {reason}"}
    line |= figures(logits, logits_of(float_file(architecture)))
    runs_on = "LiteRT" if row.backend == "litert" else "ORT"
    return line | {"MB": file.stat().st_size / 1e6, "runtime": runs_on, "made": made,
                   "seconds": float(seconds_file.read_text(encoding="utf-8"))}  # fmt: skip


def figures(logits: np.ndarray, reference: np.ndarray) -> dict[str, object]:
    """Return accuracy, paired difference, agreement and SQNR of logits against the float ones."""
    reference = reference[: len(logits)]
    labels = data.load("val", len(logits), SIZE).labels
    right, was = metrics.correct(logits, labels), metrics.correct(reference, labels)
    return {
        "n": len(logits), "top1": metrics.accuracy(logits, labels),
        "difference": metrics.paired_difference(right, was),
        "agreement": metrics.agreement(logits, reference),
        "sqnr": metrics.sqnr_db(reference, logits), "right": right,
    }  # fmt: skip


def on_htp(architecture: str) -> list[dict[str, object]]:
    """Return lines for what was run on the simulator (``--htp``), on the saved logits."""
    lines = []
    for row in ROWS:
        file = folder() / f"{architecture}_{row.key}.onnx"
        if file.with_suffix(".htp.npy").exists():
            line = figures(logits_of(file, "htp"), logits_of(float_file(architecture)))
            lines.append({
                "model": architecture, "group": row.group, "by": "ours" if row.ours else "peer",
                "what": row.name, **line, "MB": file.stat().st_size / 1e6,
                "runtime": "HTP simulator", "seconds": None,
            })  # fmt: skip
    return lines


# ---------------------------------------------------------------- the table

COLUMNS = ("model", "group", "by", "what", "runtime", "n", "top-1 % [95 %]",
           "minus fp32, points", "agrees %", "SQNR dB", "MB", "seconds")  # fmt: skip


def cells(line: dict[str, object]) -> list[str]:
    """Return the words of a line."""
    head = [str(line[k]) for k in ("model", "group", "by", "what")]
    if "note" in line:
        return [*head, f"not measured: {line['note']}", *[""] * 7]
    top1, (low, high) = line["top1"], line["top1"].interval
    difference = line["difference"]
    a, b = difference.interval
    return [
        *head, line["runtime"], str(line["n"]),
        f"{100 * top1.value:.2f} [{100 * low:.1f}, {100 * high:.1f}]",
        f"{difference.value:+.2f} [{a:+.2f}, {b:+.2f}]", f"{100 * line['agreement'].value:.2f}",
        f"{line['sqnr']:.1f}", f"{line['MB']:.2f}",
        "" if line["seconds"] is None else f"{line['seconds']:.0f}",
    ]  # fmt: skip


_EQUAL_DB = 0.1


def verdicts(lines: list[dict[str, object]]) -> list[str]:
    """Return, for each group, where our best stands beside the best of the others.

    Tied: the 95 % interval of the paired difference in top-1 holds zero; less than 0.1 dB apart.
    """
    said = []
    shown = [x for x in lines if "top1" in x and x["runtime"] != "HTP simulator"]
    for model, group in dict.fromkeys((x["model"], x["group"]) for x in shown):
        rows = [x for x in shown if (x["model"], x["group"]) == (model, group)]
        sides = [[x for x in rows if x["by"] == side] for side in ("ours", "peer")]
        if not all(sides):
            continue
        best, peer = (max(side, key=lambda x: (x["top1"].hits, x["sqnr"])) for side in sides)
        difference = metrics.paired_difference(best["right"], peer["right"])
        low, high = difference.interval
        place = "first" if low > 0 else "behind" if high < 0 else "tied"
        said += [
            f"{model}, {group}: ours {place} in top-1, {difference}: {_said(best)}; {_said(peer)}"
        ]
        nearest, others = (max(side, key=lambda x: x["sqnr"]) for side in sides)
        gain = nearest["sqnr"] - others["sqnr"]
        place = "first" if gain > _EQUAL_DB else "behind" if gain < -_EQUAL_DB else "tied"
        said += [f"  and {place} in SQNR: {_said(nearest)}; {_said(others)}"]
    return said


def _said(line: dict[str, object]) -> str:
    return f"{line['what']} {100 * line['top1'].value:.2f} % {line['sqnr']:.1f} dB"


def write(lines: list[dict[str, object]], took: float, cached: bool) -> str:
    """Write CSV and text into benchmarks/results; return the text."""
    table = [COLUMNS, *(cells(line) for line in lines)]
    # a reason why not runs on to the right; it must not widen the column that it starts in
    counted = [["" if c.startswith("not measured") else c for c in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*counted, strict=True)]
    text = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table
    ]
    versions = paths.versions("torch", "onnxruntime", "torchao", "onnxruntime-qnn")
    head = [
        f"Recorded {time.strftime('%Y-%m-%d', time.gmtime())} with: "
        f"python benchmarks/quantization.py{' --cached' if cached else ''}",
        f"Shipped Things-16 checkpoints, {CALIBRATION_IMAGES} calibration images, "
        f"{data.VALIDATION_IMAGES} validation images at {SIZE} px.",
        "Accuracy of the file that was written, in its runtime. QAT: seconds of its training.",
        f"{sum(line.get('made', False) for line in lines)} files were made in this run, which took "
        f"{took / 60:.0f} min; the others, and all training, in earlier ones (--fresh makes all).",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()),
        "",
    ]
    results = paths.ROOT / "benchmarks" / "results"
    full = "\n".join([*head, *text, "", *verdicts(lines)]) + "\n"
    paths.write_text(results / "quantization.txt", full)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(table)
    paths.write_text(results / "quantization.csv", buffer.getvalue())
    return full


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", nargs=2, metavar=("RECIPE", "ARCHITECTURE"))
    parser.add_argument("--htp", nargs=2, metavar=("ROW", "ARCHITECTURE"), help="by a row's name")
    parser.add_argument("--images", type=int, default=data.VALIDATION_IMAGES, help="with --htp")
    parser.add_argument("--litert-setup", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="quantize and run everything anew")
    parser.add_argument("--cached", action="store_true", help="only rows that are cached already")
    chosen = parser.parse_args(arguments)
    if chosen.litert_setup:
        litert_setup()
    elif chosen.train:
        trained(chosen.train[1], recipes.load(chosen.train[0]))
    elif chosen.htp:
        row = next(row for row in ROWS if row.name == chosen.htp[0])
        measured(row, chosen.htp[1], fresh=False)
        logits_of(folder() / f"{chosen.htp[1]}_{row.key}.onnx", "htp", chosen.images)
    else:
        start, lines = time.time(), []
        for architecture in ARCHITECTURES:
            reference = logits_of(float_file(architecture))
            lines.append({
                "model": architecture, "group": "float", "by": "", "what": "fp32",
                **figures(reference, reference), "runtime": "ORT", "seconds": None,
                "MB": float_file(architecture).stat().st_size / 1e6,
            })  # fmt: skip
            for row in ROWS:
                lines.append(measured(row, architecture, chosen.fresh, chosen.cached))
                print("  ".join(cells(lines[-1])), flush=True)
            lines += on_htp(architecture)
        print(write(lines, time.time() - start, chosen.cached))
    return 0


if __name__ == "__main__":
    sys.exit(main())
