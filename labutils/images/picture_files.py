"""What the picture files of a folder are: decoded once each, and remembered while they stay."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from .. import paths, untrusted
from ..errors import UsageError
from ..tracking import Progress, tracked

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
    | {".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".tga"}
)
"""How files are called that are pictures; of those that Pillow does not read each is named."""

MAX_PIXELS = 100_000_000
"""Of one picture; 300 MB of RGB. A larger one is left out: nothing here looks at so many."""

_FORMAT = 2  # of what is remembered
_FULL_RANGE = 65_535  # of 16 bits
_FEW = 4096  # levels of a camera of 12 bits
_LINKED_DEPTH = 2  # folders below the root that are parts or classes


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
        ``16-bit below 4096`` (dark, or of a camera of 12 bits), ``animated`` (the first picture
        counts) and ``turned`` (by its EXIF orientation).
    problem
        Why it cannot be read.
    """

    name: str
    pixels: str = ""
    traits: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Scan:
    """What lies below a folder; what is hidden (its name begins with a dot) is not looked at.

    Attributes
    ----------
    files
        Those that are called like pictures, sorted by name.
    folders
        All folders that were entered, as names below the root.
    closed
        Folders and links that were not followed -> why.
    others
        How many files are called otherwise, by suffix.
    """

    files: tuple[PictureFile, ...]
    folders: tuple[str, ...]
    closed: dict[str, str]
    others: dict[str, int]


