"""Commands about a compiled file and the board: rdk describe, rdk fetch, rdk demo."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import command, emit, input_arguments, preprocessing_of, say, size_argument

if TYPE_CHECKING:
    import numpy as np

    from ..images import data
    from ..onnxfile import byte_input
    from ..onnxfile.file import OnnxFile

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


def add(actions: Any) -> None:
    """Add the parsers of these commands to those of `rdk`."""
    text = "List what a .bin contains: inputs, outputs, compiled parts, nodes on the CPU."
    parser = command(actions, "describe", _describe, text)
    parser.add_argument("file", metavar="BIN", type=Path, help="a compiled model")
    text = "Download a .bin; say whether its hash was verified, by --sha256."
    parser = command(actions, "fetch", _fetch, text)
    parser.add_argument("url", metavar="URL", help="where it is, https")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .bin to write")
    parser.add_argument("--sha256", default="", metavar="HEX", help="what the file must have")
    _demo_parser(actions)


def _demo_parser(actions: Any) -> None:
    text = "A picture's five best classes, the first drawn into it: on the board, or here."
    parser = command(actions, "demo", _demo, text)
    which = "a .bin (on the board only), or an .onnx: float, quantized, or one that takes NV12"
    parser.add_argument("model", metavar="MODEL", help=which)
    parser.add_argument("picture", metavar="PICTURE", type=Path, help="a picture file")
    given = "labels by class number: JSON, or one a line (of the manifest, where there is one)"
    parser.add_argument("--labels", type=Path, metavar="FILE", help=given)
    parser.add_argument("-o", "--output", type=Path, help="the .png or .jpg to write")
    ranges = "of the NV12 bytes that the file takes, where it does not say (video)"
    parser.add_argument("--range", choices=("video", "full"), help=ranges)
    input_arguments(parser)
    size_argument(parser, ", of a .bin")
    parser.set_defaults(tensor=None)


def _describe(chosen: argparse.Namespace) -> int:
    from ..rdk import compiled_file

    emit(chosen, compiled_file.describe(chosen.file))
    return 0


def _fetch(chosen: argparse.Namespace) -> int:
    from .. import fetch, paths

    if chosen.sha256 and not _DIGEST.fullmatch(chosen.sha256):
        raise UsageError(f"--sha256 {chosen.sha256}: a SHA-256 has 64 hexadecimal digits.")
    if chosen.output.exists():
        raise UsageError(f"{chosen.output} exists: name another file.")
    paths.refuse_unwritable(chosen.output)
    digest = fetch.file(chosen.url, chosen.output, chosen.sha256)
    verified = bool(chosen.sha256)
    if chosen.json:
        facts = {"file": str(chosen.output), "sha256": digest, "verified": verified}
        print(json.dumps(facts, indent=2))
        return 0
    state = "verified" if verified else "UNVERIFIED: nobody but its server says that it is right"
    say(chosen, f"wrote {chosen.output}: SHA-256 {digest}, {state}")
    if not verified:
        say(chosen, f"from now on: --sha256 {digest}")
    return 0


def _demo(chosen: argparse.Namespace) -> int:
    from ..images import data, picture_files
    from ..rdk import demo

    named = demo.labels(chosen.labels) if chosen.labels else ()
    pixels, _ = picture_files.upright(chosen.picture)
    preprocessing, scores, runtime, known = _scores(chosen, pixels)
    named = named or known
    if not named:
        raise UsageError(f"{chosen.model} names no classes: pass --labels FILE.")
    found = demo.answer(scores, named, chosen.picture.name, runtime)
    emit(chosen, found)
    if chosen.output:
        shown = data.fitted(pixels, preprocessing.size) if min(pixels.shape[:2]) < 64 else pixels
        demo.draw(shown, found, chosen.output)
        say(chosen, f"wrote {chosen.output}")
    return 0


def _scores(
    chosen: argparse.Namespace, pixels: np.ndarray
) -> tuple[data.Preprocessing, np.ndarray, str, tuple[str, ...]]:
    """Return what the model is fed with, the scores of a picture, what ran it, and its classes."""
    from ..images import data

    if chosen.model.lower().endswith(".bin"):
        from ..rdk import board

        _refuse_statistics(chosen)
        preprocessing = data.Preprocessing(
            chosen.size or 224, source="the size of the .bin; it normalises itself"
        )
        fitted = data.fitted(pixels, preprocessing.size)
        with board.BoardRunner(chosen.model, preprocessing, chosen.range or "video") as runner:
            return preprocessing, runner.scores(fitted[None])[0], runner.runtime, ()
    return _onnx_scores(chosen, pixels)


def _refuse_statistics(chosen: argparse.Namespace) -> None:
    if chosen.mean is not None or chosen.std is not None:
        raise UsageError(
            f"{chosen.model} takes NV12 bytes and normalises them itself: leave out --mean, --std."
        )


def _onnx_scores(
    chosen: argparse.Namespace, pixels: np.ndarray
) -> tuple[data.Preprocessing, np.ndarray, str, tuple[str, ...]]:
    from .. import runtime
    from ..images import data
    from ..models import zoo
    from ..onnxfile import byte_input
    from ..onnxfile.file import OnnxFile

    if not Path(chosen.model).is_file():
        raise UsageError(f"There is no file {chosen.model}.")
    file = OnnxFile(chosen.model)
    taken = byte_input.read(file.proto)
    if taken is not None:
        return _scores_of_bytes(chosen, pixels, file, taken)
    if chosen.range:
        raise UsageError(f"{file.name} does not take NV12 bytes: leave out --range.")
    model = zoo.load(chosen.model, "auto", chosen.size, None)
    model = dataclasses.replace(model, preprocessing=preprocessing_of(chosen, model))
    preprocessing = model.known_preprocessing()
    fitted = data.fitted(pixels, preprocessing.size)
    with runtime.connect(model.onnx or model.file, output=model.output or None) as runner:
        scores = runner.run(preprocessing(fitted[None]))[0]
        return preprocessing, scores.reshape(-1), runner.runtime, tuple(model.classes)


def _scores_of_bytes(
    chosen: argparse.Namespace, pixels: np.ndarray, file: OnnxFile, taken: byte_input.ByteInput
) -> tuple[data.Preprocessing, np.ndarray, str, tuple[str, ...]]:
    from .. import provenance
    from ..images import data, nv12
    from ..onnxfile.session import Session
    from ..runtime import outputs

    _refuse_statistics(chosen)
    if chosen.range and taken.kind and chosen.range != taken.kind:
        raise UsageError(
            f"{file.name} decodes its bytes in the {taken.kind} range: leave out --range, or make "
            f"the file for the other one (`labutils rdk nv12 --range {chosen.range}`)."
        )
    session = Session(file)
    best = outputs.scores_of(outputs.listed(session.outputs), None, file.name, file.proto)
    if not best:
        raise UsageError(f"{file.name} has no output with the scores of a classifier.")
    preprocessing = data.Preprocessing((taken.height, taken.width), source="NV12 bytes")
    kind = taken.kind or chosen.range or "video"
    sent = nv12.encode(data.fitted(pixels, preprocessing.size), kind, taken.order or "nv12")
    key, shape, _ = session.inputs[0]
    fed = sent.reshape([n if isinstance(n, int) else 1 for n in shape])
    scores = session.run({key: fed}, [best])[0]
    classes = provenance.stored(file.path, file.proto)[0].get("classes", ())
    return preprocessing, scores.reshape(-1), f"ONNX Runtime, {taken}", tuple(classes)
