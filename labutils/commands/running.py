"""Commands that run models: run, journey."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelFileError, UsageError, printable
from ..tracking import tracked
from .options import (
    MODEL_HELP,
    NAME_HELP,
    WEIGHTS_HELP,
    command,
    data_argument,
    input_arguments,
    listener,
    output_argument,
    own_folder,
    preprocessing_of,
    progress_bar,
    require_folder,
    say,
    size_argument,
    stored_inputs,
    titled,
)

if TYPE_CHECKING:
    import numpy as np

    from ..images import data
    from ..models import zoo

_MOST_ROWS = 256  # of answers on a screen
_TOP5_SAYS = 10  # with as many classes or fewer, five guesses say little


def add(commands: Any) -> None:
    """Add the parsers of these commands."""
    _run_parser(commands)
    _journey_parser(commands)


def _run_parser(commands: Any) -> None:
    text = "Run a model or an artifact on images and print its answers."
    parser = command(commands, "run", _run, text)
    parser.add_argument("artifact", metavar="ARTIFACT", help=f"a .dlc, a .tflite, or {MODEL_HELP}")
    input_arguments(parser)
    parser.add_argument("--weights", default="auto", help="for a model given by name")
    size_argument(parser, ", where it is left open")
    output_argument(parser)
    given = "a number of Things-16 images, picture files, or an .npz or .npy of normalised inputs"
    parser.add_argument("--images", nargs="+", help=f"{given} (16 of Things-16)")
    data_argument(parser, "the answers are counted, with top-1 and top-5 (--images N: so many)")
    parser.add_argument("--backend", default="auto", help="torch, ort, htp or litert (auto)")
    parser.add_argument("--soc", default="SM8550", help="chip to simulate (SM8550)")


def _journey_parser(commands: Any) -> None:
    text = "The whole way, MobileNetV3 from PyTorch to an int8 Snapdragon artifact."
    parser = command(commands, "journey", _journey, text)
    parser.add_argument("model", nargs="?", default="mobilenet_v3_large", help=NAME_HELP)
    parser.add_argument("--weights", default="auto", help=WEIGHTS_HELP)
    size_argument(parser)
    parser.add_argument("--images", type=int, default=32, help="images per HTP row (32)")
    parser.add_argument("--soc", default="SM8550", help="chip to compile for and simulate (SM8550)")
    data_argument(parser, "one part calibrates, accuracy is measured on another")
    parser.add_argument("-o", "--output", type=Path, help="folder (generated_models/)")


def _run(chosen: argparse.Namespace) -> int:
    from .. import runtime
    from ..models import ends, zoo
    from ..runtime import qnn

    chip = qnn.soc(chosen.soc)
    require_folder(chosen)
    if not chosen.data:
        chosen.images = chosen.images or ["16"]
    model = zoo.load(chosen.artifact, chosen.weights, chosen.size, chosen.tensor)
    preprocessing = preprocessing_of(chosen, model)
    if chosen.data:
        model, load = own_folder(chosen, dataclasses.replace(model, preprocessing=preprocessing))
        pictures = load("val", _number(chosen))
    elif not _own_inputs(chosen):
        ends.refuse_no_pictures(model, "Pass --images FILE.npz: normalised NCHW float32.")
    say(chosen, titled(model))
    artifact = model.module if model.module is not None else model.file
    simulated = chosen.backend == "htp" or str(artifact).endswith(".dlc")
    settings = {"soc": chip} if simulated else {}
    if chosen.data:
        names, inputs, labels = _of_folder(pictures, preprocessing)
    else:
        names, inputs, labels = _inputs(chosen, model, preprocessing)
    output = model.output or None
    with runtime.connect(artifact, chosen.backend, output=output, **settings) as runner:
        name = getattr(runner, "input", "input")
        say(chosen, f"{runner.name}, run by: {runner.runtime}\ninput {name!r}: {preprocessing}")
        starts = tracked(range(0, len(inputs), 8), "running", "batches", progress_bar)
        parts = [runtime.run_all(runner, inputs[start : start + 8]) for start in starts]
        scores = runtime.scores_name(runner)
    found = _joined(parts)
    if scores:
        if len(found) > 1 and not model.outputs:
            say(chosen, f"scores: output {scores!r} of {', '.join(map(repr, found))}")
        _answers(chosen, runner.runtime, model, names, found[scores], labels)
    else:
        _describe(chosen, runner.runtime, found)
    files = not chosen.data and labels is None and not _own_inputs(chosen)
    return 1 if files and len(names) < len(chosen.images) else 0


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    import numpy as np

    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _number(chosen: argparse.Namespace) -> int | None:
    """Return how many pictures of ``--data`` to run; all of them without ``--images``."""
    if not chosen.images:
        return None
    if len(chosen.images) > 1 or not chosen.images[0].isdigit():
        raise UsageError("With --data, --images is a number: how many of its pictures to run.")
    return int(chosen.images[0])


def _of_folder(pictures: data.ImageSet, preprocessing: data.Preprocessing) -> tuple:
    """Return (names, inputs, labels) of a folder's pictures, as `_inputs` does."""
    known = pictures.labels.min() >= 0
    inputs = preprocessing(pictures.images)
    return list(pictures.names), inputs, pictures.labels if known else None


