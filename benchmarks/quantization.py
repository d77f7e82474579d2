"""int8, mixed and 4-bit MobileNetV3, ours and those of others, on the same images.

    python benchmarks/quantization.py             # every row: benchmarks/results/quantization.*
    python benchmarks/quantization.py --images 32 -o FOLDER       # the same rows on 32 images

`--htp-images`, `--calibration`, `--training` and `--steps` make a trial of the command shorter.
Every row: the shipped Things-16 checkpoint at 128 px, 256 calibration images. What is measured is
the file that was written, in its runtime: ONNX Runtime, LiteRT (Google's quantizer is installed
into its own environment in the cache, 1.2 GB, once) and Qualcomm's HTP simulator. A row that
could not be made says why, and the exit code is then 1.

Files, trained networks and answers are kept by the content of all that they depend on (see
content_cache.py), so a run that was stopped resumes, and what changed is made again; `--fresh`
forgets them all, training included. Needs the cores for itself; the time of a row is that of
quantizing (for QAT: of training), on this machine.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import content_cache
import numpy as np
import results
from quantization_inputs import BATCH, PREPROCESSING, PROGRAM, SIZE, Inputs, float_file
from quantization_peers import LITERT, LiteRtRunner
from quantization_rows import Line, plan

from labutils import metrics, paths, runtime
from labutils.errors import LabError
from labutils.images import data
from labutils.runtime import qnn

# ---------------------------------------------------------------- measuring


def made(line: Line, inputs: Inputs) -> tuple[Path, float | None, bool]:
    """Return a row's file, the seconds that it took, and whether it was made in this run."""
    file = line.row.file(line.architecture, inputs)
    facts = file.with_suffix(".json")
    missing = not (file.exists() and facts.exists())
    if missing:
        start = time.time()
        seconds = line.row.make(line.architecture, file, inputs)
        entry = {
            "seconds": time.time() - start if seconds is None else seconds,
            **line.row.content(line.architecture, inputs),
        }
        paths.write_text(facts, json.dumps(entry, indent=2) + "\n")
    return file, json.loads(facts.read_text(encoding="utf-8"))["seconds"], missing


def connected(file: Path, where: str) -> content_cache.Remembered:
    """Return the runner of a file; it starts for answers that are not kept."""
    connect: Callable[[], runtime.Runner]
    if where == "LiteRT":
        connect, versions = (lambda: LiteRtRunner(file)), dict(p.split("==") for p in LITERT)
    elif where == "HTP simulator":
        connect = lambda: runtime.connect(file, "htp")  # noqa: E731
        versions = paths.versions("onnxruntime", "onnxruntime-qnn")
    else:
        connect = lambda: runtime.connect(file, "ort")  # noqa: E731
        versions = paths.versions("onnxruntime")
    return content_cache.Remembered(file, connect, PROGRAM, where, versions)


def logits_of(file: Path, where: str, split: str, n: int) -> np.ndarray:
    """Run the first `n` images of a split, or find what an earlier run answered."""
    pixels, start, parts = data.load(split, n, SIZE).images, time.time(), []
    with connected(file, where) as runner:
        for i in range(0, n, BATCH):
            parts.append(runner.run(PREPROCESSING(pixels[i : i + BATCH])))
            if i and i % 320 == 0 and time.time() - start > 10:
                took = time.time() - start
                print(f"  {file.stem}, {where}: {i}/{n} images, {took:.0f} s", flush=True)
    return np.concatenate(parts)


def measured(line: Line, inputs: Inputs) -> dict[str, object]:
    """Return one line of the table, or the reason why it could not be made."""
    found: dict[str, object] = {
        "model": line.architecture, "group": line.row.group, "by": line.row.by,
        "what": line.row.name, "runtime": line.runtime,
    }  # fmt: skip
    htp = line.runtime == "HTP simulator"
    try:
        if htp and not qnn.probe().ok:
            raise LabError(qnn.probe().reason)
        file, seconds, new = made(line, inputs)
        n = inputs.htp_images if htp else inputs.images
        logits = logits_of(file, line.runtime, inputs.split, n)
        exact = logits_of(float_file(line.architecture), "ORT", inputs.split, n)
    except Exception as error:  # a peer's own error is a result: it goes into the table
        reason = " ".join(str(error).split())[:160]
        return found | {"note": f"{type(error).__name__}: {reason}"}
    found |= figures(logits, exact, data.load(inputs.split, n, SIZE).labels)
    quiet = htp or line.row.group == "float"
    return found | {"MB": file.stat().st_size / 1e6, "made": new,
                    "seconds": None if quiet else seconds}  # fmt: skip


