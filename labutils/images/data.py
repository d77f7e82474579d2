"""Image sets and preprocessing. Takes a transform, never a model's name."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from .. import paths
from ..errors import UnknownNameError, UsageError, counted
from . import marked_things, picture_files, rendering, things

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
VALIDATION_IMAGES = 1600

_PART = 128  # pictures that one process draws at a time

NO_LABEL = -1
"""The label of a picture of which nobody has said what it shows."""


class Drawn(Protocol):
    """A procedural set: endless, each picture a function of its split and its number."""

    TITLE: str
    CLASSES: tuple[str, ...]
    SPLITS: dict[str, int]

    def image(self, index: int, split: str, size: int) -> np.ndarray:
        """Return one picture, (size, size, 3) uint8 RGB."""

    def label(self, index: int) -> int:
        """Return its class."""

    def digest(self, split: str) -> str:
        """Return the identity of a split's pixels."""


class Pictures(Protocol):
    """Pictures in parts, to learn and to be judged on; `labutils.images.folder` has such."""

    @property
    def title(self) -> str:
        """What they are called in a text."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label."""

    def load(self, part: str, n: int | None, size: Size) -> ImageSet:
        """Return the first `n` pictures of ``train``, ``calib``, ``val`` or ``test``; see `load`.

        There may be fewer.
        """


ImageSource = str | Pictures
"""What a network learns: the name of a procedural set, or a folder's pictures."""

THINGS16 = "things16"
DRAWN: dict[str, Drawn] = {THINGS16: things, "marked-things": marked_things}
"""The procedural sets by name; the weights that were trained on one have the same name."""


def drawn(image_set: str) -> Drawn:
    """Return a procedural set by its name; UnknownNameError where there is none."""
    if image_set not in DRAWN:
        raise UnknownNameError("image set", image_set, DRAWN)
    return DRAWN[image_set]


def title_of(source: ImageSource) -> str:
    """Return what a set is called in a text."""
    return drawn(source).TITLE if isinstance(source, str) else source.title


def classes_of(source: ImageSource) -> tuple[str, ...]:
    """Return the names of a set's classes, by label."""
    return drawn(source).CLASSES if isinstance(source, str) else source.classes


def checkpoint_name(architecture: str, image_set: str) -> str:
    """Return what the checkpoint of a network that learned a set is called, without a suffix."""
    return architecture if image_set == THINGS16 else f"{architecture}-{image_set}"


def validation_images(image_set: ImageSource) -> int:
    """Return how many images a model card is about: 100 of each class, as for Things-16."""
    return VALIDATION_IMAGES // len(things.CLASSES) * len(classes_of(image_set))


def set_of(classes: tuple[str, ...]) -> str | None:
    """Return which procedural set has these classes, None where none has."""
    return next((name for name, known in DRAWN.items() if classes == known.CLASSES), None)


Resampling = Literal["bilinear", "bicubic"]
"""How a picture is scaled, in the words of Pillow."""

Size = int | tuple[int, int]
"""Of images, in pixels: a side for squares, else (height, width)."""


def sides(size: Size) -> tuple[int, int]:
    """Return (height, width)."""
    return (size, size) if isinstance(size, int) else size


def square(lengths: Sequence[int]) -> Size:
    """Return the size of (height, width): a side where both are equal."""
    height, width = lengths
    return height if height == width else (height, width)


def shown(size: Size) -> str:
    """Return a size as a text has it: ``128 px``, ``96 x 160 px`` (height first)."""
    return f"{size} px" if isinstance(size, int) else f"{size[0]} x {size[1]} px"


def set_for(classes: tuple[str, ...]) -> str:
    """Return the procedural set that a network with these classes gets: its own, or Things-16."""
    return set_of(classes) or THINGS16


