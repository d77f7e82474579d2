"""What D-Robotics' quantizer would make of a network, emulated from what is documented of it.

Each property has its source: int8 unless ``node_info`` says int16 (rdk_doc, supported_op_list);
scales without a zero point (hb_model_modifier's log in rdk_model_zoo: ``zero point: 0``); hard-
swish in one table (run by us, `labutils.rdk.bpu_form`); ranges by max, KL or a percentile (rdk_doc,
ptq_process); a threshold is that of a node's input (makertbin's log of YOLO11, where Softmax's sum
has the 1 of the exponential before it). How the BPU rounds between its operators is not documented:
ONNX Runtime's integer operators do it here. Every line that is printed says that it is an
emulation.

How near it comes: of the lab's MobileNetV3-Large on 160 validation images of Things-16, D-Robotics'
own simulator gave a mean cosine of 0.986 and the same class on 99.4 % by max (16 calibration
images), 0.973 and 100 % by KL (64), run once by us on 2026-11-28; this gives 0.984 and 98.8 %,
0.976 and 99.4 % (tests/test_rdk_emulation.py holds the first).
"""

from __future__ import annotations

import dataclasses
import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import compare, paths, quantize, typesetting
from ..errors import UsageError
from ..images import data
from ..onnxfile import edit
from ..onnxfile.file import OnnxFile
from ..quantize import ranges
from ..quantize.recipe import Override, Recipe
from ..rdk import bpu_form, hb_mapper, placement, vendor_log
from ..rdk.vendor_log import NodeLine
from ..targets import onnx_nodes
from .settings import Listener

MARK = "emulation | "
_SEEN_IMAGES = 8  # for the cosine of every node
_COMPARED_IMAGES = 4  # of the integer file with the QDQ file


@dataclass(frozen=True, repr=False)
class Emulation(typesetting.Shown):
    """A network quantized in the BPU's scheme by the lab: not the vendor's tool, and not a BPU.

    Attributes
    ----------
    qdq, integer
        The QDQ file, and the file whose operators compute on integers.
    checker
        Where each node runs, as ``hb_mapper checker`` would print it.
    nodes
        Cosine and threshold of each node, as ``makertbin`` would print them.
    report
        What was quantized.
    integers
        Which operators compute on integers.
    images
        On how many pictures the cosines were measured.
    form
        The float network in the BPU's operators, which the QDQ file was made of.
    """

    qdq: OnnxFile
    integer: OnnxFile
    checker: tuple[NodeLine, ...]
    nodes: tuple[NodeLine, ...]
    report: quantize.QuantizeReport
    integers: quantize.IntegerReport
    images: int
    form: OnnxFile

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, for JSON."""
        return {
            "emulation": True, "images": self.images,
            "checker": [vars(line) for line in self.checker],
            "nodes": [vars(line) for line in self.nodes],
            "in_float": list(self.integers.floating),
        }  # fmt: skip

    def __str__(self) -> str:
        floating = self.integers.floating
        whole = sum(self.integers.integer.values())
        named = f" ({', '.join(floating[:4])}{', ...' * (len(floating) > 4)})" if floating else ""
        rows = [
            "by the lab's quantizer, from documented properties: not D-Robotics' tool, not a BPU",
            *vendor_log.table(self.checker, pairs=True),
            f"cosine of each node's output on {self.images} pictures; threshold of what it reads",
            *vendor_log.table(self.nodes),
            f"run on ONNX Runtime: {whole} nodes on integers, {len(floating)} in float{named}",
        ]
        return "\n".join(MARK + row for row in rows)


def bpu_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe in the BPU's scheme: no zero points, weights of 8 bits.

    Raises
    ------
    UsageError
        It asks for weights of other bits, or for powers of two.
    """
    asked = [recipe.weights.bits, *(o.weights for o in recipe.overrides if o.weights)]
    if set(asked) != {8}:
        raise UsageError(
            f"Recipe {recipe.name} asks for weights of {max(b for b in asked if b != 8)} bits; the "
            "BPU's have 8. Take a recipe with 8-bit weights."
        )
    if recipe.activations.power_of_two or recipe.weights.power_of_two:
        raise UsageError(
            f"Recipe {recipe.name} asks for scales of powers of two, which the BPU does not need. "
            "Take int8, int8_minmax, a16w8, or an hb_mapper YAML."
        )
    return recipe.replaced(
        name=f"{recipe.name}_bpu",
        activations=dataclasses.replace(recipe.activations, symmetric=True),
        weights=dataclasses.replace(recipe.weights, symmetric=True),
    )


def equalized(
    floating: OnnxFile,
    folder: Path,
    recipe: Recipe,
    pictures: data.ImageSet,
    preprocessing: data.Preprocessing,
    listener: Listener | None = None,
) -> tuple[OnnxFile, Recipe]:
    """Return the network that the tools get, and what is left of a recipe for them.

    Where the recipe equalizes the channels before gates, it is a float network that computes the
    same, of the same opset: the tools cannot be asked for it, but they take any network.

    Parameters
    ----------
    floating
        The float network.
    folder
        Where the other one goes, below ``equalized``.
    recipe
        One that has `equalize_gates`; without, both are returned as they are.
    pictures, preprocessing
        How far channels reach is measured on them.
    listener
        Gets a sentence about what was equalized.
    """
    if not recipe.equalize_gates:
        return floating, recipe
    done: list[str] = []
    made = ranges.equalized_gates(
        floating, paths.folder(folder / "equalized") / floating.path.name, pictures, preprocessing,
        least_opset=floating.opset, changes=done,
    )  # fmt: skip
    if done and listener is not None:
        listener.echo(done[0])
    return made if done else floating, recipe.replaced(equalize_gates=False)


