"""Image sets are cached, preprocessing is the formula it says."""

import numpy as np
import pytest

from labutils import paths
from labutils.errors import UnknownNameError, UsageError
from labutils.images import data, things


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path))
    return tmp_path


def cached_files(folder):
    return sorted(p.name for p in folder.rglob("*.npy"))


def test_rendered_once_then_read(own_cache, monkeypatch):
    first = data.load("val", 20, 32)
    assert cached_files(own_cache) == ["val-32-0000020.npy"]
    monkeypatch.setattr(things, "image", lambda *a: pytest.fail("drawn again"))
    again = data.load("val", 12, 32)
    np.testing.assert_array_equal(again.images, first.images[:12])
    np.testing.assert_array_equal(again.labels, first.labels[:12])


def test_a_broken_cache_file_is_drawn_again(own_cache):
    first = np.array(data.load("val", 5, 32).images)
    (file,) = own_cache.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:200])
    np.testing.assert_array_equal(data.load("val", 5, 32).images, first)


@pytest.mark.parametrize("name", data.DRAWN)
def test_every_drawn_set_is_loaded_by_its_name(own_cache, name):
    known = data.drawn(name)
    n = len(known.CLASSES) + 1
    found = data.load("calib", n, 16, name)
    assert found.classes == known.CLASSES and data.set_of(known.CLASSES) == name
    assert found.labels.tolist() == [known.label(i) for i in range(n)]
    np.testing.assert_array_equal(found.images[-1], known.image(n - 1, "calib", 16))
    assert found.source == f"{known.TITLE} calib (drawn, synthetic), {n} images at 16 px"
    (folder,) = (own_cache / name).iterdir()
    assert list(folder.iterdir())


def test_an_unknown_set_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="marked-things"):
        data.load("val", 1, 16, "marked-thing")
    assert data.set_of(("cat", "dog")) is None
    assert data.set_for(("cat", "dog")) == "things16"
    assert data.set_for(data.drawn("marked-things").CLASSES) == "marked-things"


def test_many_processes_draw_the_same_pixels_as_one(own_cache):
    together = data.load("test", 512, 16).images
    alone = np.stack([things.image(i, "test", 16) for i in range(0, 512, 37)])
    np.testing.assert_array_equal(together[::37], alone)


def test_calibration_images_are_no_validation_images():
    a, b = data.calibration(32, 32).images, data.load("val", 32, 32).images
    assert not {x.tobytes() for x in a} & {x.tobytes() for x in b}


def test_preprocessing_is_torchvisions():
    from labutils import _torchvision

    transforms = _torchvision.load().transforms
    images = data.load("val", 4, 32).images
    normalize = transforms.Normalize(data.IMAGENET_MEAN, data.IMAGENET_STD)
    expected = np.stack([normalize(transforms.ToTensor()(image)).numpy() for image in images])
    ours = data.Preprocessing(32)(images)
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_preprocessing_says_what_it_does_and_refuses_other_shapes():
    preprocessing = data.Preprocessing(32)
    assert "mean (0.485, 0.456, 0.406)" in str(preprocessing)
    with pytest.raises(UsageError, match=r"\(n, 32, 32, 3\)"):
        preprocessing(np.zeros((1, 3, 32, 32), np.uint8))
    with pytest.raises(UsageError, match="float32"):
        preprocessing(np.zeros((1, 32, 32, 3), np.float32))


def test_batches_cover_everything_in_order():
    images = data.load("val", 10, 32)
    batches = list(images.batches(4, data.Preprocessing(32)))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), images.labels)


def test_atomic_write_leaves_nothing_behind_when_it_fails(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ValueError, match="stop"), paths.atomic(target) as temporary:
        temporary.write_text("half")
        raise ValueError("stop")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
