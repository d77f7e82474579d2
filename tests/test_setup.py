"""The set-up: PyTorch's index is asked once, within seconds, for torch and torchvision alone.

The Makefile, pip and uv are the real ones, in an environment without any configuration of theirs.
The indexes are folders served on loopback, and the wheels in them are empty: the real ones are
some GB.
"""

import base64
import contextlib
import functools
import http.server
import importlib.util
import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from labutils import paths
from labutils.machine import pack, torch_index

PINS = {"torch": "2.13.0", "torchvision": "0.28.0", "smallest": "1.0"}


@contextlib.contextmanager
def serving(handler, kind=http.server.ThreadingHTTPServer):
    """Serve on loopback with `handler`; yields the URL."""
    server = kind(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def wheel(folder, name, version):
    """Write an empty wheel."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)


def index(folder, versions):
    """Write a package index ("simple", one folder per package) of empty wheels."""
    for name, version in versions.items():
        wheel(folder / name, name, version)
        file = next((folder / name).glob("*.whl")).name
        (folder / name / "index.html").write_text(
            f'<a href="{file.replace("+", "%2B")}">{file}</a>'
        )
    return folder


class Asked(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what it was asked for."""

    def __init__(self, *args, asked=None, **settings):
        self.asked = [] if asked is None else asked
        super().__init__(*args, **settings)

    def log_message(self, *_):
        self.asked.append(self.path)


@contextlib.contextmanager
def index_server(folder, versions):
    """Serve an index of empty wheels; yields its URL and the list of the paths asked for."""
    asked = []
    handler = functools.partial(Asked, directory=index(folder, versions), asked=asked)
    with serving(handler) as url:
        yield url, asked


# Each yields a URL, and the connections that were accepted.


@contextlib.contextmanager
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield f"http://127.0.0.1:{port}/whl", []


@contextlib.contextmanager
def silent_server():
    """Accepts connections, and never answers."""
    accepted = []

    def accept(listener):
        with contextlib.suppress(OSError):  # closed
            while True:
                accepted.append(listener.accept())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/whl", accepted
        listener.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def no_such_name():
    yield "http://index.invalid/whl", []


UNREACHABLE = [closed_port, silent_server, no_such_name]


def bare(tmp_path, **more):
    """Return an environment without any setting of pip, uv or a proxy."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not re.match(r"PIP_|UV_|TORCH_|.*_proxy$|MAKE|MFLAGS", name, re.IGNORECASE)
    }
    home = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "home/.config")}
    off = {"PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1", "UV_NO_CACHE": "1"}
    return kept | home | off | {"PIP_NO_CACHE_DIR": "1"} | more


def installers():
    uv = shutil.which("uv")
    absent = pytest.mark.skipif(uv is None, reason="uv is not installed")
    return [pytest.param("", id="pip"), pytest.param(uv or "uv", id="uv", marks=absent)]


@pytest.fixture(scope="module", params=installers())
def fresh(request, tmp_path_factory):
    """A lab of three packages, with the real Makefile, its environment made and empty."""
    lab = tmp_path_factory.mktemp("set-up") / "my lab"  # a folder's name may have a space
    lab.mkdir()
    shutil.copy(paths.ROOT / "Makefile", lab)
    (lab / "labutils" / "machine").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "machine/__init__.py", "machine/torch_index.py"):
        shutil.copy(paths.ROOT / "labutils" / name, lab / "labutils" / name)
    lines = "".join(f"{name}=={version}\n" for name, version in PINS.items())
    for name in ("requirements.txt", "constraints.txt"):
        (lab / name).write_text(lines)
    variables = [f"PYTHON={sys.executable}", f"UV={request.param}"]
    make(lab, [".venv/bin/python", *variables], bare(lab.parent))
    return lab, variables


def make(folder, arguments, environment):
    done = subprocess.run(
        ["make", "-C", str(folder), *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def set_up(fresh, tmp_path):
    """Return a function: the lab set up with a TORCH_INDEX; its output and what was installed."""
    lab, variables = fresh
    copy = tmp_path / "my lab"
    shutil.copytree(lab, copy, symlinks=True)

    def run(default, torch=None, **more):
        # uv's own variable first: another one would win over what the Makefile asks for
        places = {"PIP_INDEX_URL": default, "UV_DEFAULT_INDEX": default}
        chosen = [] if torch is None else [f"TORCH_INDEX={torch}"]
        environment = bare(tmp_path, **places, **more)
        said = make(copy, [".venv/.packages", *variables, *chosen], environment)
        found = (copy / ".venv/lib").glob("python*/site-packages/*.dist-info")
        return said, dict(folder.name.removesuffix(".dist-info").split("-") for folder in found)

    return run


def installed(found):
    return {name: found.get(name) for name in PINS}


@pytest.fixture
def default(tmp_path):
    with index_server(tmp_path / "default", PINS) as (url, _):
        yield url


@pytest.mark.parametrize(
    "place", [closed_port, no_such_name, pytest.param(silent_server, marks=pytest.mark.slow)]
)
def test_an_index_that_cannot_be_reached_costs_seconds_and_one_line(place, default, set_up):
    with place() as (unreachable, accepted):
        said, found = set_up(default, unreachable)
    assert installed(found) == PINS
    notes = [line for line in said.splitlines() if "cannot be used" in line]
    assert len(notes) == 1
    assert unreachable in notes[0] and "from where all other packages do" in notes[0]
    # It is asked once, for at most so long; a package for which it is asked again would wait, too.
    assert len(accepted) == (place is silent_server)
    assert torch_index.SECONDS <= 20


def test_pytorchs_index_is_asked_for_torch_and_torchvision_alone(default, set_up, tmp_path):
    """Whatever else it offers: another index for all packages could supply any of them."""
    offered = {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu", "smallest": "1.0+theirs"}
    with index_server(tmp_path / "pytorch", offered) as (url, asked):
        said, found = set_up(default, url)
    assert installed(found) == offered | {"smallest": "1.0"}
    assert {path.split("/")[1] for path in asked} == {"torch", "torchvision"}
    assert "cannot be used" not in said


def test_an_index_that_answers_without_its_wheels_is_left_for_the_default(
    default, set_up, tmp_path
):
    folder = index(tmp_path / "pytorch", {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"})
    for file in folder.rglob("*.whl"):
        file.unlink()
    said, found = set_up(default, folder.as_uri())
    assert installed(found) == PINS
    assert "torch could not be installed from it" in said


def test_an_empty_torch_index_means_the_default_without_a_word(default, set_up):
    said, found = set_up(default, "")
    assert installed(found) == PINS
    assert "Note" not in said


def test_an_index_in_a_folder_serves(default, set_up, tmp_path):
    offered = {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"}
    folder = index(tmp_path / "an index", offered)
    _, found = set_up(default, str(folder))
    assert installed(found) == PINS | offered


def test_a_folder_of_wheels_serves_beside_an_index(default, set_up, tmp_path):
    wheel(tmp_path / "wheels", "torch", "2.13.0+cpu")
    _, found = set_up(default, "", PIP_FIND_LINKS=str(tmp_path / "wheels"))
    assert installed(found) == PINS | {"torch": "2.13.0+cpu"}


def test_a_second_call_does_none_of_it(default, set_up):
    set_up(default, "")
    said, _ = set_up("http://index.invalid", "http://index.invalid")
    assert "up to date" in said


@pytest.mark.slow
def test_an_environment_made_by_half_is_made_again(tmp_path):
    """Debian's python3 without its venv package leaves a python, and no pip, behind."""
    half = tmp_path / "half"
    half.write_text(
        "#!/bin/sh\n"
        f'[ "$1 $2" = "-m venv" ] || exec "{sys.executable}" "$@"\n'
        f'"{sys.executable}" -m venv --without-pip "$3"; exit 1\n'
    )
    half.chmod(0o755)
    shutil.copy(paths.ROOT / "Makefile", tmp_path)
    call = ["make", "-C", str(tmp_path), "UV=", ".venv/bin/python"]
    broken = subprocess.run([*call, f"PYTHON={half}"], env=bare(tmp_path), capture_output=True)
    assert broken.returncode
    assert (tmp_path / ".venv").is_dir()
    make(tmp_path, [*call[3:], f"PYTHON={sys.executable}"], bare(tmp_path))
    pip = [tmp_path / ".venv/bin/python", "-m", "pip", "--version"]
    assert subprocess.run(pip, env=bare(tmp_path), capture_output=True).returncode == 0


# the probe, by itself


class Page(http.server.BaseHTTPRequestHandler):
    """Answers each request as the test says."""

    status, body, seen = 200, b"", None

    def do_GET(self):
        type(self).seen = self
        self.send_response(self.status)
        self.end_headers()
        with contextlib.suppress(OSError):
            for part in self.body:
                self.wfile.write(part)

    def log_message(self, *_):
        pass


def page(body, status=200):
    return type("Answer", (Page,), {"body": body, "status": status})


TORCH = [b'<a href="torch-2.13.0%2Bcpu-cp311-cp311-linux_x86_64.whl">torch</a>']


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (TORCH, 200, ""),
        ([b"<h1>Welcome to the hotel. Log in to use torch/</h1>"], 200, "lists no torch"),
        ([b"blocked"], 403, "HTTP status 403"),
        ([b"nothing"], 404, "HTTP status 404"),
        ([b"who are you"], 401, ""),  # pip and uv may know a password: netrc, keyring
    ],
)
def test_what_an_index_answers_decides(body, status, reason):
    with serving(page(body, status)) as url:
        fault = torch_index.fault(url)
    assert reason in fault and bool(reason) == bool(fault)


