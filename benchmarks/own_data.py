"""What training all layers gains over a new last layer alone, on a folder of new classes.

    python benchmarks/own_data.py [--pictures 200] [--steps 400]

Draws a folder of 4,000 pictures in 20 classes that no network of the lab has learned (five things
of a toolbox with four markings: `labutils.images.fasteners`), which is divided by the SHA-256 of
the pixels. MobileNetV3-Small starts from its Things-16 weights and gets a new last layer. It is
trained twice for the same steps on the same batches: the last layer alone, at each of several
rates, of which the best on `val` counts; and everything, at one rate that was not chosen. Judged on
`test`. Trained weights are kept by the content of all that they depend on (see content_cache.py).
Writes benchmarks/results/own_data.txt; a smaller run needs `-o FOLDER`.
"""

from __future__ import annotations

import argparse
import copy
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
RATE = 5e-4  # of everything: what `train.fine_tune` takes by itself
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
    heads = {rate: fit(found, chosen.steps, rate, head_only=True) for rate in HEAD_RATES}
    on_val = {rate: hits(network, found, "val").mean() for rate, network in heads.items()}
    best = max(on_val, key=on_val.__getitem__)
    everything = fit(found, chosen.steps, RATE, head_only=False)
    text = table(found, {best: heads[best]}, everything, chosen.steps, on_val)
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


@torch.no_grad()
def hits(network: nn.Module, found: ImageFolder, part: str) -> np.ndarray:
    """Return which pictures of a part the network names rightly."""
    images = found.load(part, None, train.EVALUATION_SIZE)
    return metrics.correct(train.logits_of(network, images), images.labels)


def table(
    found: ImageFolder,
    head: dict[float, nn.Module],
    everything: nn.Module,
    steps: int,
    on_val: dict[float, float],
) -> str:
    """Return both rows, and whether the gain is as large as claimed."""
    ((rate, network),) = head.items()
    right = {
        f"the last layer alone, rate {rate:g}": hits(network, found, "test"),
        f"everything, rate {RATE:g}": hits(everything, found, "test"),
    }
    alone, all_layers = right.values()
    gain = metrics.paired_difference(all_layers, alone)
    rows = [
        (what, steps, metrics.Proportion(int(flags.sum()), len(flags)), words)
        for (what, flags), words in zip(right.items(), ("", str(gain)), strict=True)
    ]
    tried = ", ".join(f"{100 * share:.1f} % at {at:g}" for at, share in on_val.items())
    verdict = "holds" if gain.interval[0] >= GOAL else "DOES NOT HOLD"
    notes = [
        f"Claim: at least {GOAL:g} points gained, by the lower end of the interval: {verdict}.",
        f"The last layer's rate is the best on val: {tried}. The other was not chosen.",
        f"Pictures of {SIZE} px in training ({BATCH} a step), {train.EVALUATION_SIZE} px when "
        "judged. Intervals: 95 %; the difference is paired.",
    ]
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
