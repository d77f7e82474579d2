"""ExecuTorch's XNNPACK quantizer and runtime, in their own environment.

benchmarks/quantization.py calls `quantize`, `run` and `ratio` there (labutils/tools/calling.py).
The folder has calibration.npy (NCHW float32) and settings.json: ``architecture`` and ``image_set``
(which network of the lab) and ``per_channel`` (of the weights); `quantize` writes made.pte and
seconds.txt there.
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from labutils import _torchvision, runtime  # noqa: E402
from labutils.models import zoo  # noqa: E402
from labutils.runtime import timing  # noqa: E402

_torchvision.load()  # ExecuTorch imports it as well


class Program:
    """An ExecuTorch program that takes one image, on one thread."""

    def __init__(self, file: Path) -> None:
        from executorch.runtime import Runtime

        self.program = Runtime.get().load_program(file)
        self.method = self.program.load_method("forward")

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return logits, float32 (n, classes), for images, float32 (n, 3, size, size)."""
        tensors = torch.from_numpy(np.ascontiguousarray(images)).split(1)
        return np.concatenate([self.method.execute([image])[0].numpy() for image in tensors])


def run(file: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return logits, float32 (n, classes), for images, float32 (n, 3, size, size)."""
    return {"logits": Program(Path(file)).run(images)}


def ratio(file: str, exact: str, image: np.ndarray) -> dict[str, float]:
    """Return the time of a file by that of the float ONNX file, in turns."""
    both = {"this": Program(Path(file)), "fp32": runtime.connect(exact, "ort", threads=1)}
    taken = timing.seconds_in_turns(both, image, 100)
    return {"ratio": taken["this"] / taken["fp32"]}


def quantize(folder: str) -> None:
    """Write made.pte and seconds.txt into a folder, from what lies there."""
    place = Path(folder)
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    settings = json.loads((place / "settings.json").read_text(encoding="utf-8"))
    images = torch.from_numpy(np.load(place / "calibration.npy"))
    network = zoo.load(settings["architecture"], settings["image_set"]).module
    start = time.time()
    chosen = get_symmetric_quantization_config(is_per_channel=settings["per_channel"])
    prepared = prepare_pt2e(
        torch.export.export(network, (images[:1],)).module(), XNNPACKQuantizer().set_global(chosen)
    )
    with torch.no_grad():
        for image in images.split(1):
            prepared(image)
    program = torch.export.export(convert_pt2e(prepared), (images[:1],))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    (place / "made.pte").write_bytes(lowered.to_executorch().buffer)
    (place / "seconds.txt").write_text(str(time.time() - start), encoding="utf-8")