@pytest.mark.parametrize("place", UNREACHABLE)
def test_the_reason_is_said(place):
    with place() as (unreachable, _):
        fault = torch_index.fault(unreachable, seconds=1)
    assert re.search("refused|not known|resolution|timed out|no answer within 1 seconds", fault)


def test_a_server_that_goes_on_for_ever_is_left_in_time():
    """Each byte comes within the limit of a connection; the whole does not."""
    stop = threading.Event()

    def drops():
        while not stop.wait(0.05):
            yield b"."

    with serving(page(drops())) as url:
        assert "no answer within" in torch_index.fault(url, seconds=0.5)
        stop.set()


def test_a_proxy_of_the_environment_is_used(tmp_path):
    answer = page(TORCH)
    with serving(answer) as proxy:
        environment = bare(tmp_path, http_proxy=proxy, TORCH_INDEX="http://index.invalid/whl")
        command = [sys.executable, "-m", "labutils.machine.torch_index"]
        done = subprocess.run(
            command, cwd=paths.ROOT, env=environment, capture_output=True, text=True
        )
    assert answer.seen.path == "http://index.invalid/whl/torch/"
    assert done.stdout == "http://index.invalid/whl\n", done.stderr


def test_a_password_is_sent_and_never_shown(tmp_path):
    answer, said = page(TORCH), []
    with serving(answer) as url:
        address = url.replace("//", "//me:s%40cret@")
        assert torch_index.usable(address, said.append) == address
    expected = base64.b64encode(b"me:s@cret").decode()
    assert answer.seen.headers["Authorization"] == f"Basic {expected}"
    assert torch_index.usable(address, said.append) == ""
    assert len(said) == 1 and "cret" not in said[0]


