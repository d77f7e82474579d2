"""Which index torch and torchvision come from: PyTorch's own where it answers, else the default.

PyPI's torch for Linux is the CUDA build; PyTorch's CPU index has one a tenth of the size. That
index is asked for these two packages alone: a second index for *all* packages could supply any of
them (dependency confusion), and where it cannot be reached each package waits for it. So it is
probed once, before anything is installed. Only the standard library is used here.

``python -m labutils.machine.torch_index`` prints the index to use, or nothing where the default
serves.
"""

from __future__ import annotations

import base64
import http.client
import os
import queue
import re
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("torch", "torchvision")
# PyPI's torch is the CPU build on Windows and macOS.
DEFAULT = "https://download.pytorch.org/whl/cpu" if sys.platform == "linux" else ""
SECONDS = 10.0
_HEAD = 65536  # bytes of the page: a wheel's name comes early, and the whole page may be megabytes


def chosen() -> str:
    """Return the user's ``TORCH_INDEX`` (empty: the default index), or PyTorch's CPU index."""
    return os.environ.get("TORCH_INDEX", DEFAULT)


def usable(index: str, echo: Callable[[str], object]) -> str:
    """Return the URL of `index` if torch can be had there, else "" (the default index serves).

    Parameters
    ----------
    index
        The URL or folder of a package index; an empty string stands for the default index.
    echo
        Called with one line that says why the index is not used.
    """
    index = _as_url(index.strip())
    reason = fault(index) if index else ""
    if not reason:
        return index
    echo(
        f"Note: {_without_password(index)} cannot be used ({reason}): torch and torchvision come "
        "from where all other packages do (PyPI's build for Linux has CUDA: about 2.7 GB)."
    )
    return ""


def fault(index: str, seconds: float = SECONDS) -> str:
    """Return what keeps torch from being installed from `index`; empty when nothing does.

    Parameters
    ----------
    index
        The URL of a package index, ``file:`` included.
    seconds
        The longest wait in all: for the name, the connection and the answer.
    """
    answer: queue.SimpleQueue[str] = queue.SimpleQueue()
    # Looking up a name has no time limit of its own, so a thread does it that nobody waits for.
    threading.Thread(target=lambda: answer.put(_ask(index, seconds)), daemon=True).start()
    try:
        return answer.get(timeout=seconds)
    except queue.Empty:
        return f"no answer within {seconds:g} seconds"


def _ask(index: str, seconds: float) -> str:
    try:
        if index.startswith("file:"):
            return _fault_of_folder(Path(urllib.request.url2pathname(_path(index))))
        with urllib.request.urlopen(_request(index), timeout=seconds) as page:
            # A filter's or a hotel's own page is an answer, too.
            found = re.search(rb"torch-\d", page.read(_HEAD))
        return "" if found else "what answers there lists no torch"
    except urllib.error.HTTPError as error:
        # pip and uv know passwords that this does not (netrc, keyring): they may try.
        return "" if error.code == 401 else f"HTTP status {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _fault_of_folder(folder: Path) -> str:
    if (folder / "torch").is_dir():
        return ""
    if any(folder.glob("torch-*.whl")):
        return f"a folder of wheels is given as PIP_FIND_LINKS={folder}"
    return "it has no folder torch/"


def _request(index: str) -> urllib.request.Request:
    url = urllib.parse.urlsplit(index.rstrip("/") + "/torch/")
    request = urllib.request.Request(url._replace(netloc=url.netloc.rpartition("@")[2]).geturl())
    if url.username is not None:
        pair = f"{urllib.parse.unquote(url.username)}:{urllib.parse.unquote(url.password or '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    return request


def _path(index: str) -> str:
    return urllib.parse.urlsplit(index).path


def _as_url(index: str) -> str:
    if not index or re.match(r"[a-z+]{2,}:", index, re.IGNORECASE):
        return index
    return Path(index).expanduser().resolve().as_uri()


def _without_password(index: str) -> str:
    return re.sub(r"(?<=//)[^/@]*@", "", index)


def main() -> int:
    """Print the index to use, and say on the error stream when it is not the one wanted."""
    print(usable(chosen(), lambda line: print(line, file=sys.stderr)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
