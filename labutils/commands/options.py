"""What the commands share: their options, the model's input, and what they print."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LimitError, UsageError, counted, printable, some

if TYPE_CHECKING:
    from ..images import data
    from ..models import zoo
    from ..pipeline import settings

# as in targets.TARGETS, which is heavier to import than a help text may be
TARGET_NAMES = ("snpe-2.7", "qnn", "qairt-2025", "tidl-11", "rdk-x5", "onnx-tf-1.10", "litert",
                "rknn-2.3")  # fmt: skip
NAME_HELP = (
    "mobilenet_v3_large, mobilenet_v3_small, efficientnet_lite0, fbnet_a, tv:NAME (torchvision), "
    "timm:NAME"
)
WEIGHTS_HELP = "auto, imagenet, things16, marked-things, random, or a file"
MODEL_HELP = f"{NAME_HELP}, or a file (.onnx, .pt2)"
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_MAX_INPUT_BYTES = 4 << 30
_SILENT_S = 10.0  # seconds without a line where no progress bar can be drawn
APPROXIMATE = "also rules that change the function, where no exact one helps; retrain then"


def command(
    commands: Any, name: str, function: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add a command with its ``--json``, and return its parser."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--json", action="store_true", help="print machine-readable JSON")
    parser.set_defaults(command=function)
    return parser


def joined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the numbers behind --size, --mean and --std as one, for argparse.

    It would give an option that takes several values the MODEL behind them, too.

    Examples
    --------
    >>> joined(["run", "--mean", "0.5", "-.5", "--size", "96", "160", "net.onnx"])
    ['run', '--mean=0.5,-.5', '--size=96,160', 'net.onnx']
    """
    made: list[str] = []
    rest = list(arguments)
    while rest:
        made.append(rest.pop(0))
        if made[-1] in NUMBERS:
            count = next((i for i, word in enumerate(rest) if not _is_number(word)), len(rest))
            count = min(count, NUMBERS[made[-1]])
            if count:
                made[-1] += "=" + ",".join(rest[:count])
                del rest[:count]
    return made


NUMBERS = {"--size": 2, "--mean": 64, "--std": 64}
"""Options that take several numbers, and at most how many."""


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def numbers(word: str) -> tuple[float, ...]:
    """Return what ``0.5,0.5`` says; for argparse."""
    return tuple(map(float, word.split(",")))


def size(word: str) -> data.Size:
    """Return what ``96`` or ``96,160`` says: a side, or height and width; for argparse."""
    lengths = [int(part) for part in word.replace("x", ",").split(",")]
    if len(lengths) > 2:
        raise ValueError(word)
    return lengths[0] if len(lengths) == 1 else (lengths[0], lengths[1])


def size_argument(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Add ``--size``."""
    text = f"image side in pixels, or height and width{more}"
    parser.add_argument("--size", type=size, metavar="SIDE | H W", help=text)


class _FileOrOutput(argparse.Action):
    """``-o FILE`` names a file to write; ``--output NAME`` an output of the network.

    A name that ends as the file does is the file: ``--output`` was another name of ``-o``.
    """

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        is_file = option == "-o" or Path(values).suffix in (".onnx", ".dlc", ".tflite")
        setattr(namespace, "output" if is_file else "tensor", Path(values) if is_file else values)


SCORES = (
    "--output NAME: the output with the classifier's scores, where the network has several; or a "
    "tensor inside, to end an .onnx there"
)


def file_argument(parser: argparse.ArgumentParser, written: str) -> None:
    """Add ``-o FILE``, and ``--output NAME`` for an output of the network."""
    parser.add_argument(
        "-o", "--output", action=_FileOrOutput, metavar="FILE",
        help=f"-o FILE: {written}. {SCORES}",
    )  # fmt: skip
    parser.set_defaults(tensor=None)


def output_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--output NAME`` to a command that writes no file."""
    text = SCORES.partition(": ")[2]
    parser.add_argument("--output", dest="tensor", metavar="NAME", help=text)


def require_file(chosen: argparse.Namespace, ending: str) -> None:
    """Refuse a call without ``-o FILE``."""
    if chosen.output is None:
        raise UsageError(f"Pass -o FILE{ending}.")


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and what an export of it needs."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--weights", default="auto", help=WEIGHTS_HELP)
    size_argument(parser)
    opset = "ONNX opset of the export (%(default)s)"
    parser.add_argument("--opset", type=int, default=17, help=opset)


def input_arguments(parser: Any) -> None:
    """Add ``--mean`` and ``--std`` to a parser or a group of one."""
    how = "one number per channel, for pixels scaled to 0..1; for files that do not say"
    for name in ("--mean", "--std"):
        parser.add_argument(name, type=numbers, metavar="R G B | GRAY", help=how)


