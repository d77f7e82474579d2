"""What more training would bring on Marked Things: top-1 against the images seen.

    python benchmarks/learning_curve.py [mobilenet_v3_large]

Trains the network's schedule shortened to 1/8, 1/4 and 1/2, each whole (warm-up, the
falling rate, the last steps at 128 px), and puts the shipped checkpoint, which has the whole
schedule, beside them. On two idle cores this takes as long as 7/8 of that training. The states lie
under the cache (training/curve): a run that was stopped resumes. Writes
benchmarks/results/learning_curve.txt and .csv.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import results

from labutils import metrics, paths, tabular, train
from labutils.images import data
from labutils.models import zoo
from labutils.train import loop

IMAGE_SET, SPLIT = "marked-things", "val"
SHARES = (0.125, 0.25, 0.5)  # of the schedule


def shortened(config: train.TrainConfig, share: float) -> train.TrainConfig:
    """Return a configuration with a share of the steps of every phase."""
    phases = tuple((size, max(1, round(share * steps))) for size, steps in config.phases)
    return replace(config, phases=phases)


def trained(config: train.TrainConfig, share: float, images: data.ImageSet) -> np.ndarray:
    """Train a share of the schedule, or resume it; return which images are classified rightly."""
    short = shortened(config, share)
    work = paths.cache() / "training" / "curve" / f"{share:g}"
    for line in train.fit(short, work):
        print(json.dumps({"share": share, **line}), flush=True)
    trainer = train.Trainer(short)
    trainer.resume(loop.state_file(short, work))
    return metrics.correct(train.logits_of(trainer.ema, images), images.labels)


def rows(config: train.TrainConfig, images: data.ImageSet) -> list[tuple[str, ...]]:
    """Return a row for every length of training: images seen, steps, top-1, gain."""
    # the longest first: it holds the last doubling, which is what the curve is asked for
    found = [trained(config, share, images) for share in reversed(SHARES)][::-1]
    whole = zoo.load(config.architecture, config.image_set).module
    found.append(metrics.correct(train.logits_of(whole, images), images.labels))
    gains = [""] + [str(metrics.paired_difference(b, a)) for a, b in itertools.pairwise(found)]
    lines = []
    for share, right, gain in zip((*SHARES, 1.0), found, gains, strict=True):
        steps = shortened(config, share).steps
        top1 = metrics.Proportion(int(right.sum()), len(right))
        lines.append((f"{steps * config.batch_size:,}", f"{steps:,}", str(top1), gain))
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "architecture", nargs="?", choices=train.ARCHITECTURES, default="mobilenet_v3_large"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    place = results.place(chosen.output, chosen.architecture == "mobilenet_v3_large")
    if place is None:
        parser.error("pass -o FOLDER: another network does not replace the recorded results")
    config = train.CONFIGS[data.checkpoint_name(chosen.architecture, IMAGE_SET)]
    n = data.validation_images(IMAGE_SET)
    images = data.load(SPLIT, n, train.EVALUATION_SIZE, IMAGE_SET)
    table, columns = rows(config, images), ("images seen", "steps", "top-1", "gain by doubling")
    said = f"split {SPLIT} (drawn), {n} images at {train.EVALUATION_SIZE} px"
    made_by = results.command("learning_curve.py", arguments)
    head = results.head(made_by, said, "torch", "torchvision", developed=False)
    title = f"{chosen.architecture} on Marked Things: what a longer training brings"
    notes = [f"Each row is a separate training, on {config.images:,} pictures of train."]
    text = tabular.text(title, columns, table, notes)
    paths.write_text(place / "learning_curve.txt", "\n".join([*head, "", text]) + "\n")
    lines = [",".join(f'"{cell}"' for cell in row) + "\n" for row in (columns, *table)]
    paths.write_text(place / "learning_curve.csv", results.commented(head) + "".join(lines))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
