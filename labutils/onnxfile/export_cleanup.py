"""Make the ONNX file that an exporter wrote fit to read, to compare and to publish."""

from __future__ import annotations

import ast
from collections import Counter
from typing import TYPE_CHECKING

from . import graph
from .edit import free_name

if TYPE_CHECKING:
    import onnx


def clean_up_(model: onnx.ModelProto, modules: set[str]) -> None:
    """Strip what describes the exporting machine; name nodes and weights by their module.

    Stack traces and documentation strings go, scopes stay; the dynamo exporter's numbered nodes
    get the names that the TorchScript exporter gives (``/features/features.0/features.0.2/Relu``);
    the weights of convolutions and linear layers are called as in the state dict, also where a
    BatchNorm was folded into them.

    Parameters
    ----------
    model
        What an exporter wrote, changed in place.
    modules
        The dotted names of the modules it was exported from.
    """
    graph_ = model.graph
    model.doc_string = graph_.doc_string = ""
    del model.metadata_props[:], graph_.metadata_props[:]
    for value in (*graph_.value_info, *graph_.input, *graph_.output, *graph_.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    _unshare_constants(graph_)
    weights = {tensor.name: tensor for tensor in graph_.initializer}
    users = Counter(name for node in graph_.node for name in node.input)
    taken: set[str] = set()
    for node in graph_.node:
        node.doc_string = ""
        path = _module_of(node, modules)
        _keep_scopes(node, path)
        if not node.name.startswith("/"):  # dynamo numbers its nodes
            node.name = free_name("/".join(["", *_scopes(path), node.op_type]), taken)
        taken.add(node.name)
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and path:
            for role, name in zip(("weight", "bias"), node.input[1:], strict=False):
                if name in weights and users[name] == 1:
                    _rename(graph_, node, weights[name], f"{path}.{role}", weights)


def _unshare_constants(graph_: onnx.GraphProto) -> None:
    """Undo the TorchScript exporter's Identity nodes between weights that happen to be equal."""
    weights = {tensor.name: tensor for tensor in graph_.initializer}
    for node in [n for n in graph_.node if n.op_type == "Identity" and n.input[0] in weights]:
        copy = graph_.initializer.add()
        copy.CopyFrom(weights[node.input[0]])
        copy.name = node.output[0]
        weights[copy.name] = copy
        graph_.node.remove(node)


def _module_of(node: onnx.NodeProto, modules: set[str]) -> str:
    """Return the node's module; a convolution that took in its BatchNorm stays the convolution."""
    path = graph.module_path(node)
    if len(node.input) > 1 and node.input[1].endswith(".weight"):
        owner = node.input[1].removesuffix(".weight")
        return owner if owner in modules else path
    return path


def _scopes(path: str) -> list[str]:
    """Return ``features.0.2`` as ``features``, ``features.0``, ``features.0.2``: as TorchScript.

    A numbered child repeats its parent's scope, a named one does not.
    """
    scopes: list[str] = []
    for part in path.split(".") if path else []:
        scopes.append(f"{scopes[-1]}.{part}" if part.isdigit() and scopes else part)
    return scopes


def _keep_scopes(node: onnx.NodeProto, path: str) -> None:
    """Keep of the metadata what `graph.module_path` reads, corrected to `path`."""
    found = [ast.literal_eval(e.value) for e in node.metadata_props if e.key == graph.SCOPES]
    del node.metadata_props[:]
    if found:
        parts = path.split(".") if path else []
        prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
        node.metadata_props.add(key=graph.SCOPES, value=str(["", *prefixes, found[0][-1]]))


def _rename(
    graph_: onnx.GraphProto,
    node: onnx.NodeProto,
    tensor: onnx.TensorProto,
    name: str,
    weights: dict[str, onnx.TensorProto],
) -> None:
    if name == tensor.name or name in weights:
        return
    for value in graph_.value_info:
        if value.name == tensor.name:
            value.name = name
    node.input[list(node.input).index(tensor.name)] = name
    weights[name] = weights.pop(tensor.name)
    tensor.name = name
