"""Calibration images from a user's own loader, whatever its batches are made of."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ...errors import UsageError

MOST_IMAGES = 256
"""So many of a loader's first images calibrate."""


def first_images(loader: Iterable[Any], most: int = MOST_IMAGES) -> np.ndarray:
    """Return the first images of a loader, as they are.

    Parameters
    ----------
    loader
        Batches: tensors or arrays of images (n, channels, height, width), normalized; or tuples
        that begin with them, as a ``DataLoader`` over (image, label) gives. Let it shuffle: a
        folder read in order begins with the pictures of one class.
    most
        How many images at most; so many batches are asked for, and no more.

    Returns
    -------
    numpy.ndarray
        (n, channels, height, width) float32.

    Raises
    ------
    UsageError
        There are no images, a batch is something else, as pixels that are not normalized yet, or
        the images differ in size.
    """
    if not isinstance(loader, Iterable):
        raise UsageError(f"Calibration takes images or a loader of them, not {loader!r}.")
    parts: list[np.ndarray] = []
    for batch in loader:
        part = _images(batch)
        if parts and part.shape[1:] != parts[0].shape[1:]:
            raise UsageError(
                f"The loader's images differ in shape: {parts[0].shape[1:]} and {part.shape[1:]} "
                "(channels, height, width). Calibration needs one shape."
            )
        parts.append(part)
        if sum(map(len, parts)) >= most:
            break
    if not parts:
        raise UsageError("Calibration needs images; the loader gave no batch.")
    return np.concatenate(parts)[:most]


def warn_of_pixels(images: np.ndarray) -> None:
    """Warn of images without a value below 0, which normalized ones have."""
    low, high = float(images.min()), float(images.max())
    if low >= 0 and high > low:
        warnings.warn(
            f"The calibration images run from {low:.3g} to {high:.3g}, and none has a value below "
            "0: they are not normalized, it seems. Ranges, and the file, will be right only for a "
            "network that was trained on such (labutils.images.data.Preprocessing normalizes).",
            stacklevel=3,
        )


def _images(batch: Any) -> np.ndarray:
    inside = isinstance(batch, (tuple, list)) and len(batch) > 0
    first = batch[0] if inside else batch
    if isinstance(first, torch.Tensor):
        whole = not first.is_floating_point()
        first = first.detach().cpu().numpy() if whole else first.detach().cpu().float().numpy()
    if not isinstance(first, np.ndarray) or first.ndim != 4:
        shape = f" of shape {first.shape}" if isinstance(first, np.ndarray) else ""
        names = f" of {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
        begins = " begins with" if inside else " is"
        way = "batch['image']" if isinstance(batch, Mapping) else "images"
        each = "batch" if isinstance(batch, Mapping) else "labels, images"
        raise UsageError(
            f"A batch of the loader{begins} a {type(first).__name__}{shape}{names}. Calibration "
            "takes images (n, channels, height, width), or tuples that begin with them: "
            f"`({way} for {each} in loader)` makes one of the other."
        )
    if first.dtype.kind != "f":
        raise UsageError(
            f"The loader's images are {first.dtype}: pixels, it seems. Calibration takes what the "
            "network takes: float32, normalized."
        )
    return first.astype(np.float32, copy=False)