def repair_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--repair`` and ``--allow-approximate``."""
    parser.add_argument("--repair", action="store_true", help="replace what the target refuses")
    parser.add_argument("--allow-approximate", action="store_true", help=APPROXIMATE)


def replay_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--replay``, and what it was called before."""
    parser.add_argument("--replay", metavar="EDITS", type=Path, help="replay these edits (YAML)")
    parser.add_argument("--recipe", dest="earlier", metavar="EDITS", help=argparse.SUPPRESS)


def refuse_earlier(chosen: argparse.Namespace) -> None:
    """Refuse an option's former name, and give the current one."""
    if chosen.earlier:
        from .. import quantize

        if chosen.earlier in quantize.PRESETS:
            raise UsageError(
                f"{chosen.earlier} is a quantization recipe: labutils convert --quantize "
                f"{chosen.earlier}, or labutils quantize --recipe {chosen.earlier}."
            )
        raise UsageError(
            f"--recipe is called --replay here: --replay {chosen.earlier}. (A recipe says how a "
            "model is quantized: convert --quantize RECIPE.)"
        )


def preprocessing_of(chosen: argparse.Namespace, model: zoo.Model) -> data.Preprocessing:
    """Return the model's own preprocessing, or what the caller states; never a guess."""
    from ..images import data
    from ..models import adapt, ends

    if (chosen.mean is None) != (chosen.std is None):
        raise UsageError("Give --mean and --std together.")
    ends.refuse_other_inputs(model)
    ends.refuse_labels(model)
    ends.refuse_layout_of_one_processor(model)
    if not model.input_shape and model.file:
        raise UsageError(
            f"{_known_as(model)} leaves its input size open: give --size, such as 224, or --size "
            "HEIGHT WIDTH."
        )
    if model.input_shape and len(model.input_shape) != 4:
        raise UsageError(
            f"{model.name} takes an input of shape {model.input_shape}, not images "
            "(n, 3, height, width). Export it with such an input."
        )
    _, channels, height, width = model.input_shape or (1, 3, 0, 0)
    if chosen.mean is not None:
        if model.preprocessing and model.preprocessing.source == adapt.PIXELS:
            raise UsageError(
                f"{model.name} takes pixels and normalises them itself: leave out --mean and --std."
            )
        if {len(chosen.mean), len(chosen.std)} != {channels}:
            raise UsageError(
                f"{model.name} takes images of {counted(channels, 'channel')}: give --mean and "
                f"--std {counted(channels, 'value')} each, not {len(chosen.mean)} and "
                f"{len(chosen.std)}."
            )
        source = "as given on the command line"
        return data.Preprocessing((height, width), chosen.mean, chosen.std, source)
    if model.preprocessing is None:
        raise UsageError(
            f"{_known_as(model)} does not say how its input was normalised, and it is not guessed. "
            f"{_ways_to_state(channels)}"
        )
    return model.preprocessing


def _ways_to_state(channels: int) -> str:
    """Return what to give for `channels`, with the usual values."""
    if channels == 3:
        return (
            "Give --mean R G B --std R G B (ImageNet's: 0.485 0.456 0.406 and 0.229 0.224 0.225; "
            "for plain pixels in 0..1: 0 0 0 and 1 1 1)."
        )
    plain = " ".join("0" * channels), " ".join("1" * channels)
    usual = "MNIST's: 0.1307 and 0.3081; " if channels == 1 else ""
    return (
        f"Give --mean and --std, {counted(channels, 'value')} each ({usual}for plain pixels in "
        f"0..1: {plain[0]} and {plain[1]})."
    )


def _known_as(model: zoo.Model) -> str:
    """Return the name, with what the lab knows of an artifact: its claim may be gone, too."""
    made = model.name.endswith((".dlc", ".tflite"))
    return f"{model.name} ({model.note})" if made else model.name


def titled(model: zoo.Model) -> str:
    """Return the line that says which model this is."""
    return f"{model.name}: {model.note.rstrip('.')}; {model.answers}"


def stored_inputs(path: Path) -> Any:
    """Return the one float32 array of an ``.npz`` or ``.npy``, (n, channels, height, width)."""
    import io
    import zipfile
    import zlib

    import numpy as np

    from .. import untrusted

    damaged = (zipfile.BadZipFile, zlib.error, MemoryError)  # the last: a false shape
    try:
        if path.suffix == ".npy":
            members = [untrusted.content(path, _MAX_INPUT_BYTES)]
        else:
            with zipfile.ZipFile(path) as archive:
                untrusted.refuse_bomb(path, archive)
                members = [untrusted.member(archive, entry) for entry in archive.infolist()]
        arrays = [np.load(io.BytesIO(member), allow_pickle=False) for member in members]
    except FileNotFoundError:
        raise UsageError(f"There is no file {path}.") from None
    except LimitError:
        raise
    except (OSError, EOFError, ValueError, AttributeError, RuntimeError, *damaged) as error:
        raise UsageError(f"{path} is not an .npz with plain arrays: {error}") from None
    if len(arrays) != 1 or arrays[0].ndim != 4 or arrays[0].dtype != np.float32:
        raise UsageError(
            f"{path} must hold one float32 array of shape (n, channels, height, width)."
        )
    return arrays[0]


