"""Readers beside the network: sheets without labels, answers that are checked, scores counted."""

import csv
import sys

import numpy as np
import pytest
from PIL import Image

from labutils import metrics, paths
from labutils.errors import UsageError
from labutils.images import data, marked_things

sys.path.insert(0, str(paths.ROOT / "benchmarks"))

import readers

TRUTH = [marked_things.CLASSES[marked_things.label(index)] for index in readers.chosen()]


def form(path, answers):
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [("picture", "class"), *enumerate(answers, start=1)]
        csv.writer(file).writerows(rows)
    return path


def test_the_pictures_are_a_hundred_of_val_and_always_the_same():
    chosen = readers.chosen()
    assert chosen == readers.chosen() and len(set(chosen)) == 100
    assert max(chosen) < data.validation_images("marked-things")
    assert len(set(TRUTH)) > 50


def test_a_sheet_shows_each_picture_enlarged_at_its_number_and_no_label():
    pictures = [np.full((128, 128, 3), 40 + 10 * k, np.uint8) for k in range(20)]
    whole = np.asarray(readers.sheet(pictures, 21))
    assert whole.shape == (4 * (256 + 16), 5 * 256, 3)
    for k in range(20):
        x, y = k % 5 * 256, k // 5 * (256 + 16)
        assert (whole[y + 16 : y + 272, x : x + 256] == 40 + 10 * k).all()
        caption = whole[y : y + 16, x : x + 256]
        assert caption.min() < 80 and (caption[:, 60:] == 255).all()  # a number, no more


def test_sheets_come_with_the_classes_and_a_form_without_answers(tmp_path):
    files = readers.write_sheets(tmp_path)
    assert [file.name for file in files[:5]] == [f"sheet_{k}.png" for k in range(1, 6)]
    assert tuple((tmp_path / "classes.txt").read_text().splitlines()) == marked_things.CLASSES
    (first, *rows) = (tmp_path / "answers.csv").read_text().splitlines()
    assert first == "picture,class" and rows == [f"{k}," for k in range(1, 101)]
    shown = Image.open(files[0]).crop((0, 16, 256, 272)).resize((128, 128), Image.Resampling.BOX)
    picture = marked_things.image(readers.chosen()[0], "val", 128)
    assert np.corrcoef(np.asarray(shown).ravel(), picture.ravel())[0, 1] > 0.95


def test_answers_are_read_in_order_and_a_word_that_is_no_class_is_refused(tmp_path):
    assert readers.read_answers(form(tmp_path / "ann.csv", TRUTH)) == TRUTH
    with pytest.raises(UsageError, match=r"picture 3: 'spotted mug' is not one"):
        readers.read_answers(form(tmp_path / "b.csv", [*TRUTH[:2], "spotted mug", *TRUTH[3:]]))
    with pytest.raises(UsageError, match="picture 100: ''"):
        readers.read_answers(form(tmp_path / "c.csv", TRUTH[:99]))


def test_class_object_and_marking_are_counted_separately():
    given, truth = ["plain mug", "dotted mug", "plain bus"], ["plain mug", "plain mug", "plain car"]
    assert [score.hits for score in readers.scores(given, truth)] == [1, 2, 2]


def test_what_is_recorded_is_read_again(tmp_path):
    half = [*TRUTH[:50], *["plain mug"] * 50]
    given, whole = {"ann": TRUTH, "ben": half}, metrics.Proportion(80, 100)
    made = readers.written(given, half, whole, "python benchmarks/readers.py")
    (line,) = [line for line in made["readers.txt"].splitlines() if line.startswith("ann ")]
    assert line.count("100.0 %") == 3 and str(whole) in made["readers.txt"]
    paths.write_text(tmp_path / "readers.csv", made["readers.csv"])
    assert readers.recorded(tmp_path / "readers.csv") == given
