"""Commands that run models: run, journey."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelFileError, UsageError
from ..tracking import tracked
from .options import (
    MODEL_HELP,
    NAME_HELP,
    command,
    input_arguments,
    listener,
    preprocessing_of,
    progress_bar,
    say,
    titled,
)

if TYPE_CHECKING:
    from ..models import zoo


def add(commands: Any) -> None:
    """Add the parsers of these commands."""
    _run_parser(commands)
    _journey_parser(commands)


def _run_parser(commands: Any) -> None:
    text = "Run a model or an artifact on images and print its answers."
    parser = command(commands, "run", _run, text)
    parser.add_argument("artifact", metavar="ARTIFACT", help=f"a .dlc, or {MODEL_HELP}")
    input_arguments(parser)
    parser.add_argument("--weights", default="auto", help="for a model given by name")
    parser.add_argument("--size", type=int, help="image side in pixels, where it is left open")
    parser.add_argument(
        "--images", nargs="+", default=["16"], help="a number of Things-16 images, or files"
    )
    parser.add_argument("--backend", default="auto", help="torch, ort or htp (auto)")
    parser.add_argument("--soc", default="SM8550", help="chip to simulate (SM8550)")


def _journey_parser(commands: Any) -> None:
    text = "The whole way, MobileNetV3 from PyTorch to an int8 Snapdragon artifact."
    parser = command(commands, "journey", _journey, text)
    parser.add_argument("model", nargs="?", default="mobilenet_v3_large", help=NAME_HELP)
    parser.add_argument("--weights", default="auto", help="auto, imagenet, things16, random, file")
    parser.add_argument("--size", type=int, help="image side in pixels")
    parser.add_argument("--images", type=int, default=96, help="images per HTP row (96)")
    parser.add_argument("--soc", default="SM8550", help="chip to compile for and simulate (SM8550)")
    parser.add_argument("-o", "--output", type=Path, help="folder (generated_models/)")


def _run(chosen: argparse.Namespace) -> int:
    from .. import runtime
    from ..models import zoo
    from ..runtime import qnn

    chip = qnn.soc(chosen.soc)
    model = zoo.load(chosen.artifact, chosen.weights, chosen.size)
    preprocessing = preprocessing_of(chosen, model)
    say(chosen, titled(model))
    artifact = model.module if model.module is not None else model.file
    simulated = chosen.backend == "htp" or str(artifact).endswith(".dlc")
    settings = {"soc": chip} if simulated else {}
    names, pixels, labels = _pixels(chosen, model, preprocessing.size)
    with runtime.connect(artifact, chosen.backend, **settings) as runner:
        name = getattr(runner, "input", "input")
        say(chosen, f"{runner.name}, run by: {runner.runtime}\ninput {name!r}: {preprocessing}")
        inputs = preprocessing(pixels)
        starts = tracked(range(0, len(inputs), 8), "running", "batches", progress_bar)
        logits = [runner.run(inputs[start : start + 8]) for start in starts]
    _answers(chosen, runner.runtime, model, names, logits, labels)
    return 0


def _pixels(chosen: argparse.Namespace, model: zoo.Model, size: int) -> tuple:
    """Return (names, pixels, labels); labels are None where the truth is not known."""
    import numpy as np

    from ..images import data

    if len(chosen.images) == 1 and chosen.images[0].isdigit():
        images = data.load("val", int(chosen.images[0]), size)
        names = [f"{images.classes[label]} (val {i})" for i, label in enumerate(images.labels)]
        known = tuple(images.classes) == tuple(model.classes)
        return names, np.asarray(images.images), images.labels if known else None
    return chosen.images, data.read_images(chosen.images, size), None


def _answers(
    chosen: argparse.Namespace,
    runtime: str,
    model: zoo.Model,
    names: list[str],
    logits: list,
    labels: Any,
) -> None:
    import numpy as np

    from .. import metrics

    shares = metrics.softmax(np.concatenate(logits))
    best = metrics.topk(shares, min(3, shares.shape[1]))
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
    top1 = str(metrics.accuracy(shares, labels)) if labels is not None else None
    if chosen.json:
        print(json.dumps({"runtime": runtime, "rows": rows, "top1": top1}, indent=2))
        return
    for row in rows:
        answers = ", ".join(f"{name} {share:.4f}" for name, share in row["top"])
        say(chosen, f"{row['image']:<24} {answers}")
    if top1:
        print(f"top-1 {top1}")


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
        listener=listener(chosen),
    )
    if chosen.json:
        print(json.dumps(made.to_dict(), indent=2, default=str))
    else:
        print("\n\n".join(filter(None, [str(made.table or ""), str(made.ladder or "")])))
        print("\n".join(["", *made.notes]))
        print(f"Artifacts and manifests: {next(iter(made.artifacts.values())).parent}")
    return 0 if made.ok else 1
