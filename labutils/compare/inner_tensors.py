"""What a network computes on the way from input to output: tensors by name or by module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UnknownNameError
from ..onnxfile.edit import producers
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import module_path
from ..runtime import connect
from .layerwise import opened, twins, unoptimized


def activations(
    file: OnnxFile | str | Path, names: Iterable[str], inputs: np.ndarray, backend: str = "ort"
) -> dict[str, np.ndarray]:
    """Run an ONNX file and return tensors from inside it.

    Only the part that computes them runs, and they are its outputs: on the HTP that keeps nodes
    from being fused.

    Parameters
    ----------
    file
        An ONNX file.
    names
        Of tensors, or of modules such as ``"features.0.2"``, whose last output is meant.
    inputs
        (n, 3, size, size) float32, normalized.
    backend
        ``"ort"``, unoptimized, or ``"htp"``.

    Returns
    -------
    dict
        Name, as given -> array with the images first.

    Raises
    ------
    UnknownNameError
        The file has no tensor and no module of that name.
    ConvertError
        The HTP refuses the graph.
    """
    model = OnnxFile.of(file).whole
    outputs = {name: name for name in producers(model.graph.node)}
    outputs = {module_path(node): node.output[0] for node in model.graph.node} | outputs
    names = list(names)
    for name in names:
        if name not in outputs:
            raise UnknownNameError("tensor or module", name, [known for known in outputs if known])
    htp: Callable[..., Any] = functools.partial(connect, backend=backend)
    open_ = unoptimized if backend == "ort" else htp
    with opened(model, [outputs[name] for name in names], open_) as runner:
        found = runner.tensors(inputs)
    return {name: found[outputs[name]] for name in names}


def paired_activations(
    reference: OnnxFile | str | Path, candidate: OnnxFile | str | Path, inputs: np.ndarray
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return every tensor that two ONNX files share: (name, in the reference, in the candidate).

    The tensors of a quantized candidate are dequantized. All of them are kept in memory, so a few
    images are enough; `per_layer` streams.
    """
    ours, theirs = OnnxFile.of(reference).whole, OnnxFile.of(candidate).whole
    pairs = twins(ours, theirs)
    with (
        opened(ours, [pair.reference for pair in pairs]) as before,
        opened(theirs, [pair.candidate for pair in pairs]) as after,
    ):
        left, right = before.tensors(inputs), after.tensors(inputs)
    return [(pair.reference, left[pair.reference], right[pair.candidate]) for pair in pairs]
