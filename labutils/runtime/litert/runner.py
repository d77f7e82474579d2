"""A ``.tflite`` on LiteRT, on this machine's CPU, fed and read as every other network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ModelFileError, UsageError, counted
from .. import batches, outputs
from ..runner import Closing
from .availability import require
from .process import Worker
from .tflite_file import LAYOUTS, Contents, contents, layout_of

_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
_MOST_VALUES = 1 << 24  # of all that is returned at once, which bounds the memory


class LiteRtRunner(Closing):
    """A ``.tflite`` on Google's runtime LiteRT, with XNNPACK, on this machine's CPU.

    Images come as everywhere, NCHW; they are turned to the layout that the file takes. Integer ends
    are quantized and dequantized by the scale and zero point that the file states.

    Parameters
    ----------
    file
        The ``.tflite``; it takes one image.
    layout
        ``"nhwc"`` or ``"nchw"``; by default what the lab's manifest says, else the input's shape.
    threads
        Of the interpreter; 0 leaves it to LiteRT, which takes one.
    inner
        Without XNNPACK, so that `inner_tensors` can be looked at.
    output
        Which output has the scores; by default the one whose shape and name say so.
    """

    def __init__(
        self,
        file: str | Path,
        layout: str | None = None,
        threads: int = 0,
        inner: bool = False,
        name: str | None = None,
        output: str | None = None,
    ) -> None:
        self.file: Path | None = Path(file).absolute()
        self.name = name or self.file.name
        version = require().version
        self.contents: Contents = contents(self.file)
        self.runtime = f"LiteRT {version} CPU" + (", without XNNPACK" if inner else "")
        self._settings = {"model": str(self.file), "threads": threads, "inner": inner, "shape": []}
        self._worker = Worker()
        try:
            facts = self._ask("open")[0]
            self._entry = self._image(facts["inputs"])
            self.layout, channels = self._layout(layout)
            self.shape = [None if self._batch is None else self._batch, *channels]
            self._ends = list(zip(self._names(facts), facts["outputs"], strict=True))
        except BaseException:
            self._worker.close()
            raise
        self.input, self._wanted = self._entry["name"], output
        self._choose([_output(name, entry) for name, entry in self._ends])

    def tensors(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output by name, images along the first axis."""
        codes = self._as_given(batches.checked(batch, self.shape, self.name))
        numbers = [entry["index"] for _, entry in self._ends]
        found = self._run(codes, numbers)
        given = {name: _dequantized(found[entry["index"]], entry) for name, entry in self._ends}
        self._choose(outputs.of_arrays(given), final=True)
        return given

    def inner_tensors(self, batch: np.ndarray) -> dict[int, np.ndarray]:
        """Return what every operator writes, by the tensor's number, dequantized to float32.

        Raises
        ------
        UsageError
            The file was connected without ``inner=True``.
        """
        if not self._settings["inner"]:
            raise UsageError(f"Connect {self.name} with inner=True to look at tensors inside.")
        known = {
            n: self.contents.tensors[n]
            for operator in self.contents.operators
            for n in operator.outputs
        }
        codes = self._as_given(batches.checked(batch, self.shape, self.name))
        found = self._run(codes, list(known))
        return {
            n: _dequantized(values, {"scales": known[n].scales, "zeros": known[n].zeros})
            for n, values in found.items()
        }

    def seconds(self, batch: np.ndarray) -> list[float]:
        """Return how long LiteRT took for each image of a batch, measured in the child process."""
        codes = self._as_given(batches.checked(batch, self.shape, self.name))
        return self._ask("run", codes, [])[0]["seconds"]

    def close(self) -> None:
        """End the child process."""
        self._worker.close()

    @property
    def _batch(self) -> int | None:
        size = self._entry["signature"][0]
        return None if size < 0 else size

    def _ask(
        self, call: str, batch: np.ndarray | None = None, numbers: Sequence[int] = ()
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        message = {"call": call, **self._settings, "tensors": list(numbers)}
        arrays = {} if batch is None else {"batch": batch}
        try:
            return self._worker.call(message, arrays)
        except ModelFileError as error:
            raise ModelFileError(f"LiteRT cannot run {self.name}: {error}") from None

    def _image(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the one image input; ModelFileError for other networks."""
        if len(inputs) != 1 or len(inputs[0]["shape"]) != 4:
            shapes = ", ".join(str(entry["shape"]) for entry in inputs)
            raise ModelFileError(
                f"{self.name} takes {counted(len(inputs), 'input')}, {shapes}; a runner feeds one "
                "image."
            )
        entry = inputs[0]
        if entry["type"] not in ("float32", "int8", "uint8", "int16"):
            raise ModelFileError(f"{self.name} takes {entry['type']}; a runner feeds float32.")
        if entry["type"] != "float32" and len(entry["scales"]) != 1:
            raise ModelFileError(
                f"{self.name} takes {entry['type']} without saying how it is quantized."
            )
        return entry

    def _layout(self, asked: str | None) -> tuple[str, tuple[int, int, int]]:
        if asked not in (None, *LAYOUTS):
            raise UsageError(f"layout={asked!r}: choose one of {', '.join(LAYOUTS)}.")
        shape = tuple(self._entry["shape"])
        known = layout_of(shape, self.contents.layout)
        layout = asked or (known[0] if known else LAYOUTS[0])
        _, *rest = shape
        first, second, last = rest
        return layout, (last, first, second) if layout == "nhwc" else (first, second, last)

    def _names(self, facts: dict[str, Any]) -> list[str]:
        """Return the outputs' names: those of the signature, which the converter was given."""
        known = dict(zip(self.contents.outputs, self.contents.output_names, strict=True))
        names = [known.get(entry["index"], entry["name"]) for entry in facts["outputs"]]
        if len(names) == 1 and names[0] in ("output_0", facts["outputs"][0]["name"]):
            return [outputs.ONLY]
        return names

    def _as_given(self, batch: np.ndarray) -> np.ndarray:
        """Return images (runs, batch, ...) in the layout and the type that the file takes."""
        laid = batch.transpose(_TO_NHWC) if self.layout == "nhwc" else batch
        if self._entry["type"] != "float32":
            limits = np.iinfo(self._entry["type"])
            scale, zero = self._entry["scales"][0], self._entry["zeros"][0]
            codes = np.clip(np.rint(laid / np.float32(scale)) + zero, limits.min, limits.max)
            laid = codes.astype(self._entry["type"])
        step = self._batch or 1
        parts = batches.split(np.ascontiguousarray(laid), step, self.name)
        return np.stack(parts)

    def _run(self, codes: np.ndarray, numbers: list[int]) -> dict[int, np.ndarray]:
        """Return tensors by number, images along the first axis; a few images at a time."""
        sizes = [np.prod(self.contents.tensors[n].shape or (1,)) for n in numbers]
        step = max(1, int(_MOST_VALUES // max(1, sum(sizes))))
        parts = [
            self._ask("run", codes[start : start + step], numbers)[1]
            for start in range(0, len(codes), step)
        ]
        images = codes.shape[1]
        return {n: _joined([part[str(n)] for part in parts], images) for n in numbers}


def _joined(parts: list[np.ndarray], images: int) -> np.ndarray:
    """Return (runs, images, ...) as (runs * images, ...); what is not per image gets an axis."""
    whole = np.concatenate(parts)
    if whole.ndim > 1 and whole.shape[1] == images:
        return whole.reshape(-1, *whole.shape[2:])
    return whole


def _dequantized(values: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    """Return real numbers for the codes of a quantized tensor; others as they are."""
    if len(entry["scales"]) != 1 or values.dtype.kind == "f":
        return values.astype(np.float32) if values.dtype == np.float16 else values
    zero = entry["zeros"][0] if entry["zeros"] else 0
    return ((values.astype(np.float32) - zero) * np.float32(entry["scales"][0])).astype(np.float32)


def _output(name: str, entry: dict[str, Any]) -> outputs.Output:
    is_float = entry["type"].startswith("float") or len(entry["scales"]) == 1
    return outputs.Output(name, tuple(entry["shape"]), is_float)
