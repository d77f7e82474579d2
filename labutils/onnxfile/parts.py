"""Parts of an ONNX file: the subgraph of a module as a separate file, and tensors renamed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import paths, typesetting
from ..errors import ModelFileError, UnknownNameError, UsageError
from . import edit, graph
from .edit import cut, producers
from .file import OnnxFile
from .wall import reason_of

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Part:
    """A file that holds a part of another.

    Attributes
    ----------
    file, source
        The part, and what it was taken from.
    inputs, outputs
        Its tensors at the cuts: name -> shape.
    nodes, nodes_before
        How many nodes it has, and how many the source has.
    """

    file: Path
    source: Path
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    nodes: int
    nodes_before: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self) | {"file": str(self.file), "source": str(self.source)}

    def __str__(self) -> str:
        ends = [", ".join(f"{n} {s}" for n, s in v.items()) for v in (self.inputs, self.outputs)]
        return (
            f"{self.file.name}: {self.nodes} of the {self.nodes_before} nodes of {self.source.name}"
            f"\n  in:  {ends[0]}\n  out: {ends[1]}"
        )

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return typesetting.listing(str(self))


def extract(
    source: OnnxFile | str | Path,
    destination: str | Path,
    module: str | None = None,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
) -> Part:
    """Write a part of an ONNX file as a separate file, weights included.

    Parameters
    ----------
    source, destination
        ONNX files; the source is not changed.
    module
        A module's path, ``"features.4"``: its nodes, with those of its submodules. Or:
    inputs, outputs
        Names of the tensors where to cut.

    Raises
    ------
    UnknownNameError
        No such module, or no such tensor; the message suggests the nearest.
    UsageError
        Neither or both were given, or an output does not depend on the inputs alone.
    """
    import onnx

    source, destination = OnnxFile.of(source), Path(destination)
    model = source.whole
    if (module is None) == (inputs is None) or (inputs is None) != (outputs is None):
        raise UsageError("Give module=..., or inputs=[...] and outputs=[...] together.")
    if module is not None:
        inputs, outputs = _boundary(model, module, source.path)
    inputs, outputs = list(inputs or ()), list(outputs or ())
    shaped = graph.with_shapes(model)
    known = set(producers(model.graph.node))
    known |= {value.name for value in model.graph.input}
    for name in (*inputs, *outputs):
        if name not in known:
            raise UnknownNameError("tensor", name, known)
    try:
        part = cut(shaped, outputs, inputs)
        onnx.checker.check_model(part)
    except Exception as error:  # the extractor and the checker raise several kinds
        ends = f"from {', '.join(inputs)} to {', '.join(outputs)}"
        raise UsageError(
            f"{source.name} cannot be cut {ends}: {reason_of(error)}. Choose other tensors."
        ) from error
    del part.metadata_props[:]  # the network's preprocessing and classes are not the part's
    with paths.atomic(destination) as temporary:
        temporary.write_bytes(graph.serialized(part, destination.name))
    shapes = _shapes(part.graph.input), _shapes(part.graph.output)
    return Part(destination, source.path, *shapes, len(part.graph.node), len(model.graph.node))


def _boundary(model: onnx.ModelProto, module: str, source: Path) -> tuple[list[str], list[str]]:
    """Return the tensors that enter and leave the nodes of a module."""
    nodes = list(model.graph.node)
    places = [graph.module_path(node) for node in nodes]
    kept = [f"{place}.".startswith(f"{module}.") for place in places]
    if not any(kept):
        found = {".".join(p.split(".")[:n]) for p in places if p for n in (1, 2, 3, 4, 5)}
        if not found:
            raise ModelFileError(f"{source} does not say which module its nodes come from.")
        raise UnknownNameError("module", module, found)
    inside = [node for node, keep in zip(nodes, kept, strict=True) if keep]
    outside = [node for node, keep in zip(nodes, kept, strict=True) if not keep]
    made = {name for node in inside for name in node.output}
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {n.output[0] for n in nodes if n.op_type == "Constant"}
    read = [name for node in inside for name in node.input if name]
    inputs = [name for name in read if name not in made | weights]
    elsewhere = {value.name for value in model.graph.output}
    elsewhere |= {name for node in outside for name in node.input}
    outputs = [name for node in inside for name in node.output if name in elsewhere]
    return list(dict.fromkeys(inputs)), list(dict.fromkeys(outputs))


def _shapes(values: Iterable[onnx.ValueInfoProto]) -> dict[str, list[int | str]]:
    return {
        v.name: [d.dim_value or d.dim_param or "?" for d in v.type.tensor_type.shape.dim]
        for v in values
    }


def rename_tensors_(model: onnx.ModelProto, renames: Mapping[str, str]) -> dict[str, str]:
    r"""Rename tensors of an ONNX model in place, wherever they occur; return old -> new name.

    Parameters
    ----------
    model
        With its inputs, outputs, weights, and the graphs inside its nodes.
    renames
        Exact name -> new name; or a regular expression -> replacement, as `re.fullmatch` and
        `re.sub` have it: ``{r"onnx::(\\\\w+)": r"weight_\\\\1"}``.

    Raises
    ------
    UnknownNameError
        A name or pattern that no tensor has.
    UsageError
        Two tensors would have the same name; the model is left as it was.
    """
    names = dict.fromkeys(_tensor_names(model.graph))
    changed: dict[str, str] = {}
    for pattern, new in renames.items():
        if pattern in names:
            found = {pattern: new}
        else:
            found = {n: re.sub(pattern, new, n) for n in names if re.fullmatch(pattern, n)}
        if not found:
            raise UnknownNameError("tensor", pattern, names)
        changed |= found
    after = [changed.get(name, name) for name in names]
    twice = [name for name in set(after) if after.count(name) > 1] if changed else []
    if twice:
        raise UsageError(f"Two tensors would be called {twice[0]!r}; nothing was renamed.")
    edit.rename_tensors_(model.graph, changed)
    return changed


def _tensor_names(part: onnx.GraphProto) -> Iterable[str]:
    for values in (part.input, part.initializer, part.output, part.value_info):
        yield from (value.name for value in values)
    for node in part.node:
        yield from (name for name in (*node.input, *node.output) if name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _tensor_names(attribute.g)
