"""The function that a quantized file computes without its rounding, and whether it is the source's.

Rounding hides a wrong function: an int8 file may miss the float file's logits by 10 dB because it
rounds, or because the quantizer lost an attribute. So the rounding is taken out of a copy. Every
QuantizeLinear and DequantizeLinear of an activation goes, every DequantizeLinear of a constant
makes way for the float weight that it was made from, and what is left must compute what the source
computes, up to the order of float sums.

ONNX Runtime's quantizer removes a Relu or a Clip whose work the range of the QuantizeLinear behind
it does: codes reach from 0, so nothing negative passes. Such a node is put back, after a check that
the range does not reach further than the node lets pass.
"""

from __future__ import annotations

import contextlib
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compare.layerwise import opened
from ..errors import LabError, ModelFileError, WrongFunctionError, counted
from ..onnxfile.edit import free_name, nodes_within, producers, readers, redirect_, subgraphs
from ..onnxfile.session import Session

if TYPE_CHECKING:
    import onnx

MOST_IMAGES = 32
LIMIT = 1e-5
"""Largest difference that the order of float sums explains, in units of the largest output."""

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_CODES, _MEANT = "_quantized", "_DequantizeLinear_Output"  # what ONNX Runtime appends to a weight
_RECTIFIERS = ("Relu", "Clip")  # what ONNX Runtime's quantizer leaves to a range
_HALF = 0.51  # of a step: what rounding to the nearest code moves a value
_ONE = 1.01  # where the zero point is rounded, too, the outermost codes lie up to a step too near
_FLOAT32 = 2e-6  # relative: what dividing by the scale and multiplying again moves a value


@dataclass(frozen=True)
class FloatFunction:
    """How the function without rounding compares with the source's.

    Attributes
    ----------
    error
        Largest difference of an output, in units of that output's largest value.
    images
        How many it was compared on.
    drawn
        Whether these were drawn at random, because no images were known.
    put_back
        Names of the Relus and Clips whose work ranges do.
    clipped
        Weights that lie outside the range of their codes, by tensor: a recipe may want that.
    on_purpose
        What changed the function afterwards, because the recipe wants it, one sentence each.
    """

    error: float
    images: int
    drawn: bool = False
    put_back: tuple[str, ...] = ()
    clipped: dict[str, int] = field(default_factory=dict)
    on_purpose: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = "random input" if self.drawn else "image"
        said = (
            "without its rounding, the file computes what the source computes: "
            f"{format(self.error, '.1e') if self.error else 0} of the largest logit, "
            f"{counted(self.images, what)}"
        )
        if self.clipped:
            weights, tensors = sum(self.clipped.values()), len(self.clipped)
            said += f"; clipped on purpose: {counted(weights, 'weight')} of {tensors} tensors"
        if self.on_purpose:
            said += "; changed on purpose after that: see repairs"
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison for a manifest; two digits of the error, the rest is the CPU's."""
        return {
            "error": float(f"{self.error:.1e}"), "limit": LIMIT, "images": self.images,
            "drawn": self.drawn, "ranges_that_rectify": list(self.put_back),
            "clipped_weights": dict(self.clipped), "on_purpose": list(self.on_purpose),
        }  # fmt: skip


def compare_functions(
    quantized: onnx.ModelProto,
    floating: onnx.ModelProto,
    source: onnx.ModelProto,
    inputs: np.ndarray,
    name: str,
    drawn: bool = False,
    clips: bool = False,
) -> FloatFunction:
    """Compare a quantized model, without its rounding, with the file that it was made from.

    Parameters
    ----------
    quantized
        The QDQ model, before anything that changes what it computes on purpose.
    floating
        The float model that was handed to the quantizer, equalized or not.
    source
        The user's float model; it may be `floating`.
    inputs
        (n, 3, height, width) float32; the first 32 are used.
    name
        Of the quantized file, for messages.
    drawn
        Whether the inputs are random.
    clips
        Whether the recipe clips weights to the range of least error.

    Raises
    ------
    WrongFunctionError
        The two compute different functions, a weight's codes do not stand for it, or a constant
        has no float weight; the message names the node.
    """
    rebuilt = _Rebuilding(quantized, floating, name, clips)
    model = rebuilt.model()
    inputs = inputs[:MOST_IMAGES]
    error = _difference(source, model, inputs, name)
    if not error <= LIMIT:
        raise WrongFunctionError(
            f"{name} does not compute what its source computes, and rounding is not the reason: "
            f"without its rounding the outputs differ by {error:.1e} of the largest, {LIMIT:g} is "
            f"allowed. Nothing was written. {_first_departure(floating, model, inputs[:1])}"
        )
    return FloatFunction(error, len(inputs), drawn, tuple(rebuilt.put_back), rebuilt.clipped)


