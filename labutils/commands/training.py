"""Commands that train a network a little further: train."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelFileError, UsageError
from .options import NAME_HELP, command, emit, progress_bar, say

if TYPE_CHECKING:
    from torch import nn

    from ..models import zoo
    from ..models.checkpoint import LoadReport

ROUTES = ("lab", "pt2e")
SETS = ("things16", "marked-things")  # data.DRAWN, heavier to import than a help text may be
_CALIBRATION = 256  # images before training with a recipe
_SIDE = 96  # pixels


def add(commands: Any) -> None:
    """Add the parser of this command."""
    text = "Fine-tune a model on drawn pictures; with --recipe, with the rounding in place (QAT)."
    parser = command(commands, "train", _train, text)
    parser.add_argument("model", metavar="MODEL", help=NAME_HELP)
    parser.add_argument(
        "--weights", default="auto", help="auto, things16, marked-things, or a file"
    )
    parser.add_argument(
        "--from", dest="start", type=Path, metavar="FILE",
        help="start from those weights of a .pth or .safetensors that fit by name and shape",
    )  # fmt: skip
    parser.add_argument(
        "--rename", action="append", default=[], metavar="OLD=NEW",
        help="regular expression and replacement for names in that file; may be given again",
    )  # fmt: skip
    parser.add_argument("--recipe", help="a recipe to train for, such as int8_qat or a YAML")
    routes = "what quantizes: the lab's own layers, or torchao's PT2E, the official route (lab)"
    parser.add_argument("--route", choices=ROUTES, default="lab", help=routes)
    parser.add_argument("--steps", type=int, help="how many (300, or what the recipe says)")
    sides = "side of the training images (96; by PT2E the model's own, its program has one size)"
    parser.add_argument("--size", type=int, help=sides)
    learned = "which pictures (those that the weights learned, else things16)"
    parser.add_argument("--set", dest="image_set", choices=SETS, help=learned)
    parser.add_argument("--images", type=int, default=8000, help="training images (8000)")
    written = "the .safetensors to write, with its card; with --recipe the .onnx"
    parser.add_argument("-o", "--output", type=Path, required=True, help=written)


def _train(chosen: argparse.Namespace) -> int:
    suffix = ".onnx" if chosen.recipe else ".safetensors"
    if chosen.output.suffix != suffix or chosen.output.is_dir():
        raise UsageError(f"{chosen.output}: this run writes a {suffix} file.")
    if chosen.rename and not chosen.start:
        raise UsageError("--rename is about the names in the file of --from.")
    if chosen.start and chosen.recipe:
        raise UsageError(
            "Fine-tune in float first (--from), then train for the recipe with --weights FILE."
        )
    if chosen.route != "lab" and not chosen.recipe:
        raise UsageError("--route says how to train for a --recipe.")
    if chosen.steps is not None and chosen.steps < 1:
        raise UsageError(f"--steps must be at least 1, not {chosen.steps}.")
    return _for_recipe(chosen) if chosen.recipe else _in_float(chosen)


def _in_float(chosen: argparse.Namespace) -> int:
    """Fine-tune, write weights and card, and say what was loaded and what it scores."""
    from safetensors.torch import save_file

    from .. import metrics, paths, train
    from ..images import data

    module, loaded, image_set = _start(chosen)
    settings: dict[str, Any] = {"size": chosen.size or _SIDE, "images": chosen.images}
    settings["image_set"], known = image_set, data.drawn(image_set)
    tuned = train.fine_tune(module, steps=chosen.steps or 300, progress=progress_bar, **settings)
    say(chosen, tuned)
    n, size = data.validation_images(image_set), train.EVALUATION_SIZE
    validation = data.load("val", n, size, image_set)
    top1 = metrics.accuracy(train.logits_of(module, validation), validation.labels)
    say(chosen, f"top-1 {top1} on the validation images of {known.TITLE}, {size} px")
    with paths.atomic(chosen.output) as temporary:
        state = {name: values.contiguous() for name, values in module.state_dict().items()}
        save_file(state, temporary)
    card = {
        "architecture": chosen.model,
        "classes": list(known.CLASSES),
        "sha256": paths.sha256(chosen.output),
        "from": loaded.to_dict() if loaded else chosen.weights,
        "fine_tuning": {**tuned.settings, "steps": tuned.steps},
        "top1": top1.value,
        "top1_interval_95": list(top1.interval),
        "n": top1.n,
    }
    paths.write_text(chosen.output.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    say(chosen, f"wrote {chosen.output}; use it with --weights {chosen.output}")
    if chosen.json:
        print(json.dumps(card))
    return 0


def _start(chosen: argparse.Namespace) -> tuple[nn.Module, LoadReport | None, str]:
    """Return the network to train, what of a foreign file went into it, and what it learns."""
    import torch

    from ..images import data
    from ..models import architectures, checkpoint

    if not chosen.start:
        model, module = _loaded(chosen)
        return module, None, _image_set(chosen, model)
    image_set = chosen.image_set or data.THINGS16
    renames = dict(_pair(rename) for rename in chosen.rename)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what the file has nothing for begins the same in every run
        module = architectures.find(chosen.model).build(len(data.drawn(image_set).CLASSES))
    state = checkpoint.state_dict(chosen.start)
    report = checkpoint.load_partly_(module, state, chosen.start.name, renames)
    say(chosen, report)
    return module, report, image_set


def _image_set(chosen: argparse.Namespace, model: zoo.Model) -> str:
    from ..images import data

    return chosen.image_set or data.set_for(model.classes)


def _pair(rename: str) -> tuple[str, str]:
    old, equals, new = rename.partition("=")
    if not old or not equals:
        raise UsageError(f"--rename {rename}: OLD=NEW is needed, such as '^backbone\\.='.")
    return old, new


def _loaded(chosen: argparse.Namespace) -> tuple[zoo.Model, nn.Module]:
    from ..models import zoo

    model = zoo.load(chosen.model, chosen.weights)
    if model.file is not None or model.module is None:
        raise ModelFileError(f"{model.name} is a file: only networks by name are trained.")
    return model, model.module


def _for_recipe(chosen: argparse.Namespace) -> int:
    """Train with the rounding in place, and keep the QDQ file once it passed the gate."""
    from .. import compare, paths, quantize, runtime
    from ..images import data
    from ..pipeline import steps
    from ..quantize import ptq

    recipe = quantize.load_recipe(chosen.recipe)
    if recipe.qat is None:
        known = ", ".join(name for name, preset in quantize.PRESETS.items() if preset.qat)
        raise UsageError(
            f"Recipe {recipe.name} is not for training: it has no `qat` part. Presets for "
            f"training: {known}."
        )
    model, module = _loaded(chosen)
    prepared = model.known_preprocessing()
    image_set = _image_set(chosen, model)
    inputs = prepared(data.calibration(_CALIBRATION, prepared.size, image_set).images)
    with paths.scratch(chosen.output.parent) as folder:
        draft = folder / chosen.output.name
        report = _written(chosen, recipe, model, module, inputs, draft)
        say(chosen, report)
        pictures = prepared(data.load("val", 32, prepared.size, image_set).images)
        kind = "ort_a16w8" if recipe.activations.bits == 16 else "ort_int8"
        with runtime.connect(module) as ours, runtime.connect(draft) as theirs:
            gate = compare.gate(ours, theirs, pictures, kind=kind)
        facts = ptq.quantization_facts(recipe, _CALIBRATION)
        steps.write_manifest(draft, model, route=chosen.route, gate=gate.to_dict(), **facts)
        recipe.save(paths.recipe_file(draft))
        for file in folder.iterdir():
            file.replace(chosen.output.parent / file.name)
    emit(chosen, gate)
    return 0


def _written(
    chosen: argparse.Namespace,
    recipe: Any,
    model: zoo.Model,
    module: nn.Module,
    inputs: Any,
    draft: Path,
) -> Any:
    """Train a copy by the chosen route, write it as a QDQ file, and return the report."""
    from ..images import data
    from ..quantize import pt2e
    from ..quantize.training import qat

    prepared = model.known_preprocessing()
    official = chosen.route == "pt2e"
    size = chosen.size or (prepared.size if official else _SIDE)
    how: dict[str, Any] = {"size": size, "images": chosen.images, "progress": progress_bar}
    how["image_set"] = _image_set(chosen, model)
    if chosen.steps:
        how["steps"] = chosen.steps
    if official:
        if size != prepared.size:
            raise UsageError(
                f"--size {size}: the program that PT2E trains takes {prepared.size} px only. Leave "
                "out --size, or take --route lab."
            )
        return pt2e.write_qdq(
            module, draft, inputs, recipe, teacher=module, preprocessing=prepared, **how
        )
    side = max(data.sides(prepared.size))  # networks by name take squares
    student = qat.prepare(module, recipe, size=side)
    qat.calibrate_(student, inputs, progress=progress_bar)
    say(chosen, qat.fit_(student, teacher=module, **how))
    return qat.to_qdq(student, draft, size=side, preprocessing=prepared)
