"""Marked Things: a class is an object and its marking; pictures are functions of their number."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labutils.errors import UnknownNameError, UsageError
from labutils.images import marked_things as marked
from labutils.images import markings, scene


def test_a_class_says_the_marking_and_the_object_and_classes_take_turns():
    assert len(set(marked.CLASSES)) == len(marked.CLASSES) == 112
    for index in range(len(marked.CLASSES)):
        drawn = marked.scene(index, "val")
        kind, thing = marked.CLASSES[drawn.label].split(" ", 1)
        assert drawn.marking.kind == kind and thing in marked.CARRIERS
    assert marked.label(112 + 5) == marked.label(5) == 5


def test_splits_never_share_an_image_and_a_number_means_one_picture():
    pictures = [marked.image(i, split, 32) for split in marked.SPLITS for i in range(40)]
    seen = {hashlib.sha256(picture.tobytes()).digest() for picture in pictures}
    assert len(seen) == len(pictures)
    assert (
        marked.digest("val", 4, 32) == marked.digest("val", 4, 32) != marked.digest("test", 4, 32)
    )


@settings(max_examples=30, derandomize=True)
@given(st.integers(0, 10**6))
def test_a_marking_differs_from_its_body_in_brightness(index):
    drawn = marked.scene(index)
    body, own = drawn.thing.palette[0], drawn.marking.colour
    difference = abs(scene.luminance(body) - scene.luminance(own))
    assert difference > 0.09  # CONTRAST, but for what clipping and black or white take away


@pytest.mark.parametrize("kind", markings.KINDS)
def test_every_marking_shows_on_the_object_but_plain(kind):
    marking = markings.Marking(kind, (1.0, 1.0, 1.0), 2.5, 0.4, 0.0, (0.1, 0.2))
    matrix, centre = np.diag([0.4, 0.4]), np.array([0.5, 0.5])
    covered = markings.coverage(marking, matrix, centre, 96)
    assert covered.shape == (96, 96) and covered.min() >= 0 and covered.max() <= 1
    assert (covered.max() == 0) if kind == "plain" else (0.05 < covered.mean() < 0.95)


@pytest.mark.parametrize("kind", [kind for kind in markings.KINDS if kind != "plain"])
def test_a_marking_turns_with_its_object(kind):
    marking = markings.Marking(kind, (1.0, 1.0, 1.0), 2.5, 0.4, 0.0, (0.1, 0.2))
    centre, quarter = np.array([0.5, 0.5]), np.array([[0.0, 0.4], [-0.4, 0.0]])
    upright = markings.coverage(marking, np.diag([0.4, 0.4]), centre, 96)
    turned = markings.coverage(marking, quarter, centre, 96)
    assert np.abs(turned - np.rot90(upright, -1)).mean() < 0.01
    assert np.abs(turned - upright).mean() > 0.1 or kind == "ringed"


def test_bad_calls_are_explained():
    with pytest.raises(UnknownNameError, match="split"):
        marked.scene(0, "vall")
    with pytest.raises(UsageError, match="start at 0"):
        marked.scene(-1)
