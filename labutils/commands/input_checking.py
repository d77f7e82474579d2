"""`labutils diagnose --input-check`: which mistake of preprocessing a file suffers from."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import data_argument, emit, input_arguments, own_folder, preprocessing_of, say

if TYPE_CHECKING:
    from ..images import data
    from ..models import zoo

PICTURES = 48


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``--input-check`` takes to the parser of `diagnose`."""
    group = parser.add_argument_group(
        "input check",
        "With --input-check no target is asked: a few labelled pictures show whether the file gets "
        "RGB for BGR, NV12 for NV21, mean and scale twice, or another range.",
    )
    group.add_argument("--input-check", action="store_true", help="check the preprocessing")
    data_argument(group, "pictures to check with, instead of the lab's drawn ones")
    text = f"pictures to check with ({PICTURES})"
    group.add_argument("--images", type=int, metavar="N", help=text)
    ranges = "of a file that takes NV12: the range of the bytes that it is fed"
    group.add_argument("--nv12-range", choices=("video", "full"), help=ranges)
    orders = "of a file that takes NV12: the order of the chroma that it is fed (nv12)"
    group.add_argument("--nv12-order", choices=("nv12", "nv21"), help=orders)
    input_arguments(group)


def refuse_alone(chosen: argparse.Namespace) -> None:
    """Refuse options of the input check where it was not asked for."""
    options = ("data", "images", "mean", "std", "nv12_range", "nv12_order")
    asked = [n for n in options if getattr(chosen, n) is not None]
    if asked:
        raise UsageError(f"--{asked[0].replace('_', '-')} is for --input-check: pass that, too.")


def run(chosen: argparse.Namespace) -> int:
    """Check the input of a file, print what was found, and return 1 for a mistake."""
    from ..compare import input_check
    from ..models import zoo
    from ..onnxfile import byte_input

    if chosen.images is not None and chosen.images < 1:
        raise UsageError(f"--images {chosen.images}: at least one picture is needed.")
    model = zoo.load(chosen.model, chosen.weights, chosen.size, chosen.tensor)
    taken = byte_input.read(model.onnx.proto) if model.onnx else None
    for option in ("range", "order"):
        if taken is None and getattr(chosen, f"nv12_{option}"):
            raise UsageError(f"{model.name} does not take NV12 bytes: leave out --nv12-{option}.")
    stated = None if taken else _stated(chosen, model)
    seen = stated or _plain(model, taken)
    model, pictures = _pictures(chosen, dataclasses.replace(model, preprocessing=seen))
    made = input_check.check(
        model.module if model.module is not None else (model.onnx or model.file),
        pictures,
        stated,
        output=model.output or None,
        kind=chosen.nv12_range,
        order=chosen.nv12_order or "nv12",
    )
    emit(chosen, made)
    return 0 if made.ok else 1


def _stated(chosen: argparse.Namespace, model: zoo.Model) -> data.Preprocessing | None:
    """Return the preprocessing that is stated, None where nobody states any."""
    silent = model.preprocessing is None and chosen.mean is None and chosen.std is None
    return None if silent else preprocessing_of(chosen, model)


def _plain(model: zoo.Model, taken: Any) -> data.Preprocessing:
    """Return what brings pictures to the size of a file that states no preprocessing."""
    from ..images import data

    shape = (1, 3, taken.height, taken.width) if taken else model.input_shape
    if shape is None or len(shape) != 4 or shape[1] not in (1, 3):
        raise UsageError(f"{model.name} takes {shape}, not one picture: its input is not checked.")
    channels = shape[1]
    return data.Preprocessing(
        (shape[2], shape[3]), (0.0,) * channels, (1.0,) * channels, "not stated"
    )


def first(n: int, load: Callable[[str, int | None], data.ImageSet]) -> data.ImageSet:
    """Return `n` pictures of a folder: those that accuracy is measured on, then of the others."""
    import numpy as np

    held = load("val", n)
    rest = n - len(held)
    if not rest:
        return held
    more = load("calib", rest)
    images = np.concatenate([held.images, more.images])
    labels = np.concatenate([held.labels, more.labels])
    source = f"{held.source}; {more.source}"
    names = held.names + more.names
    return dataclasses.replace(held, images=images, labels=labels, source=source, names=names)


def _pictures(chosen: argparse.Namespace, model: zoo.Model) -> tuple[zoo.Model, data.ImageSet]:
    from ..models import gallery

    if chosen.data:
        model, load = own_folder(chosen, model)
        return model, first(chosen.images or PICTURES, load)
    pictures = gallery.pictures(model, chosen.images or PICTURES)
    say(chosen, f"pictures: {pictures.source}")
    return model, pictures
