"""A reader's own pictures: parts that share no picture, classes matched, bad files named."""

import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from labutils.errors import UnknownNameError, UsageError
from labutils.images import data, folder, picture_files

MODEL = ("tench", "cassette player", "French horn")


def picture(path, seed=0, mode="RGB", size=(40, 30), **options):
    """Write a picture of noise; the same seed gives the same pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


@pytest.fixture
def classes(tmp_path):
    for k, name in enumerate(("cat", "dog", "owl")):
        for i in range(40):
            picture(tmp_path / name / f"{i:02}.png", 100 * k + i)
    return tmp_path


def names(found, part):
    return [used.file.name for used in found.part(part)]


def test_parts_share_no_picture_and_together_are_all(classes):
    found = folder.read(classes)
    assert (found.classes, found.labelled, found.divided) == (("cat", "dog", "owl"), True, False)
    parts = {part: set(names(found, part)) for part in folder.PARTS}
    assert sum(map(len, parts.values())) == 120 == len(set().union(*parts.values()))
    assert set(names(found, "calib")) == parts["train"]
    assert all(12 <= len(parts[p]) <= 40 for p in ("val", "test"))
    assert found.left_out == {}


def test_a_picture_stays_in_its_part_whatever_is_added_and_whatever_it_is_called(classes):
    before = {u.file.pixels: u.part for u in folder.read(classes).files}
    for i in range(40, 60):
        picture(classes / "cat" / f"{i}.png", i + 1000)
    (classes / "cat" / "00.png").rename(classes / "cat" / "zz.png")
    after = {u.file.pixels: u.part for u in folder.read(classes).files}
    assert before.items() <= after.items() and len(after) == 140


@given(st.integers(0, 2**32 - 1))
def test_the_part_follows_from_the_pixels(start):
    part = folder._part(f"{start:08x}" + "0" * 56)
    share = start / 2**32
    assert part == ("val" if share < 0.2 else "test" if share < 0.4 else "train")


def test_copies_count_once_in_whatever_file_and_both_are_named(classes):
    picture(classes / "cat" / "copy.bmp", 5)  # the pixels of 05.png, other bytes
    found = folder.read(classes)
    assert found.left_out == {"cat/copy.bmp": "the same picture as cat/05.png"}
    picture(classes / "dog" / "stray.png", 6)  # a cat's
    left_out = folder.read(classes).left_out
    assert left_out["dog/stray.png"] == "the same picture has another class: cat/06.png"
    assert left_out["cat/06.png"] == "the same picture has another class: dog/stray.png"


def test_a_folder_that_is_divided_keeps_its_parts_but_no_leak(tmp_path):
    for part, seeds in (("train", range(6)), ("valid", range(4, 8)), ("Test", range(8, 10))):
        for seed in seeds:
            picture(tmp_path / part / "cat" / f"{seed}.png", seed)
    found = folder.read(tmp_path)
    assert found.divided
    assert sorted(names(found, "train")) == [f"train/cat/{i}.png" for i in range(4)]
    assert len(names(found, "val")) == 4 and len(names(found, "test")) == 2
    assert found.left_out["train/cat/5.png"] == (
        "the same picture as valid/cat/5.png, which is in another part"
    )
    assert found.evaluation == "val"


def test_classes_called_like_parts_are_classes(tmp_path):
    for name in ("bus", "train", "test"):
        picture(tmp_path / name / "0.png", len(name))
    assert folder.read(tmp_path).classes == ("bus", "test", "train")
    picture(tmp_path / "only" / "val" / "cat" / "a.png")
    assert folder.read(tmp_path / "only").divided
    picture(tmp_path / "flat" / "val" / "a.png")
    assert folder.read(tmp_path / "flat").classes == ("val",)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("train/cat/a", "val/cat/b", "masks/c"), r"train/, val/ with .* but masks/ beside"),
        (("train/cat/a", "eval/cat/b"), r"train/ with folders .* but eval/ beside"),
        (("set/train/cat/a", "set/val/cat/b"), r"set/ has parts inside \(train/, val/\)"),
        (("cat/train/a", "cat/test/b", "dog/train/c"), r"cat/ has parts inside .* train/cat/"),
    ],
)
def test_parts_that_may_be_classes_are_refused(files, words, tmp_path):
    for seed, name in enumerate(files):
        picture(tmp_path / f"{name}.png", seed)
    with pytest.raises(UsageError, match=words):
        folder.read(tmp_path)


def test_a_part_that_is_missing_is_asked_for(tmp_path):
    for i in range(3):
        picture(tmp_path / "train" / "cat" / f"{i}.png", i)
    found = folder.read(tmp_path)
    with pytest.raises(UsageError, match=r"no pictures in val/, which measuring accuracy needs"):
        found.load("val")
    with pytest.raises(UnknownNameError, match="trian"):
        found.part("trian")
    picture(tmp_path / "few" / "a.png")
    few = folder.read(tmp_path / "few")
    missing = next(p for p in folder.PARTS if p != few.files[0].part)
    with pytest.raises(UsageError, match=f"none came into the part {missing}"):
        few.load(missing)


def test_classes_of_a_model_are_found_by_name_number_and_wordnet_id(tmp_path):
    for i, name in enumerate(("French_Horn", "0", "n02979186")):
        picture(tmp_path / name / "a.png", i)
    found = folder.read(tmp_path, MODEL)
    assert found.classes == MODEL
    assert {u.file.name.split("/")[0]: u.label for u in found.files} == {
        "French_Horn": 2, "0": 0, "n02979186": 1,
    }  # fmt: skip
    picture(tmp_path / "cassete player" / "a.png", 9)
    with pytest.raises(UnknownNameError, match="Did you mean cassette player"):
        folder.read(tmp_path, MODEL)


@pytest.mark.parametrize(
    ("classes", "folders", "labels"),
    [
        (("A", "B", "a", "b"), ("a", "b", "A", "B"), (2, 3, 0, 1)),  # a model's own names
        (("no_entry", "no entry"), ("no entry", "no_entry"), (1, 0)),
        (("\u00e9t\u00e9",), ("E\u0301t\u00e9",), (0,)),  # taken apart, as macOS writes it
        (("1", "2", "3"), ("3", "1"), (2, 0)),  # names that are numbers are no numbers
        (("b", "a"), ("1", "0"), (1, 0)),
        (("1", "2", "3"), ("0", "1", "2"), r"no class .* named '0'"),
        (("1", "2", "x"), ("0",), r"no class .* named '0'"),
        (("cat", "dog"), ("cat", "Cat"), "Cat and cat would both be the class 'cat'"),
        (("cat", "dog"), ("0", "cat"), "0 and cat would both be the class 'cat'"),
        (("crane", "crane"), ("crane",), r"crane could be .* 'crane' \(number 0\), .*number 1"),
        (("Cardigan", "cardigan"), ("CARDIGAN",), "CARDIGAN could be more than one class"),
        (None, ("n02979186", "cassette player"), "could be more than one class"),
    ],
)
def test_a_label_is_exact_or_refused_by_name(classes, folders, labels, tmp_path):
    for seed, name in enumerate(folders):
        picture(tmp_path / name / "p.png", seed)
    if isinstance(labels, str):
        with pytest.raises(UsageError, match=labels):
            folder.read(tmp_path, classes)
        return
    found = folder.read(tmp_path, classes)
    assert {u.file.name.split("/")[0]: u.label for u in found.files} == dict(
        zip(folders, labels, strict=True)
    )


def test_without_classes_there_are_no_labels(tmp_path):
    for i in range(30):
        picture(tmp_path / f"{i}.png", i)
    found = folder.read(tmp_path)
    assert not found.labelled and found.classes == ()
    assert set(found.load("val").labels) == {data.NO_LABEL}
    picture(tmp_path / "cat" / "a.png", 99)
    assert folder.read(tmp_path).left_out["0.png"] == "not in the folder of a class"


def test_every_kind_of_file_is_read_or_named(tmp_path, monkeypatch):
    cat = tmp_path / "cat"
    picture(cat / "gray.png", 1, "L")
    picture(cat / "cmyk.jpg", 2, "CMYK")
    picture(cat / "palette.png", 3, "P")
    picture(cat / "alpha.png", 4, "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(cat / "turned.jpg", 5, exif=exif)
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(cat / "moving.gif", save_all=True, append_images=frames[1:])
    deep = (np.linspace(0, 65535, 900).reshape(30, 30)).astype(np.uint16)
    Image.fromarray(deep).save(cat / "deep.png")
    (cat / "broken.jpg").write_bytes((cat / "cmyk.jpg").read_bytes()[:300])
    (cat / "text.png").write_text("not a picture")
    (cat / "notes.txt").write_text("no picture, and not called one")
    (cat / "gone.png").symlink_to(tmp_path / "nowhere.png")
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 5000)
    picture(cat / "huge.png", 6, size=(80, 80))

    found = folder.read(tmp_path)
    assert set(found.left_out) == {
        "cat/broken.jpg", "cat/text.png", "cat/gone.png", "cat/huge.png",
    }  # fmt: skip
    assert "6,400" in found.left_out["cat/huge.png"] or "80 x 80" in found.left_out["cat/huge.png"]
    assert found.left_out["cat/text.png"] == "not a picture that Pillow reads."
    assert "runcated" in found.left_out["cat/broken.jpg"]
    assert not any(
        str(tmp_path) in why for why in found.left_out.values() if "no picture" not in why
    )
    traits = {used.file.name[4:]: used.file.traits for used in found.files}
    assert traits["gray.png"] == ("gray",)
    assert traits["cmyk.jpg"] == ("CMYK",)
    assert traits["turned.jpg"] == ("turned",)
    assert "animated" in traits["moving.gif"]
    assert traits["deep.png"] == ("gray", "16-bit")
    assert "1 turned" in str(found) and "left out: 4" in str(found)
    assert picture_files.upright(cat / "turned.jpg")[0].shape == (40, 30, 3)
    values = picture_files.upright(cat / "deep.png")[0]
    assert (values.min(), values.max()) == (0, 255) and len(np.unique(values)) > 200


def test_nothing_that_is_not_a_plain_file_is_opened(tmp_path):
    picture(tmp_path / "cat" / "a.png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "cat" / "socket.png"))
    found = folder.read(tmp_path)
    assert set(found.left_out) == {"cat/pipe.png", "cat/device.png", "cat/socket.png"}
    assert all("not a plain file" in why for why in found.left_out.values())


def test_another_file_of_the_same_size_and_time_is_read_again(tmp_path):
    for part, seeds in (("train", (0, 1, 2)), ("val", (3, 4))):
        for seed in seeds:
            file = picture(tmp_path / part / "cat" / f"{seed}.bmp", seed)
            os.utime(file, (1e9, 1e9))
    assert folder.read(tmp_path).left_out == {}
    shutil.copy2(tmp_path / "val" / "cat" / "3.bmp", tmp_path / "train" / "cat" / "0.bmp")
    assert "val/cat/3.bmp, which is in another" in folder.read(tmp_path).left_out["train/cat/0.bmp"]


def test_a_class_that_is_a_link_is_followed_and_no_link_leads_on_without_end(tmp_path):
    picture(tmp_path / "elsewhere" / "dog" / "a.png", 1)
    picture(tmp_path / "elsewhere" / "val" / "cat" / "b.png", 2)
    root = tmp_path / "root"
    picture(root / "train" / "cat" / "c.png", 3)
    (root / "train" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (root / "val").symlink_to(tmp_path / "elsewhere" / "val")
    (root / "train" / "cat" / "deep").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "all").symlink_to(tmp_path)
    (root / "train" / "lost").symlink_to(tmp_path / "nowhere")
    found = folder.read(root)
    assert {u.file.name for u in found.files} == {
        "train/cat/c.png", "train/dog/a.png", "val/cat/b.png"
    }  # fmt: skip
    assert found.classes == ("cat", "dog")
    assert found.left_out == {
        "train/all": "a link to a folder that it lies in",
        "train/cat/deep": "a link to a folder, inside of a class: put the folder itself there",
        "train/lost": "a link to nothing",
    }
    assert found.unusable == {"all": 1, "lost": 1}


def test_whatever_is_called_like_a_picture_is_read_or_named_with_its_class(tmp_path):
    picture(tmp_path / "cat" / "a.jfif", 1, format="JPEG")
    picture(tmp_path / "cat" / "b.avif", 2)
    picture(tmp_path / "cat" / "c.JPE", 3, format="JPEG")
    for name in ("dog/a.heic", "dog/b.jxl", "cow/a.png", "cat/notes.txt", "cat/list"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no picture")
    (tmp_path / "empty").mkdir()
    found = folder.read(tmp_path)
    assert {u.file.name for u in found.files} == {"cat/a.jfif", "cat/b.avif", "cat/c.JPE"}
    assert "Pillow reads no .heic here. Save it as" in found.left_out["dog/a.heic"]
    assert set(found.left_out) == {"cow/a.png", "dog/a.heic", "dog/b.jxl"}
    assert found.unusable == {"cow": 1, "dog": 2, "empty": 0} and found.classes == ("cat",)
    assert "classes without a picture that can be used: cow, dog, empty" in str(found)
    assert "not looked at: 1 .txt, 1 no suffix" in str(found)


def test_a_class_that_nothing_teaches_is_named(tmp_path):
    for seed, name in enumerate(("train/cat", "val/cat", "val/fox")):
        picture(tmp_path / name / "a.png", seed)
    found = folder.read(tmp_path)
    assert found.only_judged == ("fox",)
    assert "classes without a picture for training: fox" in str(found)


def test_a_folder_whose_path_is_not_utf_8_is_read(tmp_path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xff"))
    picture(root / os.fsdecode(b"c\xfe") / "a.png")
    first = folder.read(root)
    assert folder.read(root) == first and first.classes == ("c\udcfe",)


@pytest.mark.filterwarnings("error")
def test_no_warning_of_pillow_or_numpy_is_all_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    values = np.random.default_rng(0).random((30, 40)).astype(np.float32)
    values[3, 3] = np.nan
    (tmp_path / "cat").mkdir()
    Image.fromarray(values).save(tmp_path / "cat" / "nan.tif")
    picture(tmp_path / "cat" / "large.png")
    assert folder.read(tmp_path).left_out == {
        "cat/nan.tif": "has values that are not finite numbers."
    }


def test_deep_pictures_are_all_scaled_alike_and_dark_ones_are_named(tmp_path):
    for top in (200, 300, 4095, 65535):
        values = np.full((20, 30), top, np.uint16)
        (tmp_path / "cat").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "cat" / f"{top}.png")
        assert picture_files.upright(tmp_path / "cat" / f"{top}.png")[0].max() == round(top / 257)
    found = folder.read(tmp_path)
    assert "2 16-bit below 4096" in str(found) or "3 16-bit below 4096" in str(found)


def test_pictures_are_decoded_once_and_again_when_they_change(classes, monkeypatch):
    read, seen = picture_files._read, []
    monkeypatch.setattr(
        picture_files, "_read", lambda root, name: seen.append(name) or read(root, name)
    )
    first = folder.read(classes)
    assert len(seen) == 120
    assert folder.read(classes) == first and len(seen) == 120
    picture(classes / "cat" / "00.png", 777)
    assert folder.read(classes) != first and seen[120:] == ["cat/00.png"]
    picture_files._kept(classes).write_text("{")
    assert len(folder.read(classes).files) == 120


def test_classes_take_turns_and_a_head_is_the_start_of_the_whole(classes):
    found = folder.read(classes)
    whole, few = found.load("train", size=24), found.load("train", 6, size=24)
    assert few.labels.tolist() == [0, 1, 2] * 2
    np.testing.assert_array_equal(whole.images[:6], few.images)
    assert found.digest("train") != found.digest("val")
    assert whole.source == f"{classes.name} train, {len(whole)} pictures at 24 px"


def test_what_is_no_folder_of_pictures_is_said(tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        folder.read(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="has no pictures"):
        folder.read(tmp_path)
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(UsageError, match=r"No picture in .* can be used\. a\.png: "):
        folder.read(tmp_path)


def test_a_network_of_other_classes_is_told_how_weights_are_named(tmp_path):
    picture(tmp_path / "quokka" / "0.png", 1)
    with pytest.raises(UnknownNameError, match=r"Known: bus, cat\. If weights of yours know"):
        folder.read(tmp_path, ("cat", "bus"))
    (tmp_path / "quokka").rename(tmp_path / "cats")
    with pytest.raises(UnknownNameError, match=r"Did you mean cat\?$"):
        folder.read(tmp_path, ("cat", "bus"))