def unrectified(quantized: onnx.ModelProto, floating: onnx.ModelProto) -> tuple[str, ...]:
    """Return the Relus and Clips that were removed and whose work no range does, by node name."""
    found = _Pairs(quantized)
    return tuple(
        f"{gone.node.op_type} '{gone.node.name}'"
        for gone in _removed(found, floating)
        if _why_not_covered(found, gone, floating)
    )


class _Pairs:
    """A QDQ graph: who makes and reads what, and which float tensor stands behind a pair."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        nodes = list(model.graph.node)
        self.maker, self.readers = producers(nodes), readers(nodes)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.captured = {n for node in nodes for g in subgraphs(node) for m in nodes_within(g)
                         for n in m.input}  # fmt: skip
        self.outputs = {entry.name for entry in model.graph.output}

    def behind(self, name: str) -> str:
        """Return the tensor that was rounded into this one; itself where none was."""
        maker = self.maker.get(name)
        while maker is not None and maker.op_type in (_QUANTIZE, _DEQUANTIZE):
            if maker.input[0] in self.constants:
                return name
            name = maker.input[0]
            maker = self.maker.get(name)
        return name

    def codes(self) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that turn stored codes into a weight."""
        for node in self.model.graph.node:
            if node.op_type == _DEQUANTIZE and node.input[0] in self.constants:
                yield node

    def number(self, name: str) -> np.ndarray:
        from onnx import numpy_helper

        return np.asarray(numpy_helper.to_array(self.constants[name])).astype(np.float64)


@dataclass(frozen=True)
class _Removed:
    """A Relu or Clip that the quantizer removed, and the tensor that now ends up rounded."""

    node: onnx.NodeProto
    rounded: str


def _removed(found: _Pairs, floating: onnx.ModelProto) -> list[_Removed]:
    """Return what was removed, the last ones first: of a Relu before a Clip, the Clip."""
    stands_for: dict[str, str] = {}
    gone = []
    for node in reversed(floating.graph.node):
        if node.op_type not in _RECTIFIERS:
            continue
        made = found.behind(stands_for.get(node.output[0], node.output[0]))
        maker = found.maker.get(made)
        kept = maker is not None and maker.op_type == node.op_type and maker.name == node.name
        if maker is not None and not kept:
            gone.append(_Removed(node, made))
            stands_for[node.input[0]] = made
    return gone


def _why_not_covered(found: _Pairs, gone: _Removed, floating: onnx.ModelProto) -> str:
    """Return why the range does not do a removed node's work; "" where it does."""
    low, high = _bounds(gone.node, floating)
    if np.isnan([low, high]).any():
        return "its bounds are computed"
    behind = found.readers.get(gone.rounded, [])
    others = [node for node in behind if node.op_type != _QUANTIZE]
    if others or gone.rounded in found.outputs | found.captured or not behind:
        return f"{others[0].op_type} '{others[0].name}' reads it" if others else "nothing rounds it"
    for node in behind:
        ends, step = _range(found, node)
        if ends[0] < low - step or ends[1] > high + step:
            return f"'{node.name}' rounds to {ends[0]:g}..{ends[1]:g}"
    return ""


def _bounds(node: onnx.NodeProto, floating: onnx.ModelProto) -> tuple[float, float]:
    """Return what a Relu or a Clip lets pass; NaN for a bound that is computed."""
    from onnx import numpy_helper

    if node.op_type == "Relu":
        return 0.0, np.inf
    ends = {"min": -np.inf, "max": np.inf}
    ends |= {a.name: a.f for a in node.attribute if a.name in ends}  # before opset 11
    values = {tensor.name: tensor for tensor in floating.graph.initializer}
    for end, name in zip(ends, node.input[1:], strict=False):
        if name:
            known = values.get(name)
            ends[end] = np.nan if known is None else float(numpy_helper.to_array(known).item())
    return ends["min"], ends["max"]