def figures(logits: np.ndarray, exact: np.ndarray, labels: np.ndarray) -> dict[str, object]:
    """Return accuracy, paired difference, agreement and SQNR of logits against the float ones."""
    right, was = metrics.correct(logits, labels), metrics.correct(exact, labels)
    return {
        "n": len(logits), "top1": metrics.accuracy(logits, labels),
        "difference": metrics.paired_difference(right, was),
        "agreement": metrics.agreement(logits, exact),
        "sqnr": metrics.sqnr_db(exact, logits), "right": right,
    }  # fmt: skip


# ---------------------------------------------------------------- the table

COLUMNS = ("model", "group", "by", "what", "runtime", "n", "top-1 % [95 %]",
           "minus fp32, points", "agrees %", "SQNR dB", "MB", "seconds")  # fmt: skip


def cells(line: dict[str, object]) -> list[str]:
    """Return the words of a line."""
    head = [str(line[k]) for k in ("model", "group", "by", "what", "runtime")]
    if "note" in line:
        return [*head, f"not made: {line['note']}", *[""] * 6]
    top1, (low, high) = line["top1"], line["top1"].interval
    difference = line["difference"]
    a, b = difference.interval
    return [
        *head, str(line["n"]), f"{100 * top1.value:.2f} [{100 * low:.1f}, {100 * high:.1f}]",
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


READING = (
    "Accuracy of the file that was written, in its runtime. QAT: seconds of its training.",
    "A verdict takes our best row of several; the peers run as their documentation says, untuned.",
    "torchao pt2e route, min-max: places, bits and symmetry of our recipes int8 and w4a8; torchao's"
    " observers leave no images out.",
)


def head(inputs: Inputs) -> list[str]:
    """Return the first lines of both files."""
    images = f"split {inputs.split}, {inputs.images} images at {SIZE} px"
    if inputs.htp_images != inputs.images:
        images += f" ({inputs.htp_images} on the HTP simulator)"
    images += f"; {inputs.calibration} calibration images; shipped Things-16 checkpoints"
    return results.head(
        results.command("quantization.py"), images, "torch", "onnxruntime", "torchao",
        "onnxruntime-qnn", developed=inputs.split == "val",
    )  # fmt: skip


def write(lines: list[dict[str, object]], beginning: list[str], took: float, place: Path) -> str:
    """Write CSV and text into a folder; return the text."""
    table = [COLUMNS, *(cells(line) for line in lines)]
    # a reason why not runs on to the right; it must not widen the column that it starts in
    counted = [["" if c.startswith("not made") else c for c in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*counted, strict=True)]
    text = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table
    ]
    new = sum(bool(line.get("made")) for line in lines)
    ran = f"{new} files were made in this run, which took {took / 60:.0f} min; the others earlier."
    full = "\n".join([*beginning, *READING, ran, "", *text, "", *verdicts(lines)]) + "\n"
    paths.write_text(place / "quantization.txt", full)
    buffer = io.StringIO(results.commented(beginning))
    buffer.seek(0, io.SEEK_END)
    csv.writer(buffer, lineterminator="\n").writerows(table)
    paths.write_text(place / "quantization.csv", buffer.getvalue())
    return full


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = Inputs()
    parser.add_argument("--split", choices=("val", "test"), default=usual.split)
    parser.add_argument("--images", type=int, default=usual.images)
    parser.add_argument("--htp-images", type=int, help="on the simulator; default: as --images")
    parser.add_argument("--calibration", type=int, default=usual.calibration)
    parser.add_argument("--training", type=int, default=usual.training, help="images, for QAT")
    parser.add_argument("--steps", type=int, help="of QAT; default: those of the recipe")
    parser.add_argument(
        "--fresh", action="store_true", help="forget what is kept, make it all again"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER",
                        help="default: benchmarks/results, for a run on all images")  # fmt: skip
    chosen = parser.parse_args(arguments)
    inputs = Inputs(
        chosen.split, chosen.images, chosen.htp_images or chosen.images, chosen.calibration,
        chosen.training, chosen.steps,
    )  # fmt: skip
    place = results.place(chosen.output, inputs == Inputs(split=chosen.split))
    if place is None:
        parser.error("pass -o FOLDER: a smaller run does not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    start, lines, beginning = time.time(), [], head(inputs)
    for line in plan():
        lines.append(measured(line, inputs))
        print("  ".join(cells(lines[-1])), flush=True)
    print(write(lines, beginning, time.time() - start, place))
    return 1 if any("note" in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
