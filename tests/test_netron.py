"""Netron: private, quiet, one server per model. Requests are real, over loopback."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import urllib.parse
import zipfile
from pathlib import Path

import netron
import onnx
import pytest
from onnx import TensorProto, helper

from labutils import paths
from labutils.errors import MissingToolError, ModelFileError, UsageError
from labutils.show import panes, serve
from labutils.show.graphs import netron_server


def write_onnx(path, op="Relu"):
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    nodes = [helper.make_node(op, ["x"], ["y"], op)]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(path))
    return path


@pytest.fixture
def model(tmp_path):
    return write_onnx(tmp_path / "a.onnx")


@pytest.fixture
def server(model):
    with serve(model) as running:
        yield running


def request(server, path=None, method="GET", **headers):
    """Return status, headers and body; `path` is below the secret unless it starts with /."""
    secret = urllib.parse.urlsplit(server.url).path
    whole = path if (path or "").startswith("/") else secret + (path or "")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.putrequest(method, whole, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_the_model_and_netrons_page_are_served(server, model):
    status, headers, page = request(server)
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    metas = dict(re.findall(rb'<meta name="(\w+)" content="([^"]*)">', page))
    assert metas[b"name"] == b"a.onnx" and metas[b"file"] == b"/data/model.onnx"
    status, _, body = request(server, metas[b"file"].decode().lstrip("/"))
    assert status == 200 and body == model.read_bytes()
    status, headers, script = request(server, "view.js?version=1")
    assert status == 200 and headers["Content-Type"].startswith("text/javascript")
    assert len(script) > 100_000


def test_the_file_is_as_it_was(server, model):
    before = model.read_bytes()
    model.write_bytes(b"changed")
    assert request(server, "data/model.onnx")[2] == before


def test_no_dialog_no_telemetry_no_expiry(server):
    browser = request(server, "browser.js")[2]
    assert b"await start" not in browser  # the text is there, and whole
    assert b"const consent = async" in browser
    for call in (b"await age();", b"await consent();", b"await telemetry();"):
        assert call not in browser


def test_the_page_may_talk_to_nobody_else(server):
    headers = request(server)[1]
    policy = dict(p.strip().split(" ", 1) for p in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == policy["script-src"] == "'self'"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "Python" not in headers["Server"]


@pytest.mark.parametrize(
    "path",
    ["/", "/index.html", "/data/model.onnx", "/wrong/", "/wrong/data/model.onnx", "//", "/%2e%2e/"],
)
def test_without_the_secret_nothing_is_found(server, path):
    status, _, body = request(server, path)
    assert status == 404 and body == b"Not found.\n"


def test_the_secret_must_be_whole(server):
    secret = urllib.parse.urlsplit(server.url).path.strip("/")
    assert len(secret) >= 22  # 128 bits
    for wrong in (secret[:-1], secret + "x", secret.swapcase(), ""):
        assert request(server, f"/{wrong}/")[0] == 404
    assert request(server, f"/{secret}")[0] == 404  # its relative links would lose the secret


@pytest.mark.parametrize(
    "path",
    ["../", "..%2f..%2fetc%2fpasswd", "data/../server.py", "server.py", "data/a.onnx", "data/",
     "__init__.py", "%2e%2e/setup.py", "/etc/passwd", "data/model.onnx/"],
)  # fmt: skip
def test_nothing_but_the_page_and_the_model_is_served(server, path):
    assert request(server, path)[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "0.0.0.0", ""])
def test_a_foreign_host_is_refused(server, host):
    """A page that rebinds its own name to 127.0.0.1 sends its own name as the host."""
    assert request(server, Host=host)[0] == 404
    assert request(server, Host=host, X_Forwarded_Context=f"/proxy/{server.port}")[0] == 404


def test_this_machines_names_are_taken(server):
    assert request(server, Host=f"localhost:{server.port}")[0] == 200


def test_only_reading(server):
    assert request(server, method="HEAD")[0] == 200
    assert request(server, method="HEAD")[2] == b""
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert request(server, method=method)[0] == 501


def test_it_listens_on_loopback_only(server):
    """Read from the system's own table, where it has one; and no other address answers."""
    tables = [t for t in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if t.exists()]
    port = f":{server.port:04X}"
    found = [
        line.split()[1]
        for table in tables
        for line in table.read_text().splitlines()
        if line.split()[3] == "0A" and line.split()[1].endswith(port)
    ]
    if tables:
        assert found == [f"0100007F{port}"]
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", server.port), timeout=2):
        pass


