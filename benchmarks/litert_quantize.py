"""Google's quantizer (ai-edge-quantizer) on the lab's network, in a separate environment.

Called by benchmarks/quantization.py with the interpreter of that environment:
    python litert_quantize.py quantize ARCHITECTURE CALIBRATION.npy RECIPE FOLDER
    python litert_quantize.py run FILE.tflite IMAGES.npy LOGITS.npy

Images are NCHW float32; the network comes from the lab. The first writes made.tflite and
seconds.txt into FOLDER, the second the logits.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path

os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402

from labutils.models import zoo  # noqa: E402


def convert(architecture: str, example: np.ndarray, file: Path) -> None:
    """Write the float network as a LiteRT file that takes NHWC."""
    import litert_torch
    import torch

    model = zoo.load(architecture, weights="things16").module
    wrapped = litert_torch.to_channel_last_io(model.eval(), args=[0]).eval()
    inputs = torch.from_numpy(np.ascontiguousarray(example.transpose(0, 2, 3, 1)))
    litert_torch.convert(wrapped, (inputs,)).export(str(file))


def run(file: Path, images: np.ndarray) -> np.ndarray:
    """Return the logits, float32; integer ends are quantized and dequantized here."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    entry, last = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    found = []
    for image in images:
        x = np.ascontiguousarray(image.transpose(1, 2, 0)[None])
        if entry["dtype"] != np.float32:
            scale, zero = entry["quantization"]
            limits = np.iinfo(entry["dtype"])
            x = np.clip(np.rint(x / scale) + zero, limits.min, limits.max).astype(entry["dtype"])
        interpreter.set_tensor(entry["index"], x)
        interpreter.invoke()
        y = interpreter.get_tensor(last["index"])
        if last["dtype"] != np.float32:
            scale, zero = last["quantization"]
            y = (y.astype(np.float32) - zero) * scale
        found.append(y[0])
    return np.array(found, np.float32)


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


def main() -> None:
    """Run one of the two."""
    if sys.argv[1] == "run":
        file, images, logits = map(Path, sys.argv[2:])
        np.save(logits, run(file, np.load(images)))
        return
    architecture, given, name, place = sys.argv[2:]
    calibration, folder = np.load(given), Path(place)
    convert(architecture, calibration[:1], folder / "float.tflite")
    seconds = quantized(folder / "float.tflite", calibration, name, folder / "made.tflite")
    (folder / "seconds.txt").write_text(str(seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
