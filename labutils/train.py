"""Train MobileNetV3 on Things-16: ``python -m labutils.train mobilenet_v3_large``.

Two CPU cores are enough. The run is a pure function of its recipe: batches, crops and flips are
derived from (seed, step), so a run that was stopped resumes where it was. Validation images are
looked at for the log only; what is shipped is the average of the weights at the last step.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import _torchvision, data, metrics, paths, things
from .errors import ModelFileError, UnknownNameError

ARCHITECTURES = ("mobilenet_v3_large", "mobilenet_v3_small")
EVALUATION_SIZE = 128
LOG_EVERY, SAVE_EVERY = 50, 200


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run.

    Attributes
    ----------
    phases
        (side in pixels, steps): progressive resizing, small and cheap first.
    momentum
        Of the BatchNorm statistics; torchvision's 0.01 is too slow for a run this short.
    """

    architecture: str = "mobilenet_v3_large"
    seed: int = 0
    images: int = 40_000
    source_size: int = 112
    batch_size: int = 128
    phases: tuple[tuple[int, int], ...] = ((64, 3500), (96, 1100), (128, 330))
    learning_rate: float = 3e-3
    warmup_steps: int = 150
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    ema_decay: float = 0.998
    momentum: float = 0.1
    smallest_crop: float = 0.75

    @property
    def steps(self) -> int:
        """Number of optimizer steps in all phases."""
        return sum(steps for _, steps in self.phases)

    def size_at(self, step: int) -> int:
        """Return the side of the training images at `step`."""
        for size, steps in self.phases:
            if step < steps:
                return size
            step -= steps
        return self.phases[-1][0]

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate: warm-up, then a cosine over the *work* done, not the steps.

        A step at 128 pixels costs four times one at 64, and the rate falls accordingly.
        """
        work = [size * size * steps for size, steps in self.phases]
        done, left = 0.0, step
        for size, steps in self.phases:
            done += size * size * min(left, steps)
            left = max(0, left - steps)
        cosine = 0.5 * (1 + math.cos(math.pi * done / sum(work)))
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warmup * (0.995 * cosine + 0.005)


RECIPES = {
    "mobilenet_v3_large": Recipe(),
    "mobilenet_v3_small": Recipe(
        architecture="mobilenet_v3_small", phases=((64, 2800), (96, 900), (128, 280))
    ),
}


def network(architecture: str, classes: int = len(things.CLASSES)) -> nn.Module:
    """Return an untrained torchvision MobileNetV3."""
    if architecture not in ARCHITECTURES:
        raise UnknownNameError("architecture", architecture, ARCHITECTURES)
    return getattr(_torchvision.load().models, architecture)(num_classes=classes)


def _normalized(pixels: torch.Tensor) -> torch.Tensor:
    """Apply the ImageNet mean and std to (n, 3, h, w) floats in 0..255."""
    mean = torch.tensor(data.IMAGENET_MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(data.IMAGENET_STD).view(1, 3, 1, 1) * 255
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def _indices(recipe: Recipe, step: int) -> np.ndarray:
    """Return the images of a step: every epoch is another permutation, its tail left out."""
    per_epoch = recipe.images // recipe.batch_size
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng([recipe.seed, 1, epoch]).permutation(recipe.images)
    start = position * recipe.batch_size
    return np.sort(order[start : start + recipe.batch_size])


def _augmented(pixels: np.ndarray, size: int, recipe: Recipe, step: int) -> torch.Tensor:
    """Crop, resize, flip and tint a batch; (n, h, w, 3) uint8 to (n, 3, size, size) float."""
    r = np.random.default_rng([recipe.seed, 2, step])
    full = pixels.shape[1]
    side = int(full * r.uniform(recipe.smallest_crop, 1.0))
    x, y = r.integers(0, full - side + 1, 2)
    batch = torch.from_numpy(np.ascontiguousarray(pixels[:, y : y + side, x : x + side]))
    batch = batch.permute(0, 3, 1, 2).float()
    if side != size:
        batch = F.interpolate(batch, size=(size, size), mode="bilinear", antialias=True)
    if r.random() < 0.5:
        batch = batch.flip(3)
    n = len(batch)
    gain = torch.from_numpy(r.uniform(0.8, 1.2, (n, 3, 1, 1)).astype(np.float32))
    offset = torch.from_numpy(r.uniform(-20, 20, (n, 1, 1, 1)).astype(np.float32))
    return _normalized(batch * gain + offset)


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


class Trainer:
    """The state of a run: model, average of its weights, optimizer, and the step reached."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.step = recipe, 0
        torch.manual_seed(recipe.seed)
        self.model = network(recipe.architecture).to(memory_format=torch.channels_last)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = recipe.momentum
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True
        )
        self.ema = copy.deepcopy(self.model).eval()

    def train_step(self, pixels: np.ndarray, labels: torch.Tensor) -> float:
        """Take one optimizer step on the images of the present step; return the loss."""
        recipe, chosen = self.recipe, _indices(self.recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(self.step)
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)  # dropout
        batch = _augmented(pixels[chosen], recipe.size_at(self.step), recipe, self.step)
        self.model.train()
        loss = F.cross_entropy(
            self.model(batch), labels[chosen], label_smoothing=recipe.label_smoothing
        )
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
    labels, last = torch.from_numpy(train.labels), stop_at or recipe.steps
    losses, start = [], time.perf_counter()
    while trainer.step < last:
        losses.append(trainer.train_step(train.images, labels))
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


