"""Commands that train a network a little further: train."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UnknownNameError, UsageError, some
from . import quantized_training, training_options
from .options import NAME_HELP, WEIGHTS_HELP, command, data_argument, say

if TYPE_CHECKING:
    from torch import nn

    from .. import metrics
    from ..images import data
    from ..images.folder import ImageFolder
    from ..models import zoo
    from ..models.checkpoint import LoadReport
    from ..train import FineTuningConfig

ROUTES = ("lab", "pt2e")
SETS = ("things16", "marked-things")  # data.DRAWN, heavier to import than a help text may be


def add(commands: Any) -> None:
    """Add the parser of this command."""
    text = "Fine-tune a model on pictures; with --recipe, with the rounding in place (QAT)."
    parser = command(commands, "train", _train, text)
    parser.add_argument("model", metavar="MODEL", help=NAME_HELP)
    begins = f"what it begins with: {WEIGHTS_HELP}; with --recipe, weights of the pictures' classes"
    parser.add_argument("--weights", default="auto", help=begins)
    parser.add_argument(
        "--from", dest="start", type=Path, metavar="FILE",
        help="start from those weights of a .pth or .safetensors that fit by name and shape",
    )  # fmt: skip
    parser.add_argument(
        "--rename", action="append", default=[], metavar="OLD=NEW",
        help="regular expression and replacement for names in that file; may be given again",
    )  # fmt: skip
    recipe = "train for this recipe (QAT), such as int8_qat or a YAML; first train without it"
    parser.add_argument("--recipe", help=recipe)
    routes = "what quantizes: the lab's own layers, or torchao's PT2E, the official route (lab)"
    parser.add_argument("--route", choices=ROUTES, default="lab", help=routes)
    settings = "YAML with batch size, learning rate, augmentation and the like, or a card"
    parser.add_argument("--config", type=Path, metavar="FILE", help=settings)
    parser.add_argument("--steps", type=int, help="how many (300, or what the recipe says)")
    sides = "side of the training images (96, or what the recipe says; networks are used at 128)"
    parser.add_argument("--size", type=int, help=sides)
    learned = "which pictures (those that the weights learned, else things16)"
    parser.add_argument("--set", dest="image_set", choices=SETS, help=learned)
    data_argument(parser, "learned from one part, judged on another")
    head = "train the last layer alone, and keep the rest as it is"
    parser.add_argument("--head-only", action="store_true", help=head)
    parser.add_argument("--images", type=int, help="training images, at most (8000)")
    saves = "steps between two saves of the state from which the same command resumes (50)"
    parser.add_argument("--save-every", type=int, default=50, metavar="STEPS", help=saves)
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
    for option in ("steps", "save_every"):
        if (number := getattr(chosen, option)) is not None and number < 1:
            raise UsageError(f"--{option.replace('_', '-')} must be at least 1, not {number}.")
    training_options.refuse_unwritable(chosen.output)
    return quantized_training.run(chosen) if chosen.recipe else _in_float(chosen)


def _in_float(chosen: argparse.Namespace) -> int:
    """Fine-tune, write weights and card, and say what was loaded and what it scores."""
    from .. import paths, train
    from ..images import data

    config = training_options.config_of(chosen, train.FineTuningConfig())
    if chosen.head_only:  # the rest stays as it is, its statistics too
        config = config.replaced(freeze_batch_norm_at=0.0)
    with training_options.joined(lambda: _start(chosen, config)) as (start, ranks):
        module, loaded, source = start
        config = training_options.fitted_config(chosen, config, source, ranks)
        held_out = training_options.held_out_pictures(
            source, data.validation_images(source), train.EVALUATION_SIZE
        )
        before = _top1(module, held_out) if ranks.first and not chosen.start else None
        state = training_options.state_of(chosen, config)
        with _trained_part(module, chosen.head_only):
            tuned = train.fine_tune(
                module, config=config, image_set=source, ranks=ranks, state=state,
                progress=training_options.progress_of_first(),
            )  # fmt: skip
    if not ranks.first:
        return 0
    say(chosen, tuned)
    top1 = _top1(module, held_out)
    was = f" (before: {before})" if before else ""
    say(chosen, f"top-1 {top1}{was}: {held_out.source}")
    smaller = _at_the_training_size(chosen, module, source, config.size)
    _write_weights(module, chosen.output)
    card = {
        "architecture": chosen.model,
        "classes": list(data.classes_of(source)),
        "size": train.EVALUATION_SIZE,
        "preprocessing": dataclasses.asdict(data.Preprocessing(train.EVALUATION_SIZE)),
        "sha256": paths.sha256(chosen.output),
        "from": loaded.to_dict() if loaded else chosen.weights,
        "config": train.config.stored(config),
        "fine_tuning": {**tuned.settings, "steps": tuned.steps, "head_only": chosen.head_only},
        "processes": ranks.size,
        "pictures": held_out.source,
        "top1": top1.value,
        "top1_interval_95": list(top1.interval),
        "n": top1.n,
        "training_size": config.size,
        **smaller,
    }
    paths.write_text(chosen.output.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    if state is not None:
        state.remove()
    say(chosen, f"wrote {chosen.output}; use it with --weights {chosen.output}")
    if chosen.json:
        print(json.dumps(card))
    return 0


def _at_the_training_size(
    chosen: argparse.Namespace, module: nn.Module, source: data.ImageSource, size: int
) -> dict[str, float]:
    """Say that a network is judged, and used, at another size than it learned; judge both."""
    from .. import train
    from ..images import data

    if size == train.EVALUATION_SIZE:
        return {}
    n = data.validation_images(source)
    there = _top1(module, training_options.held_out_pictures(source, n, size))
    say(
        chosen,
        f"Note: it was trained at {size} px, and is judged and used at {train.EVALUATION_SIZE} px. "
        f"At {size} px: top-1 {there}. `--size {train.EVALUATION_SIZE}` trains at the size of use.",
    )
    return {"top1_at_training_size": there.value}


def _write_weights(module: nn.Module, output: Path) -> None:
    """Write the weights; first the card of earlier ones goes, which names other classes."""
    from safetensors.torch import save

    from .. import paths

    output.with_suffix(".json").unlink(missing_ok=True)
    paths.write_bytes(output, save({n: v.contiguous() for n, v in module.state_dict().items()}))


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


def _start(
    chosen: argparse.Namespace, config: FineTuningConfig
) -> tuple[nn.Module, LoadReport | None, data.ImageSource]:
    """Return the network to train, what of another's weights went into it, and what it learns."""
    from ..images import data
    from ..models import checkpoint

    source: data.ImageSource
    renames = dict(_pair(rename) for rename in chosen.rename)
    model = None
    if chosen.start:
        state, named = checkpoint.state_dict(chosen.start), chosen.start.name
        source = _folder(chosen) if chosen.data else chosen.image_set or data.THINGS16
    else:
        model, module = training_options.load_network(chosen)
        source, known = _pictures(chosen, model)
        if known:
            training_options.draw_once(source, config)
            return module, None, source
        state, named = module.state_dict(), f"the weights of {model.name} ({model.weights})"
        training_options.tell(chosen, _new_classes(model, data.classes_of(source)))
    module, report = _fresh(chosen.model, len(data.classes_of(source))), None
    if model is None or model.trained:
        report = checkpoint.load_partly_(module, state, named, renames)
        training_options.tell(chosen, report)
    training_options.draw_once(source, config)
    return module, report, source


