"""Imagenette: photographs of ten classes of ImageNet (https://github.com/fastai/imagenette).

Downloaded only when it is asked for; address and checksum are those that torchvision publishes.
"""

from __future__ import annotations

from pathlib import Path

from .. import _torchvision, fetch, paths

CROP = 0.875
"""Share of the shorter side that is kept: 224 of 256, as torchvision evaluates ImageNet models."""


def imagenette(download: bool = False) -> Path | None:
    """Return the folder of Imagenette's validation pictures (320 px), None when it is not here.

    Parameters
    ----------
    download
        Fetch it (about 340 MB) when it is not in the cache.

    Raises
    ------
    FetchError
        No network, or an archive whose checksum is not the published one.
    """
    url, md5 = _torchvision.load().datasets.Imagenette._ARCHIVES["320px"]
    place = paths.cache() / "photographs"
    root = place / Path(url).stem / "val"
    if not root.is_dir() and download:
        fetch.archive(url, f"md5:{md5}", place)
    return root if root.is_dir() else None
