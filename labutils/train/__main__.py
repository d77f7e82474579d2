"""Train MobileNetV3 on drawn pictures; a run that was stopped resumes where it was.

Several processes share every batch when torchrun starts them:
torchrun --nproc-per-node 2 -m labutils.train mobilenet_v3_large
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from .. import paths, streams
from ..errors import LabError
from ..images import data
from .config import ARCHITECTURES, TrainConfig, read_config, shipped_config
from .loop import SAVE_EVERY, fit
from .model_card import ship
from .ranks import joined, local_rank


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m labutils.train", description=__doc__)
    parser.add_argument("architecture", choices=ARCHITECTURES)
    parser.add_argument(
        "--set", dest="image_set", choices=list(data.DRAWN), help="what is learned (things16)"
    )
    parser.add_argument(
        "--config", type=Path, help="YAML or JSON with other settings, or a model card"
    )
    parser.add_argument("--recipe", dest="earlier", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help="folder for the resumable state")
    out = paths.CHECKPOINTS if paths.CHECKOUT else paths.generated_place()
    parser.add_argument("--out", type=Path, default=out, help=f"folder for the result ({out})")
    parser.add_argument("--stop-at", type=int, help="stop after this step (resume later)")
    parser.add_argument("--save-every", type=int, default=SAVE_EVERY, help="steps between saves")
    chosen = parser.parse_args(arguments)
    if chosen.earlier:
        parser.error(f"--recipe is called --config now: --config {chosen.earlier}")
    try:
        with streams.ending_quietly():
            _train(chosen)
    except LabError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _train(chosen: argparse.Namespace) -> None:
    config = _config(chosen)
    work = chosen.work or paths.cache() / "training"
    if local_rank() == 0:  # the others of this machine wait, and find the images rendered
        data.load("train", config.images, config.source_size, config.image_set)
    with joined() as ranks:
        options = {"stop_at": chosen.stop_at, "save_every": chosen.save_every, "ranks": ranks}
        for line in fit(config, work, **options):
            if ranks.first:
                print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True)
    if chosen.stop_at is None and ranks.first:
        card = ship(config, work, chosen.out, ranks.size)
        print(f"{card['file']}: top-1 {100 * card['top1']:.2f} % on {card['n']} validation images")


def _config(chosen: argparse.Namespace) -> TrainConfig:
    """Return the configuration of a file, or the lab's own for this network and set."""
    if not chosen.config:
        return shipped_config(chosen.architecture, chosen.image_set or data.THINGS16)
    own = read_config(chosen.config)
    image_set = chosen.image_set or own.image_set
    return dataclasses.replace(own, architecture=chosen.architecture, image_set=image_set)


if __name__ == "__main__":
    sys.exit(main())
