"""What NV12 does to colours, by range and by where a block's chroma comes from; and who writes it.

    python benchmarks/nv12_colours.py [--images 64] [--size 128]

Things-16's validation pictures go through NV12 and back. Where OpenCV (opencv-python-headless) or
PyAV (av) is installed, its bytes are compared with ours; the lab needs neither. Keeps nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator

import numpy as np

from labutils import tabular
from labutils.images import data, nv12


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=128)
    chosen = parser.parse_args()
    pictures = np.asarray(data.load("val", chosen.images, chosen.size).images)
    title = f"NV12 and back: {chosen.images} pictures of Things-16 val at {chosen.size} px"
    columns = ("written by", "read as", "mean", "95 %", "largest", "PSNR dB")
    print(tabular.text(title, columns, list(_errors(pictures))))
    columns = (
        "bytes of",
        "luma equal",
        "chroma equal to corner",
        "to mean",
        "chroma apart, largest",
    )
    print(tabular.text("Other libraries' bytes beside ours, video range", columns,
                       list(_others(pictures))))  # fmt: skip


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
    writers: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
        "OpenCV": ("cv2", _by_opencv), "PyAV": ("av", _by_pyav),
    }  # fmt: skip
    for name, (module, write) in writers.items():
        if importlib.util.find_spec(module) is None:
            yield name, "not made", "not installed", "", ""
            continue
        theirs = np.stack([write(picture) for picture in pictures])
        height = pictures.shape[1]
        ours = {c: nv12.encode(pictures, chroma=c) for c in ("corner", "mean")}
        luma = np.mean(theirs[:, :height] == ours["corner"][:, :height])
        same = [np.mean(theirs[:, height:] == ours[c][:, height:]) for c in ours]
        apart = np.abs(theirs[:, height:].astype(int) - ours["corner"][:, height:])
        yield name, f"{100 * luma:.2f} %", *(f"{100 * s:.2f} %" for s in same), str(apart.max())


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
    main()