@dataclass(frozen=True)
class Preprocessing:
    """What happens to 8-bit RGB pixels before a network sees them.

    Attributes
    ----------
    size
        Side of the square input, in pixels; or (height, width).
    mean, std
        Per channel, for pixels scaled to 0..1: three for RGB, one for gray, which is the luma of
        RGB as Pillow's mode ``L`` has it. Other numbers of channels cannot be made of pictures.
    source
        Where these figures come from, e.g. ``"torchvision IMAGENET1K_V1"``.
    resampling
        How a picture file is scaled to `size`, before.
    """

    size: Size
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    source: str = "torchvision's ImageNet convention"
    resampling: Resampling = "bilinear"

    def __post_init__(self) -> None:
        if not isinstance(self.size, int):
            object.__setattr__(self, "size", square(self.size))
        if not self.mean or len(self.mean) != len(self.std):
            raise UsageError(
                f"mean {self.mean} and std {self.std}: as many values are needed as the input has "
                "channels, one for each."
            )
        with np.errstate(all="ignore"):  # what overflows float32 is found by its infinity
            mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
            figures = np.concatenate([mean, std, mean / std, 1 / (255 * std)])
        if not np.isfinite(figures).all() or min(self.std) <= 0:
            raise UsageError(
                f"mean {self.mean} and std {self.std}: finite numbers are needed, and std above 0."
            )

    @property
    def channels(self) -> int:
        """How many channels the input has."""
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the input."""
        return (self.channels, *sides(self.size))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return (n, channels, height, width) float32 from (n, height, width, 3) uint8 RGB.

        Gray pictures may also come as (n, height, width, 1).
        """
        height, width = sides(self.size)
        if self.channels not in (1, 3):
            raise UsageError(
                f"Pictures have three channels or one, this input has {self.channels}: pass "
                "inputs of your own, an .npz with normalised NCHW float32 (--inputs FILE.npz, and "
                "--calibration FILE.npz)."
            )
        deep = (self.channels, 3)
        fits = images.ndim == 4 and images.shape[1:3] == (height, width) and images.shape[3] in deep
        if images.dtype != np.uint8 or not fits:
            raise UsageError(
                f"Preprocessing expects uint8 images of shape (n, {height}, {width}, 3), "
                f"got {images.dtype} {images.shape}."
            )
        pixels = luma(images) if images.shape[3] > self.channels else images
        scale = (1 / (255 * np.asarray(self.std, np.float32))).astype(np.float32)
        offset = -np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray((pixels * scale + offset).transpose(0, 3, 1, 2))

    def __str__(self) -> str:
        height, width = sides(self.size)
        colours = {1: "gray", 3: "RGB"}.get(self.channels, f"with {self.channels} channels")
        return (
            f"NCHW float32, {height}x{width} {colours}, pixels 0..255 scaled to 0..1, "
            f"mean {self.mean}, std {self.std} ({self.source})"
        )

    def __repr__(self) -> str:
        return str(self)


