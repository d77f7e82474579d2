"""ONNX files as others write them, made into what every stage here takes.

That is: one image of static size, float32 NCHW, and a network in canonical form
(`labutils.onnxfile.canonical_form`). An open batch, pixels as uint8, channels at the end, the older
forms of opset 7 to 10, functions, half precision, Identity and constants in any spelling are
accepted: a copy is adapted, the changes are listed, and the copy is compared with the file it was
made from.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import paths
from ..errors import ModelFileError
from ..images import data
from ..onnxfile import constants, training_mode
from ..onnxfile.canonical_form import canonicalize_, is_canonical, raise_opset_
from ..onnxfile.edit import free_name, nodes_within, redirect_
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import inputs, opset
from ..onnxfile.half_precision import HALVES, cast_type, half_types
from ..onnxfile.session import Session
from ..onnxfile.wall import wall

if TYPE_CHECKING:
    import onnx

PIXELS = "the file's own: it takes pixels 0..255"

OLDEST = 11  # opset that every stage takes

_TO_NHWC, _TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]
# They only rearrange, so whole numbers pass through them in float32 as in uint8.
_REARRANGING = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Slice", "Flatten")
_MOST_CHANNELS = 4  # of an image; (1, 28, 28, 1) is gray with its channel last
_MOST = 1e-4  # of the largest output: the same operators, perhaps fused otherwise
_MOST_HALF = 5e-2  # where the file rounds to half precision between its nodes


@dataclass(frozen=True)
class Adapted:
    """A file that every stage takes.

    Attributes
    ----------
    file
        The file itself where nothing had to change, else a copy that lives as long as the process.
    changes
        What was changed, as text.
    preprocessing
        Known where the file takes pixels as uint8: none; None where the file does not say.
    onnx
        `file`, opened.
    """

    file: Path
    changes: tuple[str, ...] = ()
    preprocessing: data.Preprocessing | None = None
    onnx: OnnxFile | None = field(default=None, compare=False, repr=False)


def adapted(brought: OnnxFile | str | Path, size: data.Size | None = None) -> Adapted:
    """Return an ONNX file, or a copy of it with one float32 NCHW image of static size as input.

    Parameters
    ----------
    brought
        The file; it is not changed.
    size
        Side in pixels, or (height, width), where the file leaves it open.

    Raises
    ------
    ModelFileError
        The file is not an ONNX model, its external data is missing, it was exported in training
        mode, or the copy would compute something else.
    """
    brought = OnnxFile.of(brought)
    path = brought.path
    if not _Adapting(brought.proto, size).needed(_image(brought.proto)):
        return Adapted(path, onnx=brought)
    brought.require_valid()
    model = brought.copy()
    work = _Adapting(model, size)
    work.canonicalize_()
    work.changes += raise_opset_(model, OLDEST)
    image = _image(model)
    pixels = image is not None and work.input_(image)
    training_mode.refuse(model, path.name)
    if not work.changes:
        return Adapted(path, onnx=brought)
    place = _folder() / secrets.token_hex(4)
    place.mkdir()
    try:
        copy = OnnxFile.write(place / path.name, model)
    except ValueError:
        raise ModelFileError(
            f"{path} needs to be adapted ({'; '.join(work.changes)}), but has more than 2 GB."
        ) from None
    _compare(path, copy.path, work)
    adapted = _image(model) if pixels else None
    own = _pixels(adapted) if adapted else None
    return Adapted(copy.path, tuple(work.changes), own, copy)


def _pixels(image: onnx.ValueInfoProto) -> data.Preprocessing | None:
    """Return the preprocessing of an input that takes pixels; None where its size is open."""
    _, channels, height, width = (d.dim_value for d in image.type.tensor_type.shape.dim)
    if not channels or not height or not width:
        return None
    unit = (1 / 255,) * channels  # pixels / 255 / (1 / 255): as they are
    return data.Preprocessing((height, width), (0.0,) * channels, unit, PIXELS)


@functools.cache
def _folder() -> Path:
    kept = contextlib.ExitStack()
    atexit.register(kept.close)
    return kept.enter_context(paths.scratch())


def _image(model: onnx.ModelProto) -> onnx.ValueInfoProto | None:
    """Return the one input that is not a weight, if it has four dimensions."""
    found = inputs(model)
    return found[0] if len(found) == 1 and len(found[0].type.tensor_type.shape.dim) == 4 else None


class _Adapting:
    """The changes to one model, in place, and what to say about them."""

    def __init__(self, model: onnx.ModelProto, size: data.Size | None) -> None:
        self.model, self.size = model, size
        self.changes: list[str] = []
        self.turned = False  # from NHWC
        self.widened = False  # from half precision
        self.trained = bool(training_mode.training(model))

    def needed(self, image: onnx.ValueInfoProto | None) -> bool:
        if 7 <= opset(self.model) < OLDEST:  # ONNX Runtime runs nothing older
            return True
        if not is_canonical(self.model) or self.trained:
            return True
        return image is not None and bool(
            self._open_(image, change=False) or _channels_last(image) or _kind(image) != "FLOAT"
        )

    def canonicalize_(self) -> None:
        """Bring the network into canonical form; the input's type may then be float32."""
        halves = half_types(self.model) & {*HALVES.values()}
        done = canonicalize_(self.model)
        self.changes += [change for change in done if change not in self.changes]
        self.widened |= bool(halves) and any("float32" in change for change in done)

    def input_(self, image: onnx.ValueInfoProto) -> bool:
        """Make the input one static float32 NCHW image; return whether it takes pixels 0..255."""
        if self._open_(image, change=True):
            self._fold_shapes_()
        pixels = self._to_float_(image)
        if _channels_last(image):
            self._to_nchw_(image)
        return pixels

    def _open_(self, image: onnx.ValueInfoProto, change: bool) -> bool:
        """Close what can be closed of the input's shape: the batch, and the sides given `size`."""
        dims = image.type.tensor_type.shape.dim
        sides = (1, 2) if _channels_last(image) else (2, 3)
        closing = [(0, 1)] if not _is_fixed(dims[0]) else []
        if self.size:
            wanted = zip(sides, data.sides(self.size), strict=True)
            closing += [(side, px) for side, px in wanted if not _is_fixed(dims[side])]
        if not change:
            return bool(closing)
        names = {dims[axis].dim_param: value for axis, value in closing if dims[axis].dim_param}
        for axis, value in closing:
            dims[axis].Clear()
            dims[axis].dim_value = value
        for output in self.model.graph.output:
            for dim in output.type.tensor_type.shape.dim:
                if dim.dim_param in names:
                    dim.dim_value = names[dim.dim_param]
        if closing and closing[0][0] == 0:
            self.changes.append("its open batch was fixed to 1")
        if self.size and any(axis for axis, _ in closing):
            self.changes.append(f"its open size was fixed to {data.shown(self.size)}")
        return bool(closing)

    def _fold_shapes_(self) -> None:
        """Compute what only depended on the open sizes: converters want constants there."""
        del self.model.graph.value_info[:]
        computed = sum(node.op_type == "Shape" for node in self.model.graph.node)
        if computed:
            self._fold_known_(computed)
        if not is_canonical(self.model):
            self.canonicalize_()

    def _fold_known_(self, computed: int) -> None:
        import onnx_ir as ir

        with wall("onnxscript cannot fold the sizes of", "the file", error=ModelFileError):
            folded = ir.from_proto(self.model)
            constants.fold_(folded, shapes=True)
            constants.drop_identities_(folded)
            self.model.CopyFrom(ir.to_proto(folded))
        left = sum(node.op_type == "Shape" for node in self.model.graph.node)
        if left < computed:
            self.changes.append(f"{computed - left} sizes that it computed are constants")

    def _entry(self) -> onnx.ValueInfoProto:
        """Return the image input as it is now: folding and converting make a new one."""
        image = _image(self.model)
        assert image is not None  # it was one before, and no step takes it away
        return image

    def _to_float_(self, image: onnx.ValueInfoProto) -> bool:
        from onnx import TensorProto, helper

        kind = _kind(image)
        if kind not in ("UINT8", "FLOAT16", "DOUBLE"):
            return False
        casts = _casts_behind(self.model.graph, image.name) if kind == "UINT8" else None
        image = self._entry()
        image.type.tensor_type.elem_type = TensorProto.FLOAT
        del self.model.graph.value_info[:]  # they had its old type
        if casts:  # its first step was a cast to float32: now it gets float32
            for cast in casts:
                self._bypass_(cast)
            self.changes.append("its uint8 input takes the same pixels as float32")
        else:
            inner = self._renamed(image.name, kind.lower())
            to = TensorProto.DataType.Value(kind)
            cast = helper.make_node("Cast", [image.name], [inner], f"/{inner}/Cast", to=to)
            self.model.graph.node.insert(0, cast)
            self.changes.append(f"its {kind.lower()} input takes float32, followed by a Cast")
        return kind == "UINT8"

    def _to_nchw_(self, image: onnx.ValueInfoProto) -> None:
        from onnx import helper

        image, self.turned = self._entry(), True
        n, h, w, c = (dim.dim_value for dim in image.type.tensor_type.shape.dim)
        del self.model.graph.value_info[:]
        readers = [node for node in self.model.graph.node if image.name in node.input]
        if all(node.op_type == "Transpose" and _perm(node) == _TO_NCHW for node in readers):
            for node in readers:
                self._bypass_(node)
            self.changes.append("its NHWC input takes NCHW, without its first Transpose")
        else:
            inner = self._renamed(image.name, "nhwc")
            name = f"/{inner}/Transpose"
            node = helper.make_node("Transpose", [image.name], [inner], name, perm=_TO_NHWC)
            self.model.graph.node.insert(0, node)
            self.changes.append("its NHWC input takes NCHW, followed by a Transpose")
        shape = image.type.tensor_type.shape
        for dim, value in zip(shape.dim, (n, c, h, w), strict=True):
            dim.Clear()
            if value:
                dim.dim_value = value

    def _renamed(self, name: str, what: str) -> str:
        """Let all readers of the input read another tensor instead; return its name."""
        graph = self.model.graph
        taken = {n for node in nodes_within(graph) for n in (*node.input, *node.output, node.name)}
        taken |= {value.name for value in (*graph.initializer, *graph.output)}
        inner = free_name(f"{name}_{what}", taken)
        redirect_(nodes_within(graph), {name: inner})
        return inner

    def _bypass_(self, node: onnx.NodeProto) -> None:
        redirect_(self.model.graph.node, {node.output[0]: node.input[0]})
        self.model.graph.node.remove(node)


