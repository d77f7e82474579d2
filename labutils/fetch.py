"""Download weight files: HTTPS only, checked against a hash, whole or not at all.

A transfer that breaks off is tried again and resumes where it stopped, in this process or in the
next one; two processes that want the same file share one download.

PyTorch's model files carry the first eight digits of their SHA-256 in their name. Those digits
are checked at the first fetch; the full hash is then written beside the file and checked ever
after. No hash is invented here.

``LABUTILS_MIRROR`` names a base URL that is asked instead of the file's own host. Everything else,
redirects included, is https; plain http is accepted on this machine, for a mirror that is on it.

Why not ``pooch.retrieve``, of which only the transfer is used here (`pooch.HTTPDownloader`): it
starts from the first byte again after a break, follows a redirect to whatever it names, takes no
hash of which only the first digits are known, lets two processes download the same file, and does
not say what to do when there is no network. Each of these is a promise here that has its test
(tests/test_fetch.py).
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import SplitResult, urljoin, urlsplit

from . import paths, untrusted
from .errors import FetchError, UnknownNameError

# File name -> URL. The vendor case study's weights: torchvision's first ImageNet training
# (74.04 % top-1), which is not what torchvision's DEFAULT gives today (V2, 75.27 %).
WEIGHTS = {
    "mobilenet_v3_large-8738ca79.pth": (
        "https://download.pytorch.org/models/mobilenet_v3_large-8738ca79.pth"
    ),
}

_DIGITS = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
_ARCHIVES = (".tgz", ".tar.gz")
_TIMEOUT_S = 30  # without a single byte
_PAUSES_S = (1.0, 3.0, 9.0)  # before the second, third and fourth try
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)
_NOT_SATISFIABLE = 416  # what was kept is as long as the file, or longer


def cached(name: str) -> Path | None:
    """Return the verified file of `name` in the cache, or None; never touches the network.

    Parameters
    ----------
    name
        A file name in `WEIGHTS`, or a URL whose file name carries eight digits of its SHA-256.

    Returns
    -------
    Path or None
        None when the file is absent, or is not the file that was asked for or recorded.

    Raises
    ------
    UnknownNameError
        `name` is neither in `WEIGHTS` nor a URL.
    FetchError
        The URL's file name carries no digits to check.

    Examples
    --------
    >>> from labutils import fetch
    >>> file = fetch.cached("mobilenet_v3_large-8738ca79.pth")
    >>> file is None or file.is_file()  # nothing is downloaded by asking
    True
    """
    target, _ = _locate(name)
    if not target.is_file() or not _verified(target, paths.sha256(target)):
        return None
    return target


def weights(name: str, *, progress: bool | None = None) -> Path:
    """Return the path of a verified weight file, downloading it at the first call.

    Parameters
    ----------
    name
        As in `cached`.
    progress
        Draw a progress bar on stderr; by default when stderr is a terminal.

    Returns
    -------
    Path
        A file in ``paths.cache() / "weights"``.

    Raises
    ------
    FetchError
        No network, no such file, a broken transfer, or a wrong checksum. What arrived is deleted.
    UnknownNameError
        `name` is neither in `WEIGHTS` nor a URL.

    Examples
    --------
    >>> from labutils import fetch
    >>> fetch.weights("https://example.org/weights.pth")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    labutils.errors.FetchError: https://example.org/weights.pth has no checksum in its file name ...
    """
    target, url = _locate(name)
    present = cached(name)
    if present is None:
        url = _mirrored(url, target.name)
        _require_https(url)
        shown = sys.stderr.isatty() if progress is None else progress
        _download(url, target, _mismatch(target), shown)
    _record(target, url)
    return target


def file(url: str, destination: Path, sha256: str = "") -> str:
    """Download a file that nobody has a hash of but the caller, perhaps; return its SHA-256.

    Parameters
    ----------
    url
        As for `archive`.
    destination
        Where it goes; it must not exist.
    sha256
        What it must have; "" takes what comes, which nobody has verified then.

    Raises
    ------
    FetchError
        As in `weights`.
    """
    url = _mirrored(url, urlsplit(url).path.rpartition("/")[2])
    _require_https(url)

    def mismatch(found: Path) -> str:
        digest = paths.sha256(found)
        wrong = bool(sha256) and digest != sha256.lower()
        return f"SHA-256 {digest}, expected {sha256}" if wrong else ""

    with paths.scratch(destination.absolute().parent) as folder:
        came = folder / destination.name
        _download(url, came, mismatch, sys.stderr.isatty())
        digest = paths.sha256(came)
        came.replace(destination)
    return digest


def archive(url: str, checksum: str, folder: Path) -> None:
    """Download a ``.tgz`` and unpack it into `folder`; the archive itself is deleted.

    Parameters
    ----------
    url
        Asked at ``LABUTILS_MIRROR`` when that is set.
    checksum
        As its publisher states it, such as ``"md5:..."`` or ``"sha256:..."``.
    folder
        Appears with its content when all of it is there, and not before.

    Raises
    ------
    FetchError
        As in `weights`; also when the archive holds files that do not belong in `folder`.
    """
    name = urlsplit(url).path.rpartition("/")[2]
    url = _mirrored(url, name)
    _require_https(url)
    kind, _, expected = checksum.partition(":")
    packed = folder / name

    def mismatch(file: Path) -> str:
        found = _digest(file, kind)
        return "" if found == expected else f"{kind} {found}, expected {expected}"

    _download(url, packed, mismatch, sys.stderr.isatty())
    try:
        _unpack(packed, folder)
    finally:
        packed.unlink()


def _unpack(packed: Path, folder: Path) -> None:
    import tarfile

    with paths.scratch(folder) as temporary:
        try:
            with tarfile.open(packed) as files:
                files.extractall(temporary, filter="data")  # nothing outside the folder
        except (tarfile.TarError, EOFError, OSError) as error:
            raise FetchError(f"{packed.name} could not be unpacked: {error}") from None
        for entry in temporary.iterdir():
            entry.replace(folder / entry.name)


def require_reachable(url: str) -> None:
    """Raise `FetchError` at once when the host of `url` does not answer, or is not asked by https.

    For libraries that download on their own (timm through its hub), and whose many retries
    would keep an offline learner waiting for a minute.
    """
    import requests

    _require_https(url)
    try:
        requests.head(url, timeout=_TIMEOUT_S, allow_redirects=False)
    except requests.RequestException as error:
        raise FetchError(f"{url} cannot be reached: {_reason(error)}.") from None


def _locate(name: str) -> tuple[Path, str]:
    """Return where the file of `name` lies in the cache, and the URL it comes from."""
    url = WEIGHTS.get(name, name)
    if "://" not in url:
        raise UnknownNameError("weight file", name, WEIGHTS)
    filename = urlsplit(url).path.rpartition("/")[2]
    if not _DIGITS.search(filename):
        raise FetchError(
            f"{url} has no checksum in its file name (expected NAME-xxxxxxxx.pth), so what arrives "
            "cannot be verified; it is not downloaded. Fetch it yourself and pass weights=PATH."
        )
    return paths.cache() / "weights" / filename, url


def _mirrored(url: str, filename: str) -> str:
    mirror = os.environ.get("LABUTILS_MIRROR", "").strip()
    return f"{mirror.rstrip('/')}/{filename}" if mirror else url


def _require_https(url: str) -> None:
    """Refuse another scheme; plain http may stay on this machine, if the user's mirror is there.

    Without such a mirror nothing here is asked: a redirect must not reach local services.
    """
    mirror = urlsplit(os.environ.get("LABUTILS_MIRROR", "").strip())
    allowed = mirror.scheme in ("http", "https") and _is_loopback(mirror)
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and allowed and _is_loopback(parts)):
        return
    raise FetchError(
        f"{url} is refused: only https:// is used (http:// for a mirror on this machine). "
        "Correct LABUTILS_MIRROR (the hub's HF_ENDPOINT), or place the file by hand."
    )


def _is_loopback(url: SplitResult) -> bool:
    host = url.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _download(url: str, target: Path, mismatch: Callable[[Path], str], progress: bool) -> None:
    """Fetch `url` as `target`; ``mismatch(file)`` says what is wrong with one, "" for nothing."""
    import filelock
    import requests

    try:
        paths.folder(target.parent)
        with filelock.FileLock(target.with_name(f".{target.name}.lock")):
            if target.is_file() and not mismatch(target):
                return  # another process has fetched it meanwhile
            _keep_right(url, target, mismatch, progress)
    except (requests.RequestException, OSError) as error:
        kept = _part(target).stat().st_size if _part(target).is_file() else 0
        resume = f" {kept:,} bytes are kept: the next try resumes there." if kept else ""
        raise FetchError(
            f"Could not fetch {url}: {_reason(error)}.{resume} {_cure(target)}"
        ) from None


def _keep_right(url: str, target: Path, mismatch: Callable[[Path], str], progress: bool) -> None:
    """Transfer `url`, and rename it to `target` only when it is the file that was asked for."""
    part = _part(target)
    resumed = part.is_file()
    _transfer(url, part, progress)
    if resumed and mismatch(part):  # the rest of another file: start over, once
        part.unlink()
        _transfer(url, part, progress)
    wrong = mismatch(part)
    if not wrong:
        part.replace(target)
        return
    size = part.stat().st_size
    part.unlink()
    raise FetchError(
        f"What {url} sent is not {target.name}: {size:,} bytes with {wrong}. It was deleted. "
        f"{_cure(target)}"
    )


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _transfer(url: str, part: Path, progress: bool) -> None:
    """Receive all of `url` into `part`, resuming where `part` ends, with a few tries."""
    for pause in (*_PAUSES_S, None):
        try:
            with part.open("ab") as file:
                return _receive(url, file, progress)
        except OSError as error:  # requests' exceptions are OSErrors too
            if getattr(error, "errno", None) == errno.ENOSPC:
                part.unlink()  # give back what filled the disk
            if pause is None or not _passing(error, part):
                raise
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _receive(url: str, file: BinaryIO, progress: bool) -> None:
    import pooch

    def examine(response: Any, **_: Any) -> None:
        if response.is_redirect:  # stop one from https to plain http before it is followed
            _require_https(urljoin(response.url, response.headers["location"]))
        elif response.status_code == 200:  # the whole file, whatever was asked for
            file.truncate(0)

    pooch.get_logger().setLevel("WARNING")
    begun = file.tell()
    pooch.HTTPDownloader(
        progressbar=progress,
        chunk_size=1 << 16,
        timeout=_TIMEOUT_S,
        hooks={"response": examine},
        headers={"Range": f"bytes={begun}-"} if begun else {},
    )(url, file, None)


def _passing(error: OSError, part: Path) -> bool:
    """Whether another try may help; where nothing answers at all, it does not."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        if error.response.status_code == _NOT_SATISFIABLE:
            part.unlink()
            return True
        return error.response.status_code in _TRY_AGAIN
    if isinstance(error, requests.ConnectionError):  # a host that cannot be reached: "Max retries"
        return "Max retries" not in str(error)
    return isinstance(error, requests.Timeout | requests.exceptions.ChunkedEncodingError)


