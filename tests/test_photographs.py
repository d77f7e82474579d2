"""Photographs: cut as torchvision cuts them; Imagenette's archive."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from labutils import fetch
from labutils.errors import FetchError
from labutils.images import data, photographs


def test_the_centre_is_cut_as_torchvision_cuts_it(tmp_path):
    from labutils import _torchvision

    transforms = _torchvision.load().transforms
    gradient = np.linspace(0, 255, 512)[None, :, None] * np.ones((400, 1, 3))
    picture = Image.fromarray(gradient.astype(np.uint8))
    picture.save(tmp_path / "gradient.png")
    ours = data.read_images([tmp_path / "gradient.png"], 224, crop=photographs.CROP)[0]
    cut = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    assert np.abs(ours.astype(int) - np.asarray(cut(picture)).astype(int)).max() <= 2


def archive(entries):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as files:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            files.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def sent(monkeypatch, tmp_path):
    """A function that decides which bytes the network brings."""
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))

    def send(content):
        monkeypatch.setattr(fetch, "_receive", lambda url, file, progress: file.write(content))

    return send


def test_an_archive_that_is_not_the_published_one_is_not_unpacked(sent):
    sent(archive({"imagenette2-320/val/n01440764/a.JPEG": b"x"}))
    with pytest.raises(FetchError, match=r"imagenette2-320\.tgz.* md5 [0-9a-f]{32}, expected"):
        photographs.imagenette(download=True)
    assert photographs.imagenette() is None


def test_an_archive_is_unpacked_and_removed(sent, tmp_path):
    content = archive({"set/val/n01440764/a.JPEG": b"x"})
    sent(content)
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
    fetch.archive("https://example.invalid/set.tgz", checksum, tmp_path / "out")
    assert (tmp_path / "out/set/val/n01440764/a.JPEG").read_bytes() == b"x"
    assert [p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".lock"] == ["set"]


def test_an_archive_cannot_write_outside(sent, tmp_path):
    content = archive({"../outside": b"x"})
    sent(content)
    checksum = f"md5:{hashlib.md5(content).hexdigest()}"
    with pytest.raises(FetchError, match="could not be unpacked"):
        fetch.archive("https://example.invalid/set.tgz", checksum, tmp_path / "out" / "deep")
    left = [p.name for p in (tmp_path / "out").rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert left == []