def upright(file: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return a picture as (height, width, 3) uint8 RGB, and its traits (see `PictureFile`).

    As torchvision's loader gives it: a transparent picture without its transparency. One of 16 bits
    is scaled to 8, where Pillow would cut it off at 255; all of them alike, so that one picture's
    brightness means the same as another's.

    Raises
    ------
    UsageError
        It is missing, not a plain file, not a picture, or has more than `MAX_PIXELS`; the message
        names it.
    """
    image = _pillow()
    try:
        with untrusted.opened(file) as content, image.open(content) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise UsageError(
                    f"{file} has {opened.width:,} x {opened.height:,} pixels, more than "
                    f"{MAX_PIXELS:,}: make it smaller first."
                )
            return _decoded(opened, file)
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"There is no picture {file}.") from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a folder: name the pictures in it.") from None
    except Exception as error:  # Pillow's readers raise a dozen kinds, SyntaxError among them
        raise UsageError(_unreadable(file, error)) from None


def _pillow() -> ModuleType:
    """Return Pillow's Image, its own limit not below ours: else it warns of what we take."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)
    return Image


def _decoded(opened: Image.Image, file: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    from PIL import Image, ImageOps

    traits = _traits(opened)
    picture = ImageOps.exif_transpose(opened)
    if "16-bit" in traits:
        values = np.asarray(picture)
        if not np.isfinite(values).all():
            raise UsageError(f"{file} has values that are not finite numbers.")
        if np.issubdtype(values.dtype, np.integer) and values.max(initial=0) < _FEW:
            traits = (*traits, f"16-bit below {_FEW}")
        picture = Image.fromarray(_eight_bits(values))
    return np.asarray(picture.convert("RGB")), traits


def _unreadable(file: Path, error: Exception) -> str:
    """Return why Pillow does not read a file: because of its kind, or because of this one."""
    image = _pillow()
    image.init()
    if file.suffix.lower() in SUFFIXES - set(image.registered_extensions()):
        return f"{file}: Pillow reads no {file.suffix} here. Save it as .png or .jpg."
    said = re.sub(r"cannot identify image file .*|<_io\.[^>]*>", "", str(error)).strip(" .")
    return f"{file} is not a picture that Pillow reads{f': {said}' if said else ''}."


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
    """Return gray values as uint8: those of 16 bits by their high byte.

    Floats of at most 1 are of 0..1; of at most 255, they stay; above, they are of 16 bits.
    """
    if np.issubdtype(values.dtype, np.integer):
        scale = 255 / _FULL_RANGE
    else:
        top = float(values.max(initial=0))
        scale = 255.0 if top <= 1 else 1.0 if top <= 255 else 255 / _FULL_RANGE
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


def scan(root: Path, progress: Progress | None = None) -> Scan:
    """Return what lies below a folder, every picture decoded once.

    What was found out about a file is kept in the cache, and holds while it is that file: its
    place on the disk, its size and its times.

    Parameters
    ----------
    root
        The folder.
    progress
        Follows the files that have to be decoded.
    """
    walked = _Walk(root)
    kept = _kept(root)
    known = _read_kept(kept)
    stamps = {name: _stamp(root / name) for name in walked.pictures}
    new = [name for name, stamp in stamps.items() if known.get(name, (None,))[0] != stamp]
    if new:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # Pillow decodes without GIL
            waiting = [pool.submit(_read, root, name) for name in new]
            for future in tracked(waiting, "reading", "pictures", progress):
                file = future.result()
                known[file.name] = (stamps[file.name], file)
        _keep(kept, {name: known[name] for name in stamps})
    files = tuple(known[name][1] for name in sorted(stamps))
    others = dict(sorted(walked.others.items()))
    return Scan(files, tuple(walked.folders), walked.closed, others)


class _Walk:
    """All that lies below a folder, as names below it.

    A link to a folder is entered where parts and classes are, as torchvision does; deeper ones are
    named, because links among folders can lead on without end.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pictures: list[str] = []
        self.folders: list[str] = []
        self.closed: dict[str, str] = {}  # name -> why it cannot be entered
        self.others: Counter[str] = Counter()
        self._enter("", ())

    def _enter(self, name: str, around: tuple[tuple[int, int], ...]) -> None:
        """Look at a folder that lies in those which `around` identifies."""
        if len(around) > untrusted.MAX_DEPTH:
            self.closed[name] = f"deeper than {untrusted.MAX_DEPTH} folders"
            return
        try:
            status = (self.root / name).stat()
            entries = sorted(os.scandir(self.root / name), key=lambda entry: entry.name)
        except OSError as error:
            self.closed[name or "."] = f"this folder cannot be read: {error.strerror}"
            return
        self.folders += [name] if name else []
        around = (*around, (status.st_dev, status.st_ino))
        for entry in entries:
            if not entry.name.startswith("."):
                self._look(entry, f"{name}/{entry.name}" if name else entry.name, around)

    def _look(
        self, entry: os.DirEntry[str], name: str, around: tuple[tuple[int, int], ...]
    ) -> None:
        if _is_folder(entry):
            closed = self._closed(entry, around) if entry.is_symlink() else ""
            if closed:
                self.closed[name] = closed
            else:
                self._enter(name, around)
        elif Path(name).suffix.lower() in SUFFIXES:
            self.pictures.append(name)
        elif entry.is_symlink() and not Path(entry.path).exists():
            self.closed[name] = "a link to nothing"
        else:
            self.others[Path(name).suffix.lower() or "no suffix"] += 1

    def _closed(self, entry: os.DirEntry[str], around: tuple[tuple[int, int], ...]) -> str:
        """Return why a link to a folder is not entered, "" where it is."""
        if len(around) > _LINKED_DEPTH:
            return "a link to a folder, inside of a class: put the folder itself there"
        status = entry.stat()
        above = [(s.st_dev, s.st_ino) for s in map(Path.stat, self.root.resolve().parents)]
        if (status.st_dev, status.st_ino) in (*around, *above):
            return "a link to a folder that it lies in"
        return ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links that lead to one another
        return False


def _stamp(file: Path) -> list[int]:
    """Return what changes when a file does, or when another takes its name (``cp -p``)."""
    try:
        status = file.stat()
    except OSError:  # a link to nothing
        return [-1, 0]
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino]


def _read(root: Path, name: str) -> PictureFile:
    try:
        pixels, traits = upright(root / name)
    except UsageError as error:
        path = str(root / name)  # the name stands beside the problem wherever it is shown
        return PictureFile(name, problem=str(error).removeprefix(path).removeprefix(" is ").strip())
    digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes())
    return PictureFile(name, digest.hexdigest(), traits)


def _kept(root: Path) -> Path:
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
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
