"""NV12, the bytes that cameras and video decoders give: RGB to it and back, by ITU-R BT.601.

A picture of height h and width w is h rows of luma, then h/2 rows that hold one (U, V) pair for
every 2x2 block: (3h/2, w) bytes in all. NV21 has the pairs as (V, U). Both sides must be even.

The arithmetic is that of OpenCV (20-bit fixed point, rounded half up), so the video range is equal
to ``cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)`` with its two chroma planes interleaved, which is
how D-Robotics' samples make their input. What a board's hardware rounds is not documented.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from .. import typesetting
from ..errors import UnknownNameError, UsageError
from . import data

Range = Literal["video", "full"]
"""Video: luma 16 to 235, chroma 16 to 240 (OpenCV, hb_mapper's ``bt601_video``). Full: 0 to 255
(JPEG, hb_mapper's ``regular``)."""

Order = Literal["nv12", "nv21"]
"""Of the two chroma samples in a pair: (U, V) or (V, U)."""

Chroma = Literal["corner", "mean"]
"""A block's chroma: of its top left pixel, as OpenCV has it, or of the mean of its four pixels."""

_BITS = 20
_HALF = 1 << (_BITS - 1)

# rows Y, U, V of the columns R, G, B; OpenCV's constants, and the same for the full range
_ENCODING = {
    "video": ((269484, 528482, 102760), (-155188, -305135, 460324), (460324, -385875, -74448)),
    "full": ((313524, 615514, 119538), (-176932, -347356, 524288), (524288, -439026, -85262)),
}
_BLACK = {"video": 16, "full": 0}

DECODING: dict[Range, tuple[tuple[int, int, int], ...]] = {
    "video": ((1220542, 0, 1673527), (1220542, -409993, -852492), (1220542, 2116026, 0)),
    "full": ((1 << 20, 0, 1470104), (1 << 20, -360853, -748826), (1 << 20, 1858077, 0)),
}
"""Rows R, G, B of the columns luma less `black`, U less 128, V less 128; in units of 2^-20."""


def black(kind: Range) -> int:
    """Return the luma of black."""
    return _BLACK[_known(kind, Range, "range of NV12")]


def encode(
    rgb: np.ndarray, kind: Range = "video", order: Order = "nv12", chroma: Chroma = "corner"
) -> np.ndarray:
    """Return pictures as NV12.

    Parameters
    ----------
    rgb
        (..., height, width, 3) uint8, both sides even.
    kind, order, chroma
        What luma and chroma reach, in which order the chroma is, and where it comes from.

    Returns
    -------
    numpy.ndarray
        (..., 3 * height / 2, width) uint8.

    Raises
    ------
    UsageError
        Not such pictures; the message says what would fit.
    """
    _known(kind, Range, "range of NV12")
    _refuse_other_pictures(rgb)
    matrix = np.array(_ENCODING[kind], np.int64)
    luma = _rounded(rgb @ matrix[0], _BLACK[kind])
    pairs = _rounded(_blocks(rgb, chroma) @ matrix[1:].T, 128)
    if _known(order, Order, "order of chroma") == "nv21":
        pairs = pairs[..., ::-1]
    rows = pairs.reshape(*luma.shape[:-2], luma.shape[-2] // 2, luma.shape[-1])
    return np.concatenate([luma, rows], axis=-2)


def of_inputs(batch: np.ndarray, preprocessing: data.Preprocessing, kind: Range) -> np.ndarray:
    """Return the NV12 of pictures that were normalised already.

    Parameters
    ----------
    batch
        (n, 3, height, width) float32.
    preprocessing
        What made them of pictures.
    kind
        As for `encode`.

    Returns
    -------
    numpy.ndarray
        (n, 3 * height / 2, width) uint8.

    Raises
    ------
    UsageError
        They are not whole pixels of 0 to 255, so no pictures.
    """
    said = (preprocessing.mean, preprocessing.std)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in said)
    values = 255 * (batch * std + mean)
    whole = np.rint(values)
    off = np.abs(values - whole).max(initial=0)
    if off > 0.05 or whole.min(initial=0) < 0 or whole.max(initial=0) > 255:
        raise UsageError(
            "What takes NV12 is run on pictures; these inputs are not pictures of whole pixels, "
            "normalised as the network's are. Give pictures, or the network's own mean and std."
        )
    return encode(np.ascontiguousarray(whole.astype(np.uint8).transpose(0, 2, 3, 1)), kind)


def decode(
    nv12: np.ndarray, kind: Range = "video", order: Order = "nv12", size: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Return NV12 as pictures; each 2x2 block gets its chroma as it is, without interpolation.

    Parameters
    ----------
    nv12
        (..., 3 * height / 2, width) uint8.
    kind, order
        As for `encode`.
    size
        (height, width), where the bytes come flat, as a file has them.

    Returns
    -------
    numpy.ndarray
        (..., height, width, 3) uint8 RGB.

    Raises
    ------
    UsageError
        Not such bytes; the message says what would fit.
    """
    _known(kind, Range, "range of NV12")
    luma, pairs = planes(nv12, size)
    if _known(order, Order, "order of chroma") == "nv21":
        pairs = pairs[..., ::-1]
    bright = luma.astype(np.int64) - _BLACK[kind]
    if kind == "video":  # as OpenCV does it
        bright = np.maximum(bright, 0)
    colour = (pairs.astype(np.int64) - 128).repeat(2, axis=-3).repeat(2, axis=-2)
    values = np.concatenate([bright[..., None], colour], axis=-1)
    return _rounded(values @ np.array(DECODING[kind], np.int64).T, 0)


def planes(nv12: np.ndarray, size: tuple[int, int] = (0, 0)) -> tuple[np.ndarray, np.ndarray]:
    """Return luma (..., height, width) and pairs (..., height / 2, width / 2, 2) of NV12.

    Parameters
    ----------
    nv12, size
        As for `decode`.
    """
    if any(size):
        height, width = size
        refuse_odd(height, width)
        if nv12.dtype != np.uint8 or nv12.shape[-1] != 3 * height * width // 2:
            raise UsageError(
                f"NV12 of {height} x {width} has {3 * height * width // 2} bytes, not "
                f"{nv12.shape[-1]} of type {nv12.dtype}."
            )
        nv12 = nv12.reshape(*nv12.shape[:-1], 3 * height // 2, width)
    if nv12.dtype != np.uint8 or nv12.ndim < 2 or nv12.shape[-2] % 3 or nv12.shape[-1] % 2:
        raise UsageError(
            "NV12 is uint8 of shape (..., 3 * height / 2, width), both sides even, not "
            f"{nv12.dtype} {nv12.shape}."
        )
    rows, width = nv12.shape[-2:]
    height = rows // 3 * 2
    luma, chroma = nv12[..., :height, :], nv12[..., height:, :]
    return luma, chroma.reshape(*chroma.shape[:-1], width // 2, 2)


def refuse_odd(height: int, width: int) -> None:
    """Raise UsageError for a picture that 4:2:0 chroma cannot cover."""
    if height < 2 or width < 2 or height % 2 or width % 2:
        raise UsageError(
            f"NV12 has one chroma pair for two by two pixels, so both sides are even, not {height} "
            f"x {width}. Scale or crop the picture to an even height and width first."
        )


@dataclass(frozen=True, repr=False)
class ColourError(typesetting.Shown):
    """What a way through NV12 does to the colours of some pictures.

    Attributes
    ----------
    mean, percentile_95, largest
        Of the absolute differences over all pixels and channels, in codes of 0..255.
    psnr_db
        ``10 log10(255^2 / mean squared difference)``; ``inf`` without any.
    pictures
        Their number.
    """

    mean: float
    percentile_95: float
    largest: int
    psnr_db: float
    pictures: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, for JSON; None for an infinite ratio."""
        psnr = self.psnr_db if math.isfinite(self.psnr_db) else None
        return {
            "mean": self.mean, "percentile_95": self.percentile_95, "largest": self.largest,
            "psnr_db": psnr, "pictures": self.pictures,
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"colour error: mean {self.mean:.2f} of 255, 95 % at most {self.percentile_95:g}, "
            f"largest {self.largest}, PSNR {self.psnr_db:.1f} dB ({self.pictures} pictures)"
        )

    def _repr_html_(self) -> str:
        return typesetting.paragraph(str(self))


def colour_error(rgb: np.ndarray, seen: np.ndarray) -> ColourError:
    """Return how far the colours of some pictures are from what they should be.

    Parameters
    ----------
    rgb, seen
        (n, height, width, 3) uint8: as they were, and as they came out.
    """
    if rgb.shape != seen.shape or rgb.ndim != 4 or not rgb.size:
        raise UsageError(f"Two equal stacks of pictures are needed: {rgb.shape}, {seen.shape}.")
    apart = np.abs(rgb.astype(np.int16) - seen.astype(np.int16))
    squared = float(np.mean(apart.astype(np.float64) ** 2))
    return ColourError(
        mean=float(apart.mean()),
        percentile_95=float(np.percentile(apart, 95)),
        largest=int(apart.max()),
        psnr_db=10 * math.log10(255**2 / squared) if squared else math.inf,
        pictures=len(rgb),
    )


def _blocks(rgb: np.ndarray, chroma: Chroma) -> np.ndarray:
    """Return one colour for every 2x2 block, (..., height / 2, width / 2, 3)."""
    if _known(chroma, Chroma, "chroma of a block") == "corner":
        return rgb[..., ::2, ::2, :]
    whole = rgb.astype(np.int64)
    four = whole[..., ::2, ::2, :] + whole[..., 1::2, ::2, :]
    four += whole[..., ::2, 1::2, :] + whole[..., 1::2, 1::2, :]
    return (four + 2) // 4


def _rounded(fixed: np.ndarray, offset: int) -> np.ndarray:
    """Return fixed-point values as bytes, clipped."""
    codes = (fixed + (_HALF + (offset << _BITS))) >> _BITS
    return np.clip(codes, 0, 255).astype(np.uint8)


def _refuse_other_pictures(rgb: np.ndarray) -> None:
    if rgb.dtype != np.uint8 or rgb.ndim < 3 or rgb.shape[-1] != 3:
        raise UsageError(
            "Pictures are uint8 of shape (..., height, width, 3) in RGB, not "
            f"{rgb.dtype} {rgb.shape}."
        )
    refuse_odd(*rgb.shape[-3:-1])


def _known(word: str, allowed: Any, what: str) -> str:
    if word not in get_args(allowed):
        raise UnknownNameError(what, word, get_args(allowed))
    return word
