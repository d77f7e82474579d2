"""The network that exercise 08.3 is judged on: the lab's small one, what it costs, what is lost."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ... import export, metrics, quantize, runtime
from ...images import data
from ...measure import complexity
from ...models import zoo
from ...onnxfile import graph
from ...quantize.insertion import widths
from ...quantize.prepare import prepared

ARCHITECTURE, CALIBRATION_IMAGES, JUDGED = "mobilenet_v3_small", 128, 64
GOAL_DB, MOST_WIDE = 17.5, 0.15
"""Logit SQNR to reach, and the share of multiply-accumulates that may have 16-bit activations."""


@dataclass(frozen=True)
class Judged:
    """What became of a recipe.

    Attributes
    ----------
    sqnr_db
        Of the logits, on the first `JUDGED` calibration images, in ONNX Runtime.
    wide_share
        Share of the multiply-accumulates with 16-bit activations.
    wide
        Nodes at 16 bits.
    kept
        Tensors that are 16 bits wide from the node that writes them to one that reads them.
    """

    sqnr_db: float
    wide_share: float
    wide: tuple[str, ...]
    kept: int


@functools.cache
def _float() -> tuple[Path, quantize.Ranges, np.ndarray, np.ndarray, tempfile.TemporaryDirectory]:
    """Return the float file, its ranges, inputs and answers; the folder lives with the process."""
    folder = tempfile.TemporaryDirectory(prefix="labutils-08-")
    model = zoo.load(ARCHITECTURE, "things16")
    file = Path(folder.name) / "float.onnx"
    export.to_onnx(model, file)
    preprocessing = model.known_preprocessing()
    inputs = preprocessing(data.load("calib", CALIBRATION_IMAGES, preprocessing.size).images)
    ranges = quantize.measure_ranges(file, inputs)
    with runtime.connect(file) as runner:
        return file, ranges, inputs[:JUDGED], runner.run(inputs[:JUDGED]), folder


def judged(recipe: quantize.Recipe) -> Judged:
    """Quantize the small network by a recipe, run it and count.

    Gates, flat ends and biases are left as they are, also where a recipe that was taken as a start
    asks for them: these are other cures than the exercise is about.

    Raises
    ------
    LabError
        What `quantize.static` raises.
    """
    file, ranges, inputs, exact, folder = _float()
    made = Path(folder.name) / "judged.onnx"
    own = recipe.replaced(equalize_gates=False, flat_ends=False, correct_bias=False)
    quantize.static(file, made, ranges, own)
    with runtime.connect(made) as runner:
        found = runner.run(inputs)
    model = prepared(file)
    width = widths(model, recipe)
    wide = tuple(name for name, bits in width.items() if bits == 16)
    return Judged(metrics.sqnr_db(exact, found), share_of_macs(file, wide), wide, _kept(file, wide))


def share_of_macs(file: str | Path, nodes: tuple[str, ...]) -> float:
    """Return the share of a file's multiply-accumulates that some nodes do."""
    counted = complexity.count(file)
    return sum(row.macs for row in counted.rows if row.name in set(nodes)) / counted.macs


def _kept(file: Path, wide: tuple[str, ...]) -> int:
    nodes = [node for node in graph.read(file).graph.node if node.name in set(wide)]
    written = {out for node in nodes for out in node.output}
    return len({name for node in nodes for name in node.input} & written)
