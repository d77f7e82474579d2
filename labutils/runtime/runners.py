"""One way to run anything: PyTorch, ONNX Runtime on the CPU, Qualcomm's HTP simulator, LiteRT.

What a runner is, `runner` says. The HTP simulator computes what the chip's compiler made, on this
machine's processor: its results stand for the chip's, its time does not.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelFileError, UnknownNameError, UsageError
from ..onnxfile.file import OnnxFile
from ..onnxfile.session import Session
from ..tracking import Progress
from . import batches, outputs, qnn
from .litert import LiteRtRunner
from .qnn import dlc_file, options, refusal
from .runner import Closing, Runner

if TYPE_CHECKING:
    import torch

# The x86-64 wheel simulates; the arm64 wheels drive the NPU of the machine (not tested by us).
_HTP = "HTP simulator" if platform.machine().lower() in ("x86_64", "amd64") else "HTP"


class TorchRunner(Closing):
    """A PyTorch module on the CPU, in evaluation mode.

    An exported program with a fixed batch gets that, everything else 32 images at a time.

    Parameters
    ----------
    module
        It gives a tensor, or a tuple, list or dict of tensors; see `outputs.named`.
    output
        Which output has the scores; by default the one whose shape and name say so.
    names
        Other names for the outputs, in order.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        name: str | None = None,
        output: str | None = None,
        names: Sequence[str] = (),
    ) -> None:
        import torch

        self.module, self.batch = module.eval(), _exported_batch(module)
        self.name = name or type(module).__name__
        self.runtime = f"PyTorch {torch.__version__.split('+')[0]} CPU"
        self.file: Path | None = None
        self._wanted, self._names = output, tuple(names)

    def tensors(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output by name, images along the first axis."""
        batch = batches.checked(batch, [None] * 4, self.name)
        step = self.batch or 1
        batches.split(batch, step, self.name)
        found = self._run(batch, self.batch or 32)
        if self.batch is None and any(len(values) != len(batch) for values in found.values()):
            found = self._run(batch, 1)  # an output that is not per image: once for each of them
        self._choose(outputs.of_arrays(found), final=True)
        return found

    def _run(self, batch: np.ndarray, step: int) -> dict[str, np.ndarray]:
        import torch

        with torch.inference_mode():
            given = [self.module(x) for x in torch.from_numpy(batch).split(step)]
        try:
            parts = [outputs.named(entry, self._names) for entry in given]
        except TypeError as error:
            raise UsageError(
                f"{self.name} gives {error}; a tensor is needed, or a tuple, list or dict of "
                "tensors. Wrap it in a module that gives those."
            ) from None
        arrays = [{n: _plain(tensor) for n, tensor in part.items()} for part in parts]
        return batches.joined(arrays, step)


class Mirrored(Closing):
    """Another runner on the mirror images of what it is given, left to right.

    A change of the picture that nobody worries about, to measure a change of the network by.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner, self.name = runner, f"{runner.name}, mirrored"
        self.runtime = f"{runner.runtime}, on the mirrored image"
        self.file: Path | None = None  # no file does that

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return logits, float32 (n, classes), for images, float32 (n, channels, height, width)."""
        return self.runner.run(np.ascontiguousarray(batch[..., ::-1]))

    def tensors(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output by name, images along the first axis."""
        found = run_all(self.runner, np.ascontiguousarray(batch[..., ::-1]))
        self.output = scores_name(self.runner)
        return found


class OrtRunner(Closing):
    """An ONNX file on ONNX Runtime's CPU provider.

    Parameters
    ----------
    file
        The ONNX file; it takes one float32 image.
    optimize
        Whether ONNX Runtime may fuse and fold; off for layer-by-layer comparison.
    threads
        Threads inside one operator; 0 leaves it to ONNX Runtime.
    output
        Which output has the scores; by default the one whose shape and name say so.
    """

    def __init__(
        self,
        file: OnnxFile | str | Path,
        optimize: bool = True,
        threads: int = 0,
        name: str | None = None,
        output: str | None = None,
    ) -> None:
        import onnxruntime as ort

        self.onnx = OnnxFile.of(file)
        self.file = self.onnx.path
        _ = self.onnx.proto  # what is not an ONNX file is refused by what it is
        level = "all" if optimize else "none"
        self.session = Session(self.onnx, optimize=level, threads=threads)
        self.name = name or self.file.name
        self.runtime = f"ONNX Runtime {ort.__version__} CPU" + ("" if optimize else ", unoptimized")
        self.input, self.shape = batches.image_input(self.session.inputs, self.name)
        self._wanted = output
        self._choose(outputs.listed(self.session.outputs), self.onnx)

    def tensors(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return every graph output by name, images along the first axis."""
        batch = batches.checked(batch, self.shape, self.name)
        names = [name for name, *_ in self.session.outputs]
        step = self.shape[0] if isinstance(self.shape[0], int) else len(batch)
        parts = [self.session.run({self.input: p}) for p in batches.split(batch, step, self.name)]
        found = batches.joined([dict(zip(names, part, strict=True)) for part in parts], step)
        self._choose(outputs.of_arrays(found), self.onnx, final=True)
        return found

    def close(self) -> None:
        """Drop the session."""
        self.__dict__.pop("session", None)


class HtpRunner(Closing):
    """An ONNX file or a DLC, compiled for a Snapdragon chip, on Qualcomm's HTP simulator.

    Float graphs are computed in float16, as the chip does it; QDQ graphs in their integers.
    Strict: a node that the HTP cannot take is a ConvertError, never a silent step on the CPU.

    Parameters
    ----------
    file
        The ONNX file, with static shapes; or a ``.dlc``, whose own graph is executed.
    soc
        The chip, e.g. ``"SM8550"``; `qnn.SOCS` lists them.
    workers
        Processes that share out the images.
    pool
        Your own workers, instead of the ones that this process shares.
    progress
        Called as ``progress(iterable, description)`` around the images.
    output
        Which output has the scores; by default the one whose shape and name say so.
    memory
        What was simulated before and need not be again; by default every image is simulated.
    """

    def __init__(
        self,
        file: OnnxFile | str | Path,
        soc: str | qnn.Soc = "SM8550",
        workers: int = 2,
        pool: qnn.Pool | None = None,
        progress: Progress | None = None,
        name: str | None = None,
        output: str | None = None,
        memory: qnn.Memory | None = None,
    ) -> None:
        self.file = Path(file)
        self.soc = qnn.soc(soc)
        is_dlc = self.file.suffix.lower() == ".dlc"
        self.onnx = None if is_dlc else OnnxFile.of(file)
        if self.onnx:
            refusal.precheck(self.onnx, self.soc)
        elif not dlc_file.read(self.file).quantized:
            refusal.refuse_float(self.file, self.soc)
        version = qnn.require().versions["QNN"]
        self.pool = pool or qnn.shared(workers)
        self.progress, self.memory = progress, memory
        self.graph = qnn.Graph.of(self.onnx or self.file, options.htp(self.soc))
        facts = self.pool.build(self.graph, f"compiling it for {self.soc}")
        self.name = name or self.file.name
        what = "DLC on " if is_dlc else ""
        self.runtime = f"{what}{_HTP} (QNN {_short(version)}, {self.soc.name})"
        self.input, self.shape = batches.image_input(facts["inputs"], self.name)
        self._wanted = output
        self._choose(outputs.listed(facts["outputs"]), self.onnx)

    def tensors(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return every graph output by name, images along the first axis."""
        batch = batches.checked(batch, self.shape, self.name)
        items = [{self.input: part} for part in batches.split(batch, self.shape[0], self.name)]
        if self.memory is None:
            parts = self._simulate(items)
        else:
            parts = self.memory.complete(self.graph, items, self._simulate)
        found = batches.joined(parts, self.shape[0])
        self._choose(outputs.of_arrays(found), self.onnx, final=True)
        return found

    def _simulate(self, items: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        return self.pool.run(self.graph, items, self.progress)


_RUN_BY = {".onnx": ("ort", "htp"), ".dlc": ("htp",), ".tflite": ("litert",)}
"""File ending -> the backends that run it, the usual one first."""


def connect(artifact: Any, backend: str = "auto", **settings: Any) -> Runner:
    """Return a runner for a module or a model file.

    Parameters
    ----------
    artifact
        A ``torch.nn.Module``, an `OnnxFile`, or the path of an ``.onnx``, ``.dlc`` or ``.tflite``
        file.
    backend
        ``"torch"``, ``"ort"``, ``"htp"``, ``"litert"``; ``"auto"`` takes torch for a module, ort
        for an ``.onnx``, htp for a ``.dlc``, litert for a ``.tflite``.
    **settings
        What the runner takes: ``output=``, ``soc=``, ``workers=``, ``optimize=``, ``threads=``,
        ``layout=``, ``name=``.

    Raises
    ------
    ModelFileError
        The file is missing, truncated, or of a format that no backend here runs.
    UnknownNameError
        No such backend, no such chip, or no such output.
    ConvertError
        The HTP refuses the graph.
    MissingToolError
        The backend needs Qualcomm's wheel, or LiteRT's, which is not here.

    Examples
    --------
    >>> import numpy as np
    >>> from labutils import runtime
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Hardswish(), nn.Flatten())
    >>> with runtime.connect(net) as runner:
    ...     logits = runner.run(np.zeros((2, 3, 32, 32), np.float32))
    >>> logits.shape, logits.dtype
    ((2, 1800), dtype('float32'))
    """
    kinds: dict[str, Any] = {
        "torch": TorchRunner, "ort": OrtRunner, "htp": HtpRunner, "litert": LiteRtRunner
    }  # fmt: skip
    if backend not in (*kinds, "auto"):
        raise UnknownNameError("backend", backend, [*kinds, "auto"])
    torch = sys.modules.get("torch")
    module = torch is not None and isinstance(artifact, torch.nn.Module)
    if module and backend in ("auto", "torch"):
        return TorchRunner(artifact, **settings)
    if module or backend == "torch":
        raise UsageError(
            f"Backend {backend} cannot run {'a module' if module else artifact}: torch runs "
            "modules, ort, htp and litert run files."
        )
    path = Path(artifact)
    if not path.is_file():
        raise ModelFileError(f"There is no file {path}.")
    runs = _RUN_BY.get(path.suffix.lower())
    if runs is None or backend not in ("auto", *runs):
        raise ModelFileError(
            f"Backend {backend} does not run {path.name}: ort and htp run .onnx, htp runs .dlc, "
            "litert runs .tflite."
        )
    runner: Runner = kinds[runs[0] if backend == "auto" else backend](artifact, **settings)
    return runner


def run_all(runner: Runner, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Return every output by name; of a runner that gives logits only, those."""
    tensors = getattr(runner, "tensors", None)
    return tensors(batch) if tensors else {outputs.ONLY: runner.run(batch)}


def scores_name(runner: Runner) -> str:
    """Return the name of the output that has the scores, "" where none does; after a run."""
    if not hasattr(runner, "tensors"):
        return outputs.ONLY
    return getattr(runner, "output", None) or ""


def _exported_batch(module: torch.nn.Module) -> int | None:
    """Return the batch that a program of `torch.export` was traced with; None for other modules."""
    nodes = getattr(getattr(module, "graph", None), "nodes", ())
    values = [node.meta.get("val") for node in nodes if node.op == "placeholder"]
    shape: tuple[Any, ...] = getattr(values[0], "shape", ()) if values else ()
    return shape[0] if len(shape) and isinstance(shape[0], int) else None


def _plain(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return array


def _short(version: str) -> str:
    return ".".join(version.split(".")[:2])