def _range(found: _Pairs, node: onnx.NodeProto) -> tuple[tuple[float, float], float]:
    """Return the least and greatest value that a QuantizeLinear's codes stand for, and a step."""
    import ml_dtypes

    scale, zero = float(found.number(node.input[1]).item()), 0.0
    codes = ml_dtypes.iinfo(np.dtype(np.uint8))
    if len(node.input) > 2 and node.input[2]:
        zero = float(found.number(node.input[2]).item())
        codes = _type_of(found.constants[node.input[2]])
    return (scale * (int(codes.min) - zero), scale * (int(codes.max) - zero)), scale


def _type_of(codes: onnx.TensorProto) -> Any:
    """Return the least and greatest code of a tensor's type, as `min` and `max`."""
    import ml_dtypes
    from onnx import helper

    return ml_dtypes.iinfo(np.dtype(helper.tensor_dtype_to_np_dtype(codes.data_type)))


class _Rebuilding:
    """A copy of a QDQ graph whose rounding is taken out."""

    def __init__(
        self, quantized: onnx.ModelProto, floating: onnx.ModelProto, name: str, clips: bool
    ) -> None:
        self.found, self.floating, self.name = _Pairs(quantized), floating, name
        self.clips = clips
        self.weights = {tensor.name: tensor for tensor in floating.graph.initializer}
        self.put_back: list[str] = []
        self.clipped: dict[str, int] = {}

    def model(self) -> onnx.ModelProto:
        """Return the copy."""
        instead = self._float_weights()
        gone = _removed(self.found, self.floating)
        for one in gone:
            if why := _why_not_covered(self.found, one, self.floating):
                raise WrongFunctionError(
                    f"{self.name} lost {one.node.op_type} '{one.node.name}': the quantizer left "
                    f"its work to the range of its output, and {why}. Nothing was written. "
                    f"Exclude '{one.node.name}' by name in the recipe, and quantize again."
                )
        model = type(self.floating)()
        model.CopyFrom(self.found.model)
        graph = model.graph
        pairs = [node for node in graph.node if node.op_type in (_QUANTIZE, _DEQUANTIZE)]
        instead |= {n.output[0]: self.found.behind(n.output[0]) for n in pairs
                    if n.output[0] not in instead}  # fmt: skip
        for node in pairs:
            graph.node.remove(node)
        _read_instead_(graph, instead)
        self._put_back_(graph, gone)
        return model

    def _float_weights(self) -> dict[str, str]:
        """Return the float weight to read in place of each one that is dequantized."""
        return {node.output[0]: self._partner(node) for node in self.found.codes()}

    def _partner(self, node: onnx.NodeProto) -> str:
        codes, meant = node.input[0], node.output[0]
        own = codes.removesuffix(_CODES)
        # ONNX Runtime's copies of a bias that two layers share are numbered
        names = (own, meant, meant.removesuffix(_MEANT), own.rstrip(string.digits))
        partner = next((name for name in names if name in self.weights), None)
        if partner is None:
            raise WrongFunctionError(
                f"{self.name}: {node.op_type} '{node.name}' stands for the constant '{codes}', and "
                "the float model has no weight of that name to compare it with. Nothing was "
                "written. Please report the network."
            )
        self._check_codes(node, partner)
        return partner

    def _check_codes(self, node: onnx.NodeProto, partner: str) -> None:
        """Refuse codes that are not the rounded weight; count those that are clipped."""
        from onnx import numpy_helper

        wanted = np.asarray(numpy_helper.to_array(self.weights[partner])).astype(np.float64)
        codes = self.found.number(node.input[0])
        scale, zero = self._parameters(node, codes.ndim)
        wrong = codes.size
        with contextlib.suppress(ValueError):  # of shapes that do not go together
            missed = wanted - (codes - zero) * scale
            steps = np.abs(missed) - _FLOAT32 * np.abs(wanted)
            low, high = self._outermost(node.input[0])
            outer = np.where(missed < 0, codes <= low, codes >= high)
            clipped = outer & (steps > _ONE * scale)
            if self.clips and clipped.any():
                self.clipped[partner] = int(clipped.sum())
            allowed = np.inf if self.clips else _ONE
            wrong = int((steps > np.where(outer, allowed, _HALF) * scale).sum())
        if wrong or codes.shape != wanted.shape:
            raise WrongFunctionError(
                f"{self.name}: the codes of {node.op_type} '{node.name}' do not stand for the "
                f"weight '{partner}': {wrong} of {codes.size} are further from it than rounding. "
                "Nothing was written. Please report the network."
            )

    def _outermost(self, codes: str) -> tuple[int, int]:
        """Return the codes where a clipped weight lies; signed ones leave out the very least."""
        kind = _type_of(self.found.constants[codes])
        return int(kind.min) + (kind.min < 0), int(kind.max)

    def _parameters(self, node: onnx.NodeProto, rank: int) -> list[np.ndarray]:
        """Return scale and zero point of a constant, shaped to go with its codes."""
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if i == axis % max(rank, 1) else 1 for i in range(rank)]
        names = (*node.input[1:], "", "")[:2]
        found = [self.found.number(name) if name else np.zeros(()) for name in names]
        return [array.reshape(shape if array.size > 1 else ()) for array in found]

    def _put_back_(self, graph: onnx.GraphProto, gone: list[_Removed]) -> None:
        """Write each removed Relu or Clip behind the node that took over its output."""
        stored = {tensor.name for tensor in graph.initializer}
        graph.initializer.extend(w for name, w in self.weights.items() if name not in stored)
        taken = {*self.weights, *stored, *(out for node in graph.node for out in node.output)}
        now: dict[str, str] = {}  # what the node makes that took over, once a Clip stands behind it
        for one in gone:
            wanted = now.get(one.rounded, one.rounded)
            place, maker = next((i, n) for i, n in enumerate(graph.node) if wanted in n.output)
            before = now[one.rounded] = free_name(one.node.input[0], taken)
            maker.output[list(maker.output).index(wanted)] = before
            node = type(maker)()
            node.CopyFrom(one.node)
            node.input[0], node.output[0] = before, wanted
            graph.node.insert(place + 1, node)
            self.put_back.append(one.node.name)