def test_each_model_has_its_own_server(tmp_path):
    files = [write_onnx(tmp_path / f"{op}.onnx", op) for op in ("Relu", "Abs")]
    both = panes(*files, titles=("before", "<after>"))
    try:
        one, two = both.servers
        assert one.port != two.port and one.url.split("/")[3] != two.url.split("/")[3]
        for server, file in zip(both.servers, files, strict=True):
            assert request(server, "data/model.onnx")[2] == file.read_bytes()
        secret = urllib.parse.urlsplit(one.url).path
        assert request(two, secret)[0] == 404
        html = both._repr_html_()
        assert html.count("<iframe") == 2 and html.count('title="Netron: ') == 2
        assert "&lt;after&gt;" in html and "<after>" not in html
    finally:
        both.stop()
    assert not one.running and not two.running


def test_stop_closes_the_port(model):
    server = serve(model)
    server.stop()
    server.stop()
    assert not server.running and "stopped" in repr(server)
    with pytest.raises(OSError):
        request(server)


def test_the_secret_and_the_port_stay_out_of_text(server):
    secret = server.url.split("/")[3]
    assert repr(server) == f"<Netron: a.onnx, {server.size:,} bytes>"
    assert secret not in repr(server) and secret in server._repr_html_()


def test_nothing_is_printed(server, capfd):
    request(server)
    request(server, "/")
    with socket.create_connection(("127.0.0.1", server.port)) as broken:
        broken.sendall(b"GET / HT")
    assert capfd.readouterr() == ("", "")


def test_python_ends_with_a_server_running(model):
    code = f"from labutils.show import serve; print(serve({str(model)!r}).port)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", int(done.stdout))):
        pass


@pytest.mark.parametrize("name", ["missing.onnx", "missing.dlc"])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(ModelFileError, match="There is no file"):
        serve(tmp_path / name)


@pytest.mark.parametrize("name", ["model.pt", "model.onnx.txt", "notes.md", "model"])
def test_another_kind_of_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"\.onnx, \.dlc"):
        serve(tmp_path / name)


@pytest.mark.parametrize("name", ["a.onnx", "a.dlc"])
@pytest.mark.parametrize("content", [b"", b"hello world\n", b"PK\x03\x04 not a zip"])
def test_a_foreign_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFileError):
        serve(tmp_path / name)


def test_a_zip_that_is_no_dlc(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.dlc", "w") as archive:
        archive.writestr("readme.txt", "no model")
    with pytest.raises(ModelFileError):
        serve(tmp_path / "a.dlc")


def test_panes_that_fail_leave_no_server(tmp_path, model):
    before = set(netron_server._open)
    with pytest.raises(ModelFileError):
        panes(model, tmp_path / "missing.onnx")
    assert set(netron_server._open) == before
    with pytest.raises(UsageError):
        panes()
    with pytest.raises(UsageError):
        panes(model, titles=("a", "b"))


@pytest.mark.htp
def test_a_real_dlc(tmp_path, model):
    from labutils import dlc

    file = tmp_path / "a.dlc"
    dlc.write(model, file)
    with serve(file) as server:
        page = request(server)[2]
        assert b'content="/data/model.dlc"' in page and b'content="a.dlc"' in page
        assert request(server, "data/model.dlc")[2] == file.read_bytes()


def test_names_are_escaped(tmp_path):
    name = """a"><script>alert('1')</script>&.onnx""".replace("/", "_")
    with serve(write_onnx(tmp_path / name)) as server:
        page, html = request(server)[2].decode(), server._repr_html_()
        assert "<script>alert" not in page + html
        assert "&quot;&gt;&lt;script&gt;" in page and "&quot;&gt;&lt;script&gt;" in html


def test_another_netron_is_refused(tmp_path, model, monkeypatch):
    """When its start-up is not known, the dialogs cannot be taken out: say so, serve nothing."""
    package = tmp_path / "netron"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "index.html").write_text('<meta name="version" content="99">')
    (package / "browser.js").write_text("await everything();")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "netron")
    netron_server._page_files.cache_clear()
    try:
        with pytest.raises(MissingToolError, match=r"requirements\.txt"):
            serve(model)
    finally:
        netron_server._page_files.cache_clear()


