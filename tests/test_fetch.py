"""Downloads from a server on this machine: what is accepted, what never reaches the cache."""

import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest

from labutils import fetch, paths
from labutils.errors import FetchError, UnknownNameError

BODY = bytes(range(256)) * 4096  # 1 MiB
PIECE = 1 << 17  # what a broken transfer brings
SHA = hashlib.sha256(BODY).hexdigest()
NAME = f"tiny-{SHA[:8]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        self.server.asked.append(self.path)
        kind = self.path.split("/")[1]
        if kind == "missing":
            return self.send_error(404)
        if kind in ("away", "inward"):
            self.send_response(302)
            self.send_header("Location", f"{self.server.elsewhere}/{NAME}")
            return self.end_headers()
        tries = len(self.server.asked)
        if kind == "busy" and tries < 3:
            return self.send_error(503)
        body = BODY[::-1] if kind == "wrong" else BODY
        begin = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.server.begins.append(int(asked[1]) if asked else 0)
        if asked and kind != "forgetful":  # which sends the whole file whatever is asked for
            begin = int(asked[1])
            if begin >= len(body):
                return self.send_error(416)
        self.send_response(206 if begin else 200)
        rest = body[begin:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if kind == "truncated" or (kind in ("flaky", "forgetful") and tries < 3):
            rest = rest[:PIECE]
        if kind == "stuck":
            self.wfile.write(rest[:PIECE])
            self.wfile.flush()
            return self.server.released.wait(30)
        if kind == "slow":
            time.sleep(1)
        return self.wfile.write(rest)

    def log_message(self, *_):
        pass


def at(monkeypatch, server, kind):
    """The address of a file that the user's mirror, which is `server`, sends in such a way."""
    monkeypatch.setenv("LABUTILS_MIRROR", f"{server.url}/{kind}")
    return f"https://origin.invalid/models/{NAME}"


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LABUTILS_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "_PAUSES_S", (0.01, 0.01, 0.01))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.begins, server.released = [], [], threading.Event()
        server.elsewhere = "http://example.invalid"
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.at = functools.partial(at, monkeypatch, server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()


def left_in_cache():
    return sorted(p.name for p in (paths.cache() / "weights").glob("*") if p.suffix != ".lock")


def test_good_file_is_fetched_once_and_its_full_hash_recorded(server, capfd):
    url = server.at("good")
    assert fetch.cached(url) is None
    path = fetch.weights(url)
    assert path.read_bytes() == BODY
    record = json.loads((path.parent / (NAME + ".json")).read_text())
    assert (record["sha256"], record["bytes"], record["url"]) == (
        SHA,
        len(BODY),
        f"{server.url}/good/{NAME}",
    )
    assert fetch.weights(url) == path == fetch.cached(url)
    assert len(server.asked) == 1
    assert left_in_cache() == [NAME, NAME + ".json"]
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_stderr(server, capfd):
    fetch.weights(server.at("good"), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "100%" in err


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("wrong", "SHA-256"),
        ("missing", "404"),
        ("away", "only https"),
    ],
)
def test_a_bad_answer_is_an_error_with_a_cure_and_leaves_nothing(server, kind, says):
    with pytest.raises(FetchError, match=says) as caught:
        fetch.weights(server.at(kind))
    if kind != "away":
        assert str(paths.cache() / "weights" / NAME) in str(caught.value)
        assert "things16" in str(caught.value)
    assert left_in_cache() in ([], [f".{NAME}.part"])
    assert all((paths.cache() / "weights" / name).stat().st_size == 0 for name in left_in_cache())


@pytest.mark.parametrize("kind", ["busy", "flaky", "forgetful"])
def test_what_passes_is_tried_again(server, kind):
    path = fetch.weights(server.at(kind))
    assert path.read_bytes() == BODY
    assert len(server.asked) == 3
    assert (
        server.begins
        == {"busy": [0], "flaky": [0, PIECE, 2 * PIECE], "forgetful": [0, PIECE, PIECE]}[kind]
    )


def test_a_transfer_that_always_breaks_is_an_error_and_the_next_try_goes_on(server):
    with pytest.raises(FetchError, match=r"broke off.* 524,288 bytes are kept"):
        fetch.weights(server.at("truncated"))
    assert server.begins == [0, PIECE, 2 * PIECE, 3 * PIECE]
    assert fetch.cached(server.at("truncated")) is None
    assert fetch.weights(server.at("good")).read_bytes() == BODY
    assert server.begins[-1] == 4 * PIECE


@pytest.mark.parametrize("kept", [b"x" * 3000, b"x" * (len(BODY) + 5)])
def test_kept_bytes_of_another_file_are_dropped(server, kept):
    folder = paths.folder(paths.cache() / "weights")
    (folder / f".{NAME}.part").write_bytes(kept)
    assert fetch.weights(server.at("good")).read_bytes() == BODY


def test_a_server_that_falls_silent_is_left(server, monkeypatch):
    monkeypatch.setattr(fetch, "_TIMEOUT_S", 0.2)
    with pytest.raises(FetchError, match=r"no answer within 0\.2 s"):
        fetch.weights(server.at("stuck"))
    assert len(server.asked) == 4