def emulate(
    source: OnnxFile,
    folder: Path,
    pictures: data.ImageSet,
    recipe: Recipe,
    preprocessing: data.Preprocessing,
    listener: Listener | None = None,
) -> Emulation:
    """Quantize a network in the BPU's scheme, run its integers, and say what each node loses.

    Parameters
    ----------
    source
        The float network, of opset 11 at most.
    folder
        Where the files go.
    pictures
        For calibration; the first of them measure the nodes' cosines.
    recipe
        Bits of single nodes and calibration; `bpu_recipe` is applied to it.
    preprocessing
        Of the network's input.
    listener
        Follows the calibration.

    Raises
    ------
    UsageError
        The recipe asks for what the BPU does not have.
    """
    listener = listener or Listener()
    wanted = bpu_recipe(recipe)
    model, _ = bpu_form.joined(source)
    form = OnnxFile.write(paths.folder(folder / "joined") / source.path.name, model)
    wanted = _renamed(wanted, source, form)
    draft = folder / f"{source.path.stem}.qdq.onnx"
    report, qdq = write_qdq(form, draft, pictures, wanted, preprocessing, listener)
    inputs = preprocessing(np.asarray(pictures.images[:_SEEN_IMAGES]))
    integers = quantize.write_integer(
        qdq, folder / f"{source.path.stem}.integer.onnx", inputs[:_COMPARED_IMAGES],
        check_top1=False,
    )  # fmt: skip
    checker = placement.lines(source, form, _said(wanted, form))
    nodes = _measured(checker, form, qdq, inputs)
    return Emulation(
        qdq, OnnxFile(integers.file), checker, nodes, report, integers, len(inputs), form
    )


def write_qdq(
    form: OnnxFile,
    destination: Path,
    calibration: data.ImageSet | quantize.Ranges,
    recipe: Recipe,
    preprocessing: data.Preprocessing,
    listener: Listener | None = None,
) -> tuple[quantize.QuantizeReport, OnnxFile]:
    """Write a network in the BPU's scheme as QDQ, without the roundings that the BPU does not do.

    Parameters
    ----------
    form
        From `bpu_form.joined`.
    destination
        The ``.onnx`` to write.
    calibration
        Pictures, or the ranges that were measured on them.
    recipe
        From `bpu_recipe`.
    preprocessing
        Of the network's input.
    listener
        Follows the calibration.
    """
    progress = listener.progress if listener else None
    report = quantize.static(
        form, destination, calibration, recipe, preprocessing=preprocessing, progress=progress
    )
    model = OnnxFile(destination).copy()
    bpu_form.round_as_the_bpu_(model)
    return report, OnnxFile.write(destination, model)


def _renamed(recipe: Recipe, source: OnnxFile, form: OnnxFile) -> Recipe:
    """Return a recipe whose exceptions for the HardSigmoid of a joined pair are for its HardSwish.

    What names no node at all stays as it is: the quantizer refuses it.
    """
    kept = [(node.name, node.op_type) for node in form.proto.graph.node]
    names = {name for name, _ in kept}
    read = edit.readers(source.proto.graph.node)
    joined = {
        node.name: read[node.output[0]][0].name for node in source.proto.graph.node
        if node.op_type == "HardSigmoid" and node.name not in names
    }  # fmt: skip

    def meant(asked: Override) -> list[Override]:
        now = [
            dataclasses.replace(asked, node=glob.escape(swish), op_type="*")
            for gate, swish in joined.items()
            if asked.matches(gate, "HardSigmoid") and not asked.matches(swish, "HardSwish")
        ]
        stays = not now or any(asked.matches(*node) for node in kept)
        return [asked, *now] if stays else now

    return recipe.replaced(
        overrides=tuple(o for asked in recipe.overrides for o in meant(asked)),
        exclude=tuple(o.node for asked in recipe.exclude for o in meant(Override(asked))),
    )


def _said(recipe: Recipe, form: OnnxFile) -> dict[str, hb_mapper.Node]:
    """Return what a recipe says of single nodes, as an hb_mapper YAML does."""
    found = {}
    for node in form.proto.graph.node:
        bits = recipe.setting(node.name, node.op_type, "activations") or recipe.activations.bits
        if recipe.excluded(node.name):
            found[node.name] = hb_mapper.Node("CPU")
        elif bits == 16:
            found[node.name] = hb_mapper.Node("BPU", 16, 16)
    return found


def _measured(
    checker: tuple[NodeLine, ...], form: OnnxFile, qdq: OnnxFile, inputs: np.ndarray
) -> tuple[NodeLine, ...]:
    """Return the nodes with the cosine of what they write and the threshold of what they read."""
    found = compare.per_layer(form, qdq, inputs)
    cosines = {layer.tensor: layer.cosine for layer in found.rows}
    graph = form.proto.graph
    nodes = {node.name: node.proto for node in onnx_nodes.read(form).nodes}  # nameless ones, too
    read = edit.readers(graph.node)
    made = edit.producers(graph.node)
    stored = {tensor.name for tensor in graph.initializer}
    lines: list[NodeLine] = []
    for line in checker:
        if line.node not in nodes:  # the Reshape that the tool puts after a last Gemm
            lines.append(dataclasses.replace(line, cosine=lines[-1].cosine, bits="float"))
            continue
        node = nodes[line.node]
        written = node.output[0]
        after = read.get(written, [])
        if len(after) == 1 and bpu_form.is_absorbed(after[0], made, read):
            written = after[0].output[0]
        taken = next((name for name in node.input if name and name not in stored), "")
        reach, bits = bpu_form.threshold(qdq.proto, taken)
        lines.append(
            dataclasses.replace(
                line, cosine=cosines.get(written), threshold=reach,
                bits=bits if line.on == "BPU" else "float",
            )
        )  # fmt: skip
    return tuple(lines)
