"""Commands about fewer bits: quantize, recipe."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UnknownNameError, UsageError
from .options import (
    command,
    data_argument,
    emit,
    file_argument,
    input_arguments,
    listener,
    model_arguments,
    own_folder,
    own_images,
    preprocessing_of,
    require_folder,
    say,
    titled,
)

if TYPE_CHECKING:
    from ..models import zoo


def add(commands: Any) -> None:
    """Add the parsers of these commands."""
    _quantize_parser(commands)
    _recipe_parser(commands)


def _quantize_parser(commands: Any) -> None:
    text = "Quantize a model to ONNX, by a recipe or within a budget; run it, compare it, explain."
    parser = command(commands, "quantize", _quantize, text)
    model_arguments(parser)
    input_arguments(parser)
    file_argument(parser, "the .onnx to write, its recipe beside it")
    named = "a preset (`labutils recipe list`) or a YAML; with a budget: what to start from (int8)"
    parser.add_argument("--recipe", default="int8", help=named)
    budget = parser.add_argument_group("budget, for mixed precision (one, or --megabytes and one)")
    budget.add_argument(
        "--mac-share", type=float, metavar="SHARE",
        help="most multiply-accumulates with 16-bit activations, as a share, e.g. 0.15",
    )  # fmt: skip
    wanted = "minimum top-1 agreement with the float model, e.g. 0.995"
    budget.add_argument("--agreement", type=float, metavar="SHARE", help=wanted)
    budget.add_argument("--sqnr", type=float, metavar="DB", help="minimum logit SQNR, e.g. 20")
    size = "limit for the stored weights; layers go down to 4 bits to meet it"
    budget.add_argument("--megabytes", type=float, metavar="MB", help=size)
    images = parser.add_argument_group(
        "images",
        "PATH is a folder of pictures, or an .npz or .npy with normalised NCHW float32 inputs.",
    )
    own = "calibrate on your own images instead of Things-16's"
    images.add_argument("--calibration", type=Path, metavar="PATH", help=own)
    images.add_argument(
        "--images", type=int, metavar="N",
        help="calibration images: as many as the recipe says, or all of your own",
    )  # fmt: skip
    images.add_argument(
        "--held-out", type=int, metavar="N",
        help="validation images to compare on: 256 of Things-16, or all that --data has",
    )  # fmt: skip
    own = "compare on your own images instead; accuracy is then unknown"
    images.add_argument("--inputs", type=Path, metavar="PATH", help=own)
    data_argument(images, "one part calibrates, accuracy is measured on another")
    parser.add_argument("--min-cosine", type=float, help="another threshold for the parity gate")
    parser.add_argument("--repair-for", metavar="TARGET", help="first replace what it refuses")
    parser.add_argument("--tidl-hints", action="store_true", help="write import options for TIDL")
    whole = "also write this .onnx with operators on integers (QLinearConv, ...), run beside -o"
    parser.add_argument("--integer", type=Path, metavar="FILE", help=whole)
    why = parser.add_argument_group("why")
    why.add_argument("--explain", action="store_true", help="say which layers cost most, and why")
    why.add_argument("--layers", type=int, default=5, help="how many layers to explain (5)")
    where = "what runs those: ort, or htp (the simulator)"
    why.add_argument("--backend", default="ort", help=where)
    why.add_argument("--soc", default="SM8550", help="chip to simulate (SM8550)")


def _quantize(chosen: argparse.Namespace) -> int:
    from .. import pipeline, quantize, targets
    from ..models import ends, zoo
    from ..runtime import qnn

    if chosen.output is None and not chosen.explain:
        raise UsageError("Pass -o FILE.onnx, or --explain.")
    if chosen.integer and (chosen.output is None or chosen.integer == chosen.output):
        raise UsageError("--integer writes a second file: pass -o FILE.onnx for the QDQ file, too.")
    if chosen.backend not in ("ort", "htp"):
        raise UnknownNameError("backend", chosen.backend, ("ort", "htp"))
    if chosen.explain and chosen.layers < 1:
        raise UsageError(f"--layers must be at least 1, not {chosen.layers}.")
    if chosen.explain and chosen.backend == "htp":
        qnn.soc(chosen.soc)
        qnn.require()
    if chosen.repair_for:
        targets.load(chosen.repair_for)
    budget = _budget(chosen)
    require_folder(chosen)
    quantize.load_recipe(chosen.recipe)
    model = zoo.load(chosen.model, chosen.weights, chosen.size, chosen.tensor)
    preprocessing = preprocessing_of(chosen, model)
    if not chosen.data and not (chosen.calibration and chosen.inputs):
        ends.refuse_no_pictures(
            model,
            "Pass --calibration FILE.npz and --inputs FILE.npz: normalised NCHW float32 of your "
            "own.",
        )
    if chosen.integer:
        zoo.refuse_output(chosen.integer, model, ".onnx")
    say(chosen, titled(model))
    say(chosen, f"input: {preprocessing}")
    model = dataclasses.replace(model, preprocessing=preprocessing)
    model, calibration, compared = _images(chosen, model)
    explanation = pipeline.Explanation(chosen.layers, chosen.backend, chosen.soc)
    made = pipeline.quantize_model(
        model,
        chosen.output,
        chosen.recipe if budget is None else pipeline.Search(budget, chosen.recipe),
        calibration,
        preparation=pipeline.Preparation(chosen.opset, chosen.repair_for),
        comparison=pipeline.Comparison(compared, chosen.min_cosine),
        explanation=explanation if chosen.explain else None,
        listener=listener(chosen),
    )
    if chosen.tidl_hints and made.file:
        made = pipeline.add_tidl_hints(made)
    if chosen.integer:
        made = pipeline.add_integer(made, model, chosen.integer, compared)
    emit(chosen, made)
    return 0 if made.ok else 1


def _images(chosen: argparse.Namespace, model: zoo.Model) -> tuple[zoo.Model, Any, Any]:
    """Return the model, what calibrates it, and what it is compared on (numbers: of ours)."""
    from .. import quantize

    if chosen.data:
        model, load = own_folder(chosen, model)
        n = chosen.images
        if n is None:
            n = quantize.load_recipe(chosen.recipe).calibration.images
        return model, load("calib", n), load("val", chosen.held_out)
    given, preprocessing = (chosen.calibration, chosen.inputs), model.known_preprocessing()
    calibration, inputs = (path and own_images(path, preprocessing) for path in given)
    return model, _first(calibration, chosen.images), chosen.held_out if inputs is None else inputs


def _first(calibration: Any, images: int | None) -> Any:
    """Return that many of the user's images (all, for None); the number where there are none."""
    if calibration is None or images is None:
        return images if calibration is None else calibration
    if images < 1:
        raise UsageError(f"--images must be at least 1, not {images}.")
    return calibration.head(images) if hasattr(calibration, "head") else calibration[:images]


