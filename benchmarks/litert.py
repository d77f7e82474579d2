"""PyTorch, Keras and TFLite side by side: the table of the report, with intervals.

    python benchmarks/litert.py                  # Marked Things; benchmarks/results/litert.txt
    python benchmarks/litert.py --set things16   # benchmarks/results/litert_things16.txt
    python benchmarks/litert.py --int16          # litert_int16.txt; with --set, too
    python benchmarks/litert.py --images 200 --networks mobilenet_v3_small --set things16 -o FOLDER

For each network: PyTorch; the same network described in Keras; the float ``.tflite``; and integer
ones by our recipes, by ai-edge-quantizer's own static recipe, by onnx2tf's full int8 (of our ONNX
file at opset 18, per channel, on as many calibration images as it takes when it is given none),
with int16 activations, and with the dynamic range alone. Ours have passed the gate; a peer's is
measured in any case. Of 20,000 test images: top-1 and top-5; the agreement with PyTorch (its first
class is the file's first, or among its first five); the points of top-1 that are lost; the largest
difference of a logit. A second table sets our int8 against each peer's, image by image. A network
without a checkpoint is left out, and the file says so. `--int16` sets our 16-bit activations beside
ai-edge-quantizer's, on fewer images: LiteRT's kernels for them take ten times as long.

Files and answers are kept by content (see content_cache.py), so a run that was stopped resumes;
`--fresh` forgets them. The tools ``litert``, ``keras`` and ``onnx2tf`` are needed (`labutils tools
install`).
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import content_cache
import numpy as np
import results

import labutils
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
from labutils.tools import calling, environment, lock

PROGRAM = "litert"
NETWORKS = ("fbnet_a", "mobilenet_v3_large", "mobilenet_v3_small")
SIZE, IMAGES, BATCH = 128, 20_000, 100
COLUMNS = ("network", "what", "file", "MB", "n", "top-1 %", "top-5 %", "top-1 as PyTorch %",
           "PyTorch's class in the top-5 %", "points lost", "largest difference",
           "SQNR dB")  # fmt: skip
NOTE = "Largest difference: of a logit from PyTorch's, as a share of the largest."
AGAINST = ("network", "our int8 against", "n", "points of top-1 ahead",
           "points of agreement with PyTorch ahead")  # fmt: skip
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
INT16 = {
    "TFLite int16x8, ours": "a16w8",
    "TFLite int16x8, ai-edge-quantizer's": "int16x8",
}
IMAGES_INT16 = 5000
ALL = RECIPES | INT16
OURS = "TFLite int8, ours"
PEERS = ("TFLite int8, ai-edge-quantizer's static", "TFLite int8, onnx2tf's")
TOOLS = ("litert", "keras", ONNX2TF)


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
        code=content_cache.code(labutils, Path(__file__)), onnx2tf_images=ONNX2TF_IMAGES,
    )  # fmt: skip
    kind = {None: ""}.get(ALL.get(what), "int8" if "int8" in what else "int16x8")
    if ALL.get(what) in ("static", "dynamic", ONNX2TF):
        kind = f"{kind}_{ALL[what]}"
    ending = ".keras" if what == "Keras" else ".tflite"
    folder = paths.folder(content_cache.folder(PROGRAM) / f"{image_set}_{digest}")
    return folder / f"{stem(name, image_set, kind if what != 'Keras' else '')}{ending}"


def tools_of(what: str) -> tuple[str, ...]:
    """Return the tools that a row's file depends on."""
    return (ONNX2TF,) if ALL.get(what) == ONNX2TF else ("litert", "keras")


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
        convert(model, ALL[what], file)
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
    """Return the cells of a row, and its logits; `exact` are PyTorch's, None in its own row."""
    n, image_set = chosen.images, chosen.set
    model = network(name, image_set)
    made = make(name, image_set, what)
    try:
        logits = answers(made, model, chosen.split, n, image_set)
    finally:
        made.runner.close()
    labels = labels_of(chosen)
    size = f"{made.file.stat().st_size / 1e6:.2f}" if made.file else "-"
    cells = (
        name, what, made.file.name if made.file else "-", size, str(n),
        share(metrics.accuracy(logits, labels)), share(metrics.accuracy(logits, labels, 5)),
    )  # fmt: skip
    if exact is None:
        return (*cells, *["-"] * 5), logits
    lost = metrics.paired_difference(
        metrics.correct(exact, labels), metrics.correct(logits, labels)
    )
    return (
        *cells, share(metrics.agreement(exact, logits)), share(among_five(exact, logits)),
        points(lost), f"{litert.difference(exact, logits):.1e}",
        f"{metrics.sqnr_db(exact, logits):.1f}",
    ), logits  # fmt: skip


def labels_of(chosen: argparse.Namespace) -> np.ndarray:
    """Return the class of every image."""
    return np.asarray(data.load(chosen.split, chosen.images, SIZE, chosen.set).labels)


