"""Netron inside a notebook: one private server per model, on this machine only.

Netron's own ``start()`` is not used, because all its servers share one model (the second call
changes what the first shows), its page asks for cookies and reports to an analytics service before
it draws, and 180 days after its release it shows nothing but a request to update. Here its files
are served as they are, except that those four start-up calls are taken out, and a content security
policy keeps the page from talking to anything else.

Who may look: the server listens on 127.0.0.1, on a port that the system picks. Every path starts
with a secret of 128 bits, so other users of the machine, and web pages open in the same browser,
get "not found". A request must name this machine as its host (which stops DNS rebinding), or come
through jupyter-server-proxy when Jupyter offers that; the proxy asks for Jupyter's own password.
"""

from __future__ import annotations

import atexit
import functools
import hmac
import html
import http.server
import importlib.util
import os
import re
import secrets
import sys
import threading
import urllib.parse
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import untrusted
from ...errors import LimitError, MissingToolError, ModelFileError, UsageError, counted
from ...onnxfile import graph
from ...runtime.litert import tflite_file
from ...runtime.qnn import dlc_file


def _archive(member: str) -> Callable[[Path], None]:
    """Return a check of a zip that has a member of this name, in whichever folder."""

    def check(path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                untrusted.refuse_bomb(path, archive)
                names = archive.namelist()
        except LimitError as error:
            raise ModelFileError(str(error)) from None
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ModelFileError(
                f"{path} is not a {path.suffix} file, or it is truncated ({error}). Save it again."
            ) from None
        if not any(name == member or name.endswith(f"/{member}") for name in names):
            raise ModelFileError(
                f"{path} is a zip, but not a {path.suffix} file: it has no member {member}."
            )

    return check


KINDS: dict[str, Callable[[Path], object]] = {
    ".onnx": graph.read,
    ".dlc": dlc_file.members,
    ".tflite": tflite_file.checked,
    ".pt2": _archive("models/model.json"),  # torch.export.save
    ".keras": _archive("model.weights.h5"),
}
"""What may be opened, and what reads such a file first, to refuse a foreign one with a sentence."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
_STARTUP = re.compile(
    rb"await age\(\);\s*await consent\(\);\s*await telemetry\(\);\s*await capabilities\(\);"
)
_VERSION = b'<meta name="version" '
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; worker-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_IDLE = 30  # seconds until a connection that says nothing is closed
_open: set[Server] = set()


class Server:
    """Netron with one model, until `stop` or the end of Python.

    Attributes
    ----------
    name
        The model's file name.
    size
        Bytes of the file, as it was when the server started.
    port
        On 127.0.0.1.
    url
        Where the browser finds it: through Jupyter's proxy where there is one, else on 127.0.0.1.
    """

    def __init__(self, name: str, model: bytes) -> None:
        self.name, self.size = name, len(model)
        self._base = _proxy_base()
        self._token = secrets.token_urlsafe(16)
        handler = functools.partial(_Handler, _Site(name, model), self._token, bool(self._base))
        self._http = _Listener(("127.0.0.1", 0), handler)
        self.port = self._http.server_port
        self._thread = threading.Thread(
            target=self._http.serve_forever, name=f"netron {name}", daemon=True
        )
        self._thread.start()
        _open.add(self)

    @property
    def url(self) -> str:
        """The address of this model's page, with its secret: not for a log, not for a commit."""
        base = f"{self._base}proxy/{self.port}" if self._base else f"http://127.0.0.1:{self.port}"
        return f"{base}/{self._token}/"

    @property
    def running(self) -> bool:
        """Whether it still answers."""
        return self in _open

    def stop(self) -> None:
        """Close the port; a second call does nothing."""
        if self in _open:
            _open.discard(self)
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "" if self.running else ", stopped"
        return f"<Netron: {self.name}, {self.size:,} bytes{state}>"

    def _repr_html_(self) -> str:
        return Panes((self,))._repr_html_()


@dataclass(frozen=True)
class Panes:
    """Netron panes side by side, one server each.

    Attributes
    ----------
    servers
        One per model, left to right.
    titles
        What is written above each; the file's name where there is none.
    height
        Of the panes, in pixels.
    """

    servers: tuple[Server, ...]
    titles: tuple[str, ...] = ()
    height: int = 480

    def stop(self) -> None:
        """Stop all its servers."""
        for server in self.servers:
            server.stop()

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.servers))

    def _repr_html_(self) -> str:
        titles = self.titles or tuple(server.name for server in self.servers)
        panes = "".join(
            _pane(server, title, self.height)
            for server, title in zip(self.servers, titles, strict=True)
        )
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{panes}</div>'


def serve(model: str | Path) -> Server:
    """Start a separate Netron server for one model file.

    Parameters
    ----------
    model
        An ``.onnx``, ``.dlc``, ``.tflite``, ``.pt2`` (`torch.export.save`) or ``.keras`` file; it
        is read now, and later changes do not show. Weights that an ONNX file keeps in another file
        are not served: Netron shows the graph without.

    Raises
    ------
    ModelFileError
        The file is missing, or not what its name says.
    UsageError
        Another kind of file.
    MissingToolError
        Netron is not installed, or a version whose start-up is not known here.
    """
    path = Path(model)
    if path.suffix.lower() not in KINDS:
        raise UsageError(
            f"{path.name}: a model to look at is one of {', '.join(KINDS)}, "
            f"not {path.suffix or 'a file without a type'}. Export or convert it first."
        )
    if not path.is_file():
        raise ModelFileError(f"There is no file {path}.")
    KINDS[path.suffix.lower()](path)
    _page_files()  # refuse a foreign Netron here, not in the server's thread
    return Server(path.name, path.read_bytes())