def test_the_pinned_netron_is_the_one_that_is_known():
    pinned = re.search(r"^netron==(\S+)", (paths.ROOT / "requirements.txt").read_text(), re.M)
    assert netron.__version__ == pinned[1]


# jupyter-server-proxy is not needed for these: what matters is where we say the page is, and
# which requests we then take.


@pytest.fixture
def proxied(monkeypatch):
    find = netron_server.importlib.util.find_spec
    monkeypatch.setattr(
        netron_server.importlib.util,
        "find_spec",
        lambda name: object() if name == "jupyter_server_proxy" else find(name),
    )
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)


def test_on_a_hub_the_page_goes_through_the_proxy(model, proxied, monkeypatch):
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ann")
    with serve(model) as server:
        path = urllib.parse.urlsplit(server.url).path
        prefix, secret = path[: path.index("proxy/")], path.split("/")[-2]
        assert prefix == "/user/ann/" and server.url.startswith("/user/ann/proxy/")
        assert server.url.endswith("/")
        # what the proxy sends: the browser's host, and where it was asked
        context = f"/user/ann/proxy/{server.port}"
        forwarded = {"Host": "hub.example", "X_Forwarded_Context": context}
        assert request(server, f"/{secret}/", **forwarded)[0] == 200
        assert request(server, "/wrong/", **forwarded)[0] == 404
        assert request(server, f"/{secret}/", Host="hub.example")[0] == 404


def test_jupyters_base_url_is_found_by_its_process(model, proxied, monkeypatch, tmp_path):
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getpid()))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    (tmp_path / f"jpserver-{os.getpid()}.json").write_text(
        json.dumps({"pid": os.getpid(), "base_url": "/lab/", "url": "http://127.0.0.1:1/lab/"})
    )
    with serve(model) as server:
        assert server.url.startswith(f"/lab/proxy/{server.port}/")


def test_outside_jupyter_the_page_is_on_loopback(model, proxied):
    with serve(model) as server:
        assert server.url.startswith(f"http://127.0.0.1:{server.port}/")


# --- archives: .pt2 and .keras --------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path):
    import torch

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    program = torch.export.export(network, (torch.zeros(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "small.pt2")
    return tmp_path / "small.pt2"


def test_an_exported_program_is_served(exported):
    with netron_server.serve(exported) as running:
        assert request(running, "data/model.pt2")[2] == exported.read_bytes()


def test_a_keras_file_is_served(tmp_path):
    file = tmp_path / "small.keras"
    with zipfile.ZipFile(file, "w") as archive:
        for member in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(member, "{}")
    with netron_server.serve(file) as running:
        assert request(running, "data/model.keras")[2] == file.read_bytes()


@pytest.mark.parametrize("suffix", [".pt2", ".keras"])
def test_a_foreign_or_truncated_archive_is_refused(exported, suffix):
    foreign, cut, bomb = (exported.with_name(f"{n}{suffix}") for n in ("foreign", "cut", "bomb"))
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("readme.txt", "no model")
    cut.write_bytes(exported.read_bytes()[:200])
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("models/model.json", bytes(2**28))
    with pytest.raises(ModelFileError, match="it has no member model"):
        netron_server.serve(foreign)
    with pytest.raises(ModelFileError, match=r"is not a .* or it is truncated"):
        netron_server.serve(cut)
    with pytest.raises(ModelFileError, match=r"it unpacks to"):
        netron_server.serve(bomb)
    assert not netron_server._open