def _digest(file: Path, kind: str) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, kind).hexdigest()


def _mismatch(target: Path) -> Callable[[Path], str]:
    """Return a judge of files by the SHA-256 recorded, or (first fetch) by the name's digits."""

    def judge(file: Path) -> str:
        found = paths.sha256(file)
        expected = _recorded(target) or _digits(target) + "..."
        return "" if _verified(target, found) else f"SHA-256 {found}, expected {expected}"

    return judge


def _verified(target: Path, found: str) -> bool:
    return found.startswith(_digits(target)) and found.startswith(_recorded(target))


def _digits(target: Path) -> str:
    found = _DIGITS.search(target.name)
    return found[1] if found else ""


def _beside(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _recorded(target: Path) -> str:
    """Return the full hash written at the first fetch, ``""`` before it."""
    try:
        return str(untrusted.json_file(_beside(target))["sha256"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        raise FetchError(
            f"{_beside(target)} is unreadable; it holds the checksum of {target.name}. "
            "Delete both files and fetch again."
        ) from None


def _record(target: Path, url: str) -> None:
    if _recorded(target):
        return
    entry = {
        "sha256": paths.sha256(target),
        "bytes": target.stat().st_size,
        "url": url,
        "first_verified": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    paths.write_text(_beside(target), json.dumps(entry, indent=2) + "\n")


def _reason(error: Exception) -> str:
    """Return a short reason; requests' own texts run over several nested exceptions."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or "Read timed out" in str(error):
        return f"no answer within {_TIMEOUT_S} s"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    if isinstance(error, PermissionError):
        return f"{error.filename} cannot be written (LABUTILS_CACHE moves the cache)"
    if "IncompleteRead" in str(error):
        return "the transfer broke off before its end"
    if isinstance(error, requests.ConnectionError):
        return "no connection (is this machine online?)"
    return str(error) or type(error).__name__


def _cure(target: Path) -> str:
    if target.suffix != ".pth" and not target.name.endswith(_ARCHIVES):
        return "Try again later, or set LABUTILS_MIRROR to a mirror that has it."
    ways = f"place the file by hand at {target}, "
    without = "or continue without ImageNet weights: weights='things16' or 'random'"
    if target.name.endswith(_ARCHIVES):
        ways, without = "", "or pass a folder of your own pictures"
    return f"Try again later, {ways}set LABUTILS_MIRROR to a mirror that has it, {without}."
