"""What is in the cache folder, when it was last used, and how to delete it.

`clear` deletes only this user's files, only in a folder that the lab made for its cache, and
never through a link.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import paths, untrusted
from ..errors import UnknownNameError, UsageError, counted, worded

ABOUT = {
    "things16": "rendered images, drawn again when needed",
    "marked-things": "rendered images, drawn again when needed",
    "weights": "downloaded weights, downloaded again when asked for",
    "photographs": "downloaded photographs, downloaded again when asked for",
    "picture_files": "what is known of picture files, read again when needed",
    "benchmarks": "what programs in benchmarks/ keep between runs",
    "coverage": "what programs in benchmarks/ keep between runs",
    "lite": "what programs in benchmarks/ keep between runs",
    "quantization": "what programs in benchmarks/ keep between runs",
    "tools": "environments of other tools, which `labutils tools install` makes again",
    "training": "training states, to resume from",
    "progress": "which exercises were passed",
}
"""Folder of the cache -> what lies there."""

_MAX_TAG_BYTES = 4096

KEPT = ("training", "progress")
"""Folders whose content cannot be made again."""


@dataclass(frozen=True)
class Entry:
    """One folder of the cache.

    Attributes
    ----------
    name, about
        The folder, and what lies there.
    files, bytes
        How many, and what they take.
    used
        Seconds since 1970 when a file was last read or written, as far as the system notes it.
    """

    name: str
    about: str
    files: int
    bytes: int
    used: float

    @property
    def made_again(self) -> bool:
        """Whether the lab makes or downloads it again; else only ``--all`` deletes it."""
        return self.name in ABOUT and self.name not in KEPT


@dataclass(frozen=True)
class Cache:
    """The cache folder and its entries."""

    folder: Path
    entries: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.bytes for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for ``--json``."""
        entries = [asdict(e) | {"made_again": e.made_again} for e in self.entries]
        return {"folder": str(self.folder), "bytes": self.bytes, "entries": entries}

    def __str__(self) -> str:
        if not self.entries:
            return f"{self.folder} holds nothing of the lab."
        width = max(len(entry.name) for entry in self.entries)
        rows = [
            f"  {e.name:<{width}}  {e.files:>6} files  {e.bytes / 1e6:>9.1f} MB  last used "
            f"{time.strftime('%Y-%m-%d', time.localtime(e.used))}  {e.about}"
            for e in self.entries
        ]
        return "\n".join([f"{self.folder}: {self.bytes / 1e6:.1f} MB", *rows])

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Cleared:
    """What `clear` deleted, and what it left and why."""

    folder: Path
    files: int
    bytes: int
    left: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for ``--json``."""
        return {**asdict(self), "folder": str(self.folder)}

    def __str__(self) -> str:
        said = (
            f"Deleted {counted(self.files, 'file')} ({self.bytes / 1e6:.1f} MB) in {self.folder}."
        )
        return "\n".join([said, *(f"Left: {line}" for line in self.left)])

    def __repr__(self) -> str:
        return str(self)


def survey() -> Cache:
    """Return what lies in the cache; a folder that is not there holds nothing.

    In a folder that the lab did not make, only what has the name of a folder of the cache is
    looked at: it may be a whole disk.

    Raises
    ------
    UsageError
        It is not a folder.
    """
    place = paths.cache_place()
    if place.exists() and not place.is_dir():
        raise UsageError(f"{place} is not a folder: set LABUTILS_CACHE to one, or unset it.")
    ours = _ours(place)
    found = [path for path in _listed(place) if _is_entry(path) and (ours or path.name in ABOUT)]
    return Cache(place, tuple(map(_entry, found)))


def _listed(place: Path) -> list[Path]:
    """Return what lies in a folder, sorted: nothing, where it is not there (any more)."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(place.iterdir())
    return []


