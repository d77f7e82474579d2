"""One image at two stages of the way: the model as it was, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np

from ... import metrics
from ...compare import Stage
from ...errors import UsageError
from ...images.data import ImageSet, Preprocessing
from ..graphs.long_names import folded
from ..graphs.picture import BLUE, ORANGE, Picture, blank, decibels, percent, styled
from .panel import Panel, labelled, on_change, pictured, row
from .stage_answers import StageAnswers


class StageExplorer(Panel):
    """Choose an image and a stage; see its best classes beside those of the first stage.

    Parameters
    ----------
    stages
        As for `compare.ladder`; ``runner`` None for a stage that does not run on this machine.
    images, preprocessing
        The images to choose from, and what turns them into inputs.
    classes
        Names by output; those of the images by default.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        images: ImageSet,
        preprocessing: Preprocessing,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.answers = StageAnswers(stages, images, preprocessing, classes)
        named = [(f"{i + 1}: {self.answers.truth(i) or '?'}", i) for i in range(len(images))]
        self.image = labelled(widgets.Dropdown, "Image", options=named)
        chosen = [*self.answers.present[1:], *self.answers.present, *self.answers.stages][0]
        self.stage = labelled(
            widgets.Dropdown, "Stage", options=self.answers.options(), value=chosen
        )
        self.picture = widgets.HTML()
        controls = [row(self.image, self.stage)]
        super().__init__("One image, stage by stage", controls, results=[self.picture])
        for control in (self.image, self.stage):
            on_change(control, self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Ask both stages about the chosen image."""
        index, name = self.image.value, self.stage.value
        with self.working(f"Running {name} ({self.answers.runtime(name)}) ..."):
            if not self.answers.present:
                raise UsageError("None of these stages runs on this machine.")
            first = self.answers.present[0]
            image, truth = self.answers.images.images[index], self.answers.truth(index)
            logits = {first: self.answers.logits(first, [index])}
            if name in self.answers.present:
                logits[name] = self.answers.logits(name, [index])
            figure = two_answers(image, logits, self.answers.classes, truth)
            self.picture.value = pictured(figure)
            self.say(*self._words(first, name, logits, figure.alt))

    def _words(
        self, first: str, name: str, logits: dict[str, np.ndarray], seen: str
    ) -> tuple[str, str]:
        if name not in logits:
            return f"{name} does not run on this machine: only {first} answers. {seen}", "warn"
        words = f"{seen} {name}: {self.answers.runtime(name)}."
        if name == first:
            return words, "note"
        before, after = logits[first], logits[name]
        same = before.argmax() == after.argmax()
        found = difference(first, before, name, after, self.answers.classes)
        return f"{found} {words}", "good" if same else "warn"


def difference(
    first: str, before: np.ndarray, name: str, after: np.ndarray, classes: Sequence[str]
) -> str:
    """Say how two answers, logits (1, classes), differ."""
    change = metrics.softmax(after)[0] - metrics.softmax(before)[0]
    most = int(np.abs(change).argmax())
    same = before.argmax() == after.argmax()
    head = "Same best class" if same else "ANOTHER best class"
    if not change.any():
        return f"{head}; all probabilities are equal."
    points = 100 * float(change[most])
    moved = f"{points:+.1f} points" if abs(points) >= 0.05 else "less than 0.1 points"
    return (
        f"{head}; the largest change is {classes[most]}, {moved}; logits: "
        f"cosine {metrics.cosine(before, after):.5f}, SQNR "
        f"{decibels(metrics.sqnr_db(before, after))} ({name} against {first})."
    )


@styled
def two_answers(
    image: np.ndarray, logits: dict[str, np.ndarray], classes: Sequence[str], truth: str = ""
) -> Picture:
    """Draw an image beside the best classes of one or two stages, with a bar for each.

    Parameters
    ----------
    image
        (size, size, 3) uint8 RGB.
    logits
        Stage -> (1, classes).
    classes, truth
        Names by output; what is on the image, "" when nobody knows.
    """
    shares = {name: metrics.softmax(row)[0] for name, row in logits.items()}
    k = min(5, len(classes))
    best = list(dict.fromkeys(int(c) for row in logits.values() for c in metrics.topk(row, k)[0]))
    said = "; ".join(
        f"{name}: {classes[int(p.argmax())]} with {percent(float(p.max()))}"
        for name, p in shares.items()
    )
    folds = sum(-(-len(classes[c]) // 24) - 1 for c in best)  # lines of long names
    picture = blank(
        0.9 + 0.42 * len(best) + 0.1 * folds, f"{said}. " + (f"Truth: {truth}." if truth else "")
    )
    left, right = picture.subplots(1, 2, width_ratios=(1, 2))
    left.imshow(image, interpolation="nearest")
    left.set_axis_off()
    left.set_title(folded(f"truth: {truth}", 200, 10.5) if truth else "image")
    looks = zip(shares.items(), (BLUE, ORANGE), ("", "//"), strict=False)
    height = 0.8 / len(shares)
    for number, ((name, share), color, hatch) in enumerate(looks):
        places = np.arange(len(best)) + (number - (len(shares) - 1) / 2) * height
        right.barh(
            places,
            share[best],
            height,
            label=name,
            color=color,
            hatch=hatch,
            edgecolor="white",
        )
        for place, c in zip(places, best, strict=True):
            right.annotate(
                percent(float(share[c])), (share[c], place), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=8.5,
            )  # fmt: skip
    names = [folded(classes[c] + " = truth" * (classes[c] == truth), 210, 10, 2) for c in best]
    right.set_yticks(range(len(best)), names)
    right.invert_yaxis()
    right.set(xlim=(0, 1.15), xlabel="probability (softmax)")
    right.set_xticks(np.linspace(0, 1, 6))
    together = sum(map(len, shares)) < 70
    picture.legend(loc="outside lower center", ncols=2 if together else 1, frameon=False)
    return picture
