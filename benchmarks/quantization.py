"""int8, mixed and 4-bit MobileNetV3, ours and those of others, on the same images.

    python benchmarks/quantization.py --split test     # every row, on the images of the tables
    python benchmarks/quantization.py --split test --part untrained   # without training: sooner
    python benchmarks/quantization.py --images 32 -o FOLDER       # the same rows on 32 images
    python benchmarks/quantization.py --only "*small*AIMET*" -o FOLDER     # some of them

Networks that were not trained further go to benchmarks/results/quantization.*, those that were to
quantization_trained.*, and what ran on the HTP simulator to quantization_htp.*. `--htp-images`,
`--calibration`, `--training` and `--steps` make a trial of the command shorter, and `--set` takes
the networks and images of another set. Every row: the shipped checkpoint at 128 px, 256 calibration
images. What is measured is the file that was written, in its runtime: ONNX Runtime, LiteRT,
ExecuTorch and Qualcomm's HTP simulator. Google's, Intel's and Qualcomm's quantizers and ExecuTorch
are installed into separate environments in the cache, once (3.5 GB in all). A row that could not be
made says why, and the exit code is then 1.

Files, trained networks and answers are kept by the content of all that they depend on (see
content_cache.py), so a run that was stopped resumes, and what changed is made again; `--fresh`
forgets them all, training included. Needs the cores for itself; the seconds of a row are those of
quantizing (for QAT: of training), on this machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import content_cache
import numpy as np
import quantization_figures
import results
from peer_environments import ENVIRONMENTS
from quantization_inputs import BATCH, IMAGE_SET, PREPROCESSING, PROGRAM, SIZE, Inputs, usual
from quantization_peers import ProgramRunner, program_ratio
from quantization_rows import ROWS, Line, plan
from quantization_table import cells, write

from labutils import metrics, paths, runtime
from labutils.errors import LabError
from labutils.images import data
from labutils.runtime import qnn

RUNTIMES = {e.runtime: e for e in ENVIRONMENTS.values() if e.runtime != "ORT"}
"""Runtimes that live in a separate environment."""

PARTS = {
    "untrained": "quantization", "trained": "quantization_trained", "simulated": "quantization_htp",
}  # fmt: skip
"""Which rows -> the name of their files; fp32 stands in all."""

PROGRAM_BATCH = 1024  # images for which their interpreter is started once

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
    if where in RUNTIMES:
        connect, versions = (lambda: ProgramRunner(file, RUNTIMES[where])), RUNTIMES[where].versions
    elif where == "HTP simulator":
        connect = lambda: runtime.connect(file, "htp")  # noqa: E731
        versions = paths.versions("onnxruntime", "onnxruntime-qnn")
    else:
        connect = lambda: runtime.connect(file, "ort")  # noqa: E731
        versions = paths.versions("onnxruntime")
    return content_cache.Remembered(file, connect, PROGRAM, where, versions)


def logits_of(file: Path, where: str, images: data.ImageSet) -> np.ndarray:
    """Run images, or find what an earlier run answered."""
    start, parts, n = time.time(), [], len(images)
    step = PROGRAM_BATCH if where in RUNTIMES else BATCH
    with connected(file, where) as runner:
        for i in range(0, n, step):
            parts.append(runner.run(PREPROCESSING(images.images[i : i + step])))
            if i and i % 320 == 0 and time.time() - start > 10:
                took = time.time() - start
                print(f"  {file.stem}, {where}: {i}/{n} images, {took:.0f} s", flush=True)
    return np.concatenate(parts)


def references(line: Line, inputs: Inputs) -> list[Path]:
    """Return the float networks that a row is compared with: fp32 first.

    What was trained is compared with the original that was trained as long as well.
    """
    as_long = line.row.recipe if line.row.trains and line.row.group != "float" else None
    floats = [row for row in ROWS if row.group == "float"]
    wanted = [row for row in floats if row.recipe in (None, as_long)]
    return [made(replace(line, row=row, runtime="ORT"), inputs)[0] for row in wanted]


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
        images = inputs.judged(inputs.htp_images if htp else inputs.images)
        logits = logits_of(file, line.runtime, images)
        floats = references(line, inputs)
        exact = [logits_of(reference, "ORT", images) for reference in floats]
        found |= quantization_figures.figures(logits, exact[0], images.labels)
        rights = [metrics.correct(x, images.labels) for x in exact]
        found |= quantization_figures.compared(found["right"], rights)
        if not htp:
            found |= timed(file, line.runtime, floats[0], images)
    except Exception as error:  # a peer's own error is a result: it goes into the table
        reason = " ".join(str(error).split())[:160]
        return {k: found[k] for k in ("model", "group", "by", "what", "runtime")} | {
            "note": f"{type(error).__name__}: {reason}"
        }
    quiet = htp or line.row.name == "fp32"
    return found | {"MB": file.stat().st_size / 1e6, "made": new,
                    "seconds": None if quiet else seconds}  # fmt: skip


def timed(file: Path, where: str, exact: Path, images: data.ImageSet) -> dict[str, object]:
    """Return a file's time by that of fp32, and for a QDQ file what it computes at which width."""
    image = PREPROCESSING(images.images[:1])
    if where in RUNTIMES:
        return {"ratio": program_ratio(file, RUNTIMES[where], exact, image)}
    widths = quantization_figures.widths(file)
    return {
        "ratio": quantization_figures.ratio(file, exact, image),
        "floats": widths.floats, "wide": 100 * widths.wide,
    }  # fmt: skip


