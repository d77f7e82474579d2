"""Two stages of the fidelity ladder: their rows, their difference, and where they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets
import numpy as np

from ... import metrics
from ...compare import Ladder, Stage
from ...errors import UsageError
from ...images.data import ImageSet, Preprocessing
from ...tabular import clipped
from ...typesetting import words
from ..graphs.long_names import folded
from ..graphs.picture import Picture, blank, percent, styled
from .panel import Panel, labelled, on_change, pictured, row, table
from .stage_answers import StageAnswers

_SHOWN = 10  # pictures at most
_COLUMNS = 5


class LadderPicker(Panel):
    """Pick two stages and compare them image by image.

    Parameters
    ----------
    stages
        As for `compare.ladder`; ``runner`` None for a stage that does not run on this machine.
    images, preprocessing
        What is classified, and what turns pixels into inputs.
    ladder
        Measured before: its rows are shown, also those of stages that do not run here.
    n
        Images that a picked pair is compared on; each stage runs on them once.
    why
        Said where the images are not a sample, e.g. "chosen because int8 differs". Right and wrong
        are then counted, and no accuracy or interval is stated.
    classes
        Names by output; those of the images by default.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        images: ImageSet,
        preprocessing: Preprocessing,
        ladder: Ladder | None = None,
        n: int = 32,
        classes: Sequence[str] | None = None,
        why: str = "",
    ) -> None:
        if len(stages) < 2 or n < 1:
            raise UsageError("Two stages or more, and one image or more, are needed to compare.")
        self.answers = StageAnswers(stages, images.head(n), preprocessing, classes)
        self.ladder, self.why = ladder, why
        names = list(self.answers.stages)
        here = self.answers.present
        first, second = here[:2] if len(here) > 1 else names[:2]
        options = self.answers.options()
        self.first = labelled(widgets.Dropdown, "First", options=options, value=first)
        self.second = labelled(widgets.Dropdown, "Second", options=options, value=second)
        self.rows, self.picture = widgets.HTML(), widgets.HTML()
        controls = [row(self.first, self.second)]
        super().__init__("Two rungs of the ladder", controls, results=[self.rows, self.picture])
        for control in (self.first, self.second):
            on_change(control, self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Compare the two stages that are picked."""
        pair = self.first.value, self.second.value
        with self.working(f"Comparing {pair[0]} with {pair[1]} ..."):
            self.picture.value = self.rows.value = ""
            absent = [name for name in pair if name not in self.answers.present]
            indices = range(len(self.answers.images))
            logits = {
                name: self.answers.logits(name, indices, self.progress)
                for name in pair
                if name not in absent
            }
            rows = [self._row(name, logits.get(name)) for name in pair]
            columns = (
                "stage",
                "runs on",
                "right of these",
                "whole ladder: top-1 [95 %]",
                "n",
                "MB",
            )
            self.rows.value = table(columns, rows)
            if absent:
                names = " and ".join(absent)
                self.say(f"{names} cannot be asked on this machine: only rows here.", "warn")
                return
            if pair[0] == pair[1]:
                self.say("The same stage twice. Pick another one.", "warn")
                return
            words, kind = self._difference(*pair, *logits.values())
            apart = [i for i in indices if len({int(v[i].argmax()) for v in logits.values()}) > 1]
            if apart:
                self.picture.value = pictured(disagreements(self.answers, logits, apart))
            self.say(words, kind)

    def _row(self, name: str, logits: np.ndarray | None) -> tuple[str, ...]:
        """Return a stage's cells: right on the compared images, and its row of the ladder."""
        rung = {row.name: row for row in self.ladder.rows}.get(name) if self.ladder else None
        runner = self.answers.stages[name].runner
        here = "-"
        if logits is not None and self.answers.judged:
            here = f"{int(metrics.correct(logits, self._labels()).sum())} of {len(logits)}"
        if rung is not None:
            runtime, size = rung.runtime, rung.bytes
            top1, n = str(rung.top1 or "unknown").rsplit(" (", 1)[0], str(rung.n)
        else:
            runtime, top1, n = self.answers.runtime(name), "-", "-"
            file = getattr(runner, "file", None)
            size = Path(file).stat().st_size if file else None
        if size is not None:
            megabytes = f"{size / 1e6:.2f}"
        else:
            megabytes = "in memory" if runner is not None or rung is not None else "-"
        return words(name), words(runtime), here, top1, n, megabytes

    def _labels(self) -> np.ndarray:
        return np.asarray(self.answers.images.labels)

    def _difference(self, first: str, second: str, a: np.ndarray, b: np.ndarray) -> tuple[str, str]:
        """Return the comparison as a sentence, and whether it needs a look."""
        same = metrics.agreement(a, b)
        words = f"They name the same class on {same.hits} of {same.n} images."
        kind = "good" if same.hits == same.n else "warn"
        if not self.answers.judged:
            return f"{words} The images' labels are not about this model's classes.", kind
        labels = self._labels()
        right = [metrics.correct(v, labels) for v in (b, a)]
        only = [int(np.sum(x & ~y)) for x, y in (right, right[::-1])]
        apart = f"Only {second} is right on {only[0]}, only {first} on {only[1]}."
        if self.why:
            sample = f"The images are not a sample ({self.why}), so there is no accuracy."
            return f"{words} {apart} {sample}", kind
        found = metrics.paired_difference(*right)
        low, high = found.interval
        verdict = (
            f"{second} is better" if low > 0 else f"{second} is worse" if high < 0
            else f"the interval contains 0, so these {found.n} images show no difference"
        )  # fmt: skip
        return (
            f"Top-1, {second} minus {first}: {found.value:+.1f} points, 95 % interval "
            f"[{low:+.1f}, {high:+.1f}], paired: {verdict}. {apart} {words}"
        ), kind


@styled
def disagreements(
    answers: StageAnswers, logits: dict[str, np.ndarray], indices: Sequence[int]
) -> Picture:
    """Draw the images on which two stages name different classes, with both names.

    Parameters
    ----------
    answers
        Has the images and the names.
    logits
        Stage -> (images, classes), two of them.
    indices
        Numbers of the images; the first ten are drawn.
    """
    shown = list(indices)[:_SHOWN]
    rows = -(-len(shown) // _COLUMNS)
    shares = {name: metrics.softmax(values) for name, values in logits.items()}
    letters = dict(zip(shares, "AB", strict=True))
    head = "\n".join(folded(f"{k}: {name}", 720, 9.5) for name, k in letters.items())
    picture = blank(2.2 * rows + 0.15 + 0.15 * (1 + head.count("\n")))
    picture.suptitle(head, fontsize=9.5)
    grid = picture.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    said = []
    for axes, i in zip(grid, shown, strict=False):
        axes.imshow(answers.images.images[i], interpolation="nearest")
        best = {
            n: (answers.classes[int(p[i].argmax())], float(p[i].max())) for n, p in shares.items()
        }
        lines = [f"{letters[n]}: {clipped(c, 12)} {percent(p)}" for n, (c, p) in best.items()]
        title = f"image {i + 1}: {clipped(answers.truth(i) or '?', 12)}"
        axes.set_title("\n".join([title, *lines]), fontsize=8, loc="left")
        named = ", ".join(f"{n}: {c}" for n, (c, _) in best.items())
        said.append(f"image {i + 1} ({answers.truth(i) or '?'}): {named}")
    more = f" The first {len(shown)} are shown." if len(shown) < len(indices) else ""
    picture.alt = (
        f"{len(indices)} of {len(answers.images)} images get different classes.{more} "
        + "; ".join(said) + "."
    )  # fmt: skip
    return picture