def share(found: Proportion) -> str:
    """Return a share in percent with its interval.

    Examples
    --------
    >>> share(Proportion(19_912, 20_000))
    '99.56 [99.46, 99.64]'
    """
    low, high = found.interval
    return f"{100 * found.value:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def points(found: metrics.PairedDifference) -> str:
    """Return a difference in points with its interval."""
    low, high = found.interval
    return f"{found.value:+.2f} [{low:+.2f}, {high:+.2f}]"


def among_five(reference: np.ndarray, logits: np.ndarray) -> Proportion:
    """Return how often PyTorch's first class is among the first five."""
    five = metrics.topk(logits, 5)
    return Proportion(int((five == reference.argmax(1)[:, None]).any(1).sum()), len(five))


def against(
    name: str, logits: dict[str, np.ndarray], labels: np.ndarray
) -> Iterator[tuple[str, ...]]:
    """Yield how far our int8 is ahead of each peer's, image by image.

    Parameters
    ----------
    name
        The network.
    logits
        Row -> its logits, of those rows that were made.
    labels
        The class of every image.
    """
    for peer in PEERS:
        if {"PyTorch", OURS, peer} <= logits.keys():
            classes = logits["PyTorch"].argmax(1)
            ahead = [
                metrics.paired_difference(
                    metrics.correct(logits[OURS], wanted), metrics.correct(logits[peer], wanted)
                )
                for wanted in (labels, classes)
            ]
            yield name, peer, str(len(labels)), *map(points, ahead)


@dataclass
class Tables:
    """Both tables, and why rows are missing."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    ahead: list[tuple[str, ...]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, name: str, chosen: argparse.Namespace) -> None:
        """Make the rows of a network; without PyTorch's there is nothing to compare with."""
        logits: dict[str, np.ndarray] = {}
        for what in ("PyTorch", *rows_of(chosen)):
            try:
                cells, logits[what] = row(name, what, chosen, logits.get("PyTorch"))
            except (LabError, FileNotFoundError) as error:
                said = " ".join(str(error).split())[:300]
                self.missing.append(f"{name}, {what}: not made: {said}")
                print(self.missing[-1], flush=True)
                if what == "PyTorch":
                    return
                continue
            self.rows.append(cells)
            print("  ".join(cells), flush=True)
        self.ahead += against(name, logits, labels_of(chosen))

    def __str__(self) -> str:
        title = "A network in PyTorch, in Keras and on LiteRT"
        text = tabular.text(title, COLUMNS, self.rows, [NOTE, *self.missing])
        if not self.ahead:
            return text
        return text + "\n\n" + tabular.text("Ours beside others", AGAINST, self.ahead)


def head(arguments: list[str] | None, chosen: argparse.Namespace) -> list[str]:
    """Return the first lines of the file, with the versions of the tools."""
    images = f"split {chosen.split} of {data.title_of(chosen.set)} (drawn), {chosen.images} images"
    lines = results.head(
        results.command("litert.py", arguments), f"{images} at {SIZE} px", "torch",
        "ai-edge-litert", developed=chosen.split == "val",
    )  # fmt: skip
    packages = {name: v for tool in TOOLS for name, v in lock.find(tool).versions.items()}
    return [*lines, "Tools: " + ", ".join(f"{name} {v}" for name, v in packages.items())]


def rows_of(chosen: argparse.Namespace) -> tuple[str, ...]:
    """Return the rows that are asked for, beside PyTorch's."""
    known = INT16 if chosen.int16 else ("Keras", *RECIPES)
    return tuple(row for row in known if row in (chosen.rows or known))


def file_name(image_set: str, *, int16: bool = False) -> str:
    """Return what the results of a set are called."""
    name = "litert_int16" if int16 else "litert"
    return f"{name}.txt" if image_set == "marked-things" else f"{name}_{image_set}.txt"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--images", type=int)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--set", choices=sorted(data.DRAWN), default="marked-things")
    parser.add_argument("--rows", nargs="+", choices=("Keras", *ALL), help="beside PyTorch")
    parser.add_argument("--int16", action="store_true", help="16-bit activations, ours and theirs")
    parser.add_argument("--fresh", action="store_true", help="forget what is kept")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    images = IMAGES_INT16 if chosen.int16 else IMAGES
    chosen.images = chosen.images or images
    whole = (chosen.images, chosen.split, len(chosen.networks)) == (images, "test", len(NETWORKS))
    place = results.place(chosen.output, whole and not chosen.rows)
    if place is None:
        parser.error("pass -o FOLDER: another run does not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    beginning, made = head(arguments, chosen), Tables()
    for name in chosen.networks:
        made.add(name, chosen)
    text = "\n".join([*beginning, "", str(made)]) + "\n"
    paths.write_text(paths.folder(place) / file_name(chosen.set, int16=chosen.int16), text)
    print(made)
    return 1 if made.missing else 0


if __name__ == "__main__":
    sys.exit(main())
