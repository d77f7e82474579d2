"""Downloads from a server on this machine: what is accepted, what never reaches the cache."""

import hashlib
import http.server
import json
import socket
import threading

import pytest

from labutils import fetch, paths
from labutils.errors import FetchError, UnknownNameError

BODY = bytes(range(256)) * 64
SHA = hashlib.sha256(BODY).hexdigest()
NAME = f"tiny-{SHA[:8]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        kind = self.path.split("/")[1]
        if kind == "missing":
            return self.send_error(404)
        if kind == "away":
            self.send_response(302)
            self.send_header("Location", "http://example.invalid/" + NAME)
            return self.end_headers()
        body = BODY[::-1] if kind == "wrong" else BODY
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return self.wfile.write(body[:1000] if kind == "truncated" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LABUTILS_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def left_in_cache():
    return sorted(p.name for p in (paths.cache() / "weights").glob("*"))


def test_good_file_is_fetched_once_and_its_full_hash_recorded(server, capfd):
    url = f"{server.url}/good/{NAME}"
    assert fetch.cached(url) is None
    path = fetch.weights(url)
    assert path.read_bytes() == BODY
    record = json.loads((path.parent / (NAME + ".json")).read_text())
    assert (record["sha256"], record["bytes"], record["url"]) == (SHA, len(BODY), url)
    assert fetch.weights(url) == path == fetch.cached(url)
    assert len(server.asked) == 1
    assert left_in_cache() == [NAME, NAME + ".json"]
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_stderr(server, capfd):
    fetch.weights(f"{server.url}/good/{NAME}", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "100%" in err


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("wrong", "SHA-256"),
        ("missing", "404"),
        ("truncated", "broke off"),
        ("away", "only https"),
    ],
)
def test_a_bad_answer_is_an_error_with_a_cure_and_leaves_nothing(server, kind, says):
    with pytest.raises(FetchError, match=says) as caught:
        fetch.weights(f"{server.url}/{kind}/{NAME}")
    if kind != "away":
        assert str(paths.cache() / "weights" / NAME) in str(caught.value)
        assert "things16" in str(caught.value)
    assert left_in_cache() == []


def test_offline_says_so(server):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(FetchError, match=r"no connection.*place the file by hand"):
        fetch.weights(f"http://127.0.0.1:{port}/{NAME}")
    assert left_in_cache() == []


def test_an_altered_file_is_not_used_and_is_fetched_again(server):
    url = f"{server.url}/good/{NAME}"
    path = fetch.weights(url)
    path.write_bytes(BODY[:-1])
    assert fetch.cached(url) is None
    assert fetch.weights(url).read_bytes() == BODY
    assert len(server.asked) == 2


def test_the_recorded_hash_decides_even_where_the_eight_digits_agree(server):
    url = f"{server.url}/good/{NAME}"
    path = fetch.weights(url)
    record = path.parent / (NAME + ".json")
    record.write_text(json.dumps({"sha256": SHA[:8] + "0" * 56}))
    assert fetch.cached(url) is None
    with pytest.raises(FetchError, match="0" * 56):
        fetch.weights(url)


def test_a_record_that_cannot_be_read_is_an_error(server):
    path = fetch.weights(f"{server.url}/good/{NAME}")
    (path.parent / (NAME + ".json")).write_text("{")
    with pytest.raises(FetchError, match="Delete both"):
        fetch.cached(f"{server.url}/good/{NAME}")


def test_a_file_placed_by_hand_is_verified_and_recorded(server):
    url = f"{server.url}/missing/{NAME}"
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


def test_names(server):
    with pytest.raises(UnknownNameError, match="mobilenet_v3_large-8738ca79"):
        fetch.weights("mobilenet_v3_large-8738ca7.pth")
    with pytest.raises(FetchError, match="no checksum"):
        fetch.weights(f"{server.url}/good/tiny.pth")
    assert fetch.cached("mobilenet_v3_large-8738ca79.pth") is None
