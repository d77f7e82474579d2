"""MobileNetV2 and EfficientNet-B0 at a part of their width: int8 and lite, trained and not.

    python benchmarks/reduced_width.py --whole --split test   # what is recorded
    python benchmarks/reduced_width.py -o FOLDER              # a trial: few images, few steps

Neither has weights in the lab: each is trained on drawn pictures first, then quantized after
training and in it. The lite form (the rule set ``lite``: no squeeze-excitation, ReLU throughout) is
trained with the original as teacher, and then quantized likewise. Accuracy is that of the exported
ONNX files in ONNX Runtime on the same images, and differences are paired. The rates are those that
the lab trains its own networks with; none was chosen by looking at these networks' accuracy. A run
that was stopped resumes; `--fresh` forgets what was trained.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import content_cache
import numpy as np
import results
import torch
from torch import nn

from labutils import export, metrics, paths, quantize, runtime, surgery, tabular, train
from labutils.images import data
from labutils.measure import complexity
from labutils.models import architectures
from labutils.quantize.presets import load
from labutils.quantize.training import qat

PROGRAM = "reduced_width"
NETWORKS = ("mobilenet_v2", "efficientnet_b0")
WIDTH, SIZE = 0.5, 96
PREPROCESSING = data.Preprocessing(SIZE)
TRIAL = {"images": 64, "calibration": 32, "training": 128, "steps": 2}
WHOLE = {"calibration": 256, "training": 20_000, "steps": 1500}
IMAGES = {"val": data.VALIDATION_IMAGES, "test": 20_000}
FURTHER = 0.1  # of the steps, for the lite form and for each training with the rounding


@dataclasses.dataclass(frozen=True)
class Row(results.Judged):
    """One file of one network, with what it costs."""

    network: str
    parameters: int
    macs: int
    bytes: int


def main() -> None:
    """Train, operate, quantize and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--set", dest="image_set", choices=list(data.DRAWN), default=data.THINGS16)
    parser.add_argument("--split", choices=tuple(IMAGES), default="val")
    parser.add_argument("--width", type=float, default=WIDTH)
    parser.add_argument("--whole", action="store_true", help="all images and steps")
    for name, value in TRIAL.items():
        parser.add_argument(f"--{name}", type=int, help=f"of a trial ({value})")
    parser.add_argument("--fresh", action="store_true", help="forget what is kept, train again")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args()
    given = {name: getattr(chosen, name) for name in TRIAL if getattr(chosen, name)}
    whole = chosen.whole and not given and not chosen.network and chosen.width == WIDTH
    recorded = whole and chosen.image_set == data.THINGS16 and chosen.split == "test"
    place = results.place(chosen.output, recorded)
    if place is None:
        parser.error(
            "pass -o FOLDER, or --whole --split test: a trial does not replace what is recorded"
        )
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    usual = WHOLE | {"images": IMAGES[chosen.split]} if chosen.whole else TRIAL
    sizes = usual | given
    rows = []
    with paths.scratch() as folder:
        for name in chosen.network or NETWORKS:
            judged = data.load(chosen.split, sizes["images"], SIZE, chosen.image_set)
            rows += Bench(name, chosen.width, judged, chosen.image_set, sizes, folder).rows()
    write(rows, chosen, sizes, place)


def built(name: str, width: float, classes: int) -> nn.Module:
    """Return a network of torchvision with a part of its channels, of seeded random weights."""
    models = architectures._models()
    torch.manual_seed(0)
    if name == "mobilenet_v2":
        return models.mobilenet_v2(weights=None, num_classes=classes, width_mult=width)
    block = functools.partial(models.efficientnet.MBConvConfig, width_mult=width, depth_mult=1.0)
    stages = (
        (1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2), (6, 3, 2, 40, 80, 3),
        (6, 5, 1, 80, 112, 3), (6, 5, 2, 112, 192, 4), (6, 3, 1, 192, 320, 1),
    )  # fmt: skip
    return models.EfficientNet([block(*stage) for stage in stages], 0.2, num_classes=classes)


