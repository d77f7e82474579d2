"""Pictures that fit the model: the lab's drawings, photographs, or drawings without labels."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from labutils.errors import UnknownNameError, UsageError
from labutils.images import data, things
from labutils.models import gallery, zoo
from labutils.pipeline import quantization, steps

DRAWN = zoo.Model(
    name="drawn",
    module=None,
    preprocessing=data.Preprocessing(32),
    classes=things.CLASSES,
    weights="things16",
    note="",
    trained=True,
)
PHOTOS = replace(DRAWN, classes=("tabby", "tiger cat", "lynx"), weights="imagenet")


@pytest.fixture(autouse=True)
def no_photographs(monkeypatch):
    monkeypatch.delenv("LABUTILS_PHOTOGRAPHS", raising=False)
    monkeypatch.setattr(gallery.photographs, "imagenette", lambda: None)


def test_the_labs_weights_are_judged_on_things_16():
    images = gallery.pictures(DRAWN, 5)
    assert images.images.shape == (5, 32, 32, 3)
    assert gallery.truth(images, 3) == things.CLASSES[3]


@pytest.mark.parametrize("name", data.DRAWN)
def test_what_calibrates_and_compares_is_of_the_set_that_was_learned(name):
    known = data.drawn(name)
    model = replace(DRAWN, classes=known.CLASSES, weights=name)
    _, calibration = quantization._choose_recipe("int8", 3, model)
    compared = quantization._held_out(model, 3)
    assert calibration.source.startswith(f"{known.TITLE} calib")
    assert compared.source.startswith(f"{known.TITLE} val") and compared.labels.tolist() == [
        0,
        1,
        2,
    ]
    drawn = gallery.pictures(model, 3)
    assert drawn.source == compared.source
    np.testing.assert_array_equal(
        steps.gate_inputs(model, 3), model.known_preprocessing()(np.asarray(drawn.images))
    )


def test_other_weights_get_pictures_whose_labels_do_not_count():
    images = gallery.pictures(PHOTOS, 5)
    logits = np.eye(5, 3, dtype=np.float32)
    assert set(images.labels) == {data.NO_LABEL}
    assert gallery.truth(images, 0) == ""
    assert gallery.accuracy(logits, images) is None
    assert "LABUTILS_PHOTOGRAPHS" in images.source


def test_photographs_are_labelled_with_the_models_own_numbers(tmp_path, monkeypatch):
    for name, colour in (("lynx", "red"), ("tiger cat", "blue")):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 50), colour).save(tmp_path / "val" / name / "a.png")
    monkeypatch.setenv("LABUTILS_PHOTOGRAPHS", str(tmp_path))
    images = gallery.pictures(PHOTOS, 96)
    assert [gallery.truth(images, i) for i in range(len(images))] == ["tiger cat", "lynx"]
    logits = np.array([[0, 0, 1], [0, 0, 1]], np.float32)
    assert str(gallery.accuracy(logits, images)).startswith("50.0 %")


def test_photographs_calibrate_where_they_are_and_never_judge_too(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_PHOTOGRAPHS", str(tmp_path))
    for i in range(20):
        (tmp_path / "lynx").mkdir(exist_ok=True)
        Image.new("RGB", (40, 50), (10 * i, 0, 0)).save(tmp_path / "lynx" / f"{i}.png")
    calib, val = (
        set(gallery.pictures(PHOTOS, 96, split).images[:, 0, 0, 0]) for split in ("calib", "val")
    )
    assert calib and val and not val & calib


def test_drawings_that_calibrate_other_weights_say_so():
    images = gallery.pictures(PHOTOS, 5, "calib")
    assert images.source.startswith("Things-16 calib") and "calibrate with those" in images.source
    assert np.array_equal(images.images, data.calibration(5, 32).images)
    assert np.array_equal(gallery.pictures(DRAWN, 5, "calib").images, images.images)


def test_untrained_networks_are_not_judged_on_photographs(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_PHOTOGRAPHS", str(tmp_path))
    images = gallery.pictures(replace(PHOTOS, trained=False), 2)
    assert set(images.labels) == {data.NO_LABEL}


def test_only_known_labels_count():
    images = data.ImageSet(
        np.zeros((3, 32, 32, 3), np.uint8), np.array([0, data.NO_LABEL, 1]), ("a", "b"), ""
    )
    logits = np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    found = gallery.accuracy(logits, images)
    assert (found.hits, found.n) == (1, 2)
    with pytest.raises(UsageError, match="2 rows of logits for 3"):
        gallery.accuracy(logits[:2], images)


def test_the_difference_is_paired_and_unknown_without_labels():
    labels = np.array([0, 1, data.NO_LABEL, 1])
    images = data.ImageSet(np.zeros((4, 32, 32, 3), np.uint8), labels, ("a", "b"), "")
    right = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    wrong = right[:, ::-1]
    found = gallery.difference(wrong, right, images)
    assert (found.value, found.n) == (-100, 3)
    nobody = replace(images, labels=np.full(4, data.NO_LABEL))
    assert gallery.difference(wrong, right, nobody) is None
    with pytest.raises(UsageError, match="4 and 3 rows"):
        gallery.difference(wrong, right[:3], images)


def test_a_folder_is_labelled_as_the_model_numbers_its_classes(tmp_path):
    for i, name in enumerate(("tiger_cat", "lynx")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 50), (200 * i, 9, 9)).save(tmp_path / name / "a.png")
    model, read = gallery.in_folder(PHOTOS, tmp_path)
    assert model is PHOTOS and {used.label for used in read.files} == {1, 2}
    (tmp_path / "lnx").mkdir()
    Image.new("RGB", (40, 50), (1, 2, 3)).save(tmp_path / "lnx" / "a.png")
    with pytest.raises(UnknownNameError, match="Did you mean lynx"):
        gallery.in_folder(PHOTOS, tmp_path)
    untrained = replace(PHOTOS, trained=False)
    read = gallery.in_folder(untrained, tmp_path)[1]
    assert not read.labelled and {used.label for used in read.files} == {data.NO_LABEL}
