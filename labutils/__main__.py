"""MobileNetV3 Edge Lab: check, repair, convert and verify models for edge accelerators.

Exit codes: 0 done; 1 the model has a problem, which is explained; 2 the call has one.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import LabError, UsageError

if TYPE_CHECKING:
    from . import data, zoo

# as in targets.TARGETS, which is heavier to import than a help text may be
TARGETS = ("snpe-2.7", "qnn", "qairt-2025", "tidl-11", "rdk-x5", "onnx-tf-1.10", "litert")
TARGETS += ("rknn-2.3",)
MODEL_HELP = (
    "mobilenet_v3_large, mobilenet_v3_small, tv:NAME (torchvision), timm:NAME, "
    "or a file (.onnx, .pt2)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse `arguments` (the process's own by default), run the command, return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a sign that the terminal cannot show does not stop us
            stream.reconfigure(errors="backslashreplace")
    chosen = _parser().parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        # `kill` and a closing terminal end us as Ctrl-C does: unfinished files are taken away.
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; nohup had it ignored
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _stopped)
    try:
        return chosen.command(chosen)
    except LabError as error:
        if getattr(chosen, "json", False):
            print(json.dumps({"error": type(error).__name__, "message": str(error)}, indent=2))
        else:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


def _stopped(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="labutils", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action="version", version=f"labutils {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _doctor_parser(commands)
    _diagnose_parser(commands)
    _repair_parser(commands)
    _convert_parser(commands)
    _batch_parser(commands)
    _recipe_parser(commands)
    _run_parser(commands)
    _journey_parser(commands)
    _reset_parser(commands)
    _room_parser(commands)
    _pack_parsers(commands)
    return parser


def _command(
    commands: Any, name: str, function: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--json", action="store_true", help="print JSON, for a machine to read")
    parser.set_defaults(command=function)
    return parser


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--weights", default="auto", help="auto, imagenet, things16, random, or a file"
    )
    parser.add_argument("--size", type=int, help="image side in pixels")
    parser.add_argument("--opset", type=int, default=17, help="ONNX opset of the export (17)")


def _input_arguments(parser: argparse.ArgumentParser) -> None:
    how = "per channel, for pixels scaled to 0..1; for files that do not say"
    for name in ("--mean", "--std"):
        parser.add_argument(name, type=float, nargs=3, metavar=("R", "G", "B"), help=how)


def _doctor_parser(commands: Any) -> None:
    _command(commands, "doctor", _doctor, "Probe this machine: what runs, what is missing.")


def _diagnose_parser(commands: Any) -> None:
    text = "Say what a target's converter makes of a model, node by node, and what would repair it."
    parser = _command(commands, "diagnose", _diagnose, text)
    _model_arguments(parser)
    parser.add_argument("--target", default="snpe-2.7", help=f"{', '.join(TARGETS)} (snpe-2.7)")
    again = "also show the check after the repair that would be made"
    parser.add_argument("--repair", action="store_true", help=again)
    parser.add_argument("--allow-approximate", action="store_true", help=_APPROXIMATE)
    parser.add_argument("--html", type=Path, help="also write one page to send to a colleague")


_APPROXIMATE = "also rules that change the function, where no exact one helps; retrain then"


def _repair_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="replace what the target refuses")
    parser.add_argument("--allow-approximate", action="store_true", help=_APPROXIMATE)


def _repair_parser(commands: Any) -> None:
    text = "Write a model as ONNX with what a target refuses replaced, and the recipe beside it."
    parser = _command(commands, "repair", _repair, text)
    _model_arguments(parser)
    parser.add_argument("--target", help="whose blockers to replace; not needed with --recipe")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .onnx to write")
    parser.add_argument("--allow-approximate", action="store_true", help=_APPROXIMATE)
    parser.add_argument("--recipe", type=Path, help="replay this surgery (YAML) instead")


def _convert_parser(commands: Any) -> None:
    text = "Convert a model, run the result, compare it with the original, and only then keep it."
    parser = _command(commands, "convert", _convert, text)
    _model_arguments(parser)
    _input_arguments(parser)
    parser.add_argument("--target", required=True, help="snpe-2.7, qnn or qairt-2025")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .dlc to write")
    _repair_arguments(parser)
    parser.add_argument("--recipe", type=Path, help="replay this surgery (YAML) instead")
    parser.add_argument(
        "--quantize", metavar="RECIPE", help="write an integer DLC: int8, a16w8, ... or a YAML"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "fp16"), default="fp32", help="of a float DLC (fp32)"
    )
    parser.add_argument("--soc", default="SM8550", help="chip to compile for and simulate (SM8550)")
    parser.add_argument("--inputs", type=Path, help=".npz with normalised NCHW float32 inputs")
    parser.add_argument("--min-cosine", type=float, help="another threshold for the parity gate")


def _batch_parser(commands: Any) -> None:
    text = "Convert every model of a list, unattended; what fails is a row with its reason."
    parser = _command(commands, "batch", _batch, text)
    listed = "a text file: one MODEL per line, with options of `convert` where it needs its own"
    parser.add_argument("list", metavar="LIST", type=Path, help=listed)
    parser.add_argument("--target", required=True, help="snpe-2.7, qnn or qairt-2025")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for everything")
    _repair_arguments(parser)
    parser.add_argument(
        "--quantize", metavar="RECIPE", help="write integer DLCs: int8, a16w8, ... or a YAML"
    )
    parser.add_argument("--weights", default="auto", help="as for `convert`")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds per model (1800)")


def _recipe_parser(commands: Any) -> None:
    text = "Show a quantization recipe, list the presets, or import another tool's settings."
    parser = _command(commands, "recipe", _recipe, text)
    parser.add_argument("action", choices=("list", "show", "import"))
    named = "a preset's name or a YAML; to import: TI's preset, TIDL options, an hb_mapper YAML"
    parser.add_argument("source", metavar="RECIPE", nargs="?", help=named)
    parser.add_argument("-o", "--output", type=Path, help="the YAML to write")


def _run_parser(commands: Any) -> None:
    text = "Run a model or an artifact on images and print its answers."
    parser = _command(commands, "run", _run, text)
    parser.add_argument("artifact", metavar="ARTIFACT", help=f"a .dlc, or {MODEL_HELP}")
    _input_arguments(parser)
    parser.add_argument("--weights", default="auto", help="for a model that is named")
    parser.add_argument("--size", type=int, help="image side in pixels, where it is open")
    parser.add_argument(
        "--images", nargs="+", default=["16"], help="a number of Things-16 images, or files"
    )
    parser.add_argument("--backend", default="auto", help="torch, ort or htp (auto)")
    parser.add_argument("--soc", default="SM8550", help="chip to simulate (SM8550)")


def _journey_parser(commands: Any) -> None:
    text = "The whole way, MobileNetV3 from PyTorch to an int8 Snapdragon artifact."
    parser = _command(commands, "journey", _journey, text)
    parser.add_argument("model", nargs="?", default="mobilenet_v3_large", help=MODEL_HELP)
    parser.add_argument("--weights", default="auto", help="auto, imagenet, things16, random, file")
    parser.add_argument("--size", type=int, help="image side in pixels")
    parser.add_argument("--images", type=int, default=96, help="images per HTP row (96)")
    parser.add_argument("--soc", default="SM8550", help="chip to compile for and simulate (SM8550)")
    parser.add_argument("-o", "--output", type=Path, help="folder (generated_models/)")


def _pack_parsers(commands: Any) -> None:
    text = "Put all wheels and cached weights into one folder, for a room without a network."
    parser = _command(commands, "pack", _pack, text)
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--with", dest="extra", action="append", default=[], metavar="REQUIREMENT")
    parser.add_argument("--index", default="", help="an index to ask too (PyTorch's CPU wheels)")
    text = "Check a pack and put its weights into the cache (`make setup PACK=DIR` calls it)."
    parser = _command(commands, "unpack", _unpack, text)
    parser.add_argument("folder", metavar="DIR", type=Path)


def _reset_parser(commands: Any) -> None:
    text = "Put the original of a notebook back; yours is kept beside it as a backup."
    parser = _command(commands, "reset", _reset, text)
    parser.add_argument("number", metavar="NN", help="the notebook's number, such as 03")
    parser.add_argument("--folder", type=Path, help="where your copies are (notebooks/my)")


def _room_parser(commands: Any) -> None:
    text = "Read the progress files of a room: who passed what. Nothing is sent anywhere."
    parser = _command(commands, "room", _room, text)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds the .jsonl files")


def _doctor(chosen: argparse.Namespace) -> int:
    from . import doctor

    diagnosis = doctor.examine()
    _show(chosen, diagnosis)
    return 0 if diagnosis.ok else 1


def _diagnose(chosen: argparse.Namespace) -> int:

    from . import export, paths, repair, targets, zoo

    targets.load(chosen.target)
    model = zoo.load(chosen.model, chosen.weights, chosen.size)
    with paths.scratch() as folder:
        path = model.file
        if model.module is not None:
            path = Path(folder, f"{chosen.model.replace(':', '_').replace('/', '_')}.onnx")
            export.to_onnx(model, path, opset=chosen.opset)
        allowed = {"allow_approximate": chosen.allow_approximate}
        plan = repair.suggest(path, chosen.target, **allowed)
        if chosen.html:
            from . import diagnosis

            diagnosis.write(plan, chosen.html, str(model), path)
            _say(chosen, f"wrote {chosen.html}")
    if chosen.json:
        facts = {"model": str(model), **plan.check.to_dict(), "repair": plan.to_dict()}
        print(json.dumps(facts, indent=2))
    else:
        after = [plan.after] if chosen.repair and plan.after is not None else []
        print("\n\n".join(map(str, [model, plan.check, plan, *after])))
    return 1 if plan.needed else 0


def _repair(chosen: argparse.Namespace) -> int:
    import tempfile

    from . import export, paths, repair, targets, zoo

    if (chosen.target is None) == (chosen.recipe is None):
        raise UsageError("Give --target (rules are chosen) or --recipe (they are replayed).")
    if chosen.output.suffix.lower() != ".onnx":
        raise UsageError(f"{chosen.output}: a repaired model is an .onnx file.")
    if chosen.target:
        targets.load(chosen.target)
    model = zoo.load(chosen.model, chosen.weights, chosen.size)
    with tempfile.TemporaryDirectory(prefix="labutils-repair-") as folder:
        path = model.file
        if model.module is not None:
            path = Path(folder, f"{chosen.output.stem}.onnx")
            _say(chosen, export.to_onnx(model, path, opset=chosen.opset))
        if chosen.recipe:
            done = repair.replay(path, chosen.recipe, chosen.output)
        else:
            allowed = {"allow_approximate": chosen.allow_approximate}
            done = repair.apply(path, chosen.target, chosen.output, **allowed)
    _show(chosen, done)
    _say(chosen, f"wrote {done.file} and {paths.recipe(done.file).name}")
    return 0


def _convert(chosen: argparse.Namespace) -> int:
    from . import graph, qnn, repair, targets, zoo

    targets.refuse_impossible(chosen.target, chosen.output)
    qnn.soc(chosen.soc)
    model = zoo.load(chosen.model, chosen.weights, chosen.size)
    preprocessing = _preprocessing(chosen, model)
    _say(chosen, _titled(model))
    name = graph.read(model.file).graph.input[0].name if model.module is None else "input"
    _say(chosen, f"input {name!r}: {preprocessing}")
    if chosen.min_cosine is not None:
        _say(chosen, f"parity threshold OVERRIDDEN: cosine >= {chosen.min_cosine}")
    conversion = repair.convert_model(
        model,
        chosen.target,
        chosen.output,
        repair=chosen.repair or chosen.allow_approximate,
        allow_approximate=chosen.allow_approximate,
        recipe=chosen.recipe,
        bits=chosen.quantize,
        precision=chosen.precision,
        opset=chosen.opset,
        soc=chosen.soc,
        inputs=_stored_inputs(chosen.inputs) if chosen.inputs else None,
        preprocessing=preprocessing,
        min_cosine=chosen.min_cosine,
        echo=lambda line: _say(chosen, line),
        progress=_progress,
    )
    _show(chosen, conversion)
    return 0


def _batch(chosen: argparse.Namespace) -> int:
    from . import batch

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
        echo=lambda line: _say(chosen, line),
    )
    _show(chosen, made)
    _say(chosen, f"table: {made.folder / 'batch.csv'}")
    return 0 if made.ok else 1


def _recipe(chosen: argparse.Namespace) -> int:
    from . import quantize

    if (chosen.source is None) != (chosen.action == "list"):
        raise UsageError("labutils recipe list | show RECIPE | import FILE_OR_NAME [-o YAML]")
    if chosen.action == "list":
        listed = {name: recipe.about for name, recipe in quantize.PRESETS.items()}
        width = max(map(len, listed))
        print(
            json.dumps(listed, indent=2)
            if chosen.json
            else "\n".join(f"{name:<{width}}  {about}" for name, about in listed.items())
        )
        return 0
    made = (quantize.load_recipe if chosen.action == "show" else quantize.imported)(chosen.source)
    _show(chosen, made)
    if chosen.output:
        getattr(made, "recipe", made).save(chosen.output)
        _say(chosen, f"wrote {chosen.output}")
    return 0


def _run(chosen: argparse.Namespace) -> int:
    from . import qnn, runtime, zoo

    chip = qnn.soc(chosen.soc)
    model = zoo.load(chosen.artifact, chosen.weights, chosen.size)
    preprocessing = _preprocessing(chosen, model)
    _say(chosen, _titled(model))
    artifact = model.module if model.module is not None else model.file
    simulated = chosen.backend == "htp" or str(artifact).endswith(".dlc")
    settings = {"soc": chip} if simulated else {}
    names, pixels, labels = _pixels(chosen, model, preprocessing.size)
    with runtime.connect(artifact, chosen.backend, **settings) as runner:
        name = getattr(runner, "input", "input")
        _say(chosen, f"{runner.name} on {runner.runtime}\ninput {name!r}: {preprocessing}")
        inputs = preprocessing(pixels)
        starts = _progress(range(0, len(inputs), 8), "images")
        logits = [runner.run(inputs[start : start + 8]) for start in starts]
    _answers(chosen, runner.runtime, model, names, logits, labels)
    return 0


def _pixels(chosen: argparse.Namespace, model: zoo.Model, size: int) -> tuple:
    """Return (names, pixels, labels); labels are None where the truth is not known."""
    import numpy as np

    from . import data

    if len(chosen.images) == 1 and chosen.images[0].isdigit():
        images = data.load("val", int(chosen.images[0]), size)
        names = [f"{images.classes[label]} (val {i})" for i, label in enumerate(images.labels)]
        known = tuple(images.classes) == tuple(model.classes)
        return names, np.asarray(images.images), images.labels if known else None
    return chosen.images, data.read_images(chosen.images, size), None


def _answers(
    chosen: argparse.Namespace,
    runtime: str,
    model: zoo.Model,
    names: list[str],
    logits: list,
    labels: Any,
) -> None:
    import numpy as np

    from . import metrics

    shares = metrics.softmax(np.concatenate(logits))
    best = metrics.topk(shares, min(3, shares.shape[1]))
    classes = model.classes or tuple(f"class {i}" for i in range(shares.shape[1]))
    rows = [
        {"image": name, "top": [(classes[k], round(float(row[k]), 4)) for k in order]}
        for name, row, order in zip(names, shares, best, strict=True)
    ]
    top1 = str(metrics.accuracy(shares, labels)) if labels is not None else None
    if chosen.json:
        print(json.dumps({"runtime": runtime, "rows": rows, "top1": top1}, indent=2))
        return
    for row in rows:
        answers = ", ".join(f"{name} {share:.4f}" for name, share in row["top"])
        print(f"{row['image']:<24} {answers}")
    if top1:
        print(f"top-1 {top1}")


def _journey(chosen: argparse.Namespace) -> int:
    from . import journey

    if chosen.images < 1:
        raise UsageError(f"--images {chosen.images}: at least one image is needed.")
    made = journey.run(
        chosen.model,
        chosen.weights,
        size=chosen.size,
        images=chosen.images,
        soc=chosen.soc,
        folder=chosen.output,
        echo=lambda line: _say(chosen, line),
        progress=_progress,
    )
    if chosen.json:
        print(json.dumps(made.to_dict(), indent=2, default=str))
    else:
        print("\n\n".join(filter(None, [str(made.table or ""), str(made.ladder or "")])))
        print("\n".join(["", *made.notes]))
        print(f"Artifacts and manifests: {next(iter(made.artifacts.values())).parent}")
    return 0


def _pack(chosen: argparse.Namespace) -> int:
    from . import pack

    settings = {"index": chosen.index, "echo": lambda line: _say(chosen, line)}
    _show(chosen, pack.collect(chosen.folder, chosen.extra, **settings))
    return 0


def _unpack(chosen: argparse.Namespace) -> int:
    from . import pack

    _show(chosen, pack.unpack(chosen.folder))
    return 0


def _reset(chosen: argparse.Namespace) -> int:
    from . import notebooks

    name = notebooks.named(chosen.number).name
    untouched = notebooks.untouched(chosen.number, chosen.folder)
    backup = notebooks.reset(chosen.number, chosen.folder)
    if chosen.json:
        print(json.dumps({"notebook": name, "backup": str(backup) if backup else None}, indent=2))
        return 0
    if untouched:
        print(f"Nothing to reset: your copy of {name} is as the lab made it.")
        return 0
    print(f"{name} is as it was made. Close it in JupyterLab and open it again.")
    if backup:
        print(f"Yours: {backup}")
    return 0


def _room(chosen: argparse.Namespace) -> int:
    from . import classroom

    _show(chosen, classroom.read_room(chosen.folder))
    return 0


def _preprocessing(chosen: argparse.Namespace, model: zoo.Model) -> data.Preprocessing:
    """Return the model's own preprocessing, or what the caller states; never a guess."""
    from . import adapt, data

    if (chosen.mean is None) != (chosen.std is None):
        raise UsageError("Give --mean and --std together.")
    if not model.input_shape and model.file:
        raise UsageError(f"{model.name} leaves its input size open: give --size, such as 224.")
    height, width = model.input_shape[-2:] if model.input_shape else (0, 0)
    if height != width:
        raise UsageError(
            f"{model.name} takes images {height} pixels high and {width} wide; the lab's are "
            "square. Export it with a square input."
        )
    if chosen.mean is not None:
        if model.preprocessing and model.preprocessing.source == adapt.PIXELS:
            raise UsageError(
                f"{model.name} takes pixels and normalises them itself: leave out --mean and --std."
            )
        mean, std = tuple(chosen.mean), tuple(chosen.std)
        return data.Preprocessing(model.input_shape[-1], mean, std, "as given on the command line")
    if model.preprocessing is None:
        raise UsageError(
            f"{model.name} does not say how its input was normalised, and it is not guessed. "
            "Give --mean R G B --std R G B (ImageNet's: 0.485 0.456 0.406 and 0.229 0.224 0.225; "
            "for pixels in 0..1 without more: 0 0 0 and 1 1 1)."
        )
    return model.preprocessing


