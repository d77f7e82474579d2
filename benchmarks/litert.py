"""PyTorch, Keras and TFLite side by side: the table of the report, with intervals.

    python benchmarks/litert.py                  # 20,000 test images; benchmarks/results/litert.txt
    python benchmarks/litert.py --images 200 --networks mobilenet_v3_small --set things16 -o FOLDER

For each network: PyTorch; the same network described in Keras; the float ``.tflite``; and integer
ones by our recipes, by ai-edge-quantizer's own static recipe, by onnx2tf's full int8 (of our ONNX
file at opset 18, per channel, on as many calibration images as it takes when it is given none),
with int16 activations, and with the dynamic range alone. Ours have passed the gate; a peer's is
measured in any case. Top-1 and top-5, the agreement with PyTorch (its first class is the file's
first, or among its first five), and the points of top-1 that are lost, image by image. Files and
answers are kept by content (see content_cache.py), so a run that was stopped resumes; `--fresh`
forgets them. The tools ``litert``, ``keras`` and ``onnx2tf`` are needed (`labutils tools install`).
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import content_cache
import numpy as np
import results

from labutils import (
    export,
    litert,
    metrics,
    paths,
    pipeline,
    quantize,
    representation,
    runtime,
    tabular,
)
from labutils.errors import LabError
from labutils.images import data
from labutils.metrics import Proportion
from labutils.models import zoo
from labutils.pipeline import steps
from labutils.representation import keras_program
from labutils.tools import calling, environment

PROGRAM = "litert"
NETWORKS = ("fbnet_a", "mobilenet_v3_large", "mobilenet_v3_small")
SIZE, IMAGES, BATCH = 128, 20_000, 100
COLUMNS = ("network", "what", "file", "MB", "n", "top-1", "top-5", "top-1 as PyTorch",
           "PyTorch's class in the top-5", "points lost", "SQNR dB")  # fmt: skip
ONNX2TF = "onnx2tf"
ONNX2TF_IMAGES = 20
"""Its default, which kept most answers of 20, 100 and 256 on 320 images of val (both networks)."""

RECIPES = {
    "TFLite fp32": None,
    "TFLite int8, ours": "int8",
    "TFLite int8, ai-edge-quantizer's static": "static",
    "TFLite int8, onnx2tf's": ONNX2TF,
    "TFLite int16x8": "int16x8",
    "TFLite int8, dynamic range": "dynamic",
}
"""Row -> recipe, or `ONNX2TF`, which has its own."""


@dataclass(frozen=True)
class Made:
    """A row's file and what runs it; `file` None is the network in memory."""

    file: Path | None
    runner: runtime.Runner | content_cache.Remembered


def network(name: str, image_set: str) -> zoo.Model:
    """Return a network of the lab with the checkpoint that learned a set."""
    return zoo.load(name, image_set, SIZE)


def stem(name: str, image_set: str, kind: str) -> str:
    """Return what a file is called, after the report's scheme.

    Examples
    --------
    >>> stem("fbnet_a", "things16", "int8"), stem("fbnet_a", "things16", "")
    ('fbnet_a_things16_int8_128x128_model', 'fbnet_a')
    """
    return f"{name}_{image_set}_{kind}_{SIZE}x{SIZE}_model" if kind else name


def kept(name: str, image_set: str, what: str) -> Path:
    """Return where the file of a row is kept: in a folder of what it depends on."""
    checkpoint = data.checkpoint_name(name, image_set)
    digest = content_cache.key(
        checkpoint=content_cache.checkpoint(checkpoint), what=what, images=content_cache.drawn(),
        tools=[environment.survey(tool).lock.digest for tool in tools_of(what)],
        code=content_cache.code(litert, representation), onnx2tf_images=ONNX2TF_IMAGES,
    )  # fmt: skip
    kind = {None: ""}.get(RECIPES.get(what), "int8" if "int8" in what else "int16x8")
    if RECIPES.get(what) in ("static", "dynamic", ONNX2TF):
        kind = f"{kind}_{RECIPES[what]}"
    ending = ".keras" if what == "Keras" else ".tflite"
    folder = paths.folder(content_cache.folder(PROGRAM) / f"{image_set}_{digest}")
    return folder / f"{stem(name, image_set, kind if what != 'Keras' else '')}{ending}"


