"""What sound files reach by the gate's own figures: the reason for its thresholds.

    python benchmarks/gate.py                    # writes benchmarks/results/gate.txt
    python benchmarks/gate.py --images 16 --htp-images 4 -o FOLDER

For both shipped networks and every kind of `labutils.compare.gating.THRESHOLDS` (but the one of
D-Robotics' simulator, which only its users have): the mean cosine of
the logits, the worst image's, SQNR and top-1 agreement, against the network in PyTorch. Float files
are exported, quantized ones made by the presets int8 and a16w8 as `labutils convert` makes them.
Below, on Marked Things, whose images are harder to decide: what int8 keeps of all answers and of
those that the network decides, beside plain ranges, which the gate refuses where they cost points.
Files and answers are kept by content (see content_cache.py); `--fresh` forgets them.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import content_cache
import numpy as np
import results
from quantization_inputs import BATCH, PREPROCESSING, SIZE, Inputs, float_file, tool

from labutils import compare, metrics, paths, quantize, runtime, tabular
from labutils.compare import closeness, gating
from labutils.errors import ParityError
from labutils.images import data
from labutils.models import architectures, zoo
from labutils.pipeline import steps
from labutils.runtime import qnn

PROGRAM = "gate"
ARCHITECTURES = ("mobilenet_v3_large", "mobilenet_v3_small")
HARDER, RECIPES, GATE_IMAGES = "marked-things", ("int8", "int8_minmax"), 32
COLUMNS = ("model", "kind", "n", "judged by", "asked for", "mean cosine", "worst image", "SQNR dB",
           "agrees with PyTorch")  # fmt: skip

COLUMNS_WHERE_DECIDED = ("model", "recipe", "points [95 %]", "agrees", "where decided", "gate")


def plan() -> Iterator[tuple[str, str]]:
    """Yield (architecture, kind) of every row."""
    for architecture in ARCHITECTURES:
        for kind in gating.THRESHOLDS:
            if kind != "bpu_int8":
                yield architecture, kind


def file_of(architecture: str, recipe: str, image_set: str = data.THINGS16) -> Path:
    """Return the float export, or the file that a preset makes of it."""
    inputs = Inputs(image_set=image_set)
    source = float_file(architecture, inputs)
    if recipe.startswith("fp"):
        return source
    key = content_cache.key(
        checkpoint=inputs.checkpoint(architecture), calib=steps.CALIBRATION_IMAGES,
        recipe=quantize.load_recipe(recipe).to_yaml(), size=SIZE, images=content_cache.drawn(),
        tool=tool(),
    )  # fmt: skip
    file = content_cache.folder(PROGRAM) / f"{architecture}_{recipe}_{key}.onnx"
    if not file.exists():
        images = data.calibration(steps.CALIBRATION_IMAGES, SIZE, image_set)
        quantize.static(source, file, images, recipe, preprocessing=PREPROCESSING)
    return file


@functools.cache
def exact(architecture: str, split: str, n: int, image_set: str = data.THINGS16) -> np.ndarray:
    """Return the logits of the network in PyTorch."""
    model = zoo.load(architecture, weights=image_set)
    with runtime.connect(model.module, name=architecture) as runner:
        return answers(runner, split, n, image_set)


def answers(
    runner: runtime.Runner, split: str, n: int, image_set: str = data.THINGS16
) -> np.ndarray:
    """Return logits (n, classes) of the first images of a split."""
    pixels = data.load(split, n, SIZE, image_set).images
    parts = [runner.run(PREPROCESSING(pixels[i : i + BATCH])) for i in range(0, n, BATCH)]
    return np.concatenate(parts)


def row(architecture: str, kind: str, split: str, n: int) -> tuple[str, ...]:
    """Return one line of the table."""
    backend, recipe = kind.split("_")
    file = file_of(architecture, recipe)
    packages = ("onnxruntime", "onnxruntime-qnn") if backend == "htp" else ("onnxruntime",)
    with content_cache.Remembered(
        file, lambda: runtime.connect(file, backend), PROGRAM, backend, paths.versions(*packages)
    ) as runner:
        found = compare.parity(exact(architecture, split, n), answers(runner, split, n))
    judged = "worst image" if kind in gating.BY_THE_WORST else "mean"
    return (
        architecture, kind, str(n), judged, f"{gating.THRESHOLDS[kind]:g}",
        f"{found.cosine_mean:.5f}", f"{found.cosine_min:.5f}", f"{found.sqnr_db:.1f}",
        str(found.agreement),
    )  # fmt: skip


def row_where_decided(architecture: str, recipe: str, split: str, n: int) -> tuple[str, ...]:
    """Return one line of the second table."""
    file, whole = file_of(architecture, recipe, HARDER), exact(architecture, split, n, HARDER)
    images = data.load(split, n, SIZE, HARDER)
    with content_cache.Remembered(
        file, lambda: runtime.connect(file), PROGRAM, "ort", paths.versions("onnxruntime")
    ) as runner:
        found = answers(runner, split, n, HARDER)
    hits = (metrics.correct(logits, images.labels) for logits in (found, whole))
    lead = gating.least_lead(gating.THRESHOLDS["ort_int8"])
    return (
        architecture, recipe, str(metrics.paired_difference(*hits)),
        str(metrics.agreement(whole, found)),
        str(closeness.agreement_where_decided(whole, found, lead)),
        word(architecture, file, PREPROCESSING(images.images[:GATE_IMAGES])),
    )  # fmt: skip


def word(architecture: str, file: Path, inputs: np.ndarray) -> str:
    """Return what the gate itself says of an int8 file."""
    model = zoo.load(architecture, weights=HARDER)
    with runtime.connect(model.module) as ours, runtime.connect(file) as theirs:
        try:
            compare.gate(ours, theirs, inputs, kind="ort_int8", locate=False)
        except ParityError:
            return "refused"
    return "passed"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--htp-images", type=int, default=32)
    parser.add_argument("--fresh", action="store_true", help="forget what is kept")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    place = results.place(chosen.output, (chosen.images, chosen.htp_images) == (1600, 32))
    if place is None:
        parser.error("pass -o FOLDER: another run does not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    images = f"split {chosen.split} (drawn), at {SIZE} px, as many as a row says"
    beginning = results.head(
        results.command("gate.py", arguments), images, "torch", "onnxruntime", "onnxruntime-qnn",
        developed=chosen.split == "val",
    )  # fmt: skip
    rows, missing = [], []
    for architecture, kind in plan():
        if kind.startswith("htp") and not qnn.probe().ok:
            missing.append(f"{architecture}, {kind}: not made: {qnn.probe().reason}")
            continue
        n = chosen.htp_images if kind.startswith("htp") else chosen.images
        rows.append(row(architecture, kind, chosen.split, n))
        print("  ".join(rows[-1]), flush=True)
    title = "The gate's figures for sound files of the shipped networks, against PyTorch"
    text = tabular.text(title, COLUMNS, rows, missing)
    harder = [
        row_where_decided(architecture, recipe, chosen.split, chosen.images)
        for architecture in (*ARCHITECTURES, architectures.FBNET_A)
        for recipe in RECIPES
    ]
    lead = f"{gating.least_lead(gating.THRESHOLDS['ort_int8']):.3f}"
    notes = [
        f"where decided: the network's first class leads by {lead} of the spread of an image's "
        "logits (in the median), which is the noise that the gate's cosine allows. "
        f"gate: on {GATE_IMAGES} images."
    ]
    title = f"int8 in ONNX Runtime on {HARDER}: all answers, and those that the network decides"
    text += "\n\n" + tabular.text(title, COLUMNS_WHERE_DECIDED, harder, notes)
    paths.write_text(place / "gate.txt", "\n".join([*beginning, "", text]) + "\n")
    print(text)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