def own_images(path: Path, preprocessing: data.Preprocessing) -> Any:
    """Return what a user gives instead of Things-16: an ``.npz``'s inputs, a folder's pictures."""
    import numpy as np

    from ..images import data

    if not path.is_dir():
        return stored_inputs(path)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _PICTURES)
    if not files:
        raise UsageError(f"{path} holds no pictures ({', '.join(_PICTURES)}).")
    pixels = data.read_images(files, preprocessing.size, resampling=preprocessing.resampling)
    unknown = np.full(len(files), data.NO_LABEL)
    return data.ImageSet(pixels, unknown, (), f"{len(files)} pictures in {path.name}")


def data_argument(parser: Any, use: str) -> None:
    """Add ``--data FOLDER`` to a parser or a group of one."""
    text = (
        "a folder of your own pictures, one subfolder per class (or train/, val/, test/ with "
        f"classes inside), or a set that `labutils photographs` fetched: {use}"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=text)


def require_folder(chosen: argparse.Namespace) -> None:
    """Refuse a ``--data`` that is not there, before any work."""
    from ..images import folder

    if chosen.data:
        folder.located(chosen.data)


def own_folder(
    chosen: argparse.Namespace, model: zoo.Model
) -> tuple[zoo.Model, Callable[[str, int | None], data.ImageSet]]:
    """Return the model, with the class names that ``--data`` gives it, and what loads a part.

    ``load(part, n)`` gives the first `n` pictures of ``calib``, or of ``val``: those that accuracy
    is measured on, which are of ``test`` in a folder without ``val``.
    """
    from ..models import gallery

    for option in ("calibration", "inputs"):
        if getattr(chosen, option, None):
            raise UsageError(f"--data takes the place of --{option}: pass one of them.")
    named = gallery.names_classes(model)
    model, folder = gallery.in_folder(model, chosen.data, progress_bar)
    say(chosen, folder)
    if folder.labelled and not named:
        say(chosen, f"  {_assumed(folder.classes)}")
    if not folder.labelled:
        say(chosen, f"{_why_unlabelled(model)}, so accuracy is unknown; agreement is not.")
    return model, gallery.loader(model, folder)


def _assumed(classes: Sequence[str]) -> str:
    """Return which output is taken for which class, where the network names none."""
    numbered = some(f"{number} {name}" for number, name in enumerate(classes))
    return (
        "ASSUMED: the network does not name its classes, and its outputs are taken for the "
        f"folders in the order of their names: {numbered}. Where a loop of yours numbered them "
        "otherwise, accuracy is wrong: export the network with its classes "
        "(`qat.to_qdq(..., classes=...)`, or a zoo.Model for `export.to_onnx`)."
    )


def _why_unlabelled(model: zoo.Model) -> str:
    from ..models import gallery

    if not model.trained:
        return "The network is not trained"
    if gallery.names_classes(model):
        return "The pictures lie in no folders of classes"
    return (
        f"The network has {len(model.classes)} classes without names, and the folder another number"
    )


def progress_bar(items: Iterable, description: str) -> Iterable:
    """Show a progress bar on stderr when that is a terminal, else a line every ten seconds."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if console.is_terminal:
        return track(items, description, console=console, transient=True)
    return _print_now_and_then(items, description)


def _print_now_and_then(items: Iterable, description: str) -> Iterator:
    total = f" of {len(items)}" if isinstance(items, Sized) else ""
    said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - said > _SILENT_S:
            print(f"{description}: {done}{total}", file=sys.stderr, flush=True)
            said = time.monotonic()


def listener(chosen: argparse.Namespace) -> settings.Listener:
    """Return what prints the story of a long run, and draws its progress bars."""
    from ..pipeline import settings

    return settings.Listener(lambda line: say(chosen, line), progress_bar)


def say(chosen: argparse.Namespace, line: object) -> None:
    """Print a line of the story; with ``--json`` stdout belongs to the JSON."""
    print(printable(str(line)), file=sys.stderr if chosen.json else sys.stdout, flush=True)


def emit(chosen: argparse.Namespace, result: Any) -> None:
    """Print a result, as JSON where that was asked for."""
    if chosen.json:
        print(json.dumps(result.to_dict(), indent=2, default=str))
    else:
        print(printable(str(result)))
