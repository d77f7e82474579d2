"""The makers of the rows of others in benchmarks/quantization.py: ONNX Runtime, torchao, LiteRT.

Each maker takes an architecture, a file to write and the inputs, and calls a library as its
documentation does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import content_cache
import numpy as np
import torch
from quantization_inputs import PREPROCESSING, Inputs, float_file

from labutils import export, paths
from labutils.errors import LabError
from labutils.models import zoo
from labutils.quantize import pt2e
from labutils.quantize.recipe import Recipe

LITERT = ("litert-torch==0.10.0", "ai-edge-litert==2.3.0", "ai-edge-quantizer==0.10.0")


def by_onnxruntime(architecture: str, file: Path, inputs: Inputs) -> None:
    """Call onnxruntime.quantization.quantize_static with its defaults."""
    from onnxruntime.quantization import quantize_static

    quantize_static(float_file(architecture), file, _Reader(inputs))


def by_onnxruntime_qnn(
    architecture: str, file: Path, inputs: Inputs, *,
    weight: str, per_channel: bool, activation: str = "QUInt8",
) -> None:  # fmt: skip
    """Use ONNX Runtime's QNN configuration, as its documentation calls it."""
    from onnxruntime.quantization import QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    source = float_file(architecture)
    config = get_qnn_qdq_config(
        source, _Reader(inputs), activation_type=QuantType[activation],
        weight_type=QuantType[weight], per_channel=per_channel,
    )  # fmt: skip
    quantize(source, file, config)


class _Reader:
    """Calibration images as ONNX Runtime wants them."""

    def __init__(self, inputs: Inputs) -> None:
        self.images = iter(inputs.calibration_inputs())

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

    model = zoo.load(architecture, weights="things16").module
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
    network = zoo.load(architecture, weights="things16").module
    pt2e.write_qdq(network, file, inputs.calibration_inputs(), recipe)


# ---------------------------------------------------------------- LiteRT


def litert_python() -> Path:
    """Return the interpreter of the environment with Google's quantizer."""
    key = content_cache.key(packages=LITERT, python=sys.version_info[:2])
    return content_cache.folder(f"litert_{key}") / "bin" / "python"


def litert_setup() -> None:
    """Make that environment, once: the lab's packages, and LITERT's on top (1.2 GB).

    Raises
    ------
    LabError
        It cannot be made, as without a network.
    """
    import sysconfig

    folder, lab = litert_python().parent.parent, sysconfig.get_paths()["purelib"] + "\n"
    if (folder / "complete").exists():
        _site(folder).write_text(lab, encoding="utf-8")  # it may have been another environment's
        return
    print(f"Installing {', '.join(LITERT)} into {folder} ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    _site(folder).write_text(lab, encoding="utf-8")
    torches = [f"{name}=={v}" for name, v in paths.versions("torch").items() if name != "python"]
    pip = [str(litert_python()), "-m", "pip", "install", "-q", *LITERT]
    done = subprocess.run(
        [*pip, *(t.split("+")[0] for t in torches)], capture_output=True, text=True
    )
    if done.returncode:
        raise LabError(f"pip could not install {', '.join(LITERT)}: {_last(done.stderr)}")
    (folder / "complete").touch()


def _site(folder: Path) -> Path:
    """Return the file by which an environment finds the lab's packages."""
    return next(folder.glob("lib/python*/site-packages")) / "lab.pth"


def _litert(*arguments: str | Path) -> None:
    """Run litert_quantize.py in that environment."""
    litert_setup()
    script = Path(__file__).with_name("litert_quantize.py")
    own = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    done = subprocess.run(
        [str(litert_python()), str(script), *map(str, arguments)],
        env=own, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"{' '.join(LITERT)}: {_last(done.stderr)}")


def _last(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no reason given")


def by_litert(architecture: str, file: Path, inputs: Inputs, *, kind: str) -> float:
    """Call ai-edge-quantizer in its own environment; return the seconds of its quantizing."""
    with paths.scratch(file.parent) as folder:
        np.save(folder / "calibration.npy", inputs.calibration_inputs())
        _litert("quantize", architecture, folder / "calibration.npy", kind, folder)
        (folder / "made.tflite").replace(file)
        return float((folder / "seconds.txt").read_text(encoding="utf-8"))


class LiteRtRunner:
    """A ``.tflite`` file in that environment: a `labutils.runtime.runners.Runner`."""

    def __init__(self, file: Path) -> None:
        self.file, self.name, self.runtime = file, file.name, "LiteRT"

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return logits, float32 (n, classes), for images, float32 (n, 3, size, size)."""
        with paths.scratch(self.file.parent) as folder:
            np.save(folder / "images.npy", batch)
            _litert("run", self.file, folder / "images.npy", folder / "logits.npy")
            return np.load(folder / "logits.npy")

    def close(self) -> None:
        """Nothing is held between batches."""
