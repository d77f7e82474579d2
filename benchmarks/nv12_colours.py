"""What NV12 does to colours, by range and by where a block's chroma comes from; and who writes it.

    python benchmarks/nv12_colours.py                        # what is recorded
    python benchmarks/nv12_colours.py --images 8 -o FOLDER   # another run

Things-16's validation pictures go through NV12 and back. Where OpenCV (opencv-python-headless) or
PyAV (av) is installed, its bytes are compared with ours; the lab needs neither.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import results

from labutils import paths, tabular
from labutils.images import data, nv12

PROGRAM = "nv12_colours"
IMAGES, SIZE = 64, 128
_WRITERS = {"OpenCV": ("cv2", "opencv-python-headless"), "PyAV": ("av", "av")}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    place = results.place(chosen.output, (chosen.images, chosen.size) == (IMAGES, SIZE))
    if place is None:
        parser.error("pass -o FOLDER: another run does not replace what is recorded")
    pictures = np.asarray(data.load("val", chosen.images, chosen.size).images)
    images = f"split val of things16 (drawn), {chosen.images} images at {chosen.size} px"
    packages = [
        package for module, package in _WRITERS.values() if importlib.util.find_spec(module)
    ]
    head = results.head(
        results.command(f"{PROGRAM}.py", arguments), images, "numpy", *packages, developed=False
    )
    text = f"{_own(pictures)}\n\n{_beside(pictures)}"
    paths.write_text(place / f"{PROGRAM}.txt", "\n".join([*head, "", text]) + "\n")
    print(text)
    return 0


def _own(pictures: np.ndarray) -> str:
    columns = ("written by", "read as", "mean", "95 %", "largest", "PSNR dB")
    notes = ["Absolute differences of pixels from the picture, of 255."]
    return tabular.text("NV12 and back", columns, list(_errors(pictures)), notes)


def _beside(pictures: np.ndarray) -> str:
    columns = (
        "bytes of", "luma equal", "apart, at most", "chroma equal to corner", "apart, at most",
        "to mean", "apart, at most",
    )  # fmt: skip
    notes = [
        "Ours with a block's chroma from its top left pixel (corner), or the mean of its four; "
        "a writer that is neither filters chroma in another way.",
    ]
    title = "Other libraries' bytes beside ours, video range"
    return tabular.text(title, columns, list(_others(pictures)), notes)


def _errors(pictures: np.ndarray) -> Iterator[tuple[str, ...]]:
    ways = [(kind, chroma, kind) for kind in ("video", "full") for chroma in ("corner", "mean")]
    for written, chroma, read in [*ways, ("video", "corner", "full"), ("full", "corner", "video")]:
        sent = nv12.encode(pictures, written, chroma=chroma)
        error = nv12.colour_error(pictures, nv12.decode(sent, read))
        yield (
            f"{written} range, {chroma} of a block", f"{read} range", f"{error.mean:.2f}",
            f"{error.percentile_95:g}", str(error.largest), f"{error.psnr_db:.1f}",
        )  # fmt: skip


def _others(pictures: np.ndarray) -> Iterator[tuple[str, ...]]:
    write: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "OpenCV": _by_opencv, "PyAV": _by_pyav,
    }  # fmt: skip
    height = pictures.shape[1]
    for name, (module, _) in _WRITERS.items():
        if importlib.util.find_spec(module) is None:
            yield name, "not made", "not installed", "", "", "", ""
            continue
        theirs = np.stack([write[name](picture) for picture in pictures])
        corner, mean = (nv12.encode(pictures, chroma=c) for c in ("corner", "mean"))
        parts = ((theirs[:, :height], corner[:, :height]), (theirs[:, height:], corner[:, height:]),
                 (theirs[:, height:], mean[:, height:]))  # fmt: skip
        cells = []
        for one, other in parts:
            apart = np.abs(one.astype(int) - other)
            cells += [f"{100 * np.mean(apart == 0):.2f} %", str(apart.max())]
        yield name, *cells


def _by_opencv(picture: np.ndarray) -> np.ndarray:
    import cv2

    height, width, _ = picture.shape
    flat = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420).reshape(-1)
    pairs = flat[height * width :].reshape(2, -1).T.reshape(-1)
    return np.concatenate([flat[: height * width], pairs]).reshape(-1, width)


def _by_pyav(picture: np.ndarray) -> np.ndarray:
    import av

    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="nv12")
    return frame.to_ndarray()


if __name__ == "__main__":
    sys.exit(main())
