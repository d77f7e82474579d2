"""`labutils convert --target rdk-x5`: a .bin by the user's own vendor tools, or an emulation."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import (
    emit,
    listener,
    own_folder,
    own_images,
    preprocessing_of,
    say,
    titled,
)

if TYPE_CHECKING:
    from ..models import zoo

_OPSET = 11


def run(chosen: argparse.Namespace) -> int:
    """Convert for the RDK X5."""
    from .. import pipeline
    from ..models import ends, zoo
    from ..pipeline import rdk_conversion

    if chosen.output is None or chosen.output.suffix.lower() not in (".bin", ".onnx"):
        raise UsageError(
            f"{chosen.output or 'No file'}: for rdk-x5 pass -o FILE.bin (D-Robotics' tools, where "
            "you have them) or -o FILE.onnx (the lab's emulation)."
        )
    recipe = chosen.quantize or rdk_conversion.RECIPE
    model = zoo.load(chosen.model, chosen.weights, chosen.size, chosen.tensor)
    preprocessing = preprocessing_of(chosen, model)
    if not chosen.data and not (chosen.inputs and chosen.calibration):
        ends.refuse_no_pictures(model, "Pass --data FOLDER with pictures of your own.")
    say(chosen, titled(model))
    model = dataclasses.replace(model, preprocessing=preprocessing)
    if model.module is not None and chosen.opset > _OPSET:
        say(chosen, f"exported at opset {_OPSET}, the latest that D-Robotics' tools read")
        chosen.opset = _OPSET
    model, shown, calibration = _pictures(chosen, model)
    repair = chosen.repair or chosen.allow_approximate
    made = pipeline.convert_for_rdk(
        model, chosen.output, recipe,
        pipeline.Preparation(
            chosen.opset, chosen.target if repair else None, chosen.allow_approximate,
            chosen.replay,
        ),
        comparison=pipeline.Comparison(shown, chosen.min_cosine, calibration),
        listener=listener(chosen),
    )  # fmt: skip
    emit(chosen, made)
    return 0 if made.ok else 1


def _pictures(chosen: argparse.Namespace, model: zoo.Model) -> tuple[zoo.Model, Any, Any]:
    """Return the model, what the file is compared on, and what calibrates; None: our own."""
    if chosen.data:
        model, load = own_folder(chosen, model)
        return model, load("val", chosen.images), load("calib", 100)
    known = model.known_preprocessing()
    shown = chosen.inputs and own_images(chosen.inputs, known)
    calibration = chosen.calibration and own_images(chosen.calibration, known)
    return model, shown, calibration
