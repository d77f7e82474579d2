"""The fidelity ladder of the journey on all validation images, and its int8 answers one by one.

    python benchmarks/ladder.py                  # writes ladder_1600.* and answers_1600.csv
    python benchmarks/ladder.py --images 32 --htp-images 8 -o FOLDER

`labutils journey` makes the artifacts of MobileNetV3-Large, in the cache; then every stage answers
the images, and the figures are those that the journey prints, in benchmarks/results/ladder_N.txt
and .csv. answers_N.csv has one line per image: the class number that is right, those that PyTorch
and the int8 file (on the CPU) name, and PyTorch's lead, its best logit minus its second.

Artifacts and answers are kept by the content of all that they depend on (see content_cache.py), so
a run that was stopped resumes; `--fresh` forgets them.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import content_cache
import numpy as np
import results

import labutils
from labutils import compare, manifests, metrics, paths, runtime, surgery
from labutils.images import data
from labutils.models import zoo
from labutils.pipeline import journey
from labutils.runtime import qnn

PROGRAM, MODEL = "ladder", "mobilenet_v3_large"
PRECISIONS = ("fp16", "int8", "a16w8")
HTP = {f"HTP {name}": manifests.file_name(MODEL, "convert", name) for name in PRECISIONS}
CPU = {
    "ONNX": manifests.file_name(MODEL, "patch", "patched"),
    "int8 CPU": manifests.file_name(MODEL, "quantize", "int8"),
}
STAGES = ("PyTorch", "patched", *CPU, *HTP)


def artifacts() -> Path:
    """Return the folder with what the journey makes, made by it unless it is kept."""
    versions = paths.versions("torch", "onnx", "onnxruntime", "onnxruntime-qnn")
    key = content_cache.key(
        checkpoint=content_cache.checkpoint(MODEL), code=content_cache.code(labutils),
        versions=versions,
    )  # fmt: skip
    folder = content_cache.folder(PROGRAM) / f"journey_{key}"
    if not (folder / "ladder.csv").exists():  # its last file
        journey.run(MODEL, "things16", images=1, folder=paths.folder(folder))
    return folder


def stages(folder: Path, htp_images: int) -> list[compare.Stage]:
    """Return the rungs, in order; files are only started for answers that are not kept."""
    model = zoo.load(MODEL, "things16")
    patched = copy.deepcopy(model.module)
    surgery.replace_(patched)
    found = [
        compare.Stage("PyTorch", runtime.connect(model.module, name=MODEL)),
        compare.Stage("patched", runtime.connect(patched, name="patched")),
    ]
    versions = paths.versions("onnxruntime")
    for name, file in CPU.items():
        where = f"ONNX Runtime {versions['onnxruntime']} CPU"
        found.append(compare.Stage(name, kept(folder / file, where, "onnxruntime")))
    if qnn.probe().ok:
        where = (
            f"DLC on HTP simulator (QNN {qnn.probe().versions['QNN'].rpartition('.')[0]}, SM8550)"
        )
        for name, file in HTP.items():
            runner = kept(folder / file, where, "onnxruntime", "onnxruntime-qnn")
            found.append(compare.Stage(name, runner, n=htp_images))
    return found


def kept(file: Path, where: str, *packages: str) -> content_cache.Remembered:
    """Return a runner of a file that keeps its answers."""
    return content_cache.Remembered(
        file, lambda: runtime.connect(file), PROGRAM, where, paths.versions(*packages)
    )


def answers(rungs: list[compare.Stage], images: data.ImageSet) -> list[str]:
    """Return the lines of the table of single answers."""
    model = zoo.load(MODEL, "things16")
    columns = {"truth": np.asarray(images.labels)}
    for stage in (stage for stage in rungs if stage.name in ("PyTorch", "int8 CPU")):
        parts = [stage.runner.run(x) for x, _ in images.batches(32, model.preprocessing)]
        logits = np.concatenate(parts)
        columns[stage.name] = metrics.topk(logits)[:, 0]
        if stage.name == "PyTorch":
            ordered = np.sort(logits, axis=1)
            columns["lead"] = (ordered[:, -1] - ordered[:, -2]).round(3)
    lines = [",".join(["image", *columns])]
    rows = zip(*columns.values(), strict=True)
    return [*lines, *(",".join(map(str, (i, *row))) for i, row in enumerate(rows))]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--images", type=int, default=data.VALIDATION_IMAGES)
    parser.add_argument("--htp-images", type=int, help="on the simulator; default: as --images")
    parser.add_argument("--fresh", action="store_true", help="forget what is kept")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    n, on_htp = chosen.images, chosen.htp_images or chosen.images
    place = results.place(chosen.output, n == on_htp == data.VALIDATION_IMAGES)
    if place is None:
        parser.error("pass -o FOLDER: a smaller run does not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    model = zoo.load(MODEL, "things16")
    images = data.load(chosen.split, n, model.preprocessing.size)
    rungs = stages(artifacts(), on_htp)
    found = compare.ladder(rungs, images, model.preprocessing)
    table = compare.accuracy_table(
        rungs, np.asarray(images.images[0]), model.preprocessing, model.classes,
        images.classes[images.labels[0]],
    )  # fmt: skip
    head = results.head(
        results.command("ladder.py", arguments),
        f"split {chosen.split}, {n} images at {model.preprocessing.size} px", "torch",
        "onnxruntime", "onnxruntime-qnn", developed=chosen.split == "val",
    )  # fmt: skip
    missing = [f"{name}: not made: {qnn.probe().reason}"
               for name in STAGES if name not in {stage.name for stage in rungs}]  # fmt: skip
    text = "\n".join([*head, "", str(table), "", str(found), *missing]) + "\n"
    paths.write_text(place / f"ladder_{n}.txt", text)
    found.to_csv(place / f"ladder_{n}.csv")
    lines = answers(rungs, images)
    paths.write_text(place / f"answers_{n}.csv", results.commented(head) + "\n".join(lines) + "\n")
    print(text)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
