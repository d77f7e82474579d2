"""What the picture files of a folder are: decoded once each, and remembered by size and time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import paths, untrusted
from ..errors import UsageError
from ..tracking import Progress, tracked

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
MAX_PIXELS = 100_000_000
"""Of one picture; 300 MB of RGB. A larger one is left out: nothing here looks at so many."""

_FORMAT = 1  # of what is remembered


@dataclass(frozen=True)
class PictureFile:
    """One file.

    Attributes
    ----------
    name
        Its path below the folder, with ``/``.
    pixels
        SHA-256 of its decoded pixels (upright, RGB) and their shape; "" where it cannot be read.
    traits
        What is unusual, of ``gray``, ``CMYK``, ``transparent``, ``palette``, ``16-bit``,
        ``animated`` (the first picture counts) and ``turned`` (by its EXIF orientation).
    problem
        Why it cannot be read.
    """

    name: str
    pixels: str = ""
    traits: tuple[str, ...] = ()
    problem: str = ""


def upright(file: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return a picture as (height, width, 3) uint8 RGB, and its traits (see `PictureFile`).

    As torchvision's loader gives it: a transparent picture without its transparency. One of 16 bits
    is scaled to 8, where Pillow would cut it off at 255.

    Raises
    ------
    UsageError
        It is missing, not a picture, or has more than `MAX_PIXELS`; the message names it.
    """
    from PIL import Image, ImageOps

    try:
        untrusted.refuse_size(file)
        with Image.open(file) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise UsageError(
                    f"{file} has {opened.width:,} x {opened.height:,} pixels, more than "
                    f"{MAX_PIXELS:,}: make it smaller first."
                )
            traits = _traits(opened)
            picture = ImageOps.exif_transpose(opened)
            if "16-bit" in traits:
                picture = Image.fromarray(_eight_bits(np.asarray(picture)))
            return np.asarray(picture.convert("RGB")), traits
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"There is no picture {file}.") from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a folder: name the pictures in it.") from None
    except Exception as error:  # Pillow's readers raise a dozen kinds, SyntaxError among them
        raise UsageError(f"{file} is not a picture that Pillow reads: {error}") from None


def _traits(opened: Image.Image) -> tuple[str, ...]:
    """Return what is unusual in an opened picture."""
    from PIL import ExifTags

    mode, found = opened.mode, []
    if mode in ("1", "L", "LA", "La") or mode.startswith("I") or mode == "F":
        found.append("gray")
    found += ["16-bit"] if mode.startswith("I") or mode == "F" else []
    found += ["CMYK"] if mode == "CMYK" else []
    found += ["palette"] if mode in ("P", "PA") else []
    found += ["transparent"] if opened.has_transparency_data else []
    found += ["animated"] if getattr(opened, "n_frames", 1) > 1 else []
    turned = opened.getexif().get(ExifTags.Base.Orientation, 1)
    return (*found, *(["turned"] if turned in range(2, 9) else []))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Return gray values of 16 bits, or floats of 0..1, as uint8; smaller ones stay as they are."""
    top = float(values.max(initial=0))
    if np.issubdtype(values.dtype, np.floating) and top <= 1:
        values = values * 255.0
    elif top > 255:
        values = values / 257.0
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def scan(root: Path, progress: Progress | None = None) -> list[PictureFile]:
    """Return the picture files below a folder, sorted by name; hidden ones are not looked at.

    What was found out about a file is kept in the cache, and holds while its size and its time of
    change do.

    Parameters
    ----------
    root
        The folder.
    progress
        Follows the files that have to be decoded.
    """
    kept = _kept(root)
    known = _read_kept(kept)
    stamps = {name: _stamp(root / name) for name in _names(root)}
    new = [name for name, stamp in stamps.items() if known.get(name, (None,))[0] != stamp]
    if new:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # Pillow decodes without GIL
            waiting = [pool.submit(_read, root, name) for name in new]
            for future in tracked(waiting, "reading", "pictures", progress):
                file = future.result()
                known[file.name] = (stamps[file.name], file)
        _keep(kept, {name: known[name] for name in stamps})
    return [known[name][1] for name in sorted(stamps)]


def _names(root: Path) -> Iterator[str]:
    """Yield the picture files, as names below the folder; links to folders are not followed."""
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield (Path(place) / name).relative_to(root).as_posix()


def _stamp(file: Path) -> list[int]:
    try:
        status = file.stat()
    except OSError:  # a link to nothing
        return [-1, 0]
    return [status.st_size, status.st_mtime_ns]


def _read(root: Path, name: str) -> PictureFile:
    try:
        pixels, traits = upright(root / name)
    except UsageError as error:
        return PictureFile(name, problem=str(error))
    digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes())
    return PictureFile(name, digest.hexdigest(), traits)


def _kept(root: Path) -> Path:
    place = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return paths.cache() / "picture_files" / f"{place}.json"


def _read_kept(kept: Path) -> dict[str, tuple[list[int], PictureFile]]:
    """Return what is remembered; nothing where that is of another version, or damaged."""
    try:
        stored = untrusted.json_file(kept)
        if stored["format"] != [_FORMAT, *_versions()]:
            return {}
        return {
            name: (entry["stamp"], PictureFile(name, entry["pixels"], tuple(entry["traits"]),
                                               entry["problem"]))
            for name, entry in stored["files"].items()
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _keep(kept: Path, known: dict[str, tuple[list[int], PictureFile]]) -> None:
    files = {name: {"stamp": stamp, **asdict(file)} for name, (stamp, file) in known.items()}
    stored = {"format": [_FORMAT, *_versions()], "files": files}
    kept.parent.mkdir(parents=True, exist_ok=True)
    paths.write_text(kept, json.dumps(stored))


def _versions() -> list[str]:
    import PIL

    return [PIL.__version__]  # another version may decode a JPEG otherwise
