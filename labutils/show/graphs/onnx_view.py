"""What a drawing of a graph needs to know: nodes without their constants, shapes, words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UnknownNameError, UsageError
from ...onnxfile.file import OnnxFile
from ...onnxfile.graph import module_path, opset, with_shapes
from . import tflite_view

if TYPE_CHECKING:
    import onnx

_SHAPED = {"kernel_shape": "kernel", "strides": "stride", "dilations": "dilation"}
_SILENT = ("pads", "auto_pad", "ceil_mode", "storage_order", "count_include_pad", "allowzero")
_ATTRIBUTES = 3  # lines at most


class View:
    """The top-level graph of a model, with constants folded into the nodes that read them.

    Parameters
    ----------
    model
        An ONNX file, or such a model in memory; or a ``.tflite``.

    Attributes
    ----------
    name, opset
        The file's name ("model in memory" without one), and the standard opset.
    form
        ``opset 17``, or ``LiteRT``.
    nodes
        All nodes that depend on an input, in the file's order.
    """

    def __init__(self, model: OnnxFile | str | Path | onnx.ModelProto) -> None:
        self._model, self.name, self.form = _read(model)
        graph = self._model.graph
        self.opset = opset(self._model)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes = [node for node in graph.node if not self._fold(node)]
        self._types = _types(
            self._model
        )  # weights that are missing do not keep it from being drawn
        self.inputs = [v.name for v in graph.input if v.name not in self._constants]
        self.outputs = [v.name for v in graph.output]
        self.producer = {t: i for i, node in enumerate(self.nodes) for t in node.output if t}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for tensor in dict.fromkeys(self.data_inputs(node)):
                self.readers.setdefault(tensor, []).append(i)

    def _fold(self, node: onnx.NodeProto) -> bool:
        """Take a node that makes a constant as that constant; False for all other nodes."""
        if node.op_type == "Constant":
            for attribute in node.attribute:
                self._constants[node.output[0]] = attribute.t
            return True
        known = [self._constants.get(tensor) for tensor in node.input if tensor]
        if not known or None in known:
            return False
        self._constants.update(dict.fromkeys(node.output, known[0]))
        return True

    def data_inputs(self, node: onnx.NodeProto) -> list[str]:
        """Return the tensors that a node reads, without constants."""
        return [tensor for tensor in node.input if tensor and tensor not in self._constants]

    def near(self, around: str, radius: int) -> list[int]:
        """Return the nodes at most `radius` steps from what `around` names, in the file's order.

        Raises
        ------
        UnknownNameError
            No node, tensor or module has this name.
        """
        if radius < 0:
            raise UsageError(f"A radius is a number of steps, 0 or more, not {radius}.")
        chosen = set(self.named(around))
        if not chosen:
            known = [*map(label, self.nodes), *filter(None, map(module_path, self.nodes))]
            raise UnknownNameError(f"node or module of {self.name}", around, dict.fromkeys(known))
        return self.grown(chosen, radius)

    def named(self, around: str) -> list[int]:
        """Return the nodes that `around` names: a node, a tensor's maker, a module, "" for all."""
        if not around:
            return list(range(len(self.nodes)))
        exact = [i for i, node in enumerate(self.nodes) if label(node) == around]
        if exact:
            return exact
        if around in self.producer:
            return [self.producer[around]]
        paths = ((i, module_path(node)) for i, node in enumerate(self.nodes))
        return [i for i, path in paths if path == around or path.startswith(around + ".")]

    def grown(self, chosen: Iterable[int], radius: int) -> list[int]:
        """Return `chosen` and all nodes at most `radius` edges away."""
        found = set(chosen)
        for _ in range(radius):
            sources = {
                self.producer[tensor]
                for i in found
                for tensor in self.data_inputs(self.nodes[i])
                if tensor in self.producer
            }
            readers = {
                r for i in found for t in self.nodes[i].output for r in self.readers.get(t, ())
            }
            found |= sources | readers
        return sorted(found)

    def between(self, sources: set[str], results: set[str]) -> list[int]:
        """Return the nodes that compute `results` from `sources`."""
        found: set[int] = set()
        pending = [tensor for tensor in results if tensor in self.producer]
        while pending:
            index = self.producer[pending.pop()]
            if index in found:
                continue
            found.add(index)
            inner = self.data_inputs(self.nodes[index])
            pending += [t for t in inner if t not in sources and t in self.producer]
        return sorted(found)

    def rim(self, chosen: Iterable[int]) -> tuple[set[str], set[str]]:
        """Return the tensors that enter `chosen`, and those that leave it."""
        chosen = set(chosen)
        made = {t for i in chosen for t in self.nodes[i].output if t}
        read_ = {t for i in chosen for t in self.data_inputs(self.nodes[i])}
        leaving = {t for t in made if t in self.outputs or set(self.readers.get(t, ())) - chosen}
        return read_ - made, leaving

    def shape(self, tensor: str) -> str:
        """Return the shape as text, ``"1×16×64×64"``; "" where it is unknown."""
        return self._types.get(tensor, "")

    def words(self, node: onnx.NodeProto) -> list[str]:
        """Return the lines that say what a node does: key attributes, then constant inputs."""
        lines = self._convolution(node) if node.op_type.startswith("Conv") else _attributes(node)
        names = _input_names(node, self.opset)
        for i, tensor in enumerate(node.input):
            if tensor in self._constants:
                slot = names[min(i, len(names) - 1)] if names else f"input {i}"
                lines.append(_constant(slot, self._constants[tensor]))
        return lines

    def _convolution(self, node: onnx.NodeProto) -> list[str]:
        values = {a.name: a for a in node.attribute}
        weight = self._constants.get(node.input[1]) if len(node.input) > 1 else None
        kernel = list(values["kernel_shape"].ints) if "kernel_shape" in values else []
        kernel = kernel or (list(weight.dims[2:]) if weight is not None else [])
        parts = ["×".join(map(str, kernel))] if kernel else []
        strides = set(values["strides"].ints) if "strides" in values else {1}
        parts += [f"stride {'×'.join(map(str, sorted(strides)))}"] if strides != {1} else []
        groups = values["group"].i if "group" in values else 1
        depthwise = weight is not None and groups > 1 and list(weight.dims[1:2]) == [1]
        parts += [f"{groups} groups" + (" (depthwise)" if depthwise else "")] if groups > 1 else []
        return [", ".join(parts)] if parts else []


