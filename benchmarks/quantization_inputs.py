"""What every row of benchmarks/quantization.py gets: the network, the images, a place for files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import content_cache
import numpy as np

from labutils import export, paths, quantize, train
from labutils.images import data
from labutils.models import zoo
from labutils.models.model import Model

PROGRAM = "quantization"
SIZE = 128
PREPROCESSING = data.Preprocessing(SIZE)
BATCH = 32
IMAGE_SET = "marked-things"
"""Which the table is about: Things-16 does not tell good files from better ones."""

TEST_IMAGES, TEST_HTP_IMAGES = 20_000, 10_000


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
    image_set
        Which set is drawn, one of `data.DRAWN`; the networks are those that learned it.
    """

    split: str = "val"
    images: int = data.VALIDATION_IMAGES
    htp_images: int = data.VALIDATION_IMAGES
    calibration: int = 256
    training: int = 32_000
    steps: int | None = None
    image_set: str = IMAGE_SET

    def model(self, architecture: str) -> Model:
        """Return the shipped network that learned the set."""
        return zoo.load(architecture, weights=self.image_set)

    def checkpoint(self, architecture: str) -> str:
        """Return the digest of the bytes of that network's checkpoint."""
        return content_cache.checkpoint(data.checkpoint_name(architecture, self.image_set))

    def judged(self, n: int) -> data.ImageSet:
        """Return the first `n` images that files are judged on."""
        return data.load(self.split, n, SIZE, self.image_set)

    def calibration_set(self) -> data.ImageSet:
        """Return the calibration images."""
        return data.calibration(self.calibration, SIZE, self.image_set)

    def calibration_inputs(self) -> np.ndarray:
        """Return (n, 3, 128, 128) float32."""
        return PREPROCESSING(self.calibration_set().images)


def usual(split: str = "val", image_set: str = IMAGE_SET) -> Inputs:
    """Return the inputs of a whole table."""
    if split == "test":
        return Inputs(split, TEST_IMAGES, TEST_HTP_IMAGES, image_set=image_set)
    n = data.validation_images(image_set)
    return Inputs(split, n, n, image_set=image_set)


def tool(*packages: ModuleType) -> dict[str, str]:
    """Return what makes a file: the code of the lab's packages, and the versions of what they call.

    Parameters
    ----------
    *packages
        Of the lab, those that the file depends on; without any all that quantize.
    """
    made = content_cache.code(*(packages or (quantize, train, export)))
    return {"lab": made, **paths.versions("torch", "onnx", "onnxruntime", "torchao")}


def float_file(architecture: str, inputs: Inputs) -> Path:
    """Return the float export of the shipped checkpoint, written once."""
    key = content_cache.key(
        what="float", checkpoint=inputs.checkpoint(architecture), size=SIZE, tool=tool(export)
    )
    file = content_cache.folder(PROGRAM) / f"{architecture}_float_{key}.onnx"
    if not file.exists():
        model = inputs.model(architecture)
        export.to_onnx(model.module, file, size=SIZE, preprocessing=PREPROCESSING)
    return file
