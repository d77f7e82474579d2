"""What is shipped: averaged weights in half precision, with a model card that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .. import metrics, paths
from ..images import data, things
from .config import CONFIGS, TrainConfig, stored
from .loop import EVALUATION_SIZE, Trainer, logits_of

_NOT_LISTED = ("format", "architecture", "phases")


def ship(config: TrainConfig, work: Path, destination: Path, processes: int = 1) -> dict:
    """Write the averaged weights as fp16 safetensors, with their model card; return the card.

    The figures on the card are those of the rounded weights that are shipped, on all 1,600
    validation images. `processes` is how many trained it, for the command on the card.
    """
    from safetensors.torch import load_file, save_file

    trainer = Trainer(config)
    trainer.resume(work / f"{config.architecture}.resume.pt")
    target = destination / f"{config.architecture}.safetensors"
    rounded = {
        name: (v.half() if v.is_floating_point() else v).contiguous()
        for name, v in trainer.ema.state_dict().items()
    }
    with paths.atomic(target) as temporary:
        save_file(rounded, temporary)
    trainer.ema.load_state_dict(load_file(target))
    card = _card(config, trainer, target, processes)
    paths.write_text(target.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    paths.write_text(target.with_suffix(".md"), _card_text(card))
    return card


def _card(config: TrainConfig, trainer: Trainer, weights: Path, processes: int) -> dict:
    validation = data.load("val", data.VALIDATION_IMAGES, EVALUATION_SIZE)
    logits = logits_of(trainer.ema, validation)
    top1 = metrics.accuracy(logits, validation.labels)
    predicted, classes = logits.argmax(1), things.CLASSES
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (validation.labels, predicted), 1)
    wrong = confusion - np.diag(np.diag(confusion))
    pairs = [tuple(divmod(int(i), len(classes))) for i in np.argsort(-wrong, axis=None)[:8]]
    return {
        "architecture": config.architecture,
        "from": "torchvision's model definition, trained from random weights",
        "task": f"Things-16 (drawn, synthetic), {EVALUATION_SIZE} px",
        "classes": list(classes),
        "file": weights.name,
        "sha256": paths.sha256(weights),
        "dtype": "float16 (load into float32)",
        "command": _command(config, processes),
        "config": stored(config),
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


def _command(config: TrainConfig, processes: int) -> str:
    python = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
    command = f"{python} -m labutils.train {config.architecture}"
    own = CONFIGS.get(config.architecture) != config
    return f"{command} --config {config.architecture}.json" if own else command


def _card_text(card: dict) -> str:
    """Return the model card in Markdown; the JSON beside it says the same to a machine."""
    config, low_high = card["config"], card["top1_interval_95"]
    phases = ", ".join(f"{steps:,} steps at {size} px" for size, steps in config["phases"])
    settings = [f"{k} {v}" for k, v in config.items() if k not in _NOT_LISTED]
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
