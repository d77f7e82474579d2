"""An ONNX file that takes NV12 bytes: decoding and normalisation as nodes before the network.

hb_mapper puts such nodes before a network itself (``input_type_rt: nv12``). Here they are ordinary
ONNX operators from opset 11 on, so that the file of bytes runs on ONNX Runtime, too, and can be
compared with the float path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelFileError, UsageError
from ..images import data, nv12
from ..onnxfile import byte_input, edit
from ..onnxfile.file import OnnxFile
from ..onnxfile.session import Session
from ..runtime import outputs

if TYPE_CHECKING:
    import onnx

_OLDEST = 11  # of the operator set: Clip takes its limits as inputs


def prepend(
    file: OnnxFile | str | Path,
    destination: str | Path,
    preprocessing: data.Preprocessing,
    kind: nv12.Range = "video",
    order: nv12.Order = "nv12",
) -> OnnxFile:
    """Write a network with NV12 bytes as its input, and return the file.

    Parameters
    ----------
    file
        It takes one float32 picture, (1, 3, height, width), both sides even.
    destination
        The .onnx to write. Its input keeps the name and is uint8, (1, 3 * height / 2, width).
    preprocessing
        What the network's input is normalised with; it becomes the last two of the nodes.
    kind, order
        Of the bytes; see `labutils.images.nv12`. They stand in the file's metadata.

    Returns
    -------
    OnnxFile
        It computes what the network computes of ``preprocessing(nv12.decode(bytes))``. The
        decoding is in float32: of the 2^24 colours of either range it rounds fewer than one in
        10,000 to the neighbouring code, so a pixel may differ by one of 255.

    Raises
    ------
    UsageError
        The input is not such a picture, or the preprocessing is for another one.
    ModelFileError
        The operator set of the file is older than 11.
    """
    file = OnnxFile.of(file)
    height, width = _sides(file, preprocessing)
    if file.opset < _OLDEST:
        raise ModelFileError(
            f"{file.name} is of opset {file.opset}; NV12 input needs opset {_OLDEST} or later. "
            f"Export it again with --opset {_OLDEST}."
        )
    black = nv12.black(kind)  # refuses another word before anything is done
    if order not in ("nv12", "nv21"):
        nv12.encode(np.zeros((2, 2, 3), np.uint8), order=order)
    model = file.copy()
    graph = model.graph
    image = file.inputs[0].name
    taken = {n for node in edit.nodes_within(graph) for n in (*node.input, *node.output, node.name)}
    taken |= {value.name for value in (*graph.initializer, *graph.output, *graph.input)}
    inner = edit.free_name(f"{image}_normalised", taken)
    edit.redirect_(edit.nodes_within(graph), {image: inner})
    nodes = _Decoding(image, inner, taken)
    nodes.write(height, width, (black, kind, order), preprocessing)
    for node in reversed(nodes.nodes):
        graph.node.insert(0, node)
    graph.initializer.extend(nodes.constants)
    _retype_(graph, image, (1, 3 * height // 2, width))
    byte_input.state_(model, byte_input.ByteInput(height, width, kind, order))
    return OnnxFile.write(destination, model)


def answers(
    plain: OnnxFile, taking_bytes: OnnxFile, inputs: np.ndarray, sent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of a network, (n, classes), by the float path and by that of the bytes.

    Parameters
    ----------
    plain, taking_bytes
        The network, and the file that `prepend` made of it.
    inputs
        (n, 3, height, width) float32, normalised.
    sent
        (n, 3 * height / 2, width) uint8: the same pictures.
    """
    found = []
    for file, items in ((plain, inputs), (taking_bytes, sent)):
        session = Session(file)
        known = outputs.listed(session.outputs)
        scores = outputs.scores_of(known, None, file.name, file.proto)
        if not scores:
            raise UsageError(f"{file.name} is not a classifier: its answers are not compared.")
        key = session.inputs[0][0]
        rows = [session.run({key: item[None]}, [scores])[0] for item in items]
        found.append(outputs.as_scores(np.concatenate(rows)))
    return found[0], found[1]


