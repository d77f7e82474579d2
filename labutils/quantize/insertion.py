"""QuantizeLinear and DequantizeLinear where a recipe wants them, and legal for QNN.

A node computes at one width: all tensors that it reads and writes have its bits. Where a tensor
goes from a node of one width to a node of another it is converted (Q, DQ, Q, DQ), which QNN makes
one Convert of. ONNX Runtime's own `add_qtype_converts` starts from tensors instead and asks
the same of the nodes around them; both want every node named.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LabError, ModelFileError, UsageError
from ..onnxfile.edit import producers, readers
from . import flat_ends, name_clashes
from .carriers import CARRIERS, NORMALIZATION, weight_axis
from .ranges import Ranges
from .recipe import Recipe
from .weight_scales import LEAST_RANGE, channel_scales, scale_rows

if TYPE_CHECKING:
    import onnx


Overrides = dict[str, list[dict[str, Any]]]
"""Tensor -> type, scale and zero point, once or per channel, as ONNX Runtime takes them."""


@dataclass(frozen=True)
class Inserted:
    """A QDQ model and the float model that it was made of, under names that do not clash.

    Attributes
    ----------
    quantized, floating
        The two, with the same names for the same tensors and nodes of the network.
    tensors, nodes
        Name in the user's network -> neutral name, of those that stood in the quantizer's way.
    """

    quantized: onnx.ModelProto
    floating: onnx.ModelProto
    tensors: dict[str, str]
    nodes: dict[str, str]

    def restored(self) -> onnx.ModelProto:
        """Return the QDQ model under the network's own names; `quantized` is used up."""
        name_clashes.restore_(self.quantized, self.tensors, self.nodes)
        return self.quantized


def insert(
    model: onnx.ModelProto, recipe: Recipe, ranges: Ranges, keep_rectifiers: bool = False
) -> Inserted:
    """Put QuantizeLinear and DequantizeLinear around what the recipe quantizes.

    `model` is used up. A Relu or Clip is removed, its work left to the range of its output, unless
    `keep_rectifiers`.

    ``quantize_static`` would do the same after raising a16w8's opset to 21; with the Q and DQ of
    com.microsoft, which the QNN settings choose below 21 anyway, the model's opset serves.
    """
    from onnx.helper import set_model_props
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    activation = quant_type(recipe.activations.bits, signed=False)
    weight = quant_type(recipe.weights.bits, signed=True)
    exclude = [node.name for node in model.graph.node if recipe.excluded(node.name)]
    limits = limits_by_bits(recipe, ranges, model)
    overrides = _activations(model, recipe, ranges, limits, exclude)
    special, usual = _weights(model, recipe, exclude)
    overrides |= special | _factors(model, recipe, exclude)
    default = limits[recipe.activations.bits]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    data = {k: tuple(np.array([v], np.float32) for v in pair) for k, pair in default.items()}
    tensors, nodes = name_clashes.clashes(model)
    name_clashes.rename_(model, tensors, nodes)
    floating = type(model)()
    floating.CopyFrom(model)
    for entry in (entry for entries in overrides.values() for entry in entries):
        if "convert" in entry:
            readers_ = entry["convert"]["recv_nodes"]
            entry["convert"]["recv_nodes"] = {nodes.get(name, name) for name in readers_}
    data = {tensors.get(name, name): pair for name, pair in data.items()}
    overrides = {tensors.get(name, name): entry for name, entry in overrides.items()}
    exclude = [nodes.get(name, name) for name in exclude]
    with no_log():
        settings = get_qnn_qdq_config(
            model, None, activation_type=activation, weight_type=weight,
            per_channel=recipe.weights.per_channel, nodes_to_exclude=exclude,
            init_overrides=overrides or None, add_qtype_converts=False,
            activation_symmetric=recipe.activations.symmetric,
            weight_symmetric=recipe.weights.symmetric, keep_removable_activations=keep_rectifiers,
        )  # fmt: skip
        usual = {tensors.get(name, name): entries for name, entries in usual.items()}
        asked = settings.extra_options["TensorQuantOverrides"]
        settings.extra_options["TensorQuantOverrides"] = usual | asked
        quantizer = QDQQuantizer(
            model, recipe.weights.per_channel, False, weight, activation,
            TensorsData(CalibrationMethod.MinMax, data), [], exclude,
            sorted(settings.op_types_to_quantize), settings.extra_options,
        )  # fmt: skip
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    result = quantizer.model.model
    set_model_props(result, properties)  # the source's own, without the quantizer's mark
    return Inserted(result, floating, tensors, nodes)


