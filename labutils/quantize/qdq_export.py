"""From a network with fake quantization to the QDQ file that computes the same.

The exporter sees a marker where a quantizer stood. Each marker then becomes a QuantizeLinear and
a DequantizeLinear; in front of a weight or a bias only the DequantizeLinear stays, and the file
holds the integers. What is written is what ONNX Runtime's own quantizer writes for QNN: unsigned
activations, signed weights, 32-bit biases, and from 16 or 4 bits on below opset 21 the operators
of com.microsoft.
"""

from __future__ import annotations

import copy
import html
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import data, export, metrics, paths
from ..errors import LabError, UsageError
from ..runtime import OrtRunner
from . import qat_graph
from .fake_quant import FakeQuant, quantizers
from .qdq_nodes import DOMAIN, MARK, Stored, name_, replace_marks_

LEAST_SQNR_DB = 30.0
"""Of the file on ONNX Runtime, unoptimized, against the network it was made from.

Typically 40 to 75 dB, and with powers of two bit-equal. What is left is the order of summation:
once in a million values it tips one to the neighbouring integer, and the layers behind make more of
it (in MobileNetV3-Large, int8, 1 of 295,000 in the fifth layer becomes 1 % of the twentieth). A
quantizer at a wrong place leaves less than 20 dB.
"""

_CHECKED_IMAGES = 16


@dataclass(frozen=True)
class QdqReport:
    """What was written, and how it compares with the network that was trained.

    Attributes
    ----------
    path, opset
        The file, and the opset that it declares.
    activations, weights
        Number of tensors by type, as ``uint8``.
    biases
        Number of biases, all int32.
    bytes
        Size of the file.
    sqnr_db, max_error
        Of the logits, ONNX Runtime without optimizations against the fake-quantized network;
        infinity and 0 when they are bit-equal.
    compared
        What they were compared on.
    """

    path: Path
    opset: int
    activations: Counter
    weights: Counter
    biases: int
    bytes: int
    sqnr_db: float
    max_error: float
    compared: str

    def __str__(self) -> str:
        def counted(counter: Counter) -> str:
            return ", ".join(f"{n} {kind}" for kind, n in sorted(counter.items())) or "none"

        equal = (
            "bit-equal" if math.isinf(self.sqnr_db) else f"{self.sqnr_db:.1f} dB, "
            f"largest difference {self.max_error:.2g}"
        )  # fmt: skip
        return (
            f"{self.path.name}: QDQ, opset {self.opset}, {self.bytes / 1e6:.2f} MB\n"
            f"  activations {counted(self.activations)}; weights {counted(self.weights)}; "
            f"biases {self.biases} int32\n"
            f"  unoptimized ONNX Runtime against the trained network on {self.compared}: {equal}"
        )

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {**self.__dict__, "path": str(self.path)}


class _Mark(torch.autograd.Function):
    """An identity that TorchScript's exporter writes as a marker node."""

    @staticmethod
    def forward(ctx, x, key):  # noqa: ANN001
        return x.clone()

    @staticmethod
    def symbolic(g, x, key):  # noqa: ANN001
        return g.op(f"{DOMAIN}::{MARK}", x, key_s=key).setType(x.type())


