"""The map of the lab: every notebook, and what is on this machine already."""

from xml.etree import ElementTree

import pytest

from labutils.show.graphs.lab_map import lab_map


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_GENERATED", str(tmp_path))
    return tmp_path


def words(picture):
    return [element.text or "" for element in ElementTree.fromstring(picture.data).iter()]


def test_every_notebook_is_on_it():
    picture = lab_map()
    for number in [f"{n:02}" for n in range(13)]:
        assert any(said.startswith(f"{number}  ") for said in words(picture))
    assert "Nothing was made yet" in picture.alt
    assert "here already" not in words(picture)


def test_what_was_made_is_marked_in_words(folder):
    (folder / "03_mobilenet_v3_large_patched.onnx").touch()
    picture = lab_map()
    assert words(picture).count("here already") == 1
    assert "by 03." in picture.alt
