"""Image sets and preprocessing. Takes a transform, never a model's name."""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from .. import paths
from ..errors import UsageError, counted
from . import things

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
VALIDATION_IMAGES = 1600

NO_LABEL = -1
"""The label of a picture of which nobody has said what it shows."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to 8-bit RGB pixels before a network sees them.

    Attributes
    ----------
    size
        Side of the square input, in pixels.
    mean, std
        Per channel (R, G, B), for pixels scaled to 0..1.
    source
        Where these figures come from, e.g. ``"torchvision IMAGENET1K_V1"``.
    """

    size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    source: str = "torchvision's ImageNet convention"

    def __post_init__(self) -> None:
        with np.errstate(all="ignore"):  # what overflows float32 is found by its infinity
            mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
            figures = np.concatenate([mean, std, mean / std, 1 / (255 * std)])
        if not np.isfinite(figures).all() or min(self.std) <= 0:
            raise UsageError(
                f"mean {self.mean} and std {self.std}: finite numbers are needed, and std above 0."
            )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return (n, 3, size, size) float32 from (n, size, size, 3) uint8 RGB images."""
        if images.dtype != np.uint8 or images.shape[1:] != (self.size, self.size, 3):
            raise UsageError(
                f"Preprocessing expects uint8 images of shape (n, {self.size}, {self.size}, 3), "
                f"got {images.dtype} {images.shape}."
            )
        scale = (1 / (255 * np.asarray(self.std, np.float32))).astype(np.float32)
        offset = -np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray((images * scale + offset).transpose(0, 3, 1, 2))

    def __str__(self) -> str:
        return (
            f"NCHW float32, {self.size}x{self.size} RGB, pixels 0..255 scaled to 0..1, "
            f"mean {self.mean}, std {self.std} ({self.source})"
        )

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their classes.

    Attributes
    ----------
    images
        (n, size, size, 3) uint8 RGB.
    labels
        (n,) int64.
    classes
        Names, by label.
    source
        What these images are, as a phrase.
    skipped
        Files that could not be read, each with the reason.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    source: str
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, n: int) -> ImageSet:
        """Return the first `n` images (Things-16 classes take turns, so they stay balanced)."""
        return replace(self, images=self.images[:n], labels=self.labels[:n])

    def batches(
        self, batch_size: int, preprocessing: Preprocessing
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (inputs, labels): (b, 3, size, size) float32 and (b,) int64."""
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield preprocessing(self.images[part]), self.labels[part]


def load(split: str = "val", n: int = VALIDATION_IMAGES, size: int = 128) -> ImageSet:
    """Return the first `n` Things-16 images of a split, rendered once and then cached.

    Parameters
    ----------
    split
        ``train``, ``val``, ``calib`` or ``test``.
    n
        Number of images; classes take turns.
    size
        Side in pixels.
    """
    if n < 1:
        raise UsageError(f"{n} images: pass at least one image.")
    things.scene(0, split)  # an unknown split ends here
    return ImageSet(
        images=_rendered(split, n, size),
        labels=np.arange(n, dtype=np.int64) % len(things.CLASSES),
        classes=things.CLASSES,
        source=f"Things-16 {split} (drawn, synthetic), {counted(n, 'image')} at {size} px",
    )


def calibration(n: int = 256, size: int = 128) -> ImageSet:
    """Return `n` images for quantizer calibration; never used for training or validation."""
    return load("calib", n, size)


@functools.cache
def _pixels_version() -> str:
    """Return a key that changes whenever the pixels do: another generator, another cache."""
    import PIL

    return f"{things.digest('train', 4, 64)[:12]}-{np.__version__}-{PIL.__version__}"


def _rendered(split: str, n: int, size: int) -> np.ndarray:
    folder = paths.cache() / "things16" / _pixels_version()
    for path in sorted(folder.glob(f"{split}-{size}-*.npy"), key=lambda p: int(p.stem[-7:])):
        if int(path.stem.rsplit("-", 1)[1]) >= n:
            try:
                return np.load(path, mmap_mode="r")[:n]
            except (ValueError, OSError):  # left over from a crash or a full disk: draw it again
                path.unlink(missing_ok=True)
    images = _render_all(split, n, size)
    with paths.atomic(folder / f"{split}-{size}-{n:07d}.npy") as temporary:
        np.save(temporary, images)
    return images


def _render_part(job: tuple[str, int, int, int]) -> np.ndarray:
    split, start, stop, size = job
    return np.stack([things.image(index, split, size) for index in range(start, stop)])


def _render_all(split: str, n: int, size: int) -> np.ndarray:
    """Render on all cores when that pays and a fork is safe (a script needs no main guard)."""
    cores = os.cpu_count() or 1
    if n < 512 or cores == 1 or os.name != "posix":
        return _render_part((split, 0, n, size))
    edges = [n * i // cores for i in range(cores + 1)]
    jobs = [(split, a, b, size) for a, b in itertools.pairwise(edges)]
    with get_context("fork").Pool(cores, _end_with, (os.getpid(),)) as pool:
        return np.concatenate(pool.map(_render_part, jobs))


def _end_with(parent: int) -> None:
    """End this process when the one that wants its pictures has ended: nothing else would."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_images(files: Sequence[str | Path], size: int, crop: float = 1.0) -> np.ndarray:
    """Read pictures as a network of this size wants them.

    Parameters
    ----------
    files
        Picture files of any format and mode that Pillow reads.
    size
        Side in pixels, after scaling (bilinear).
    crop
        Share of the shorter side that the centre cut keeps.

    Returns
    -------
    numpy.ndarray
        (n, size, size, 3) uint8 RGB.

    Raises
    ------
    UsageError
        A file is missing or no picture; the message names it.
    """
    from PIL import Image, ImageOps

    pictures = []
    for file in files:
        try:
            with Image.open(file) as picture:
                upright = ImageOps.exif_transpose(picture).convert("RGB")
        except FileNotFoundError:
            raise UsageError(f"There is no picture {file}.") from None
        except IsADirectoryError:
            raise UsageError(f"{file} is a folder: name the pictures in it.") from None
        except Exception as error:  # Pillow's readers raise a dozen kinds, SyntaxError among them
            raise UsageError(f"{file} is not a picture that Pillow reads: {error}") from None
        pictures.append(fitted(np.asarray(upright), size, crop))
    return np.stack(pictures)


def fitted(pixels: np.ndarray, size: int, crop: float = 1.0) -> np.ndarray:
    """Return a picture as a network of this size wants it: scaled (bilinear), its centre cut out.

    Parameters
    ----------
    pixels
        (height, width, 3) uint8 RGB.
    size
        Side in pixels of what is returned, (size, size, 3) uint8.
    crop
        Share of the shorter side that the centre cut keeps.
    """
    from PIL import Image, ImageOps

    border = (1 - crop) / 2  # on each side; `fit` cuts the longer side to the shorter
    how = Image.Resampling.BILINEAR
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (size, size), how, bleed=border))
