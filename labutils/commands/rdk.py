"""Commands about D-Robotics' RDK X5: rdk nv12."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .input_checking import first
from .options import (
    command,
    data_argument,
    input_arguments,
    model_arguments,
    own_folder,
    preprocessing_of,
    say,
    titled,
)


def add(commands: Any) -> None:
    """Add the parsers of these commands."""
    text = "What an RDK X5 needs: NV12 input."
    parser = commands.add_parser("rdk", help=text, description=text)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _nv12_parser(actions)


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
