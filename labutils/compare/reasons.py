"""Why a quantized layer is noisy: figures of its tensors, and the sentences they allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import metrics
from ..onnxfile.edit import producers
from .layerwise import opened
from .qdq_edit import Unit

if TYPE_CHECKING:
    import onnx

_SAMPLES = 200_000  # values per tensor for quantiles


@dataclass(frozen=True)
class Facts:
    """What was measured on one layer; NaN where a figure has no meaning for it.

    Attributes
    ----------
    op
        The operator.
    low, high
        Range of its values in the images.
    code_low, code_high
        What its codes reach, from calibration.
    step, bits
        Of its codes.
    sqnr_db, cosine
        Of its float values after rounding to those codes.
    clipped
        Share of its values outside what the codes reach.
    codes
        Share of the codes that hold the middle 99.9 % of the values.
    channel, channel_ratio
        The widest channel and its reach (largest magnitude), against the median channel's.
    image_ratio
        The widest image's reach against the median image's.
    weights_db
        SQNR of its weights.
    weight_ratio
        Where all weights share one scale: the largest filter's reach against the median's.
    flat
        For HardSwish and HardSigmoid: share of the inputs where the output is flat.
    negative_codes
        For HardSwish: codes that serve its negative part, -0.375 to 0.
    gate
        Whether it belongs to a squeeze-excitation gate: one value scales a whole channel.
    depthwise
        Whether it is a depthwise convolution.
    """

    op: str
    low: float
    high: float
    code_low: float
    code_high: float
    step: float
    bits: int
    sqnr_db: float
    cosine: float
    clipped: float
    codes: float
    channel: int
    channel_ratio: float
    image_ratio: float
    weights_db: float
    weight_ratio: float
    flat: float
    negative_codes: float
    gate: bool
    depthwise: bool


def facts(
    reference: onnx.ModelProto,
    quantized: onnx.ModelProto,
    chosen: Sequence[Unit],
    inputs: np.ndarray,
) -> dict[str, Facts]:
    """Return the facts of each unit by its node's name.

    Parameters
    ----------
    reference, quantized
        The float model and the QDQ model.
    chosen
        Units of the QDQ model.
    inputs
        (n, 3, size, size) float32. One image's tensors are in memory at a time, and a sample.
    """
    made = producers(reference.graph.node)
    own = {node.name: node.output[0] for node in reference.graph.node}
    # an output of the graph is made under another name, since its Q and DQ come after it
    tensor_of = {u.name: u.tensor if u.tensor in made else own.get(u.name, "") for u in chosen}
    before = {
        u.name: made[tensor_of[u.name]].input[0]
        for u in chosen
        if u.op in ("HardSwish", "HardSigmoid") and tensor_of[u.name] in made
    }
    held = [n for n in {*tensor_of.values(), *before.values()} if n in made]
    sampled: dict[str, list[np.ndarray]] = {name: [] for name in held}
    reach: dict[str, list[np.ndarray]] = {name: [] for name in held}
    sizes: dict[str, tuple[int, ...]] = {}
    rng = np.random.default_rng(0)
    each = max(1, _SAMPLES // len(inputs))
    with opened(reference, held) as runner:
        for image in inputs:
            for name, values in runner.tensors(image[None]).items():
                flat = values.ravel()
                few = flat if flat.size <= each else flat[rng.integers(0, flat.size, each)]
                # the extremes belong to the sample: they are what clipping is about
                sampled[name].append(np.r_[few, flat.min(), flat.max()])
                reach[name].append(np.abs(values.reshape(values.shape[1], -1)).max(axis=1))
                sizes[name] = values.shape
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    scales = _scales(quantized, stored)
    found = {}
    for unit in chosen:
        tensor = tensor_of[unit.name]
        values = np.concatenate(sampled[tensor]) if tensor in sampled else inputs.ravel()
        wide = np.array(reach.get(tensor, [np.abs(inputs).max(axis=(0, 2, 3))]))
        entering = np.concatenate(sampled[before[unit.name]]) if unit.name in before else None
        shape = sizes.get(tensor, ())
        found[unit.name] = _facts(
            unit,
            values,
            wide,
            entering,
            shape,
            scales.get(unit.tensor),
            quantized,
            stored,
            reference,
        )
    return found


def _scales(model: onnx.ModelProto, stored: dict) -> dict[str, tuple[float, int, int]]:
    """Return (scale, zero point, bits) of the codes of each quantized tensor."""
    from onnx import numpy_helper

    found: dict[str, tuple[Any, Any, int]] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in stored:
            zero = numpy_helper.to_array(stored[node.input[2]])
            scale = numpy_helper.to_array(stored[node.input[1]])
            found.setdefault(
                node.input[0], (float(scale), int(zero), 16 if zero.dtype.itemsize == 2 else 8)
            )
    return found


def _facts(
    unit: Unit,
    values: np.ndarray,
    wide: np.ndarray,
    before: np.ndarray | None,
    shape: tuple[int, ...],
    codes: tuple[float, int, int] | None,
    quantized: onnx.ModelProto,
    stored: dict[str, onnx.TensorProto],
    reference: onnx.ModelProto,
) -> Facts:
    nan = float("nan")
    values = values.astype(np.float64)
    step, bits, sqnr, cosine, clipped, used, negative = nan, 0, nan, nan, nan, nan, nan
    reach = nan, nan
    if codes:
        step, zero, bits = codes
        exact = np.round(values / step) + zero
        most = 2**bits - 1
        reach = -zero * step, (most - zero) * step
        rounded = (np.clip(exact, 0, most) - zero) * step
        sqnr, cosine = metrics.sqnr_db(values, rounded), metrics.cosine(values, rounded)
        clipped = float(((exact < 0) | (exact > most)).mean())
        low, high = np.quantile(values, [0.0005, 0.9995])
        used = float(min(1.0, (high - low) / (step * most)))
        if unit.op == "HardSwish":
            negative = float(min(0.375 / step, zero)) + 1
    channels = wide.max(axis=0)
    median = float(np.median(channels))
    per_image = wide.max(axis=1)
    flat = nan if before is None else float(((before <= -3) | (before >= 3)).mean())
    if unit.op == "HardSwish" and before is not None:
        flat = float((before <= -3).mean())
    weights_db, ratio, depthwise = _weights(unit, quantized, stored, reference)
    small = len(shape) == 4 and shape[2:] == (1, 1)
    image_ratio = float(per_image.max() / max(np.median(per_image), 1e-12))
    channel_ratio = float(channels.max() / median) if median else nan
    gate = small and unit.op in ("Conv", "Relu", "HardSigmoid")
    return Facts(
        unit.op, float(values.min()), float(values.max()), *reach, step, bits,
        sqnr, cosine, clipped, used, int(channels.argmax()), channel_ratio, image_ratio,
        weights_db, ratio, flat, negative, gate, depthwise,
    )  # fmt: skip


def _weights(
    unit: Unit,
    quantized: onnx.ModelProto,
    stored: dict[str, onnx.TensorProto],
    reference: onnx.ModelProto,
) -> tuple[float, float, bool]:
    """Return SQNR of the weights, spread of the filters under one scale, and depthwise or not."""
    from onnx import numpy_helper

    nan = float("nan")
    original = next((n for n in reference.graph.node if n.name == unit.name), None)
    floats = {t.name: t for t in reference.graph.initializer}
    index = next((name for i, name in unit.constants if i == 1), None)
    if original is None or index is None or original.input[1] not in floats:
        return nan, nan, False
    maker = next(n for n in quantized.graph.node if index in n.output)
    array = numpy_helper.to_array(floats[original.input[1]]).astype(np.float64)
    codes = numpy_helper.to_array(stored[maker.input[0]]).astype(np.float64)
    scale = numpy_helper.to_array(stored[maker.input[1]]).astype(np.float64)
    zero = numpy_helper.to_array(stored[maker.input[2]]).astype(np.float64)
    axis = next((a.i for a in maker.attribute if a.name == "axis"), 0)
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]
    if scale.size > 1:
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    sqnr = metrics.sqnr_db(array, (codes - zero) * scale)
    group = next((a.i for a in original.attribute if a.name == "group"), 1)
    filters = np.abs(array.reshape(array.shape[0], -1)).max(axis=1)
    ratio = float(filters.max() / max(np.median(filters), 1e-12)) if scale.size == 1 else nan
    return sqnr, ratio, group > 1 and array.shape[1] == 1


def sentences(f: Facts) -> tuple[str, ...]:
    """Return what the figures say, the weightiest first; nothing is said without a figure."""
    said: list[tuple[float, str]] = []
    if f.codes < 0.5:
        why = (
            f"99.9 % of its values use {100 * f.codes:.2g} % of the codes, which reach from "
            f"{f.code_low:.3g} to {f.code_high:.3g} for a few"
        )
        said.append((1 / max(f.codes, 1e-3), why))
    if f.channel_ratio > 4:
        why = f"outlier channel {f.channel}: it reaches {f.channel_ratio:.0f} times the median one"
        said.append((f.channel_ratio / 2, why))
    if f.image_ratio > 2:
        why = f"outlier image: it reaches {f.image_ratio:.1f} times the median one"
        said.append((f.image_ratio, why))
    if f.clipped > 1e-3:
        said.append((f.clipped * 500, f"{100 * f.clipped:.2g} % of its values are clipped"))
    if f.op == "HardSwish" and f.flat > 0.3 and f.negative_codes < 16:
        why = (
            f"saturated hard-swish: {100 * f.flat:.0f} % of its inputs lie below -3, and its "
            f"negative part has {f.negative_codes:.0f} codes"
        )
        said.append((f.flat * 16 / f.negative_codes, why))
    if f.op == "HardSigmoid" and f.flat > 0.3:
        said.append((2 * f.flat, f"saturated gate: {100 * f.flat:.0f} % of its inputs are flat"))
    if f.gate:
        said.append((1.5, "SE gate: one rounded value scales a whole channel"))
    if f.weight_ratio > 3:
        kind = "depthwise, " if f.depthwise else ""
        why = (
            f"{kind}one scale for all filters: the largest reaches {f.weight_ratio:.0f} times "
            "the median one"
        )
        said.append((f.weight_ratio, why))
    if f.weights_db < f.sqnr_db - 3:
        said.append((1.0, f"its weights ({f.weights_db:.0f} dB) are noisier than its values"))
    if f.op == "Add":
        said.append((0.5, "residual sum: its noise reaches every later block unfiltered"))
    return tuple(why for _, why in sorted(said, key=lambda pair: -pair[0]))