def _casts_behind(owner: onnx.GraphProto, name: str) -> list[onnx.NodeProto] | None:
    """Return the Casts to float32 that every way from `name` leads to, None where one does not."""
    from onnx import TensorProto

    if any(output.name == name for output in owner.output):
        return None
    casts: list[onnx.NodeProto] = []
    for node in (node for node in owner.node if name in node.input):
        if node.op_type == "Cast" and cast_type(node) == TensorProto.FLOAT:
            casts.append(node)
            continue
        further = _casts_behind(owner, node.output[0]) if node.op_type in _REARRANGING else None
        if further is None:
            return None
        casts += further
    return casts or None


def _kind(value: onnx.ValueInfoProto) -> str:
    from onnx import TensorProto

    number = value.type.tensor_type.elem_type
    known = number in TensorProto.DataType.values()
    return TensorProto.DataType.Name(number) if known else f"type {number}, not an ONNX type"


def _is_fixed(dim: Any) -> bool:
    return dim.dim_value > 0


def _channels_last(value: onnx.ValueInfoProto) -> bool:
    _, second, third, last = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
    gray = last == 1 and second > _MOST_CHANNELS and third > _MOST_CHANNELS
    return (last == 3 and second != 3) or gray


def _perm(node: onnx.NodeProto) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), [])


