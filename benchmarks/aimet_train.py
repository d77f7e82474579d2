"""AIMET's quantization-aware training, in its own environment.

benchmarks/quantization.py calls `quantize` there (labutils/tools/calling.py). The folder has
calibration.npy (NCHW float32) and settings.json; the program writes made.onnx (QDQ, for ONNX
Runtime) and seconds.txt, those of the training. Settings: ``architecture`` and ``image_set`` (which
network of the lab), ``weights`` (bits), ``config`` (AIMET's description of a device) and
``schedule``, the arguments of the loop that trains every row.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quantization_training import fit_
from torch import nn

from labutils import _torchvision
from labutils.models import zoo


def simulated(network: nn.Module, images: torch.Tensor, settings: dict[str, Any]) -> Any:
    """Return AIMET's calibrated simulation of a network, whose ranges are learned."""
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.common.defs import QuantScheme
    from aimet_torch.model_preparer import prepare_model
    from aimet_torch.quantsim import QuantizationSimModel

    prepared = prepare_model(copy.deepcopy(network).eval())
    fold_all_batch_norms(prepared, tuple(images[:1].shape), dummy_input=images[:1])
    sim = QuantizationSimModel(
        prepared, dummy_input=images[:1],
        quant_scheme=QuantScheme.training_range_learning_with_tf_init,
        default_output_bw=8, default_param_bw=settings["weights"],
        config_file=settings.get("config", "htp_v81"),
    )  # fmt: skip

    def calibrate(model: nn.Module) -> None:
        with torch.no_grad():
            for batch in images.split(32):
                model(batch)

    sim.compute_encodings(calibrate)
    return sim


def quantize(folder: str) -> None:
    """Train what the folder describes."""
    _torchvision.load()  # AIMET imports it as well
    import aimet_torch

    place = Path(folder)
    settings = json.loads((place / "settings.json").read_text(encoding="utf-8"))
    images = torch.from_numpy(np.load(place / "calibration.npy"))
    original = zoo.load(settings["architecture"], settings["image_set"]).module
    sim = simulated(original, images, settings)
    sim.model.requires_grad_(True)
    seconds = fit_(sim.model, original, settings["schedule"])
    sim.model.eval()
    # its 32-bit biases overflow in ONNX Runtime's fused kernels (-12 dB; 14 dB unfused)
    aimet_torch.onnx.export(
        sim.model, images[:1], str(place / "made.onnx"), input_names=["input"],
        output_names=["logits"], opset_version=21, dynamo=False, prequantize_constants=True,
        export_int32_bias=False,
    )  # fmt: skip
    (place / "seconds.txt").write_text(str(seconds), encoding="utf-8")
