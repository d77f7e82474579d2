"""What is shipped: averaged weights in half precision, with a model card that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .. import metrics, paths
from ..images import data
from ..models import architectures
from .config import CONFIGS, TrainConfig, stored
from .loop import EVALUATION_SIZE, Trainer, logits_of, starting_point, state_file

_NOT_LISTED = ("format", "architecture", "phases", "image_set", "start")


def ship(config: TrainConfig, work: Path, destination: Path, processes: int = 1) -> dict:
    """Write the averaged weights as fp16 safetensors, with their model card; return the card.

    The figures on the card are those of the rounded weights that are shipped, on 100
    validation images of each class. `processes` is how many trained it, for the command on the
    card.
    """
    from safetensors.torch import load_file, save

    trainer = Trainer(config)
    trainer.resume(state_file(config, work))
    target = destination / f"{config.name}.safetensors"
    rounded = {
        name: (v.half() if v.is_floating_point() else v).contiguous()
        for name, v in trainer.ema.state_dict().items()
    }
    target.with_suffix(".json").unlink(missing_ok=True)  # of the weights that were there
    paths.write_bytes(target, save(rounded))
    trainer.ema.load_state_dict(load_file(target))
    card = _card(config, trainer, target, processes)
    paths.write_text(target.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    paths.write_text(target.with_suffix(".md"), _card_text(card))
    return card


def _card(config: TrainConfig, trainer: Trainer, weights: Path, processes: int) -> dict:
    drawn = data.drawn(config.image_set)
    n = data.validation_images(config.image_set)
    validation = data.load("val", n, EVALUATION_SIZE, config.image_set)
    logits = logits_of(trainer.ema, validation)
    top1 = metrics.accuracy(logits, validation.labels)
    predicted, classes = logits.argmax(1), drawn.CLASSES
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (validation.labels, predicted), 1)
    wrong = confusion - np.diag(np.diag(confusion))
    pairs = [tuple(divmod(int(i), len(classes))) for i in np.argsort(-wrong, axis=None)[:8]]
    return {
        "architecture": config.architecture,
        "from": _origin(config),
        "task": f"{drawn.TITLE} (drawn, synthetic), {EVALUATION_SIZE} px",
        "classes": list(classes),
        "file": weights.name,
        "sha256": paths.sha256(weights),
        "dtype": "float16 (load into float32)",
        "command": _command(config, processes),
        "config": stored(config),
        "steps": trainer.step,
        "dataset_digest": {split: drawn.digest(split) for split in drawn.SPLITS},
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


def _origin(config: TrainConfig) -> str:
    """Return what the network is and where its weights began, as a phrase."""
    start, own = starting_point(config), config.architecture == architectures.FBNET_A
    definition = "the published table of blocks" if own else "torchvision's model definition"
    if start is None:
        return f"{definition}, trained from random weights"
    known = f"{start.name} (SHA-256 {paths.sha256(start)})"
    return f"{definition}, trained from {known}, its last layer from random ones"


def _command(config: TrainConfig, processes: int) -> str:
    python = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
    command = f"{python} -m labutils.train {config.architecture}"
    if CONFIGS.get(config.name) != config:
        return f"{command} --config {config.name}.json"
    return command if config.image_set == data.THINGS16 else f"{command} --set {config.image_set}"


def _card_text(card: dict) -> str:
    """Return the model card in Markdown; the JSON beside it says the same to a machine."""
    config, low_high = card["config"], card["top1_interval_95"]
    phases = ", ".join(f"{steps:,} steps at {size} px" for size, steps in config["phases"])
    settings = [f"{k} {v}" for k, v in config.items() if k not in _NOT_LISTED]
    classes = [f"| {name} | {100 * v:.0f} % |" for name, v in card["accuracy_per_class"].items()]
    pairs = [f"| {p['true']} | {p['predicted']} | {p['images']} |" for p in card["confusion_pairs"]]
    origin, title = card["from"], data.drawn(config["image_set"]).TITLE
    lines = [
        f"# {card['architecture']}, trained on {title}",
        "",
        f"{origin[0].upper()}{origin[1:]}, on {card['task']}. The images are drawn,",
        f"not photographed: the network knows these {len(classes)} kinds of drawings and nothing",
        "else. Use it to learn and to test.",
        "",
        f"**Top-1 {100 * card['top1']:.2f} %** on {card['n']:,} validation images "
        f"(95 % interval {100 * low_high[0]:.1f} to {100 * low_high[1]:.1f} %), measured on the",
        f"weights as shipped. Chosen: {card['chosen']}.",
        "",
        f"- File: `{card['file']}`, {card['dtype']}, SHA-256 `{card['sha256']}`",
        f"- Made by: `{card['command']}`",
        f"- Schedule: {phases}",
        f"- Settings: {', '.join(settings)}",
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