class Bench:
    """Trains one network and its lite form, writes their files, and judges them."""

    def __init__(
        self, name: str, width: float, images: data.ImageSet, image_set: str,
        sizes: dict[str, int], folder: Path,
    ) -> None:  # fmt: skip
        self.name, self.width, self.image_set = name, width, image_set
        self.sizes, self.folder = sizes, folder
        self.network = built(name, width, len(data.classes_of(image_set)))
        self.calibration = data.calibration(sizes["calibration"], SIZE, image_set)
        self.images = images
        self.right: np.ndarray | None = None

    def rows(self) -> list[Row]:
        """Return the table's lines, the original first."""
        steps, further = self.sizes["steps"], max(1, round(FURTHER * self.sizes["steps"]))
        self.fit("fp32", self.network, steps, learning_rate=3e-3)
        original = self.network.eval()
        lite = copy.deepcopy(original)
        example = PREPROCESSING(self.calibration.images[:4])
        print(surgery.replace_(lite, "lite", example_inputs=torch.from_numpy(example)), flush=True)
        self.fit("lite", lite, further, teacher=original, learning_rate=1e-3)
        rows = []
        for words, network in (("", original), ("lite, ", lite.eval())):
            source = self.folder / f"{self.name}{'_lite' if words else ''}.onnx"
            export.to_onnx(network, source, size=SIZE, preprocessing=PREPROCESSING)
            ptq = source.with_suffix(".int8.onnx")
            quantize.static(source, ptq, self.calibration, preprocessing=PREPROCESSING)
            trained = self.trained(network, source.with_suffix(".qat.onnx"), further)
            rows += [
                self.row(f"{words}fp32", source, source),
                self.row(f"{words}int8", ptq, source),
                self.row(f"{words}int8, trained", trained, source),
            ]
        return rows

    def state(self, what: str) -> Path:
        """Return the file from which a training resumes."""
        key = content_cache.key(
            sizes={name: n for name, n in self.sizes.items() if name != "images"},
            width=self.width, drawn=content_cache.drawn(), image_set=self.image_set,
            code=content_cache.code(Path(__file__), train, quantize, surgery),
            **paths.versions("torch", "torchvision"),
        )  # fmt: skip
        return content_cache.folder(PROGRAM) / f"{self.name}_{what}_{key}.pt"

    def fit(self, what: str, network: nn.Module, steps: int, **settings: Any) -> None:
        """Train on the drawn pictures, in place."""
        network.requires_grad_(True)
        images = self.sizes["training"]
        done = train.fine_tune(
            network, steps=steps, size=SIZE, images=images, image_set=self.image_set,
            batch_size=min(64, images), state=self.state(what), **settings,
        )  # fmt: skip
        print(f"{self.name}: {done}", flush=True)
        train.estimate_batch_norm_(network, self.calibration, PREPROCESSING)

    def trained(self, network: nn.Module, file: Path, steps: int) -> Path:
        """Return the file of the network that was trained with the rounding in place."""
        student = qat.prepare(network, load("int8_qat@1"), size=SIZE)
        qat.calibrate_(student, self.calibration, PREPROCESSING)
        images = self.sizes["training"]
        qat.fit_(
            student, teacher=network, steps=steps, size=SIZE, images=images,
            image_set=self.image_set, batch_size=min(32, images), state=self.state(file.stem),
        )  # fmt: skip
        print(qat.to_qdq(student, file, size=SIZE, preprocessing=PREPROCESSING), flush=True)
        return file

    def row(self, stage: str, file: Path, source: Path) -> Row:
        """Return one line; the costs are those of the float file."""
        with runtime.connect(file) as runner:
            parts = [runner.run(batch) for batch, _ in self.images.batches(32, PREPROCESSING)]
        logits, labels = np.concatenate(parts), self.images.labels
        right = metrics.correct(logits, labels)
        self.right = right if self.right is None else self.right
        counted = complexity.count(source)
        return Row(
            stage, *results.judged(right, self.right), self.name, counted.parameters,
            counted.macs, file.stat().st_size,
        )  # fmt: skip


def write(rows: list[Row], chosen: argparse.Namespace, sizes: dict[str, int], folder: Path) -> None:
    """Write the table as CSV and as text."""
    images = f"split {chosen.split} of {chosen.image_set} (drawn), {rows[0].n} images at {SIZE} px"
    head = results.head(
        results.command(f"{PROGRAM}.py"), images, "torch", "torchvision", "onnxruntime",
        developed=chosen.split == "val",
    )  # fmt: skip
    first = "network", "stage"
    rest = [f.name for f in dataclasses.fields(Row) if f.name not in first]
    results.write_csv(folder / f"{PROGRAM}.csv", head, rows, [*first, *rest])
    columns = ("network", "stage", "top-1", "95 %", "points to fp32", "M par", "M MAC", "MB")
    cells = [
        (
            row.network, row.stage, *row.cells, f"{row.parameters / 1e6:.2f}",
            f"{row.macs / 1e6:.1f}", f"{row.bytes / 1e6:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    notes = [
        f"Trained from random weights for {sizes['steps']} steps on {sizes['training']} images; "
        "what is trained further, for a tenth of the steps."
    ]
    title = f"Reduced width ({chosen.width:g}) on {chosen.image_set}"
    table = tabular.text(title, columns, cells, notes)
    paths.write_text(folder / f"{PROGRAM}.txt", "\n".join([*head, "", table]) + "\n")
    print(table)


if __name__ == "__main__":
    main()