def tools_of(what: str) -> tuple[str, ...]:
    """Return the tools that a row's file depends on."""
    return (ONNX2TF,) if RECIPES.get(what) == ONNX2TF else ("litert", "keras")


class Keras:
    """A network described in Keras, in the environment of that tool."""

    def __init__(self, text: str, weights: dict[str, np.ndarray]) -> None:
        self.name, self.runtime, self.file = "Keras", "Keras 3 on PyTorch", None
        self.text, self.weights = text, weights
        self.tool = calling.Tool("keras", Path(keras_program.__file__))

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return logits (n, classes) for images (n, 3, size, size)."""
        found = self.tool.ask("run", text=self.text, images=batch, **self.weights)
        return np.asarray(found["logits"], np.float32)

    def save(self, file: Path) -> None:
        """Write the ``.keras`` file."""
        self.tool.ask("save", text=self.text, file=file, **self.weights)

    def close(self) -> None:
        """End the tool's process."""
        self.tool.close()


def described(model: zoo.Model) -> Keras:
    """Return a network in Keras, by way of the representation."""
    description, weights = representation.import_torch(model.module, SIZE, model.name)
    return Keras(description.to_yaml(), {n: value.numpy() for n, value in weights.items()})


def make(name: str, image_set: str, what: str) -> Made:
    """Return the file of a row, made unless it is kept, and its runner."""
    model = network(name, image_set)
    if what == "PyTorch":
        return Made(None, runtime.connect(model.module, name=name))
    file = kept(name, image_set, what)
    if what == "Keras":
        keras = described(model)
        if not file.exists():
            with paths.atomic(file) as temporary:
                keras.save(temporary)
        remembered = content_cache.Remembered(file, lambda: keras, PROGRAM, "Keras", {})
        return Made(file, remembered)
    if not file.exists():
        convert(model, RECIPES[what], file)
    versions = paths.versions("ai-edge-litert")
    connect = functools.partial(runtime.connect, file)
    return Made(file, content_cache.Remembered(file, connect, PROGRAM, "LiteRT", versions))


def convert(model: zoo.Model, recipe: str | None, file: Path) -> None:
    """Write a ``.tflite``: ours only when it passes the gate, a peer's integer one in any case."""
    if recipe == ONNX2TF:
        quantize_by_onnx2tf(model, file)
    elif recipe in litert.OWN:
        quantize_by_google(model, recipe, file)
    else:
        pipeline.convert_to_litert(model, file, recipe=recipe)


def quantize_by_google(model: zoo.Model, recipe: str, file: Path) -> None:
    """Write an integer file by one of ai-edge-quantizer's own recipes."""
    images = calibration(model).transpose(0, 2, 3, 1)[:, None]  # one after the other
    with tempfile.TemporaryDirectory() as folder, paths.atomic(file) as temporary:
        source = Path(folder) / "float.tflite"
        pipeline.convert_to_litert(model, source)
        with calling.opened("litert", litert.TOOL_PROGRAM) as tool:
            made = {"file": source, "made": temporary, "recipe": litert.OWN[recipe]}
            tool.ask("quantize_plainly", images=np.ascontiguousarray(images), **made)


def quantize_by_onnx2tf(model: zoo.Model, file: Path) -> None:
    """Write onnx2tf's full-int8 file."""
    images = calibration(model)[:ONNX2TF_IMAGES]
    with tempfile.TemporaryDirectory() as folder, paths.atomic(file) as temporary:
        source = Path(folder) / f"{model.name}.onnx"
        export.to_onnx(model, source, size=SIZE, opset=18, exporter="dynamo")
        with calling.opened(ONNX2TF, litert.ONNX2TF_PROGRAM) as tool:
            tool.ask("quantize", file=source, made=temporary, images=images)


