"""Folders of photographs: classes found, bad files named, nothing guessed; Imagenette's archive."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from labutils import fetch, paths
from labutils.errors import FetchError, UnknownNameError, UsageError
from labutils.images import data, photographs

CLASSES = ("tench", "cassette player", "French horn")


def picture(path, mode="RGB", size=(40, 30), colour=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if mode in ("L", "P") else (colour,) * len(mode)).save(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        picture(tmp_path / "tench" / f"{i}.png", colour=10 + i)
    picture(tmp_path / "n02979186" / "a.png", "L")
    picture(tmp_path / "French_Horn" / "a.png", "RGBA")
    picture(tmp_path / "French_Horn" / "b.jpg", "CMYK")
    return tmp_path


def test_classes_take_turns_and_every_mode_is_read(folder):
    found = photographs.read(folder, CLASSES, 32)
    assert found.labels.tolist() == [2, 1, 0, 2, 0, 0]
    assert found.images.shape == (6, 32, 32, 3)
    assert found.images.dtype == np.uint8
    assert found.skipped == ()
    assert photographs.read(folder, CLASSES, 32, 2).labels.tolist() == [2, 1]


def test_the_pictures_of_calibration_are_not_those_of_validation(tmp_path):
    for i in range(9):
        picture(tmp_path / "tench" / f"{i}.png", colour=20 * i)
    picture(tmp_path / "French_Horn" / "only.png", colour=250)

    def grey(part, n=None):
        found = photographs.read(tmp_path, CLASSES, 8, n, part=part)
        return found.images[:, 0, 0, 0].tolist(), found.source

    kept, source = grey("calib")
    assert kept == [20, 100]
    assert "kept for calibration, 2 images" in source.replace("),", ",")
    assert sorted(grey("val")[0] + kept) == sorted(grey("all")[0])
    for n in range(1, 9):  # disjoint for every number of pictures
        assert not set(grey("val", n)[0]) & set(grey("calib", n)[0])
    with pytest.raises(UnknownNameError, match="train"):
        photographs.read(tmp_path, CLASSES, 8, part="train")


def test_unreadable_files_are_left_out_and_named(folder):
    (folder / "tench" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (folder / "tench" / "zero.png").write_bytes(b"")
    (folder / "tench" / "notes.txt").write_text("not a picture, and not called one")
    found = photographs.read(folder, CLASSES, 32)
    assert len(found) == 6
    assert [line.split(":")[0] for line in found.skipped] == [
        str(paths.Path("tench", name)) for name in ("broken.jpg", "zero.png")
    ]
    assert "2 unreadable" in found.source


def test_the_centre_is_cut_as_torchvision_cuts_it(tmp_path):
    from labutils import _torchvision

    transforms = _torchvision.load().transforms
    gradient = np.linspace(0, 255, 512)[None, :, None] * np.ones((400, 1, 3))
    picture = Image.fromarray(gradient.astype(np.uint8))
    picture.save(tmp_path / "gradient.png")
    ours = data.read_images([tmp_path / "gradient.png"], 224, crop=photographs.CROP)[0]
    cut = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    assert np.abs(ours.astype(int) - np.asarray(cut(picture)).astype(int)).max() <= 2


def test_what_is_no_class_is_refused(folder):
    picture(folder / "zebra" / "a.png")
    with pytest.raises(UsageError, match=r"subfolder zebra .* not a class .*'tench'.* 0 to 2"):
        photographs.read(folder, CLASSES, 32)
    (folder / "zebra").rename(folder / "1")
    assert 1 in photographs.read(folder, CLASSES, 32).labels


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(UsageError, match="holds no subfolders"):
        photographs.read(tmp_path / "nowhere", CLASSES, 32)
    (tmp_path / "tench").mkdir()
    with pytest.raises(UsageError, match="No picture"):
        photographs.read(tmp_path, CLASSES, 32)


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
