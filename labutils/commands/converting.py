"""Commands that check, repair and convert models: diagnose, repair, convert, batch."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ParityError, UsageError
from . import input_checking, rdk_converting
from .options import (
    APPROXIMATE,
    TARGET_NAMES,
    command,
    data_argument,
    emit,
    file_argument,
    input_arguments,
    listener,
    model_arguments,
    output_argument,
    own_folder,
    own_images,
    preprocessing_of,
    refuse_earlier,
    repair_arguments,
    replay_arguments,
    require_file,
    require_folder,
    say,
    titled,
)

if TYPE_CHECKING:
    from .. import pipeline, targets
    from ..models import zoo


def add(commands: Any) -> None:
    """Add the parsers of these commands."""
    _diagnose_parser(commands)
    _repair_parser(commands)
    _convert_parser(commands)
    _batch_parser(commands)


def _diagnose_parser(commands: Any) -> None:
    text = "Say what a target's converter makes of a model, node by node, and what would repair it."
    parser = command(commands, "diagnose", _diagnose, text)
    model_arguments(parser)
    parser.add_argument(
        "--target", default="snpe-2.7", help=f"{', '.join(TARGET_NAMES)} (snpe-2.7)"
    )
    again = "also show the check after the repair that would be made"
    parser.add_argument("--repair", action="store_true", help=again)
    parser.add_argument("--allow-approximate", action="store_true", help=APPROXIMATE)
    output_argument(parser)
    parser.add_argument("--html", type=Path, help="also write one page to send to a colleague")
    input_checking.add_arguments(parser)


def _repair_parser(commands: Any) -> None:
    text = "Write a model as ONNX, with what a target refuses replaced, and the edits next to it."
    parser = command(commands, "repair", _repair, text)
    model_arguments(parser)
    parser.add_argument("--target", help="whose blockers to replace; not needed with --replay")
    file_argument(parser, "the .onnx to write")
    parser.add_argument("--allow-approximate", action="store_true", help=APPROXIMATE)
    replay_arguments(parser)


def _convert_parser(commands: Any) -> None:
    text = "Convert a model, run the result, compare it with the original, and only then keep it."
    parser = command(commands, "convert", _convert, text)
    model_arguments(parser)
    input_arguments(parser)
    parser.add_argument(
        "--target", required=True, help="snpe-2.7, qnn, qairt-2025, litert or rdk-x5"
    )
    file_argument(
        parser,
        "the .dlc to write; litert: a .tflite; rdk-x5: a .bin (your own tools) or an .onnx",
    )
    repair_arguments(parser)
    replay_arguments(parser)
    parser.add_argument(
        "--quantize", metavar="RECIPE",
        help="write an integer file: int8, a16w8, ... or a YAML; for litert also static, dynamic, "
        "weight_only or int16x8, which are Google's own; for rdk-x5 also kl, or hb_mapper's YAML",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=("fp32", "fp16"), default="fp32", help="of a float file (fp32)"
    )
    parser.add_argument(
        "--layout", choices=("nhwc", "nchw"),
        help="of the image that a .tflite takes: channels last (nhwc) or first",
    )  # fmt: skip
    parser.add_argument("--soc", default="SM8550", help="chip to compile for and simulate (SM8550)")
    own = "your own images: a folder of pictures, or an .npz or .npy of normalised NCHW float32"
    parser.add_argument("--inputs", type=Path, metavar="PATH", help=f"compare on {own}")
    parser.add_argument(
        "--calibration", type=Path, metavar="PATH", help="with --quantize: calibrate on such images"
    )
    data_argument(parser, "one part calibrates, the file's accuracy is measured on another")
    parser.add_argument(
        "--images", type=int, default=96, metavar="N",
        help="with --data: pictures to measure the accuracy on, where a DLC is simulated (96)",
    )  # fmt: skip
    parser.add_argument("--min-cosine", type=float, help="another threshold for the parity gate")


def _batch_parser(commands: Any) -> None:
    text = "Convert every model in a list, unattended; a failure becomes a row with its reason."
    parser = command(commands, "batch", _batch, text)
    listed = "a text file: one MODEL per line, with its own options of `convert` if any"
    parser.add_argument("list", metavar="LIST", type=Path, help=listed)
    parser.add_argument("--target", required=True, help="snpe-2.7, qnn, qairt-2025 or litert")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for everything")
    repair_arguments(parser)
    parser.add_argument(
        "--quantize", metavar="RECIPE", help="write integer files: int8, a16w8, ... or a YAML"
    )
    parser.add_argument("--weights", default="auto", help="as for `convert`")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds per model (1800)")


def _diagnose(chosen: argparse.Namespace) -> int:
    from .. import manifests, paths, pipeline, targets
    from ..models import zoo
    from ..pipeline import steps

    if chosen.input_check:
        return input_checking.run(chosen)
    input_checking.refuse_alone(chosen)
    if chosen.model.lower().endswith(".tflite"):
        return _describe_tflite(chosen)
    targets.load(chosen.target)
    model = zoo.load(chosen.model, chosen.weights, chosen.size, chosen.tensor)
    if chosen.html:
        zoo.refuse_output(chosen.html, model, ".html", ".htm")
    with paths.scratch() as folder:
        place = folder / f"{manifests.stem_of(model.name)}.onnx"
        file = steps.as_onnx(model, place, chosen.opset)
        allowed = {"allow_approximate": chosen.allow_approximate}
        plan = pipeline.suggest(file, chosen.target, **allowed)
        if chosen.html:
            from ..show import diagnosis

            diagnosis.write(plan, chosen.html, str(model), os.fspath(file))
            say(chosen, f"wrote {chosen.html}")
    gone = pipeline.refused_as_brought(model.brought, plan.check) if model.brought else []
    if chosen.json:
        facts = {"model": str(model), **plan.check.to_dict(), "repair": plan.to_dict()}
        facts["refused_as_brought"] = [f"{n.op_type} {n.node}".strip() for n in gone]
        print(json.dumps(facts, indent=2))
    else:
        after = [plan.after] if chosen.repair and plan.after is not None else []
        said = [_as_brought(chosen, gone)] if gone else []
        say(chosen, "\n\n".join(map(str, [model, plan.check, plan, *after, *said])))
    by_hand = gone and not targets.TARGETS[chosen.target].convert  # the file itself is handed on
    return 1 if plan.needed or by_hand else 0


def _describe_tflite(chosen: argparse.Namespace) -> int:
    """Say what is in a file that was converted already, and whether LiteRT runs it."""
    from .. import runtime

    found = runtime.litert.contents(chosen.model)
    emit(chosen, found)
    runtime.connect(chosen.model).close()
    cure = "What a target makes of the network is asked of what this file was made from."
    say(chosen, f"LiteRT opens it. {cure}")
    return 0


def _as_brought(chosen: argparse.Namespace, gone: Sequence[targets.NodeVerdict]) -> str:
    """Say what the target refuses of the user's own file, which was adapted before the check."""
    counts = Counter(node.op_type for node in gone)
    listed = ", ".join(f"{count} x {op}" for op, count in counts.items())
    first = f", first {gone[0].node}" if gone[0].node else ""
    return (
        f"{Path(chosen.model).name} as it is has {listed}{first}, which {chosen.target} refuses. "
        "They are gone from the adapted copy that was checked here; to get it: labutils repair "
        f"MODEL --target {chosen.target} -o FILE.onnx"
    )


