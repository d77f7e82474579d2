"""From any zoo model to a verified ``.tflite``: repair where asked, convert, quantize, compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import litert, manifests, paths, quantize
from ..errors import UsageError
from ..images import data
from ..models import zoo
from ..onnxfile.file import OnnxFile
from ..quantize import litert_rules
from . import conversion, steps
from .planning import Repair
from .settings import Comparison, Listener, Preparation

TARGET = "litert"
_HANDING_ON = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Nodes that may vanish in a ``.tflite``, and nothing is lost with them."""
_FEW = 32  # images, for the few tensors whose ranges a QDQ file does not state


@dataclasses.dataclass(frozen=True)
class _Source:
    """What is handed to the converter, and an ONNX file of it, made when asked for.

    Attributes
    ----------
    network
        A PyTorch network.
    onnx
        Returns an ONNX file of what the user brought, where tensors are looked up.
    file
        The ONNX file that `network` was read from, whose nodes its modules are called after; None
        where the user brought it.
    fixed
        What a repair changed.
    rounded
        The QDQ file of a recipe that does more than choose ranges: `network` is what it rounds.
    """

    network: Any
    onnx: Callable[[], OnnxFile]
    file: OnnxFile | None = None
    fixed: Repair | None = None
    rounded: OnnxFile | None = None

    def nodes(self) -> list[litert_rules.Node]:
        """Return the nodes of an ONNX file, with the places that the converter writes."""
        steps_ = self.network.named_children() if self.file is not None else ()
        return [
            litert_rules.Node(step.call.node, step.call.op_type, place) for place, step in steps_
        ]


def convert_to_litert(
    model: zoo.Model,
    destination: str | Path,
    preparation: Preparation | None = None,
    form: litert.Form | None = None,
    *,
    recipe: str | Path | None = None,
    comparison: Comparison | None = None,
    listener: Listener | None = None,
) -> litert.Conversion:
    """Take any zoo model to a verified ``.tflite``.

    Google's converter reads PyTorch: a model that has a module is converted from it, an ``.onnx``
    file from a PyTorch network of its nodes; so is what a repair made, and a model whose recipe has
    exceptions by node. Each is compared with what the user brought.

    Parameters
    ----------
    model
        From `zoo.load`, with the preprocessing of its inputs.
    destination
        The ``.tflite`` to write; nothing is written unless the gate passes.
    preparation
        Opset and repairs; without repairs the network is converted as it is.
    form
        Layout and precision; its quantization comes from `recipe`.
    recipe
        ``static``, ``dynamic``, ``weight_only`` or ``int16x8``, which are ai-edge-quantizer's own;
        or a preset of ours (``int8``, ``int8_trim``, ``a16w8``, ...) or a YAML file. None keeps
        floats.
    comparison
        For the gate; 32 Things-16 images by default.
    listener
        Follows the reports and the steps.

    Raises
    ------
    UsageError
        The model does not say how its input is made; a destination that is not a ``.tflite``.
    MissingToolError
        LiteRT's runtime or its converter is not here; the message says how to get it.
    TranslationError, ExportError, ConvertError, SurgeryError
        The network cannot be repaired, converted or quantized as asked.
    ParityError
        The file does not compute what `model` computes.
    """
    preparation, form = preparation or Preparation(), form or litert.Form()
    comparison, listener = comparison or Comparison(), listener or Listener()
    conversion.refuse_unprepared(model, TARGET, preparation)
    litert.require_tools()
    inputs = conversion.inputs_of(comparison, model)
    with paths.scratch() as folder:
        source = _source(model, folder, preparation, _names_nodes(recipe), listener)
        rounded = model.module is None and litert.is_rounded(source.onnx())
        if not rounded and (ours := _carried_as_qdq(recipe)):
            source = _rounded(model, source, ours, folder, comparison, listener)
        if rounded and recipe is not None:
            raise UsageError(
                f"{model.name} is quantized: leave out --quantize, and its own ranges are carried."
            )
        if recipe is not None or rounded:
            form = dataclasses.replace(
                form, quantization=_quantization(model, source, recipe, comparison, listener)
            )
        brought = model.module if model.module is not None else source.onnx()
        apart = conversion.measure_approximation(
            model, brought, source.fixed, inputs, listener.echo
        )
        judge = OnnxFile.of(source.fixed.file) if apart and source.fixed else brought
        batch = model.input_shape[0] if model.input_shape else 1
        with steps.connect(model, judge) as reference:
            gate = litert.Gate(
                reference, inputs, source.onnx, comparison.min_cosine, model.trained,
                rounded or source.rounded is not None,
            )  # fmt: skip
            made = litert.convert(
                source.network, destination, gate, dataclasses.replace(form, batch=batch),
                name=model.name, facts=_facts(model, source.fixed, apart), echo=listener.echo,
            )  # fmt: skip
    if source.fixed:
        paths.write_text(paths.edits_file(destination), source.fixed.edits.to_yaml())
        listener.echo(f"edits: {paths.edits_file(destination)}")
    return made


def _names_nodes(recipe: str | Path | None) -> bool:
    """Whether a recipe has exceptions by node: the network is converted node by node then."""
    if recipe is None or str(recipe) in litert.OWN:
        return False
    ours = quantize.load_recipe(recipe)
    return bool(ours.overrides or ours.exclude or _carried_as_qdq(ours))


