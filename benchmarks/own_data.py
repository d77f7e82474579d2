"""What training all layers gains over a new last layer alone, on a folder of new classes.

    python benchmarks/own_data.py [--pictures 200] [--steps 400]

Draws a folder of 4,000 pictures in 20 classes that no network of the lab has learned (five things
of a toolbox with four markings: `labutils.images.fasteners`), which is divided by the SHA-256 of
the pixels. MobileNetV3-Small starts from its Things-16 weights and gets a new last layer. It is
trained for the same steps on the same batches: the last layer alone, and everything, each at
several rates, of which the best on `val` counts. Judged on `test`. Trained weights are kept by the
content of all that they depend on (see content_cache.py).
Writes benchmarks/results/own_data.txt; a smaller run needs `-o FOLDER`.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path

import content_cache
import numpy as np
import results
import torch
from torch import nn

from labutils import metrics, paths, tabular, train
from labutils.images import fasteners, folder, scene, strokes
from labutils.images.folder import ImageFolder
from labutils.models import zoo

PROGRAM = "own_data"
ARCHITECTURE = "mobilenet_v3_small"
MARKED = ("striped", "checked", "dotted", "zigzag")
PICTURES, STEPS, BATCH = 200, 400, 32
SIZE = 96  # pixels, of training
HEAD_RATES = (1e-3, 3e-3, 1e-2)
RATES = (5e-4, 2e-3)  # of everything
GOAL = 20.0  # points


def main(arguments: list[str] | None = None) -> None:
    """Draw the folder, train, judge and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=PICTURES, help="of each class")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--fresh", action="store_true", help="forget what is kept, train again")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    whole = (chosen.pictures, chosen.steps) == (PICTURES, STEPS)
    place = results.place(chosen.output, whole)
    if place is None:
        parser.error("pass -o FOLDER: a smaller run does not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    found = draw(chosen.pictures)
    print(found, flush=True)
    arms = [
        best_of(found, chosen.steps, HEAD_RATES, head_only=True),
        best_of(found, chosen.steps, RATES, head_only=False),
    ]
    text = table(found, arms, chosen.steps)
    write(text, found, place, arguments)
    print(text)


def draw(pictures: int) -> ImageFolder:
    """Return the folder; what an earlier run has drawn is drawn again, to the same pixels."""
    root = content_cache.folder(PROGRAM) / f"fasteners-{pictures}"
    names = fasteners.class_names(fasteners.KINDS, MARKED)
    if sum(1 for _ in root.rglob("*.png")) != pictures * len(names):
        fasteners.write_folder(root, pictures, names)
    return folder.read(root)


def fit(found: ImageFolder, steps: int, rate: float, *, head_only: bool) -> nn.Module:
    """Return the network after training, or the one that is kept."""
    from safetensors.torch import load_file, save_file

    network = copy.deepcopy(zoo.load(ARCHITECTURE, "things16").module)
    torch.manual_seed(0)
    last = network.classifier[3]
    network.classifier[3] = nn.Linear(last.in_features, len(found.classes))
    key = content_cache.key(
        checkpoint=content_cache.checkpoint(ARCHITECTURE), pictures=found.digest("train"),
        settings=[steps, rate, head_only, SIZE, BATCH],
        code=content_cache.code(train, Path(__file__)),
        drawing=content_cache.code(fasteners, scene, strokes),
        versions=paths.versions("torch", "torchvision"),
    )  # fmt: skip
    kept = content_cache.folder(PROGRAM) / f"{ARCHITECTURE}_{key}.safetensors"
    if kept.is_file():
        network.load_state_dict(load_file(kept))
        return network.eval()
    network.requires_grad_(not head_only)
    network.classifier[3].requires_grad_(True)
    done = train.fine_tune(
        network, steps=steps, size=SIZE, batch_size=BATCH, learning_rate=rate, image_set=found,
        freeze_batch_norm_at=0.0 if head_only else None,
    )  # fmt: skip
    print("the last layer" if head_only else "everything", f"at {rate:g}:", done, flush=True)
    with paths.atomic(kept) as temporary:
        save_file({name: v.contiguous() for name, v in network.state_dict().items()}, temporary)
    return network.eval()


@dataclass(frozen=True)
class Arm:
    """The better of some trainings: its rate, its network, and what each rate reached on val."""

    what: str
    rate: float
    network: nn.Module
    on_val: dict[float, float]


def best_of(found: ImageFolder, steps: int, rates: tuple[float, ...], *, head_only: bool) -> Arm:
    """Train at every rate, and return the network that is best on val."""
    networks = {rate: fit(found, steps, rate, head_only=head_only) for rate in rates}
    on_val = {rate: hits(network, found, "val").mean() for rate, network in networks.items()}
    best = max(on_val, key=on_val.__getitem__)
    what = "the last layer alone" if head_only else "everything"
    return Arm(what, best, networks[best], on_val)


@torch.no_grad()
def hits(network: nn.Module, found: ImageFolder, part: str) -> np.ndarray:
    """Return which pictures of a part the network names rightly."""
    images = found.load(part, None, train.EVALUATION_SIZE)
    return metrics.correct(train.logits_of(network, images), images.labels)


def table(found: ImageFolder, arms: list[Arm], steps: int) -> str:
    """Return both rows, and whether the gain is as large as claimed."""
    right = [hits(arm.network, found, "test") for arm in arms]
    gain = metrics.paired_difference(right[1], right[0])
    rows = [
        (f"{arm.what}, rate {arm.rate:g}", steps, metrics.Proportion(int(r.sum()), len(r)), words)
        for arm, r, words in zip(arms, right, ("", str(gain)), strict=True)
    ]
    verdict = "holds" if gain.interval[0] >= GOAL else "DOES NOT HOLD"
    notes = [
        f"Claim: at least {GOAL:g} points gained, by the lower end of the interval: {verdict}."
    ]
    for arm in arms:
        tried = ", ".join(f"{100 * share:.1f} % at {rate:g}" for rate, share in arm.on_val.items())
        notes.append(f"Rate of {arm.what}: the best on val ({tried}).")
    notes.append(
        f"Pictures of {SIZE} px in training ({BATCH} a step), {train.EVALUATION_SIZE} px when "
        "judged. Intervals: 95 %; the difference is paired."
    )
    title = f"{ARCHITECTURE} (Things-16) on a folder of {len(found.classes)} other classes"
    columns = ("what is trained", "steps", "top-1 on test", "points to the first")
    return tabular.text(title, columns, [tuple(map(str, row)) for row in rows], notes)


def write(text: str, found: ImageFolder, place: Path, arguments: list[str] | None) -> None:
    """Write the table below its head."""
    n = {part: len(found.part(part)) for part in folder.PARTS}
    images = (
        f"test of a drawn folder, {n['test']} images; {n['train']} of train, {n['val']} of val "
        f"(SHA-256 of test {found.digest('test')[:12]}...)"
    )
    head = results.head(
        results.command("own_data.py", arguments), images, "torch", "torchvision", "pillow",
        developed=False,
    )  # fmt: skip
    paths.write_text(place / "own_data.txt", "\n".join([*head, "", text]) + "\n")


if __name__ == "__main__":
    main()
