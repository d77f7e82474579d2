"""Adaptive rounding: weights rounded for what their layer computes.

Layer by layer, in topological order, on what reaches the layer in the quantized network so far.
Nearest rounding makes the least error in the weights, not in the output. With H the second moments
of the layer's inputs, the error of rounding one weight is spread over the weights not yet rounded,
so that the output changes least: the layer-wise objective of AdaRound (Nagel et al. 2020, arXiv
2004.10568), solved column by column in closed form as GPTQ does (Frantar et al. 2022, arXiv
2210.17323). What is aimed at is what the layer gives in the *float* network: before they are
rounded, weights are fitted (ridge regression) to take back what earlier layers did to the input, as
in GPTAQ (Li et al. 2025, arXiv 2504.02692). It needs no gradient and no learning rate.

Libraries that were looked at in November 2026, and why none is used: aimet-onnx 2.42 has AdaRound
on its own simulation (x86-64 Linux only); amd-quark 0.13 has it on
QDQ, and wants onnx 1.22 and ONNX Runtime 1.28 at most; neural-compressor 3.10 has dropped ONNX, its
offspring onnx-neural-compressor 1.0 wants NumPy 1 and rounds matrix products only; ONNX Runtime
itself rounds to the nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .. import metrics
from ..onnxfile.edit import cut
from ..onnxfile.session import Session
from ..tracking import Progress, tracked
from .insertion import CARRIERS
from .recipe import Recipe
from .stored import Stored, stored_input

if TYPE_CHECKING:
    import onnx


_POSITIONS = 8192  # sampled output positions per layer
_DAMPING = 0.01  # of the mean second moment, as in GPTQ
_RIDGE = 0.3  # of the mean second moment, for the fit; more where positions are few:
_SHRUNK = 8  # times as much where there are as many positions as inputs
_JUDGED = 64  # images whose logits decide whether a change is kept; layers do not see them
_EVERY = 4  # of few images, as many are judged
_FEWEST = 64  # images per layer; late layers with few pixels take as many as there are


def round_(
    quantized: onnx.ModelProto,
    reference: onnx.ModelProto,
    images: np.ndarray,
    recipe: Recipe,
    progress: Progress | None = None,
) -> str:
    """Round the weights of a QDQ model adaptively, in place.

    Parameters
    ----------
    quantized
        The QDQ model; only stored integers change.
    reference
        The float model that it was made from, with the same node names.
    images
        (n, 3, size, size) float32 calibration images; 64 or more. Late layers want them all.
    recipe
        Says what stays in float.
    progress
        Called as ``progress(iterable, description)`` around the layers.

    Returns
    -------
    str
        What was done.
    """
    originals = {node.name: node for node in reference.graph.node}
    layers = [
        node for node in quantized.graph.node
        if node.op_type in CARRIERS[:3] and stored_input(quantized, node, 1) is not None
        and not recipe.excluded(node.name)
    ]  # fmt: skip
    every = max(_EVERY, len(images) // _JUDGED)
    judge = _Judge(quantized, reference, images[::every][:_JUDGED])
    others = np.delete(images, np.s_[::every], axis=0) if len(images) >= 2 * _EVERY else images
    changed, rounded = 0, 0
    for node in tracked(layers, "rounding", "layers", progress):
        layer = _layer(quantized, reference, node, originals[node.name], others)
        if moved := layer.round_():
            kept = judge.keeps(layer.weight)
            rounded, changed = rounded + kept, changed + kept * moved
    return (
        f"adaptive rounding moved {changed} weights of {rounded} layers; others were left where "
        f"the logits of {len(judge.images)} calibration images did not gain: together "
        f"{judge.first:.1f} -> {judge.best:.1f} dB (mean over images)"
    )


def _layer(
    quantized: onnx.ModelProto,
    reference: onnx.ModelProto,
    node: onnx.NodeProto,
    original: onnx.NodeProto,
    images: np.ndarray,
) -> _Layer:
    """Return a layer with what reaches it in the quantized network."""
    one = _values(reference, original.output[0], images[:1])
    few = images[: max(_FEWEST, -(-_POSITIONS * one.shape[1] // one.size))]
    inputs = _values(quantized, node.input[0], few)
    exact = _values(reference, original.input[0], few)
    return _Layer(quantized, reference, node, original, inputs, exact)


class _Judge:
    """Keeps a change when the logits gain by it: a layer nearer to its target may harm the rest."""

    def __init__(
        self, quantized: onnx.ModelProto, reference: onnx.ModelProto, images: np.ndarray
    ) -> None:
        self.quantized, self.output = quantized, quantized.graph.output[0].name
        self.images = images
        self.exact = _values(reference, reference.graph.output[0].name, self.images)
        self.first = self.best = self._sqnr()

    def _sqnr(self) -> float:
        found = _values(self.quantized, self.output, self.images)
        pairs = zip(self.exact, found, strict=True)
        return float(np.mean([metrics.sqnr_db(a, b) for a, b in pairs]))

    def keeps(self, changed: Stored) -> bool:
        """Return whether what was stored last is better; put the earlier codes back if not."""
        now = self._sqnr()
        if now > self.best:
            self.best = now
            return True
        changed.undo_()
        return False


class _Layer:
    """One carrier as a matrix product: (groups, positions, inputs) times (groups, inputs, outputs).

    Its weights are held as (groups, outputs, inputs); a position is one output pixel.
    """

    def __init__(
        self,
        quantized: onnx.ModelProto,
        reference: onnx.ModelProto,
        node: onnx.NodeProto,
        original: onnx.NodeProto,
        inputs: np.ndarray,
        exact: np.ndarray,
    ) -> None:
        weight = stored_input(quantized, node, 1)
        assert weight is not None  # `_carriers` took only nodes with stored weights
        self.weight = weight
        self.patches, self.image, self.fold = _unfolded(node, inputs, self.weight.codes)
        self.exact, _, _ = _unfolded(node, exact, self.weight.codes)
        stored = {t.name: t for t in reference.graph.initializer}
        from onnx import numpy_helper

        self.float = self.fold(numpy_helper.to_array(stored[original.input[1]]).astype(np.float64))

    def _scale(self) -> np.ndarray:
        groups, outputs, _ = self.float.shape
        scale = self.weight.scale.astype(np.float64)
        return scale.reshape(groups, outputs) if scale.size > 1 else np.full(
            (groups, outputs), float(scale)
        )  # fmt: skip

    def _zero(self) -> np.ndarray:
        groups, outputs, _ = self.float.shape
        return np.broadcast_to(self.weight.zero.astype(np.float64).reshape(
            (groups, outputs) if self.weight.zero.size > 1 else (1, 1)
        ), (groups, outputs))  # fmt: skip

    def round_(self) -> int:
        """Replace the codes; return how many changed."""
        old = self.fold(self.weight.codes.astype(np.float64))
        limits = _limits(self.weight.tensor)
        even = self._even()
        patches = self.patches * even
        weights = _fitted(self.float, patches, self.exact * even)
        codes = _rounded(weights, patches, self._scale(), self._zero(), limits)
        self._store_(codes)
        return int((codes != old).sum())

    def _even(self) -> np.ndarray:
        """Return factors of the patches that scale unusually strong images down: none decides."""
        count = np.bincount(self.image)
        power = np.bincount(self.image, (self.patches**2).mean(axis=(0, 2))) / np.maximum(count, 1)
        usual = np.median(power[count > 0])
        factors = np.sqrt(np.minimum(1.0, usual / np.maximum(power, 1e-30)))
        return factors[self.image][None, :, None]

    def _store_(self, codes: np.ndarray) -> None:
        self.weight.write_(self.fold(codes, back=True))


def _fitted(weights: np.ndarray, patches: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return weights that make of `patches` what the float weights make of `exact`.

    Both (groups, positions, inputs); constant shifts are left to the biases. The fewer positions
    for an input, the less is fitted.
    """
    _, positions, count = patches.shape
    centred = patches - patches.mean(axis=1, keepdims=True)
    change = exact - patches
    change -= change.mean(axis=1, keepdims=True)
    moments = centred.transpose(0, 2, 1) @ centred / positions
    mean = np.maximum(np.einsum("gii->gi", moments).mean(axis=1), 1e-12)[:, None]
    np.einsum("gii->gi", moments)[:] += _RIDGE * (1 + _SHRUNK * count / positions) * mean
    solved = np.linalg.solve(moments, centred.transpose(0, 2, 1) @ change / positions)
    return weights + weights @ solved.transpose(0, 2, 1)