def _carried_as_qdq(recipe: str | Path | quantize.Recipe | None) -> quantize.Recipe | None:
    """Return a recipe that changes weights or biases as well, where a QDQ file takes it there."""
    if recipe is None or str(recipe) in litert.OWN:
        return None
    ours = quantize.load_recipe(recipe)
    return ours if litert_rules.is_carried_as_qdq(ours) else None


def _rounded(
    model: zoo.Model,
    source: _Source,
    recipe: quantize.Recipe,
    folder: Path,
    comparison: Comparison,
    listener: Listener,
) -> _Source:
    """Quantize a network's ONNX file; return the network that its QDQ file rounds."""
    from ..litert import onnx_network

    assert source.file is not None
    images = _calibration(model, comparison, recipe.calibration.images, listener)
    listener.echo(f"quantizing by {recipe.name}, whose file is carried ...")
    place = folder / manifests.file_name(source.file.path.stem, "onnx", "rounded")
    quantize.static(source.file, place, images, recipe, progress=listener.progress)
    made = OnnxFile(place)
    return dataclasses.replace(source, network=onnx_network.read(made), file=made, rounded=made)


def _source(
    model: zoo.Model,
    folder: Path,
    preparation: Preparation,
    by_node: bool,
    listener: Listener,
) -> _Source:
    from ..litert import onnx_network

    def exported() -> OnnxFile:
        place = folder / manifests.file_name(model.name, "onnx", "original")
        if place.exists():
            return OnnxFile(place)
        return steps.as_onnx(model, place, preparation.opset)

    repairing = preparation.repair_for is not None or preparation.edits is not None
    if model.module is not None and not (repairing or by_node):
        return _Source(model.module, exported)
    original = exported()
    destination = folder / manifests.file_name(original.path.stem, "onnx", "repaired")
    fixed = steps.repair_file(original, destination, preparation, listener.echo)
    if fixed is None and model.module is not None and not by_node:  # nothing was to repair
        return _Source(model.module, exported)
    file = OnnxFile.of(fixed.onnx or fixed.file) if fixed else original
    return _Source(onnx_network.read(file), lambda: original, file, fixed)


def _quantization(
    model: zoo.Model,
    source: _Source,
    recipe: str | Path | None,
    comparison: Comparison,
    listener: Listener,
) -> litert.Quantization:
    if source.rounded is not None:
        ours, taken = quantize.load_recipe(str(recipe)), litert.take_apart(source.rounded)
        images = _calibration(model, comparison, _FEW, listener)
        carried = _stated(ours.name, taken, source.nodes(), images)
        facts = carried.facts | {"recipe": ours.to_dict()}
        return dataclasses.replace(carried, name=ours.name, facts=facts)
    if recipe is None:
        taken = litert.take_apart(source.onnx())
        images = _calibration(model, comparison, _FEW, listener)
        return _stated(model.name, taken, source.nodes(), images)
    if str(recipe) in ("dynamic", "weight_only"):
        return litert.plain(str(recipe), None)
    if str(recipe) in litert.OWN:
        images = _calibration(model, comparison, quantize.Calibration().images, listener)
        return litert.plain(str(recipe), images)
    ours = quantize.load_recipe(recipe)
    images = _calibration(model, comparison, ours.calibration.images, listener)
    nodes = source.nodes() if ours.overrides or ours.exclude else []
    carried = litert_rules.carried(ours, nodes, images)

    def is_named(node: litert_rules.Node) -> bool:
        fits = (override.matches(node.name, node.op_type) for override in ours.overrides)
        return ours.excluded(node.name) or any(fits)

    return _naming(carried, nodes, is_named)


def _stated(
    name: str, taken: litert.Rounded, nodes: list[litert_rules.Node], images: np.ndarray
) -> litert.Quantization:
    named = taken.codes.keys() | taken.in_float
    carried = litert_rules.stated(name, taken, nodes, images)
    return _naming(carried, nodes, lambda node: node.name in named)


def _naming(
    carried: litert.Quantization,
    nodes: list[litert_rules.Node],
    is_named: Callable[[litert_rules.Node], bool],
) -> litert.Quantization:
    """Say which nodes the file must show; the last one's tensor is called as the output."""
    computing = [node for node in nodes[:-1] if node.op_type not in _HANDING_ON]
    named = tuple((node.name, node.place) for node in computing if is_named(node))
    return dataclasses.replace(carried, named=named)


def _calibration(
    model: zoo.Model, comparison: Comparison, count: int, listener: Listener
) -> np.ndarray:
    """Return what is calibrated on: (n, channels, height, width) float32, normalized."""
    images = comparison.calibration
    if images is None:
        images = steps.calibration_images(model, count, listener.echo)
    if isinstance(images, data.ImageSet):
        return model.known_preprocessing()(np.asarray(images.images[:count]))
    return np.asarray(images[:count])


def _facts(model: zoo.Model, fixed: Repair | None, apart: dict[str, Any] | None) -> dict[str, Any]:
    return {**steps.facts_of(model, fixed), "approximation": apart}
