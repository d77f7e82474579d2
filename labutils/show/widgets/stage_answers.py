"""What each stage of the way answers on each image, asked once and remembered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...compare import Stage
from ...errors import MissingToolError, ParityError, UnknownNameError, UsageError
from ...images.data import NO_LABEL, ImageSet, Preprocessing
from ...tracking import Progress, tracked

_BATCH = 8  # images between two movements of a progress bar


class StageAnswers:
    """Logits by stage and image; a stage without a runner is known by name only.

    Parameters
    ----------
    stages
        `compare.Stage` objects; ``runner`` None where a stage does not run on this machine.
    images, preprocessing
        Pixels, and what turns them into inputs.
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
        self.stages = {stage.name: stage for stage in stages}
        if not self.stages or len(self.stages) < len(stages):
            raise UsageError("Pass at least one stage, each with a different name.")
        self.images, self.preprocessing = images, preprocessing
        self.classes = tuple(images.classes if classes is None else classes)
        self._kept: dict[tuple[str, int], np.ndarray] = {}

    @property
    def present(self) -> list[str]:
        """Names of the stages that run here."""
        return [name for name, stage in self.stages.items() if stage.runner is not None]

    @property
    def judged(self) -> bool:
        """Whether the labels are about the model's classes, so that right and wrong mean something.

        Things-16 pictures tell nothing about the accuracy of an ImageNet model.
        """
        known = np.asarray(self.images.labels).min() >= 0
        return bool(known) and tuple(self.images.classes) == self.classes

    def options(self) -> list[tuple[str, str]]:
        """Return (what a menu shows, name) of every stage."""
        here = self.present
        return [(name if name in here else f"{name} (not here)", name) for name in self.stages]

    def truth(self, index: int) -> str:
        """Return what is on an image, "" when nobody knows."""
        label = int(self.images.labels[index])
        return self.images.classes[label] if label != NO_LABEL else ""

    def runtime(self, name: str) -> str:
        """Return the name of what runs a stage."""
        runner = self.stages[name].runner
        return "not run here" if runner is None else runner.runtime

    def logits(
        self,
        name: str,
        indices: Sequence[int],
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Return the logits, float32 (images, classes), of a stage on some images.

        Raises
        ------
        MissingToolError
            The stage does not run on this machine.
        ParityError
            It gave NaN, or logits of another shape.
        """
        if name not in self.stages:
            raise UnknownNameError("stage", name, self.stages)
        runner = self.stages[name].runner
        if runner is None:
            raise MissingToolError(
                f"{name} does not run on this machine, so it cannot be asked. `labutils doctor` "
                "says what is missing; the recorded results show what it answered elsewhere."
            )
        missing = [i for i in indices if (name, i) not in self._kept]
        parts = [missing[i : i + _BATCH] for i in range(0, len(missing), _BATCH)]
        for part in tracked(parts, name, "batches", progress if len(parts) > 1 else None):
            found = runner.run(self.preprocessing(np.asarray(self.images.images[part])))
            if found.shape != (len(part), len(self.classes)) or not np.isfinite(found).all():
                raise ParityError(
                    f"{name} gives logits of shape {found.shape}, or some that are not finite; "
                    f"expected finite ones of shape {(len(part), len(self.classes))}."
                )
            self._kept.update(((name, i), row) for i, row in zip(part, found, strict=True))
        return np.stack([self._kept[name, i] for i in indices])