def test_a_full_disk_is_said_and_given_back(server, tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    try:
        monkeypatch.setenv("LABUTILS_CACHE", str(small))
        with pytest.raises(FetchError, match="the disk is full"):
            fetch.weights(server.at("good"))
        assert left_in_cache() == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written(server):
    folder = paths.folder(paths.cache() / "weights")
    folder.chmod(0o500)
    try:
        with pytest.raises(FetchError, match="LABUTILS_CACHE"):
            fetch.weights(server.at("good"))
    finally:
        folder.chmod(0o700)


def test_two_processes_share_one_download(server):
    call = "import sys; from labutils import fetch; print(fetch.weights(sys.argv[1]))"
    command = [sys.executable, "-c", call, server.at("slow")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = {process.communicate(timeout=120)[0].strip() for process in both}
    assert found == {str(paths.cache() / "weights" / NAME)}
    assert len(server.asked) == 1


def test_offline_says_so(server, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("LABUTILS_MIRROR", f"http://127.0.0.1:{port}")
    with pytest.raises(FetchError, match=r"no connection.*place the file by hand"):
        fetch.weights(f"https://origin.invalid/{NAME}")
    assert fetch.cached(f"https://origin.invalid/{NAME}") is None


def test_an_altered_file_is_not_used_and_is_fetched_again(server):
    url = server.at("good")
    path = fetch.weights(url)
    path.write_bytes(BODY[:-1])
    assert fetch.cached(url) is None
    assert fetch.weights(url).read_bytes() == BODY
    assert len(server.asked) == 2


def test_the_recorded_hash_decides_even_where_the_eight_digits_agree(server):
    url = server.at("good")
    path = fetch.weights(url)
    record = path.parent / (NAME + ".json")
    record.write_text(json.dumps({"sha256": SHA[:8] + "0" * 56}))
    assert fetch.cached(url) is None
    with pytest.raises(FetchError, match="0" * 56):
        fetch.weights(url)


def test_a_record_that_cannot_be_read_is_an_error(server):
    path = fetch.weights(server.at("good"))
    (path.parent / (NAME + ".json")).write_text("{")
    with pytest.raises(FetchError, match="Delete both"):
        fetch.cached(server.at("good"))


def test_a_file_placed_by_hand_is_verified_and_recorded(server):
    url = server.at("missing")
    place = paths.cache() / "weights" / NAME
    place.parent.mkdir(parents=True)
    place.write_bytes(BODY)
    assert fetch.weights(url) == place
    assert json.loads((place.parent / (NAME + ".json")).read_text())["sha256"] == SHA
    assert server.asked == []


def test_the_mirror_is_asked_instead_of_the_origin(server, monkeypatch):
    monkeypatch.setenv("LABUTILS_MIRROR", f"{server.url}/good/")
    assert fetch.weights(f"https://origin.invalid/models/{NAME}").read_bytes() == BODY
    assert server.asked == [f"/good/{NAME}"]


@pytest.mark.parametrize(
    "mirror",
    ["http://mirror.example", "ftp://127.0.0.1/", "file:///srv", "http://127.0.0.1.nip.io"],
)
def test_plain_http_is_for_loopback_only(server, monkeypatch, mirror):
    monkeypatch.setenv("LABUTILS_MIRROR", mirror)
    with pytest.raises(FetchError, match="only https"):
        fetch.weights("mobilenet_v3_large-8738ca79.pth")


@pytest.fixture
def secure(server, tmp_path, monkeypatch):
    """A host of its own that speaks https, and redirects."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    ask = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    ask += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate")
    subprocess.run(
        [*ask, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.socket = context.wrap_socket(made.socket, server_side=True)
        made.asked, made.begins, made.elsewhere = [], [], f"{server.url}/good"
        made.url = f"https://localhost:{made.server_port}"
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        made.shutdown()


def test_a_redirect_reaches_no_service_of_this_machine(server, secure):
    with pytest.raises(FetchError, match="only https"):
        fetch.weights(f"{secure.url}/inward/{NAME}")
    assert secure.asked == [f"/inward/{NAME}"] and server.asked == []
    assert fetch.weights(f"{secure.url}/good/{NAME}").read_bytes() == BODY


@pytest.mark.parametrize(
    "mirror", ["", "https://mirror.example", "ftp://127.0.0.1", "127.0.0.1", "http://10.0.0.1"]
)
def test_a_mirror_elsewhere_opens_no_door_to_this_machine(server, mirror, monkeypatch):
    monkeypatch.setenv("LABUTILS_MIRROR", mirror)
    with pytest.raises(FetchError, match="only https"):
        fetch.require_reachable(server.url)


def test_a_redirect_stays_here_where_the_users_mirror_is(server, secure, monkeypatch):
    monkeypatch.setenv("LABUTILS_MIRROR", f"{secure.url}/inward")
    assert fetch.weights(f"https://origin.invalid/{NAME}").read_bytes() == BODY
    assert server.asked == [f"/good/{NAME}"]


def test_what_libraries_fetch_is_asked_by_https_only(server, secure, monkeypatch):
    for url in (
        server.url,
        "ftp://example.invalid",
        "file:///etc/passwd",
        "http://example.invalid",
    ):
        with pytest.raises(FetchError, match="only https"):
            fetch.require_reachable(url)
    assert server.asked == []
    fetch.require_reachable(secure.url)
    monkeypatch.setenv("LABUTILS_MIRROR", server.url)
    fetch.require_reachable(server.url)
    with pytest.raises(FetchError, match="only https"):
        fetch.require_reachable("http://example.invalid")


def test_names(server):
    with pytest.raises(UnknownNameError, match="mobilenet_v3_large-8738ca79"):
        fetch.weights("mobilenet_v3_large-8738ca7.pth")
    with pytest.raises(FetchError, match="no checksum"):
        fetch.weights(f"{server.url}/good/tiny.pth")
    assert fetch.cached("mobilenet_v3_large-8738ca79.pth") is None
