"""A network as ONNX with your own tensor names, and its submodules as separate files.

Some toolkits take a network in parts: one part runs on the accelerator, another on the CPU. Every
part is run here beside the whole network, on the tensors that enter it there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import manifests, metrics, paths, tabular
from ..errors import ExportError, UnknownNameError, UsageError, counted
from ..models import zoo
from ..onnxfile import graph, parts
from ..onnxfile.file import OnnxFile
from ..onnxfile.session import Session

MIN_COSINE = 0.9999


def rename_ends(
    source: OnnxFile, destination: Path, input_name: str | None, output_name: str | None
) -> Path:
    """Write a copy of an ONNX file whose input and output have other names.

    Parameters
    ----------
    source, destination
        The file, with one input and one output; the copy, which may be the same file.
    input_name, output_name
        The new names; None leaves the old one.

    Raises
    ------
    UsageError
        A tensor has that name already, the name cannot be printed, or the file has several inputs
        or outputs and it is not clear which is meant.
    """
    model, renames = source.copy(), {}
    ends = (("input", source.inputs, input_name), ("output", source.outputs, output_name))
    for side, tensors, new in ends:
        if new is None:
            continue
        names = [tensor.name for tensor in tensors]
        if len(names) != 1:
            listed = ", ".join(names)
            raise UsageError(
                f"{source.name} has {counted(len(names), side)} ({listed}); --{side}-name renames "
                f"the {side} of a file that has one."
            )
        if not new or not new.isprintable():
            raise UsageError(
                "A tensor's name is empty or cannot be printed: pass one without control "
                "characters."
            )
        if new != names[0]:
            renames[names[0]] = new
    parts.rename_tensors_(model, renames)
    with paths.atomic(destination) as temporary:
        temporary.write_bytes(graph.serialized(model, Path(destination).name))
        graph.require_valid(temporary, model)
    return destination


@dataclass(frozen=True)
class Submodule:
    """A module of a network as an ONNX file, and how it compares.

    Attributes
    ----------
    module
        Its dotted path.
    part
        The file, its inputs and outputs, its nodes.
    cosine
        Of its outputs to the same tensors in the whole network; the lowest.
    """

    module: str
    part: parts.Part
    cosine: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"module": self.module, **self.part.to_dict(), "cosine": self.cosine}


@dataclass(frozen=True, repr=False)
class Split(tabular.Table):
    """The submodules of a network that became files, and those that could not.

    Attributes
    ----------
    source
        The whole network's name.
    submodules
        In the order of the graph.
    left_out
        Module -> why it cannot be a separate file.
    between
        Nodes that are in no part, by operator: such as a Flatten that no module contains.
    """

    source: str
    submodules: tuple[Submodule, ...]
    left_out: dict[str, str]
    between: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for ``--json``."""
        return {
            "parts": [submodule.to_dict() for submodule in self.submodules],
            "left_out": self.left_out,
            "between": self.between,
        }

    def _parts(self) -> tuple:
        title = f"{counted(len(self.submodules), 'part')} of {self.source}"
        rows = [
            (s.module, s.part.file.name, str(s.part.nodes), _ends(s.part.inputs),
             _ends(s.part.outputs), f"{s.cosine:.6f}")
            for s in self.submodules
        ]  # fmt: skip
        notes = [f"{module}: not a separate file: {why}" for module, why in self.left_out.items()]
        if self.between:
            nodes = ", ".join(f"{n} {op}" for op, n in self.between.items())
            notes.append(f"In no part: {nodes}.")
        notes.append(
            "The cosine compares each part's outputs with the whole network's, on one input."
        )
        return title, ("module", "file", "nodes", "in", "out", "cosine"), rows, notes