def _is_entry(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and path.name != paths.LOCKS


def _entry(folder: Path) -> Entry:
    about = ABOUT.get(folder.name, "unknown to this version of the lab")
    states = [state for _, state in _states(_files(folder))]
    times = [max(s.st_atime, s.st_mtime) for s in states]
    used = max(times or [state.st_mtime for _, state in _states([folder])], default=time.time())
    return Entry(folder.name, about, len(states), sum(s.st_size for s in states), used)


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files and links below a folder; links are not followed."""
    for place, folders, files in os.walk(folder, followlinks=False):
        links = [name for name in folders if Path(place, name).is_symlink()]
        yield from (Path(place, name) for name in (*files, *links))


def _states(files: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield each file that is still there, and its state: others may clear the cache as well."""
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            yield file, file.lstat()


def chosen(names: Iterable[str] = (), *, everything: bool = False) -> Cache:
    """Return the part of the cache that `clear` would delete.

    Parameters
    ----------
    names
        Folders of the cache; by default those whose content is made again.
    everything
        All there is, what cannot be made again and unknown folders included.

    Raises
    ------
    UnknownNameError
        The lab keeps nothing under that name.
    """
    names = tuple(names)
    for name in names:
        if name not in ABOUT:
            raise UnknownNameError("folder of the cache", name, list(ABOUT))
    found = survey()
    wanted = [e for e in found.entries if (e.name in names if names else e.made_again)]
    return Cache(found.folder, found.entries if everything else tuple(wanted))


def clear(part: Cache, *, everything: bool = False) -> Cleared:
    """Delete a part of the cache.

    Parameters
    ----------
    part
        As from `chosen`.
    everything
        Whether the cache folder and this user's locks go as well; a lock that is held stays.

    Raises
    ------
    UsageError
        The folder was there before the lab kept anything in it, and may hold what is not the
        lab's.
    """
    place = part.folder
    if (part.entries or everything) and _listed(place) and not _ours(place):
        raise UsageError(
            f"{place} was not made by the lab (it has no {paths.CACHE_TAG}), and may hold files of "
            "yours under the same names. Nothing was deleted; delete by hand what you do not need."
        )
    left: list[str] = []
    files, size = 0, 0
    for entry in part.entries:
        done = _delete(place / entry.name)
        files, size, left = files + done.files, size + done.bytes, [*left, *done.left]
    if everything:
        for locks in paths.lock_places():
            _unlock(locks)
        if _ours(place):
            left += _remove(place)
    return Cleared(place, files, size, tuple(left))


def _ours(place: Path) -> bool:
    """Whether the lab made this folder: it has the mark, or is older than the mark."""
    try:
        tag = untrusted.content(place / paths.CACHE_TAG, _MAX_TAG_BYTES, plain=True)
    except (OSError, ValueError):
        default = not os.environ.get("LABUTILS_CACHE") and place.is_dir()
        return default and {path.name for path in _listed(place)} <= {*ABOUT, paths.LOCKS}
    return paths.PROJECT.encode() in tag


def _remove(place: Path) -> list[str]:
    """Delete the cache folder if nothing but its mark is in it; return what else is."""
    others = [path for path in _listed(place) if path.name != paths.CACHE_TAG]
    if not others:
        (place / paths.CACHE_TAG).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # gone, or in use again
            place.resolve().rmdir()
    return [f"{path} (not a folder that the lab made)" for path in others if not _is_entry(path)]


def _delete(folder: Path) -> Cleared:
    """Delete a folder and what is in it: a link, but not what it points to."""
    files, size, left = 0, 0, []
    for file, state in _states(list(_files(folder))):
        if hasattr(os, "getuid") and os.getuid() not in (0, state.st_uid):
            left.append(f"{file} (another user's)")
            continue
        try:
            file.unlink()
        except FileNotFoundError:  # another process was faster
            continue
        except OSError as error:
            left.append(f"{file} ({worded(error)})")
        else:
            files, size = files + 1, size + state.st_size
    for place, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # something was left in it
            Path(place).rmdir()
    return Cleared(folder, files, size, tuple(left))


def _unlock(place: Path) -> None:
    """Delete the locks in a folder, and the folder when none of them is held."""
    import filelock

    if not place.is_dir() or place.is_symlink():
        return
    for file in (path for path in _listed(place) if path.suffix == ".lock"):
        lock = filelock.FileLock(file)
        try:
            lock.acquire(blocking=False)
        except (filelock.Timeout, OSError):
            continue
        with contextlib.suppress(OSError):  # on Windows the release deletes it
            file.unlink()  # while it is held: who waits for it sees that it is gone
        lock.release()
    with contextlib.suppress(OSError):  # a lock is held
        place.rmdir()