def _own_inputs(chosen: argparse.Namespace) -> bool:
    return len(chosen.images) == 1 and Path(chosen.images[0]).suffix in (".npz", ".npy")


def _inputs(
    chosen: argparse.Namespace, model: zoo.Model, preprocessing: data.Preprocessing
) -> tuple:
    """Return (names, inputs, labels); labels are None where the truth is not known."""
    import numpy as np

    from ..images import data

    if _own_inputs(chosen):
        inputs = stored_inputs(Path(chosen.images[0]))
        return [f"input {i}" for i in range(len(inputs))], inputs, None
    if len(chosen.images) == 1 and chosen.images[0].isdigit():
        n, image_set = int(chosen.images[0]), data.set_for(model.classes)
        images = data.load("val", n, preprocessing.size, image_set)
        names = [f"{images.classes[label]} (val {i})" for i, label in enumerate(images.labels)]
        known = tuple(images.classes) == tuple(model.classes)
        inputs = preprocessing(np.asarray(images.images))
        return names, inputs, images.labels if known else None
    how = preprocessing.resampling
    names, pixels = [], []
    for name in chosen.images:
        try:
            pixels.append(data.read_images([name], preprocessing.size, resampling=how))
            names.append(name)
        except UsageError as error:
            if len(chosen.images) == 1:
                raise
            print(printable(f"left out: {error}"), file=sys.stderr)
    if not names:
        raise UsageError(f"None of the {len(chosen.images)} pictures could be read.")
    return names, preprocessing(np.concatenate(pixels)), None


def _describe(chosen: argparse.Namespace, runtime: str, found: dict[str, np.ndarray]) -> None:
    """Print what a network gives that is not a classifier: shapes and ranges, output by output."""
    rows = [
        {
            "output": name, "shape": list(values.shape), "type": str(values.dtype),
            "low": float(values.min()), "high": float(values.max()),
        }
        for name, values in found.items()
    ]  # fmt: skip
    if chosen.json:
        print(json.dumps({"runtime": runtime, "outputs": rows}, indent=2))
        return
    for row in rows:
        shape = ", ".join(map(str, found[str(row["output"])].shape))
        say(
            chosen,
            f"output {row['output']!r} ({shape}) {row['type']}: {row['low']:.4g} to "
            f"{row['high']:.4g}",
        )


def _answers(
    chosen: argparse.Namespace,
    runtime: str,
    model: zoo.Model,
    names: list[str],
    scores: np.ndarray,
    labels: Any,
) -> None:
    from .. import metrics
    from ..runtime import outputs

    shares = metrics.softmax(outputs.as_scores(scores))
    count = shares.shape[1]
    best = metrics.topk(shares, 5 if count >= 1000 else min(3, count))  # top-5 is ImageNet's custom
    classes = model.classes or tuple(f"class {i}" for i in range(shares.shape[1]))
    if len(classes) != shares.shape[1]:
        raise ModelFileError(
            f"{model.name} states {len(classes)} classes and gives {shares.shape[1]} outputs: "
            "the facts in or beside the file belong to another network. Make the file again."
        )
    rows = [
        {"image": name, "top": [(classes[k], round(float(row[k]), 4)) for k in order]}
        for name, row, order in zip(names, shares, best, strict=True)
    ]
    wanted = () if labels is None else (1, 5) if shares.shape[1] > _TOP5_SAYS else (1,)
    found = {f"top{k}": str(metrics.accuracy(shares, labels, k)) for k in wanted}
    if chosen.json:
        print(json.dumps({"runtime": runtime, "rows": rows, "top1": None, **found}, indent=2))
        return
    for row in rows[:_MOST_ROWS]:
        answers = ", ".join(f"{name} {share:.4f}" for name, share in row["top"])
        say(chosen, f"{row['image']:<24} {answers}")
    if len(rows) > _MOST_ROWS:
        say(chosen, f"and {len(rows) - _MOST_ROWS} more (all of them with --json)")
    for k in wanted:
        print(f"top-{k} {found[f'top{k}']}")


def _journey(chosen: argparse.Namespace) -> int:
    from ..pipeline import journey

    if chosen.images < 1:
        raise UsageError(f"--images {chosen.images}: at least one image is needed.")
    made = journey.run(
        chosen.model,
        chosen.weights,
        size=chosen.size,
        images=chosen.images,
        soc=chosen.soc,
        folder=chosen.output,
        pictures=chosen.data,
        listener=listener(chosen),
    )
    if chosen.json:
        print(json.dumps(made.to_dict(), indent=2, default=str))
    else:
        print("\n\n".join(filter(None, [str(made.table or ""), str(made.ladder or "")])))
        print("\n".join(["", *made.notes]))
        print(f"Artifacts and manifests: {next(iter(made.artifacts.values())).parent}")
    return 0 if made.ok else 1