def test_a_password_is_not_sent_on_to_where_a_server_points():
    other = page(TORCH)
    with serving(other) as elsewhere:

        class Pointing(Page):
            def do_GET(self):
                self.send_response(302)
                self.send_header("Location", f"{elsewhere}/torch/")
                self.end_headers()

        with serving(Pointing) as url:
            assert torch_index.fault(url.replace("//", "//me:secret@")) == ""
    assert "Authorization" not in other.seen.headers


@pytest.mark.parametrize(
    "address",
    [
        "http://user:sE@cReT@{}/whl",
        "http://user:sE/cReT@{}/whl",
        "http://user:sE?cReT@{}/whl",
        "http://user:sE#cReT@{}/whl",
        "http://{}/whl?token=sE@cReT",
        "http://{}/whl?token=sEcReT",
        "http://user:sE cReT@{}/whl",
        "http://[user:sEcReT@{}/whl",
        "user:sEcReT@{}/whl",
        "user1:sE@cReT@{}/whl",
    ],
)
def test_no_form_of_a_secret_is_shown(address):
    said = []
    with serving(page([b"nothing"], 404)) as url:
        address = address.format(url.removeprefix("http://"))
        assert torch_index.usable(address, said.append) == ""
    assert "cannot be used" in said[0]
    assert not re.search("sE|cReT", said[0]), said


