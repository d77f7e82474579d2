"""The learner's own image: kept once, at every size, under any model."""

import numpy as np
import pytest

from labutils.errors import UsageError
from labutils.images import data, own_image, things


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_GENERATED", str(tmp_path))


def test_the_default_says_so_and_knows_its_class():
    image = own_image.read(64, things.CLASSES)
    assert image.images.shape == (1, 64, 64, 3)
    assert image.images.dtype == np.uint8
    assert own_image.DEFAULT in image.source
    assert image.classes[image.labels[0]] in things.CLASSES
    assert own_image.read(64, ("dog", "cat")).labels[0] == data.NO_LABEL


def test_kept_and_found_at_another_size():
    pixels = np.zeros((90, 60, 3), np.uint8)
    pixels[:, :, 0] = 200
    own_image.keep(pixels, "cat")
    image = own_image.read(32, ("dog", "cat"))
    assert image.source == own_image.OWN
    assert image.labels.tolist() == [1]
    assert (image.images[0, ..., 0] == 200).all()
    assert own_image.read(32, ("dog",)).labels[0] == data.NO_LABEL
    own_image.keep(pixels)
    assert own_image.read(32, ("dog", "cat")).labels[0] == data.NO_LABEL
    own_image.forget()
    assert own_image.DEFAULT in own_image.read(32, ("dog",)).source


def test_damaged_facts_leave_the_class_unknown():
    own_image.keep(np.zeros((8, 8, 3), np.uint8), "cat")
    own_image.files()[1].write_text("[")
    assert own_image.read(8, ("cat",)).labels[0] == data.NO_LABEL


@pytest.mark.parametrize(
    "pixels", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)]
)
def test_no_picture(pixels):
    with pytest.raises(UsageError, match="uint8 RGB"):
        own_image.keep(pixels)


def test_an_unreadable_picture_is_named():
    own_image.files()[0].write_text("no picture")
    with pytest.raises(UsageError, match=r"my_image\.png"):
        own_image.read(32, ("dog",))
