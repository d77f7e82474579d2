"""From a network with fake quantization to the QDQ file that computes the same.

The exporter sees a marker where a quantizer stood. Each marker then becomes a QuantizeLinear and
a DequantizeLinear; in front of a weight or a bias only the DequantizeLinear stays, and the file
holds the integers. What is written is what ONNX Runtime's own quantizer writes for QNN: unsigned
activations, signed weights, 32-bit biases, and from 16 or 4 bits on below opset 21 the operators
of com.microsoft.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ... import export, metrics, paths, typesetting
from ...errors import LabError, UsageError, counted
from ...images import data
from ...models.model import Model
from ...onnxfile import constants
from ...onnxfile.graph import opset as declared
from ...onnxfile.graph import serialized
from ...onnxfile.wall import wall
from ...runtime import OrtRunner, outputs
from ..prepare import contract_gelus_
from . import graph as qat_graph
from .fake_quant import FakeQuant, full_precision, quantizers
from .qdq_nodes import DOMAIN, MARK, Stored, name_, replace_marks_
from .schedule import facts_of, require_calibration

if TYPE_CHECKING:
    import onnx

WANTED_SQNR_DB = 40.0
"""Of the best quarter of the images: the file on ONNX Runtime, unoptimized, against the network.

With powers of two the two are bit-equal, and otherwise most images are. What is left is the order
of summation: now and then it tips a value to the neighbouring integer, and the layers after it
amplify that. In a large network of 4-bit weights that happens to four images of ten, and those have
25 to 40 dB; a quantizer at a wrong place reaches all of them. It does as much to the network alone:
so the network is also computed with sums in double precision, and the file may depart from it by as
much as the network departs from itself.
"""

_LEAST_SQNR_DB = 20.0  # a quantizer at a wrong place leaves less, whatever the network's own noise
_QUARTER = 4  # as many parts, the best of which is asked
_ROOM_DB = 6.0  # twice the error: two orders of summation were changed, not one
_CHECKED_IMAGES = 16


@dataclass(frozen=True, repr=False)
class QdqReport(typesetting.Shown):
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
        Of the logits (of several outputs: of the worst), ONNX Runtime without optimizations against
        the fake-quantized network; infinity and 0 when they are bit-equal.
    bit_equal
        Images whose logits are the same to the last bit.
    own_db
        The same network in double precision against itself: what the order of summation alone does.
    n, size
        Images that they were compared on, and their side in pixels, or (height, width).
    ignored
        What the recipe asks for and this route does not do.
    """

    path: Path
    opset: int
    activations: Counter
    weights: Counter
    biases: int
    bytes: int
    sqnr_db: float
    max_error: float
    bit_equal: int
    own_db: float
    n: int
    size: data.Size
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        def counted(counter: Counter) -> str:
            return ", ".join(f"{n} {kind}" for kind, n in sorted(counter.items())) or "none"

        equal = (
            "bit-equal" if self.bit_equal == self.n else f"{self.bit_equal} bit-equal\n"
            f"    all: {self.sqnr_db:.1f} dB, largest difference {self.max_error:.2g}\n"
            f"    the network against itself, summed in double precision: {self.own_db:.1f} dB"
        )  # fmt: skip
        return (
            f"{self.path.name}: QDQ, opset {self.opset}, {self.bytes / 1e6:.2f} MB\n"
            f"  activations {counted(self.activations)}; weights {counted(self.weights)}; "
            f"biases {self.biases} int32\n"
            f"  unoptimized ONNX Runtime against the trained network on {self.n} images at "
            f"{data.shown(self.size)}: {equal}"
            + "".join(
                f"\n  IGNORED, torchao has no setting for it: {name}" for name in self.ignored
            )
        )

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


