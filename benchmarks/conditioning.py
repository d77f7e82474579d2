"""Why random weights are conditioned: what a small noise in every layer does to the logits.

    python benchmarks/conditioning.py            # writes benchmarks/results/conditioning.txt

Two of torchvision's networks with random weights (seed 0, 64 px, BatchNorm statistics measured),
once as they are initialized, and once conditioned as surgery_coverage.py does it. Every convolution
gets Gaussian noise of 1e-3 of its output's root mean square: as much as float16 has, in one place
or another. What it costs is 1 minus the mean cosine of the logits over 16 images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import results
import torch
from surgery_coverage import SIZE, built

from labutils import _torchvision, metrics, paths, tabular
from labutils.images import data
from labutils.models import zoo

NETWORKS = ("mobilenet_v2", "efficientnet_b0")
NOISE, IMAGES = 1e-3, 16


def as_initialized(name: str, preprocessing: data.Preprocessing) -> torch.nn.Module:
    """Return a network with the library's own random weights and measured statistics."""
    torch.manual_seed(0)
    network = _torchvision.load().models.get_model(name, weights=None).eval()
    zoo.calibrate_(network, preprocessing)
    return network


@torch.no_grad()
def cost(network: torch.nn.Module, images: torch.Tensor) -> float:
    """Return 1 minus the mean cosine of the logits with and without noise."""
    exact = network(images).numpy()
    generator = torch.Generator().manual_seed(0)

    def disturbed(module: torch.nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        scale = NOISE * output.square().mean().sqrt()
        return output + scale * torch.randn(output.shape, generator=generator)

    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    hooks = [module.register_forward_hook(disturbed) for module in convolutions]
    noisy = network(images).numpy()
    for hook in hooks:
        hook.remove()
    return 1 - float(np.mean([metrics.cosine(a, b) for a, b in zip(exact, noisy, strict=True)]))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=results.FOLDER, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    rows = []
    for name in NETWORKS:
        conditioned, preprocessing = built(f"tv:{name}")
        pixels = data.load("val", IMAGES, SIZE).images
        images = torch.from_numpy(preprocessing(pixels))
        plain = as_initialized(name, preprocessing)
        rows.append(
            (f"tv:{name}", f"{cost(plain, images):.1e}", f"{cost(conditioned, images):.1e}")
        )
    head = results.head(
        results.command("conditioning.py", arguments),
        f"split val (drawn), {IMAGES} images at {SIZE} px; random weights", "torch", "torchvision",
        developed=False,
    )  # fmt: skip
    title = f"Cosine lost to noise of {NOISE:g} in every convolution"
    text = tabular.text(title, ("network", "as initialized", "conditioned"), rows, [])
    paths.write_text(
        paths.folder(chosen.output) / "conditioning.txt", "\n".join([*head, "", text, ""])
    )
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
