"""The sample's demo: a picture, a file of labels, the five best classes, one drawn into it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import located_yaml, metrics, paths, typesetting, untrusted
from ..errors import UsageError, worded

_MOST_CLASSES = 100_000


@dataclass(frozen=True, repr=False)
class Answer(typesetting.Shown):
    """What a network says of one picture.

    Attributes
    ----------
    picture
        The file's name.
    ranked
        (class, label, probability) of the best, the first one first.
    runtime
        What ran the network.
    """

    picture: str
    ranked: tuple[tuple[int, str, float], ...]
    runtime: str

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for JSON."""
        return {
            "picture": self.picture, "runtime": self.runtime,
            "top5": [{"class": n, "label": text, "probability": p} for n, text, p in self.ranked],
        }  # fmt: skip

    def __str__(self) -> str:
        rows = [f"{self.picture}, run by: {self.runtime}"]
        rows += [f"  {p:6.1%}  {number:>4}  {text}" for number, text, p in self.ranked]
        return "\n".join(rows)


def labels(file: str | Path) -> tuple[str, ...]:
    """Return the labels in a file, by class number.

    It is JSON or the text of a Python dict, ``{"0": "tench", ...}`` or a list, or has one label a
    line. A list of synonyms (``tench, Tinca tinca``) is one label.

    Raises
    ------
    UsageError
        It is not such a file, or a number is missing.
    """
    file = Path(file)
    try:
        text = untrusted.text(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read the labels {file}: {worded(error)}.") from None
    if not text.lstrip().startswith(("{", "[")):
        found = tuple(line.strip() for line in text.splitlines() if line.strip())
        return _checked(found, file)
    content, _ = located_yaml.read(text, file.name, "a file of labels", UsageError)
    if isinstance(content, dict):
        return _checked(_by_number(content, file), file)
    return _checked(tuple(_text(value) for value in content), file)


def _by_number(content: dict[Any, Any], file: Path) -> tuple[str, ...]:
    try:
        numbered = {int(key): _text(value) for key, value in content.items()}
    except (ValueError, TypeError):
        raise UsageError(f"{file}: its keys are class numbers, as in {{0: tench}}.") from None
    missing = next((n for n in range(len(numbered)) if n not in numbered), None)
    if missing is not None:
        raise UsageError(f"{file}: there is no label for class {missing}.")
    return tuple(numbered[n] for n in range(len(numbered)))


def _text(value: Any) -> str:
    """Return a label; of a list, as ``["n01440764", "tench"]``, its last word."""
    return str(value[-1] if isinstance(value, list) and value else value)


def _checked(found: tuple[str, ...], file: Path) -> tuple[str, ...]:
    if not 0 < len(found) <= _MOST_CLASSES:
        raise UsageError(f"{file} has {len(found):,} labels; 1 to {_MOST_CLASSES:,} are expected.")
    return found


def answer(
    scores: np.ndarray, named: tuple[str, ...], picture: str, runtime: str, best: int = 5
) -> Answer:
    """Return the best classes of one picture.

    Parameters
    ----------
    scores
        (classes,) logits.
    named
        The labels, by class number.
    picture, runtime
        Their names.
    best
        How many.

    Raises
    ------
    UsageError
        There are more scores than labels, or fewer.
    """
    if scores.ndim != 1 or len(scores) != len(named):
        raise UsageError(
            f"The network gives {scores.size} scores, and the file has {len(named)} labels: pass "
            "the labels of the classes that it was trained on."
        )
    likely = metrics.softmax(scores[None])[0]
    order = metrics.topk(scores[None], min(best, len(named)))[0]
    return Answer(picture, tuple((int(n), named[n], float(likely[n])) for n in order), runtime)


def draw(pixels: np.ndarray, found: Answer, destination: str | Path) -> Path:
    """Write a picture with its first label in a strip at the top, and return the file.

    Parameters
    ----------
    pixels
        (height, width, 3) uint8 RGB.
    found
        What stands in the strip.
    destination
        A ``.png`` or ``.jpg``.
    """
    from PIL import Image, ImageDraw, ImageFont

    destination = Path(destination)
    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    kind = kinds.get(destination.suffix.lower())
    if kind is None:
        raise UsageError(f"{destination}: the picture is a .png or .jpg file.")
    paths.refuse_unwritable(destination)
    picture = Image.fromarray(pixels)
    _, text, likely = found.ranked[0]
    size = max(10, picture.height // 16)
    font = ImageFont.load_default(size)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, picture.width, size + size // 2), fill=(0, 0, 0))
    pen.text((size // 3, size // 5), f"{text} {likely:.1%}", fill=(255, 255, 255), font=font)
    held = io.BytesIO()
    picture.save(held, kind)
    with paths.atomic(destination) as temporary:
        temporary.write_bytes(held.getvalue())
    return destination
