"""int8, mixed and 4-bit MobileNetV3, ours and those of others, on the same images.

python benchmarks/quantization.py                    # the table, benchmarks/results/
python benchmarks/quantization.py --train NAME ARCH   # only one QAT checkpoint, into the cache
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

import torch

from labutils import data, paths, zoo
from labutils.quantize import qat
from labutils.quantize import recipe as recipes

SIZE = 128
CALIBRATION_IMAGES = 256
TRAINING_IMAGES = 8000


def checkpoint(architecture: str, recipe: recipes.Recipe) -> Path:
    """Return where the trained network of a recipe is cached: the name changes with either."""
    weights = paths.CHECKPOINTS / f"{architecture}.safetensors"
    key = hashlib.sha256((recipe.to_yaml() + paths.sha256(weights)).encode()).hexdigest()[:10]
    return paths.cache() / "quantization" / f"{architecture}_{recipe.name}_{key}.pt"


def trained(architecture: str, recipe: recipes.Recipe) -> tuple[torch.nn.Module, float]:
    """Return a network after QAT, and the seconds that its training took (once, when it ran)."""
    file = checkpoint(architecture, recipe)
    model = zoo.load(architecture, weights="things16").module
    network = qat.prepare(model, recipe, size=SIZE)
    if not file.exists():
        preprocessing = data.Preprocessing(SIZE)
        print(qat.calibrate_(network, data.calibration(CALIBRATION_IMAGES, SIZE), preprocessing))
        start = time.time()

        def on_step(step: int, last: int, _: torch.nn.Module) -> None:
            if step % 10 == 0:
                print(f"  {architecture} {recipe.name}: step {step}/{last}, "
                      f"{time.time() - start:.0f} s", flush=True)  # fmt: skip

        done = qat.fit_(network, teacher=model, images=TRAINING_IMAGES, on_step=on_step)
        print(done, flush=True)
        with paths.atomic(file) as temporary:
            torch.save({"state": network.state_dict(), "seconds": done.seconds}, temporary)
    saved = torch.load(file, weights_only=True)
    network.load_state_dict(saved["state"])
    return network.eval(), saved["seconds"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", nargs=2, metavar=("RECIPE", "ARCHITECTURE"))
    chosen = parser.parse_args(arguments)
    if chosen.train:
        trained(chosen.train[1], recipes.load(chosen.train[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