def luma(images: np.ndarray) -> np.ndarray:
    """Return RGB as gray, (..., 1) uint8 from (..., 3) uint8, as Pillow converts to mode ``L``.

    That is ITU-R 601-2: ``L = (19595 R + 38470 G + 7471 B + 32768) / 65536``, rounded down.
    """
    weights = np.array([19595, 38470, 7471], np.uint32)
    return ((images @ weights + 0x8000) >> 16).astype(np.uint8)[..., None]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their classes.

    Attributes
    ----------
    images
        (n, height, width, 3) uint8 RGB.
    labels
        (n,) int64.
    classes
        Names, by label.
    source
        What these images are, as a phrase.
    skipped
        Files that could not be read, each with the reason.
    names
        The files, for pictures of a folder.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    source: str
    skipped: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, n: int) -> ImageSet:
        """Return the first `n` images (drawn classes take turns, so they stay balanced)."""
        return replace(self, images=self.images[:n], labels=self.labels[:n], names=self.names[:n])

    def batches(
        self, batch_size: int, preprocessing: Preprocessing
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (inputs, labels): (b, channels, height, width) float32 and (b,) int64."""
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield preprocessing(self.images[part]), self.labels[part]


def load(
    split: str = "val",
    n: int = VALIDATION_IMAGES,
    size: Size = 128,
    image_set: ImageSource = THINGS16,
) -> ImageSet:
    """Return the first `n` images of a set's split; drawn ones are rendered once and then cached.

    Parameters
    ----------
    split
        ``train``, ``val``, ``calib`` or ``test``.
    n
        Number of images; classes take turns.
    size
        Side in pixels; or (height, width), which is cut out of the centre of a square of the
        longer side.
    image_set
        One of `DRAWN`, or a folder's pictures, of which there may be fewer.

    Raises
    ------
    UnknownNameError
        No such split or set.
    UsageError
        Less than one image, or a size below 16 pixels.
    """
    if n < 1:
        raise UsageError(f"{n} images: pass at least one image.")
    if not isinstance(image_set, str):
        return image_set.load(split, n, size)
    known = drawn(image_set)
    if split not in known.SPLITS:
        raise UnknownNameError("split", split, known.SPLITS)
    squares = _rendered(image_set, split, n, max(sides(size)))
    images = squares if isinstance(size, int) else np.stack([fitted(p, size) for p in squares])
    return ImageSet(
        images=images,
        labels=np.arange(n, dtype=np.int64) % len(known.CLASSES),
        classes=known.CLASSES,
        source=f"{known.TITLE} {split} (drawn, synthetic), {counted(n, 'image')} at {shown(size)}",
    )


def calibration(n: int = 256, size: Size = 128, image_set: ImageSource = THINGS16) -> ImageSet:
    """Return `n` images for quantizer calibration; never used for training or validation."""
    return load("calib", n, size, image_set)


@functools.cache
def _pixels_version(image_set: str) -> str:
    """Return a key that changes whenever the pixels do: another generator, another cache."""
    import PIL

    known = drawn(image_set)
    pixels = rendering.digest(known.image, "train", len(known.CLASSES), 32)
    return f"{pixels[:12]}-{np.__version__}-{PIL.__version__}"


def _rendered(image_set: str, split: str, n: int, size: int) -> np.ndarray:
    folder = paths.cache() / image_set / _pixels_version(image_set)
    for path in sorted(folder.glob(f"{split}-{size}-*.npy"), key=lambda p: int(p.stem[-7:])):
        if int(path.stem.rsplit("-", 1)[1]) >= n:
            try:
                return np.load(path, mmap_mode="r")[:n]
            except (ValueError, OSError):  # left over from a crash or a full disk: draw it again
                path.unlink(missing_ok=True)
    path = folder / f"{split}-{size}-{n:07d}.npy"
    with paths.atomic(path) as temporary:
        _render_into(temporary, image_set, split, n, size)
    return np.load(path, mmap_mode="r")


def _render_into(file: Path, image_set: str, split: str, n: int, size: int) -> None:
    """Write `n` pictures as .npy, part by part: no more than a few parts are ever in memory."""
    images = np.lib.format.open_memmap(file, "w+", np.uint8, (n, size, size, 3))
    jobs = [(image_set, split, a, min(a + _PART, n), size) for a in range(0, n, _PART)]
    with _mapped(len(jobs)) as parts:
        for (_, _, start, stop, _), part in zip(jobs, parts(_render_part, jobs), strict=True):
            images[start:stop] = part
    images.flush()


def _render_part(job: tuple[str, str, int, int, int]) -> np.ndarray:
    image_set, split, start, stop, size = job
    return np.stack([drawn(image_set).image(index, split, size) for index in range(start, stop)])


@contextlib.contextmanager
def _mapped(jobs: int) -> Iterator[Callable[..., Iterable[np.ndarray]]]:
    """Yield `map`, on all cores where it pays and a fork is safe (a script needs no main guard)."""
    cores = os.cpu_count() or 1
    if jobs < 4 or cores == 1 or os.name != "posix":
        yield map
        return
    with get_context("fork").Pool(cores, _end_with, (os.getpid(),)) as pool:
        yield pool.imap


def _end_with(parent: int) -> None:
    """End this process when the one that wants its pictures has ended: nothing else would."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_images(
    files: Sequence[str | Path], size: Size, crop: float = 1.0, resampling: Resampling = "bilinear"
) -> np.ndarray:
    """Read pictures as a network of this size wants them.

    Parameters
    ----------
    files
        Picture files of any format and mode that Pillow reads.
    size
        Side in pixels, or (height, width), after scaling.
    crop
        Share of the shorter side that the centre cut keeps.
    resampling
        How it is scaled.

    Returns
    -------
    numpy.ndarray
        (n, height, width, 3) uint8 RGB; gray pictures have three equal channels.

    Raises
    ------
    UsageError
        A file is missing or no picture; the message names it.
    """
    pictures = (picture_files.upright(Path(file))[0] for file in files)
    return np.stack([fitted(pixels, size, crop, resampling) for pixels in pictures])


def fitted(
    pixels: np.ndarray, size: Size, crop: float = 1.0, resampling: Resampling = "bilinear"
) -> np.ndarray:
    """Return a picture as a network of this size wants it: scaled, its centre cut out.

    Parameters
    ----------
    pixels
        (height, width, 3) uint8 RGB.
    size
        Side in pixels, or (height, width), of what is returned, (height, width, 3) uint8.
    crop
        Share of the shorter side that the centre cut keeps.
    resampling
        How it is scaled.
    """
    from PIL import Image, ImageOps

    border = (1 - crop) / 2  # on each side; `fit` cuts the longer side to the shorter
    how = Image.Resampling[resampling.upper()]
    wanted = sides(size)[::-1]  # Pillow says width first
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), wanted, how, bleed=border))
