"""Runs in the environment of the tool ``onnx-tf``: ONNX to TensorFlow, and from there to LiteRT.

`labutils.tools.calling` calls the functions.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
warnings.filterwarnings("ignore")

if TYPE_CHECKING:
    import numpy as np


def run(file: str, images: np.ndarray) -> dict[str, Any]:
    """Return the first output of an ONNX file for pictures, computed by TensorFlow."""
    import numpy as np

    return {"logits": np.asarray(_prepared(file).run(images)[0])}


def convert(file: str, made: str) -> None:
    """Write a ``.tflite`` of an ONNX file: onnx-tf, a SavedModel, TensorFlow's converter."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        _prepared(file).export_graph(folder)
        written = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    Path(made).write_bytes(written)


def _prepared(file: str) -> Any:
    import onnx
    from onnx_tf.backend import prepare

    return prepare(onnx.load(file))
