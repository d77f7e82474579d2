"""The command that does everything at once: compress."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from . import training_options
from .options import NAME_HELP, command, data_argument, emit, listener, say, titled
from .training import SETS

if TYPE_CHECKING:
    from ..pipeline import compression


def add(commands: Any) -> None:
    """Add the parser of this command."""
    text = (
        "Make a network smaller until it keeps to a budget: surgery, pruning, mixed precision, "
        "training with the rounding, DLC. Run it again after a kill, and it resumes."
    )
    parser = command(commands, "compress", _compress, text)
    parser.add_argument("model", metavar="MODEL", nargs="?", help=f"{NAME_HELP}, or that of --plan")
    plan = "a plan (YAML), as -o DIR/plan.yaml of an earlier run; options replace what it says"
    parser.add_argument("--plan", type=Path, metavar="FILE", help=plan)
    parser.add_argument("--weights", help="auto, things16, marked-things, a file (auto)")
    parser.add_argument("--set", dest="image_set", choices=SETS, help="which pictures are learned")
    data_argument(parser, "learned from one part, measured on another")
    wanted = "macs, parameters, latency (shares), megabytes, points: macs=0.5,megabytes=2,points=1"
    parser.add_argument("--budget", metavar="NAME=NUMBER,...", help=wanted)
    parser.add_argument("--target", help="snpe-2.7, qnn or qairt-2025 (qnn)")
    stages = parser.add_argument_group("stages")
    rules = "rules or sets, such as lite; auto: what the target asks for; none (auto)"
    stages.add_argument("--surgery", action="append", metavar="RULE", help=rules)
    globs = "layers that keep their channels, by name; may be given again"
    stages.add_argument("--exclude", action="append", metavar="GLOB", help=globs)
    stages.add_argument("--multiple", type=int, help="widths are multiples of this (8)")
    stages.add_argument("--recipe", help="what mixed precision starts from (int8)")
    share = "at most this share of the MACs with 16-bit activations (0.15)"
    stages.add_argument("--mac-share", type=float, metavar="SHARE", help=share)
    counted = "of each training, for a quick look; a plan says it stage by stage"
    stages.add_argument("--steps", type=int, help=counted)
    stages.add_argument("--size", type=int, help="side of training images in pixels (96)")
    most = "training images, and calibration images, at most (8000, 256)"
    stages.add_argument("--images", type=int, help=most)
    judged = parser.add_argument_group("measurement")
    judged.add_argument("--held-out", type=int, metavar="N", help="validation images (all)")
    judged.add_argument("--simulated", type=int, metavar="N", help="of those for the DLC (96)")
    fewer = "do not train the original as long for comparison; points are then against it as it is"
    judged.add_argument("--no-control", action="store_true", help=fewer)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder for everything"
    )


def _compress(chosen: argparse.Namespace) -> int:
    from .. import dlc
    from ..pipeline import compression
    from ..show import figures

    plan = _plan(chosen)
    dlc.refuse_impossible(plan.target, chosen.output / "net.dlc")
    asked = argparse.Namespace(
        model=plan.model, weights=plan.weights, data=plan.data and Path(plan.data),
        image_set=plan.image_set, json=chosen.json,
    )  # fmt: skip
    model, _ = training_options.load_network(asked)
    source = training_options.learned_pictures(asked, model)
    say(chosen, titled(model))
    made = compression.compress(plan, chosen.output, model, source, listener(chosen))
    figures.compression_front(made).save(chosen.output / "front.png")
    emit(chosen, made)
    say(chosen, f"wrote {chosen.output}: plan.yaml, ladder.csv, ladder.txt, front.png")
    return 0 if made.ok else 1


def _plan(chosen: argparse.Namespace) -> compression.CompressionPlan:
    """Return the plan of --plan, or a new one, with what the options say."""
    from ..pipeline import compression

    if chosen.data and chosen.image_set:
        raise UsageError("--data takes the place of --set: pass one of them.")
    budget = compression.CompressionBudget.parse(chosen.budget) if chosen.budget else None
    if chosen.plan:
        plan = compression.load_plan(chosen.plan)
    elif chosen.model is None or budget is None:
        raise UsageError(
            "Pass MODEL and --budget, such as --budget macs=0.5,megabytes=2,points=1; or --plan."
        )
    else:
        plan = compression.CompressionPlan(chosen.model, budget)
    own = {
        "model": chosen.model, "budget": budget, "weights": chosen.weights,
        "target": chosen.target,
    }  # fmt: skip
    plan = _with(plan, own)
    if chosen.data or chosen.image_set:
        pictures = {"data": chosen.data and str(chosen.data), "image_set": chosen.image_set}
        plan = dataclasses.replace(plan, **pictures)
    if chosen.steps is not None:
        if chosen.steps < 1:
            raise UsageError(f"--steps must be at least 1, not {chosen.steps}.")
        plan = plan.with_steps(chosen.steps)
    return _checked(_with_stages(plan, chosen))


def _with_stages(
    plan: compression.CompressionPlan, chosen: argparse.Namespace
) -> compression.CompressionPlan:
    """Return the plan with what the options say of its stages."""
    rules = None if chosen.surgery is None else tuple(r for r in chosen.surgery if r != "none")
    taught = {"size": chosen.size, "images": chosen.images}
    surgery = _with(plan.surgery, {"rules": rules})
    pruning = _with(plan.pruning, {
        "exclude": None if chosen.exclude is None else tuple(chosen.exclude),
        "multiple": chosen.multiple,
        "images": chosen.images and min(chosen.images, plan.pruning.images),
    })  # fmt: skip
    quantization = _with(plan.quantization, {
        "recipe": chosen.recipe, "mac_share": chosen.mac_share, "size": chosen.size,
        "calibration": chosen.images and min(chosen.images, plan.quantization.calibration),
    })  # fmt: skip
    evaluation = _with(plan.evaluation, {
        "images": chosen.held_out, "simulated": chosen.simulated,
        "control": False if chosen.no_control else None,
    })  # fmt: skip
    return dataclasses.replace(
        plan,
        surgery=_with(surgery, {"training": _with(surgery.training, taught)}),
        pruning=_with(pruning, {"training": _with(pruning.training, taught)}),
        quantization=quantization,
        evaluation=evaluation,
    )


def _checked(plan: compression.CompressionPlan) -> compression.CompressionPlan:
    """Return the plan, refused in the words of a plan's file where an option is out of range."""
    from ..pipeline import compression

    return compression.parse_plan(plan.to_yaml(), "the plan that these options make")


def _with(item: Any, values: dict[str, Any]) -> Any:
    """Return a dataclass with the values that are given."""
    given = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(item, **given)
