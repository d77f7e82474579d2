"""Batches of training images: a pure function of (seed, step), so that a stopped run resumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from torch.nn import functional as F

from .. import validation
from ..images import data


@dataclass(frozen=True)
class Augmentation:
    """How pictures are varied, so that a network does not learn them by heart.

    Attributes
    ----------
    smallest_crop
        Smallest side of the random crop, as a share of the picture's; 1 leaves crops out.
    flip
        Whether half of the batches are mirrored, left to right. Turn it off where a mirrored
        picture shows another class: an arrow to the left, a letter, a traffic sign.
    tint
        Each colour channel is multiplied by a random factor between 1 - tint and 1 + tint.
    brightness
        Levels, of 255, by which a picture is made brighter or darker at most.
    """

    smallest_crop: Annotated[float, Interval(gt=0, le=1)] = 0.75
    flip: bool = True
    tint: Annotated[float, Interval(ge=0, le=1)] = 0.2
    brightness: Annotated[float, Interval(ge=0, le=255)] = 20.0

    def __post_init__(self) -> None:
        validation.check_fields(self)


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of a run, each drawn, cropped, flipped and tinted by (seed, step) alone.

    Attributes
    ----------
    train
        The images to draw from.
    batch_size
        Images per step.
    seed
        Of the order and of the augmentation.
    augmentation
        How they are varied.
    """

    train: data.ImageSet
    batch_size: int
    seed: int = 0
    augmentation: Augmentation = Augmentation()

    def indices(self, step: int) -> np.ndarray:
        """Return the images of a step: every epoch is another permutation, its tail left out."""
        images = len(self.train)
        epoch, position = divmod(step, images // self.batch_size)
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(images)
        start = position * self.batch_size
        return np.sort(order[start : start + self.batch_size])

    def at(
        self, step: int, size: int, part: slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the inputs and labels of a step.

        Parameters
        ----------
        step
            Which one, from 0.
        size
            Side of the inputs in pixels.
        part
            Which rows of the batch; every row is what it is in the whole batch.

        Returns
        -------
        inputs, labels
            (n, 3, size, size) float32 as the network wants them (channels last in memory), and
            (n,) int64.
        """
        chosen = self.indices(step)[part]
        inputs = self._augmented(self.train.images[chosen], step, size, part)
        return inputs, torch.from_numpy(self.train.labels[chosen])

    def _augmented(self, pixels: np.ndarray, step: int, size: int, part: slice) -> torch.Tensor:
        """Crop, resize, flip and tint; (n, h, w, 3) uint8 to (n, 3, size, size) float."""
        r, how = np.random.default_rng([self.seed, 2, step]), self.augmentation
        full = pixels.shape[1]
        side = max(1, int(full * r.uniform(how.smallest_crop, 1.0)))
        x, y = r.integers(0, full - side + 1, 2)
        batch = torch.from_numpy(np.ascontiguousarray(pixels[:, y : y + side, x : x + side]))
        batch = batch.permute(0, 3, 1, 2).float()
        if side != size:
            batch = F.interpolate(batch, size=(size, size), mode="bilinear", antialias=True)
        mirrored = r.random() < 0.5  # drawn in any case: the tints stay the same without flips
        if how.flip and mirrored:
            batch = batch.flip(3)
        n, tint, levels = self.batch_size, how.tint, how.brightness  # for every rank's images
        gain = r.uniform(1 - tint, 1 + tint, (n, 3, 1, 1)).astype(np.float32)[part]
        offset = r.uniform(-levels, levels, (n, 1, 1, 1)).astype(np.float32)[part]
        return _normalized(batch * torch.from_numpy(gain) + torch.from_numpy(offset))


def _normalized(pixels: torch.Tensor) -> torch.Tensor:
    """Apply the ImageNet mean and std to (n, 3, h, w) floats in 0..255."""
    mean = torch.tensor(data.IMAGENET_MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(data.IMAGENET_STD).view(1, 3, 1, 1) * 255
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
