"""Packs: complete, checked file by file, for one kind of machine; nothing else is installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labutils import paths
from labutils.errors import FetchError, MissingToolError, UsageError
from labutils.machine import pack


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A pack of one small wheel and one weight file."""
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    stored = paths.folder(paths.cache() / "weights")
    (stored / "net-01234567.pth").write_bytes(b"weights")
    (stored / "net-01234567.pth.json").write_text("{}")
    (stored / ".net-01234567.pth.lock").write_text("")

    def download(wheels, requirements):
        if requirements == ["none-for-this-machine"]:
            raise FetchError("no wheel")
        (wheels / "one-1.0-py3-none-any.whl").write_bytes(b"a wheel")

    monkeypatch.setattr(pack, "_download", download)
    said = []
    made = pack.collect(tmp_path / "pack", ["none-for-this-machine"], "", said.append)
    assert any("Left out: none-for-this-machine" in line for line in said)
    return made


def test_a_pack_holds_wheels_and_weights(packed):
    assert (packed.wheels, packed.weights) == (1, ("net-01234567.pth",))
    assert f"make setup PACK={packed.folder}" in str(packed)
    listed = json.loads((packed.folder / pack.MANIFEST).read_text())["files"]
    assert sorted(listed) == [
        "weights/net-01234567.pth",
        "weights/net-01234567.pth.json",
        "wheels/one-1.0-py3-none-any.whl",
    ]


def test_unpacking_puts_the_weights_into_the_cache(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "other"))
    assert pack.unpack(packed.folder) == packed
    assert (tmp_path / "other" / "weights" / "net-01234567.pth").read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["wheels/one-1.0-py3-none-any.whl", "weights/net-01234567.pth"])
def test_a_changed_or_missing_file_is_found(packed, name):
    (packed.folder / name).write_bytes(b"another")
    with pytest.raises(UsageError, match=f"{Path(name).name} is missing or was changed"):
        pack.unpack(packed.folder)
    (packed.folder / name).unlink()
    with pytest.raises(UsageError, match="is missing or was changed"):
        pack.unpack(packed.folder)


def rewrite(folder, **changes):
    manifest = folder / pack.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def test_what_is_no_pack_for_this_machine(packed, tmp_path):
    with pytest.raises(UsageError, match="labutils pack"):
        pack.unpack(tmp_path)
    rewrite(packed.folder, files={"../outside": "0" * 64})
    with pytest.raises(UsageError, match="does not belong in a pack"):
        pack.unpack(packed.folder)
    rewrite(packed.folder, machine="Plan9 mips, Python 2.7")
    with pytest.raises(UsageError, match="for Plan9 mips"):
        pack.unpack(packed.folder)
    (packed.folder / pack.MANIFEST).write_text("[]")
    with pytest.raises(UsageError, match="damaged"):
        pack.unpack(packed.folder)


def test_an_interrupted_pack_is_no_pack(packed, monkeypatch):
    def broken(*_):
        raise FetchError("no network")

    monkeypatch.setattr(pack, "_download", broken)
    with pytest.raises(FetchError):
        pack.collect(packed.folder, index="")
    with pytest.raises(UsageError, match="is not a pack"):
        pack.unpack(packed.folder)


def test_no_pip_is_said_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(pack.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match="ensurepip"):
        pack.collect(tmp_path, index="")


def test_unpacking_needs_nothing_that_is_not_installed_yet():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from labutils.machine import pack; print('yes')"
    )
    bare = [sys.executable, "-I", "-S", "-c", code, str(paths.ROOT)]  # no site-packages
    done = subprocess.run(bare, capture_output=True, text=True)
    assert done.stdout == "yes\n", done.stderr


@pytest.mark.sweep
def test_a_room_without_a_network_is_set_up_from_a_pack(tmp_path):
    """The real thing: every wheel downloaded, then a clone set up and run with the network off."""
    made = pack.collect(tmp_path / "pack")
    offline = ["unshare", "--net", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*offline, "true"]).returncode:
        pytest.skip("the network cannot be switched off for one process on this machine")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(paths.ROOT), str(clone)], check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}
    environment |= {"HOME": str(tmp_path / "home"), "PYTHON": sys.executable}
    for call in (["make", "setup", f"PACK={made.folder}"], [".venv/bin/labutils", "doctor"]):
        done = subprocess.run([*offline, *call], cwd=clone, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
