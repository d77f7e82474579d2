"""What the preset `int8` was chosen by: candidate recipes on Marked Things, both sizes.

    python benchmarks/default_int8.py                # every candidate, on val
    python benchmarks/default_int8.py --split test   # the old preset and the new one, once

Every candidate quantizes the shipped network from the same calibration images; the file then
answers images in ONNX Runtime, and the large network the first of them on the HTP simulator: 10,000
of `test`, a quarter of a second each. Points are paired with the float network's.
Answers are kept by the content of all that they depend on (see content_cache.py), so that a stopped
run resumes. Writes benchmarks/results/default_int8.txt or default_int8_test.txt; a run on another
number of images needs `-o FOLDER`, too.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import content_cache
import numpy as np
import results

from labutils import export, metrics, paths, quantize, runtime, tabular
from labutils.images import data
from labutils.models import zoo
from labutils.onnxfile import session
from labutils.quantize.recipe import Calibration, Recipe
from labutils.runtime import qnn

PROGRAM, IMAGE_SET, SIZE = "default_int8", "marked-things", 128
ARCHITECTURES = ("mobilenet_v3_large", "mobilenet_v3_small")
CALIBRATION, BATCH = 512, 20
USUAL = {"val": (data.validation_images(IMAGE_SET), 0), "test": (20_000, 10_000)}
"""How many images in ONNX Runtime and on the HTP simulator (0: none), by split."""
JUDGED = ("int8@1", "int8@2")
"""What is judged on `test`: the preset that was, and the one that was chosen on `val`."""
PREPROCESSING = data.Preprocessing(SIZE)
NEW = quantize.load_recipe("int8@2")


def trimmed(share: float, vectors: float | None = None) -> Calibration:
    """Return min-max without a share of the images on either side."""
    return Calibration(images=CALIBRATION, outliers=share, vector_outliers=vectors)


CANDIDATES: dict[str, Recipe] = {
    "int8@1": quantize.load_recipe("int8@1"),
    "int8_trim": quantize.load_recipe("int8_trim"),
    "int8@2": NEW,
    "without flat ends": NEW.replaced(flat_ends=False),
    "without equalized gates": NEW.replaced(equalize_gates=False),
    "without corrected biases": NEW.replaced(correct_bias=False),
    "vectors as the rest": NEW.replaced(calibration=trimmed(0.05)),
    "2 % left out": NEW.replaced(calibration=trimmed(0.02, 0.01)),
    "10 % left out": NEW.replaced(calibration=trimmed(0.1, 0.01)),
}


def quantized(architecture: str, recipe: Recipe | None) -> Path:
    """Return the network as a file, written once: quantized by a recipe, or in float (None)."""
    key = content_cache.key(
        checkpoint=content_cache.checkpoint(data.checkpoint_name(architecture, IMAGE_SET)),
        recipe=recipe and recipe.to_dict(), images=content_cache.drawn(), calib=CALIBRATION,
        code=content_cache.code(quantize, export), versions=paths.versions("onnx", "onnxruntime"),
    )  # fmt: skip
    file = content_cache.folder(PROGRAM) / f"{architecture}_{key}.onnx"
    if not file.exists() and recipe is None:
        model = zoo.load(architecture, weights=IMAGE_SET)
        export.to_onnx(model.module, file, size=SIZE, preprocessing=PREPROCESSING)
    elif not file.exists():
        images = data.calibration(CALIBRATION, SIZE, IMAGE_SET)
        source = quantized(architecture, None)
        quantize.static(source, file, images, recipe, preprocessing=PREPROCESSING)
    return file


def answers(file: Path, images: data.ImageSet, where: str) -> np.ndarray:
    """Return the file's logits; `where` is ``ORT`` or ``HTP``."""
    backend = ("htp",) if where == "HTP" else ()
    connect: Callable = functools.partial(runtime.connect, file, *backend)
    versions = paths.versions("onnxruntime", "onnxruntime-qnn")
    versions |= {"session": content_cache.code(Path(session.__file__))}
    with content_cache.Remembered(file, connect, PROGRAM, where, versions) as runner:
        parts = [runner.run(inputs) for inputs, _ in images.batches(BATCH, PREPROCESSING)]
    return np.concatenate(parts)


def row(architecture: str, name: str, where: str, images: data.ImageSet) -> tuple[str, ...]:
    """Return a line of the table."""
    exact = answers(quantized(architecture, None), images, "ORT")
    found = answers(quantized(architecture, CANDIDATES[name]), images, where)
    right = [metrics.correct(logits, images.labels) for logits in (found, exact)]
    points = metrics.paired_difference(*right)
    low, high = points.interval
    difference = f"{points.value:+.2f} [{low:+.2f}, {high:+.2f}]"
    each = [metrics.sqnr_db(a, b) for a, b in zip(exact, found, strict=True)]
    agree = metrics.agreement(exact, found)
    return (
        architecture, name, where, str(len(images)), difference,
        f"{100 * agree.value:.2f}", f"{np.median(each):.1f}",
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=tuple(USUAL), default="val")
    parser.add_argument("--images", type=int, help="in ONNX Runtime")
    parser.add_argument("--htp", type=int, help="on the simulator; 0: none")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    usual = USUAL[chosen.split]
    given = (chosen.images, chosen.htp)
    many, simulated = (b if a is None else a for a, b in zip(given, usual, strict=True))
    place = results.place(chosen.output, (many, simulated) == usual)
    if place is None:
        parser.error("pass -o FOLDER: another run does not replace the recorded results")
    images = data.load(chosen.split, many, SIZE, IMAGE_SET)
    names = JUDGED if chosen.split == "test" else tuple(CANDIDATES)
    runs = [("ORT", images, architecture, names) for architecture in ARCHITECTURES]
    if simulated and qnn.probe().ok:
        newest = names[-1:] if chosen.split == "test" else names
        runs.append(("HTP", images.head(simulated), ARCHITECTURES[0], newest))
    rows = []
    for where, some, architecture, recipes in runs:
        for name in recipes:
            rows.append(row(architecture, name, where, some))
            print(*rows[-1], flush=True)
    columns = ("network", "recipe", "runtime", "n", "points to fp32", "agrees, %", "SQNR, dB")
    said = f"split {chosen.split} of {IMAGE_SET} (drawn), {many} images at {SIZE} px"
    head = results.head(
        results.command("default_int8.py", arguments), said, "torch", "onnxruntime",
        "onnxruntime-qnn", developed=chosen.split == "val",
    )  # fmt: skip
    notes = ["SQNR: of the logits, the median image. HTP: Qualcomm's simulator."]
    title = "Candidates for the preset int8" if chosen.split == "val" else "The preset int8"
    text = tabular.text(title, columns, rows, notes)
    file = "default_int8.txt" if chosen.split == "val" else "default_int8_test.txt"
    paths.write_text(place / file, "\n".join([*head, "", text]) + "\n")
    print(text)


if __name__ == "__main__":
    main()
