"""Reading an ONNX file, and what a node says about the module it came from."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelFileError

if TYPE_CHECKING:
    import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"
_ADDED = re.compile(r"_token_\d+$")  # what the QNN provider appends when it lays out NHWC


def read(path: str | Path) -> onnx.ModelProto:
    """Return the model in an ONNX file, without data that lies in other files.

    Raises
    ------
    ModelFileError
        The file is missing, truncated, or no ONNX model.
    """
    import onnx

    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"There is no file {path}.")
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, in several classes
        raise ModelFileError(
            f"{path} is not an ONNX model, or it is truncated ({type(error).__name__}). "
            "Write it again, or fetch it again."
        ) from None
    if not model.graph.node:
        raise ModelFileError(f"{path} holds no ONNX graph (no nodes). Is it another format?")
    return model


def module_path(node: Any) -> str:
    """Return the dotted module that `node` was exported from, ``""`` when it does not say.

    The TorchScript exporter writes scopes into the name, ``/features/features.0/features.0.2/Mul``
    (each part repeats its parent); the dynamo exporter writes them into the metadata.
    """
    for entry in getattr(node, "metadata_props", ()):
        if entry.key == _SCOPES:
            scopes = [scope for scope in ast.literal_eval(entry.value)[:-1] if scope]
            return scopes[-1] if scopes else ""
    return module_of_name(node.name)


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
