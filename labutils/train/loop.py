"""The training loop: a run that can be stopped and resumed to the bit, in one process or many."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .. import metrics, paths
from ..errors import ModelFileError, UnknownNameError
from ..images import data, things
from ..models import architectures
from .batches import Augmentation, Batches
from .config import ARCHITECTURES, TrainConfig, is_stored, stored
from .ranks import RESUMES, Ranks

EVALUATION_SIZE = 128
LOG_EVERY, SAVE_EVERY = 50, 200
WATCHED = 20  # validation images of each class that a run's log is about


def network(architecture: str, classes: int = len(things.CLASSES)) -> nn.Module:
    """Return an untrained network: torchvision's, or FBNet-A."""
    if architecture not in ARCHITECTURES:
        raise UnknownNameError("architecture", architecture, ARCHITECTURES)
    own = architecture == architectures.FBNET_A
    return architectures.find(architecture if own else f"tv:{architecture}").build(classes)


@torch.inference_mode()
def logits_of(model: nn.Module, images: data.ImageSet, batch_size: int = 200) -> np.ndarray:
    """Return (n, classes) float32 logits of `images` at their own size."""
    model.eval()
    size, device = images.images.shape[1], next(model.parameters()).device
    batches = images.batches(batch_size, data.Preprocessing(size))
    run = [
        model(torch.from_numpy(x).to(device, memory_format=torch.channels_last)) for x, _ in batches
    ]
    return torch.cat(run).cpu().numpy()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return a model's trainable parameters in two groups: only matrices and filters decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def starting_point(config: TrainConfig) -> Path | None:
    """Return the shipped checkpoint that a run begins with, None for random weights."""
    if config.start is None:
        return None
    name = data.checkpoint_name(config.architecture, config.start)
    return paths.CHECKPOINTS / f"{name}.safetensors"


def begin_as_(model: nn.Module, checkpoint: Path) -> None:
    """Copy what fits of a checkpoint of the same architecture into `model`, in place.

    The last layer of another number of classes stays as it is.

    Raises
    ------
    ModelFileError
        There is no such file, or it cannot be read.
    """
    import safetensors
    from safetensors.torch import load_file

    try:
        known = load_file(checkpoint)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(
            f"Training begins with {checkpoint}, which cannot be read ({error}). Restore it, or "
            "pass a configuration with start: null (--config)."
        ) from None
    own = model.state_dict()
    fitting = {name: v for name, v in known.items() if own[name].shape == v.shape}
    model.load_state_dict(fitting, strict=False)


