"""NNCF's post-training quantization of an ONNX file, in its own environment.

benchmarks/quantization.py calls `quantize` there (labutils/tools/calling.py). The folder has
float.onnx, calibration.npy (NCHW float32) and settings.json; the program writes made.onnx (QDQ, for
ONNX Runtime) and seconds.txt. Settings: ``preset`` (performance, mixed), ``fast`` (the fast bias
correction; false: the accurate one), ``per_channel`` (weights), ``bits`` of weights and ``ranges``
(an NNCF estimator of activation ranges; null for NNCF's own).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

os.environ["OPENVINO_TELEMETRY_DISABLE"] = "1"

import numpy as np
import onnx


def parameters(settings: dict[str, Any]) -> Any:
    """Return NNCF's advanced parameters for our settings."""
    from nncf import OverflowFix
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        QuantizationParameters,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    weights: dict[str, Any] = {"per_channel": settings.get("per_channel", True)}
    if settings.get("bits", 8) != 8:
        weights["num_bits"] = settings["bits"]
    options: dict[str, Any] = {}
    if settings.get("ranges"):
        options["activations_range_estimator_params"] = getattr(
            RangeEstimatorParametersSet, settings["ranges"]
        )
    # 16-bit products overflow on old x86 only, and the fix costs the first layer a bit
    return AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.DISABLE,
        weights_quantization_params=QuantizationParameters(**weights), **options,
    )  # fmt: skip


def quantized(
    model: onnx.ModelProto, images: np.ndarray, settings: dict[str, Any]
) -> onnx.ModelProto:
    """Return the QDQ model."""
    import nncf

    name = model.graph.input[0].name
    return nncf.quantize(
        model,
        nncf.Dataset([{name: image[None]} for image in images]),
        preset=nncf.QuantizationPreset(settings.get("preset", "mixed")),
        subset_size=len(images), fast_bias_correction=settings.get("fast", True),
        advanced_parameters=parameters(settings),
    )  # fmt: skip


def quantize(folder: str) -> None:
    """Quantize what is in the folder."""
    place = Path(folder)
    settings = json.loads((place / "settings.json").read_text(encoding="utf-8"))
    model, images = onnx.load(place / "float.onnx"), np.load(place / "calibration.npy")
    start = time.time()
    onnx.save(quantized(model, images, settings), place / "made.onnx")
    (place / "seconds.txt").write_text(str(time.time() - start), encoding="utf-8")