def ship(recipe: Recipe, work: Path, destination: Path) -> dict:
    """Write the averaged weights as fp16 safetensors, with their model card; return the card.

    The figures on the card are those of the rounded weights that are shipped, on all 1,600
    validation images.
    """
    from safetensors.torch import load_file, save_file

    trainer = Trainer(recipe)
    trainer.resume(work / f"{recipe.architecture}.resume.pt")
    target = destination / f"{recipe.architecture}.safetensors"
    rounded = {
        name: (v.half() if v.is_floating_point() else v).contiguous()
        for name, v in trainer.ema.state_dict().items()
    }
    with paths.atomic(target) as temporary:
        save_file(rounded, temporary)
    trainer.ema.load_state_dict(load_file(target))
    card = _card(recipe, trainer, target)
    paths.write_text(target.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    paths.write_text(target.with_suffix(".md"), _card_text(card))
    return card


def _card(recipe: Recipe, trainer: Trainer, weights: Path) -> dict:
    validation = data.load("val", data.VALIDATION_IMAGES, EVALUATION_SIZE)
    logits = logits_of(trainer.ema, validation)
    top1 = metrics.accuracy(logits, validation.labels)
    predicted, classes = logits.argmax(1), things.CLASSES
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (validation.labels, predicted), 1)
    wrong = confusion - np.diag(np.diag(confusion))
    pairs = [tuple(divmod(int(i), len(classes))) for i in np.argsort(-wrong, axis=None)[:8]]
    return {
        "architecture": recipe.architecture,
        "from": "torchvision's model definition, trained from random weights",
        "task": f"Things-16 (drawn, synthetic), {EVALUATION_SIZE} px",
        "classes": list(classes),
        "file": weights.name,
        "sha256": paths.sha256(weights),
        "dtype": "float16 (load into float32)",
        "command": f"python -m labutils.train {recipe.architecture}",
        "recipe": asdict(recipe),
        "steps": trainer.step,
        "dataset_digest": {split: things.digest(split) for split in things.SPLITS},
        "chosen": "the averaged weights at the last step; validation images chose nothing",
        "top1": top1.value,
        "top1_interval_95": list(top1.interval),
        "n": top1.n,
        "accuracy_per_class": {
            name: confusion[i, i] / confusion[i].sum() for i, name in enumerate(classes)
        },
        "confusion_pairs": [
            {"true": classes[a], "predicted": classes[b], "images": int(wrong[a, b])}
            for a, b in pairs
            if wrong[a, b]
        ],
        "versions": paths.versions("torch", "torchvision", "numpy", "pillow"),
    }


def _card_text(card: dict) -> str:
    """Return the model card in Markdown; the JSON beside it says the same to a machine."""
    recipe, low_high = card["recipe"], card["top1_interval_95"]
    phases = ", ".join(f"{steps:,} steps at {size} px" for size, steps in recipe["phases"])
    settings = [f"{k} {v}" for k, v in recipe.items() if k not in ("architecture", "phases")]
    classes = [f"| {name} | {100 * v:.0f} % |" for name, v in card["accuracy_per_class"].items()]
    pairs = [f"| {p['true']} | {p['predicted']} | {p['images']} |" for p in card["confusion_pairs"]]
    lines = [
        f"# {card['architecture']}, trained on Things-16",
        "",
        f"{card['from'].capitalize()}, on {card['task']}. The images are drawn, not photographed:",
        "the network knows these sixteen drawings and nothing else. Use it to learn and to test.",
        "",
        f"**Top-1 {100 * card['top1']:.2f} %** on {card['n']:,} validation images "
        f"(95 % interval {100 * low_high[0]:.1f} to {100 * low_high[1]:.1f} %), measured on the",
        f"weights as shipped. Chosen: {card['chosen']}.",
        "",
        f"- File: `{card['file']}`, {card['dtype']}, SHA-256 `{card['sha256']}`",
        f"- Made by: `{card['command']}`",
        f"- Schedule: {phases}",
        f"- Recipe: {', '.join(settings)}",
        f"- Versions: {', '.join(f'{k} {v}' for k, v in card['versions'].items())}",
        *(f"- Pixels, {k}: `{v}`" for k, v in card["dataset_digest"].items()),
        "",
        "| class | accuracy |",
        "|---|---|",
        *classes,
        "",
        "Most frequent confusions:",
        "",
        "| is | taken for | images |",
        "|---|---|---|",
        *pairs,
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m labutils.train", description=__doc__)
    parser.add_argument("architecture", choices=ARCHITECTURES)
    parser.add_argument("--work", type=Path, help="folder for the resumable state")
    parser.add_argument("--out", type=Path, default=paths.CHECKPOINTS, help="folder for the result")
    parser.add_argument("--stop-at", type=int, help="stop after this step (resume later)")
    chosen = parser.parse_args(arguments)
    recipe = RECIPES[chosen.architecture]
    work = chosen.work or paths.cache() / "training"
    for line in fit(recipe, work, stop_at=chosen.stop_at):
        print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True)
    if chosen.stop_at is None:
        card = ship(recipe, work, chosen.out)
        print(f"{card['file']}: top-1 {100 * card['top1']:.2f} % on {card['n']} validation images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