# ---------------------------------------------------------------- the command


def head(inputs: Inputs, simulated: bool) -> list[str]:
    """Return the first lines of both files of a part."""
    images = f"{data.drawn(inputs.image_set).TITLE}, split {inputs.split}, {inputs.images} images"
    images += f" at {SIZE} px"
    if simulated and inputs.htp_images != inputs.images:
        images += f" ({inputs.htp_images} on the HTP simulator)"
    images += f"; {inputs.calibration} calibration images; the shipped checkpoints of this set"
    told = results.head(
        results.command("quantization.py"), images, "torch", "onnxruntime", "torchao",
        "onnxruntime-qnn", developed=inputs.split == "val",
    )  # fmt: skip
    others = dict.fromkeys(package for e in ENVIRONMENTS.values() for package in e.packages)
    return [*told, "In separate environments: " + ", ".join(others).replace("==", " ")]


def parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--split", choices=("val", "test"), default="val")
    made.add_argument("--set", choices=tuple(data.DRAWN), default=IMAGE_SET, dest="image_set")
    made.add_argument("--images", type=int, help="default: those of the whole table")
    made.add_argument("--htp-images", type=int, help="on the simulator; default: as --images")
    made.add_argument("--calibration", type=int)
    made.add_argument("--training", type=int, help="images, for QAT")
    made.add_argument("--steps", type=int, help="of QAT; default: those of the recipe")
    made.add_argument("--only", metavar="GLOB", default="*",
                      help="rows whose model, group, name and runtime match")  # fmt: skip
    made.add_argument("--part", choices=(*PARTS, "all"), default="all")
    made.add_argument("--fresh", action="store_true", help="forget what is kept, make it all again")
    made.add_argument("-o", "--output", type=Path, metavar="FOLDER",
                      help="default: benchmarks/results, for a run on all images")  # fmt: skip
    return made


def asked(chosen: argparse.Namespace) -> Inputs:
    """Return the inputs that the options stand for."""
    names = ("images", "htp_images", "calibration", "training", "steps")
    given = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    if "images" in given:
        given.setdefault("htp_images", given["images"])
    return replace(usual(chosen.split, chosen.image_set), **given)


def part_of(line: Line) -> str:
    """Return to which of `PARTS` a line belongs."""
    if line.runtime == "HTP simulator":
        return "simulated"
    return "trained" if line.row.trains else "untrained"


def parted(chosen: argparse.Namespace) -> dict[str, list[Line]]:
    """Return the lines that are asked for, by the name of their files; fp32 leads each."""
    lines, parts = list(plan(chosen.only)), {}
    for part, name in PARTS.items():
        own = [x for x in lines if part_of(x) == part]
        if own and chosen.part in (part, "all"):
            parts[name] = [x for x in lines if x in own or x.row.name == "fp32"]
    return parts


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    options = parser()
    chosen = options.parse_args(arguments)
    inputs, parts = asked(chosen), parted(chosen)
    whole = inputs == usual(chosen.split) and chosen.only == "*"
    place = results.place(chosen.output, whole)
    if place is None:
        options.error("pass -o FOLDER: a smaller run does not replace the recorded results")
    if not parts:
        options.error(f"--only {chosen.only}: no row is called so")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    complete = True
    for name, lines in parts.items():
        start, found = time.time(), []
        beginning = head(inputs, any(part_of(line) == "simulated" for line in lines))
        for line in lines:
            found.append(measured(line, inputs))
            print("  ".join(cells(found[-1])), flush=True)
        print(write(found, beginning, time.time() - start, place, name))
        complete &= not any("note" in line for line in found)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
