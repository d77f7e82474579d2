"""Commands that make a network smaller: prune."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UnknownNameError, UsageError
from . import training_options
from .options import NAME_HELP, command, data_argument, emit, progress_bar, say
from .training import SETS

if TYPE_CHECKING:
    from torch import nn

    from .. import prune
    from ..images import data
    from ..models import zoo

_STEPS = 300
_SIDE = 96  # pixels
_RATED_ON = 256  # images for a scan, a budget, and the criterion taylor


def add(commands: Any) -> None:
    """Add the parser of this command."""
    text = (
        "Plan what a network can lose; with -o also train it under masks, take the channels out, "
        "and write an ONNX file that passed the gate."
    )
    parser = command(commands, "prune", _prune, text)
    parser.add_argument("model", metavar="MODEL", help=NAME_HELP)
    parser.add_argument("--weights", default="auto", help="auto, things16, marked-things, a file")
    what = parser.add_argument_group("what goes")
    methods = "channels, unstructured, or n:m such as 2:4, n zeros in every m (channels)"
    what.add_argument("--method", default="channels", help=methods)
    what.add_argument(
        "--ratio", action="append", metavar="SHARE | GLOB=SHARE",
        help="share that goes (0.3); of layers by name where a glob is given, again and again",
    )  # fmt: skip
    budget = "the widest network within this instead of a ratio, such as macs=0.5,latency=0.7"
    what.add_argument("--budget", metavar="NAME=NUMBER,...", help=budget)
    what.add_argument(
        "--criterion", default="l1", help="l1, l2, bn_scale, fpgm, or taylor, which rates on data"
    )
    scopes = "layer: each loses its share; global: more where less matters (layer)"
    what.add_argument("--scope", default="layer", help=scopes)
    globs = "layers that stay, by name; may be given again"
    what.add_argument("--exclude", action="append", default=[], metavar="GLOB", help=globs)
    what.add_argument("--multiple", type=int, default=8, help="widths are multiples of this (8)")
    scan = "first measure what each group of channels costs"
    what.add_argument("--sensitivity", action="store_true", help=scan)
    trained = parser.add_argument_group("training, with -o")
    kinds = "how masks come into force: one-shot, incremental, cubic, blend (cubic)"
    trained.add_argument("--schedule", default="cubic", help=kinds)
    trained.add_argument("--steps", type=int, default=_STEPS, help="how many (300); 0 for none")
    trained.add_argument("--size", type=int, default=_SIDE, help="side of training images (96)")
    learned = "which pictures (those that the weights learned)"
    trained.add_argument("--set", dest="image_set", choices=SETS, help=learned)
    data_argument(trained, "learned from one part, judged on another")
    trained.add_argument("--images", type=int, default=8000, help="training images, at most (8000)")
    parser.add_argument("--opset", type=int, default=17, help="ONNX opset of the export (17)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the .onnx to write")


def _prune(chosen: argparse.Namespace) -> int:
    from .. import prune

    _refuse_early(chosen)
    model, module = training_options.load_network(chosen)
    source = training_options.learned_pictures(chosen, model)
    options = {"criterion": chosen.criterion, "exclude": chosen.exclude}
    rated: Any = ()
    if chosen.criterion == "taylor" or chosen.sensitivity or chosen.budget:
        rated = _rated_on(model, source)
    if chosen.criterion == "taylor":
        options["criterion"] = prune.taylor(module, *rated)
    found: dict[str, Any] = {}
    if chosen.sensitivity and not chosen.budget:
        scan = prune.sensitivity(module, *rated, progress=progress_bar, **options)
        say(chosen, scan)
        found["sensitivity"] = scan.to_dict()
    plan = _planned(chosen, model, module, rated, options, found)
    if chosen.output is None:
        if chosen.json:
            print(json.dumps(plan.to_dict() | found, indent=2))
        return 0
    return _written(chosen, plan, model, module, source)


def _refuse_early(chosen: argparse.Namespace) -> None:
    """Refuse what no network could change, before one is loaded."""
    from .. import prune

    if chosen.output is not None and (chosen.output.suffix != ".onnx" or chosen.output.is_dir()):
        raise UsageError(f"{chosen.output}: this command writes an .onnx file.")
    if chosen.data and chosen.image_set:
        raise UsageError("--data takes the place of --set: pass one of them.")
    if chosen.steps < 0:
        raise UsageError(f"--steps must be at least 0, not {chosen.steps}.")
    if chosen.budget and chosen.ratio:
        raise UsageError("--budget takes the place of --ratio: pass one of them.")
    if chosen.method != "channels" and (chosen.budget or chosen.sensitivity):
        raise UsageError("--budget and --sensitivity are about channels: leave out --method.")
    if ":" in chosen.method and chosen.ratio:
        raise UsageError(f"--method {chosen.method} says how many go: leave out --ratio.")
    if chosen.budget:
        prune.Budget.parse(chosen.budget)
    if chosen.schedule not in prune.KINDS:
        raise UnknownNameError("schedule", chosen.schedule, prune.KINDS)


def _ratio(chosen: argparse.Namespace) -> Any:
    """Return what --ratio says: one share, or one for each glob."""
    by_glob: dict[str, float] = {}
    for word in chosen.ratio or ["0.3"]:
        glob, _, share = word.rpartition("=")
        try:
            by_glob[glob] = float(share)
        except ValueError:
            raise UsageError(
                f"--ratio {word}: SHARE or GLOB=SHARE is needed, such as 0.3 or 'features.1*=0.5'."
            ) from None
    if "" in by_glob and len(by_glob) > 1:
        by_glob["*"] = by_glob.pop("")  # for all others: globs are tried in their order
    return by_glob.get("", by_glob)


def _rated_on(model: zoo.Model, source: data.ImageSource) -> tuple[Any, ...]:
    """Return images of the training part that no accuracy is measured on, and their labels."""
    from ..images import data

    prepared = model.known_preprocessing()
    images = data.load("train", _RATED_ON, max(data.sides(prepared.size)), source)
    return prepared(images.images), images.labels


def _planned(
    chosen: argparse.Namespace,
    model: zoo.Model,
    module: nn.Module,
    rated: tuple[Any, ...],
    options: dict[str, Any],
    found: dict[str, Any],
) -> prune.Plan:
    """Return the plan, and print it; a search adds to what was `found`."""
    from .. import prune

    if chosen.budget:
        budget = prune.Budget.parse(chosen.budget)
        search = prune.search(
            module, budget, *rated, multiple=chosen.multiple, progress=progress_bar, **options
        )
        if chosen.sensitivity:
            say(chosen, search.scan)
        say(chosen, search)
        found["search"] = search.to_dict()
        plan: prune.Plan = search.plan
    else:
        plan = prune.plan(
            module, chosen.method, ratio=_ratio(chosen), scope=chosen.scope,
            multiple=chosen.multiple, size=model.input_shape or prune.DEFAULT_SIZE, **options,
        )  # fmt: skip
    say(chosen, plan)
    return plan


def _written(
    chosen: argparse.Namespace,
    plan: prune.Plan,
    model: zoo.Model,
    module: nn.Module,
    source: data.ImageSource,
) -> int:
    """Train under masks, take them off, and keep the file once it passed the gate."""
    from .. import compare, export, metrics, paths, prune, runtime, train
    from ..images import data
    from ..pipeline import steps

    student = copy.deepcopy(module)
    validation = data.load("val", data.validation_images(source), train.EVALUATION_SIZE, source)
    tuned = None
    if chosen.steps:
        asked = train.FineTuningConfig(chosen.steps, size=chosen.size, images=chosen.images)
        config = training_options.fitted_config(chosen, asked, source, train.Ranks())
        tuned = prune.recover_(
            student, plan, teacher=module, schedule=chosen.schedule, image_set=source,
            progress=progress_bar, config=config,
        )  # fmt: skip
        say(chosen, tuned)
    else:
        prune.apply_masks_(student, plan)
    speed = _say_speed(chosen, plan, model, student)
    removal = prune.removed(student, size=model.input_shape or prune.DEFAULT_SIZE)
    say(chosen, removal)
    before, after = (train.logits_of(m, validation) for m in (module, removal.network))
    labels = validation.labels
    change = metrics.paired_difference(
        metrics.correct(after, labels), metrics.correct(before, labels)
    )
    top1 = metrics.accuracy(after, labels)
    say(chosen, f"top-1 {top1}, {change} against the network before: {validation.source}")
    prepared = model.known_preprocessing()
    pictures = prepared(data.load("val", 32, prepared.size, source).images)
    with paths.scratch(chosen.output.parent) as folder:
        draft = folder / chosen.output.name
        report = export.to_onnx(removal.network, draft, opset=chosen.opset, preprocessing=prepared)
        with runtime.connect(student) as ours, runtime.connect(draft) as theirs:
            gate = compare.gate(ours, theirs, pictures, kind="ort_fp32")
        facts: dict[str, Any] = {
            "plan": plan.to_dict(),
            "removal": removal.to_dict(),
            "gate": gate.to_dict(),
        }
        facts["sparse_speed"] = speed
        facts["training"] = tuned.to_dict() if tuned else None
        facts["top1"] = {"value": top1.value, "n": top1.n, "pictures": validation.source}
        steps.write_manifest(draft, model, opset=report.opset, **facts)
        for file in folder.iterdir():
            file.replace(chosen.output.parent / file.name)
    say(chosen, f"wrote {chosen.output}")
    emit(chosen, gate)
    return 0


def _say_speed(
    chosen: argparse.Namespace, plan: prune.Plan, model: zoo.Model, student: nn.Module
) -> dict[str, Any] | None:
    """Say which runtimes profit from zeros that stay in dense weights; None where channels go."""
    from .. import pipeline, prune
    from ..images import data

    if isinstance(plan, prune.ChannelPlan):
        return None
    side = max(data.sides(model.known_preprocessing().size))
    speed = pipeline.measure_sparse_speed(student, size=side)
    say(chosen, speed)
    return speed.to_dict()
