"""`diagnose --input-check`: each classic mistake is made, found, named, told from the others."""

import json

import numpy as np
import pytest
from colour_network import CLASSES, MEAN, STD, pictures, preprocessing, saved
from PIL import Image

from labutils.compare import input_check
from labutils.errors import UsageError
from labutils.images import data
from labutils.rdk import nv12_input

PIXEL_MEAN, PIXEL_STD = 255 * np.array(MEAN), 255 * np.array(STD)
IN_UNITS, IN_PIXELS = [("Sub", MEAN), ("Div", STD)], [("Sub", PIXEL_MEAN), ("Div", PIXEL_STD)]
STATED = preprocessing()
PIXELS = data.Preprocessing(32, (0,) * 3, (1 / 255,) * 3, "pixels")
UNITS = data.Preprocessing(32, (0,) * 3, (1,) * 3, "0..1")
SIGNED = data.Preprocessing(32, (0.5,) * 3, (0.5,) * 3, "-1..1")

MISTAKES = {
    "none": ({}, STATED, []),
    "none, the file normalises pixels": ({"before": IN_PIXELS}, PIXELS, []),
    "none, the file normalises 0..1": ({"before": IN_UNITS}, UNITS, []),
    "none, folded": ({"folded": True}, PIXELS, []),
    "bgr": ({"swapped": True}, STATED, ["RGB/BGR"]),
    "bgr, the file normalises": ({"swapped": True, "before": IN_PIXELS}, PIXELS, ["RGB/BGR"]),
    "twice": ({"before": IN_UNITS}, STATED, ["mean and scale twice"]),
    "twice in pixels": ({"before": IN_PIXELS}, STATED, ["mean and scale twice"]),
    "twice, folded": ({"folded": True}, STATED, ["mean and scale twice, or range"]),
    "twice and bgr": (
        {"before": IN_UNITS, "swapped": True}, STATED, ["RGB/BGR", "mean and scale twice"],
    ),
    "pixels 0..255 instead of normalised": ({}, PIXELS, ["range"]),
    "pixels 0..1 instead of normalised": ({}, UNITS, ["range"]),
    "pixels 0..1 instead of 0..255": ({"folded": True}, UNITS, ["range"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_found_and_nothing_else(case, tmp_path):
    asked, fed, kinds = MISTAKES[case]
    file = saved(tmp_path / "net.onnx", **asked)
    found = input_check.check(file, pictures(), fed)
    assert [kind for kind, _ in found.mistakes] == kinds, str(found)
    assert found.ok == (not kinds) and found.now.n == 60
    best = found.rows[0].accuracy.value
    assert best > 0.9 and (not kinds or best > found.now.value)
    assert json.loads(json.dumps(found.to_dict()))["ok"] is found.ok


@pytest.mark.parametrize(
    ("built", "fed", "kinds"),
    [
        (("video", "nv12"), {}, []),
        (("full", "nv12"), {}, []),  # its metadata say so
        (("video", "nv21"), {}, ["NV12/NV21"]),
        (("video", "nv12"), {"order": "nv21"}, ["NV12/NV21"]),
        (("video", "nv21"), {"order": "nv21"}, []),
        (("full", "nv12"), {"kind": "video"}, ["range"]),
        (("full", "nv21"), {"kind": "video"}, ["NV12/NV21", "range"]),
    ],
)
def test_a_mistake_of_the_bytes_is_found(built, fed, kinds, tmp_path):
    file = nv12_input.prepend(saved(tmp_path / "f.onnx"), tmp_path / "n.onnx", STATED, *built)
    found = input_check.check(file, pictures(), None, **fed)
    assert [kind for kind, _ in found.mistakes] == kinds, str(found)


@pytest.mark.parametrize(
    ("network", "kinds"),
    [({"swapped": True}, ["RGB/BGR"]), ({"before": IN_UNITS}, ["mean and scale twice"])],
)
def test_a_mistake_behind_the_bytes_is_found(network, kinds, tmp_path):
    plain = saved(tmp_path / "f.onnx", **network)
    file = nv12_input.prepend(plain, tmp_path / "n.onnx", STATED)
    # of bytes nobody states a mean; the network's own is close enough to ImageNet's here
    usual = data.Preprocessing(32, source="ImageNet's")
    if "before" in network:
        front = [("Sub", data.IMAGENET_MEAN), ("Div", data.IMAGENET_STD)]
        plain = saved(tmp_path / "f.onnx", before=front)
        file = nv12_input.prepend(plain, tmp_path / "n.onnx", usual)
    else:
        file = nv12_input.prepend(plain, tmp_path / "n.onnx", usual)
    found = input_check.check(file, pictures(), None)
    assert [kind for kind, _ in found.mistakes] == kinds, str(found)


def test_what_states_nothing_is_told_what_it_wants(tmp_path):
    found = input_check.check(saved(tmp_path / "f.onnx", folded=True), pictures(), None)
    assert found.ok and found.now is None
    assert found.verdict == "It states no preprocessing. It answers best on RGB, pixels 0 to 255."


def test_pictures_without_labels_are_refused(tmp_path):
    blank = pictures()
    blank = data.ImageSet(blank.images, np.full(60, data.NO_LABEL), CLASSES, "unknown")
    with pytest.raises(UsageError, match="these pictures have none"):
        input_check.check(saved(tmp_path / "f.onnx"), blank, STATED)


def test_colours_that_do_not_matter_are_not_told_apart(tmp_path):
    gray = pictures()
    shades = (gray.labels[:, None, None, None] * 40 + gray.images % 8).astype(np.uint8)
    shades = np.repeat(shades[..., :1], 3, axis=3)
    gray = data.ImageSet(shades, np.zeros(60, np.int64), CLASSES, "gray")
    found = input_check.check(saved(tmp_path / "f.onnx"), gray, STATED)
    assert not any(kind == "RGB/BGR" for kind, _ in found.mistakes)
    assert "These pictures do not tell" in found.verdict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    drawn = pictures(60)
    for i, label in enumerate(drawn.labels):
        place = root / f"{label}_{CLASSES[label]}"
        place.mkdir(exist_ok=True)
        Image.fromarray(drawn.images[i]).save(place / f"{i}.png")
    return root


def stated():
    return ("--mean", *MEAN, "--std", *STD)


def test_the_command_says_which_mistake(lab, folder, tmp_path):
    asked = ("--input-check", "--data", folder)
    swapped = saved(tmp_path / "bgr.onnx", swapped=True)
    code, out, _ = lab("diagnose", swapped, *asked, *stated())
    assert code == 1 and "RGB/BGR: the network wants BGR and gets RGB" in out
    code, out, _ = lab("diagnose", saved(tmp_path / "f.onnx"), *asked, *stated(), "--json")
    assert code == 0 and json.loads(out)["mistakes"] == []
    file = nv12_input.prepend(tmp_path / "f.onnx", tmp_path / "n.onnx", STATED, "video", "nv21")
    code, out, _ = lab("diagnose", file, *asked)
    assert code == 1 and "NV12/NV21: NV12 read as NV21" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--nv12-range", "full"), "--nv12-range is for --input-check"),
        (("--nv12-order", "nv21"), "--nv12-order is for --input-check"),
        (("--images", 8), "--images is for --input-check"),
        (("--input-check", "--nv12-order", "nv21", "--mean", *MEAN, "--std", *STD),
         "does not take NV12 bytes: leave out --nv12-order"),
        (("--input-check", "--nv12-range", "full", "--mean", *MEAN, "--std", *STD),
         "does not take NV12 bytes"),
        (("--input-check", "--images", 0), "at least one picture"),
        (("--input-check", "--mean", *MEAN), "Give --mean and --std together"),
    ],
)  # fmt: skip
def test_the_command_refuses_what_contradicts_itself(lab, tmp_path, options, words):
    code, _, err = lab("diagnose", saved(tmp_path / "f.onnx"), *options)
    assert code == 2 and words in err
