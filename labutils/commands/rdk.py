"""Commands about D-Robotics' RDK X5: rdk nv12, prepare, show, apply; see also `rdk_board`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from ..errors import UsageError
from . import rdk_board
from .input_checking import first
from .options import (
    command,
    data_argument,
    emit,
    input_arguments,
    listener,
    model_arguments,
    own_folder,
    preprocessing_of,
    say,
    titled,
)


def add(commands: Any) -> None:
    """Add the parsers of these commands."""
    text = "What an RDK X5 needs: NV12 input, hb_mapper's YAML and calibration folder."
    parser = commands.add_parser("rdk", help=text, description=text)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _nv12_parser(actions)
    _prepare_parser(actions)
    _show_parser(actions)
    _apply_parser(actions)
    rdk_board.add(actions)


def _nv12_parser(actions: Any) -> None:
    text = "Write a model as ONNX that takes NV12 bytes; run it beside the float path."
    parser = command(actions, "nv12", _nv12, text)
    model_arguments(parser)
    parser.set_defaults(tensor=None)
    input_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .onnx to write")
    ranges = "luma 16 to 235 (video, as OpenCV and hb_mapper's bt601_video) or 0 to 255 (full)"
    parser.add_argument("--range", choices=("video", "full"), default="video", help=ranges)
    orders = "of the chroma pairs: U and V, or V and U (nv12)"
    parser.add_argument("--order", choices=("nv12", "nv21"), default="nv12", help=orders)
    data_argument(parser, "the colour error, and the two ways' answers, are measured on them")
    parser.add_argument("--images", type=int, default=32, help="pictures to measure with (32)")


def _nv12(chosen: argparse.Namespace) -> int:
    from .. import metrics, paths
    from ..images import nv12
    from ..models import gallery, zoo
    from ..pipeline import steps
    from ..rdk import nv12_input

    if chosen.images < 1:
        raise UsageError(f"--images {chosen.images}: at least one picture is needed.")
    model = zoo.load(chosen.model, chosen.weights, chosen.size)
    zoo.refuse_output(chosen.output, model, ".onnx")
    preprocessing = preprocessing_of(chosen, model)
    model = dataclasses.replace(model, preprocessing=preprocessing)
    say(chosen, titled(model))
    if chosen.data:
        model, load = own_folder(chosen, model)
        pictures = first(chosen.images, load)
    else:
        pictures = gallery.pictures(model, chosen.images)
    with paths.scratch() as folder:
        plain = steps.as_onnx(model, folder / chosen.output.name, chosen.opset)
        made = nv12_input.prepend(plain, chosen.output, preprocessing, chosen.range, chosen.order)
        steps.write_manifest(chosen.output, model, opset=made.opset)
        sent = nv12.encode(pictures.images, chosen.range, chosen.order)
        seen = nv12.decode(sent, chosen.range, chosen.order)
        floats, bytes_ = nv12_input.answers(plain, made, preprocessing(pictures.images), sent)
    agreement = metrics.agreement(floats, bytes_)
    cost = gallery.difference(bytes_, floats, pictures)
    colours = nv12.colour_error(pictures.images, seen)
    facts = {
        "file": str(chosen.output), "range": chosen.range, "order": chosen.order,
        "pictures": pictures.source, "colours": colours.to_dict(), "agreement": str(agreement),
        "cost": str(cost) if cost else None,
    }  # fmt: skip
    if chosen.json:
        print(json.dumps(facts, indent=2))
        return 0
    say(chosen, f"{pictures.source}\n{colours}\nagreement with the float path: {agreement}")
    if cost:
        say(chosen, f"top-1 of the bytes against the float path: {cost}")
    say(chosen, f"wrote {chosen.output}")
    return 0


def _prepare_parser(actions: Any) -> None:
    text = "Write all that hb_mapper makertbin needs: an ONNX file, a YAML, calibration files."
    parser = command(actions, "prepare", _prepare, text)
    model_arguments(parser)
    parser.set_defaults(tensor=None, opset=11)
    input_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder to make")
    named = "a preset or a YAML: its 16-bit exceptions become node_info (that of `convert`)"
    parser.add_argument("--recipe", help=named)
    ranges = "of the NV12 bytes that the board will feed (video, as OpenCV writes them)"
    parser.add_argument("--range", choices=("video", "full"), default="video", help=ranges)
    data_argument(parser, "calibration pictures come from its part for training")
    parser.add_argument("--images", type=int, default=100, help="calibration pictures (100)")


def _prepare(chosen: argparse.Namespace) -> int:
    from .. import paths, quantize
    from ..models import gallery, zoo
    from ..onnxfile.file import OnnxFile
    from ..pipeline import rdk_conversion, rdk_emulation, steps
    from ..quantize import exporting
    from ..rdk import hb_mapper_writing, vendor_tools

    if chosen.output.exists():
        raise UsageError(f"{chosen.output} exists: name a new folder.")
    recipe = quantize.load_recipe(chosen.recipe or rdk_conversion.RECIPE)
    model = zoo.load(chosen.model, chosen.weights, chosen.size)
    preprocessing = preprocessing_of(chosen, model)
    model = dataclasses.replace(model, preprocessing=preprocessing)
    say(chosen, titled(model))
    if chosen.data:
        model, load = own_folder(chosen, model)
        pictures = load("calib", chosen.images)
    else:
        pictures = gallery.pictures(model, chosen.images, "calib")
    stem = chosen.output.name
    place = chosen.output.absolute().parent
    with paths.scratch(paths.folder(place)) as folder:
        whole = folder / stem
        whole.mkdir()
        file = steps.as_onnx(model, folder / f"{stem}.onnx", chosen.opset)
        file, recipe = rdk_emulation.equalized(
            file, folder, recipe, pictures, preprocessing, listener(chosen)
        )
        file = vendor_tools.readable(file, whole / f"{stem}.onnx")
        if file.path.parent != whole:
            file = OnnxFile.write(whole / f"{stem}.onnx", file.copy())
        calibration = "calibration_rgb_f32"
        made = exporting.for_hb_mapper(
            recipe, file, preprocessing, prefix=stem, folder=calibration, kind=chosen.range
        )
        hb_mapper_writing.write_calibration(whole / calibration, pictures, preprocessing.channels)
        paths.write_text(whole / f"{stem}.yaml", made.text)
        whole.rename(chosen.output)
    facts = {
        "folder": str(chosen.output), "opset": file.opset, "pictures": pictures.source,
        "int16": made.int16, "cpu": made.cpu, "not_said": made.lost,
    }  # fmt: skip
    if chosen.json:
        print(json.dumps(facts, indent=2))
        return 0
    say(chosen, f"{pictures.source}\n{made}\nwrote {chosen.output}: {stem}.onnx (opset "
        f"{file.opset}), {stem}.yaml, {calibration}/")  # fmt: skip
    say(chosen, f"there: hb_mapper makertbin --config {stem}.yaml --model-type onnx")
    return 0


def _show_parser(actions: Any) -> None:
    text = "Say what each line of an hb_mapper YAML becomes in the lab."
    parser = command(actions, "show", _show, text)
    parser.add_argument("file", metavar="YAML", type=Path, help="hb_mapper's configuration")


def _show(chosen: argparse.Namespace) -> int:
    from ..rdk import hb_mapper

    emit(chosen, hb_mapper.read(chosen.file))
    return 0


def _apply_parser(actions: Any) -> None:
    text = "Quantize a model as an hb_mapper YAML says, with its calibration files; an emulation."
    parser = command(actions, "apply", _apply, text)
    parser.add_argument("file", metavar="YAML", type=Path, help="hb_mapper's configuration")
    model_arguments(parser)
    parser.set_defaults(tensor=None, opset=11)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .onnx to write")
    where = "folder of calibration files, instead of the YAML's cal_data_dir"
    parser.add_argument("--calibration", type=Path, metavar="FOLDER", help=where)
    held = "pictures to compare on (64)"
    parser.add_argument("--held-out", type=int, default=64, metavar="N", help=held)


def _apply(chosen: argparse.Namespace) -> int:
    from .. import pipeline, quantize
    from ..models import zoo
    from ..rdk import hb_mapper, hb_mapper_writing

    settings = hb_mapper.read(chosen.file)
    recipe = quantize.imported(chosen.file).recipe
    model = zoo.load(chosen.model, chosen.weights, chosen.size)
    shape = model.input_shape
    size = (shape[2], shape[3]) if shape and len(shape) == 4 else None
    preprocessing = settings.preprocessing(size)
    model = dataclasses.replace(model, preprocessing=preprocessing)
    folder = chosen.calibration or hb_mapper_writing.folder_of(settings, chosen.file.parent)
    inputs = hb_mapper_writing.read_calibration(folder, settings, preprocessing.shape)
    say(chosen, titled(model))
    say(chosen, f"input: {preprocessing}\ncalibration: {len(inputs)} files of {folder}")
    say(chosen, "emulated by the lab's quantizer: not D-Robotics' own tool, and not a BPU")
    made = pipeline.quantize_model(
        model, chosen.output, recipe, inputs,
        preparation=pipeline.Preparation(chosen.opset),
        comparison=pipeline.Comparison(chosen.held_out), listener=listener(chosen),
    )  # fmt: skip
    emit(chosen, made)
    return 0 if made.ok else 1
