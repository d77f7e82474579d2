"""What every row of benchmarks/quantization.py gets: the network, the images, a place for files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import content_cache
import numpy as np

from labutils import export, paths, quantize, train
from labutils.images import data
from labutils.models import zoo

PROGRAM = "quantization"
SIZE = 128
PREPROCESSING = data.Preprocessing(SIZE)
BATCH = 32


@dataclass(frozen=True)
class Inputs:
    """How many images there are of each kind.

    Attributes
    ----------
    split, images
        What files are judged on in ONNX Runtime and LiteRT.
    htp_images
        The first of these, on the HTP simulator.
    calibration
        Of the split ``calib``, for ranges.
    training
        Of the split ``train``, for quantization-aware training.
    steps
        Of that training; None for the recipe's own number.
    """

    split: str = "val"
    images: int = data.VALIDATION_IMAGES
    htp_images: int = data.VALIDATION_IMAGES
    calibration: int = 256
    training: int = 8000
    steps: int | None = None

    def calibration_set(self) -> data.ImageSet:
        """Return the calibration images."""
        return data.calibration(self.calibration, SIZE)

    def calibration_inputs(self) -> np.ndarray:
        """Return (n, 3, 128, 128) float32."""
        return PREPROCESSING(data.load("calib", self.calibration, SIZE).images)


def tool() -> dict[str, str]:
    """Return what quantizes for the lab: its code, and the versions of what it calls."""
    made = content_cache.code(quantize, train, export)
    return {"lab": made, **paths.versions("torch", "onnx", "onnxruntime", "torchao")}


def float_file(architecture: str) -> Path:
    """Return the float export of the shipped checkpoint, written once."""
    key = content_cache.key(
        what="float", checkpoint=content_cache.checkpoint(architecture), size=SIZE, tool=tool()
    )
    file = content_cache.folder(PROGRAM) / f"{architecture}_float_{key}.onnx"
    if not file.exists():
        model = zoo.load(architecture, weights="things16")
        export.to_onnx(model.module, file, size=SIZE, preprocessing=PREPROCESSING)
    return file
