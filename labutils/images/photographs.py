"""Published photographs, fetched when they are asked for: Imagenette and Oxford-IIIT Pet.

Addresses and checksums are those that torchvision publishes. They are MD5 sums, and nothing
stronger is published: they find a broken or another file, not one that was forged on purpose.
Each set becomes a folder of classes, as `labutils.images.folder` reads it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _torchvision, fetch, paths
from ..errors import FetchError, UnknownNameError, UsageError

CROP = 0.875
"""Share of the shorter side that is kept: 224 of 256, as torchvision evaluates ImageNet models."""


@dataclass(frozen=True)
class Published:
    """A set of photographs that somebody publishes.

    Attributes
    ----------
    about
        What it is, with the size of the download.
    folder
        Its place below the cache's photographs, when all of it is there.
    fetch
        Downloads it to a place, and checks it.
    """

    about: str
    folder: str
    fetch: Callable[[Path], None]


def place_of(name: str) -> Path:
    """Return the folder where a published set belongs, whether it is there or not.

    Raises
    ------
    UnknownNameError
        There is no such set.
    """
    if name not in SETS:
        raise UnknownNameError("set of photographs", name, SETS)
    return paths.cache() / "photographs" / SETS[name].folder


def in_cache(name: str) -> Path:
    """Return the folder of a published set that was fetched before.

    Raises
    ------
    UsageError
        It is not in the cache; nothing is downloaded here.
    """
    found = place_of(name)
    if not found.is_dir():
        raise UsageError(
            f"{name} is not on this machine: {SETS[name].about}. `labutils photographs {name}` "
            "downloads it."
        )
    return found


def download(name: str) -> Path:
    """Return the folder of a published set; it is downloaded where it is not in the cache.

    Raises
    ------
    FetchError
        No network, or an archive whose checksum is not the published one.
    UnknownNameError
        There is no such set.
    """
    found = place_of(name)
    if not found.is_dir():
        SETS[name].fetch(paths.folder(found.parent))
    return found


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
    root = place_of("imagenette") / "val"
    if not root.is_dir() and download:
        _fetch_imagenette(root.parent.parent)
    return root if root.is_dir() else None


def _fetch_imagenette(place: Path) -> None:
    url, md5 = _datasets().Imagenette._ARCHIVES["320px"]
    fetch.archive(url, f"md5:{md5}", place)


_PET_PARTS = {"trainval": "train", "test": "test"}  # lists of the annotations -> parts


def _fetch_pets(place: Path) -> None:
    """Download pictures and lists, and sort the pictures by part and breed."""
    unpacked = paths.folder(place / "oxford-iiit-pet.unpacked")
    for url, md5 in _datasets().OxfordIIITPet._RESOURCES:
        content = url.rpartition("/")[2].partition(".")[0]
        if not (unpacked / content).is_dir():
            fetch.archive(url, f"md5:{md5}", unpacked)
    made = paths.folder(unpacked / "sorted")
    for listed, part in _PET_PARTS.items():
        for line in (unpacked / "annotations" / f"{listed}.txt").read_text("utf-8").splitlines():
            _sort_pet(unpacked / "images", line.split()[0], made / part)
    made.replace(place / SETS["oxford-pets"].folder)
    shutil.rmtree(unpacked)


def _sort_pet(pictures: Path, name: str, part: Path) -> None:
    """Move a picture such as ``yorkshire_terrier_7`` to its breed; done already is well."""
    breed = name.rpartition("_")[0].replace("_", " ")
    source = pictures / f"{Path(name).name}.jpg"
    goal = paths.folder(part / Path(breed).name) / source.name
    if source.is_file():
        source.replace(goal)
    elif not goal.is_file():
        raise FetchError(f"The archive of Oxford-IIIT Pet lists {name}, and has no such picture.")


def _datasets() -> Any:
    return _torchvision.load().datasets


SETS = {
    "imagenette": Published(
        "ten classes of ImageNet, 13,394 pictures (340 MB)", "imagenette2-320", _fetch_imagenette
    ),
    "oxford-pets": Published(
        "37 breeds of cats and dogs, 7,349 pictures (810 MB)", "oxford-iiit-pet", _fetch_pets
    ),
}
"""The sets by name; ``--data NAME`` takes one that was fetched."""
