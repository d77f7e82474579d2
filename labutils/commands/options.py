"""What the commands share: their options, the model's input, and what they print."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LimitError, UsageError, printable

if TYPE_CHECKING:
    from ..images import data
    from ..models import zoo
    from ..pipeline import settings

# as in targets.TARGETS, which is heavier to import than a help text may be
TARGET_NAMES = ("snpe-2.7", "qnn", "qairt-2025", "tidl-11", "rdk-x5", "onnx-tf-1.10", "litert",
                "rknn-2.3")  # fmt: skip
NAME_HELP = "mobilenet_v3_large, mobilenet_v3_small, tv:NAME (torchvision), timm:NAME"
MODEL_HELP = f"{NAME_HELP}, or a file (.onnx, .pt2)"
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
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


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and what an export of it needs."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--weights", default="auto", help="auto, imagenet, things16, random, or a file"
    )
    parser.add_argument("--size", type=int, help="image side in pixels")
    parser.add_argument("--opset", type=int, default=17, help="ONNX opset of the export (17)")


def input_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--mean`` and ``--std``."""
    how = "per channel, for pixels scaled to 0..1; for files that do not say"
    for name in ("--mean", "--std"):
        parser.add_argument(name, type=float, nargs=3, metavar=("R", "G", "B"), help=how)


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
    from ..models import adapt

    if (chosen.mean is None) != (chosen.std is None):
        raise UsageError("Give --mean and --std together.")
    if not model.input_shape and model.file:
        raise UsageError(
            f"{_known_as(model)} leaves its input size open: give --size, such as 224."
        )
    if model.input_shape and len(model.input_shape) != 4:
        raise UsageError(
            f"{model.name} takes an input of shape {model.input_shape}, not images "
            "(n, 3, height, width). Export it with such an input."
        )
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
        return data.Preprocessing(width, mean, std, "as given on the command line")
    if model.preprocessing is None:
        raise UsageError(
            f"{_known_as(model)} does not say how its input was normalised, and it is not guessed. "
            "Give --mean R G B --std R G B (ImageNet's: 0.485 0.456 0.406 and 0.229 0.224 0.225; "
            "for plain pixels in 0..1: 0 0 0 and 1 1 1)."
        )
    return model.preprocessing


def _known_as(model: zoo.Model) -> str:
    """Return the name, with what the lab knows of a DLC: its claim may be gone with its bytes."""
    return f"{model.name} ({model.note})" if model.name.endswith(".dlc") else model.name


def titled(model: zoo.Model) -> str:
    """Return the line that says which model this is."""
    classes = f"{len(model.classes)} classes" if model.classes else "classes unknown"
    return f"{model.name}: {model.note.rstrip('.')}; {classes}"


def stored_inputs(path: Path) -> Any:
    """Return the one float32 array of an ``.npz``, (n, 3, size, size)."""
    import io
    import zipfile
    import zlib

    import numpy as np

    from .. import untrusted

    damaged = (zipfile.BadZipFile, zlib.error, MemoryError)  # the last: a false shape
    try:
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
        raise UsageError(f"{path} must hold one float32 array of shape (n, 3, size, size).")
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
    pixels = data.read_images(files, preprocessing.size)
    unknown = np.full(len(files), data.NO_LABEL)
    return data.ImageSet(pixels, unknown, (), f"{len(files)} pictures in {path.name}")


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
