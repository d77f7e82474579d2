"""The first tensor at which a ``.tflite`` leaves its reference, whose tensors have other names.

A converter renames tensors, fuses nodes and turns layouts, so tensors are matched by what is in
them: a tensor of the reference has a counterpart where some tensor of the file has the same values,
in either layout. What no longer has one, nor anything computed from it, has departed. Fused nodes
have none either, but what follows them does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import metrics
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import module_path
from ..runtime import LiteRtRunner
from .divergence import Divergence
from .layerwise import opened

if TYPE_CHECKING:
    import onnx

_HANDING_ON = ("Constant", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")


@dataclass(frozen=True)
class _Match:
    """The tensor of the file that is most like one of the reference, laid out as that is."""

    likeness: float
    values: np.ndarray
    op: str


def first_divergence(
    reference_onnx: OnnxFile | str | Path, candidate: LiteRtRunner, inputs: np.ndarray, limit: float
) -> Divergence | None:
    """Find the first tensor from which on a ``.tflite`` no longer computes what its reference does.

    Parameters
    ----------
    reference_onnx
        Run by ONNX Runtime.
    candidate
        The file; it is run again without XNNPACK, which shows no tensors inside.
    inputs
        (n, channels, height, width) float32; two images are enough.
    limit
        The cosine below which two tensors are not the same.

    Returns
    -------
    Divergence or None
        None when the last tensor has its counterpart.
    """
    file = OnnxFile.of(reference_onnx)
    model = file.whole
    nodes = [node for node in model.graph.node if node.op_type not in _HANDING_ON]
    with opened(model, [n for node in nodes for n in node.output if n]) as runner:
        ours = runner.tensors(inputs)
    assert candidate.file is not None
    with LiteRtRunner(candidate.file, candidate.layout, inner=True) as opened_again:
        found = opened_again.inner_tensors(inputs)
    made = {n: operator.type for operator in candidate.contents.operators for n in operator.outputs}
    best = {
        name: _best(values, found, made)
        for name, values in ours.items()
        if values.dtype.kind == "f" and values.ndim > 1 and values.size
    }
    node = _departed(model, nodes, best, limit)
    return None if node is None else _described(node, best, ours, limit, file.name)


def _best(values: np.ndarray, found: Mapping[int, np.ndarray], made: Mapping[int, str]) -> _Match:
    """Return the most similar tensor of as many values, in one of two layouts."""
    best = _Match(-np.inf, np.zeros_like(values), "")
    for number, other in found.items():
        for laid in _layouts(other, values.shape):
            likeness = _likeness(values, laid)
            if likeness > best.likeness:
                best = _Match(likeness, laid, made[number])
    return best


def _layouts(values: np.ndarray, shape: tuple[int, ...]) -> Iterable[np.ndarray]:
    """Yield a tensor in the shape of another one, as it lies and from channels last."""
    if values.size != np.prod(shape) or values.dtype.kind != "f":
        return
    if values.ndim == 4:
        turned = values.transpose(0, 3, 1, 2)
        if turned.shape == shape:
            yield turned
    if values.shape == shape or min(values.ndim, len(shape)) < 4:
        yield values.reshape(shape)


def _likeness(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return 1 - half the noise over the signal's variance: near the cosine where both are alike.

    Unlike a cosine it sees a factor and an offset, and is not near 1 for two gates that hardly
    vary.
    """
    signal = float(((ours - ours.mean()) ** 2).sum())
    noise = float(((ours - theirs) ** 2).sum())
    if signal == 0:
        return 1.0 if noise == 0 else -np.inf
    return 1 - noise / (2 * signal) if np.isfinite(noise) else -np.inf


def _departed(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    best: Mapping[str, _Match],
    limit: float,
) -> onnx.NodeProto | None:
    """Return the first node whose result, and all that follows from it, has no counterpart."""
    alive: set[str] = set()  # has a counterpart, or something after it has
    for node in reversed(model.graph.node):
        names = [name for name in node.output if name]
        agrees = any(name in best and best[name].likeness >= limit for name in names)
        if agrees or alive.intersection(names):
            alive.update(names)
            alive.update(name for name in node.input if name)
    for node in nodes:
        names = [name for name in node.output if name in best]
        if names and not alive.intersection(names):
            return node
    return None


def _described(
    node: onnx.NodeProto,
    best: Mapping[str, _Match],
    ours: Mapping[str, np.ndarray],
    limit: float,
    name: str,
) -> Divergence:
    tensor = next(output for output in node.output if output in best)
    match, values = best[tensor], ours[tensor]
    same = match.likeness > -np.inf
    cosine = metrics.cosine(values.ravel(), match.values.ravel()) if same else float("nan")
    sqnr = metrics.sqnr_db(values, match.values) if same else -np.inf
    return Divergence(
        tensor, node.op_type, match.op or "nothing of this size", module_path(node),
        float(cosine), float(sqnr), limit, f"{name} on ONNX Runtime",
    )  # fmt: skip
