"""Commands that write ONNX: export."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import command, model_arguments, say, titled

if TYPE_CHECKING:
    from ..models import zoo
    from ..onnxfile.file import OnnxFile


def add(commands: Any) -> None:
    """Add the parsers of these commands."""
    text = "Write a model as ONNX, compared with PyTorch; or its submodules, a file each."
    parser = command(commands, "export", _export, text)
    model_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, help="the .onnx to write")
    parser.add_argument("--input-name", metavar="NAME", help="of the input tensor (input)")
    parser.add_argument("--output-name", metavar="NAME", help="of the output tensor (logits)")
    simpler = "also run onnxsim, which folds constants and removes what does nothing"
    parser.add_argument("--simplify", action="store_true", help=simpler)
    split = parser.add_argument_group("parts")
    split.add_argument(
        "--parts", type=Path, metavar="FOLDER",
        help="write submodules here, each as an ONNX file that was run beside the whole network",
    )  # fmt: skip
    split.add_argument(
        "--module", action="append", metavar="PATH",
        help="a module, such as features.4 (repeatable); without it, all modules",
    )  # fmt: skip
    depth = "all modules down to this many names: 1 is features, 2 is features.0 (2)"
    split.add_argument("--depth", type=int, metavar="N", help=depth)


def _export(chosen: argparse.Namespace) -> int:
    from .. import manifests, paths
    from ..models import zoo
    from ..onnxfile import graph
    from ..onnxfile.file import OnnxFile
    from ..pipeline import submodules

    _refuse_misfit(chosen)
    model = zoo.load(chosen.model, chosen.weights, chosen.size)
    renames = (chosen.input_name, chosen.output_name)
    if chosen.output:
        zoo.refuse_output(chosen.output, model, ".onnx")
        if model.module is None and renames == (None, None):
            raise UsageError(
                f"{model.name} is an ONNX file already: pass --input-name or --output-name to "
                "rename its tensors, or --parts to split it."
            )
    say(chosen, titled(model))
    facts: dict[str, Any] = {"model": str(model)}
    with paths.scratch(chosen.output.parent if chosen.output else None) as folder:
        name = chosen.output.name if chosen.output else f"{manifests.stem_of(model.name)}.onnx"
        file = _write(chosen, model, folder / name, facts)
        if chosen.parts:
            depth = 2 if chosen.depth is None else chosen.depth
            split = submodules.split(model, file, chosen.parts, chosen.module or (), depth)
            facts |= split.to_dict()
            say(chosen, split)
        if chosen.output:
            _publish(file, model, chosen.output)
            facts["file"] = str(chosen.output)
            facts["parameters"] = graph.stored_values(OnnxFile(chosen.output).proto)
            said = f"{facts['parameters']:,} parameters in its initializers"
            say(chosen, f"wrote {chosen.output}: {said}")
    if chosen.json:
        print(json.dumps(facts, indent=2, default=str))
    return 0


def _refuse_misfit(chosen: argparse.Namespace) -> None:
    if not (chosen.output or chosen.parts):
        raise UsageError("Pass -o FILE.onnx, --parts FOLDER, or both.")
    if (chosen.module or chosen.depth is not None) and not chosen.parts:
        raise UsageError("--module and --depth choose parts: pass --parts FOLDER with them.")
    if chosen.module and chosen.depth is not None:
        raise UsageError("Pass --module or --depth, not both.")


def _write(
    chosen: argparse.Namespace, model: zoo.Model, place: Path, facts: dict[str, Any]
) -> OnnxFile:
    """Return the model as an ONNX file at `place`, with the names that were asked for."""
    from .. import export
    from ..onnxfile.file import OnnxFile
    from ..pipeline import submodules

    source = model.onnx or OnnxFile(model.file or place)
    if model.module is not None:
        report = export.to_onnx(model, place, opset=chosen.opset, simplify=chosen.simplify)
        say(chosen, report)
        source, facts["export"] = report.onnx or OnnxFile(place), report.to_dict()
    renames = (chosen.input_name, chosen.output_name)
    if renames != (None, None):
        source = OnnxFile(submodules.rename_ends(source, place, *renames))
        for side, name in zip(("input", "output"), renames, strict=True):
            if name is not None:
                say(chosen, f"{side} renamed to {name}")
    return source


def _publish(file: OnnxFile, model: zoo.Model, destination: Path) -> None:
    """Give the file its name, and write its manifest."""
    from .. import paths
    from ..pipeline import steps

    opset = file.opset
    with paths.atomic(destination) as temporary:
        file.path.replace(temporary)
    steps.write_manifest(destination, model, opset=opset)