def test_the_makefile_repeats_no_address_that_may_hold_a_password():
    lines = (paths.ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.search(r"echo.*\$\$?[{(]?(index|TORCH_INDEX)", line)]


@pytest.mark.parametrize(
    "answer",
    [b"\x1b]0;owned\x07\x1b[2J" + b"x" * 500 + b"\r\n\r\n", b"HTTP/1.1 2\x0b\x850 a\r\n\r\n"],
)
def test_what_a_server_says_is_one_short_printable_line(answer):
    class Raw(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1000)
            self.request.sendall(answer)

    with serving(Raw, socketserver.ThreadingTCPServer) as url:
        reason = torch_index.fault(url)
        said = []
        assert torch_index.usable(url, said.append) == ""
    assert 0 < len(reason) <= 100
    assert reason.isprintable() and said[0].isprintable()


def test_a_folder_of_nobody_s_is_a_note():
    said = []
    assert torch_index.usable("~nouser/x", said.append) == ""
    assert "~nouser/x cannot be used" in said[0]


def test_a_folder_of_wheels_is_no_index_and_the_cure_is_named(tmp_path):
    wheel(tmp_path, "torch", "2.13.0+cpu")
    said = []
    assert torch_index.usable(str(tmp_path), said.append) == ""
    assert f"PIP_FIND_LINKS={tmp_path}" in said[0]


@pytest.mark.parametrize(("system", "url"), [("linux", "https"), ("darwin", ""), ("win32", "")])
def test_only_linux_needs_an_index_of_its_own(system, url):
    code = f"import sys; sys.platform = {system!r}; from labutils.machine import torch_index as t; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(t.DEFAULT)"], capture_output=True, text=True
    )
    assert done.stdout.strip().partition(":")[0] == url, done.stderr


def test_no_command_adds_an_index_for_all_packages():
    """Neither the Makefile, nor what is documented, nor the pack."""
    tracked = ["Makefile", "README.md", ".ci/run", "notebooks/troubleshooting.md"]
    for name in [
        *tracked,
        "notebooks/INSTRUCTOR.md",
        "labutils/machine/pack.py",
        "labutils/machine/torch_index.py",
    ]:
        assert "extra-index" not in Path(paths.ROOT, name).read_text(encoding="utf-8"), name


@pytest.mark.skipif(
    importlib.util.find_spec("pip") is None, reason="uv made this environment, without pip"
)
def test_a_pack_takes_torch_from_its_index_and_the_rest_from_the_default(
    tmp_path, monkeypatch, default
):
    offered = {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu", "smallest": "1.0+theirs"}
    for name, value in (bare(tmp_path) | {"PIP_INDEX_URL": default}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    lines = "".join(f"{name}=={version}\n" for name, version in PINS.items())
    for name in ("requirements.txt", "constraints.txt"):
        (tmp_path / name).write_text(lines)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    wheels = paths.folder(tmp_path / "wheels")
    with index_server(tmp_path / "pytorch", offered) as (url, asked):
        pack._download_torch(wheels, url, print)
        pack._download(wheels, ["-r", str(tmp_path / "requirements.txt")])
    found = dict(file.name.split("-")[:2] for file in wheels.iterdir())
    assert found == offered | {"smallest": "1.0"}
    assert {path.split("/")[1] for path in asked} == {"torch", "torchvision"}