class _Marker(nn.Module):
    """Stands where a quantizer stood while the graph is exported."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting():
            return torch.onnx.ops.symbolic(
                f"{DOMAIN}::{MARK}", (x,), {"key": self.key}, dtype=x.dtype, shape=x.shape
            )
        return _Mark.apply(x, self.key)


def to_qdq(
    model: nn.Module,
    path: str | Path,
    *,
    size: int,
    opset: int = 17,
    exporter: str = "auto",
    preprocessing: data.Preprocessing | None = None,
    images: np.ndarray | None = None,
) -> QdqReport:
    """Write a network with fake quantization as a QDQ file, and compare the two.

    Parameters
    ----------
    model
        What `qat.prepare` returned, calibrated; it is left as it is.
    path
        The ``.onnx`` file; it appears only when the comparison has passed.
    size
        Image side in pixels; the input is (1, 3, size, size).
    opset
        13 to 23.
    exporter
        As for `export.to_onnx`.
    preprocessing
        Recorded in the file.
    images
        (n, 3, size, size) float32 for the comparison; default 16 Things-16 images.

    Raises
    ------
    UsageError
        The network holds no fake quantization, or was not calibrated; the opset is below 13.
    LabError
        The file does not compute what the network computes: an SQNR below 30 dB.
    """
    path = Path(path)
    if not quantizers(model):
        raise UsageError(
            f"{type(model).__name__} has no fake quantization: call qat.prepare first."
        )
    if opset < 13:
        raise UsageError(f"QDQ with one scale per channel needs opset 13 or later, not {opset}.")
    if images is None:
        shown = preprocessing or data.Preprocessing(size)
        images = shown(data.calibration(_CHECKED_IMAGES, size).images)
    marked, stored = _marked(model, opset)
    example = torch.zeros(1, 3, size, size)
    graph = export.unchecked(marked, example, opset, exporter, preprocessing)
    name_(graph.graph, getattr(model, "meta", {}).get("scopes", {}))
    counts = replace_marks_(graph, stored, opset)
    with paths.atomic(path) as temporary:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))
        sqnr, error = _compared(model, temporary, images)
        if sqnr < LEAST_SQNR_DB:
            raise LabError(
                f"{path.name} does not compute what the trained network computes: {sqnr:.1f} dB "
                f"on {len(images)} images, at least {LEAST_SQNR_DB:g} dB are wanted. Please report "
                "the network: a quantizer was written at another place than it was trained."
            )
    return QdqReport(
        path, opset, counts["activations"], counts["weights"], counts["biases"],
        path.stat().st_size, sqnr, error, f"{len(images)} images at {size} px",
    )  # fmt: skip


def _compared(model: nn.Module, file: Path, images: np.ndarray) -> tuple[float, float]:
    was = model.training
    device = next(model.parameters()).device
    with torch.no_grad(), OrtRunner(file, optimize=False) as runner:
        expected = model.eval()(torch.from_numpy(images).to(device)).float().cpu().numpy()
        got = runner.run(images)
    model.train(was)
    return metrics.sqnr_db(expected, got), float(np.abs(expected - got).max())


def _marked(model: nn.Module, opset: int) -> tuple[nn.Module, dict[str, Stored]]:
    """Return a copy of `model` with markers for quantizers, and what each marker stands for."""
    marked, stored = copy.deepcopy(model).cpu().eval(), {}
    activations = qat_graph.activations_of(marked)
    weights, biases = qat_graph.weights_of(marked), qat_graph.biases_of(marked)
    with torch.no_grad():
        for name, (_, rounding) in biases.items():
            step, per_channel = rounding.step.numpy(), weights[name][1].grid.axis is not None
            # one scale per channel for the bias of a weight with one: the HTP misreads the rest
            step = step if per_channel else step.reshape(())
            stored[f"{name}.bias"] = Stored(
                step, np.zeros(step.shape, np.int32), 0 if per_channel else None
            )
        for name, (_, quantizer) in weights.items():
            stored[f"{name}.weight"] = _stored(quantizer)
        for name, quantizer in activations.items():
            stored[name] = _stored(quantizer)
    for name, (module, _) in biases.items():
        module.parametrizations.bias[-1] = _Marker(f"{name}.bias")
    for name, (module, _) in weights.items():
        module.parametrizations.weight[-1] = _Marker(f"{name}.weight")
    for name in activations:
        marked.set_submodule(name, _Marker(name))
    return marked, stored


def _stored(quantizer: FakeQuant) -> Stored:
    import ml_dtypes

    grid = quantizer.grid
    names = {4: ml_dtypes.int4 if grid.signed else ml_dtypes.uint4}
    kind = np.dtype(names.get(grid.bits) or f"{'' if grid.signed else 'u'}int{grid.bits}")
    scale = quantizer.step.detach().numpy().astype(np.float32)
    zero = np.broadcast_to(quantizer.zero_point.numpy(), scale.shape).astype(kind)
    if grid.axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    return Stored(scale, zero, grid.axis)
