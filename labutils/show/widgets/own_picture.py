"""The learner's own picture: whatever was opened becomes plain RGB, or is refused with a reason."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 25_000_000
MAX_PIXELS = 64_000_000
MIN_SIDE = 16
MAX_SIDE = 1024  # pixels kept; networks here take 224 at most


def decode(content: bytes, name: str = "the file") -> tuple[np.ndarray, str]:
    """Read a picture that somebody chose.

    Parameters
    ----------
    content
        A PNG, JPEG or WebP file.
    name
        For messages.

    Returns
    -------
    tuple
        (height, width, 3) uint8 RGB, at most 1024 pixels long, and what was done to it.

    Raises
    ------
    UsageError
        Not a picture, of another format, damaged, or too large; the message says which.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise UsageError(f"{name} is empty.")
    if len(content) > MAX_BYTES:
        raise UsageError(
            f"{name} has {len(content) / 1e6:.0f} MB; up to {MAX_BYTES // 10**6} are read here. "
            "Save a smaller copy."
        )
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            _refuse_size(name, *picture.size)
            plain, notes = _plain(picture)
    except Image.DecompressionBombError as error:  # before any size is known
        raise UsageError(f"{name} is too large a picture: {error}") from None
    except UnidentifiedImageError:
        raise UsageError(
            f"{name} is not a PNG, JPEG or WebP picture. Open it in a viewer and save it as PNG."
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UsageError(f"{name} is damaged or cut short: {error}.") from None
    return np.asarray(plain), "; ".join(notes)


def _refuse_size(name: str, width: int, height: int) -> None:
    given = f"{name} has {width} x {height} pixels"
    if min(width, height) < MIN_SIDE:
        raise UsageError(f"{given}: too few to show anything. Take one of {MIN_SIDE} or more.")
    if width * height > MAX_PIXELS:
        raise UsageError(f"{given}, more than {MAX_PIXELS // 10**6} million. Save a smaller copy.")


def _plain(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    """Return the picture upright, in RGB, not too large, and what that took."""
    from PIL import Image, ImageOps

    notes = []
    if getattr(picture, "n_frames", 1) > 1:
        notes.append("an animation: its first frame")
    if picture.format == "JPEG":
        picture.draft("RGB", (MAX_SIDE, MAX_SIDE))  # decodes large photographs at a lower scale
    turned = ImageOps.exif_transpose(picture)
    if picture.getexif().get(0x0112, 1) != 1:
        notes.append("turned upright, as the camera noted")
    if turned.mode.startswith("I"):  # 16 bits per pixel
        high = np.asarray(turned).astype(np.float64) / 257
        turned = Image.fromarray(np.clip(high, 0, 255).astype(np.uint8))
        notes.append("16 bits reduced to 8")
    if turned.has_transparency_data:
        layer = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        notes.append("transparent parts laid on white")
    elif turned.mode not in ("RGB", "L", "P", "1"):
        notes.append(f"{turned.mode} colours converted to RGB")
    turned = turned.convert("RGB")
    if max(turned.size) > MAX_SIDE:
        turned.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        notes.append(f"reduced to {turned.width} x {turned.height} pixels")
    return turned, notes
