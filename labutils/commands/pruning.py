"""Commands that make a network smaller: prune."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UnknownNameError, UsageError
from . import training_options
from .options import NAME_HELP, command, data_argument, emit, progress_bar, say
from .training import SETS

if TYPE_CHECKING:
    from torch import nn

    from .. import prune, train
    from ..images import data
    from ..models import zoo

_STEPS = 300
_SIDE = 96  # pixels
_GATE_IMAGES = 32
_RATED_ON = 256  # images for a scan, a budget, and the criterion taylor


def add(commands: Any) -> None:
    """Add the parser of this command."""
    text = (
        "Plan what a network can lose; with -o also take the channels out, train what is left, "
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
        help="share that goes (0.3); GLOB=SHARE for layers by name; may be repeated",
    )  # fmt: skip
    budget = "the widest network within this instead of a ratio, such as macs=0.5,latency=0.7"
    what.add_argument("--budget", metavar="NAME=NUMBER,...", help=budget)
    criteria = "of channels: l1, l2, bn_scale, fpgm, or taylor, which rates on data (l1)"
    what.add_argument("--criterion", help=criteria)
    scopes = "layer: each loses its share; global: more where less matters (layer)"
    what.add_argument("--scope", help=scopes)
    globs = "layers that stay, by name; may be given again"
    what.add_argument("--exclude", action="append", default=[], metavar="GLOB", help=globs)
    what.add_argument("--multiple", type=int, help="widths are multiples of this (8)")
    scan = "first measure what each group of channels costs"
    what.add_argument("--sensitivity", action="store_true", help=scan)
    trained = parser.add_argument_group("training, with -o")
    kinds = (
        "one-shot: all go, then what is left is trained; incremental, cubic, blend: masks come "
        "into force during the training (channels: one-shot, single weights: cubic)"
    )
    trained.add_argument("--schedule", help=kinds)
    trained.add_argument("--steps", type=int, default=_STEPS, help="how many (300); 0 for none")
    trained.add_argument("--size", type=int, default=_SIDE, help="side of training images (96)")
    learned = "which pictures (those that the weights learned)"
    trained.add_argument("--set", dest="image_set", choices=SETS, help=learned)
    data_argument(trained, "learned from one part, judged on another")
    trained.add_argument("--images", type=int, default=8000, help="training images, at most (8000)")
    saves = "steps between two saves of the state from which the same command resumes (50)"
    trained.add_argument("--save-every", type=int, default=50, metavar="STEPS", help=saves)
    masks = "leave the masked channels in the file as zeros: the layers keep their shapes"
    parser.add_argument("--keep-shapes", action="store_true", help=masks)
    parser.add_argument("--opset", type=int, default=17, help="ONNX opset of the export (17)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the .onnx to write")


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is pruned, and what it learns."""

    model: zoo.Model
    module: nn.Module
    source: data.ImageSource


def _prune(chosen: argparse.Namespace) -> int:
    _refuse_early(chosen)
    found: dict[str, Any] = {}
    with training_options.joined(lambda: _work(chosen)) as (work, ranks):
        plan = _agreed(ranks, work, lambda: _planned(chosen, work, found))
        if chosen.output is None:
            if ranks.first and chosen.json:
                print(json.dumps(plan.to_dict() | found, indent=2))
            return 0
        trained = _trained(chosen, plan, work, ranks)
    if ranks.first:
        tuned = trained.training and trained.training.to_dict()
        _write(chosen, plan, work, trained, found | {"training": tuned})
        if (state := trained.state) is not None:
            state.remove()
            with contextlib.suppress(OSError):  # another run of this plan keeps its state there
                state.path.rmdir()
    return 0


@dataclasses.dataclass(frozen=True)
class _Trained:
    """A network under complete masks, or without the channels of `removal`; and its training."""

    network: nn.Module
    removal: prune.Removal | None = None
    training: train.FineTuning | None = None
    state: train.Resumable | None = None


def _work(chosen: argparse.Namespace) -> _Work:
    model, module = training_options.load_network(chosen)
    source = training_options.learned_pictures(chosen, model)
    if chosen.output is not None and chosen.steps:
        training_options.draw_once(source, _config(chosen))
    return _Work(model, module, source)


def _config(chosen: argparse.Namespace) -> train.FineTuningConfig:
    from .. import train

    return train.FineTuningConfig(chosen.steps, size=chosen.size, images=chosen.images)


