"""A ``.bin`` on an RDK X5, over the Python interface that the board has. We have run none of it.

Three interfaces are used, whichever can be imported first, as D-Robotics describes them (rdk_doc,
"Model Zoo inference interfaces" and "BPU inference", 0a4efe0): ``hbm_runtime`` (RDK OS 3.5.0 and
later), ``hobot_dnn.pyeasy_dnn`` and ``bpu_infer_lib`` (earlier demos). Each takes a picture as one
flat array of packed NV12: the luma, then the pairs of chroma.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import MissingToolError, ModelFileError, ToolError, UnknownNameError, UsageError
from ..images import data, nv12

NOTE = "over D-Robotics' interface on the board, which the lab's authors have not run"


class Interface(Protocol):
    """One of the board's interfaces, with one model loaded."""

    name: str

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the picture that the model takes; None where it does not say."""

    def scores(self, packed: np.ndarray) -> np.ndarray:
        """Return the first output for one picture of packed NV12, (3 * height * width / 2,)."""


class _HbmRuntime:
    name = "hbm_runtime"

    def __init__(self, module: Any, file: str) -> None:
        self.model = module.HB_HBMRuntime(file)
        self.key = self.model.model_names[0]
        self.input = self.model.input_names[self.key][0]
        self.output = self.model.output_names[self.key][0]

    @property
    def size(self) -> tuple[int, int] | None:
        return _sides(self.model.input_shapes[self.key][self.input])

    def scores(self, packed: np.ndarray) -> np.ndarray:
        found = self.model.run({self.key: {self.input: packed}})[self.key][self.output]
        quants = self.model.output_quants[self.key][self.output]
        if getattr(quants.quant_type, "name", "NONE") != "SCALE":
            return np.asarray(found)
        scale, zero = np.asarray(quants.scale), np.asarray(quants.zero_point)
        return (np.asarray(found) - (zero if zero.size else 0)) * scale


class _PyeasyDnn:
    name = "hobot_dnn.pyeasy_dnn"

    def __init__(self, module: Any, file: str) -> None:
        self.model = module.load(file)[0]

    @property
    def size(self) -> tuple[int, int] | None:
        return _sides(self.model.inputs[0].properties.shape)

    def scores(self, packed: np.ndarray) -> np.ndarray:
        return np.asarray(self.model.forward(packed)[0].buffer)


class _BpuInferLib:
    name = "bpu_infer_lib"

    def __init__(self, module: Any, file: str) -> None:
        self.model = module.Infer(False)
        self.model.load_model(file)

    @property
    def size(self) -> tuple[int, int] | None:
        return None

    def scores(self, packed: np.ndarray) -> np.ndarray:
        self.model.read_input(packed, 0)
        self.model.forward()
        self.model.get_output()
        return np.asarray(self.model.outputs[0].data)


_KINDS: dict[str, Callable[[Any, str], Interface]] = {
    kind.name: kind for kind in (_HbmRuntime, _PyeasyDnn, _BpuInferLib)
}


def available() -> list[str]:
    """Return the names of the interfaces that can be imported here, the preferred one first."""
    return [name for name in _KINDS if _imported(name) is not None]


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _sides(shape: Any) -> tuple[int, int] | None:
    """Return height and width of (1, 3, h, w) or (1, h, w, 3)."""
    sides = [int(n) for n in shape]
    if len(sides) != 4:
        return None
    return (sides[2], sides[3]) if sides[1] == 3 else (sides[1], sides[2])


class BoardRunner:
    """A ``.bin`` that takes NV12, run on the board that this program runs on.

    Parameters
    ----------
    file
        The compiled model.
    preprocessing
        Its size, and what inputs were normalised with that are given as such (`run`).
    kind
        Range of the NV12 bytes that the model was built for.
    interface
        One of `available`; by default the first.

    Raises
    ------
    MissingToolError
        None of the interfaces can be imported: this is not the board.
    ModelFileError
        There is no such file.
    ToolError
        The interface does not load it; in its own words.
    UsageError
        The model is of another size than the preprocessing, or there is no such interface.
    """

    def __init__(
        self,
        file: str | Path,
        preprocessing: data.Preprocessing,
        kind: nv12.Range = "video",
        interface: str | None = None,
    ) -> None:
        if interface is not None and interface not in _KINDS:
            raise UnknownNameError("interface of the board", interface, _KINDS)
        names = [interface] if interface else available()
        module = _imported(names[0]) if names else None
        if module is None:
            raise MissingToolError(
                f"{Path(file).name} runs on an RDK X5, with its Python, which has hbm_runtime or "
                f"hobot_dnn; here {' and '.join(_KINDS)} cannot be imported. On this machine, "
                "`labutils rdk demo` runs the emulation's .onnx."
            )
        self.file, self.preprocessing, self.range = Path(file), preprocessing, kind
        height, width = data.sides(preprocessing.size)
        nv12.refuse_odd(height, width)
        if not self.file.is_file():
            raise ModelFileError(f"There is no file {file}. Check the path.")
        with _in_its_own_words(f"{names[0]} does not load {self.file.name}"):
            self.interface = _KINDS[names[0]](module, str(file))
            said = self.interface.size
        if said is not None and said != (height, width):
            raise UsageError(
                f"{self.file.name} takes pictures of {said[0]} x {said[1]}, not {height} x {width}."
                f" Pass --size {said[0]} {said[1]}."
            )
        self.name = self.file.name
        self.runtime = f"RDK X5, {self.interface.name} ({NOTE})"

    def __enter__(self) -> BoardRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the model."""
        self.__dict__.pop("interface", None)

    def scores(self, pictures: np.ndarray) -> np.ndarray:
        """Return the scores, (n, classes) float32, for pictures, (n, height, width, 3) uint8 RGB.

        Raises
        ------
        ToolError
            The board's interface refuses the picture, in its own words.
        """
        return self._of_bytes(nv12.encode(pictures, self.range))

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return logits, float32 (n, classes), for images, float32 (n, channels, height, width)."""
        return self._of_bytes(nv12.of_inputs(batch, self.preprocessing, self.range))

    def _of_bytes(self, sent: np.ndarray) -> np.ndarray:
        rows = []
        for picture in sent:
            packed = np.ascontiguousarray(picture).reshape(-1)
            with _in_its_own_words(f"{self.interface.name} refuses the picture"):
                rows.append(np.asarray(self.interface.scores(packed), np.float32).reshape(-1))
        return np.stack(rows)


@contextlib.contextmanager
def _in_its_own_words(what: str) -> Iterator[None]:
    """Turn what an interface of the board raises into a ToolError."""
    try:
        yield
    except Exception as error:  # the vendor's native code: its errors are not documented
        kind, reason = type(error).__name__, str(error)
        raise ToolError(f"{what}: {kind}: {reason}", kind, reason) from None
