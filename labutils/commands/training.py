"""Commands that train a network a little further: train."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelFileError, UnknownNameError, UsageError
from .options import NAME_HELP, command, data_argument, emit, progress_bar, say

if TYPE_CHECKING:
    from torch import nn

    from .. import metrics
    from ..images import data
    from ..images.folder import ImageFolder
    from ..models import zoo
    from ..models.checkpoint import LoadReport

ROUTES = ("lab", "pt2e")
SETS = ("things16", "marked-things")  # data.DRAWN, heavier to import than a help text may be
_CALIBRATION = 256  # images before training with a recipe
_SIDE = 96  # pixels
_BATCH = 64  # images in a step, as `train.fine_tune` has it


def add(commands: Any) -> None:
    """Add the parser of this command."""
    text = "Fine-tune a model on pictures; with --recipe, with the rounding in place (QAT)."
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
    data_argument(parser, "learned from one part, judged on another")
    head = "train the last layer alone, and keep the rest as it is"
    parser.add_argument("--head-only", action="store_true", help=head)
    parser.add_argument("--images", type=int, default=8000, help="training images, at most (8000)")
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
    if chosen.data and chosen.image_set:
        raise UsageError("--data takes the place of --set: pass one of them.")
    if chosen.head_only and chosen.recipe:
        raise UsageError("--head-only is for training in float, without --recipe.")
    if chosen.steps is not None and chosen.steps < 1:
        raise UsageError(f"--steps must be at least 1, not {chosen.steps}.")
    return _for_recipe(chosen) if chosen.recipe else _in_float(chosen)


def _in_float(chosen: argparse.Namespace) -> int:
    """Fine-tune, write weights and card, and say what was loaded and what it scores."""
    from safetensors.torch import save_file

    from .. import paths, train
    from ..images import data

    module, loaded, source = _start(chosen)
    settings: dict[str, Any] = {"size": chosen.size or _SIDE, "images": chosen.images}
    settings |= _smaller_batch(source, _BATCH)
    if chosen.head_only:  # the rest stays as it is, its statistics too
        settings["freeze_batch_norm_at"] = 0.0
    validation = data.load("val", data.validation_images(source), train.EVALUATION_SIZE, source)
    before = None if chosen.start else _top1(module, validation)
    with _trained_part(module, chosen.head_only):
        tuned = train.fine_tune(
            module, steps=chosen.steps or 300, image_set=source, progress=progress_bar, **settings
        )
    say(chosen, tuned)
    top1 = _top1(module, validation)
    was = f" (before: {before})" if before else ""
    say(chosen, f"top-1 {top1}{was}: {validation.source}")
    with paths.atomic(chosen.output) as temporary:
        state = {name: values.contiguous() for name, values in module.state_dict().items()}
        save_file(state, temporary)
    card = {
        "architecture": chosen.model,
        "classes": list(data.classes_of(source)),
        "size": train.EVALUATION_SIZE,
        "sha256": paths.sha256(chosen.output),
        "from": loaded.to_dict() if loaded else chosen.weights,
        "fine_tuning": {**tuned.settings, "steps": tuned.steps, "head_only": chosen.head_only},
        "pictures": validation.source,
        "top1": top1.value,
        "top1_interval_95": list(top1.interval),
        "n": top1.n,
    }
    paths.write_text(chosen.output.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    say(chosen, f"wrote {chosen.output}; use it with --weights {chosen.output}")
    if chosen.json:
        print(json.dumps(card))
    return 0


def _smaller_batch(source: data.ImageSource, usual: int) -> dict[str, int]:
    """Return a smaller batch where a folder has fewer pictures than the usual one."""
    if isinstance(source, str):
        return {}
    there = len(source.load("train", usual, 16))
    return {"batch_size": there} if there < usual else {}


def _top1(module: nn.Module, images: data.ImageSet) -> metrics.Proportion:
    from .. import metrics, train

    return metrics.accuracy(train.logits_of(module, images), images.labels)


@contextlib.contextmanager
def _trained_part(module: nn.Module, head_only: bool) -> Iterator[None]:
    """Let the last layer alone be trained, where that is wanted: for this block."""
    from ..models import architectures

    head = architectures.head_name(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not head_only or name.startswith(f"{head}."))
    try:
        yield
    finally:
        module.requires_grad_(False)


def _start(chosen: argparse.Namespace) -> tuple[nn.Module, LoadReport | None, data.ImageSource]:
    """Return the network to train, what of another's weights went into it, and what it learns."""
    from ..images import data, folder
    from ..models import checkpoint

    renames = dict(_pair(rename) for rename in chosen.rename)
    if not chosen.start:
        model, module = _loaded(chosen)
        try:
            return module, None, _image_set(chosen, model)
        except UnknownNameError:  # other classes: another last layer
            state, named = module.state_dict(), f"the weights of {model.name} ({model.weights})"
    else:
        state, named = checkpoint.state_dict(chosen.start), chosen.start.name
    source: data.ImageSource = chosen.image_set or data.THINGS16
    if chosen.data:
        source = folder.read(chosen.data, progress=progress_bar)
        _require_labels(source)
        say(chosen, source)
    module = _fresh(chosen.model, len(data.classes_of(source)))
    report = checkpoint.load_partly_(module, state, named, renames)
    say(chosen, report)
    return module, report, source


def _fresh(name: str, classes: int) -> nn.Module:
    """Return a network whose random weights are the same in every run."""
    import torch

    from ..models import architectures

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return architectures.find(name).build(classes)


def _image_set(chosen: argparse.Namespace, model: zoo.Model) -> data.ImageSource:
    from ..images import data
    from ..models import gallery

    if not chosen.data:
        return chosen.image_set or data.set_for(model.classes)
    found = gallery.in_folder(model, chosen.data, progress_bar)[1]
    _require_labels(found)
    return found


def _require_labels(found: ImageFolder) -> None:
    if not found.labelled:
        raise UsageError(
            f"{found.root} has no subfolders with the names of classes, so nobody says what its "
            "pictures show. Put those of each class into one."
        )


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
    from ..quantize import recipe as recipes

    recipe, preset = recipes.for_training(quantize.load_recipe(chosen.recipe))
    if preset:
        say(chosen, f"recipe {recipe.name} has no `qat` part: trained with that of {preset}")
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
    how["image_set"] = source = _image_set(chosen, model)
    how |= _smaller_batch(source, recipe.qat.batch_size)
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
