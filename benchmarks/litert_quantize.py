"""Google's quantizer (ai-edge-quantizer) on the lab's network, in a separate environment.

benchmarks/quantization.py calls `quantize`, `run` and `ratio` there (labutils/tools/calling.py).
The folder has calibration.npy (NCHW float32) and settings.json: ``architecture`` and ``image_set``
(which network of the lab) and ``kind``, one of ai-edge-quantizer's own recipes; `quantize` writes
made.tflite and seconds.txt there.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from pathlib import Path

os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402

from labutils import runtime  # noqa: E402
from labutils.models import zoo  # noqa: E402
from labutils.runtime import timing  # noqa: E402


def convert(settings: dict[str, str], example: np.ndarray, file: Path) -> None:
    """Write the float network as a LiteRT file that takes NHWC."""
    import litert_torch
    import torch

    model = zoo.load(settings["architecture"], settings["image_set"]).module
    wrapped = litert_torch.to_channel_last_io(model.eval(), args=[0]).eval()
    inputs = torch.from_numpy(np.ascontiguousarray(example.transpose(0, 2, 3, 1)))
    litert_torch.convert(wrapped, (inputs,)).export(str(file))


class Interpreter:
    """A LiteRT file, image by image on one thread.

    Parameters
    ----------
    file
        The ``.tflite``; integer ends are quantized and dequantized here.
    """

    def __init__(self, file: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter as LiteRt

        self.interpreter = LiteRt(str(file), num_threads=1)
        self.interpreter.allocate_tensors()
        self.entry = self.interpreter.get_input_details()[0]
        self.last = self.interpreter.get_output_details()[0]

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return logits, float32 (n, classes), for images, float32 (n, 3, size, size)."""
        return np.array([self._logits(image) for image in images], np.float32)

    def _logits(self, image: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(image.transpose(1, 2, 0)[None])
        if self.entry["dtype"] != np.float32:
            scale, zero = self.entry["quantization"]
            limits = np.iinfo(self.entry["dtype"])
            x = np.clip(np.rint(x / scale) + zero, limits.min, limits.max)
            x = x.astype(self.entry["dtype"])
        self.interpreter.set_tensor(self.entry["index"], x)
        self.interpreter.invoke()
        y = self.interpreter.get_tensor(self.last["index"])
        if self.last["dtype"] != np.float32:
            scale, zero = self.last["quantization"]
            y = (y.astype(np.float32) - zero) * scale
        return y[0]


def run(file: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return logits, float32 (n, classes), for images, float32 (n, 3, size, size)."""
    return {"logits": Interpreter(Path(file)).run(images)}


def ratio(file: str, exact: str, image: np.ndarray) -> dict[str, float]:
    """Return the time of a file by that of the float ONNX file, in turns on one thread each."""
    both = {"this": Interpreter(Path(file)), "fp32": runtime.connect(exact, "ort", threads=1)}
    taken = timing.seconds_in_turns(both, image, 100)
    return {"ratio": taken["this"] / taken["fp32"]}


def quantized(source: Path, calibration: np.ndarray, name: str, file: Path) -> float:
    """Quantize by one of ai-edge-quantizer's own recipes; return the seconds."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    start = time.time()
    signature, ends = next(iter(Interpreter(str(source)).get_signature_list().items()))
    key = ends["inputs"][0]
    images = [{key: np.ascontiguousarray(x.transpose(1, 2, 0)[None])} for x in calibration]
    work = quantizer.Quantizer(str(source), getattr(recipe, name)())
    ranges = work.calibrate({signature: images}, num_threads=1)
    work.quantize(ranges, enable_progress_report=False).export_model(str(file))
    return time.time() - start


def quantize(folder: str) -> None:
    """Write made.tflite and seconds.txt into a folder, from what lies there."""
    place = Path(folder)
    settings = json.loads((place / "settings.json").read_text(encoding="utf-8"))
    calibration = np.load(place / "calibration.npy")
    convert(settings, calibration[:1], place / "float.tflite")
    seconds = quantized(
        place / "float.tflite", calibration, settings["kind"], place / "made.tflite"
    )
    (place / "seconds.txt").write_text(str(seconds), encoding="utf-8")
