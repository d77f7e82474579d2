"""Download weight files: HTTPS only, checked against a hash, whole or not at all.

PyTorch's model files carry the first eight digits of their SHA-256 in their name. Those digits
are checked at the first fetch; the full hash is then written beside the file and checked ever
after. No hash is invented here.

``LABUTILS_MIRROR`` names a base URL that is asked instead of the file's own host; plain http is
accepted for a mirror on this machine only.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from . import paths
from .errors import FetchError, UnknownNameError

# File name -> URL. The vendor case study's weights: torchvision's first ImageNet training
# (74.04 % top-1), which is not what torchvision's DEFAULT gives today (V2, 75.27 %).
WEIGHTS = {
    "mobilenet_v3_large-8738ca79.pth": (
        "https://download.pytorch.org/models/mobilenet_v3_large-8738ca79.pth"
    ),
}

_DIGITS = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
_TIMEOUT_S = 30


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
    """
    target, url = _locate(name)
    present = cached(name)
    if present is None:
        url = _mirrored(url, target.name)
        _require_https(url)
        _download(url, target, sys.stderr.isatty() if progress is None else progress)
    _record(target, url)
    return target


def require_reachable(url: str) -> None:
    """Raise `FetchError` at once when the host of `url` does not answer.

    For libraries that download on their own (timm through its hub), and whose many retries
    would keep an offline learner waiting for a minute.
    """
    import requests

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
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
        return
    raise FetchError(
        f"{url} is refused: only https:// is used (http:// for a mirror on this machine). "
        "Correct LABUTILS_MIRROR, or place the file by hand."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refuse_downgrade(response: Any, **_: Any) -> None:
    """Stop a redirect from https to plain http before it is followed."""
    if response.is_redirect:
        _require_https(urljoin(response.url, response.headers["location"]))


def _download(url: str, target: Path, progress: bool) -> None:
    import pooch
    import requests

    transfer = pooch.HTTPDownloader(
        progressbar=progress,
        chunk_size=1 << 16,
        timeout=_TIMEOUT_S,
        hooks={"response": _refuse_downgrade},
    )

    def verified_transfer(url: str, output_file: str, _: Any) -> None:
        # Checked here, before pooch renames the temporary file to its final name.
        transfer(url, output_file, None)
        if not _verified(target, found := paths.sha256(output_file)):
            size = Path(output_file).stat().st_size
            raise FetchError(
                f"What {url} sent is not {target.name}: {size:,} bytes with SHA-256 {found}, "
                f"expected {_expected(target)}. It was deleted. {_cure(target)}"
            )

    pooch.get_logger().setLevel("WARNING")
    target.unlink(missing_ok=True)  # present but not what was recorded: see `cached`
    try:
        pooch.retrieve(url, None, target.name, target.parent, downloader=verified_transfer)
    except (requests.RequestException, OSError) as error:
        raise FetchError(f"Could not fetch {url}: {_reason(error)}. {_cure(target)}") from None


def _verified(target: Path, found: str) -> bool:
    """Whether the SHA-256 `found` is the one recorded, or (first fetch) begins with the digits."""
    return found.startswith(_DIGITS.search(target.name).group(1)) and found.startswith(
        _recorded(target)
    )


def _expected(target: Path) -> str:
    return _recorded(target) or _DIGITS.search(target.name).group(1) + "..."


def _beside(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _recorded(target: Path) -> str:
    """Return the full hash written at the first fetch, ``""`` before it."""
    try:
        return str(json.loads(_beside(target).read_text(encoding="utf-8"))["sha256"])
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

    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"no answer within {_TIMEOUT_S} s"
    if "IncompleteRead" in str(error):
        return "the transfer broke off before its end"
    if isinstance(error, requests.ConnectionError):
        return "no connection (is this machine online?)"
    return str(error) or type(error).__name__


def _cure(target: Path) -> str:
    return (
        f"Try again later, place the file by hand at {target}, set LABUTILS_MIRROR to a mirror "
        "that has it, or go on without ImageNet weights: weights='things16' or 'random'."
    )