def _repair(chosen: argparse.Namespace) -> int:
    from .. import paths, pipeline, targets
    from ..models import zoo
    from ..pipeline import steps

    refuse_earlier(chosen)
    require_file(chosen, ".onnx")
    if (chosen.target is None) == (chosen.replay is None):
        raise UsageError("Pass --target (rules are chosen) or --replay (they are replayed).")
    if chosen.target:
        targets.load(chosen.target)
    model = zoo.load(chosen.model, chosen.weights, chosen.size, chosen.tensor)
    zoo.refuse_output(chosen.output, model, ".onnx")
    with paths.scratch() as folder:
        place = folder / f"{chosen.output.stem}.onnx"
        file = steps.as_onnx(model, place, chosen.opset, lambda line: say(chosen, line))
        if chosen.replay:
            done = pipeline.replay(file, chosen.replay, chosen.output)
        else:
            allowed = {"allow_approximate": chosen.allow_approximate}
            try:
                done = pipeline.apply(file, chosen.target, chosen.output, **allowed)
            except pipeline.NothingToRepairError as nothing:
                plan = pipeline.suggest(file, chosen.target)
                if model.brought and pipeline.refused_as_brought(model.brought, plan.check):
                    file.write(chosen.output, file.copy())
                    _describe(chosen, model, None)
                    say(chosen, f"Repaired by adapting it: {model}\nwrote {chosen.output}")
                    return 0
                say(chosen, f"{nothing} No file was written.")
                return 0
        if model.brought:  # the report's check compares with the adapted copy
            say(chosen, str(model))
        _describe(chosen, model, done)
    emit(chosen, done)
    say(chosen, f"wrote {done.file} and {paths.edits_file(done.file).name}")
    return 0


def _describe(chosen: argparse.Namespace, model: zoo.Model, done: pipeline.Repair | None) -> None:
    """Write the manifest of a repaired file."""
    from .. import manifests
    from ..onnxfile.file import OnnxFile
    from ..pipeline import steps

    facts = {"target": chosen.target, "opset": OnnxFile(chosen.output).opset}
    manifests.write(chosen.output, steps.facts_of(model, done) | facts)


