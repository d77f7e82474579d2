"""How many of 100 Marked Things readers name rightly, beside the network.

    python benchmarks/readers.py --sheets FOLDER            # pictures without labels; classes
    python benchmarks/readers.py --answers ANN.csv BEN.csv  # scores what readers filled in
    python benchmarks/readers.py                            # scores the recorded answers again

A reader sees the sheets and the list of classes, never a label, and fills in one class per picture
in a copy of `answers.csv` that has the reader's name. Those recorded are two multimodal language
models, each in a fresh conversation. The pictures are 100 of `val`, drawn by a fixed seed. Writes
benchmarks/results/readers.txt and readers.csv (answers and truth, picture by picture).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import results
from PIL import Image, ImageDraw

from labutils import metrics, paths, tabular
from labutils.errors import UsageError
from labutils.images import data, marked_things

ARCHITECTURE, IMAGE_SET, SPLIT, SIZE = "mobilenet_v3_large", "marked-things", "val", 128
PICTURES, SEED = 100, 14
COLUMNS, ROWS, ENLARGED, CAPTION = 5, 4, 2, 16  # of a sheet; the caption's height in pixels
KNOWN = ("picture", "index", "truth", "network")  # columns of readers.csv beside the readers'


def chosen() -> list[int]:
    """Return the numbers of the pictures in their split, in the order of the sheets."""
    within = data.validation_images(IMAGE_SET)
    found = np.random.default_rng(SEED).choice(within, PICTURES, replace=False)
    return [int(index) for index in found]


def sheet(pictures: Sequence[np.ndarray], first: int) -> Image.Image:
    """Return pictures side by side, enlarged, with their numbers from `first` and no labels."""
    side = SIZE * ENLARGED
    whole = Image.new("RGB", (COLUMNS * side, ROWS * (side + CAPTION)), "white")
    pen = ImageDraw.Draw(whole)
    for at, pixels in enumerate(pictures):
        x, y = at % COLUMNS * side, at // COLUMNS * (side + CAPTION)
        pen.text((x + 4, y + 2), str(first + at), fill="black")
        large = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        whole.paste(large, (x, y + CAPTION))
    return whole


def write_sheets(folder: Path) -> list[Path]:
    """Write the sheets, the classes and a form to fill in; return the files."""
    pictures = [marked_things.image(index, SPLIT, SIZE) for index in chosen()]
    step, files = COLUMNS * ROWS, []
    for start in range(0, PICTURES, step):
        files.append(folder / f"sheet_{start // step + 1}.png")
        sheet(pictures[start : start + step], start + 1).save(files[-1])
    form = "".join(f"{number},\n" for number in range(1, PICTURES + 1))
    for name, text in (
        ("classes.txt", "\n".join(marked_things.CLASSES) + "\n"),
        ("answers.csv", "picture,class\n" + form),
    ):
        paths.write_text(folder / name, text)
        files.append(folder / name)
    return files


def read_answers(path: Path) -> list[str]:
    """Return a reader's classes in the order of the pictures.

    Raises
    ------
    UsageError
        A picture without an answer, or an answer that is not a class.
    """
    with path.open(encoding="utf-8", newline="") as file:
        given = {row["picture"]: row["class"].strip() for row in csv.DictReader(file)}
    answers = [given.get(str(number), "") for number in range(1, PICTURES + 1)]
    for number, answer in enumerate(answers, start=1):
        if answer not in marked_things.CLASSES:
            raise UsageError(f"{path}, picture {number}: {answer!r} is not one of the classes.")
    return answers


def recorded(path: Path) -> dict[str, list[str]]:
    """Return the readers' answers in readers.csv, by the reader's name."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    return {name: [row[name] for row in rows] for name in rows[0] if name not in KNOWN}


def network_answers() -> list[str]:
    """Return what the shipped network says of the pictures."""
    from labutils import train
    from labutils.models import zoo

    pixels = np.stack([marked_things.image(index, SPLIT, SIZE) for index in chosen()])
    labels = np.array([marked_things.label(index) for index in chosen()])
    images = data.ImageSet(pixels, labels, marked_things.CLASSES, "the pictures of the sheets")
    logits = train.logits_of(zoo.load(ARCHITECTURE, IMAGE_SET).module, images)
    return [marked_things.CLASSES[label] for label in logits.argmax(1)]


def scores(answers: Sequence[str], truth: Sequence[str]) -> list[metrics.Proportion]:
    """Return how often the class, its object and its marking are right."""
    pairs = [(a.split(" ", 1), t.split(" ", 1)) for a, t in zip(answers, truth, strict=True)]
    right = [(a == t, a[1] == t[1], a[0] == t[0]) for a, t in pairs]
    return [metrics.Proportion(sum(each), len(pairs)) for each in zip(*right, strict=True)]


def written(
    readers: dict[str, list[str]], network: list[str], whole: metrics.Proportion, made_by: str
) -> dict[str, str]:
    """Return the content of readers.txt and readers.csv.

    Parameters
    ----------
    readers
        The answers by the reader's name, in the order of the pictures.
    network
        The network's, likewise.
    whole
        How often the network is right on all validation images.
    made_by
        The command.
    """
    indices = chosen()
    truth = [marked_things.CLASSES[marked_things.label(index)] for index in indices]
    rows = [
        (name, *map(str, scores(answers, truth)))
        for name, answers in ({"network": network} | readers).items()
    ]
    rows.append(("network, all of val", str(whole), "", ""))
    images = f"split {SPLIT} (drawn), {PICTURES} images at {SIZE} px"
    head = results.head(made_by, images, "torch", "numpy", "pillow", developed=False)
    title = f"Marked Things, named by readers and by {ARCHITECTURE}"
    notes = ["Readers saw the sheets and the classes, no label. Brackets: 95 % (Wilson)."]
    text = tabular.text(title, ("who", "class", "object", "marking"), rows, notes)
    lines = zip(range(1, PICTURES + 1), indices, truth, network, *readers.values(), strict=True)
    table = _csv([(*KNOWN, *readers), *lines])
    return {
        "readers.txt": "\n".join([*head, "", text]) + "\n",
        "readers.csv": results.commented(head) + table,
    }


def on_the_card() -> metrics.Proportion:
    """Return the network's top-1 on all validation images, as its model card has it."""
    name = data.checkpoint_name(ARCHITECTURE, IMAGE_SET)
    card = json.loads((paths.CHECKPOINTS / f"{name}.json").read_text("utf-8"))
    return metrics.Proportion(round(card["top1"] * card["n"]), card["n"])


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sheets", type=Path, metavar="FOLDER", help="write the sheets and stop")
    parser.add_argument("--answers", type=Path, nargs="+", metavar="CSV", help="filled-in forms")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.sheets:
        print("\n".join(map(str, write_sheets(paths.folder(options.sheets)))))
        return 0
    try:
        if options.answers:
            readers = {path.stem: read_answers(path) for path in options.answers}
            if len(readers) < len(options.answers):
                raise UsageError("Each file is called after its reader: two have the same name.")
        else:
            readers = recorded(results.FOLDER / "readers.csv")
    except (UsageError, OSError) as error:
        parser.error(str(error))
    made_by = results.command("readers.py", [])
    made = written(readers, network_answers(), on_the_card(), made_by)
    for name, text in made.items():
        paths.write_text(paths.folder(options.output or results.FOLDER) / name, text)
    print(made["readers.txt"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