def quant_type(bits: int, signed: bool) -> Any:
    """Return ONNX Runtime's type of integers with that many bits."""
    from onnxruntime.quantization import QuantType

    return QuantType[f"Q{'' if signed else 'U'}Int{bits}"]


def widths(model: onnx.ModelProto, recipe: Recipe) -> dict[str, int]:
    """Return the bits at which each node computes, by name."""
    default = recipe.activations.bits
    return {
        node.name: recipe.setting(node.name, node.op_type, "activations") or default
        for node in model.graph.node
    }


def refuse_dilated_pools(model: onnx.ModelProto, recipe: Recipe, name: str) -> None:
    """Refuse an average over dilated windows in 8 bits, which ONNX Runtime does not run.

    Raises
    ------
    ModelFileError
        The message names the node. ONNX Runtime fuses it with the Q and DQ nodes around it into
        its QLinearAveragePool, which has no dilations, and then does not load the file.
    """
    width = widths(model, recipe)
    for node in model.graph.node:
        dilated = any(a.name == "dilations" for a in node.attribute)
        if node.op_type == "AveragePool" and dilated and width[node.name] == 8:
            raise ModelFileError(
                f"{name} cannot be quantized to 8 bits: AveragePool '{node.name}' has dilations, "
                "which the integer pooling of ONNX Runtime has not, so the result would not load. "
                "Write it as a depthwise Conv, export the network at opset 17 without them, or use "
                "the recipe a16w8."
            )


def limits_by_bits(
    recipe: Recipe, ranges: Ranges, model: onnx.ModelProto
) -> dict[int, dict[str, tuple[float, float]]]:
    """Return (low, high) per tensor for 8 and for 16 bits.

    Sixteen bits reach over the outliers: where only some nodes have them, their ranges are those
    of all images. They reach over the recipe's room, too, but at a Clip: there the quantizer takes
    the Clip out, and leaves its work to the end of the range.
    """
    import dataclasses

    default, found = recipe.activations.bits, {}
    for bits in (8, 16):
        calibration = recipe.calibration
        if bits > default:
            calibration = dataclasses.replace(
                calibration, method="minmax", outliers=0.0, vector_outliers=None
            )
        found[bits] = ranges.chosen(calibration, bits)
    return _with_own_ranges(found, recipe, model)


def _with_own_ranges(
    found: dict[int, dict[str, tuple[float, float]]], recipe: Recipe, model: onnx.ModelProto
) -> dict[int, dict[str, tuple[float, float]]]:
    """Return limits by bits with the recipe's room and flat ends, and with ranges that it fixes."""
    found = found | {16: _with_room(found[16], recipe, model)}
    if recipe.flat_ends:
        flat = flat_ends.flat_ends(model)
        found = {bits: _within(limits, flat) for bits, limits in found.items()}
    maker = producers(model.graph.node)
    for bits, limits in found.items():
        # a fixed range of 4 with steps of a power of two is -4 to 4 less one step, not -8 to 8
        share = 1 - 2.0**-bits if recipe.activations.power_of_two else 1.0
        for name, (low, high) in limits.items():
            node, every = maker.get(name), recipe.activations.range
            ends = recipe.setting(node.name, node.op_type, "range") if node else None
            if ends is None and every is not None:
                ends = (every[0] if low < 0 else 0.0), (every[1] if high > 0 else 0.0)
            if ends is not None:
                limits[name] = share * ends[0], share * ends[1]
    return found


def refuse_idle_ranges(
    quantized: onnx.ModelProto, floating: onnx.ModelProto, recipe: Recipe
) -> None:
    """Refuse a recipe that fixes a range for nodes that write nothing which is rounded.

    Raises
    ------
    UsageError
        The message names the nodes that the recipe means.
    """
    rounded = {n.input[0] for n in quantized.graph.node if n.op_type == "QuantizeLinear"}
    pairs = [(n.name, n.op_type) for n in floating.graph.node if rounded & set(n.output)]
    for override in recipe.overrides:
        if override.range is not None and not any(override.matches(*pair) for pair in pairs):
            raise UsageError(override.idle_range())