def _read_instead_(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Let nodes, and the graph's outputs, read other tensors."""
    from onnx import helper

    redirect_(nodes_within(graph), names)
    for entry in graph.output:
        if names.get(entry.name, entry.name) != entry.name:
            graph.node.append(helper.make_node("Identity", [names[entry.name]], [entry.name]))


def _difference(
    source: onnx.ModelProto, rebuilt: onnx.ModelProto, inputs: np.ndarray, name: str
) -> float:
    """Return the largest difference of an output, in units of its largest value on the inputs."""
    outputs = [entry.name for entry in source.graph.output]
    before = Session(source, name=f"the source of {name}")
    try:
        after = Session(rebuilt, name=f"{name} without its rounding")
    except ModelFileError as error:
        raise WrongFunctionError(
            f"{error} Nothing was written. Please report the network."
        ) from error
    (feed, *_), *_ = before.inputs
    peaks, errors = np.zeros((2, len(outputs)))
    for image in inputs:
        pairs = zip(*(s.run({feed: image[None]}, outputs) for s in (before, after)), strict=True)
        for i, (a, b) in enumerate(pairs):
            if a.shape != b.shape:
                return np.inf
            a, b = a.astype(np.float64), b.astype(np.float64)
            peaks[i] = max(peaks[i], np.abs(a).max(initial=0))
            errors[i] = max(errors[i], np.abs(a - b).max(initial=0))
    return float(max(errors / np.where(peaks, peaks, 1), default=0.0))


def _first_departure(floating: onnx.ModelProto, rebuilt: onnx.ModelProto, image: np.ndarray) -> str:
    """Name the first node whose output departs from the float model's."""
    made = producers(rebuilt.graph.node)
    names = [out for node in floating.graph.node for out in node.output if out in made]
    try:
        with opened(floating, names) as ours, opened(rebuilt, names) as theirs:
            before, after = ours.tensors(image), theirs.tensors(image)
    except LabError:
        return "Please report the network."
    for node in floating.graph.node:
        for out in node.output:
            if out in before and out in after and _departs(before[out], after[out]):
                return (
                    f"The first node that departs is {node.op_type} '{node.name}': exclude it by "
                    "name in the recipe, or write it in another form, and quantize again."
                )
    return "It departed before that, when the file was prepared. Please report the network."


def _departs(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return True
    a, b = a.astype(np.float64), b.astype(np.float64)
    return bool(np.abs(a - b).max(initial=0) > LIMIT * np.abs(a).max(initial=0))
