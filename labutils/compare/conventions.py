"""The ways to make a network's input of a picture, and which of them made what arrives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..images import data

MEAN_AND_SCALE = "mean and std"
TWICE = "mean and std twice"
OWN = "the file's own scale and offset"
ONCE = "the file's own normalisation alone"

_KNOWN = 0.03  # of the pictures' spread: an input in 8 bits rounds to less
_Step = tuple[np.ndarray, np.ndarray]  # scale and offset, per channel


@dataclass(frozen=True)
class Convention:
    """One way to make a network's input of a picture.

    Attributes
    ----------
    order
        ``RGB`` or ``BGR``; ``gray`` with one channel.
    scaling
        What happens to a pixel 0..255, as text.
    scale, offset
        The same as figures, per channel: ``scale * pixel + offset``.
    damage
        What happened to the bytes on the way, as text; "" for nothing.
    """

    order: str
    scaling: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    damage: str = ""

    @property
    def name(self) -> str:
        """All of it in words."""
        return ", ".join(filter(None, [self.order, self.scaling, self.damage]))

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return (n, channels, h, w) float32 of pixels (n, h, w, channels) uint8."""
        ordered = pixels[..., ::-1] if self.order == "BGR" else pixels
        scale, offset = (np.asarray(v, np.float32) for v in (self.scale, self.offset))
        return np.ascontiguousarray((ordered * scale + offset).transpose(0, 3, 1, 2))


def _scalings(channels: int, preprocessing: data.Preprocessing | None) -> dict[str, _Step]:
    """Return scale and offset of every known scaling of pixels, by its name."""
    mean, std = np.array(data.IMAGENET_MEAN), np.array(data.IMAGENET_STD)
    if channels == 1:
        mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
    usual_step = 1 / (255 * std), -mean / std
    plain = preprocessing is None or not any(preprocessing.mean)  # nothing is subtracted
    if preprocessing is not None and not plain:
        mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    one = np.ones(channels)
    found = {
        MEAN_AND_SCALE: (1 / (255 * std), -mean / std),
        "pixels 0 to 1": (one / 255, 0 * one),
        "pixels 0 to 255": (one, 0 * one),
        "pixels -1 to 1": (one / 127.5, -one),
        "mean only": (one, -255 * mean),
        "scale only": (1 / (255 * std), 0 * one),
    }
    if not equal(usual_step, found[MEAN_AND_SCALE]):
        found["ImageNet's mean and std"] = usual_step
    return found


def usual(channels: int, preprocessing: data.Preprocessing | None) -> list[Convention]:
    """Return the conventions that networks are trained on, the stated mean and std among them."""
    orders = ("RGB", "BGR") if channels == 3 else ("gray",)
    scalings = _scalings(channels, preprocessing).items()
    return [Convention(o, name, tuple(a), tuple(b)) for o in orders for name, (a, b) in scalings]


def fitted(
    arriving: np.ndarray, seen: Mapping[str, np.ndarray], known: Sequence[Convention]
) -> Convention | None:
    """Return scale and offset by which pixels became what arrives, and what it is called.

    None where it is not a scale and an offset per channel of the pictures, in any order and after
    any damage to their bytes.
    """
    target = arriving.transpose(0, 2, 3, 1).astype(np.float64)
    target = target.reshape(-1, target.shape[-1])
    best, least = None, _KNOWN
    for damage, pixels in seen.items():
        for order in dict.fromkeys(c.order for c in known):
            ordered = pixels[..., ::-1] if order == "BGR" else pixels
            source = ordered.reshape(-1, ordered.shape[-1]).astype(np.float64)
            middle, level = source.mean(0), target.mean(0)
            spread = ((source - middle) ** 2).mean(0)
            scale = ((source - middle) * (target - level)).mean(0) / np.maximum(spread, 1e-12)
            offset = level - scale * middle
            left = np.sqrt(np.mean((source * scale + offset - target) ** 2))
            apart = float(left / (target.std() or 1.0))
            if apart < least:
                scaling = _called(order, scale, offset, known)
                made_of = (order, scaling, tuple(scale), tuple(offset), damage)
                best, least = Convention(*made_of), max(apart, 1e-4)  # of equals, the first
    return best


def _called(order: str, scale: np.ndarray, offset: np.ndarray, known: Sequence[Convention]) -> str:
    """Return the name of a scaling, by what it makes of black and of white."""
    for each in known:
        for times in (1, 2, 255):
            a, b = np.array(each.scale), np.array(each.offset)
            if times == 1:
                name = each.scaling
            elif each.scaling != MEAN_AND_SCALE:
                continue
            else:  # the same step again, on what it gave: as of pixels, or of values from 0 to 1
                step = a * (255 if times == 255 else 1)
                a, b = a * step, b * step + b
                name = TWICE
            if each.order == order and equal((scale, offset), (a, b)):
                return name
    return OWN


def equal(one: _Step, other: _Step) -> bool:
    """Return whether two steps make the same of black and of white, but for rounding."""
    ends = [np.stack([offset, 255 * scale + offset]) for scale, offset in (one, other)]
    span = np.abs(ends[1][1] - ends[1][0]).max()
    return bool(np.abs(ends[0] - ends[1]).max() < _KNOWN * span)


def once(
    delivered: Convention, stated: data.Preprocessing | None, known: Sequence[Convention]
) -> list[Convention]:
    """Return what would arrive if the normalisation inside the file were the only one.

    Of floats: its own step, on pixels 0..255 or 0..1. Of bytes: the step that, done twice, makes
    what arrives.
    """
    a, b = np.array(delivered.scale), np.array(delivered.offset)
    found = []
    if stated is not None:
        mean, std = (np.array(v, np.float64) for v in (stated.mean, stated.std))
        turn = slice(None, None, -1 if delivered.order == "BGR" else 1)
        scale, offset = (1 / (255 * std))[turn], (-mean / std)[turn]
        step = a / scale
        found = [(step, b - step * offset), (step / 255, b - step * offset)]
    elif (a > 0).all():
        for unit in (255.0, 1.0):  # the second time of 0..1, or of pixels
            scale = np.sqrt(a / unit)
            found.append((scale, b / (1 + unit * scale)))
    identity = (np.ones(len(a)), np.zeros(len(a)))
    steps = [
        s for s in found if not equal(s, identity) and not equal(s, (identity[0] / 255, 0 * b))
    ]
    orders = dict.fromkeys(c.order for c in known)
    fresh = [s for s in steps if not any(equal(s, (np.array(c.scale), np.array(c.offset)))
             for c in known)]  # fmt: skip
    names = [ONCE if i == 0 else f"{ONCE} ({i + 1})" for i in range(len(fresh))]
    return [Convention(o, n, tuple(s[0]), tuple(s[1])) for o in orders
            for n, s in zip(names, fresh, strict=True)]  # fmt: skip