@full_precision()
def to_qdq(
    model: nn.Module,
    path: str | Path,
    *,
    size: data.Size,
    opset: int = 17,
    exporter: str = "auto",
    preprocessing: data.Preprocessing | None = None,
    classes: Sequence[str] = (),
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
        Image side in pixels, or (height, width); the input has the channels of the network.
    opset
        13 to 23; a GELU raises it to 20, the first that has one.
    exporter
        As for `export.to_onnx`.
    preprocessing
        Recorded in the file.
    classes
        One name per output, in order; recorded in the file, which commands then read. Without
        them, `labutils run --data FOLDER` takes the outputs for the folder's classes by name.
    images
        (n, channels, height, width) float32 for the comparison; default 16 Things-16 images.

    Raises
    ------
    UsageError
        The network holds no fake quantization, or was not calibrated; the opset is below 13.
    LabError
        The file does not compute what the network computes: less than 40 dB for the best quarter
        of the images, which the order of summation does not explain.
    """
    path = Path(path)
    if not quantizers(model):
        raise UsageError(
            f"{type(model).__name__} has no fake quantization: call qat.prepare first."
        )
    if opset < 13:
        raise UsageError(f"QDQ with one scale per channel needs opset 13 or later, not {opset}.")
    require_calibration(model)
    channels = preprocessing.channels if preprocessing else facts_of(model).get("channels", 3)
    if images is None:
        convention = {3: data.Preprocessing(size), 1: data.Preprocessing(size, (0.5,), (0.25,))}
        shown = preprocessing or convention[channels]
        images = shown(data.calibration(_CHECKED_IMAGES, size).images)
    marked, stored = _marked(model, opset)
    example = torch.zeros(1, channels, *data.sides(size))
    origin = _named(model, preprocessing, classes)
    graph = export.unchecked(marked, example, opset, exporter, preprocessing, origin)
    _refuse_other_classes(graph.graph, classes)
    _fold_shapes_(graph)
    contract_gelus_(graph)  # no rounding comes between the parts of one
    opset = declared(graph)
    name_(graph.graph, getattr(model, "meta", {}).get("names", {}))
    counts = replace_marks_(graph, stored, opset)
    with paths.atomic(path) as temporary:
        temporary.write_bytes(serialized(graph, path.name))
        found = compared(copy.deepcopy(model).eval(), temporary, images, path.name)
    return QdqReport(
        path, opset, counts["activations"], counts["weights"], counts["biases"],
        path.stat().st_size, **found, n=len(images), size=size,
    )  # fmt: skip


def _named(
    model: nn.Module, preprocessing: data.Preprocessing | None, classes: Sequence[str]
) -> Model | None:
    """Return what the file says of a network that was trained in a custom loop."""
    if not classes:
        return None
    note = "trained in a custom loop"
    return Model(type(model).__name__, None, preprocessing, tuple(classes), "", note, trained=True)


def _refuse_other_classes(graph: onnx.GraphProto, classes: Sequence[str]) -> None:
    if not classes:
        return
    dims = graph.output[0].type.tensor_type.shape.dim
    found = dims[-1].dim_value if dims else 1
    if len(classes) != found:
        raise UsageError(
            f"{len(classes)} classes for {counted(found, 'output')}: pass one name for each, in "
            "the order of the outputs."
        )


def _fold_shapes_(model: onnx.ModelProto) -> None:
    """Store the sizes that a network over tokens computes, and what it makes of them."""
    import onnx_ir as ir

    if any(node.op_type in ("Shape", "ConstantOfShape") for node in model.graph.node):
        advice = "Export the network in float (labutils export), and look at what computes sizes."
        with wall("onnx_ir cannot fold the sizes of", "the network", model=model, advice=advice):
            read = ir.from_proto(model)
            constants.fold_(read, constants.MOST_ELEMENTS, shapes=True)
            model.CopyFrom(ir.to_proto(read))


def compared(network: nn.Module, file: Path, images: np.ndarray, name: str) -> dict[str, Any]:
    """Run a QDQ file beside the network it was made from; return how near they are.

    Parameters
    ----------
    network
        With fake quantization, in evaluation mode.
    file, name
        The file (it may be a temporary one), and its name for messages.
    images
        (n, channels, height, width) float32.

    Returns
    -------
    dict
        `sqnr_db`, `max_error`, `bit_equal`, `own_db`, as in `QdqReport`.

    Raises
    ------
    LabError
        The best quarter of the images has less than 40 dB, or the median one less than 20, and the
        order of summation does not explain it.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    inputs = torch.from_numpy(images).to(device)
    with torch.no_grad(), OrtRunner(file, optimize=False) as runner:
        expected, got = _arrays(network(inputs)), runner.tensors(images)
        with _SumsInDouble():
            exact = _arrays(network(inputs))
    floats = [o for o, values in expected.items() if values.dtype.kind == "f"] or list(expected)
    triples = [(exact[o], expected[o], got[o]) for o in floats]
    for output, (sums, ours, theirs) in zip(floats, triples, strict=True):
        found, own = _decibels(ours, theirs), _decibels(sums, ours)
        _refuse_departure(found, own, f"{name}, output '{output}'," if len(floats) > 1 else name)
    equal = [(a == b).reshape(len(b), -1).all(axis=1) for _, a, b in triples]
    return {
        "sqnr_db": min(metrics.sqnr_db(a, b) for _, a, b in triples),
        "max_error": max(float(np.abs(a - b).max()) for _, a, b in triples),
        "bit_equal": int(np.logical_and.reduce(equal).sum()),
        "own_db": min(metrics.sqnr_db(s, a) for s, a, _ in triples),
    }


def _arrays(given: Any) -> dict[str, np.ndarray]:
    """Return what a network gives, by the names that its file has."""
    return {name: values.cpu().numpy() for name, values in outputs.named(given).items()}


def _refuse_departure(found: list[float], own: list[float], name: str) -> None:
    """Raise LabError where a file departs from its network further than the network from itself."""
    best = max(1, len(found) // _QUARTER)
    wanted = min(WANTED_SQNR_DB, max(own[best - 1] - _ROOM_DB, _LEAST_SQNR_DB))
    if found[best - 1] < wanted or np.median(found) < _LEAST_SQNR_DB:
        raise LabError(
            f"{name} does not compute what the network computes: {found[best - 1]:.1f} dB for the "
            f"best {counted(best, 'image')} of {len(found)}, {np.median(found):.1f} dB for the "
            f"median one; {wanted:.1f} and {_LEAST_SQNR_DB:.1f} dB are required. Please report the "
            "network: a quantizer was written in another place than it was trained in."
        )


def _decibels(reference: np.ndarray, found: np.ndarray) -> list[float]:
    """Return the SQNR of each image, the best one first."""
    pairs = zip(reference, found, strict=True)
    return sorted((metrics.sqnr_db(a, b) for a, b in pairs), reverse=True)


class _SumsInDouble(TorchDispatchMode):
    """Inside the block, sums of products and means are made in float64, and rounded once."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
        aten = torch.ops.aten
        sums = {aten.convolution, aten.addmm, aten.linear, aten.mm, aten.bmm, aten.mean}
        if func.overloadpacket not in sums:
            return func(*args, **(kwargs or {}))
        wide, named = tree_map_only(torch.Tensor, torch.Tensor.double, (args, kwargs or {}))
        return func(*wide, **named).float()


def _marked(model: nn.Module, opset: int) -> tuple[nn.Module, dict[str, Stored]]:
    """Return a copy of `model` with markers for quantizers, and what each marker stands for."""
    marked, stored = copy.deepcopy(model).cpu().eval(), {}
    activations = qat_graph.activations_of(marked)
    weights, biases = qat_graph.weights_of(marked), qat_graph.biases_of(marked)
    with torch.no_grad():
        for name, (_, rounding) in biases.items():
            step = rounding.step.numpy()
            per_channel = name in weights and weights[name][1].grid.axis is not None
            # one scale per channel for the bias of a weight with one: the HTP misreads the rest
            step = step if per_channel else step.reshape(())
            stored[f"{name}.bias"] = Stored(
                step, np.zeros(step.shape, np.int32), 0 if per_channel else None
            )
        for name, (_, quantizer) in weights.items():
            stored[f"{name}.weight"] = _stored(quantizer)
        for name, quantizer in activations.items():
            stored[_key_of(name)] = _stored(quantizer)
    module: Any  # what `parametrize` adds is not in its type
    for name, (module, _) in biases.items():
        module.parametrizations.bias[-1] = _Marker(f"{name}.bias")
    for name, (module, _) in weights.items():
        module.parametrizations.weight[-1] = _Marker(f"{name}.weight")
    for name in activations:
        marked.set_submodule(name, _Marker(_key_of(name)))
    return marked, stored


def _key_of(quantizer: str) -> str:
    """Return what a marker calls a quantizer; one of a parameter, by the parameter's name."""
    return quantizer.replace(".parametrizations.weight.0", ".weight")


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
