"""Photographs: cut as torchvision cuts them; published sets, from a server on this machine."""

import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

from labutils import fetch
from labutils.errors import FetchError, UsageError
from labutils.images import data, folder, photographs


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


# --- published sets, from a server on this machine ------------------------------------------------

PETS = ("Abyssinian_1", "Abyssinian_2", "yorkshire_terrier_7", "yorkshire_terrier_9")


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=95)
    return written.getvalue()


def pets():
    """The two archives of Oxford-IIIT Pet, as they are laid out, with four pictures."""
    listed = {"trainval": PETS[::2], "test": PETS[1::2]}
    lists = {
        f"annotations/{name}.txt": "".join(f"{pet} 1 1 1\n" for pet in chosen).encode()
        for name, chosen in listed.items()
    }
    pictures = {f"images/{pet}.jpg": jpeg(i) for i, pet in enumerate(PETS)}
    return {
        "images.tar.gz": archive({**pictures, "images/Abyssinian_100.mat": b"not a picture"}),
        "annotations.tar.gz": archive({**lists, "annotations/README": b"of trimaps"}),
    }


def imagenette():
    names = [
        f"imagenette2-320/{part}/{wnid}/{i}.JPEG"
        for part in ("train", "val")
        for wnid in ("n01440764", "n03417042")
        for i in range(2)
    ]
    return {"imagenette2-320.tgz": archive({name: jpeg(i) for i, name in enumerate(names)})}


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A mirror on this machine; what it is told to send has the checksum that torchvision states.

    Returns a function that takes {name: content}, and returns the list of what was asked for.
    """
    from labutils import _torchvision

    datasets, asked, bodies = _torchvision.load().datasets, [], {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/")
            asked.append(name)
            self.send_response(200)
            self.send_header("Content-Length", str(len(bodies[name])))
            self.end_headers()
            self.wfile.write(bodies[name])

        def log_message(self, *_):
            pass

    def serve(contents, sent=None):
        bodies.update(sent or contents)
        sums = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
        resources = [(url, sums.get(url.rpartition("/")[2], md5))
                     for url, md5 in datasets.OxfordIIITPet._RESOURCES]  # fmt: skip
        monkeypatch.setattr(datasets.OxfordIIITPet, "_RESOURCES", tuple(resources))
        url, md5 = datasets.Imagenette._ARCHIVES["320px"]
        entry = {"320px": (url, sums.get("imagenette2-320.tgz", md5))}
        monkeypatch.setattr(datasets.Imagenette, "_ARCHIVES", entry)
        return asked

    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("LABUTILS_MIRROR", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield serve
        server.shutdown()


def test_pets_become_a_folder_of_breeds_that_is_fetched_once(served, lab):
    asked = served(pets())
    with pytest.raises(UsageError, match="labutils photographs oxford-pets"):
        folder.read("oxford-pets")
    assert asked == []
    code, out, err = lab("photographs", "oxford-pets")
    assert code == 0, err
    assert "the MD5 that torchvision publishes" in out
    assert sorted(asked) == ["annotations.tar.gz", "images.tar.gz"]
    found = folder.read("oxford-pets")
    assert found.classes == ("Abyssinian", "yorkshire terrier") and found.divided
    parts = {part: [u.file.name for u in found.part(part)] for part in ("train", "test")}
    assert parts == {
        "train": ["train/Abyssinian/Abyssinian_1.jpg",
                  "train/yorkshire terrier/yorkshire_terrier_7.jpg"],
        "test": ["test/Abyssinian/Abyssinian_2.jpg",
                 "test/yorkshire terrier/yorkshire_terrier_9.jpg"],
    }  # fmt: skip
    assert photographs.download("oxford-pets") == found.root and len(asked) == 2
    assert [p.name for p in found.root.parent.iterdir()] == ["oxford-iiit-pet"]
    assert "oxford-pets  here " in lab("photographs")[1]


def test_imagenette_is_a_folder_of_named_classes_and_runs_as_data(served, lab):
    served(imagenette())
    photographs.download("imagenette")
    found = folder.read("imagenette")
    assert found.classes == ("tench", "garbage truck") and found.divided
    assert photographs.imagenette() == found.root / "val"
    code, out, err = lab("run", "mobilenet_v3_small", "--weights", "random", "--size", 32,
                         "--data", "imagenette")  # fmt: skip
    assert code == 0, err
    assert "8 pictures" in out


def test_a_set_that_was_stopped_while_it_was_sorted_is_finished_without_another_download(
    served, monkeypatch
):
    asked = served(pets())
    sort, moved = photographs._sort_pet, []

    def stop(*arguments):
        moved.append(sort(*arguments))
        if len(moved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(photographs, "_sort_pet", stop)
    with pytest.raises(KeyboardInterrupt):
        photographs.download("oxford-pets")
    assert not photographs.place_of("oxford-pets").exists()
    monkeypatch.setattr(photographs, "_sort_pet", sort)
    photographs.download("oxford-pets")
    assert len(asked) == 2 and len(folder.read("oxford-pets").files) == 4


def test_another_archive_than_the_published_one_is_refused_and_deleted(served):
    sent = pets()
    served(sent, {**sent, "images.tar.gz": archive({"images/evil.jpg": jpeg(5)})})
    with pytest.raises(FetchError, match=r"images\.tar\.gz.* md5 \w+, expected .* pass a folder"):
        photographs.download("oxford-pets")
    place = photographs.place_of("oxford-pets").parent
    assert [p for p in place.rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def test_a_list_that_names_a_missing_picture_is_an_error(served):
    short = pets()
    short["images.tar.gz"] = archive({f"images/{PETS[0]}.jpg": jpeg(0)})
    served(short)
    with pytest.raises(FetchError, match=f"lists {PETS[2]}, and has no such picture"):
        photographs.download("oxford-pets")


def test_a_set_that_nobody_publishes_is_named_with_the_nearest(lab):
    code, _, err = lab("photographs", "oxford-pet")
    assert code == 2 and "Did you mean oxford-pets" in err