def _budget(chosen: argparse.Namespace) -> Any:
    """Return the budget that was asked for, None without one."""
    from ..quantize import mixed

    asked = {
        "mac_share": chosen.mac_share, "agreement": chosen.agreement, "sqnr_db": chosen.sqnr,
        "megabytes": chosen.megabytes,
    }  # fmt: skip
    return mixed.Budget(**asked) if any(value is not None for value in asked.values()) else None


def _recipe_parser(commands: Any) -> None:
    text = "Show a quantization recipe, list the presets, or import another tool's settings."
    parser = command(commands, "recipe", _recipe, text)
    parser.add_argument("action", choices=("list", "show", "import"))
    named = "a preset's name or a YAML; to import: TI's preset, TIDL options, an hb_mapper YAML"
    parser.add_argument("source", metavar="RECIPE", nargs="?", help=named)
    parser.add_argument("-o", "--output", type=Path, help="the YAML to write")


def _recipe(chosen: argparse.Namespace) -> int:
    from .. import quantize
    from ..quantize import presets

    if (chosen.source is None) != (chosen.action == "list"):
        raise UsageError("labutils recipe list | show RECIPE | import FILE_OR_NAME [-o YAML]")
    if chosen.action == "list":
        listed = presets.listed()
        width = max(map(len, listed))
        print(
            json.dumps(listed, indent=2)
            if chosen.json
            else "\n".join(f"{name:<{width}}  {about}" for name, about in listed.items())
        )
        return 0
    made = (quantize.load_recipe if chosen.action == "show" else quantize.imported)(chosen.source)
    emit(chosen, made)
    if chosen.output:
        recipe = made.recipe if isinstance(made, quantize.Imported) else made
        recipe.save(chosen.output)
        say(chosen, f"wrote {chosen.output}")
    return 0
