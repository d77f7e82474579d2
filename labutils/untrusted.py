"""Reading what others wrote within limits: of bytes, of depth, and of what an archive unpacks to.

A file of a few bytes can stand for any amount of memory: brackets within brackets, a zip member of
zeros, a device that never ends. Reading text, JSON or a zip here fails with an error that
is a `ValueError` as well, and can say what the file was to be.
"""

from __future__ import annotations

import contextlib
import json
import os
import reprlib
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import LimitError

MAX_TEXT_BYTES = 4_000_000  # the largest table of the lab has 0.1 MB, the longest recipe 0.2
MAX_JSON_BYTES = 64_000_000  # an exported program of 3,000 nodes takes about two
MAX_MODEL_BYTES = 4_000_000_000  # protobuf's own limit is half of that
MAX_DEPTH = 60
MAX_RATIO = 100  # what an archive unpacks to, in its own sizes; deflate's limit is 1,032
_LITTLE = 64_000_000  # bytes that need no excuse, whatever they were packed to

_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxother, _brief.maxstring, _brief.maxlong = 2, 80, 80, 40


def shown(value: object) -> str:
    """Return the `repr` of a value that someone else wrote, short enough for a message."""
    try:
        return _brief.repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits; a strange key
        return f"a very large {type(value).__name__}"


def content(path: str | Path, most: int, *, plain: bool = False, piped: bool = False) -> bytes:
    """Return the bytes of a file.

    Parameters
    ----------
    path
        A file, or a link to one.
    most
        Bytes that it may have.
    plain
        Whether it must be a file that lies there itself: no link.
    piped
        Whether it may be a pipe or device as well, which is waited for: where a user named it, as
        ``<(...)`` of a shell does. What only lies there must never stop us.

    Raises
    ------
    LimitError
        It has more bytes, or is not such a file.
    OSError
        As for any file.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    if not piped:
        flags |= getattr(os, "O_NONBLOCK", 0)  # a pipe may be put there after the look at it
        flags |= getattr(os, "O_NOFOLLOW", 0) if plain else 0
        # a socket or device is not even opened
        _refuse_special(path, Path(path).stat(follow_symlinks=not plain), plain)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        regular = stat.S_ISREG(status.st_mode)
        if not piped:
            _refuse_special(path, status, plain)
        found = b"" if regular and status.st_size > most else file.read(most + 1)
    if len(found) > most or (regular and status.st_size > most):
        raise LimitError(f"{path} has more than {most:,} bytes, which nothing of its kind needs.")
    return found


@contextlib.contextmanager
def opened(path: str | Path, most: int | None = MAX_MODEL_BYTES) -> Iterator[BinaryIO]:
    """Open a file that only lies there, for a reader that takes what it needs of it.

    Raises
    ------
    LimitError
        It has more than `most` bytes, or is a pipe, a device or a socket: none of them is opened.
    OSError
        As for any file.
    """
    _refuse_special(path, Path(path).stat(), plain=False)
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        _refuse_special(path, status, plain=False)  # it may have been put there meanwhile
        if most is not None and status.st_size > most:
            raise LimitError(f"{path} has more than {most:,} bytes, which no model here needs.")
        yield file


def _refuse_special(path: str | Path, status: os.stat_result, plain: bool) -> None:
    is_folder = not plain and stat.S_ISDIR(status.st_mode)  # by the system, when it is read
    if not stat.S_ISREG(status.st_mode) and not is_folder:
        raise LimitError(f"{path} is not a plain file.")


def refuse_size(path: str | Path, most: int = MAX_MODEL_BYTES) -> None:
    """Refuse a file of more bytes than any model; LimitError, or OSError when it is not there."""
    if Path(path).stat().st_size > most:
        raise LimitError(f"{path} has more than {most:,} bytes, which no model here needs.")


def text(path: str | Path, most: int = MAX_TEXT_BYTES) -> str:
    """Return the UTF-8 text of a file that a user named, its line ends as Python reads them.

    Raises
    ------
    LimitError, OSError
        As for `content`.
    UnicodeDecodeError
        It is not UTF-8.
    """
    decoded = content(path, most, piped=True).decode("utf-8")
    return decoded.replace("\r\n", "\n").replace("\r", "\n")


def json_value(written: str | bytes, most: int = MAX_JSON_BYTES) -> Any:
    """Return what JSON says.

    Raises
    ------
    LimitError
        More than `most` characters, or nested more than `MAX_DEPTH` deep.
    ValueError
        It is not JSON.
    """
    if len(written) > most:
        raise LimitError(f"JSON of more than {most:,} characters is not read.")
    try:
        value = json.loads(written)
    except RecursionError:
        value = None
    else:
        level = [value]
        for _ in range(MAX_DEPTH):
            level = [child for item in level for child in _children(item)]
            if not level:
                return value
    raise LimitError(f"JSON that is nested more than {MAX_DEPTH} deep is not read.")


def json_file(path: str | Path, most: int = MAX_JSON_BYTES, *, piped: bool = False) -> Any:
    """Return what a JSON file says; raises as `content` and `json_value` do."""
    return json_value(content(path, most, piped=piped), most)


def _children(item: object) -> Any:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def refuse_bomb(path: str | Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive whose members leave its folder, or say that they unpack to too much.

    Nothing is unpacked for that; `member` holds each to what it said.

    Raises
    ------
    LimitError
        With the member's name.
    """
    excused = max(_LITTLE, MAX_RATIO * Path(path).stat().st_size)
    total = 0
    for entry in archive.infolist():
        name = shown(entry.filename)
        if ".." in Path(entry.filename).parts or entry.filename.startswith(("/", "\\")):
            raise LimitError(f"{path} is refused: it holds {name}, a path outside.")
        total += entry.file_size
        json_text = entry.filename.endswith(".json") and entry.file_size > MAX_JSON_BYTES
        if json_text or total > min(excused, MAX_MODEL_BYTES):
            raise LimitError(
                f"{path} is refused: with {name} it unpacks to {total:,} bytes, which nothing of "
                "its size needs."
            )


def member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, *, checked: bool = True) -> bytes:
    """Return a member of an archive: as many bytes as the archive says that it has.

    Parameters
    ----------
    checked
        Whether its checksum is compared; QNN writes none.

    Raises
    ------
    zipfile.BadZipFile, EOFError, OSError, NotImplementedError, zlib.error
        It is damaged.
    """
    with archive.open(entry) as opened:
        if not checked:
            setattr(opened, "_expected_crc", None)  # noqa: B010 - private to zipfile
        found = opened.read(entry.file_size)  # read() without a number would unpack 2 GB at once
    if len(found) < entry.file_size:
        raise EOFError(f"{shown(entry.filename)} is cut short")
    return found