def _compare(path: Path, file: Path, work: _Adapting) -> None:
    """Run the file and its copy on one image of seeded noise.

    What ONNX Runtime cannot run, such as a device's own operator, is not compared; then the
    changes say so.
    """
    try:
        # optimized, ONNX Runtime takes the trained statistics of a normalization in training mode
        level = "none" if work.trained else "all"
        brought, copy = Session(path, optimize=level), Session(file, optimize=level)
        (wanted, _, kind), (given, shape, _) = brought.inputs[0], copy.inputs[0]
        if not all(isinstance(dim, int) for dim in shape):
            return  # a size is still open, which no stage accepts
        ours, theirs = _noise(shape, kind, work.turned)
        names = [name for name, _, _ in copy.outputs]  # not those that were left out
        expected = brought.run({wanted: theirs}, names)
    except (ModelFileError, IndexError, ValueError, MemoryError):  # or no such input can be made
        work.changes.append("NOT compared with the original, which ONNX Runtime does not run")
        return
    found = copy.run({given: ours}, names)
    most = _MOST_HALF if work.widened else _MOST
    for a, b in zip(expected, found, strict=True):
        peak = np.abs(np.nan_to_num(a.astype(np.float64))).max(initial=0)
        if a.shape != b.shape or not np.allclose(a, b, rtol=0, atol=most * peak, equal_nan=True):
            raise ModelFileError(
                f"{path} cannot be adapted ({'; '.join(work.changes)}): the copy computes "
                "something else. Export it with one static float32 NCHW image as input."
            )
    work.changes.append("equal to the original on one input")


def _noise(shape: list[int], wanted: str, turned: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return one input for the copy, and the same for the file that it was made from."""
    noise: np.ndarray = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    kinds = {"tensor(uint8)": np.uint8, "tensor(float16)": np.float16, "tensor(double)": float}
    kind = kinds.get(wanted, np.float32)
    if kind != np.uint8:
        noise = noise / 256 - 0.5  # without rounding in any of them
    theirs = noise.transpose(0, 2, 3, 1) if turned else noise
    return noise, np.ascontiguousarray(theirs.astype(kind))
