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

from ..errors import printable

PACKAGES = ("torch", "torchvision")
# PyPI's torch is the CPU build on Windows and macOS.
DEFAULT = "https://download.pytorch.org/whl/cpu" if sys.platform == "linux" else ""
SECONDS = 10.0
_LINE = 100  # characters of what a server says that a message repeats
_HEAD = 65536  # bytes of the page: a wheel's name comes early, and the whole page may be megabytes


def chosen() -> str:
    """Return the user's ``TORCH_INDEX`` (empty: the default index), or PyTorch's CPU index."""
    return os.environ.get("TORCH_INDEX", DEFAULT)


def usable(index: str, echo: Callable[[str], object]) -> str:
    """Return the URL of `index` if it has torch, else "" (the default index serves).

    Parameters
    ----------
    index
        The URL or folder of a package index; an empty string stands for the default index.
    echo
        Called with one line that says why the index is not used.
    """
    try:
        url = _as_url(index.strip())
        reason = fault(url) if url else ""
    except RuntimeError:  # another user's home (~nobody), or links that lead in a circle
        reason = "there is no such folder"
    if not reason:
        return url
    note = (
        f"Note: {shown(index)} cannot be used ({reason}): torch and torchvision come "
        "from where all other packages do (PyPI's build for Linux has CUDA: about 2.7 GB)."
    )
    echo(printable(note))
    return ""


_ADDRESS = re.compile(
    r"\A([a-z][a-z0-9+.-]*://)?([^?#]*)(.*)\Z", re.IGNORECASE | re.DOTALL
)  # of anything: each part may be empty


def shown(index: str) -> str:
    """Return the address of an index without what may be secret: user, password and query.

    A password may hold any character, even where a URL should have it encoded, and the scheme may
    have been forgotten. So all up to the last @ is left out.
    """
    scheme, address, query = _ADDRESS.findall(index.strip())[0]
    if "@" in query:  # a question mark in a password, or an @ in a token
        return f"{scheme}..."
    return scheme + address.rpartition("@")[2]


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
    # Looking up a name has no time limit, so a thread does it that nobody waits for.
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
    except http.client.InvalidURL:  # its text may repeat a password
        return "it is not a valid URL"
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        return _line(getattr(cause, "strerror", None) or str(cause)) or type(cause).__name__
    except ValueError:
        return "it is not a valid URL"


def _line(text: str) -> str:
    """Return what a server may have written as one short line that commands no terminal."""
    line = " ".join(printable(text).split())
    return line if len(line) <= _LINE else f"{line[: _LINE - 3]}..."


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
        basic = f"Basic {base64.b64encode(pair.encode()).decode()}"
        request.add_unredirected_header("Authorization", basic)  # a redirection's host gets none
    return request


def _path(index: str) -> str:
    return urllib.parse.urlsplit(index).path


def _as_url(index: str) -> str:
    if not index or re.match(r"[a-z+]{2,}:", index, re.IGNORECASE):
        return index
    return Path(index).expanduser().resolve().as_uri()


def main() -> int:
    """Print the index to use, and say on stderr when it is not the one asked for."""
    print(usable(chosen(), lambda line: print(line, file=sys.stderr)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