def _refuse_early(chosen: argparse.Namespace) -> None:
    """Refuse what no network could change, before one is loaded."""
    from .. import prune

    if chosen.output is not None and (chosen.output.suffix != ".onnx" or chosen.output.is_dir()):
        raise UsageError(f"{chosen.output}: this command writes an .onnx file.")
    if chosen.data and chosen.image_set:
        raise UsageError("--data takes the place of --set: pass one of them.")
    if chosen.steps < 0:
        raise UsageError(f"--steps must be at least 0, not {chosen.steps}.")
    if chosen.save_every < 1:
        raise UsageError(f"--save-every must be at least 1, not {chosen.save_every}.")
    _refuse_ignored(chosen)
    if chosen.budget:
        prune.Budget.parse(chosen.budget)
    if chosen.schedule not in (None, *prune.KINDS):
        raise UnknownNameError("schedule", chosen.schedule, prune.KINDS)
    if chosen.output is not None:
        training_options.refuse_unwritable(chosen.output)


def _refuse_ignored(chosen: argparse.Namespace) -> None:
    """Refuse options that mean nothing beside the others."""
    if chosen.method != "channels":
        for name in ("budget", "sensitivity", "criterion", "multiple", "keep_shapes"):
            if getattr(chosen, name) is not None and getattr(chosen, name) is not False:
                words = f"--{name.replace('_', '-')}"
                raise UsageError(f"{words} is about channels: leave out --method, or {words}.")
    for name in ("ratio", "scope"):
        if ":" in chosen.method and getattr(chosen, name):
            raise UsageError(f"--method {chosen.method} says how many go: leave out --{name}.")
        if chosen.budget and getattr(chosen, name):
            raise UsageError(f"--budget takes the place of --{name}: pass one of them.")


def _ratio(chosen: argparse.Namespace) -> Any:
    """Return what --ratio says: one share, or one for each glob."""
    by_glob: dict[str, float] = {}
    for word in chosen.ratio or ["0.3"]:
        glob, _, share = word.rpartition("=")
        if glob in by_glob:
            which = f"for {glob}" if glob else "for all layers"
            raise UsageError(f"--ratio {word}: a share {which} was given before; pass one.")
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


def _planned(chosen: argparse.Namespace, work: _Work, found: dict[str, Any]) -> prune.Plan:
    """Return the plan, and print it; what was measured for it is added to what was `found`."""
    from .. import prune

    criterion: Any = chosen.criterion or "l1"
    rated: Any = ()
    if criterion == "taylor" or chosen.sensitivity or chosen.budget:
        rated = _rated_on(work.model, work.source)
    if criterion == "taylor":
        criterion = prune.taylor(work.module, *rated)
    multiple = 8 if chosen.multiple is None else chosen.multiple
    options: Any = {"criterion": criterion, "exclude": chosen.exclude}
    if chosen.budget:
        budget = prune.Budget.parse(chosen.budget)
        search = prune.search(
            work.module, budget, *rated, multiple=multiple, progress=progress_bar, **options
        )
        if chosen.sensitivity:
            say(chosen, search.scan.at(*prune.RATIOS))
        say(chosen, search)
        found["search"] = search.to_dict()
        plan: prune.Plan = search.plan
    else:
        if chosen.sensitivity:
            scan = prune.sensitivity(work.module, *rated, progress=progress_bar, **options)
            say(chosen, scan)
            found["sensitivity"] = scan.to_dict()
        plan = prune.plan(
            work.module, chosen.method, ratio=_ratio(chosen), scope=chosen.scope or "layer",
            multiple=multiple, size=work.model.input_shape or prune.DEFAULT_SIZE, **options,
        )  # fmt: skip
    say(chosen, plan)
    if chosen.output is not None and not plan.stays:
        raise UsageError(
            f"{work.model.name} keeps to {chosen.budget} as it is, so nothing is pruned and "
            f"{chosen.output} is not written. Lower the budget, or export it."
        )
    return plan


def _agreed(ranks: train.Ranks, work: _Work, make: Callable[[], prune.Plan]) -> prune.Plan:
    """Return the plan of the first process in all of them: a budget of time is measured."""
    from .. import paths, prune

    if ranks.size == 1:
        return make()
    with paths.scratch() as folder:
        file = folder / "plan.yaml"
        made = make() if ranks.first else None
        if made is not None:
            prune.write_plan(made, file)
        paths.write_text(file, ranks.agreed(file.read_text("utf-8") if made else ""))
        plan = prune.read_plan(file, work.module)
    return plan if made is None else dataclasses.replace(plan, settings=made.settings)