def _pictures(chosen: argparse.Namespace, model: zoo.Model) -> tuple[data.ImageSource, bool]:
    """Return what is learned, and whether the network has a last layer for those classes."""
    from ..images import data
    from ..models import gallery

    if not chosen.data:
        source = training_options.learned_pictures(chosen, model)
        return source, model.trained and len(data.classes_of(source)) == len(model.classes)
    if model.trained and gallery.names_classes(model):
        try:
            return training_options.learned_pictures(chosen, model), True
        except UnknownNameError:  # the folder has other classes
            return _folder(chosen), False
    found = _folder(chosen)
    return found, model.trained and len(found.classes) == len(model.classes)


def _folder(chosen: argparse.Namespace) -> ImageFolder:
    """Return the pictures of a folder that decides the classes."""
    from ..images import folder

    source = folder.read(chosen.data, progress=training_options.progress_of_first())
    training_options.tell(chosen, source)
    training_options.require_labels(source)
    training_options.refuse_lost_classes(source)
    return source


def _new_classes(model: zoo.Model, classes: Sequence[str]) -> str:
    """Say that the network gets other classes than it had, and which."""
    from ..models import gallery

    new = f"{_classes(classes)} of the pictures: {some(classes)}"
    if not model.trained:
        return f"{model.name} has random weights, and learns the {new}"
    had = some(model.classes) if gallery.names_classes(model) else "without names"
    return (
        f"Other classes than those of {model.weights}: the network learns the {new}. "
        f"It had {_classes(model.classes)}: {had}"
    )


def _classes(names: Sequence[str]) -> str:
    return f"{len(names)} class{'es' * (len(names) != 1)}"


def _fresh(name: str, classes: int) -> nn.Module:
    """Return a network whose random weights are the same in every run."""
    import torch

    from ..models import architectures

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return architectures.find(name).build(classes)


def _pair(rename: str) -> tuple[str, str]:
    old, equals, new = rename.partition("=")
    if not old or not equals:
        raise UsageError(f"--rename {rename}: OLD=NEW is needed, such as '^backbone\\.='.")
    return old, new
