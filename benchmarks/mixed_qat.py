"""Mixed precision carried into training: 16 bits where they pay, then training with the rounding.

    python benchmarks/mixed_qat.py --whole --set marked-things --split test   # what is recorded
    python benchmarks/mixed_qat.py -o FOLDER                  # a trial: few images, few steps

One network, and what becomes of it at int8 and with 16-bit activations for a share of the MACs
(`--mac-share`): quantized after training, and trained for as many steps on the same images in the
same order, with the rounding in place. The original is trained as long too, without rounding.
Accuracy is that of the exported ONNX files in ONNX Runtime, on the same validation images, and
differences are paired. Files are kept by the content of all that they depend on (see
content_cache.py), so a run that was stopped resumes; `--fresh` forgets them.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import content_cache
import numpy as np
import quantization_training as training
import results
from quantization_inputs import PREPROCESSING, SIZE, Inputs, tool, usual

from labutils import export, metrics, paths, quantize, runtime, tabular
from labutils.images import data
from labutils.quantize import mixed
from labutils.quantize.recipe import Recipe
from labutils.quantize.training import qat

PROGRAM = "mixed_qat"
ARCHITECTURES = ("mobilenet_v3_large", "mobilenet_v3_small")
TRIAL = {"images": 64, "calibration": 32, "training": 128, "steps": 2}
SHARE = 0.15
START = quantize.load_recipe("int8@1")
QAT = quantize.load_recipe("int8_qat@1")
"""Both choose ranges and do nothing else: the table is about what 16 bits and training bring."""


@dataclasses.dataclass(frozen=True)
class Row(results.Judged):
    """One way to make a file, and what its answers are worth."""

    sqnr_db: float
    mac_share: float
    steps: int
    bytes: int


def main() -> None:
    """Quantize, search, train and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=ARCHITECTURES, default=ARCHITECTURES[0])
    parser.add_argument("--set", dest="image_set", choices=list(data.DRAWN), default=data.THINGS16)
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--mac-share", type=float, default=SHARE)
    parser.add_argument("--whole", action="store_true", help="all images, the recipe's steps")
    for name, value in TRIAL.items():
        parser.add_argument(f"--{name}", type=int, help=f"of a trial ({value})")
    parser.add_argument("--fresh", action="store_true", help="forget what is kept, train again")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args()
    given = {name: getattr(chosen, name) for name in TRIAL}
    whole = chosen.whole and chosen.mac_share == SHARE and not any(given.values())
    place = results.place(chosen.output, whole)
    if place is None:
        parser.error("pass -o FOLDER, or --whole alone: a trial does not replace what is recorded")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    inputs = chosen_inputs(chosen, given)
    bench = Bench(chosen.model, inputs, chosen.mac_share)
    write([bench.row(*stage) for stage in bench.stages()], chosen, inputs, place)


def chosen_inputs(chosen: argparse.Namespace, given: dict[str, int | None]) -> Inputs:
    """Return how many images of each kind there are, and how many steps."""
    asked = {name: value for name, value in given.items() if value}
    if chosen.whole:
        return dataclasses.replace(usual(chosen.split, chosen.image_set), **asked)
    return Inputs(chosen.split, image_set=chosen.image_set, **{**TRIAL, **asked})


