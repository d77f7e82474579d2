"""NNCF's quantization-aware training, in its own environment.

benchmarks/quantization.py calls `quantize` there (labutils/tools/calling.py). The folder has
calibration.npy (NCHW float32) and settings.json; the program writes made.onnx (QDQ, for ONNX
Runtime) and seconds.txt, those of the training. Settings: ``architecture`` and ``image_set`` (which
network of the lab) and ``schedule``, the arguments of the loop that trains every row.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

# its kernel is compiled when it is first called; on a busy machine that takes minutes
os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "900")
os.environ["OPENVINO_TELEMETRY_DISABLE"] = "1"

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from quantization_training import fit_
from torch import nn

from labutils.models import zoo
from labutils.onnxfile.edit import lift_constants_, remove_unused_


def simulated(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """Return NNCF's quantized network, whose ranges are trained with its weights."""
    import nncf

    return nncf.quantize(
        copy.deepcopy(network),
        nncf.Dataset([image[None] for image in images]),
        preset=nncf.QuantizationPreset.MIXED, subset_size=len(images),
    )  # fmt: skip


_FOLDED = ("Cast", "Identity", "QuantizeLinear")


def stored_(model: onnx.ModelProto) -> None:
    """Store weights as the integers that their QuantizeLinear makes of them, once."""
    lift_constants_(model)
    graph = model.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type in _FOLDED and all(name in values for name in node.input):
            given = {name: values[name] for name in node.input}
            (found,) = ReferenceEvaluator(node).run(None, given)
            values[node.output[0]] = found
            graph.initializer.append(numpy_helper.from_array(found, node.output[0]))
            graph.node.remove(node)
    remove_unused_(model)


def quantize(folder: str) -> None:
    """Train what the folder describes."""
    import nncf

    place = Path(folder)
    settings = json.loads((place / "settings.json").read_text(encoding="utf-8"))
    images = torch.from_numpy(np.load(place / "calibration.npy"))
    original = zoo.load(settings["architecture"], settings["image_set"]).module
    network = simulated(original, images)
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    seconds = fit_(network, original, settings["schedule"])
    stripped = nncf.strip(network.eval(), example_input=images[:1])
    torch.onnx.export(
        stripped, (images[:1],), str(place / "float.onnx"), input_names=["input"],
        output_names=["logits"], opset_version=17, dynamo=False,
    )  # fmt: skip
    made = onnx.load(place / "float.onnx")
    stored_(made)
    onnx.save(made, place / "made.onnx")
    (place / "seconds.txt").write_text(str(seconds), encoding="utf-8")