class Trainer:
    """The state of a run: model, average of its weights, optimizer, and the step reached.

    Parameters
    ----------
    config
        What to do.
    ranks
        The processes that share every batch; by default this one alone.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks | None = None) -> None:
        self.config, self.step, self.ranks = config, 0, ranks or Ranks()
        self.part = self.ranks.part(config.batch_size)
        torch.manual_seed(config.seed)
        model: Any = network(config.architecture, len(data.drawn(config.image_set).CLASSES))
        if (checkpoint := starting_point(config)) is not None:
            begin_as_(model, checkpoint)
        model = model.to(memory_format=torch.channels_last)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = config.momentum
        self.model = self.ranks.placed(model)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config.weight_decay),
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.ema = copy.deepcopy(self.model).eval()
        self.averaging = self.ranks.averaging(self.model)

    def train_step(self, batches: Batches) -> float:
        """Take one optimizer step; return the loss on this process's part of the batch."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step)
        self.model.train()
        loss = self.backward(batches)
        self.optimizer.step()
        self.step += 1
        if self.ranks.first:
            self._average()
        return loss

    def backward(self, batches: Batches) -> float:
        """Set the gradients of the present step's batch, all ranks' parts; return the loss."""
        ranks = self.ranks
        seed = self.config.seed * 1_000_003 + self.step
        torch.manual_seed(seed * ranks.size + ranks.rank)  # dropout
        inputs, labels = batches.at(self.step, self.config.size_at(self.step), self.part)
        logits = self.averaging(inputs.to(ranks.device))
        loss = F.cross_entropy(
            logits, labels.to(ranks.device), label_smoothing=self.config.label_smoothing
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss.item()

    def _average(self) -> None:
        decay = min(self.config.ema_decay, (self.step + 1) / (self.step + 20))
        floats = [v for v in self.model.state_dict().values() if v.is_floating_point()]
        averages = [v for v in self.ema.state_dict().values() if v.is_floating_point()]
        torch._foreach_lerp_(averages, floats, 1 - decay)

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs; of many processes only rank 0 does."""
        if not self.ranks.first:
            return
        state = {
            "config": json.dumps(stored(self.config)),
            "step": self.step,
            "processes": self.ranks.size,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with paths.atomic(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)  # into an open file: what the disk says is then told

    def resume(self, path: Path) -> None:
        """Continue from rank 0's `path`, if there is one; that of another configuration is refused.

        The number of processes may be another one. Then BatchNorm sees other parts of the batches
        from here on, and the weights are no longer those of a run that was never stopped.
        """
        state = self.ranks.read(path)
        if state is None:
            return
        # "recipe": as an earlier version called it
        if not is_stored(self.config, state.get("config", state.get("recipe"))):
            raise ModelFileError(
                f"{path} was written with another configuration. Remove it to start again, "
                "or train into another folder with --work."
            )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def state_file(config: TrainConfig, work: Path) -> Path:
    """Return where the resumable state of a run lies in its folder."""
    return work / f"{config.name}.resume.pt"


def fit(
    config: TrainConfig,
    work: Path,
    *,
    stop_at: int | None = None,
    save_every: int = SAVE_EVERY,
    ranks: Ranks | None = None,
) -> Iterator[dict[str, float]]:
    """Train, saving to `state_file`; yield a log line now and then.

    Parameters
    ----------
    config
        What to do.
    work
        Folder for the resumable state, made if needed.
    stop_at
        Stop (and save) at this step, as an interrupted run would.
    save_every
        Steps between two saves.
    ranks
        The processes that share every batch (`ranks.joined`); each must call this. By default
        this process alone.

    Yields
    ------
    dict
        step, side of the images, mean loss, images per second (of all processes together), and at
        each eighth of the run the top-1 of the averaged weights on 20 validation images of each
        class, in rank 0 only (for the log; nothing is chosen).

    Raises
    ------
    ModelFileError
        The state in `work` is of another configuration.
    TrainingError
        Another process of the run was lost.
    """
    trainer, path = Trainer(config, ranks), state_file(config, work)
    work.mkdir(parents=True, exist_ok=True)
    trainer.resume(path)
    train = data.load("train", config.images, config.source_size, config.image_set)
    augmentation = Augmentation(smallest_crop=config.smallest_crop)
    batches = Batches(train, config.batch_size, config.seed, augmentation)
    last = stop_at or config.steps
    losses, start = [], time.perf_counter()
    while trainer.step < last:
        with trainer.ranks.explaining_losses(trainer.step, RESUMES):
            losses.append(trainer.train_step(batches))
        step = trainer.step
        if step % save_every == 0 or step == last:
            trainer.save(path)
        if step % LOG_EVERY == 0 or step == last:
            loss = trainer.ranks.mean(float(np.mean(losses)))
            line = {"step": step, "size": config.size_at(step - 1), "loss": loss}
            line["images_per_s"] = len(losses) * config.batch_size / (time.perf_counter() - start)
            eighth = step % max(1, config.steps // 8) < LOG_EVERY or step == last
            if eighth and trainer.ranks.first:
                line["top1"] = _watched(trainer)
            yield line
            losses, start = [], time.perf_counter()


def _watched(trainer: Trainer) -> float:
    """Return the top-1 of the averaged weights on some validation images."""
    image_set = trainer.config.image_set
    n = WATCHED * len(data.drawn(image_set).CLASSES)
    images = data.load("val", n, EVALUATION_SIZE, image_set)
    return metrics.accuracy(logits_of(trainer.ema, images), images.labels).value