def _ends(tensors: dict[str, list[int | str]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in tensors.values())


def modules_of(source: OnnxFile, depth: int) -> list[str]:
    """Return the modules of an ONNX file down to a number of dots, in the order of the graph.

    Parameters
    ----------
    source
        An export of torch: its nodes say which module they come from.
    depth
        1 for ``features`` and ``classifier``, 2 for ``features.0``, ...

    Raises
    ------
    UsageError
        The depth is below 1, or no node says where it comes from.
    """
    if depth < 1:
        raise UsageError(f"--depth must be at least 1, not {depth}.")
    places = [graph.module_path(node) for node in source.proto.graph.node]
    found = dict.fromkeys(".".join(place.split(".")[:depth]) for place in places if place)
    if not found:
        raise UsageError(
            f"{source.name} does not say which module its nodes come from: it cannot be taken "
            "apart by modules. Export it with torch, which keeps the modules' names."
        )
    return list(found)


def split(
    model: zoo.Model,
    source: OnnxFile | str | Path,
    folder: Path,
    modules: Sequence[str] = (),
    depth: int = 2,
) -> Split:
    """Write submodules of a network as ONNX files, each compared with the whole network.

    Parameters
    ----------
    model, source
        The network, and its ONNX file.
    folder
        Receives a file and a manifest per part; all of them, or none.
    modules
        Which; each must be one that can be cut. Without any: all down to `depth`, and those that
        cannot be separate files are named with the reason.
    depth
        As for `modules_of`.

    Raises
    ------
    UnknownNameError
        There is no such module.
    UsageError
        A module that was asked for cannot be cut out.
    ExportError
        A part does not compute what the whole network computes there.
    """
    source = OnnxFile.of(source)
    named, made, left_out = list(dict.fromkeys(modules)), [], {}
    wanted = named or modules_of(source, depth)
    folder = paths.folder(folder)
    with paths.scratch(folder) as place:
        for module in wanted:
            draft = place / manifests.file_name(model.name, "onnx", module)
            try:
                made.append((module, parts.extract(source, draft, module=module)))
            except UnknownNameError:
                raise
            except UsageError as error:
                if named:
                    raise
                left_out[module] = str(error)
        expected = _run_whole(source, [part for _, part in made])
        found = tuple(Submodule(name, part, _compare(part, expected)) for name, part in made)
        for submodule in found:
            _write_manifest(model, source, submodule)
        for submodule in found:
            _publish(submodule.part.file, folder)
    moved = tuple(_moved(submodule, folder, source.name) for submodule in found)
    between = _between(source, [submodule.module for submodule in found])
    return Split(source.name, moved, left_out, between)


def _between(source: OnnxFile, modules: Sequence[str]) -> dict[str, int]:
    """Count the nodes that belong to none of the modules, by operator."""
    inside = tuple(f"{module}." for module in modules)
    nodes = [node for node in source.proto.graph.node if node.op_type != "Constant"]
    outside = [n for n in nodes if not f"{graph.module_path(n)}.".startswith(inside)]
    return dict(Counter(node.op_type for node in outside))


def _moved(submodule: Submodule, folder: Path, source: str) -> Submodule:
    part = submodule.part
    facts = asdict(part) | {"file": folder / part.file.name, "source": Path(source)}
    return Submodule(submodule.module, parts.Part(**facts), submodule.cosine)


def _run_whole(source: OnnxFile, cut: list[parts.Part]) -> dict[str, np.ndarray]:
    """Return the tensors at all cuts, as the whole network computes them on one seeded input."""
    import onnx

    model = source.copy(shaped=True)
    wanted = {name: None for part in cut for name in (*part.inputs, *part.outputs)}
    (entry,) = model.graph.input[:1]
    shape = [d.dim_value or 1 for d in entry.type.tensor_type.shape.dim]
    inputs = np.random.default_rng(0).standard_normal(shape, np.float32)
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    present = {value.name for value in model.graph.output}
    for name in wanted:
        if name not in present and name != entry.name:
            model.graph.output.append(known.get(name) or onnx.ValueInfoProto(name=name))
    session = Session(model, name=source.name)
    names = [name for name in wanted if name != entry.name]
    values = dict(zip(names, session.run({entry.name: inputs}, names), strict=True))
    return {entry.name: inputs, **values}


def _compare(part: parts.Part, expected: dict[str, np.ndarray]) -> float:
    """Run a part on the tensors that enter it, and return its lowest cosine to what leaves."""
    session = Session(part.file)
    names = list(part.outputs)
    found = session.run({name: expected[name] for name in part.inputs}, names)
    cosines = [metrics.cosine(expected[n], f) for n, f in zip(names, found, strict=True)]
    if min(cosines) < MIN_COSINE:
        raise ExportError(
            f"{part.file.name} does not compute what the whole network computes there: cosine "
            f"{min(cosines):.4f}. Nothing was written."
        )
    return min(cosines)


def _write_manifest(model: zoo.Model, source: OnnxFile, submodule: Submodule) -> None:
    """Say whose part a file is; the network's own preprocessing is not the part's."""
    part = submodule.part
    facts = {
        "model": {"name": model.name, "weights": model.weights, "sha256": model.sha256},
        "part": {
            "module": submodule.module, "inputs": part.inputs, "outputs": part.outputs,
            "nodes": part.nodes, "of": source.name, "of_sha256": source.sha256,
            "cosine": submodule.cosine,
        },
        "opset": OnnxFile(part.file).opset,
    }  # fmt: skip
    manifests.write(part.file, facts)


def _publish(draft: Path, folder: Path) -> None:
    """Give a part its name; a kill leaves no manifest of another file."""
    target = folder / draft.name
    paths.manifest(target).unlink(missing_ok=True)
    draft.replace(target)
    paths.manifest(draft).replace(paths.manifest(target))
