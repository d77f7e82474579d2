"""The training loop: a run that can be stopped and resumed to the bit."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .. import _torchvision, data, metrics, paths, things
from ..errors import ModelFileError, UnknownNameError
from .batches import Batches
from .recipe import ARCHITECTURES, Recipe

EVALUATION_SIZE = 128
LOG_EVERY, SAVE_EVERY = 50, 200


def network(architecture: str, classes: int = len(things.CLASSES)) -> nn.Module:
    """Return an untrained torchvision MobileNetV3."""
    if architecture not in ARCHITECTURES:
        raise UnknownNameError("architecture", architecture, ARCHITECTURES)
    return getattr(_torchvision.load().models, architecture)(num_classes=classes)


@torch.inference_mode()
def logits_of(model: nn.Module, images: data.ImageSet, batch_size: int = 200) -> np.ndarray:
    """Return (n, classes) float32 logits of `images` at their own size."""
    model.eval()
    size = images.images.shape[1]
    batches = images.batches(batch_size, data.Preprocessing(size))
    run = [
        model(torch.from_numpy(x).contiguous(memory_format=torch.channels_last)) for x, _ in batches
    ]
    return torch.cat(run).numpy()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return a model's trainable parameters in two groups: only matrices and filters decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


class Trainer:
    """The state of a run: model, average of its weights, optimizer, and the step reached."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.step = recipe, 0
        torch.manual_seed(recipe.seed)
        self.model = network(recipe.architecture).to(memory_format=torch.channels_last)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = recipe.momentum
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, recipe.weight_decay),
            lr=recipe.learning_rate,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.ema = copy.deepcopy(self.model).eval()

    def train_step(self, batches: Batches) -> float:
        """Take one optimizer step on the images of the present step; return the loss."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(self.step)
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)  # dropout
        inputs, labels = batches.at(self.step, recipe.size_at(self.step))
        self.model.train()
        loss = F.cross_entropy(self.model(inputs), labels, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self._average()
        return loss.item()

    def _average(self) -> None:
        decay = min(self.recipe.ema_decay, (self.step + 1) / (self.step + 20))
        floats = [v for v in self.model.state_dict().values() if v.is_floating_point()]
        averages = [v for v in self.ema.state_dict().values() if v.is_floating_point()]
        torch._foreach_lerp_(averages, floats, 1 - decay)

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs."""
        state = {
            "recipe": json.dumps(asdict(self.recipe)),
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with paths.atomic(path) as temporary:
            torch.save(state, temporary)

    def resume(self, path: Path) -> None:
        """Continue from `path`; a checkpoint of another recipe is refused."""
        state = torch.load(path, weights_only=True)
        if state["recipe"] != json.dumps(asdict(self.recipe)):
            raise ModelFileError(
                f"{path} was written by another recipe. Remove it to start again, or train into "
                "another folder with --work."
            )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def fit(recipe: Recipe, work: Path, *, stop_at: int | None = None) -> Iterator[dict[str, float]]:
    """Train, saving to ``work/<architecture>.resume.pt``; yield a log line now and then.

    Parameters
    ----------
    recipe
        What to do.
    work
        Folder for the resumable state, made if needed.
    stop_at
        Stop (and save) at this step, as an interrupted run would.

    Yields
    ------
    dict
        step, side of the images, mean loss, images per second, and at each eighth of the run the
        top-1 of the averaged weights on 320 validation images (for the log; nothing is chosen).
    """
    trainer, path = Trainer(recipe), work / f"{recipe.architecture}.resume.pt"
    work.mkdir(parents=True, exist_ok=True)
    if path.exists():
        trainer.resume(path)
    train = data.load("train", recipe.images, recipe.source_size)
    batches = Batches(train, recipe.batch_size, recipe.seed, recipe.smallest_crop)
    last = stop_at or recipe.steps
    losses, start = [], time.perf_counter()
    while trainer.step < last:
        losses.append(trainer.train_step(batches))
        step = trainer.step
        if step % SAVE_EVERY == 0 or step == last:
            trainer.save(path)
        if step % LOG_EVERY == 0 or step == last:
            line = {"step": step, "size": recipe.size_at(step - 1), "loss": float(np.mean(losses))}
            line["images_per_s"] = len(losses) * recipe.batch_size / (time.perf_counter() - start)
            if step % (recipe.steps // 8) < LOG_EVERY or step == last:
                watched = data.load("val", 320, EVALUATION_SIZE)
                hits = metrics.accuracy(logits_of(trainer.ema, watched), watched.labels)
                line["top1"] = hits.value
            yield line
            losses, start = [], time.perf_counter()
