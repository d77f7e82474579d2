"""Figures of images: a sheet of them with labels and predictions, and the parity of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from ... import metrics, typesetting
from ...errors import UsageError
from ...images.data import NO_LABEL, ImageSet
from ...tabular import clipped
from ..graphs.picture import BLUE, GREY, INK, ORANGE, VERMILION, WIDTH, Picture, blank, styled

_ACROSS = 6
_LETTERS = 17  # in a line above one picture
_MOST = 48
_FLOOR = 1e-9  # of 1 - cosine: below it two float32 vectors are equal


@styled
def images(imageset: ImageSet, logits: ArrayLike | None = None, count: int = 12) -> Picture:
    """Draw the first images of a set with their labels and, given logits, the predictions.

    Parameters
    ----------
    imageset
        Pixels, labels (-1 where nobody knows) and class names.
    logits
        (n, classes), of the same images; a wrong prediction is marked and framed.
    count
        How many at most.

    Raises
    ------
    UsageError
        No images, too many for a page, or logits of other images.
    """
    shown = min(count, len(imageset))
    if not 1 <= shown <= _MOST:
        raise UsageError(f"1 to {_MOST} images fit a sheet, not {shown}.")
    best = None
    if logits is not None:
        if np.shape(logits) != (len(imageset), len(imageset.classes)):
            raise UsageError(
                f"{len(imageset)} images of {len(imageset.classes)} classes need logits of the "
                f"shape {(len(imageset), len(imageset.classes))}, not {np.shape(logits)}."
            )
        best = metrics.topk(np.asarray(logits)[:shown], 1)[:, 0]
    across = min(_ACROSS, max(shown, 3))
    down = -(-shown // across)
    # as many lines above and below a picture as the longest name of the sheet needs
    above, below = _lines(imageset, best, shown)
    row = WIDTH / across + 0.12 + 0.16 * (above + below)
    picture = blank(row * down, _sheet(imageset, best, shown))
    for place, axes in enumerate(np.ravel(picture.subplots(down, across, squeeze=False))):
        axes.set(xticks=[], yticks=[])
        if place < shown:
            guess = None if best is None else int(best[place])
            _one(axes, imageset.images[place], int(imageset.labels[place]), guess, imageset.classes)
        else:
            axes.set_axis_off()
    return picture


def _lines(imageset: ImageSet, best: np.ndarray | None, shown: int) -> tuple[int, int]:
    """Return how many lines of words the sheet needs above a picture, and below."""
    labels = [int(k) for k in imageset.labels[:shown]]
    if best is None:
        named, missed = [_name(k, imageset.classes) for k in labels], []
    else:
        named = [f"✓ {imageset.classes[b]}" for b in best]
        missed = [imageset.classes[k] for k, b in zip(labels, best, strict=True) if 0 <= k != b]
    above = max(_wrapped(words).count("\n") + 1 for words in named)
    below = max((_wrapped(f"is: {words}").count("\n") + 1 for words in missed), default=0)
    return above, below


def _sheet(imageset: ImageSet, best: np.ndarray | None, shown: int) -> str:
    start = f"{shown} of {len(imageset)} images ({imageset.source})"
    if len(imageset) == 1:
        start = f"One image ({imageset.source})"
    if best is None:
        labels = dict.fromkeys(_name(k, imageset.classes) for k in imageset.labels[:shown])
        return f"{start}: {', '.join(list(labels)[:6])}{' and others' if len(labels) > 6 else ''}."
    known = imageset.labels[:shown] >= 0
    wrong = [
        f"{_name(k, imageset.classes)} taken for {imageset.classes[b]}"
        for k, b, is_known in zip(imageset.labels[:shown], best, known, strict=True)
        if is_known and k != b
    ]
    if not known.any():
        answers = [imageset.classes[b] for b in dict.fromkeys(best)]
        more = " and others" if len(answers) > 4 else ""
        answers_given = f"answered: {', '.join(answers[:4])}{more}"
        return f"{start}: no class is known, so no answer is right or wrong; {answers_given}."
    right = int(known.sum()) - len(wrong)
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    missed = f"; wrong: {', '.join(wrong[:3])}{more}" if wrong else ""
    return f"{start}: {right} of {int(known.sum())} with a known class are right{missed}."


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label != NO_LABEL else "class unknown"


def _one(
    axes: Axes, pixels: np.ndarray, label: int, guess: int | None, classes: Sequence[str]
) -> None:
    axes.imshow(pixels, interpolation="nearest")
    wrong = guess is not None and label != NO_LABEL and guess != label
    words = _name(label, classes)
    if guess is not None:
        mark = "✗ " if wrong else "✓ " if label != NO_LABEL else ""
        words = f"{mark}{classes[guess]}"
    axes.set_title(_wrapped(words), size=9, pad=3, weight="bold" if wrong else "normal")
    if wrong:
        axes.set_xlabel(_wrapped(f"is: {classes[label]}"), size=9, labelpad=2)
    for spine in axes.spines.values():
        spine.set(visible=True, color=VERMILION if wrong else GREY, linewidth=3 if wrong else 0.8)


def _wrapped(words: str) -> str:
    """Return words in at most two lines, each short enough for one picture."""
    lines = typesetting.lines(words, _LETTERS)
    if len(lines) > 2:
        lines = [lines[0], clipped(" ".join(lines[1:]), _LETTERS)]
    return "\n".join(lines)


@styled
def error_by_image(
    cosines: ArrayLike, threshold: float, judged: str = "min", title: str = ""
) -> Picture:
    """Draw the cosine of every image's logits against the threshold of a gate.

    The axis is the distance from 1 on a logarithmic scale, so that 0.9999 and 0.99 are far apart;
    its marks are cosines, and up is better.

    Parameters
    ----------
    cosines
        (n,), one per image.
    threshold
        The least cosine that passes, e.g. from `compare.THRESHOLDS`.
    judged
        ``"min"``: the worst image decides (float kinds); ``"mean"``: the mean does.
    title
        Above the points.
    """
    cosines = np.asarray(cosines, np.float64).ravel()
    if not cosines.size or not np.isfinite(cosines).all() or not -1 <= threshold < 1:
        raise UsageError("Finite cosines of some images and a threshold below 1 are needed.")
    if judged not in ("min", "mean"):
        raise UsageError(f"A gate is judged by 'min' or 'mean', not by {judged!r}.")
    decides = float(cosines.min() if judged == "min" else cosines.mean())
    word = "worst image" if judged == "min" else "mean"
    passed = decides >= threshold
    below = cosines < threshold
    picture = blank(
        3.2,
        f"Of {cosines.size} images {int(below.sum())} lie below the threshold {threshold:g}; the "
        f"{word}, which decides, is {_near_one(decides)}: {'passed' if passed else 'FAILED'}.",
    )
    axes = picture.subplots()
    far = np.clip(1 - cosines, _FLOOR, None)
    places = np.arange(cosines.size)
    limit = 1 - threshold
    for chosen, color, marker, words in (
        (~below, BLUE, "o", "reaches the threshold"),
        (below, VERMILION, "X", "lies below"),
    ):
        if chosen.any():
            axes.scatter(places[chosen], far[chosen], s=34, color=color, marker=marker, label=words)
    axes.set_yscale("log")
    ends = max(far.max(), limit) * 4, min(far.min(), limit) / 4
    axes.set(xlim=(-0.6, cosines.size - 0.4), ylim=ends, xlabel="image")
    axes.axhspan(
        limit, ends[0], facecolor=ORANGE, alpha=0.2, hatch="//", edgecolor=INK, linewidth=0
    )
    axes.axhline(limit, color=INK, linestyle="--", linewidth=1.4,
                 label=f"threshold {threshold:g}")  # fmt: skip
    axes.axhline(max(1 - decides, _FLOOR), color=BLUE, linestyle=":", linewidth=1.6,
                 label=f"{word}: {_near_one(decides)}")  # fmt: skip
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _near_one(1 - value)))
    axes.minorticks_off()
    axes.set_ylabel("cosine (up is better)")
    axes.set_title(
        f"{title + ': ' if title else ''}{'passed' if passed else 'FAILED'}, {word} "
        f"{_near_one(decides)} against {threshold:g}"
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    picture.legend(loc="outside lower center", ncols=4, frameon=False, columnspacing=1.2)
    return picture


def _near_one(cosine: float) -> str:
    """Return a cosine with as many digits as its distance from 1 needs."""
    far = 1 - cosine
    if far < 1e-8:
        return "1"
    digits = max(3, int(np.ceil(-np.log10(far))) + (far < 0.1))
    return f"{cosine:.{digits}f}".rstrip("0").rstrip(".")