def _within(
    limits: dict[str, tuple[float, float]], flat: dict[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Return ranges that end where all that reads a tensor is flat."""
    found = dict(limits)
    for name in limits.keys() & flat.keys():
        (low, high), (least, most) = limits[name], flat[name]
        found[name] = min(max(low, least), most), max(min(high, most), least)
    return found


def _with_room(
    limits: dict[str, tuple[float, float]], recipe: Recipe, model: onnx.ModelProto
) -> dict[str, tuple[float, float]]:
    room = recipe.calibration.room
    clipped = {out for node in model.graph.node if node.op_type == "Clip" for out in node.output}
    return {
        name: ends if name in clipped else (room * ends[0], room * ends[1])
        for name, ends in limits.items()
    }


def _activations(
    model: onnx.ModelProto,
    recipe: Recipe,
    ranges: Ranges,
    limits: dict[int, dict[str, tuple[float, float]]],
    exclude: Sequence[str],
) -> Overrides:
    """Return what differs from the default, tensor by tensor, as ONNX Runtime wants it."""
    import dataclasses

    width = widths(model, recipe)
    producer = producers(model.graph.node)
    read_by = readers(node for node in model.graph.node if node.name not in exclude)
    found = {}
    there = producer.keys() | {entry.name for entry in model.graph.input}
    for name in [name for name in ranges.tensors if name in there]:
        maker = producer.get(name)
        method = maker and recipe.setting(maker.name, maker.op_type, "method")
        own = limits
        if method:
            calibration = dataclasses.replace(recipe.calibration, method=method)
            own = {bits: ranges.chosen(calibration, bits) for bits in limits}
            own = _with_own_ranges(own, recipe, model)
        behind = [reader.name for reader in read_by.get(name, [])]
        asked = [width[reader] for reader in behind]
        within = maker.name if maker is not None and maker.name not in exclude else None
        bits = width[within] if within is not None else max(asked, default=recipe.activations.bits)
        entry = _scaled(recipe, own[bits][name], bits, forced=bool(method))
        others = {reader for reader in behind if width[reader] != bits}
        if others:
            other = next(iter(width[r] for r in others))
            entry["quant_type"] = quant_type(bits, signed=False)
            entry["convert"] = {
                **_scaled(recipe, own[other][name], other, forced=True), "recv_nodes": others,
            }  # fmt: skip
        if entry:
            found[name] = [entry]
    return found


def _scaled(recipe: Recipe, limits: tuple[float, float], bits: int, forced: bool) -> dict[str, Any]:
    """Return type, scale and zero point; nothing where the default gives the same."""
    settings = recipe.activations
    if not forced and bits == settings.bits and not settings.power_of_two:
        return {}
    scale, zero = scale_of(limits, bits, settings.symmetric, settings.power_of_two)
    kind = np.uint8 if bits == 8 else np.uint16
    return {
        "quant_type": quant_type(bits, signed=False),
        "scale": np.array(scale, np.float32),
        "zero_point": np.array(zero, kind),
    }


def scale_of(
    limits: tuple[float, float], bits: int, symmetric: bool, power_of_two: bool
) -> tuple[float, int]:
    """Return scale and zero point of unsigned codes for a range, which 0 belongs to."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    high = max(high, low + LEAST_RANGE)
    if symmetric:
        high = max(-low, high)
        low = -high
    scale = (high - low) / (2**bits - 1)
    if power_of_two:
        scale = 2.0 ** math.ceil(math.log2(scale) - 1e-4)  # as training, in float32
    return scale, 2 ** (bits - 1) if symmetric else round(-low / scale)


def _weights(
    model: onnx.ModelProto, recipe: Recipe, exclude: Sequence[str]
) -> tuple[Overrides, Overrides]:
    """Return type, scales and zero points of weights: a recipe's own, and the usual ones.

    ONNX Runtime would choose the usual ones itself, channel by channel in Python, which is most
    of its work.
    """
    from onnx import numpy_helper

    values = {tensor.name: tensor for tensor in model.graph.initializer}
    settings = recipe.weights
    special: Overrides = {}
    usual: Overrides = {}
    for node in model.graph.node:
        name = node.input[1] if node.op_type in CARRIERS and len(node.input) > 1 else ""
        if name not in values or node.name in exclude:
            continue
        asked = ("weights", "per_channel", "weight_range")
        said = {what: recipe.setting(node.name, node.op_type, what) for what in asked}
        grouped = node.op_type == "ConvTranspose" and weight_axis(node) is None
        own = settings.mse or settings.power_of_two or settings.bits < 8 or grouped
        own = own or settings.limit is not None or any(v is not None for v in said.values())
        bits = said["weights"] or settings.bits
        channels = settings.per_channel if said["per_channel"] is None else said["per_channel"]
        axis = weight_axis(node) if channels else None
        array = numpy_helper.to_array(values[name])
        kind = {"quant_type": quant_type(bits, signed=True)}
        kind |= {} if axis is None else {"axis": axis}
        codes = np.int16 if bits == 16 else np.int8
        if own:
            special[name] = [
                {**kind, "scale": np.array(scale, np.float32), "zero_point": np.array(zero, codes)}
                for scale, zero in scale_rows(recipe, array, bits, axis, said["weight_range"])
            ]
        elif axis is not None and settings.symmetric and array.size:
            zero = np.zeros((), codes)
            scales = channel_scales(array, axis, bits)
            entries = [{**kind, "scale": np.array(s), "zero_point": zero} for s in scales]
            usual.setdefault(name, entries)
    return special, {name: rows for name, rows in usual.items() if name not in special}


def _factors(model: onnx.ModelProto, recipe: Recipe, exclude: Sequence[str]) -> Overrides:
    """Return type, scale and zero point of what a layer normalization multiplies by."""
    from onnx import numpy_helper

    values = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type != NORMALIZATION or node.name in exclude or node.input[1] not in values:
            continue
        array = numpy_helper.to_array(values[node.input[1]])
        ends = float(array.min()), float(array.max())
        scale, zero = scale_of(ends, 8, symmetric=False, power_of_two=recipe.weights.power_of_two)
        kinds = {"scale": np.array(scale, np.float32), "zero_point": np.array(zero, np.uint8)}
        found[node.input[1]] = [{"quant_type": quant_type(8, signed=False), **kinds}]
    return found


@contextlib.contextmanager
def no_log() -> Iterator[None]:
    """Keep ONNX Runtime's advice, which it gives to the root logger, off the screen."""
    root, level = logging.getLogger(), logging.root.manager.disable
    silent = logging.NullHandler()  # without a handler the first warning would install one
    root.addHandler(silent)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        root.removeHandler(silent)


def verify(
    model: onnx.ModelProto, name: str, exclude: Sequence[str]
) -> tuple[Counter, tuple[str, ...]]:
    """Return the quantized nodes by operator, and those left in float; refuse a float Conv."""
    from onnx import TensorProto

    maker = {name: node.op_type for name, node in producers(model.graph.node).items()}
    # axes, shapes and pads are 64-bit integers and stay what they are
    whole = {t.name for t in model.graph.initializer if t.data_type == TensorProto.INT64}
    whole |= {out for out, op_type in maker.items() if op_type == "Constant"}
    read_by = readers(model.graph.node)
    touched: Counter[str] = Counter()
    left = []
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant"):
            continue
        inputs = [i for i in node.input if i and i not in whole]
        before = all(maker.get(i) == "DequantizeLinear" for i in inputs)
        behind = [[n.op_type for n in read_by.get(out, ())] or [""] for out in node.output]
        after = {op for ops in behind for op in ops} <= {"QuantizeLinear"}
        if node.name in exclude:
            continue
        if before and after:
            touched[node.op_type] += 1
        elif node.op_type in CARRIERS:
            raise LabError(
                f"{name}: {node.op_type} '{node.name}' was not quantized, so it would run in "
                "float. Exclude it by name if that is intended."
            )
        else:
            left.append(node.name)
    return touched, tuple(left)
