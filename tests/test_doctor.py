"""Whether an installed file is as its installer wrote it."""

import base64
import hashlib
import sys

import pytest

from labutils.errors import UsageError
from labutils.machine import doctor

TEXT = b"nn.Hardswish\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package as pip installs it, with the fingerprint of one of its two files."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(TEXT).digest()).decode().rstrip("=")
    file = tmp_path / "someones" / "layers.py"
    for made, content in {
        file: TEXT,
        tmp_path / "someones" / "bare.py": b"",
        tmp_path / "someones-1.0.dist-info" / "METADATA": b"Name: someones\nVersion: 1.0\n",
        tmp_path / "someones-1.0.dist-info" / "RECORD": (
            f"someones/layers.py,sha256={digest},{len(TEXT)}\nsomeones/bare.py,,\n".encode()
        ),
    }.items():
        made.parent.mkdir(exist_ok=True)
        made.write_bytes(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return file


def test_an_edited_file_is_found(package):
    assert doctor.as_installed("someones", "someones/layers.py")
    package.write_bytes(TEXT.replace(b"nn.", b"nn.Custom"))
    assert not doctor.as_installed("someones", "someones/layers.py")


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("nobodys", "x.py", "nobodys is not installed"),
        ("someones", "someones/layer.py", "no file someones/layer.py"),
        ("someones", "someones/bare.py", "no fingerprint of someones/bare.py"),
    ],
)
def test_what_cannot_be_told_is_said(package, name, file, words):
    with pytest.raises(UsageError, match=words):
        doctor.as_installed(name, file)