class Bench:
    """Makes the files of one network, each once, and judges them on the same images."""

    def __init__(self, architecture: str, inputs: Inputs, share: float) -> None:
        self.architecture, self.inputs, self.share = architecture, inputs, share
        self.model = inputs.model(architecture)
        self.images = inputs.judged(inputs.images)
        self.found: mixed.MixedReport | None = None
        self.exact = self.answers(self.file("fp32", self.write_float))

    def stages(self) -> list[tuple[str, Path, Recipe | None, bool]]:
        """Return (name, file, recipe, whether it was trained), the original first."""
        plain, wide = START, self.searched()
        trained = QAT, wide.replaced(qat=QAT.qat)
        return [
            ("fp32", self.file("fp32", self.write_float), None, False),
            ("fp32, trained as long", self.file("long", self.write_trained_float), None, True),
            ("int8", self.quantized(plain), plain, False),
            ("mixed", self.quantized(wide), wide, False),
            ("int8, trained", self.trained(trained[0]), trained[0], True),
            ("mixed, trained", self.trained(trained[1]), trained[1], True),
        ]

    def file(
        self, what: str, make: Callable[[Path], object], suffix: str = ".onnx", **content: Any
    ) -> Path:
        """Return a file by the content of what it is made of; it is made when it is missing."""
        key = content_cache.key(
            what=what, checkpoint=self.inputs.checkpoint(self.architecture), size=SIZE,
            inputs=self.learned_from(), images=content_cache.drawn(), tool=tool(),
            code=content_cache.code(Path(__file__), Path(training.__file__)), **content,
        )  # fmt: skip
        place = content_cache.folder(PROGRAM) / f"{self.architecture}_{what}_{key}{suffix}"
        if not place.exists():
            print(f"{what}: {place.name}", flush=True)
            make(place)
        return place

    def learned_from(self) -> dict[str, Any]:
        """Return the inputs that a file depends on: not what it is judged on afterwards."""
        judged = ("split", "images", "htp_images")
        chosen = dataclasses.asdict(self.inputs).items()
        return {name: value for name, value in chosen if name not in judged}

    def write_float(self, place: Path) -> None:
        """Write the original."""
        export.to_onnx(self.model.module, place, size=SIZE, preprocessing=PREPROCESSING)

    def write_trained_float(self, place: Path) -> None:
        """Train the original without rounding, and write it."""
        recipe = QAT
        training.trained_as_long(self.architecture, place, self.inputs, recipe=recipe)

    def searched(self) -> Recipe:
        """Return the recipe that a search finds within the share of the MACs."""
        budget = mixed.Budget(mac_share=self.share)
        source = self.file("fp32", self.write_float)

        def search(place: Path) -> None:
            images = self.inputs.calibration_set()
            found = mixed.search(source, images, budget, START, preprocessing=PREPROCESSING)
            print(found, flush=True)
            found.recipe.save(place)

        return quantize.load_recipe(self.file("search", search, ".yaml", share=self.share))

    def quantized(self, recipe: Recipe) -> Path:
        """Return the file of quantization after training."""
        source = self.file("fp32", self.write_float)

        def make(place: Path) -> None:
            images = self.inputs.calibration_set()
            quantize.static(source, place, images, recipe, preprocessing=PREPROCESSING)

        return self.file(recipe.name, make, recipe=recipe.sha256)

    def trained(self, recipe: Recipe) -> Path:
        """Return the file of the network that was trained with the rounding in place."""

        def make(place: Path) -> None:
            original = self.model.module
            student = qat.prepare(original, recipe, size=SIZE)
            qat.calibrate_(student, self.inputs.calibration_inputs())
            schedule = training.schedule(recipe, self.inputs)
            print(qat.fit_(student, teacher=original, on_step=training.Progressing(), **schedule))
            print(qat.to_qdq(student, place, size=SIZE, preprocessing=PREPROCESSING))

        return self.file(f"{recipe.name}-trained", make, recipe=recipe.sha256)

    def answers(self, file: Path) -> np.ndarray:
        """Return the file's logits on the images that are judged."""
        with runtime.connect(file) as runner:
            return np.concatenate(
                [runner.run(batch) for batch, _ in self.images.batches(32, PREPROCESSING)]
            )

    def row(self, stage: str, file: Path, recipe: Recipe | None, trained: bool) -> Row:
        """Return one line of the table."""
        logits, labels = self.answers(file), self.images.labels
        right, ours = (metrics.correct(x, labels) for x in (self.exact, logits))
        wide = recipe is not None and recipe.kind == "mixed"
        steps = training.schedule(recipe or QAT, self.inputs)["steps"]
        return Row(
            stage, *results.judged(ours, right), metrics.sqnr_db(self.exact, logits),
            self.share if wide else 0.0,
            steps if trained else 0, file.stat().st_size,
        )  # fmt: skip


def write(rows: list[Row], chosen: argparse.Namespace, inputs: Inputs, folder: Path) -> None:
    """Write the table as CSV and as text."""
    images = f"split {chosen.split} of {chosen.image_set} (drawn), {rows[0].n} images at {SIZE} px"
    head = results.head(
        results.command(f"{PROGRAM}.py"), images, "torch", "torchvision", "onnxruntime",
        developed=chosen.split == "val",
    )  # fmt: skip
    results.write_csv(folder / f"{PROGRAM}.csv", head, rows)
    columns = ("stage", "top-1", "95 %", "points to fp32", "dB", "% of MACs", "steps", "MB")
    cells = [
        (
            row.stage, *row.cells, f"{row.sqnr_db:.1f}",
            f"{100 * row.mac_share:g}" if row.mac_share else "-",
            str(row.steps or "-"), f"{row.bytes / 1e6:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    notes = [
        "% of MACs: at most so many with 16-bit activations; the search chose where.",
        f"Every trained row: the same {inputs.training} images, order and learning rate.",
    ]
    title = f"Mixed precision carried into training: {chosen.model} on {chosen.image_set}"
    table = tabular.text(title, columns, cells, notes)
    paths.write_text(folder / f"{PROGRAM}.txt", "\n".join([*head, "", table]) + "\n")
    print(table)


if __name__ == "__main__":
    main()
