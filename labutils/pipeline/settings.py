"""What is asked of a pipeline beside its model: grouped, so that a call reads as a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import quantize, surgery
from ..images import data
from ..quantize import mixed
from ..tracking import Progress


def _ignore(line: object) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Listener:
    """What a long run reports to.

    Attributes
    ----------
    echo
        Called with each report and log line as it comes.
    progress
        ``progress(iterable, description) -> iterable`` around long loops.
    """

    echo: Callable[[object], object] = _ignore
    progress: Progress | None = None


@dataclass(frozen=True)
class Preparation:
    """How a model becomes the float ONNX file that is converted or quantized.

    Attributes
    ----------
    opset
        Of the export.
    repair_for
        The target whose blockers are replaced, by exact rules; None replaces nothing.
    allow_approximate
        Where no exact rule helps, take one that changes the function. A DLC is then compared with
        the model after the surgery; how far that is from the original model is printed
        and kept in the manifest, and the claim says so.
    edits
        Replay this surgery instead of choosing rules; see `surgery.replay_`.
    """

    opset: int = 17
    repair_for: str | None = None
    allow_approximate: bool = False
    edits: surgery.Edits | str | Path | None = None


@dataclass(frozen=True)
class Comparison:
    """What a result is compared with its model on, and how strictly.

    Attributes
    ----------
    images
        So many Things-16 validation images; or your own, as (n, channels, height, width) float32,
        normalized, or as an `ImageSet`. None takes as many as is usual. Accuracy is stated of
        images with labels for the model's classes.
    min_cosine
        Another threshold for the parity gate; it is printed and kept in the manifest.
    calibration
        What `convert_model` measures the ranges of an integer DLC on; Things-16's calibration
        images by default, as many as the recipe says.
    """

    images: int | np.ndarray | data.ImageSet | None = None
    min_cosine: float | None = None
    calibration: np.ndarray | data.ImageSet | None = None


@dataclass(frozen=True)
class Search:
    """A search for mixed precision, instead of a recipe.

    Attributes
    ----------
    budget
        What the recipe that is looked for may cost, or has to reach.
    start
        The recipe that it starts from.
    """

    budget: mixed.Budget
    start: str | Path | quantize.Recipe = "int8"


@dataclass(frozen=True)
class Explanation:
    """Which layers cost most, and why: what to look into.

    Attributes
    ----------
    layers
        How many of the costliest layers to explain.
    backend, soc
        What runs them: ``"ort"``, or ``"htp"``, simulated for this chip.
    """

    layers: int = 5
    backend: str = "ort"
    soc: str = "SM8550"
