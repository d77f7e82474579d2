"""What a runner is: one way to feed any network, wherever it runs.

A runner takes float32 images and returns float32 logits, or all outputs by name; what it ran, and
on what, stands in its `name`, `runtime` and `file`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..onnxfile.file import OnnxFile
from . import outputs


@runtime_checkable
class Runner(Protocol):
    """What the gate and the ladder compare.

    Attributes
    ----------
    name
        What is run: a module's class, or a file name.
    runtime
        What runs it, as text for a table; a simulator says that it is one.
    """

    name: str
    runtime: str

    @property
    def file(self) -> Path | None:
        """The artifact that is run, None for a module in memory."""
        ...

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return logits, float32 (n, classes), for images, float32 (n, channels, height, width).

        Of a network that is not a classifier, its first float output as it is.
        """
        ...

    def close(self) -> None:
        """Free what the runner holds."""
        ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: object) -> None: ...


class TensorRunner(Runner, Protocol):
    """A runner of a graph, which gives every output by name."""

    def tensors(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return every graph output by name, images along the first axis."""
        ...


class Closing:
    """`with connect(...) as runner:` for every runner, and which of its outputs has the scores.

    Attributes
    ----------
    output
        Name of the output that holds a classifier's scores, "" where none does; None as long as
        that is not known, which of a PyTorch module it is after the first run.
    """

    name: str
    runtime: str
    output: str | None = None
    _wanted: str | None = None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} on {self.runtime}>"

    def close(self) -> None:
        """Free what the runner holds."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return logits, float32 (n, classes), for images, float32 (n, channels, height, width).

        Of a network that is not a classifier, its first float output as it is.
        """
        found = self.tensors(batch)
        if self.output:
            return outputs.as_scores(found[self.output]).astype(np.float32, copy=False)
        floats = [values for values in found.values() if values.dtype.kind == "f"]
        return next(iter(floats or found.values())).astype(np.float32, copy=False)

    def tensors(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output by name, images along the first axis."""
        raise NotImplementedError

    def _choose(
        self, known: Sequence[outputs.Output], file: OnnxFile | None = None, final: bool = False
    ) -> None:
        """Find out which output has the scores, as soon as all shapes are known."""
        if self._wanted:
            outputs.found_name(self._wanted, (output.name for output in known), self.name)
        if self.output is None and (final or all(output.shape for output in known)):
            model = file.proto if file else None
            self.output = outputs.scores_of(known, self._wanted, self.name, model)
