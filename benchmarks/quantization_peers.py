"""The makers of the rows of others in benchmarks/quantization.py: ONNX Runtime, torchao, LiteRT.

Each maker takes an architecture and a file to write, and calls a library as its documentation does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from quantization_inputs import CALIBRATION_IMAGES, PREPROCESSING, float_file, inputs

from labutils import export, paths, zoo
from labutils.errors import LabError
from labutils.quantize import pt2e

LITERT = ("litert-torch==0.10.0", "ai-edge-litert==2.3.0", "ai-edge-quantizer==0.10.0")


def by_onnxruntime(**settings: object) -> Callable[[str, Path], None]:
    """Return a maker that calls onnxruntime.quantization.quantize_static with `settings`."""

    def make(architecture: str, file: Path) -> None:
        from onnxruntime.quantization import quantize_static

        quantize_static(float_file(architecture), file, _Reader(), **settings)

    return make


def by_onnxruntime_qnn(
    weight: str, per_channel: bool, activation: str = "QUInt8"
) -> Callable[[str, Path], None]:
    """Return a maker with ONNX Runtime's QNN configuration, as its documentation calls it."""

    def make(architecture: str, file: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize
        from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

        source = float_file(architecture)
        config = get_qnn_qdq_config(
            source, _Reader(), activation_type=QuantType[activation],
            weight_type=QuantType[weight], per_channel=per_channel,
        )  # fmt: skip
        quantize(source, file, config)

    return make


class _Reader:
    """Calibration images as ONNX Runtime wants them."""

    def __init__(self) -> None:
        self.images = iter(inputs("calib", CALIBRATION_IMAGES))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"input": image[None]}


def by_torchao_xnnpack(per_channel: bool) -> Callable[[str, Path], None]:
    """Return a maker with torchao's own XNNPACK quantizer: the settings of its tutorial."""

    def make(architecture: str, file: Path) -> None:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.testing.pt2e._xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )  # fmt: skip

        model = zoo.load(architecture, weights="things16").module
        images = torch.from_numpy(inputs("calib", CALIBRATION_IMAGES))
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

    return make


def by_torchao(recipe: str) -> Callable[[str, Path], None]:
    """Return a maker that hands one of our recipes to torchao."""

    def make(architecture: str, file: Path) -> None:
        images = inputs("calib", CALIBRATION_IMAGES)
        pt2e.write_qdq(zoo.load(architecture, weights="things16").module, file, images, recipe)

    return make


def litert_python() -> Path:
    """Return the interpreter of the environment with Google's quantizer."""
    return paths.cache() / "benchmarks" / "litert" / "bin" / "python"


def litert_setup() -> None:
    """Make that environment: the lab's packages, and LITERT's on top."""
    import sysconfig

    folder = litert_python().parent.parent
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "lab.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    torches = [f"{name}=={v}" for name, v in paths.versions("torch").items() if name != "python"]
    pip = [str(litert_python()), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, *(t.split("+")[0] for t in torches), *LITERT], check=True)


def by_litert(name: str) -> Callable[[str, Path], float]:
    """Return a maker that calls ai-edge-quantizer in its own environment."""

    def make(architecture: str, file: Path) -> float:
        if not litert_python().exists():
            raise LabError("its environment is missing: benchmarks/quantization.py --litert-setup")
        folder = file.parent / f"litert_{architecture}"
        given = folder / "given.npz"
        if not given.exists():
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(given, architecture=architecture, images=inputs("val"),
                     calibration=inputs("calib", CALIBRATION_IMAGES))  # fmt: skip
        script = Path(__file__).with_name("litert_quantize.py")
        subprocess.run(
            [str(litert_python()), str(script), str(given), str(folder), name],
            env={**_environment(), "PYTHONPATH": str(paths.ROOT)}, check=True, capture_output=True,
        )  # fmt: skip
        if not (folder / f"{name}.npz").exists():
            raise LabError((folder / f"{name}.txt").read_text(encoding="utf-8"))
        found = np.load(folder / f"{name}.npz")
        file.with_suffix(".logits.npy").unlink(missing_ok=True)
        np.save(file.with_suffix(".logits.npy"), found["logits"])
        file.write_bytes((folder / f"{name}.tflite").read_bytes())
        return float(found["seconds"])

    return make


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
