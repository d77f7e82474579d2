"""One way from PyTorch to a float ``.tflite``, as it was measured."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import runtime, typesetting
from ..runtime import litert
from ..tools import writing

ONNX_TF_PROGRAM = Path(__file__).with_name("onnx_tf_program.py")
"""What `labutils.tools.calling` opens in the environment of onnx-tf."""
ONNX2TF_PROGRAM = Path(__file__).with_name("onnx2tf_program.py")
"""What `labutils.tools.calling` opens in the environment of onnx2tf."""


@dataclass(frozen=True, repr=False)
class Road(typesetting.Shown):
    """A ``.tflite``, how it was made, and how far it is from its network.

    Attributes
    ----------
    name
        The way that it was made.
    contents
        Its operators and tensors.
    difference
        The largest of a logit, as a share of the largest logit.
    lines
        What somebody wrote for it, in lines of text.
    seconds
        From the call to the file, with the start of the tools' processes.
    """

    name: str
    contents: litert.Contents
    difference: float
    lines: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return what a table of several ways says."""
        counts = self.contents.counts
        return {
            "road": self.name, "MB": round(self.contents.file.stat().st_size / 1e6, 2),
            "operators": counts.total(), "TRANSPOSE": counts["TRANSPOSE"], "PAD": counts["PAD"],
            "difference": float(f"{self.difference:.1e}"), "seconds": round(self.seconds, 1),
            "lines": self.lines,
        }  # fmt: skip

    def __str__(self) -> str:
        apart = f"largest difference {self.difference:.1e} of the largest logit"
        return (
            f"{self.contents}\n{apart}; {self.lines} lines written for it; made in "
            f"{self.seconds:.0f} s"
        )


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference of a logit, as a share of the largest logit.

    Examples
    --------
    >>> difference(np.array([[1.0, -4.0]]), np.array([[1.5, -4.0]]))
    0.125
    """
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def take_road(
    name: str,
    file: Path,
    convert: Callable[[Path], object],
    images: np.ndarray,
    expected: np.ndarray,
    *also: Callable[..., Any],
) -> Road:
    """Convert a network, run the ``.tflite`` and compare it with the network.

    Parameters
    ----------
    name
        How the file is made.
    file
        The ``.tflite``.
    convert
        Writes it.
    images
        (n, channels, height, width) float32, normalized.
    expected
        The network's logits for them.
    *also
        What was written for this road beside `convert`.
    """
    start = time.perf_counter()
    convert(file)
    seconds = time.perf_counter() - start
    with runtime.connect(file) as runner:
        found = runner.run(images)
    lines = writing.count_lines(convert, *also)
    return Road(name, litert.contents(file), difference(expected, found), lines, seconds)


def time_roads(
    files: Mapping[str, Path], image: np.ndarray, base: str, turns: int = 30
) -> dict[str, float]:
    """Return how long each road's file takes for an image, as a share of what one of them takes.

    They run in turns, on one thread each, so that whatever else the machine does disturbs all.

    Parameters
    ----------
    files
        Road -> ``.tflite``.
    image
        (1, channels, height, width) float32, normalized.
    base
        The road that counts as 1.
    turns
        That count.
    """
    with contextlib.ExitStack() as stack:
        runners = {
            road: stack.enter_context(runtime.connect(file, threads=1))
            for road, file in files.items()
        }
        taken = runtime.seconds_in_turns(runners, image, turns)
    return {road: round(seconds / taken[base], 2) for road, seconds in taken.items()}
