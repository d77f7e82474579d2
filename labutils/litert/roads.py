"""One way from PyTorch to a float ``.tflite``, as it was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import runtime, typesetting
from ..runtime import litert

ONNX_TF_PROGRAM = Path(__file__).with_name("onnx_tf_program.py")
"""What `labutils.tools.calling` opens in the environment of onnx-tf."""


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
    """

    name: str
    contents: litert.Contents
    difference: float
    lines: int

    def to_dict(self) -> dict[str, Any]:
        """Return what a table of several ways says."""
        counts = self.contents.counts
        return {
            "road": self.name, "MB": round(self.contents.file.stat().st_size / 1e6, 2),
            "operators": counts.total(), "TRANSPOSE": counts["TRANSPOSE"], "PAD": counts["PAD"],
            "difference": float(f"{self.difference:.1e}"), "lines": self.lines,
        }  # fmt: skip

    def __str__(self) -> str:
        apart = f"largest difference {self.difference:.1e} of the largest logit"
        return f"{self.contents}\n{apart}; {self.lines} lines written for it"


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference of a logit, as a share of the largest logit.

    Examples
    --------
    >>> difference(np.array([[1.0, -4.0]]), np.array([[1.5, -4.0]]))
    0.125
    """
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def measure_road(
    name: str, file: Path, images: np.ndarray, expected: np.ndarray, lines: int
) -> Road:
    """Run a ``.tflite`` and compare it with its network.

    Parameters
    ----------
    name
        How the file was made.
    file
        The ``.tflite``.
    images
        (n, channels, height, width) float32, normalized.
    expected
        The network's logits for them.
    lines
        What somebody wrote for it, in lines.
    """
    with runtime.connect(file) as runner:
        found = runner.run(images)
    return Road(name, litert.contents(file), difference(expected, found), lines)
