"""Batches of images: what an input takes, in parts, and what the parts gave as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import ModelFileError, UsageError


def image_input(inputs: list, name: str) -> tuple[str, list]:
    """Return name and shape of the one float32 input that a runner feeds."""
    if len(inputs) != 1:
        raise ModelFileError(f"{name} has {len(inputs)} inputs; a runner feeds one image tensor.")
    key, shape, kind = inputs[0]
    if kind != "tensor(float)":
        raise ModelFileError(f"{name}: input '{key}' is {kind}; a runner feeds float32.")
    return key, list(shape)


def checked(batch: np.ndarray, shape: list, name: str) -> np.ndarray:
    """Return a batch that fits the input, contiguous; UsageError says what would fit."""
    wanted = ", ".join(str(d) if isinstance(d, int) else "n" for d in ["n", *shape[1:]])
    if not isinstance(batch, np.ndarray) or batch.dtype != np.float32:
        kind = getattr(batch, "dtype", type(batch).__name__)
        raise UsageError(f"{name} takes float32 arrays ({wanted}), not {kind}: normalize first.")
    fits = batch.ndim == len(shape) and all(
        not isinstance(want, int) or want == have
        for want, have in zip(shape[1:], batch.shape[1:], strict=False)
    )
    if not fits or not len(batch):
        raise UsageError(f"{name} takes float32 ({wanted}), not {batch.shape}.")
    return np.ascontiguousarray(batch)


def split(batch: np.ndarray, step: int, name: str) -> list[np.ndarray]:
    """Return a batch in parts of `step` images."""
    if len(batch) % step:
        raise UsageError(f"{name} has batch {step}: pass a multiple of it, not {len(batch)}.")
    return [batch[i : i + step] for i in range(0, len(batch), step)]


def joined(parts: Sequence[Mapping[str, np.ndarray]], step: int) -> dict[str, np.ndarray]:
    """Return the outputs of all runs, each of `step` images, by name: images come first."""
    found = {}
    for name in parts[0]:
        values = [np.asarray(part[name]) for part in parts]
        per_image = all(value.ndim and len(value) == step for value in values)
        if per_image or step > 1:
            found[name] = np.concatenate([np.atleast_1d(value) for value in values])
        else:  # without an axis for the images
            found[name] = np.stack(values)
    return found
