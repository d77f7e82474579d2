"""`--data FOLDER`: one part calibrates, accuracy with its interval is measured on another."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from labutils import paths, provenance
from labutils.images import data, fasteners, folder
from labutils.models import checkpoint, zoo

NAMES = ("mug", "teapot", "fish", "leaf")
SMALL = ("mobilenet_v3_small", "--weights", "things16", "--size", 64)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """80 drawn pictures in four classes of Things-16."""
    root = tmp_path_factory.mktemp("own") / "pictures"
    pictures = data.load("test", 320, 64)
    for i, label in enumerate(pictures.labels):
        if (name := pictures.classes[label]) in NAMES:
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures.images[i]).save(root / name / f"{i}.png")
    return root


@pytest.mark.slow
def test_quantize_calibrates_on_one_part_and_judges_on_another(lab, drawn, tmp_path):
    made = tmp_path / "q.onnx"
    code, out, err = lab("quantize", *SMALL, "--data", drawn, "-o", made, "--json")
    assert code == 0, err
    read = folder.read(drawn)
    assert f"ranges     min-max over {len(read.part('train'))}" in err or "calib" in out
    told = json.loads(out)
    assert [row["n"] for row in told["ladder"]["rows"]] == [len(read.part("val"))] * 2
    assert told["ladder"]["rows"][0]["top1"]
    story = json.loads(paths.manifest(made).read_text())
    assert story["calibration"] == len(read.part("train"))
    assert story["pictures"].startswith("pictures calib")
    calibration = read.load("calib", None, 64)
    assert story["pictures_sha256"] == provenance.calibrated_on(calibration)["pictures_sha256"]

    code, out, _ = lab("run", made, "--data", drawn)
    assert code == 0 and f"(n={len(read.part('val'))})" in out
    assert out.splitlines()[-2].startswith("top-1 ") and out.splitlines()[-1].startswith("top-5 ")
    code, out, _ = lab("run", made, "--data", drawn, "--images", 3, "--json")
    assert len(json.loads(out)["rows"]) == 3 and "(n=3)" in json.loads(out)["top1"]


@pytest.mark.slow
@pytest.mark.htp
def test_a_file_that_is_quantized_already_is_judged_as_one(lab, drawn, tmp_path):
    made, few = tmp_path / "q.onnx", ("--data", drawn, "--images", 4)
    assert lab("quantize", *SMALL, *few, "--held-out", 4, "-o", made)[0] == 0
    code, out, err = lab("convert", made, "--target", "qnn", *few, "-o", tmp_path / "q.dlc")
    assert code == 0, err
    assert "q.dlc: int8 DLC for qnn" in out and "Parity gate (htp_int8): passed" in out


@pytest.mark.slow
@pytest.mark.htp
def test_convert_states_the_accuracy_of_the_dlc_itself(lab, drawn, tmp_path):
    made = tmp_path / "m.dlc"
    asked = ("--target", "qnn", "--quantize", "int8", "--images", 5, "-o", made)
    code, out, err = lab("convert", *SMALL, "--data", drawn, *asked)
    assert code == 0, err
    assert "DLC, simulated" in out and "Images: pictures val, 5 pictures at 64 px" in out
    rows = json.loads(paths.manifest(made).read_text())["ladder"]["rows"]
    assert [row["n"] for row in rows] == [5, 5]
    story, calibration = json.loads(paths.manifest(made).read_text()), folder.read(drawn)
    used = calibration.load("calib", story["calibration"], 64)
    assert story["pictures_sha256"] == provenance.calibrated_on(used)["pictures_sha256"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--calibration", "x.npz"), "takes the place of --calibration"),
        (("--inputs", "x.npz"), "takes the place of --inputs"),
        (("--images", "0"), "at least one is needed"),
        (("--held-out", "0"), "at least one is needed"),
    ],
)
def test_what_contradicts_the_folder_is_refused(lab, drawn, tmp_path, arguments, words):
    asked = ("quantize", *SMALL, "--data", drawn, *arguments, "-o", tmp_path / "q.onnx")
    code, _, err = lab(*asked)
    assert code == 2 and words in err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_class_is_named_with_the_nearest(lab, drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "p")
    (tmp_path / "p" / "fish").rename(tmp_path / "p" / "fisch")
    code, _, err = lab("run", *SMALL[:3], "--data", tmp_path / "p")
    assert code == 2 and "Did you mean fish" in err


def test_a_network_that_is_not_trained_has_no_accuracy(lab, drawn):
    code, out, _ = lab("run", "mobilenet_v3_small", "--weights", "random", "--size", 64,
                       "--data", drawn, "--images", 2)  # fmt: skip
    assert code == 0
    assert "The network is not trained, so accuracy is unknown" in out and "top-1" not in out


def test_images_of_a_folder_are_a_number(lab, drawn):
    code, _, err = lab("run", *SMALL, "--data", drawn, "--images", "a.png")
    assert code == 2 and "With --data, --images is a number" in err


def renamed(drawn, place):
    """The same pictures in classes of other names."""
    for name, other in zip(NAMES, ("cup", "pot", "carp", "oak"), strict=True):
        shutil.copytree(drawn / name, place / other)
    return place


@pytest.mark.slow
def test_other_classes_are_learned_trained_for_int8_and_run_each_by_one_command(
    lab, drawn, tmp_path
):
    own, weights, made = renamed(drawn, tmp_path / "own"), tmp_path / "w.safetensors", "q.onnx"
    few = ("--data", own, "--size", 48)
    code, out, err = lab("train", "mobilenet_v3_small", *few, "--steps", 24, "-o", weights)
    assert code == 0, err
    assert "242 of 244 tensors loaded" in out
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card["classes"] == ["carp", "cup", "oak", "pot"] and card["size"] == 128
    n = len(folder.read(own).part("val"))
    assert card["n"] == n and f"(n={n}) (before: " in out
    assert card["top1"] > 0.5

    asked = ("--recipe", "int8_qat", "--steps", 2, "-o", tmp_path / made)
    named = ("mobilenet_v3_small", "--weights", weights)
    code, out, err = lab("train", *named, *few, *asked)
    assert (tmp_path / made).exists() == (code == 0), err
    code, out, err = lab("run", *named, "--data", own)
    assert code == 0 and f"top-1 {100 * card['top1']:.1f} %" in out


@pytest.mark.slow
def test_the_last_layer_alone_leaves_the_rest_as_it_is(lab, drawn, tmp_path):
    weights = tmp_path / "w.safetensors"
    asked = ("--size", 48, "--steps", 2, "--head-only", "-o", weights)
    assert lab("train", "mobilenet_v3_small", "--data", drawn, *asked)[0] == 0
    before = zoo.load("mobilenet_v3_small", "things16").module.state_dict()
    after = checkpoint.state_dict(weights)
    changed = {name for name, values in before.items() if not torch.equal(after[name], values)}
    assert changed == {"classifier.3.weight", "classifier.3.bias"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "things16"), "--data takes the place of --set"),
        (("--head-only", "--recipe", "int8_qat"), "--head-only is for training in float"),
    ],
)
def test_a_training_that_contradicts_itself_is_refused(lab, drawn, tmp_path, arguments, words):
    out = tmp_path / ("q.onnx" if "--recipe" in arguments else "w.safetensors")
    code, _, err = lab("train", "mobilenet_v3_small", "--data", drawn, *arguments, "-o", out)
    assert code == 2 and words in err


def test_a_class_whose_pictures_are_all_damaged_stops_the_training(lab, drawn, tmp_path):
    own = renamed(drawn, tmp_path / "own")
    for file in (own / "cup").iterdir():
        file.write_bytes(b"nothing")
    (own / "empty").mkdir()
    asked = ("--data", own, "--steps", 1, "-o", tmp_path / "w.safetensors")
    code, out, err = lab("train", "mobilenet_v3_small", *asked)
    assert code == 2 and "none of the pictures of cup can be used" in err
    assert "classes without a picture that can be used: cup, empty" in out
    assert not (tmp_path / "w.safetensors").exists()


def test_what_differs_from_what_was_asked_is_said_and_on_the_card(lab, drawn, tmp_path):
    own, weights = renamed(drawn, tmp_path / "own"), tmp_path / "w.safetensors"
    for file in sorted((own / "cup").iterdir())[4:]:
        file.unlink()
    asked = ("--data", own, "--steps", 1, "--size", 32, "-o", weights)
    code, out, err = lab("train", "mobilenet_v3_small", *asked)
    assert code == 0, err
    there = len(folder.read(own).part("train"))
    assert f"Note: batches of {there} pictures, not of 64: there are {there} to train on" in out
    assert "trained at 32 px, and is judged and used at 128 px. At 32 px: top-1 " in out
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card["size"] == 128 and card["training_size"] == 32
    assert f"At 32 px: top-1 {100 * card['top1_at_training_size']:.1f} %" in out


def test_pictures_without_classes_teach_nothing(lab, drawn, tmp_path):
    shutil.copytree(drawn / "mug", tmp_path / "flat")
    out = tmp_path / "w.safetensors"
    code, _, err = lab("train", "mobilenet_v3_small", "--data", tmp_path / "flat", "-o", out)
    assert code == 2 and "has no subfolders with the names of classes" in err


def digest(images):
    return provenance.calibrated_on(images)["pictures_sha256"]


def test_the_digest_is_of_the_pictures_wherever_they_lie(drawn, tmp_path):
    known = folder.read(drawn).load("calib", 8, 32)
    moved = shutil.copytree(drawn, tmp_path / "elsewhere")
    for file in sorted(moved.rglob("*.png")):  # another kind of file, called otherwise
        Image.open(file).save(file.with_name(f"renamed_{file.stem}.bmp"))
        file.unlink()
    assert digest(folder.read(moved).load("calib", 8, 32)) == digest(known)
    words = provenance.calibrated_on(known)["pictures"]
    assert words == known.source


def test_other_pictures_and_sizes_have_another_digest_but_not_another_order(drawn):
    known = folder.read(drawn).load("calib", 8, 32)
    changed = known.images.copy()
    changed[3, 5, 7, 1] ^= 1
    other = [
        data.ImageSet(changed, known.labels, known.classes, ""),
        known.head(7),
        folder.read(drawn).load("calib", 8, 48),
        np.zeros((8, 3, 32, 32), np.float32),
    ]
    digests = [digest(images) for images in (known, *other)]
    assert len(set(digests)) == len(digests)
    reordered = data.ImageSet(known.images[::-1], known.labels, known.classes, "")
    assert digest(reordered) == digests[0]
    reshaped = np.zeros((8, 3, 16, 64), np.float32)
    assert digest(reshaped) != digests[-1]
    assert provenance.calibrated_on(reshaped)["pictures"] == "your own inputs"


KINDS = ("bolt", "gear", "nut", "washer")


@pytest.mark.slow
@pytest.mark.htp
def test_five_commands_take_200_pictures_to_a_dlc_that_was_run(lab, tmp_path, few_pictures):
    own = fasteners.write_folder(tmp_path / "own", 50, KINDS, 64)
    n = len(folder.read(own).part("val"))
    weights, files = tmp_path / "own.safetensors", [tmp_path / f"{k}.onnx" for k in ("wide", "qat")]
    named = ("mobilenet_v3_small", "--weights", weights)

    def shares(*arguments):
        """Return the shares with an interval that a command tells, by their n."""
        code, out, err = lab(*arguments, "--data", own)
        assert code == 0, f"{arguments[0]}: {out}{err}"
        told = re.findall(r"(\d+\.\d+) %?\s?\[(\d+\.\d), (\d+\.\d)\](?: \(n=(\d+)\))?", out)
        assert told and all(float(a) <= float(x) <= float(b) for x, a, b, _ in told), out
        return told, out

    told, _ = shares("train", "mobilenet_v3_small", "--steps", 30, "-o", weights)
    assert told[0][3] == str(n) and float(told[0][1]) > 25  # better than guessing
    asked = ("--recipe", "a16w8", "--size", 64, "--explain", "--layers", 1)
    _, out = shares("quantize", *named, *asked, "-o", files[0])
    assert f"own val, {n} pictures" in out and "alone" in out
    asked = ("--recipe", "int8_qat", "--size", 64, "--steps", 8)
    shares("train", *named, *asked, "-o", files[1])
    shares("convert", files[1], "--target", "qnn", "--images", 2, "-o", tmp_path / "own.dlc")
    told, _ = shares("run", tmp_path / "own.dlc", "--images", 4)
    assert told[-1][3] == "4"
