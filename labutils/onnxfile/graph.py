"""Reading an ONNX file, and what a node says about the module it came from."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import math
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import paths, untrusted
from ..errors import LimitError, ModelFileError, worded
from .wall import reason_of, wall

if TYPE_CHECKING:
    import onnx

_FOREIGN = (  # offset, magic bytes, what such a file is
    (0, b"PK\x03\x04", "a ZIP archive (a PyTorch checkpoint, a .pt2 or a DLC)"),
    (0, b"\x89HDF", "an HDF5 file (Keras)"),
    (4, b"TFL3", "a TensorFlow Lite file"),
    (0, b"\x80\x02", "a Python pickle"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\x1f\x8b", "a gzip archive"),
)
# Of the checker: operators that a target may know, and shapes that every reader infers.
_TOLERATED = (
    "No Op registered",
    "Op registered for GroupNormalization is deprecated",  # at opset 18 to 20; it is written out
    "No opset import for domain",
    "Field 'shape' of 'type'",
    "must be topologically sorted",
    "Field 'name' of 'graph'",
)  # which ONNX Runtime does itself
SCOPES = "pkg.torch.onnx.name_scopes"
_ADDED = re.compile(r"_token_\d+$")  # what the QNN provider appends when it lays out NHWC


def read(path: str | Path) -> onnx.ModelProto:
    """Return the model in an ONNX file, without data that lies in other files.

    Raises
    ------
    ModelFileError
        The file is missing, empty, truncated, or no ONNX model; the message says what it is.
    """
    import onnx

    path = Path(path)
    try:
        data = untrusted.content(path, untrusted.MAX_MODEL_BYTES // 2)
    except LimitError as error:
        raise ModelFileError(str(error)) from None
    except FileNotFoundError:
        raise ModelFileError(f"There is no model file {path}. Check the path.") from None
    except OSError as error:
        raise ModelFileError(f"Cannot read {path}: {worded(error)}.") from None
    if not data:
        raise ModelFileError(f"{path} is empty (0 bytes): export or download it again.")
    for offset, magic, what in _FOREIGN:
        if data[offset : offset + len(magic)] == magic:
            raise ModelFileError(f"{path} is {what}, not an ONNX file: export it to ONNX first.")
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except Exception as error:  # a DecodeError, or what protobuf's C raises
        what = "is text" if _is_text(data) else "is truncated or of another format"
        raise ModelFileError(f"{path} {what}: it does not parse as an ONNX model.") from error
    if not model.graph.node:
        raise ModelFileError(
            f"{path} holds no ONNX graph with nodes: truncated, or another format."
        )
    if any(isinstance(name, bytes) for name in _names(model)):  # protobuf could not decode it
        raise ModelFileError(
            f"{path} is not a valid ONNX model, and has names that are not UTF-8: it is damaged. "
            "Export or download it again."
        )
    _refuse_too_much(model.graph, path)
    return model


def _names(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Yield the names in a model: of operator sets, tensors, nodes, attributes, open sizes."""
    for used in model.opset_import:
        yield used.domain
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output)
        yield from _names_of_nodes(function.node)
    yield from _names_of_graph(model.graph)


def _names_of_graph(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    yield graph.name
    yield from (tensor.name for tensor in graph.initializer)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    yield from _names_of_nodes(graph.node)


def _names_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[str | bytes]:
    for node in nodes:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield from (attribute.name, attribute.ref_attr_name)
            if attribute.HasField("g"):
                yield from _names_of_graph(attribute.g)
            for inner in attribute.graphs:
                yield from _names_of_graph(inner)


def _refuse_too_much(graph: onnx.GraphProto, path: Path) -> None:
    """Refuse weights in other files that claim more bytes than any model here has, or in pipes."""
    total = 0
    for tensor in _tensors(graph):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not entries:
            continue
        file = path.parent / entries.get("location", "")
        with contextlib.suppress(ValueError, OSError):  # faults reported where it is loaded
            status = file.stat()
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise ModelFileError(f"{path} is refused: its weights' {file} is not a plain file.")
            offset = int(entries.get("offset", 0))
            rest = status.st_size - offset if "length" not in entries else 0
            total += max(int(entries.get("length", 0)), rest)
        if total > untrusted.MAX_MODEL_BYTES:
            raise ModelFileError(
                f"{path} is refused: up to {untrusted.shown(tensor.name)} its weights in other "
                f"files have {total:,} bytes, which no model here needs."
            )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph that may keep its data elsewhere, those of subgraphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def serialized(model: onnx.ModelProto, name: str) -> bytes:
    """Return a model as the bytes of a file called `name`, the same ones each time.

    Raises
    ------
    LimitError
        It has more than protobuf can write, 2 GB.
    """
    with wall(
        "protobuf cannot write", name, error=LimitError,
        advice="A model of more than 2 GB needs its weights in files beside it.",
    ):  # fmt: skip
        content: bytes = model.SerializeToString(deterministic=True)
        return content


def load_weights_(model: onnx.ModelProto, path: Path) -> None:
    """Load the data that lies beside the model at `path`; ModelFileError where it cannot be."""
    from onnx.external_data_helper import load_external_data_for_model

    try:
        load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # onnx raises several kinds
        reason = " ".join(str(error).split())[:300]
        raise ModelFileError(f"The external data of {path} cannot be read: {reason}") from None


def has_external_data(graph: onnx.GraphProto) -> bool:
    """Return whether a tensor of the graph, or of one inside a node, keeps its data elsewhere."""
    return any(tensor.external_data for tensor in _tensors(graph))


def files_beside(model: onnx.ModelProto) -> list[str]:
    """Return the names of the files in the model's folder that hold its weights, sorted."""
    tensors = (t for t in model.graph.initializer if t.external_data)
    beside = {e.value for tensor in tensors for e in tensor.external_data if e.key == "location"}
    # a place outside the model's folder is refused where it is loaded
    return [name for name in sorted(beside) if Path(name).name == name]


def joined_sha256(files: list[Path]) -> str:
    """Return the SHA-256 of one file, of several the one of all together."""
    digests = [paths.sha256(file) for file in files if file.is_file()]
    joined = hashlib.sha256("".join(digests).encode()).hexdigest()
    return digests[0] if len(digests) == 1 else joined


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set that a model imports; 0 for none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def stored_values(model: onnx.ModelProto) -> int:
    """Return how many numbers a model's initializers hold: its parameters as the file has them.

    A normalization that the exporter has folded into a convolution counts with its bias only.
    """
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer)


def inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs of a model that are not weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _is_text(data: bytes) -> bool:
    try:
        return data[:4096].decode("utf-8").isprintable() or b"\n" in data[:4096]
    except UnicodeDecodeError:
        return False


def require_valid(path: Path, model: onnx.ModelProto) -> None:
    """Refuse a file that breaks ONNX's own rules (tensors made twice, missing attributes, ...).

    `model` is what was parsed from it. Operators that ONNX does not know are accepted here: a
    target may know them.

    Raises
    ------
    ModelFileError
        With the checker's reason, and the node that it names.
    """
    import onnx

    newest = onnx.defs.onnx_opset_version()
    for used in model.opset_import:
        if used.domain in ("", "ai.onnx") and not 1 <= used.version <= newest:
            raise ModelFileError(
                f"{path} was written at opset {used.version}; this onnx knows 1 to {newest}. "
                "Export it at another opset (17 suits every target here but rdk-x5)."
            )
    try:
        onnx.checker.check_model(_named(model) or str(path))
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())
        if any(words in reason for words in _TOLERATED):
            return
        if "should be stored in" in reason:
            reason = f"{reason[:340]} Put the file with its weights beside it."
        if "initializer name is not unique" in reason:
            reason = f"{reason[:270]}: two weights have that name. Export it again."
        if "is deprecated" in reason:
            reason = f"{reason[:270]}. That opset has it no more: export it again, at opset 17."
        raise ModelFileError(f"{path} is not a valid ONNX model: {reason[:400]}") from error
    except UnicodeDecodeError as error:  # the checker's words, with the name that it objects to
        raise ModelFileError(
            f"{path} is not a valid ONNX model, and has names that are not UTF-8: it is damaged."
        ) from error
    except Exception as error:  # its C++ raises several kinds
        raise ModelFileError(
            f"ONNX's checker refuses {path}: {reason_of(error)}. Export it again."
        ) from error


def _named(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a copy whose graph has a name, where the file gives it none, as others write them."""
    if model.graph.name or has_external_data(model.graph):
        return None
    copy = type(model)()
    copy.CopyFrom(model)
    copy.graph.name = "graph"
    return copy


def with_shapes(model: onnx.ModelProto, data_prop: bool = False) -> onnx.ModelProto:
    """Return the model with inferred types and shapes, or as it is where inference fails.

    Parameters
    ----------
    model
        Not changed.
    data_prop
        Whether constants are computed too, as the sizes for a Reshape.
    """
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=data_prop)
    except Exception:  # its C++ raises several kinds
        return model  # a node that contradicts another, or a model beyond protobuf's 2 GB


def module_path(node: Any) -> str:
    """Return the dotted module that `node` was exported from, ``""`` when it does not say.

    The TorchScript exporter writes scopes into the name, ``/features/features.0/features.0.2/Mul``
    (each part repeats its parent); the dynamo exporter writes them into the metadata.
    """
    for entry in getattr(node, "metadata_props", ()):
        if entry.key == SCOPES:
            return _innermost(entry.value)
    return module_of_name(node.name)


def _innermost(written: str) -> str:
    try:
        scopes = [str(scope) for scope in ast.literal_eval(written)[:-1] if scope]
    except (SyntaxError, ValueError, TypeError, KeyError, MemoryError, RecursionError):
        return ""  # not written by the exporter
    return scopes[-1] if scopes else ""


def module_of_name(name: str) -> str:
    """Return the dotted module in a TorchScript node name, ``""`` for any other name.

    Examples
    --------
    >>> module_of_name("/features/features.4/block/block.2/fc1/Conv")
    'features.4.block.2.fc1'
    """
    if not name.startswith("/"):
        return ""
    path: list[str] = []
    for scope in _ADDED.sub("", name).strip("/").split("/")[:-1]:
        if path and scope.startswith(path[-1] + "."):
            path[-1] = scope  # "features", then "features.0": the second says it all
        else:
            path.append(scope)
    return ".".join(path)
