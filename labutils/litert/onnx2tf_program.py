"""Runs in the environment of the tool ``onnx2tf``: ONNX to LiteRT, in float and in its own int8.

`labutils.tools.calling` calls the functions. onnx2tf works in the current folder and changes the
file that it is given, so each call has a separate folder with a copy.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
warnings.filterwarnings("ignore")

if TYPE_CHECKING:
    import numpy as np

# Fetched from a server unless it lies in the current folder. Its values only try out axes.
_SAMPLES = "calibration_image_sample_data_20x128x128x3_float32.npy"
_COLOUR = re.compile(r"\x1b\[\d*m")


class Onnx2TfError(Exception):
    """What onnx2tf said before it gave up."""


def convert(file: str, made: str) -> None:
    """Write a float ``.tflite`` of an ONNX file; it takes channels last."""
    target = Path(made).absolute()
    with _workplace(file) as copy:
        _converted(copy)
        _deliver(copy, "float32", target)


def quantize(file: str, made: str, images: np.ndarray) -> None:
    """Write onnx2tf's full-int8 ``.tflite`` of an ONNX file: per channel, integer ends.

    Parameters
    ----------
    file, made
        The float ONNX file with one input, and the ``.tflite`` to write.
    images
        For calibration: (n, channels, height, width) float32, as the network takes them.
    """
    import numpy as np

    target = Path(made).absolute()
    with _workplace(file) as copy:
        np.save("images.npy", np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
        given = [_input(copy), "images.npy", np.zeros(1, np.float32), np.ones(1, np.float32)]
        _converted(
            copy, output_integer_quantized_tflite=True, quant_type="per-channel",
            custom_input_op_name_np_data_path=[given],
        )  # fmt: skip
        _deliver(copy, "full_integer_quant", target)


@contextlib.contextmanager
def _workplace(file: str) -> Iterator[Path]:
    """Make a folder the current one that has a copy of a file, and the pictures not to be fetched.

    What the tool prints is kept for the sentence of its failure.
    """
    import numpy as np

    before = Path.cwd()
    source = Path(file).absolute()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "network.onnx"
        shutil.copyfile(source, copy)
        os.chdir(folder)
        try:
            noise = np.random.default_rng(0).random((20, 128, 128, 3), np.float32)
            np.save(_SAMPLES, noise)
            yield copy
        finally:
            os.chdir(before)


def _converted(copy: Path, **settings: Any) -> None:
    """Call onnx2tf, which writes beside the copy.

    `output_signaturedefs` is what it asks for where names of layers hold slashes.
    """
    import onnx2tf

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            onnx2tf.convert(
                input_onnx_file_path=str(copy), output_folder_path=str(copy.parent / "made"),
                output_signaturedefs=True, batch_size=1, verbosity="warn", **settings,
            )  # fmt: skip
    except (SystemExit, ModuleNotFoundError):  # what it does not take, and operators without a file
        raise Onnx2TfError(_reason(said.getvalue())) from None
    copy.with_suffix(".log").write_text(said.getvalue(), encoding="utf-8")


def _deliver(copy: Path, kind: str, target: Path) -> None:
    """Copy one of the files that onnx2tf wrote to where it is wanted."""
    written = copy.parent / "made" / f"{copy.stem}_{kind}.tflite"
    if not written.exists():  # it continues after TensorFlow's converter has failed
        raise Onnx2TfError(_reason(copy.with_suffix(".log").read_text("utf-8")))
    shutil.copyfile(written, target)


def _reason(said: str) -> str:
    """Return why onnx2tf gave up, from all that it printed: its errors, else its last line."""
    lines = [line.strip() for line in _COLOUR.sub("", said).splitlines()]
    lines = [line for line in lines if line]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return " ".join(errors) or (lines or [""])[-1]


def _input(file: Path) -> str:
    """Return the name of a network's one input."""
    import onnx

    graph = onnx.load(file).graph
    weights = {tensor.name for tensor in graph.initializer}
    return next(entry.name for entry in graph.input if entry.name not in weights)