def panes(*models: str | Path, titles: tuple[str, ...] = (), height: int = 480) -> Panes:
    """Show model files side by side, each on its own server: ``panes(before, after)``.

    Raises
    ------
    UsageError
        No model, or not one title per model.
    ModelFileError
        A file is missing, or not what its name says; no server is left running then.
    """
    if not models or (titles and len(titles) != len(models)):
        raise UsageError(
            f"{counted(len(models), 'model')} and {counted(len(titles), 'title')}: give one title "
            "each."
        )
    servers: list[Server] = []
    try:
        for model in models:
            servers.append(serve(model))
    except BaseException:
        for server in servers:
            server.stop()
        raise
    return Panes(tuple(servers), tuple(titles), height)


@atexit.register
def stop_all() -> None:
    """Stop every server that is still running; also done when Python ends."""
    for server in list(_open):
        server.stop()


class _Site:
    """The files of one model's page, by path."""

    def __init__(self, name: str, model: bytes) -> None:
        # Netron picks its reader by the suffix; everything else of the name is only shown.
        self._file = "model" + Path(name).suffix.lower()
        self._model, self._name = model, name

    def find(self, path: str) -> tuple[str, bytes] | None:
        """Return content type and body, None for a path that is not served."""
        if path == f"data/{self._file}":
            return "application/octet-stream", self._model
        path = path or "index.html"
        body = _page_files().get(path)
        if body is None:
            return None
        if path == "index.html":
            facts = {"type": "Python", "file": f"/data/{self._file}", "identifier": self._name}
            metas = "".join(
                f'<meta name="{key}" content="{html.escape(value)}">'
                for key, value in {**facts, "name": self._name}.items()
            )
            body = body.replace(_VERSION, metas.encode() + _VERSION, 1)
        return _TYPES[Path(path).suffix], body


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD below the secret, and "not found" to all else."""

    timeout = _IDLE

    def __init__(self, site: _Site, token: str, proxied: bool, *rest: Any) -> None:
        self._site, self._token, self._proxied = site, token, proxied
        super().__init__(*rest)

    def do_GET(self) -> None:
        """Send a file of the page, or 404."""
        found = self._site.find(self._path()) if self._allowed() else None
        kind, body = found or ("text/plain; charset=utf-8", b"Not found.\n")
        self.send_response(200 if found else 404)
        for name, value in {"Content-Type": kind, **_HEADERS}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def _parts(self) -> list[str]:
        path = urllib.parse.urlsplit(self.path).path
        return urllib.parse.unquote(path).split("/", 2)

    def _path(self) -> str:
        return self._parts()[2]

    def _allowed(self) -> bool:
        parts = self._parts()
        given = parts[1] if len(parts) == 3 else ""  # without the slash, relative links would break
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return False
        server: Any = self.server  # a `_Listener`
        port = server.server_port
        if self.headers.get_all("Host") in ([f"127.0.0.1:{port}"], [f"localhost:{port}"]):
            return True
        context = self.headers.get("X-Forwarded-Context", "")
        return self._proxied and context.endswith(f"/proxy/{port}")

    def version_string(self) -> str:
        """Keep Python's version out of the answer."""
        return "labutils"

    def log_message(self, *_: object) -> None:
        """Keep requests, and with them the secret, out of the notebook."""


class _Listener(http.server.ThreadingHTTPServer):
    """One thread per request; a browser that closes a tab midway is not an error."""

    daemon_threads = True

    def handle_error(self, request: Any, address: Any) -> None:
        """Say nothing of connections that broke, and all of everything else."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, address)


@functools.cache
def _page_files() -> dict[str, bytes]:
    """Return Netron's own files by name, without the start-up dialogs and reports."""
    spec = importlib.util.find_spec("netron")
    if spec is None or not spec.submodule_search_locations:
        raise MissingToolError("Netron is not installed: pip install -r requirements.txt")
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.suffix in _TYPES}
    page, found = files.get("index.html", b""), 0
    if "browser.js" in files:
        files["browser.js"], found = _STARTUP.subn(b"", files["browser.js"])
    if found != 1 or _VERSION not in page:
        raise MissingToolError(
            "The installed Netron starts in a way that is not known here, so its dialogs and "
            "reports cannot be taken out. Install the version named in requirements.txt."
        )
    return files


def _proxy_base() -> str:
    """Return the base URL of this kernel's Jupyter server, "" where it has no proxy."""
    if importlib.util.find_spec("jupyter_server_proxy") is None:
        return ""
    base = os.environ.get("JUPYTERHUB_SERVICE_PREFIX") or _own_server()
    return base.rstrip("/") + "/" if base else ""


def _own_server() -> str:
    parent = os.environ.get("JPY_PARENT_PID", "")
    if not parent.isdigit():
        return ""  # not started by a Jupyter server: a script, nbclient, an editor
    try:
        from jupyter_server.serverapp import list_running_servers
    except ImportError:
        return ""
    bases = (s["base_url"] for s in list_running_servers() if s["pid"] == int(parent))
    return next(bases, "")


def _pane(server: Server, title: str, height: int) -> str:
    name, url = html.escape(title), html.escape(server.url)
    return (
        '<figure style="flex:1 1 320px;min-width:0;margin:0">'
        f"<figcaption><b>{name}</b> in Netron "
        f'(<a href="{url}" target="_blank" rel="noopener noreferrer">in a new tab</a>; '
        "empty? Its kernel has ended: run the cell again)</figcaption>"
        f'<iframe class="lab-netron" src="{url}" title="Netron: {name}" loading="lazy" '
        'sandbox="allow-scripts allow-same-origin allow-downloads" referrerpolicy="no-referrer" '
        f'style="width:100%;height:{height}px;border:1px solid #888"></iframe></figure>'
    )
