"""Static quantization after training: a float ONNX file to QDQ, with ONNX Runtime's QNN settings.

Calibration keeps the least and greatest value of every tensor *per image*. The range of a tensor
then comes from all images but the few most extreme ones: a few loud images can widen the last
blocks of a MobileNetV3-Large many times, and eight bits cannot pay for that. Points of top-1
that int8 files of the shipped Marked Things network lose on ONNX Runtime, and the SQNR of their
logits (``benchmarks/calibration.py``: 1,000 calibration images, 20,000 test images), with nothing
else done, and within the preset ``int8``:

=======================  ==================  ==================
ranges from              alone               within int8
=======================  ==================  ==================
all images (min-max)     -76.11 (0.4 dB)     -78.48 (0.1 dB)
without 1 % on a side    -7.28 (6.9 dB)      -1.18 (7.5 dB)
without 5 % on a side    -4.36 (7.0 dB)      -0.24 (9.0 dB)
=======================  ==================  ==================

Sixteen bits reach over the outliers, so a16w8 takes plain min-max (40.5 dB on 1,600 images,
``benchmarks/quantization.py``).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import paths, typesetting
from ..errors import UsageError
from ..images.data import ImageSet, Preprocessing
from ..onnxfile import training_mode
from ..onnxfile.canonical_form import is_canonical
from ..onnxfile.edit import producers, rename_tensors_
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import opset, serialized
from ..onnxfile.wall import naming, wall
from ..tracking import Progress
from . import bias_correction, equalize, gates, presets, rounding
from .float_function import MOST_IMAGES, FloatFunction, compare_functions, unrectified
from .insertion import (
    Inserted,
    insert,
    refuse_dilated_pools,
    refuse_idle_ranges,
    verify,
    widths,
)
from .node_exceptions import adapted, check_names
from .prepare import prepared
from .ranges import Ranges, checked_inputs, gate_factors, measure_ranges
from .recipe import Recipe

if TYPE_CHECKING:
    import onnx


def quantization_facts(recipe: Recipe, images: int) -> dict[str, Any]:
    """Return what tells two quantizations of one network apart, for a manifest.

    Parameters
    ----------
    recipe
        Its name, its hash, and all its values with their format: a default that changes later must
        not change what the manifest says.
    images
        How many calibrated.
    """
    return {
        "recipe": recipe.name,
        "recipe_sha256": recipe.sha256,
        "calibration": images,
        "quantization": recipe.to_dict(),
    }


@dataclass(frozen=True, repr=False)
class QuantizeReport(typesetting.Shown):
    """What was quantized, and how.

    Attributes
    ----------
    source, file
        The float file and the QDQ file.
    recipe
        What was asked for; the report's `per_channel` and `outliers` are its.
    images
        Number of calibration images.
    quantized
        Nodes that compute on quantized tensors, by operator.
    left
        Names of nodes that stayed in float.
    excluded
        Names of nodes that the caller excluded.
    bytes_before, bytes_after
        File sizes.
    opset
        Read back from the file; the same as the source's, or 13 where that is older.
    wide
        Nodes that compute on 16-bit activations, where others compute on 8.
    repairs
        What was done to the network, its weights and its biases, one sentence each.
    function
        How what the file computes without its rounding compares with the source. It was compared
        before what changes the function on purpose: adaptive rounding, corrected biases.
    """

    source: Path
    file: Path
    recipe: Recipe
    images: int
    quantized: Counter
    left: tuple[str, ...]
    excluded: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    opset: int
    wide: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    function: FloatFunction | None = None

    @property
    def per_channel(self) -> bool:
        """Whether weights have a scale per output channel."""
        return self.recipe.weights.per_channel

    @property
    def outliers(self) -> float:
        """Share of the calibration images that a range could leave out."""
        return self.recipe.calibration.outliers

    def facts(self) -> dict[str, Any]:
        """Return what a manifest says of the quantization: recipe, how many images, opset."""
        facts = quantization_facts(self.recipe, self.images) | {"opset": self.opset}
        return facts | ({"function": self.function.to_dict()} if self.function else {})

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {
            "source": str(self.source), "file": str(self.file), "recipe": self.recipe.to_dict(),
            "images": self.images, "quantized": dict(self.quantized), "left": list(self.left),
            "excluded": list(self.excluded), "wide": list(self.wide),
            "repairs": list(self.repairs), "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after, "opset": self.opset,
            "function": self.function and self.function.to_dict(),
        }  # fmt: skip

    def _parts(self) -> tuple[str, list[tuple[str, str]]]:
        weights, calibration = self.recipe.weights, self.recipe.calibration
        symmetry = "symmetric" if weights.symmetric else "asymmetric"
        out = f"{100 * self.outliers:g} % of them left out on either side"
        share = calibration.vector_outliers
        vectors = "" if share is None else f" ({100 * share:g} % for vectors)"
        method = {
            "minmax": f"min-max over {self.images} calibration images"
            + (f", {out}{vectors}" if self.outliers else ""),
            "percentile": f"{calibration.percentile:g} % of the values of {self.images} images",
            "mse": f"least squared error on {self.images} calibration images",
            "entropy": f"least divergence on {self.images} calibration images",
        }[calibration.method]
        nodes = ", ".join(f"{count} {op}" for op, count in self.quantized.most_common())
        sizes = f"{self.bytes_before / 1e6:.2f} -> {self.bytes_after / 1e6:.2f} MB"
        grain = "per channel" if weights.per_channel else "per tensor"
        scales = ", power-of-two scales" if weights.power_of_two else ""
        rows = [
            ("weights", f"int{weights.bits}, {symmetry}, {grain}{scales}"),
            ("ranges", method),
            ("quantized", f"{sum(self.quantized.values())} nodes: {nodes}"),
            ("16 bits", _listed(self.wide) if self.wide else ""),
            ("repairs", "; ".join(self.repairs)),
            ("function", str(self.function) if self.function else ""),
            ("in float", _listed(self.left)),
            ("excluded", _listed(self.excluded)),
            ("size", f"{sizes}, opset {self.opset}"),
        ]
        title = f"Quantized {self.source.name} to {self.recipe.name}: {self.file.name}"
        return title, [(name, value) for name, value in rows if value]

    def __str__(self) -> str:
        title, rows = self._parts()
        return "\n".join([title, *(f"  {name:<9}  {value}" for name, value in rows)])

    def _repr_html_(self) -> str:
        title, rows = self._parts()
        return typesetting.table((), rows, title, named=True)


def static(
    source: OnnxFile | str | Path,
    destination: str | Path,
    calibration: np.ndarray | ImageSet | Ranges,
    recipe: str | Path | Recipe = "int8",
    *,
    preprocessing: Preprocessing | None = None,
    outliers: float | None = None,
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> QuantizeReport:
    """Quantize a float ONNX file to QDQ, deterministically and without a byte of output.

    Parameters
    ----------
    source
        A float ONNX file with batch 1, from either of torch's exporters. It is not simplified
        first: ONNX Runtime's ``quant_pre_process`` takes HardSwish apart.
    destination
        Where the QDQ file goes; it appears at once, or not at all.
    calibration
        (n, 3, size, size) float32, normalized; or an `ImageSet` with `preprocessing`; or the
        `Ranges` of an earlier call of `measure_ranges` on the same file (not for recipes that
        change the weights: those need images). 128 images or more, never those that accuracy is
        measured on.
    recipe
        A preset's name (``"int8"``, ``"a16w8"``, ``"w4a8"``, ...), a YAML file, or a
        `Recipe`.
    preprocessing
        What turns an `ImageSet` into inputs.
    outliers
        Instead of what the recipe says; see `Calibration`.
    exclude
        Names of nodes that stay in float, besides the recipe's.
    progress
        Called as ``progress(iterable, description)`` around the calibration batches.

    Raises
    ------
    ModelFileError
        The source is missing, quantized already, of a dynamic shape, or has NaN weights.
    UsageError
        No calibration images, NaN in them, or of a shape that the model does not take; a recipe
        that is malformed or needs images where ranges were given.
    UnknownNameError
        `recipe`, a node in `exclude`, or a recipe's exception that fits no node.
    LabError
        The result has a convolution or matrix product that is not quantized.

    Examples
    --------
    >>> import numpy as np
    >>> from labutils import export, quantize
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Hardswish(), nn.Flatten())
    >>> _ = export.to_onnx(net, "net.onnx", size=32)
    >>> images = np.random.default_rng(0).standard_normal((128, 3, 32, 32), np.float32)
    >>> report = quantize.static("net.onnx", "net.int8.onnx", images, "int8")
    >>> dict(report.quantized), report.left
    ({'Conv': 1, 'HardSwish': 1, 'Flatten': 1}, ())
    """
    source, destination = OnnxFile.of(source), Path(destination)
    recipe = adapted(presets.load(recipe), outliers, exclude)
    if getattr(recipe, "qat", None) is not None:
        raise UsageError(
            f"Recipe {recipe.name} is for training (qat): static() rounds a finished model. Use "
            "quantize.qat, or the recipe without its qat part."
        )
    repairs: list[str] = []
    model = prepared(source, repairs)
    if recipe.equalize:
        repairs.append(str(equalize.equalize_(model)))
    _refuse_alien(model, calibration, source)
    plain = model
    if factors := gate_factors(model, calibration, recipe, preprocessing):
        plain = _copy(model)
        repairs.append(gates.equalize_(model, factors))
        gates.pad_wide_(model, widths(model, recipe))
    check_names(model, recipe, source, exclude)
    refuse_dilated_pools(model, recipe, source.name)
    with naming(source.name, draft="part.onnx"):
        ranges = _ranges(plain, calibration, recipe, preprocessing, progress, source)
    float_model = _copy(model)
    inserted = _inserted(model, float_model, recipe, ranges, source.name)
    function = _compare(inserted, source, ranges, recipe, destination.name)
    changed = _reconstruct_(inserted, ranges, recipe, calibration, preprocessing, progress)
    if changed:
        function = dataclasses.replace(function, on_purpose=tuple(changed))
        repairs += changed
    quantized = inserted.restored()
    refuse_idle_ranges(quantized, float_model, recipe)
    excluded = [n.name for n in float_model.graph.node if recipe.excluded(n.name)]
    touched, left = verify(quantized, destination.name, excluded)
    _integer_ends_(quantized, recipe)
    with paths.atomic(destination) as temporary:
        temporary.write_bytes(serialized(quantized, destination.name))
    width = widths(float_model, recipe)
    wide = [name for name, bits in width.items() if bits == 16 and recipe.activations.bits == 8]
    return QuantizeReport(
        source.path, destination, recipe, len(ranges.low), touched, left, tuple(excluded),
        source.path.stat().st_size, destination.stat().st_size, opset(quantized), tuple(wide),
        tuple(repairs), function,
    )  # fmt: skip


def _reconstruct_(
    inserted: Inserted,
    ranges: Ranges,
    recipe: Recipe,
    calibration: np.ndarray | ImageSet | Ranges,
    preprocessing: Preprocessing | None,
    progress: Progress | None,
) -> list[str]:
    """Round weights and correct biases where the recipe says so; return a sentence for each."""
    pair, changed = (inserted.quantized, inserted.floating), []
    if recipe.rounding != "nearest":
        images = _images(calibration, inserted.floating, preprocessing, recipe)
        changed.append(rounding.round_(*pair, images, recipe, progress))
    if recipe.correct_bias and not len(ranges.examples):
        raise UsageError(f"Recipe {recipe.name} corrects biases: its ranges need `examples`.")
    if recipe.correct_bias:
        changed.append(bias_correction.correct_(*pair, ranges.examples, progress))
    return changed


def _inserted(
    model: onnx.ModelProto, floating: onnx.ModelProto, recipe: Recipe, ranges: Ranges, name: str
) -> Inserted:
    """Return the model with Q and DQ; `model` is used up, `floating` is a copy of it."""
    advice = "Exclude that node by name in the recipe, or export the network in another form."
    with wall("ONNX Runtime's quantizer cannot take", name, model=floating, advice=advice):
        inserted = insert(model, recipe, ranges)
        if unrectified(inserted.quantized, inserted.floating):  # no range does the work of a Clip
            inserted = insert(_copy(floating), recipe, ranges, keep_rectifiers=True)
    return inserted


def _refuse_alien(model: onnx.ModelProto, calibration: Any, source: OnnxFile) -> None:
    """Refuse ranges of another network."""
    if isinstance(calibration, Ranges) and producers(model.graph.node).keys().isdisjoint(
        calibration.tensors
    ):
        raise UsageError(f"These ranges were measured on another model than {source.name}.")


def _ranges(
    model: onnx.ModelProto,
    calibration: np.ndarray | ImageSet | Ranges,
    recipe: Recipe,
    preprocessing: Preprocessing | None,
    progress: Progress | None,
    source: OnnxFile,
) -> Ranges:
    methods = {recipe.calibration.method, *(o.method for o in recipe.overrides if o.method)}
    if not isinstance(calibration, Ranges):
        counted = methods != {"minmax"}
        apart = recipe.equalize_gates
        return measure_ranges(model, calibration, preprocessing, progress, counted, apart)
    if recipe.equalize:
        raise UsageError("A recipe that equalizes weights needs calibration images, not ranges.")
    return calibration


def _compare(
    inserted: Inserted, source: OnnxFile, ranges: Ranges, recipe: Recipe, name: str
) -> FloatFunction:
    """Compare the function without rounding with the source's, on images where some are known."""
    images, drawn = ranges.examples[:MOST_IMAGES], not len(ranges.examples)
    if drawn:
        graph = inserted.floating.graph
        shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
        size = (MOST_IMAGES, *shape[1:])
        images = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    widths_ = {recipe.weights.bits, *(o.weights for o in recipe.overrides if o.weights)}
    clips = recipe.weights.mse or min(widths_) < 8 or recipe.weights.limit is not None
    clips = clips or any(o.weight_range is not None for o in recipe.overrides)
    reference = _with_computed_outputs(source)
    # half precision rounds itself, by more than is allowed here; see `models.adapt` for the other
    if _has_another_precision(source) or training_mode.training(source.proto):
        reference = prepared(source)
    return compare_functions(
        inserted.quantized, inserted.floating, reference, images, name, drawn, clips
    )


