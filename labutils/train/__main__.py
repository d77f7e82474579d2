"""Train MobileNetV3 on Things-16; a run that was stopped resumes where it was."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .. import paths
from .loop import fit
from .model_card import ship
from .recipe import ARCHITECTURES, RECIPES


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