def _convert(chosen: argparse.Namespace) -> int:
    from .. import pipeline
    from ..models import ends, zoo
    from ..onnxfile.file import OnnxFile
    from ..pipeline import destinations, steps
    from ..runtime import qnn

    refuse_earlier(chosen)
    if chosen.target == "rdk-x5":
        return rdk_converting.run(chosen)
    ending = destinations.ending(chosen.target)
    require_file(chosen, ending)
    destinations.refuse_impossible(chosen.target, chosen.output)
    qnn.soc(chosen.soc)
    require_folder(chosen)
    _refuse_misfit(chosen, ending)
    model = zoo.load(chosen.model, chosen.weights, chosen.size, chosen.tensor)
    preprocessing = preprocessing_of(chosen, model)
    if not chosen.data and not (chosen.inputs and (chosen.calibration or not chosen.quantize)):
        also = " and --calibration FILE.npz" if chosen.quantize else ""
        ends.refuse_no_pictures(
            model, f"Pass --inputs FILE.npz{also}: normalised NCHW float32 of your own."
        )
    say(chosen, titled(model))
    bare = (model.onnx or model.file) if model.module is None else None
    name = OnnxFile.of(bare).inputs[0].name if bare else "input"
    say(chosen, f"input {name!r}: {preprocessing}")
    if chosen.min_cosine is not None:
        say(chosen, f"parity threshold OVERRIDDEN: cosine >= {chosen.min_cosine}")
    repair = chosen.repair or chosen.allow_approximate
    preparation = pipeline.Preparation(
        chosen.opset, chosen.target if repair else None, chosen.allow_approximate, chosen.replay
    )
    model = dataclasses.replace(model, preprocessing=preprocessing)
    model, inputs, calibration = _images(chosen, model)
    shown = inputs.head(steps.GATE_IMAGES) if chosen.data else inputs
    comparison = pipeline.Comparison(shown, chosen.min_cosine, calibration)
    try:
        made = _made(chosen, model, preparation, comparison)
    except ParityError as error:
        raise ParityError(f"{error}\n\nNothing was written.", error.report) from None
    emit(chosen, made)
    say(chosen, f"wrote {made.file} and {made.manifest.name} beside it")
    if chosen.data:
        follower = listener(chosen)
        settings = {"soc": chosen.soc} if ending == ".dlc" else {}
        ladder = pipeline.measure_accuracy(model, chosen.output, inputs, follower, **settings)
        say(chosen, ladder)
    return 0


def _refuse_misfit(chosen: argparse.Namespace, ending: str) -> None:
    """Refuse options that do not go together, and a recipe that there is not."""
    from .. import litert, quantize

    if chosen.quantize and not (ending == litert.ENDING and chosen.quantize in litert.OWN):
        quantize.load_recipe(chosen.quantize)
    if chosen.calibration and not chosen.quantize:
        raise UsageError("--calibration is for an integer file: pass --quantize RECIPE with it.")
    if chosen.layout and ending != ".tflite":
        raise UsageError("--layout is for a .tflite: a DLC takes images as the ONNX file does.")
    if ending == ".tflite" and chosen.quantize and chosen.precision != "fp32":
        raise UsageError("--precision is for a float file: leave it out with --quantize.")


def _made(
    chosen: argparse.Namespace,
    model: zoo.Model,
    preparation: pipeline.Preparation,
    comparison: pipeline.Comparison,
) -> Any:
    """Convert for the target, and return the conversion."""
    from .. import dlc, litert, pipeline

    shared: dict[str, Any] = {
        "recipe": chosen.quantize, "comparison": comparison, "listener": listener(chosen)
    }  # fmt: skip
    if chosen.output.suffix.lower() == litert.ENDING:
        form = litert.Form(chosen.layout or "nhwc", precision=chosen.precision)
        return pipeline.convert_to_litert(model, chosen.output, preparation, form, **shared)
    device = dlc.Device(chosen.soc, chosen.precision)
    return pipeline.convert_model(
        model, chosen.target, chosen.output, preparation, device, **shared
    )


def _images(chosen: argparse.Namespace, model: zoo.Model) -> tuple[zoo.Model, Any, Any]:
    """Return the model, what its file is compared on, and what calibrates; None: our own."""
    from .. import litert, quantize

    if chosen.data:
        model, load = own_folder(chosen, model)
        googles = chosen.quantize in litert.OWN
        recipe = quantize.load_recipe(chosen.quantize) if chosen.quantize and not googles else None
        count = recipe.calibration.images if recipe else quantize.Calibration().images
        calibration = load("calib", count) if chosen.quantize else None
        return model, load("val", chosen.images), calibration
    given, preprocessing = (chosen.inputs, chosen.calibration), model.known_preprocessing()
    inputs, calibration = (path and own_images(path, preprocessing) for path in given)
    return model, inputs, calibration


def _batch(chosen: argparse.Namespace) -> int:
    from ..pipeline import batch

    options = ["--weights", chosen.weights]
    options += ["--repair"] if chosen.repair else []
    options += ["--allow-approximate"] if chosen.allow_approximate else []
    options += ["--quantize", chosen.quantize] if chosen.quantize else []
    made = batch.run(
        chosen.list,
        chosen.target,
        chosen.output,
        options,
        timeout_s=chosen.timeout,
        echo=lambda line: say(chosen, line),
    )
    emit(chosen, made)
    say(chosen, f"table: {made.folder / 'batch.csv'}")
    return 0 if made.ok else 1
