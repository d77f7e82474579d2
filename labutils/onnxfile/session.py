"""ONNX Runtime on the CPU: one place that makes sessions, and turns its errors into words."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelFileError, UnknownNameError, without_temporary
from .file import OnnxFile
from .graph import serialized
from .wall import reason_of

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnxruntime

SILENT = 4
"""Severity of what ONNX Runtime logs: fatal errors only. The others are raised, and worded here."""

_EXACT_PRODUCTS = "session.x64quantprecision"
_WRITTEN_TWICE = "Attempt to replace the existing tensor"

_UNREGISTERED = re.compile(r"([\w.]+):(\w+)\(-?\d+\) is not a registered function")
_LEVELS = {"none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC",
           "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}  # fmt: skip


def options(
    optimize: str = "all", threads: int = 0, severity: int = SILENT, exact_products: bool = True
) -> onnxruntime.SessionOptions:
    """Return the options of a session.

    Parameters
    ----------
    optimize
        ``"all"`` lets ONNX Runtime fuse and fold; ``"extended"`` leaves out its own layouts, and
        ``"basic"`` folds constants only; ``"none"`` runs
        every node as it is written.
    threads
        Threads inside one operator; 0 takes as many as `OMP_NUM_THREADS` says, as PyTorch does,
        and leaves it to ONNX Runtime where that is not set. With one, sums keep their order.
    severity
        What ONNX Runtime logs itself, 0 (everything) to 4.
    exact_products
        Sums products of 8-bit integers exactly. ONNX Runtime's default sums pairs of uint8 times
        int8 in 16 bits on x86 processors without VNNI, where they saturate: the same file answers
        otherwise on another laptop. That is faster, so what is timed as a user runs it passes
        False. Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html,
        "When and why do I need to try U8U8?".
    """
    import onnxruntime

    if optimize not in _LEVELS:
        raise UnknownNameError("optimization level", optimize, _LEVELS)
    made = onnxruntime.SessionOptions()
    made.log_severity_level = severity
    made.intra_op_num_threads = threads or _threads_of_environment()
    made.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[optimize])
    if exact_products:
        made.add_session_config_entry(_EXACT_PRODUCTS, "1")
    return made


def _threads_of_environment() -> int:
    """Return what `OMP_NUM_THREADS` allows at the outermost level, 0 where it says nothing.

    ONNX Runtime does not read it, and its threads spin while they wait: where processes share the
    cores they take as much again as the work itself.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() else 0


class Session:
    """An ONNX model, loaded by ONNX Runtime's CPU provider.

    Parameters
    ----------
    model
        A file, or a model in memory.
    optimize, threads, exact_products
        As for `options`.
    name
        What an error calls the model; by default its file, or "the graph".
    optimized
        Where to write the model as ONNX Runtime has optimized it; None writes nothing.

    Attributes
    ----------
    inputs, outputs
        (name, shape, type) of each, as ONNX Runtime says them: ``tensor(float)``.

    Raises
    ------
    ModelFileError
        ONNX Runtime does not load it; the message says why.
    """

    def __init__(
        self,
        model: OnnxFile | str | os.PathLike[str] | onnx.ModelProto,
        *,
        optimize: str = "all",
        threads: int = 0,
        exact_products: bool = True,
        name: str = "",
        optimized: Path | None = None,
    ) -> None:
        settings = options(optimize, threads, exact_products=exact_products)
        if optimized is not None:
            settings.optimized_model_filepath = str(optimized)
        is_file = isinstance(model, OnnxFile | str | os.PathLike)
        self.name = without_temporary(name or (str(model) if is_file else "the graph"))
        source = _loadable(model)
        try:
            self._session = _opened(source, settings)
        except Exception as error:  # onnxruntime's have no common base
            why = _unknown_operator(model, str(error)) or reason_of(error)
            raise ModelFileError(f"ONNX Runtime does not load {self.name}: {why}") from error
        ends = self._session.get_inputs(), self._session.get_outputs()
        self.inputs, self.outputs = ([(e.name, e.shape, e.type) for e in side] for side in ends)

    def run(
        self, feeds: Mapping[str, np.ndarray], names: Sequence[str] | None = None
    ) -> list[np.ndarray]:
        """Return the outputs called `names`, all of them by default, for inputs by name.

        Raises
        ------
        ModelFileError
            A node fails, or the inputs do not fit; the message says why.
        """
        try:
            found: list[np.ndarray] = self._session.run(names, dict(feeds))
        except Exception as error:
            raise ModelFileError(f"{self.name} fails while it runs: {reason_of(error)}") from error
        return found


def _opened(
    source: str | bytes, settings: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    """Open a session; where exact products stop ONNX Runtime, without what it trips over.

    For exact products it writes each int8 weight and zero point again as uint8, by name, and fails
    where two operators read the same one: in the file, or because `ConstantSharing` merged equal
    ones. Without fusion no operator computes with 8 bits, so the products are exact as well.
    """
    import onnxruntime

    for left_out in ([], ["ConstantSharing"], None):
        if left_out is None:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            return onnxruntime.InferenceSession(
                source, settings, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
            )
        except Exception as error:  # onnxruntime's have no common base
            if _WRITTEN_TWICE not in str(error) or left_out is None:
                raise
    raise AssertionError("the last attempt returns or raises")


def _unknown_operator(
    model: OnnxFile | str | os.PathLike[str] | onnx.ModelProto, words: str
) -> str:
    """Return what to do about an operator that ONNX Runtime lacks; "" for other errors."""
    found = _UNREGISTERED.search(words)
    if found is None:
        return ""
    domain, op = found.groups()
    if isinstance(model, OnnxFile | str | os.PathLike):
        model = OnnxFile.of(model).proto
    nodes = model.graph.node
    node = next((n.name or n.output[0] for n in nodes if n.op_type == op), "")
    return (
        f"it does not have the operator {op} of the domain {domain}, at node {node!r}, so the lab "
        "can neither run the network nor compare with it. Export the network without that "
        "operator, or take the part before it (labutils.onnxfile.parts.extract)."
    )


def _loadable(model: OnnxFile | str | os.PathLike[str] | onnx.ModelProto) -> str | bytes:
    """Return what ONNX Runtime loads: the path of a file, the bytes of a model in memory."""
    if isinstance(model, OnnxFile | str | os.PathLike):
        return os.fspath(model)
    return serialized(model, "the graph")
