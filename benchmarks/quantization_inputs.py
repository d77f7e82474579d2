"""What every row of benchmarks/quantization.py gets: the network, the images, a place for files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from labutils import data, export, paths, zoo

SIZE = 128
CALIBRATION_IMAGES = 256
PREPROCESSING = data.Preprocessing(SIZE)


def folder() -> Path:
    """Return where files and logits are kept between runs."""
    return paths.folder(paths.cache() / "quantization")


def calibration_set() -> data.ImageSet:
    """Return the calibration images."""
    return data.calibration(CALIBRATION_IMAGES, SIZE)


def inputs(split: str, n: int = data.VALIDATION_IMAGES) -> np.ndarray:
    """Return (n, 3, 128, 128) float32."""
    return PREPROCESSING(data.load(split, n, SIZE).images)


def float_file(architecture: str) -> Path:
    """Return the float export, written once."""
    file = folder() / f"{architecture}_float.onnx"
    if not file.exists():
        model = zoo.load(architecture, weights="things16")
        export.to_onnx(model.module, file, size=SIZE, preprocessing=PREPROCESSING)
    return file