def _rounded(
    weights: np.ndarray,
    patches: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    limits: tuple[int, int],
) -> np.ndarray:
    """Return codes (groups, outputs, inputs): each column rounded, its error given to the rest."""
    _, positions, count = patches.shape
    moments = patches.transpose(0, 2, 1) @ patches / positions
    diagonal = np.einsum("gii->gi", moments).copy()
    mean = np.maximum(diagonal.mean(axis=1), 1e-12)[:, None]
    few = min(1.0, count / positions)  # with fewer positions correlations are not known
    moments *= 1 - few * 0.99
    np.einsum("gii->gi", moments)[:] = diagonal + _DAMPING * mean + (diagonal <= 0) * mean
    upper = np.linalg.cholesky(np.linalg.inv(moments)).transpose(0, 2, 1)
    left, codes = weights.copy(), np.empty_like(weights)
    for column in range(count):
        exact = left[:, :, column] / scale + zero
        codes[:, :, column] = np.clip(np.round(exact), *limits)
        error = (exact - codes[:, :, column]) * scale / upper[:, None, column, column]
        left[:, :, column + 1 :] -= error[:, :, None] * upper[:, None, column, column + 1 :]
    return codes


def _limits(tensor: onnx.TensorProto) -> tuple[int, int]:
    from onnx import TensorProto

    kinds: dict[int, int] = {TensorProto.INT4: 4, TensorProto.INT8: 8, TensorProto.INT16: 16}
    bits = kinds[tensor.data_type]
    return -(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1


def _unfolded(
    node: onnx.NodeProto, inputs: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Callable]:
    """Return sampled patches, the image of each, and how weights fold to three axes."""
    attributes = {a.name: a for a in node.attribute}
    if node.op_type == "Gemm":
        transposed = "transB" in attributes and attributes["transB"].i == 1

        def fold(array: np.ndarray, back: bool = False) -> np.ndarray:
            if back:
                return array[0] if transposed else array[0].T
            return (array if transposed else array.T)[None]

        flat = inputs.reshape(len(inputs), -1).astype(np.float64)
        return flat[None], np.arange(len(flat)), fold
    groups = attributes["group"].i if "group" in attributes else 1
    shape = weights.shape

    def grouped(array: np.ndarray, back: bool = False) -> np.ndarray:
        return array.reshape(shape) if back else array.reshape(groups, shape[0] // groups, -1)

    kernel = shape[2:]
    pads = list(attributes["pads"].ints) if "pads" in attributes else [0] * 4
    strides = list(attributes["strides"].ints) if "strides" in attributes else [1, 1]
    steps = list(attributes["dilations"].ints) if "dilations" in attributes else [1, 1]
    padded = np.pad(inputs, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    spread = [(k - 1) * d + 1 for k, d in zip(kernel, steps, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, spread, (2, 3))
    view = view[:, :, :: strides[0], :: strides[1], :: steps[0], :: steps[1]]
    n, _, height, width = view.shape[:4]
    rng = np.random.default_rng(0)
    places = n * height * width
    chosen = rng.choice(places, min(places, _POSITIONS), replace=False)
    image, row, col = np.unravel_index(np.sort(chosen), (n, height, width))
    patches = view[image, :, row, col].reshape(len(image), groups, -1).transpose(1, 0, 2)
    return patches.astype(np.float64), image, grouped


def _values(model: onnx.ModelProto, name: str, images: np.ndarray) -> np.ndarray:
    """Return one tensor for all images, (n, ...), run by ONNX Runtime as the graph is written."""
    entry = model.graph.input[0].name
    if name == entry:
        return images
    session = Session(cut(model, [name]), threads=1)
    return np.concatenate([session.run({entry: image[None]})[0] for image in images])