def _titled(model: zoo.Model) -> str:
    classes = f"{len(model.classes)} classes" if model.classes else "classes unknown"
    return f"{model.name}: {model.note}; {classes}"


def _stored_inputs(path: Path) -> Any:
    import zipfile
    import zlib

    import numpy as np

    damaged = (zipfile.BadZipFile, zlib.error)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = [stored[name] for name in stored.files]
    except FileNotFoundError:
        raise UsageError(f"There is no file {path}.") from None
    except (OSError, EOFError, ValueError, AttributeError, RuntimeError, *damaged) as error:
        raise UsageError(f"{path} is no .npz with plain arrays: {error}") from None
    if len(arrays) != 1 or arrays[0].ndim != 4 or arrays[0].dtype != np.float32:
        raise UsageError(f"{path} must hold one float32 array of shape (n, 3, size, size).")
    return arrays[0]


def _progress(items: Iterable, description: str) -> Iterable:
    """Show a progress bar on stderr, when that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(
        items, description, console=console, disable=not console.is_terminal, transient=True
    )


def _say(chosen: argparse.Namespace, line: object) -> None:
    """Print a line of the story; with ``--json`` stdout belongs to the JSON."""
    print(line, file=sys.stderr if chosen.json else sys.stdout, flush=True)


def _show(chosen: argparse.Namespace, result: Any) -> None:
    print(json.dumps(result.to_dict(), indent=2, default=str) if chosen.json else result)


if __name__ == "__main__":
    sys.exit(main())
