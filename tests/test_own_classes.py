"""Whose classes a network learns, and which output is whose: said, or refused in words."""

import json
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from labutils import export, provenance
from labutils.errors import UsageError
from labutils.images import data, fasteners
from labutils.models import zoo
from labutils.quantize.training import loaders, qat

KINDS = ("bolt", "gear", "nut")
FEW = ("--steps", 1, "--size", 32)
TINY = "timm:mobilenetv3_small_050"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """72 pictures in three classes that no network of the lab knows."""
    return fasteners.write_folder(tmp_path_factory.mktemp("classes") / "own", 24, KINDS, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", [TINY, "tv:shufflenet_v2_x0_5"])
def test_a_network_of_random_weights_learns_a_folder(name, lab, own, tmp_path):
    made = tmp_path / "own.safetensors"
    code, out, err = lab("train", name, "--weights", "random", "--data", own, *FEW, "-o", made)
    assert code == 0, err
    assert "has random weights, and learns the 3 classes of the pictures: bolt, gear, nut" in out
    model = zoo.load(name, made)
    assert model.classes == KINDS and model.trained
    learned = data.Preprocessing(128)  # also where the architecture's own images are made otherwise
    assert (model.preprocessing.mean, model.preprocessing.std) == (learned.mean, learned.std)
    assert model.input_shape == (1, 3, 128, 128)


def test_a_damaged_card_is_named(tmp_path):
    (tmp_path / "w.json").write_text(json.dumps({"preprocessing": {"mean": "gray"}}))
    with pytest.raises(provenance.ModelFileError, match="its preprocessing is"):
        provenance.card_preprocessing(tmp_path / "w.safetensors")


def test_other_classes_are_learned_and_both_are_named(lab, own, tmp_path):
    made = tmp_path / "own.safetensors"
    code, out, err = lab("train", "mobilenet_v3_small", "--data", own, *FEW, "-o", made)
    assert code == 0, err
    words = " ".join(out.split())
    assert "the network learns the 3 classes of the pictures: bolt, gear, nut" in words
    assert "It had 16 classes: mug, teapot," in words
    assert "2 of another shape, not taken: classifier.3.weight (16, 1024)" in words

    known = ("mobilenet_v3_small", "--weights", made)
    (own.parent / "two").mkdir()
    for name in KINDS[:2]:
        (own.parent / "two" / name).symlink_to(own / name)
    code, out, _ = lab("train", *known, "--data", own.parent / "two", *FEW, "-o", made)
    assert code == 0 and "No pictures of nut: kept as outputs, and not learned." in out
    assert zoo.load("mobilenet_v3_small", made).classes == KINDS


@pytest.mark.parametrize("weights", ["things16", "random"])
def test_training_for_a_recipe_says_what_comes_before_it(weights, lab, own, tmp_path):
    asked = ("--weights", weights, "--recipe", "int8_qat", *FEW, "-o", tmp_path / "q.onnx")
    code, _, err = lab("train", "mobilenet_v3_small", "--data", own, *asked)
    assert code == 2
    assert f"labutils train mobilenet_v3_small --data {own} -o own.safetensors" in err
    assert "--weights own.safetensors" in err


def test_a_file_with_another_number_of_outputs_is_no_folder_without_classes(lab, own, tmp_path):
    network = zoo.architectures.find("mobilenet_v3_small").build(7)
    torch.save(network.state_dict(), tmp_path / "seven.pth")
    known = ("mobilenet_v3_small", "--weights", tmp_path / "seven.pth", "--data", own)
    code, _, err = lab("train", *known, "--recipe", "int8_qat", *FEW, "-o", tmp_path / "q.onnx")
    assert code == 2 and "has 7 outputs without names" in err and "no subfolders" not in err
    code, out, _ = lab("train", *known, *FEW, "-o", tmp_path / "own.safetensors")
    assert code == 0 and "It had 7 classes: without names" in out


def test_one_class_is_nothing_to_tell_apart(lab, own, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "nut").symlink_to(own / "nut")
    asked = ("--data", tmp_path / "one", *FEW, "-o", tmp_path / "w.safetensors")
    code, _, err = lab("train", "mobilenet_v3_small", *asked)
    assert code == 2 and "shows one class only, 'nut'" in err


class Brightest(nn.Module):
    """Says which colour channel is the brightest."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def test_an_order_that_is_assumed_is_said(lab, own, tmp_path):
    file = tmp_path / "numbered.onnx"
    export.to_onnx(Brightest().eval(), file, preprocessing=data.Preprocessing(32))
    code, out, err = lab("run", file, "--data", own, "--images", 2)
    assert code == 0, err
    assert "ASSUMED: the network does not name its classes" in out
    assert "0 bolt, 1 gear, 2 nut" in out
    code, out, _ = lab("run", file, "--data", own, "--images", 2, "--json")
    names = [row["image"] for row in json.loads(out)["rows"]]
    assert len(names) == 2 and all((own / name).is_file() for name in names)


def test_a_trained_file_keeps_the_names_of_its_classes(lab, own, tmp_path):
    images = data.Preprocessing(32)(data.load("calib", 8, 32).images)
    student = qat.prepare(Brightest().eval(), "int8_qat", size=32)
    qat.calibrate_(student, images)
    shown = {"size": 32, "preprocessing": data.Preprocessing(32), "images": images}
    with pytest.raises(UsageError, match="2 classes for 3 outputs"):
        qat.to_qdq(student, tmp_path / "q.onnx", classes=("nut", "bolt"), **shown)
    assert not (tmp_path / "q.onnx").exists()
    qat.to_qdq(student, tmp_path / "q.onnx", classes=("nut", "gear", "bolt"), **shown)
    assert zoo.load(tmp_path / "q.onnx").classes == ("nut", "gear", "bolt")
    onnx.checker.check_model(str(tmp_path / "q.onnx"))
    code, out, err = lab("run", tmp_path / "q.onnx", "--data", own, "--images", 2)
    assert code == 0 and "ASSUMED" not in out, err


class Brightness(Brightest):
    """Gives one number without an axis."""

    def forward(self, x):
        return super().forward(x).mean()


def test_a_network_that_is_no_classifier_needs_no_classes(tmp_path):
    images = data.Preprocessing(32)(data.load("calib", 8, 32).images)[:1]
    student = qat.prepare(Brightness().eval(), "int8_qat", size=32)
    qat.calibrate_(student, images)
    shown = {"size": 32, "images": images}
    qat.to_qdq(student, tmp_path / "q.onnx", **shown)
    with pytest.raises(UsageError, match="3 classes for 1 output:"):
        qat.to_qdq(student, tmp_path / "r.onnx", classes=KINDS, **shown)


def test_images_that_are_not_normalized_are_warned_of():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.float32)
    for images in (pixels, pixels / 255):
        with pytest.warns(UserWarning, match="none has a value below 0: they are not normalized"):
            loaders.warn_of_pixels(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaders.warn_of_pixels(pixels / 255 - 0.5)
        loaders.warn_of_pixels(np.zeros((2, 3, 8, 8), np.float32))


def test_a_loader_of_labels_and_images_is_told_which_is_which():
    with pytest.raises(UsageError, match=r"begins with a ndarray.*images for labels, images in"):
        loaders.first_images([(torch.zeros(4), torch.zeros(4, 3, 8, 8))])