def _trained(
    chosen: argparse.Namespace, plan: prune.Plan, work: _Work, ranks: train.Ranks
) -> _Trained:
    """Return the network under complete masks or without channels, and what its training did."""
    from .. import paths, prune, train

    student = copy.deepcopy(work.module)
    if not chosen.steps:
        prune.apply_masks_(student, plan)
        return _Trained(student)
    config = training_options.fitted_config(chosen, _config(chosen), work.source, ranks)
    of_channels = isinstance(plan, prune.ChannelPlan)
    schedule = chosen.schedule or (prune.ONE_SHOT if of_channels else "cubic")
    place = paths.cache() / "training" / f"{plan.digest()}-{schedule}"  # not in the weights
    state = train.Resumable(paths.folder(place), chosen.save_every)
    how: Any = {
        "teacher": work.module, "schedule": schedule, "image_set": work.source,
        "progress": training_options.progress_of_first(), "config": config, "ranks": ranks,
        "state": state,
    }  # fmt: skip
    removal = None
    if isinstance(plan, prune.ChannelPlan) and not chosen.keep_shapes:
        size = work.model.input_shape or prune.DEFAULT_SIZE
        removal, tuned = prune.recovered(work.module, plan, input_size=size, **how)
        student = removal.network
    else:
        tuned = prune.recover_(student, plan, **how)
    training_options.tell(chosen, tuned)
    return _Trained(student, removal, tuned, state)


def _write(
    chosen: argparse.Namespace,
    plan: prune.Plan,
    work: _Work,
    trained: _Trained,
    found: dict[str, Any],
) -> None:
    """Take the masks off, and keep the file once it passed the gate."""
    from .. import compare, export, paths, runtime
    from ..pipeline import steps

    model, prepared = work.model, work.model.known_preprocessing()
    speed = _say_speed(chosen, plan, model, trained.network)
    smaller, removal = _without_masks(chosen, model, trained)
    facts: dict[str, Any] = {"plan": plan.to_dict(), "removal": removal, "sparse_speed": speed}
    facts["top1"] = _judged(chosen, work, smaller)
    pictures = training_options.held_out_pictures(work.source, _GATE_IMAGES, prepared.size)
    inputs = prepared(pictures.head(_GATE_IMAGES).images)
    with paths.scratch(chosen.output.parent) as folder:
        draft = folder / chosen.output.name
        report = export.to_onnx(smaller, draft, opset=chosen.opset, preprocessing=prepared)
        with runtime.connect(trained.network) as ours, runtime.connect(draft) as theirs:
            gate = compare.gate(ours, theirs, inputs, kind="ort_fp32")
        facts |= {"gate": gate.to_dict(), "training": found["training"]}
        steps.write_manifest(draft, model, opset=report.opset, **facts)
        for file in folder.iterdir():
            file.replace(chosen.output.parent / file.name)
    say(chosen, f"wrote {chosen.output}")
    if chosen.json:
        print(json.dumps(facts | found, indent=2, default=str))
    else:
        emit(chosen, gate)


def _without_masks(
    chosen: argparse.Namespace, model: zoo.Model, trained: _Trained
) -> tuple[nn.Module, dict[str, Any] | None]:
    """Return the network without its masks, and what was removed; None where nothing was."""
    from .. import prune

    if chosen.keep_shapes:
        plain = copy.deepcopy(trained.network)
        prune.remove_(plain)
        return plain, None
    removal = trained.removal
    if removal is None:
        removal = prune.removed(trained.network, size=model.input_shape or prune.DEFAULT_SIZE)
    say(chosen, removal)
    return removal.network, removal.to_dict()


def _judged(chosen: argparse.Namespace, work: _Work, smaller: nn.Module) -> dict[str, Any]:
    """Say what the network scores, beside the one before."""
    from .. import metrics, train
    from ..images import data

    n = data.validation_images(work.source)
    held_out = training_options.held_out_pictures(work.source, n, train.EVALUATION_SIZE)
    before, after = (train.logits_of(m, held_out) for m in (work.module, smaller))
    right = [metrics.correct(logits, held_out.labels) for logits in (after, before)]
    top1, change = metrics.accuracy(after, held_out.labels), metrics.paired_difference(*right)
    say(chosen, f"top-1 {top1}, {change} against the network before: {held_out.source}")
    return {"value": top1.value, "n": top1.n, "pictures": held_out.source}


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
