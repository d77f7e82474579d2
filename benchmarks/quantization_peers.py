"""The makers of the rows of others in benchmarks/quantization.py.

Each takes an architecture, a file to write and the inputs, and calls a library as its documentation
does: ONNX Runtime and torchao here, the others in separate environments. What trains lies in
quantization_training.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader
from peer_environments import ENVIRONMENTS, Environment
from quantization_inputs import PREPROCESSING, Inputs, float_file
from quantization_training import schedule

from labutils import export, paths
from labutils.quantize import pt2e
from labutils.quantize.recipe import Recipe


def by_onnxruntime(architecture: str, file: Path, inputs: Inputs) -> None:
    """Call onnxruntime.quantization.quantize_static with its defaults: one scale per tensor."""
    from onnxruntime.quantization import quantize_static

    quantize_static(float_file(architecture, inputs), file, _Reader(inputs.calibration_inputs()))


def by_onnxruntime_qnn(
    architecture: str, file: Path, inputs: Inputs, *,
    weight: str, per_channel: bool, activation: str = "QUInt8", wide: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Use ONNX Runtime's QNN configuration, as its documentation calls it.

    Tensors named in `wide` get 16 bits, and what is between them and the others is converted.
    """
    from onnxruntime.quantization import QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    source = float_file(architecture, inputs)
    config = get_qnn_qdq_config(
        source, _Reader(inputs.calibration_inputs()), activation_type=QuantType[activation],
        weight_type=QuantType[weight], per_channel=per_channel,
        init_overrides={name: [{"quant_type": QuantType.QUInt16}] for name in wide} or None,
    )  # fmt: skip
    quantize(source, file, config)


def by_onnxruntime_mixed(architecture: str, file: Path, inputs: Inputs, *, share: float) -> None:
    """Give 16 bits to the activations that ONNX Runtime's own debugging finds worst.

    Its documentation of mixed precision names the tensors by hand; `qdq_loss_debug` is its tool
    that compares each with the float network.
    """
    plain: dict[str, Any] = {"weight": "QInt8", "per_channel": True}
    with paths.scratch(file.parent) as folder:
        eight = folder / "eight.onnx"
        by_onnxruntime_qnn(architecture, eight, inputs, **plain)
        noise = activation_noise(
            float_file(architecture, inputs), eight, inputs.calibration_inputs()[:16], folder
        )
    wide = sorted(noise, key=lambda name: noise[name])[: max(1, round(share * len(noise)))]
    by_onnxruntime_qnn(architecture, file, inputs, **plain, wide=tuple(wide))


def activation_noise(exact: Path, quantized: Path, images: np.ndarray, folder: Path) -> dict:
    """Return tensor -> dB that its own rounding leaves, by ONNX Runtime's `qdq_loss_debug`."""
    from onnxruntime.quantization import qdq_loss_debug as debug

    found = []
    for name, source in (("exact", exact), ("quantized", quantized)):
        opened = folder / f"{name}.onnx"
        debug.modify_model_output_intermediate_tensors(str(source), str(opened))
        found.append(debug.collect_activations(str(opened), _Reader(images)))
    matched = debug.create_activation_matching(found[1], found[0])
    errors = debug.compute_activation_error(matched)
    return {name: error["qdq_err"] for name, error in errors.items()}


class _Reader(CalibrationDataReader):
    """Calibration images as ONNX Runtime wants them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"input": image[None]}


def by_torchao_xnnpack(architecture: str, file: Path, inputs: Inputs, *, per_channel: bool) -> None:
    """Use torchao's own XNNPACK quantizer: the settings of its tutorial."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.testing.pt2e._xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )  # fmt: skip

    model = inputs.model(architecture).module
    images = torch.from_numpy(inputs.calibration_inputs())
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (images[:2],), dynamic_shapes=dynamic).module()
    settings = get_symmetric_quantization_config(is_per_channel=per_channel)
    prepared = prepare_pt2e(program, XNNPACKQuantizer().set_global(settings))
    with torch.no_grad():
        for batch in images.split(32):
            prepared(batch)
    written = export.unchecked(
        pt2e.Plain(convert_pt2e(prepared)), images[:1], 21, "dynamo", PREPROCESSING
    )
    file.write_bytes(written.SerializeToString())


def by_torchao(architecture: str, file: Path, inputs: Inputs, *, recipe: Recipe) -> None:
    """Take torchao's pt2e route with the places, bits and symmetry of one of our recipes.

    Its observers take the least and the greatest value of all images: none is left out, whatever
    the recipe says.
    """
    network = inputs.model(architecture).module
    pt2e.write_qdq(network, file, inputs.calibration_inputs(), recipe)


# ---------------------------------------------------------------- separate environments


def by_program(
    architecture: str, file: Path, inputs: Inputs, *,
    tool: str, recipe: Recipe | None = None, **settings: Any,
) -> float:  # fmt: skip
    """Call a tool's program in its own environment; return the seconds that it says it took.

    Parameters
    ----------
    architecture, file, inputs
        As for every maker.
    tool
        A key of `ENVIRONMENTS`.
    recipe
        Of a row that is trained: whose schedule is used.
    **settings
        What the program takes, plain values.
    """
    with paths.scratch(file.parent) as folder:
        shutil.copyfile(float_file(architecture, inputs), folder / "float.onnx")
        np.save(folder / "calibration.npy", inputs.calibration_inputs())
        told = {"architecture": architecture, "image_set": inputs.image_set} | settings
        if recipe is not None:
            told["schedule"] = schedule(recipe, inputs)
        paths.write_text(folder / "settings.json", json.dumps(told, indent=2) + "\n")
        ENVIRONMENTS[tool].ask("quantize", folder=folder)
        next(folder.glob("made.*")).replace(file)
        return float((folder / "seconds.txt").read_text(encoding="utf-8"))


class ProgramRunner:
    """A file in the runtime of its tool's environment: a `labutils.runtime.runners.Runner`."""

    def __init__(self, file: Path, environment: Environment) -> None:
        self.file, self.name, self.runtime = file, file.name, environment.runtime
        self.environment = environment

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return logits, float32 (n, classes), for images, float32 (n, 3, size, size)."""
        return self.environment.ask("run", file=self.file, images=batch)["logits"]

    def close(self) -> None:
        """Nothing is held between batches."""


def program_ratio(file: Path, environment: Environment, exact: Path, image: np.ndarray) -> float:
    """Return the time of a file in its runtime by that of the float file in ONNX Runtime."""
    return environment.ask("ratio", file=file, exact=exact, image=image)["ratio"]
