"""Where a network begins: what is fed to a file, and what arrives at its first convolution."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import runtime
from ..errors import LabError, UsageError
from ..onnxfile import byte_input, edit
from ..onnxfile.byte_input import ByteInput
from ..onnxfile.file import OnnxFile
from ..onnxfile.session import Session
from ..runtime import outputs


@dataclass
class Entry:
    """A file in two parts, where it can be cut: before its first convolution, and from there on.

    Attributes
    ----------
    name
        The file's.
    channels
        Of the picture, 1 or 3.
    bytes
        What it takes as NV12, None where it takes floats.
    """

    name: str
    channels: int
    bytes: ByteInput | None
    _before: Session | None
    _network: Session | None
    _runner: Any
    _output: str | None

    def delivered(self, fed: np.ndarray) -> np.ndarray:
        """Return what the first convolution reads, for inputs of the file, one by one."""
        if self._before is None:
            return fed
        (key, shape, _), *_ = self._before.inputs
        return np.concatenate([self._before.run({key: one.reshape(shape)})[0] for one in fed])

    def answers(self, arriving: np.ndarray) -> np.ndarray:
        """Return the scores, (n, classes), for what the first convolution reads."""
        if self._network is None:
            found = [runtime.run_all(self._runner, one[None]) for one in arriving]
            chosen = runtime.scores_name(self._runner)
        else:
            key, names = self._network.inputs[0][0], [n for n, *_ in self._network.outputs]
            runs = (self._network.run({key: one[None]}) for one in arriving)
            found = [dict(zip(names, run, strict=True)) for run in runs]
            chosen = self._output or outputs.scores_of(
                outputs.of_arrays(found[0]), None, self.name, None
            )
        if not chosen:
            raise UsageError(f"{self.name} is not a classifier: its answers cannot be counted.")
        return np.concatenate([outputs.as_scores(entry[chosen]) for entry in found])


@contextlib.contextmanager
def opened(artifact: Any, output: str | None = None) -> Iterator[Entry]:
    """Yield a file, cut before its first convolution where that can be.

    Parameters
    ----------
    artifact
        A module, an `OnnxFile`, or the path of an ``.onnx`` or ``.dlc``.
    output
        Which output has the scores; by default the one whose shape and name say so.
    """
    is_onnx = isinstance(artifact, OnnxFile) or str(artifact).lower().endswith(".onnx")
    file = OnnxFile.of(artifact) if is_onnx else None
    taken = byte_input.read(file.proto) if file else None
    cut = _cut(file) if file else None
    if file is not None and cut is not None:
        before, network, channels = cut
        yield Entry(file.name, channels, taken, before, network, None, output)
        return
    if taken is not None and file is not None:
        raise UsageError(
            f"{file.name} takes {taken}, and no convolution in it reads a picture of that size, so "
            "it is not known where its network begins. Check the file without those bytes."
        )
    with runtime.connect(artifact, output=output) as runner:
        shape = getattr(runner, "shape", None) or [1, 3]
        yield Entry(runner.name, shape[1] or 3, None, None, None, runner, output)


def _cut(file: OnnxFile) -> tuple[Session | None, Session, int] | None:
    """Return a file in two sessions, None where its first convolution is not found."""
    model = file.shaped
    found = _first_read(file)
    if found is None:
        return None
    tensor, channels = found
    ends = [value.name for value in model.graph.output]
    if tensor == file.inputs[0].name:
        return None, Session(model, threads=1, name=file.name), channels
    try:
        before = Session(edit.cut(model, [tensor]), threads=1, name=file.name)
        network = Session(edit.cut(model, ends, [tensor]), threads=1, name=file.name)
        return before, network, channels
    except LabError:  # the network reads the input elsewhere, too
        return None


def _first_read(file: OnnxFile) -> tuple[str, int] | None:
    """Return the picture that the first convolution proper reads, and its channels.

    A 1x1 convolution from three channels to three turns colours; the network begins after it.
    """
    graph = file.shaped.graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    makers = edit.producers(graph.node)
    values = (*graph.value_info, *graph.input)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        kernel = weights.get(_stored(node.input[1], makers), ())
        if len(kernel) != 4 or kernel == (3, 3, 1, 1):
            continue
        shape = shapes.get(node.input[0], [])
        fits = len(shape) == 4 and shape[0] == 1 and shape[1] in (1, 3)
        return (node.input[0], shape[1]) if fits else None
    return None


def _stored(name: str, makers: dict[str, Any]) -> str:
    """Return the initializer behind a weight, through what quantizes it."""
    while name in makers and makers[name].op_type in ("QuantizeLinear", "DequantizeLinear"):
        name = makers[name].input[0]
    return name