def calibration(model: zoo.Model) -> np.ndarray:
    """Return what peers calibrate on: (n, 3, size, size) float32, normalized."""
    pixels = steps.calibration_images(model, quantize.Calibration().images).images
    return model.known_preprocessing()(np.asarray(pixels))


def answers(made: Made, model: zoo.Model, split: str, n: int, image_set: str) -> np.ndarray:
    """Return logits (n, classes) of the first images of a split."""
    pixels = data.load(split, n, SIZE, image_set).images
    prepare = model.known_preprocessing()
    parts = []
    for start in range(0, n, BATCH):
        parts.append(made.runner.run(prepare(np.asarray(pixels[start : start + BATCH]))))
        print(f"\r{start + len(parts[-1])} of {n}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return np.concatenate(parts)


def row(name: str, what: str, chosen: argparse.Namespace, exact: np.ndarray | None) -> tuple:
    """Return the cells of a row, and its logits."""
    n, image_set = chosen.images, chosen.set
    model = network(name, image_set)
    made = make(name, image_set, what)
    try:
        logits = answers(made, model, chosen.split, n, image_set)
    finally:
        made.runner.close()
    labels = data.load(chosen.split, n, SIZE, image_set).labels
    reference = logits if exact is None else exact
    lost = metrics.paired_difference(
        metrics.correct(reference, labels), metrics.correct(logits, labels)
    )
    cells = (
        name, what, made.file.name if made.file else "-",
        f"{made.file.stat().st_size / 1e6:.2f}" if made.file else "-", str(n),
        str(metrics.accuracy(logits, labels)), str(metrics.accuracy(logits, labels, 5)),
        str(metrics.agreement(reference, logits)), str(among_five(reference, logits)),
        "-" if exact is None else str(lost),
        "-" if exact is None else f"{metrics.sqnr_db(reference, logits):.1f}",
    )  # fmt: skip
    return cells, logits


def among_five(reference: np.ndarray, logits: np.ndarray) -> Proportion:
    """Return how often PyTorch's first class is among the first five."""
    five = metrics.topk(logits, 5)
    return Proportion(int((five == reference.argmax(1)[:, None]).any(1).sum()), len(five))


def table(chosen: argparse.Namespace) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every row, or why it cannot be made."""
    for name in chosen.networks:
        exact = None
        for what in ("PyTorch", "Keras", *RECIPES):
            if chosen.rows and what not in chosen.rows:
                continue
            try:
                cells, logits = row(name, what, chosen, exact)
            except (LabError, FileNotFoundError) as error:
                yield (), f"{name}, {what}: not made: {' '.join(str(error).split())[:300]}"
                continue
            exact = logits if what == "PyTorch" else exact
            yield cells, ""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--set", choices=sorted(data.DRAWN), default="marked-things")
    parser.add_argument("--rows", nargs="+", choices=("Keras", *RECIPES), help="beside PyTorch")
    parser.add_argument("--fresh", action="store_true", help="forget what is kept")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    if chosen.rows:
        chosen.rows = ["PyTorch", *chosen.rows]
    whole = (chosen.images, chosen.split, len(chosen.networks)) == (IMAGES, "test", len(NETWORKS))
    place = results.place(chosen.output, whole and not chosen.rows)
    if place is None:
        parser.error("pass -o FOLDER: another run does not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    images = f"split {chosen.split} of {data.title_of(chosen.set)} (drawn), {chosen.images} images"
    beginning = results.head(
        results.command("litert.py", arguments), f"{images} at {SIZE} px", "torch",
        "ai-edge-litert", developed=chosen.split == "val",
    )  # fmt: skip
    made = []
    for cells, why in table(chosen):
        made.append((cells, why))
        print("  ".join(cells) or why, flush=True)
    rows, missing = [cells for cells, _ in made if cells], [why for _, why in made if why]
    title = "A network in PyTorch, in Keras and on LiteRT"
    text = tabular.text(title, COLUMNS, rows, missing)
    paths.write_text(paths.folder(place) / "litert.txt", "\n".join([*beginning, "", text]) + "\n")
    print(text)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
