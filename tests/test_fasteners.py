"""Fasteners: classes that no network of the lab has learned, as a folder of pictures."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from labutils.errors import UnknownNameError, UsageError
from labutils.images import data, fasteners, folder, markings
from labutils.images.strokes import BODY

# With the pinned numpy and Pillow. A change here changes what benchmarks/results/own_data.txt
# was measured on: record it again.
DIGEST = "09e24e1016ef7d6d8325abf4b4782692bf46dcd689b2a9530420b24008366bab"


def test_pixels_are_frozen():
    names = fasteners.class_names(fasteners.KINDS, ("plain", "zigzag"))
    drawn = b"".join(fasteners.image(name, 0).tobytes() for name in names)
    assert hashlib.sha256(drawn).hexdigest() == DIGEST


def test_no_network_of_the_lab_knows_a_class():
    names = set(fasteners.class_names(fasteners.KINDS, markings.KINDS))
    assert len(names) == len(fasteners.KINDS) * len(markings.KINDS)
    for known in data.DRAWN.values():
        assert not names & set(known.CLASSES)


def test_a_picture_is_a_function_of_class_and_number_at_every_size():
    first = fasteners.image("nut", 3, 48)
    assert first.shape == (48, 48, 3) and np.array_equal(first, fasteners.image("nut", 3, 48))
    for other in (("nut", 4), ("gear", 3), ("striped nut", 3)):
        assert not np.array_equal(first, fasteners.image(*other, 48))


@pytest.mark.parametrize("kind", fasteners.KINDS)
def test_every_kind_has_a_body_that_carries_a_marking(kind):
    for index in range(12):
        scene = fasteners._scene(f"striped {kind}", index)
        assert BODY in {stroke.slot for stroke in scene.thing.strokes}
        assert scene.marking.kind == "striped"
        reach = max(np.abs(stroke.points).max() for stroke in scene.thing.strokes)
        assert reach <= 1.2


def test_a_folder_holds_what_is_drawn(tmp_path):
    done = []
    root = fasteners.write_folder(
        tmp_path / "f", 3, ("bolt", "dotted gear"), 32,
        lambda items, description: done.append(description) or items,
    )  # fmt: skip
    found = folder.read(root)
    assert found.classes == ("bolt", "dotted gear") and len(found.files) == 6
    with Image.open(root / "dotted gear" / "0002.png") as picture:
        assert np.array_equal(np.asarray(picture), fasteners.image("dotted gear", 2, 32))
    assert done == ["drawing (pictures)"]


@pytest.mark.parametrize("name", ["screw", "stripy nut", "striped", ""])
def test_a_class_that_does_not_exist_is_refused(tmp_path, name):
    with pytest.raises(UnknownNameError):
        fasteners.image(name, 0)
    with pytest.raises(UnknownNameError):
        fasteners.write_folder(tmp_path / "f", 1, (name,))
    with pytest.raises(UsageError, match="at least one"):
        fasteners.write_folder(tmp_path / "f", 0)
    assert not (tmp_path / "f").exists()
