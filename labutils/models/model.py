"""A network and everything needed to feed it and to read its answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .. import typesetting
from ..errors import UsageError
from ..images import data
from ..onnxfile.file import OnnxFile

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False, repr=False)
class Model(typesetting.Paragraph):
    """A network and everything needed to feed it and to read its answers.

    Attributes
    ----------
    name
        The name it was asked for by.
    module
        In evaluation mode on the CPU; None for an ``.onnx`` file.
    preprocessing
        From uint8 NHWC images to the float32 NCHW input; None when a foreign file does not say.
    classes
        One name per output, in order.
    weights
        ``imagenet``, ``things16``, ``random``, or the file they came from.
    note
        One line: which weights were taken, and why.
    trained
        Whether top-1 answers mean anything.
    input_shape
        NCHW with batch 1; None when a file leaves it open.
    file
        The model file, for ``.onnx``, ``.pt2`` and ``.dlc``.
    onnx
        `file`, opened, for ``.onnx``.
    brought
        The file that `file` was adapted from, where that was needed (`labutils.models.adapt`).
    sha256
        Of the file that the weights came from, as 64 hexadecimal digits; of the tensors themselves
        where there is none, as for random weights. It says whether something made earlier belongs
        to this network; "" when that is unknown.
    output
        Name of the output that has a classifier's scores; "" where none has, None where that shows
        only when it runs.
    outputs
        Names of all outputs, where the file says them.
    """

    name: str
    module: nn.Module | None = field(repr=False)
    preprocessing: data.Preprocessing | None
    classes: tuple[str, ...] = field(repr=False)
    weights: str
    note: str
    trained: bool
    input_shape: tuple[int, ...] | None = None
    file: Path | None = None
    brought: Path | None = None
    sha256: str = ""
    onnx: OnnxFile | None = field(default=None, repr=False)
    output: str | None = None
    outputs: tuple[str, ...] = ()

    def known_preprocessing(self) -> data.Preprocessing:
        """Return the preprocessing; UsageError for a foreign file, which does not say it."""
        if self.preprocessing is None:
            raise UsageError(
                f"{self.name} does not say how its input was normalised. Export it with the lab, "
                "or give the preprocessing (labutils.images.data.Preprocessing)."
            )
        return self.preprocessing

    def __str__(self) -> str:
        how = self.preprocessing if self.preprocessing else "preprocessing unknown"
        return f"{self.name}: {self.note}; {self.answers}; {how}"

    @property
    def answers(self) -> str:
        """What it gives, as a phrase: how many classes, in which output where it has several."""
        if self.output == "":
            return f"no classifier (outputs: {', '.join(map(repr, self.outputs))})"
        classes = f"{len(self.classes)} classes" if self.classes else "classes unknown"
        if len(self.outputs) < 2:
            return classes
        others = ", ".join(repr(name) for name in self.outputs if name != self.output)
        return f"{classes}, scores in output {self.output!r} (also: {others})"