def _read(model: OnnxFile | str | Path | onnx.ModelProto) -> tuple[onnx.ModelProto, str, str]:
    """Return a graph, what it is called, and its form."""
    if isinstance(model, str | Path) and Path(model).suffix == tflite_view.SUFFIX:
        return tflite_view.graph_of(model), Path(model).name, tflite_view.FORM
    if isinstance(model, OnnxFile | str | Path):
        file = OnnxFile.of(model)
        return file.proto, file.name, f"opset {opset(file.proto)}"
    return model, "model in memory", f"opset {opset(model)}"


def label(node: onnx.NodeProto) -> str:
    """Return a node's name; a nameless node is called as in a check's report."""
    return node.name or f"(nameless, makes {(list(node.output) or ['nothing'])[0]})"


def _types(model: onnx.ModelProto) -> dict[str, str]:
    graph, found = with_shapes(model).graph, {}
    for info in [*graph.input, *graph.value_info, *graph.output]:
        if info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            sizes = (str(d.dim_value) if d.HasField("dim_value") else d.dim_param for d in dims)
            found[info.name] = "×".join(size or "?" for size in sizes) or "scalar"
    return found


def _attributes(node: onnx.NodeProto) -> list[str]:
    import onnx

    lines = []
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        value = onnx.helper.get_attribute_value(attribute)
        name = _SHAPED.get(attribute.name, attribute.name)
        if attribute.name in _SILENT or not isinstance(value, int | float | bytes | list):
            continue
        if isinstance(value, list):
            if not value or not all(isinstance(v, int | float) for v in value):
                continue
            text = "×".join(f"{v:.6g}" for v in value[:6]) + ("…" if len(value) > 6 else "")
        elif isinstance(value, bytes):
            text = value.decode(errors="replace")
        else:
            text = f"{value:.6g}"
        lines.append(f"{name} = {text}")
    return lines[:_ATTRIBUTES]


def _input_names(node: onnx.NodeProto, opset: int) -> list[str]:
    import onnx

    if node.op_type in tflite_view.SLOTS:
        return list(tflite_view.SLOTS[node.op_type])
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain or not onnx.defs.has(node.op_type, opset):
        return []
    return [given.name for given in onnx.defs.get_schema(node.op_type, opset).inputs]


def _constant(slot: str, tensor: onnx.TensorProto) -> str:
    import onnx

    count = 1
    for size in tensor.dims:
        count *= size
    kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    if count == 1 and tensor.data_location != onnx.TensorProto.EXTERNAL and kind != "string":
        return f"{slot} = {onnx.numpy_helper.to_array(tensor).item():.6g}"
    shape = "×".join(map(str, tensor.dims))
    return f"{slot}: {shape}" + ("" if kind == "float" else f" {kind}")
