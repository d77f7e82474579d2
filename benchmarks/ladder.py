"""The fidelity ladder of the journey on the images of the tables, and int8's answers one by one.

    python benchmarks/ladder.py                  # writes ladder.txt, ladder.csv and answers.csv
    python benchmarks/ladder.py --set things16   # ladder_things16.txt, ...: what notebook 06 shows
    python benchmarks/ladder.py --split val --images 32 --htp-images 8 -o FOLDER

`labutils journey --weights SET` makes the artifacts of MobileNetV3-Large, in the cache; then every
stage answers the images of the set, and the figures are those that the journey prints, in
benchmarks/results. answers.csv has one line per image: the class number that is right, those that
PyTorch and the int8 file (on the CPU) name, and PyTorch's lead, its best logit minus its second.

Artifacts and answers are kept by the content of all that they depend on (see content_cache.py), so
a run that was stopped resumes; `--fresh` forgets them. The simulator takes an hour on two cores.
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
SET = "marked-things"
IMAGES = {SET: (20_000, 10_000), "things16": (1_600, 1_600)}
"""Set -> images that are recorded, and those of them that run on the simulator."""
PRECISIONS = ("fp16", "int8", "a16w8")
HTP = {f"HTP {name}": manifests.file_name(MODEL, "convert", name) for name in PRECISIONS}
CPU = {
    "ONNX": manifests.file_name(MODEL, "patch", "patched"),
    "int8 CPU": manifests.file_name(MODEL, "quantize", "int8"),
}
STAGES = ("PyTorch", "patched", *CPU, *HTP)


def artifacts(image_set: str) -> Path:
    """Return the folder with what the journey makes, made by it unless it is kept."""
    versions = paths.versions("torch", "onnx", "onnxruntime", "onnxruntime-qnn")
    key = content_cache.key(
        checkpoint=content_cache.checkpoint(data.checkpoint_name(MODEL, image_set)),
        code=content_cache.code(labutils), versions=versions,
    )  # fmt: skip
    folder = content_cache.folder(PROGRAM) / f"journey_{key}"
    if not (folder / "ladder.csv").exists():  # its last file
        journey.run(MODEL, image_set, images=1, folder=paths.folder(folder))
    return folder


def stages(folder: Path, model: zoo.Model, htp_images: int) -> list[compare.Stage]:
    """Return the rungs, in order; files are only started for answers that are not kept."""
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


def answers(rungs: list[compare.Stage], images: data.ImageSet, model: zoo.Model) -> list[str]:
    """Return the lines of the table of single answers."""
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
    parser.add_argument("--set", choices=tuple(data.DRAWN), default=SET, dest="image_set")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--images", type=int, help="instead of those that are recorded")
    parser.add_argument("--htp-images", type=int, help="on the simulator")
    parser.add_argument("--fresh", action="store_true", help="forget what is kept")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    whole = IMAGES[chosen.image_set]
    n = whole[0] if chosen.images is None else chosen.images
    on_htp = min(n, whole[1] if chosen.htp_images is None else chosen.htp_images)
    place = results.place(chosen.output, (chosen.split, n, on_htp) == ("test", *whole))
    if place is None:
        parser.error("pass -o FOLDER: a smaller run does not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    model = zoo.load(MODEL, chosen.image_set)
    images = data.load(chosen.split, n, model.preprocessing.size, chosen.image_set)
    rungs = stages(artifacts(chosen.image_set), model, on_htp)
    found = compare.ladder(rungs, images, model.preprocessing)
    table = compare.accuracy_table(
        rungs, np.asarray(images.images[0]), model.preprocessing, model.classes,
        images.classes[images.labels[0]],
    )  # fmt: skip
    head = results.head(
        results.command("ladder.py", arguments),
        f"{data.drawn(chosen.image_set).TITLE}, split {chosen.split}, {n} images at "
        f"{model.preprocessing.size} px, {on_htp} on the HTP simulator",
        "torch", "onnxruntime", "onnxruntime-qnn", developed=chosen.split == "val",
    )  # fmt: skip
    missing = [f"{name}: not made: {qnn.probe().reason}"
               for name in STAGES if name not in {stage.name for stage in rungs}]  # fmt: skip
    text = "\n".join([*head, "", str(table), "", str(found), *missing]) + "\n"
    of = "" if chosen.image_set == SET else f"_{chosen.image_set}"
    paths.write_text(place / f"ladder{of}.txt", text)
    found.to_csv(place / f"ladder{of}.csv")
    lines = results.commented(head) + "\n".join(answers(rungs, images, model)) + "\n"
    paths.write_text(place / f"answers{of}.csv", lines)
    print(text)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
