"""AIMET's post-training quantization of an ONNX file, in its own environment.

benchmarks/quantization.py calls `quantize` there (labutils/tools/calling.py). The folder has
float.onnx, calibration.npy (NCHW float32) and settings.json; the program writes made.onnx (QDQ, for
ONNX Runtime) and seconds.txt. Settings:

* ``config``: AIMET's description of a device; ``per_channel``: false for a scale per tensor
* ``weights``, ``activations``: bits; ``scheme``: of the ranges (min_max, tf_enhanced)
* ``equalize``: cross-layer equalization first
* ``rounding``: nearest, seq_mse, or adaround with ``iterations`` for each layer
* ``flip``: percent of the layers, the most sensitive ones, that get 16-bit activations
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx


def batched_(model: onnx.ModelProto, n: int) -> None:
    """Let a model take `n` images at a time: AIMET runs it thousands of times."""
    ends = [*model.graph.input, *model.graph.output]
    for value in ends:
        value.type.tensor_type.shape.dim[0].dim_value = n
    del model.graph.value_info[:]


def described(name: str, per_channel: bool, folder: Path) -> str:
    """Return AIMET's description of a device; without scales per channel a copy of it."""
    if per_channel:
        return name
    from aimet_onnx.common import quantsim_config

    place = Path(quantsim_config.__file__).parent
    text = (place / f"{name.replace('htp_', 'htp_quantsim_config_')}.json").read_text("utf-8")
    told = '"per_channel_quantization": '
    (folder / "device.json").write_text(text.replace(f'{told}"True"', f'{told}"False"'), "utf-8")
    return str(folder / "device.json")


def simulated(
    model: onnx.ModelProto, images: np.ndarray, settings: dict[str, Any], device: str
) -> Any:
    """Return AIMET's calibrated simulation of the quantized model; the model may be changed."""
    import aimet_onnx
    from aimet_onnx.cross_layer_equalization import equalize_model

    if settings.get("equalize"):
        equalize_model(model)
    name, n = model.graph.input[0].name, math.gcd(32, len(images))
    batched_(model, n)
    batches = [{name: images[i : i + n]} for i in range(0, len(images), n)]
    sim = aimet_onnx.QuantizationSimModel(
        model,
        param_type=f"int{settings.get('weights', 8)}",
        activation_type=f"int{settings.get('activations', 8)}",
        quant_scheme=settings.get("scheme", "min_max"),
        config_file=device,
        dummy_input=batches[0],
    )
    if settings.get("rounding") == "seq_mse":
        aimet_onnx.apply_seq_mse(sim, batches)
    if settings.get("rounding") == "adaround":
        aimet_onnx.apply_adaround(sim, batches, num_iterations=settings["iterations"])
    sim.compute_encodings(batches)
    if settings.get("flip"):
        flip_(sim, batches, settings["flip"])
    return sim


def flip_(sim: Any, batches: list[dict[str, np.ndarray]], percent: float) -> None:
    """Give the most sensitive layers 16-bit activations, as AIMET's lite mixed precision does."""
    import aimet_onnx
    import onnxruntime
    from aimet_onnx.lite_mp import flip_layers_to_higher_precision

    few = batches[: max(1, 32 // len(next(iter(batches[0].values()))))]
    plain = aimet_onnx.QuantizationSimModel.remove_quantizers(
        onnx.ModelProto.FromString(sim.model.model.SerializeToString())
    )
    plain = getattr(plain, "model", plain)
    session = onnxruntime.InferenceSession(plain.SerializeToString())
    exact = np.concatenate([session.run(None, batch)[0] for batch in few])

    def sqnr(quantized: onnxruntime.InferenceSession) -> float:
        found = np.concatenate([quantized.run(None, batch)[0] for batch in few])
        return float(10 * np.log10((exact**2).sum() / ((found - exact) ** 2).sum()))

    sensitivity = aimet_onnx.analyze_per_layer_sensitivity(sim, sqnr)
    flip_layers_to_higher_precision(
        sim, sensitivity, percent, override_precision=(aimet_onnx.int8, aimet_onnx.int16)
    )
    sim.compute_encodings(batches)


def quantize(folder: str) -> None:
    """Quantize what is in the folder."""
    place = Path(folder)
    settings = json.loads((place / "settings.json").read_text(encoding="utf-8"))
    model, images = onnx.load(place / "float.onnx"), np.load(place / "calibration.npy")
    start = time.time()
    device = described(settings.get("config", "htp_v81"), settings.get("per_channel", True), place)
    sim = simulated(model, images, settings, device)
    made = sim.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True)
    batched_(made, 1)
    onnx.save(made, place / "made.onnx")
    (place / "seconds.txt").write_text(str(time.time() - start), encoding="utf-8")
