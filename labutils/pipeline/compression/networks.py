"""The stages in PyTorch: the original trained as long, surgery, pruning; each is made once."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import prune, surgery, train
from ...errors import PruningError, TranslationError
from ...images import data
from ...images.folder import ImageFolder
from ...models import zoo
from ...quantize import presets
from ...quantize import recipe as recipes
from ...quantize.training import qat
from ...surgery import RULES
from ...train import run_state
from .. import planning
from ..settings import Listener
from .plan import AUTO, CompressionPlan, structural
from .store import Store, load_weights_, save_weights


@dataclass(frozen=True)
class Job:
    """A compression and all that it works with.

    Attributes
    ----------
    plan
        What decides it.
    model
        The original, with its network and preprocessing.
    source
        What is learned, and measured on.
    store
        What was made before.
    listener
        Follows the reports and the long loops.
    """

    plan: CompressionPlan
    model: zoo.Model
    source: data.ImageSource
    store: Store
    listener: Listener

    @property
    def original(self) -> nn.Module:
        """The network to be compressed."""
        module = self.model.module
        assert module is not None  # only networks by name are compressed
        return module

    @property
    def size(self) -> int:
        """Side of the input, in pixels."""
        return max(data.sides(self.model.known_preprocessing().size))

    def images(self, part: str, n: int) -> data.ImageSet:
        """Return at most `n` pictures of a part, at the size of the input."""
        return data.load(part, n, self.model.known_preprocessing().size, self.source)

    def taught(self, place: Path, teacher: nn.Module) -> dict[str, Any]:
        """Return what every training has; `place` is where its network will be."""
        shared = {"image_set": self.source, "progress": self.listener.progress}
        return shared | {"state": self.store.training(place), "teacher": teacher}


def trained_as_long(job: Job, steps: int) -> nn.Module:
    """Return a copy of the original after as many steps, on the same images, taught by itself."""
    config = job.plan.pruning.training.replaced(steps=steps)
    place = job.store.place("control", ".safetensors", training=asdict(config))
    network = copy.deepcopy(job.original)
    _train_once(job, network, place, lambda how: train.fine_tune(network, config=config, **how))
    return network.eval()


def operated(job: Job, file: Path) -> tuple[nn.Module, tuple[str, ...], bool]:
    """Return the network after the surgery, the rules, and whether it computes the same.

    Parameters
    ----------
    job
        The compression.
    file
        The original as ONNX: what the target's table judges.

    Raises
    ------
    TranslationError
        The target asks for what no exact rule gives.
    SurgeryError
        A rule matched nothing, or changed what it must not.
    """
    rules = _chosen_rules(job, file)
    network = copy.deepcopy(job.original)
    if not rules:
        return network, (), True
    example = job.model.known_preprocessing()(job.images("calib", 2).images)
    report = surgery.replace_(network, rules, example_inputs=torch.from_numpy(example))
    job.listener.echo(report)
    used = tuple(name for name, count in report.counts.items() if count)
    return network.eval(), used, all(RULES[name].exact for name in used)


def _chosen_rules(job: Job, file: Path) -> tuple[str, ...]:
    """Return the rules of the plan, ``auto`` as what the target asks for."""
    rules = tuple(name for name in job.plan.surgery.rules if name != AUTO)
    if AUTO not in job.plan.surgery.rules:
        return rules
    asked = planning.suggest(file, job.plan.target)
    if not asked.needed:
        return rules
    layers = tuple(name for name in asked.rules if name not in surgery.ONNX_ONLY)
    if not asked.complete or len(layers) < len(asked.rules):
        raise TranslationError(
            f"{asked}\nNo exact rule makes layers of {job.model.name} that {job.plan.target} "
            "takes. Name the rules yourself (--surgery lite changes what it computes, and trains "
            "it again), or choose another target."
        )
    return (*layers, *rules)


def operated_and_trained(job: Job, file: Path) -> tuple[nn.Module, tuple[str, ...], bool]:
    """Return the network after the surgery, trained where that changed what it computes."""
    network, rules, exact = operated(job, file)
    if exact:
        return network, rules, exact
    config = job.plan.surgery.training
    place = job.store.place("surgery", ".safetensors", rules=rules, training=asdict(config))
    _train_once(job, network, place, lambda how: train.fine_tune(network, config=config, **how))
    return network.eval(), rules, exact


@dataclass(frozen=True)
class Pruned:
    """A pruned network before and after its training.

    Attributes
    ----------
    untrained, network
        Without the channels; both None where none went: the budget asks for no pruning, the whole
        network keeps to it, or no channel can go.
    short
        Which part of the budget no widths keep to, and what would help.
    """

    untrained: nn.Module | None = None
    network: nn.Module | None = None
    short: str = ""


def pruned(job: Job, network: nn.Module) -> Pruned:
    """Return the network without the channels that the budget costs, trained again."""
    budget = structural(job.plan.budget, job.plan.pruning.bits)
    if budget is None:
        return Pruned()
    asked = asdict(job.plan.pruning)
    digest = {"network": run_state.digest(network)}
    widths = {name: value for name, value in asked.items() if name not in ("training", "end")}
    chosen = job.store.place("widths", ".yaml", budget=asdict(budget), **widths, **digest)
    try:
        job.store.make(chosen, lambda draft: _search(job, network, budget, draft))
    except PruningError as error:  # no channel can go; fewer bits may do alone
        return Pruned(short=str(error))
    plan = prune.read_plan(chosen, network)
    assert isinstance(plan, prune.ChannelPlan)
    if not plan.stays:
        return Pruned(short=_note_of(chosen))
    masked = copy.deepcopy(network)
    prune.apply_masks_(masked, plan)
    untrained = prune.removed(masked, size=job.size).network
    smaller = copy.deepcopy(untrained)
    content = {"widths": chosen.name, "pruning": asked, **digest}
    place = job.store.place("pruned", ".safetensors", **content)

    def recover(how: dict[str, Any]) -> prune.Removal:
        settings = job.plan.pruning
        removal, done = prune.recovered(
            network, plan, input_size=job.size, schedule=settings.schedule, end=settings.end,
            config=settings.training, **how,
        )  # fmt: skip
        job.listener.echo(done)
        smaller.load_state_dict(removal.network.state_dict())
        return removal

    _train_once(job, smaller, place, recover)
    return Pruned(untrained.eval(), smaller.eval(), _note_of(chosen))


def _search(job: Job, network: nn.Module, budget: prune.Budget, draft: Path) -> None:
    """Write the widths within a budget, and beside them what it cannot keep to."""
    settings = job.plan.pruning
    images = job.images("train", settings.images)
    inputs = job.model.known_preprocessing()(images.images)
    criterion: Any = settings.criterion
    if criterion == "taylor":
        criterion = prune.taylor(network, inputs, images.labels)
    found = prune.nearest(
        network, budget, inputs, images.labels, criterion=criterion, exclude=settings.exclude,
        multiple=settings.multiple, progress=job.listener.progress,
    )  # fmt: skip
    job.listener.echo(found)
    prune.write_plan(found.plan, draft)
    _note_file(draft).write_text(found.short, encoding="utf-8")


def _note_file(widths: Path) -> Path:
    return widths.with_suffix(".txt")


def _note_of(widths: Path) -> str:
    file = _note_file(widths)
    return file.read_text(encoding="utf-8") if file.exists() else ""


def quantized_steps(plan: CompressionPlan, recipe: recipes.Recipe) -> train.FineTuningConfig:
    """Return how the network is trained with the rounding in place: the recipe's way, or shorter.

    Zero steps of the plan mean none: the caller leaves the stage out.
    """
    config = qat.training_config(presets.for_training(recipe)[0])
    asked = {"steps": plan.quantization.steps or None, "size": plan.quantization.size}
    return config.replaced(**{name: value for name, value in asked.items() if value is not None})


def fitted(config: train.FineTuningConfig, source: data.ImageSource) -> train.FineTuningConfig:
    """Return a smaller batch where a folder has fewer pictures than one takes."""
    if not isinstance(source, ImageFolder):
        return config
    there = min(len(source.part("train")), config.images)
    return config if there >= config.batch_size else config.replaced(batch_size=there)


def fitted_plan(plan: CompressionPlan, source: data.ImageSource) -> CompressionPlan:
    """Return the plan with batches that a small folder can fill."""

    def changed(stage: Any) -> Any:
        return dataclasses.replace(stage, training=fitted(stage.training, source))

    return dataclasses.replace(plan, surgery=changed(plan.surgery), pruning=changed(plan.pruning))


def contents(model: zoo.Model, source: data.ImageSource) -> Mapping[str, Any]:
    """Return what every stage depends on: weights, preprocessing, pictures."""
    pictures: Any = source
    if isinstance(source, ImageFolder):
        pictures = {part: source.digest(part) for part in ("train", source.evaluation)}
    return {
        "model": model.name, "network": run_state.digest(model.module) if model.module else "",
        "preprocessing": asdict(model.known_preprocessing()), "pictures": pictures,
    }  # fmt: skip


def _train_once(
    job: Job, network: nn.Module, place: Path, run: Callable[[dict[str, Any]], object]
) -> None:
    """Train a network, or give it the weights of an earlier run."""
    options = job.taught(place, job.original)

    def make(draft: Path) -> None:
        job.listener.echo(run(options))
        save_weights(network, draft)

    if job.store.make(place, make):
        options["state"].remove()
    else:
        load_weights_(network, place)
        job.listener.echo(f"  kept from an earlier run: {place.name}")