def _with_computed_outputs(source: OnnxFile) -> onnx.ModelProto:
    """Return the source without the outputs that nothing computes: they were left out."""
    if is_canonical(source.proto):
        return source.whole
    names = {output.name for output in prepared(source).graph.output}
    kept = [output for output in source.whole.graph.output if output.name in names]
    made = source.copy()
    del made.graph.output[:]
    made.graph.output.extend(kept)
    return made


def _has_another_precision(source: OnnxFile) -> bool:
    from onnx import TensorProto

    values = source.shaped.graph.value_info
    # ONNX Runtime has no convolution in float64
    others = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    return any(value.type.tensor_type.elem_type in others for value in values)


def _images(
    calibration: np.ndarray | ImageSet | Ranges,
    model: onnx.ModelProto,
    preprocessing: Preprocessing | None,
    recipe: Recipe,
) -> np.ndarray:
    if isinstance(calibration, Ranges):
        raise UsageError(
            f"Recipe {recipe.name} works on images (weights, biases); it was given ranges."
        )
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    return checked_inputs(calibration, 0, preprocessing, shape, recipe.calibration.images)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = type(model)()
    copied.CopyFrom(model)
    return copied


def _integer_ends_(model: onnx.ModelProto, recipe: Recipe) -> None:
    """Take the outermost Q or DQ away where the recipe wants the integers themselves."""
    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    for wanted, entries, op, side in (
        (recipe.input, graph.input, "QuantizeLinear", "input"),
        (recipe.output, graph.output, "DequantizeLinear", "output"),
    ):
        if wanted == "float32":
            continue
        for entry in entries:
            node = next(n for n in graph.node if n.op_type == op and entry.name in getattr(n, side))
            inner = node.output[0] if side == "input" else node.input[0]
            entry.type.tensor_type.elem_type = values[node.input[2]].data_type
            graph.node.remove(node)
            rename_tensors_(graph, {inner: entry.name})


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "none"