def _sides(file: OnnxFile, preprocessing: data.Preprocessing) -> tuple[int, int]:
    """Return height and width of the one picture that a file takes; refuse other files."""
    from onnx import TensorProto

    tensors = [value.type.tensor_type for value in file.inputs]
    shape = [dim.dim_value for dim in tensors[0].shape.dim] if len(tensors) == 1 else []
    floats = bool(tensors) and tensors[0].elem_type == TensorProto.FLOAT
    if not floats or len(shape) != 4 or shape[:2] != [1, 3] or not all(shape):
        said = "; ".join(f"{value.name!r} {_shape(value)}" for value in file.inputs)
        raise UsageError(
            f"{file.name} takes {said or 'nothing'}. NV12 replaces one float32 picture of shape "
            "(1, 3, height, width) with static sizes: export the network with such an input."
        )
    height, width = shape[2:]
    nv12.refuse_odd(height, width)
    if preprocessing.shape != (3, height, width):
        raise UsageError(
            f"{file.name} takes pictures of 3 x {height} x {width}, and the preprocessing is for "
            f"{' x '.join(map(str, preprocessing.shape))}."
        )
    return height, width


def _shape(value: onnx.ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return f"({', '.join(str(d.dim_value or d.dim_param or '?') for d in dims)})"


def _retype_(graph: onnx.GraphProto, name: str, shape: Sequence[int]) -> None:
    """Give an input of a graph the type uint8 and another shape, in place."""
    from onnx import TensorProto, helper

    value = next(entry for entry in graph.input if entry.name == name)
    value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, shape))


class _Decoding:
    """The nodes from bytes to the network's input, and their constants."""

    def __init__(self, first: str, last: str, taken: set[str]) -> None:
        self.now, self.last, self.taken = first, last, taken
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def write(
        self,
        height: int,
        width: int,
        bytes_: tuple[int, nv12.Range, nv12.Order],
        preprocessing: data.Preprocessing,
    ) -> None:
        black, kind, order = bytes_
        start = self.now
        luma = self._rows(start, 0, height, "luma")
        luma = self._add("Reshape", luma, self._integers("luma_shape", [1, 1, height, width]))
        luma = self._add("Sub", luma, self._floats("black", np.float32(black)))
        luma = self._add("Relu", luma) if kind == "video" else luma
        pairs = self._rows(start, height, 3 * height // 2, "chroma")
        blocks = [1, height // 2, 1, width // 2, 1, 2]
        pairs = self._add("Reshape", pairs, self._integers("blocks", blocks))
        doubled = [1, height // 2, 2, width // 2, 2, 2]
        pairs = self._add("Expand", pairs, self._integers("doubled", doubled))
        whole = self._integers("chroma_shape", [1, height, width, 2])
        pairs = self._add("Reshape", pairs, whole)
        pairs = self._add("Transpose", pairs, perm=[0, 3, 1, 2])
        pairs = self._add("Sub", pairs, self._floats("middle", np.float32(128)))
        yuv = self._add("Concat", luma, pairs, axis=1)
        matrix = np.array(nv12.DECODING[kind], np.float64) / 2**20
        matrix = matrix[:, [0, 2, 1]] if order == "nv21" else matrix
        weights = self._floats("to_rgb", matrix[:, :, None, None])
        rgb = self._add("Conv", yuv, weights, self._floats("half", np.full(3, 0.5)))
        rgb = self._add("Floor", rgb)  # of a code and a half: rounded half up
        limits = self._floats("least", np.float32(0)), self._floats("most", np.float32(255))
        rgb = self._add("Clip", rgb, *limits)
        std, mean = (np.array(v, np.float32) for v in (preprocessing.std, preprocessing.mean))
        scale = self._floats("scale", (1 / (255 * std)).reshape(3, 1, 1))
        scaled = self._add("Mul", rgb, scale)
        offset = self._floats("offset", (-mean / std).reshape(3, 1, 1))
        self._add("Add", scaled, offset, to=self.last)

    def _rows(self, start: str, first: int, after: int, what: str) -> str:
        """Return some rows of the bytes, as float32."""
        ends = [self._integers(f"{what}_{word}", [n]) for word, n in
                (("from", first), ("to", after), ("axis", 1))]  # fmt: skip
        return self._add("Cast", self._add("Slice", start, *ends), kind=1)

    def _add(self, op: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        from onnx import helper

        if "kind" in attributes:
            attributes["to"] = attributes.pop("kind")
        name = edit.free_name(f"/nv12/{op}", self.taken)
        output = to or edit.free_name(f"{name}_output_0", self.taken)
        self.nodes.append(helper.make_node(op, list(inputs), [output], name, **attributes))
        return output

    def _floats(self, name: str, values: Any) -> str:
        return self._constant(name, np.asarray(values, np.float32))

    def _integers(self, name: str, values: Sequence[int]) -> str:
        return self._constant(name, np.asarray(values, np.int64))

    def _constant(self, name: str, values: np.ndarray) -> str:
        from onnx import numpy_helper

        free = edit.free_name(f"nv12.{name}", self.taken)
        self.constants.append(numpy_helper.from_array(values, free))
        return free
