"""Names, weights and files become models; what is unsafe, foreign or damaged is refused."""

import hashlib
import json
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from labutils import _torchvision, export, fetch, metrics, paths, train
from labutils.errors import FetchError, ModelFileError, UnknownNameError, UsageError
from labutils.images import data, things
from labutils.models import checkpoint, gallery, zoo


class Bomb:
    """A pickle that would write a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture(autouse=True)
def no_imagenet(tmp_path_factory, monkeypatch):
    """A cache without ImageNet weights, and no network: what `auto` finds is up to the test."""
    monkeypatch.setattr(fetch, "cached", lambda name: None)
    monkeypatch.setenv("LABUTILS_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def own(small, tmp_path):
    """A fp16 safetensors checkpoint of `small`."""
    path = tmp_path / "own.safetensors"
    halves = {n: t.half() if t.is_floating_point() else t for n, t in small.state_dict().items()}
    safetensors.torch.save_file(halves, path)
    return path


@pytest.fixture
def shipped(own, tmp_path, monkeypatch):
    """A folder of checkpoints that holds `small`'s only."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    own.rename(folder / "mobilenet_v3_small.safetensors")
    monkeypatch.setattr(paths, "CHECKPOINTS", folder)
    return folder


def logits(model, n=8):
    images = data.load("val", n, model.preprocessing.size).images
    with torch.no_grad():
        return model.module(torch.from_numpy(model.preprocessing(images))).numpy()


def test_auto_takes_the_shipped_checkpoint_and_says_why(shipped, small):
    model = zoo.load("mobilenet_v3_small")
    assert (model.weights, model.trained, model.classes) == ("things16", True, things.CLASSES)
    assert model.preprocessing.size == 128
    assert model.input_shape == (1, 3, 128, 128)
    assert "Things-16 checkpoint" in model.note and "no ImageNet weights" in model.note
    assert "\n" not in str(model)
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())
    assert all(p.dtype == torch.float32 for p in model.module.parameters())
    inputs = torch.from_numpy(model.preprocessing(data.load("val", 4, 128).images))
    with torch.no_grad():  # the fixture's own weights, but for their rounding to half precision
        assert metrics.cosine(small(inputs).numpy(), model.module(inputs).numpy()) > 0.999


def test_auto_falls_back_to_random_and_says_why(shipped):
    model = zoo.load("mobilenet_v3_large", size=64)
    assert (model.weights, model.trained) == ("random", False)
    assert "none shipped" in model.note
    assert len(model.classes) == 1000


def test_auto_prefers_imagenet_weights_in_the_cache(shipped, tmp_path, monkeypatch):
    published = _torchvision.load().models.mobilenet_v3_small()
    torch.save(published.state_dict(), tmp_path / "published.pth")
    monkeypatch.setattr(fetch, "cached", lambda name: tmp_path / "published.pth")
    monkeypatch.setattr(fetch, "weights", lambda name: tmp_path / "published.pth")
    model = zoo.load("mobilenet_v3_small")
    assert (model.weights, model.trained) == ("imagenet", True)
    assert "found in the cache" in model.note
    assert model.classes[285] == "Egyptian cat"
    assert model.preprocessing.size == 224


def test_imagenet_means_the_vendor_cases_file_for_the_large_model(monkeypatch):
    asked = []
    monkeypatch.setattr(fetch, "weights", lambda url: asked.append(url) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        zoo.load("mobilenet_v3_large", "imagenet")
    assert asked == [fetch.WEIGHTS["mobilenet_v3_large-8738ca79.pth"]]


def test_imagenet_without_a_network_is_an_error_with_a_cure():
    with pytest.raises(FetchError, match=r"tv:|things16|random"):
        zoo.load("tv:squeezenet1_1", "imagenet")


def test_random_is_seeded_calibrated_and_leaves_the_generator_alone():
    before = torch.random.get_rng_state()
    first, second = (zoo.load("mobilenet_v3_small", "random", size=64) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name
    norms = [m for m in first.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(n.momentum == 0.01 and not n.training and n.running_mean.any() for n in norms)
    assert np.std(logits(first)) > 0.01
    calibrated = np.std(logits(first), axis=0).mean()  # between images
    for norm in norms:
        norm.reset_running_stats()
    # what the calibration is for: without it, all images look alike to the last layers
    assert np.std(logits(first), axis=0).mean() < calibrated / 100


def test_torchvision_and_timm_by_name():
    resnet = zoo.load("tv:resnet18", "random", size=32)
    assert type(resnet.module).__name__ == "ResNet"
    assert logits(resnet, 2).shape == (2, 1000)
    model = zoo.load("timm:mobilenetv3_small_100", size=64)
    assert "timm mobilenetv3_small_100" in model.preprocessing.source
    assert sum(p.numel() for p in model.module.parameters()) == 2_542_856


def test_timm_without_a_network_says_so_at_once(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"cannot be reached.*weights='random'"):
        zoo.load("timm:mobilenetv3_small_100", "imagenet")
    with pytest.raises(UsageError, match="no weights for coatnet_0_224"):
        zoo.load("timm:coatnet_0_224", "imagenet")


@pytest.mark.parametrize(
    ("name", "weights", "nearest"),
    [
        ("mobilenet_v3_larg", "auto", "mobilenet_v3_large"),
        ("resnet18", "auto", "tv:resnet18"),
        ("tv:resnet81", "auto", "resnet18"),
        ("timm:mobilenetv3_small_10", "auto", "mobilenetv3_small_100"),
        ("timm:mobilenetv3_small_100.nope", "auto", "mobilenetv3_small_100.lamb_in1k"),
        ("mobilenet_v3_small", "imagenett", "imagenet"),
    ],
)
def test_unknown_names_suggest_the_nearest(name, weights, nearest):
    with pytest.raises(UnknownNameError) as caught:
        zoo.load(name, weights)
    assert nearest in caught.value.near


def test_own_checkpoint_brings_its_number_of_classes_and_its_card(tmp_path):
    five = _torchvision.load().models.mobilenet_v3_small(num_classes=5)
    path = tmp_path / "five.pth"
    torch.save({"state_dict": {f"module.{n}": t for n, t in five.state_dict().items()}}, path)
    model = zoo.load("mobilenet_v3_small", path, size=64)
    assert model.classes == tuple(f"class {i}" for i in range(5))
    assert model.weights == str(path)
    assert torch.equal(model.module.classifier[3].weight, five.classifier[3].weight)
    path.with_suffix(".json").write_text(json.dumps({"classes": ["a", "b", "c", "d", "e"]}))
    assert zoo.load("tv:mobilenet_v3_small", path, size=64).classes == ("a", "b", "c", "d", "e")


def test_a_checkpoint_of_another_architecture_names_keys(own):
    with pytest.raises(ModelFileError, match=r"missing: conv1\.weight.*unexpected: features"):
        zoo.load("tv:resnet18", own)


def test_a_checkpoint_of_other_shapes_names_them(own, tmp_path):
    state = safetensors.torch.load_file(own)
    state["features.0.0.weight"] = torch.zeros(8, 3, 3, 3)
    safetensors.torch.save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(ModelFileError, match=r"features\.0\.0\.weight \(8, 3, 3, 3\).*\(16, 3"):
        zoo.load("mobilenet_v3_small", tmp_path / "odd.safetensors")


def test_foreign_pickles_are_refused_and_not_run(small, tmp_path):
    torch.save(small, tmp_path / "whole.pth")
    torch.save({"state_dict": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    for name in ("whole", "bomb", "plain"):
        with pytest.raises(ModelFileError, match=r"refused.*state_dict"):
            zoo.load("mobilenet_v3_small", tmp_path / f"{name}.pth")
    assert not (tmp_path / "ran").exists()


def test_damaged_and_missing_checkpoints(own, small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "whole.pth")
    for path in (own, tmp_path / "whole.pth"):
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ModelFileError, match="cut short"):
            zoo.load("mobilenet_v3_small", path)
    with pytest.raises(ModelFileError, match="no checkpoint"):
        zoo.load("mobilenet_v3_small", tmp_path / "none.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ModelFileError, match="holds a list"):
        zoo.load("mobilenet_v3_small", tmp_path / "list.pth")


def test_weights_that_learned_another_set_know_its_classes_and_get_its_pictures(
    tmp_path, monkeypatch
):
    known = data.drawn("marked-things")
    state = train.network("mobilenet_v3_small", len(known.CLASSES)).state_dict()
    file = tmp_path / "mobilenet_v3_small-marked-things.safetensors"
    safetensors.torch.save_file(state, file)
    paths.write_text(file.with_suffix(".json"), json.dumps({"classes": known.CLASSES}))
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    for name in ("mobilenet_v3_small", "timm:mobilenetv3_small_100"):
        model = zoo.load(name, "marked-things")
        assert (model.weights, model.classes) == ("marked-things", known.CLASSES)
        assert model.preprocessing.size == 128 and "Marked Things" in str(model)
        assert model.sha256 == paths.sha256(file)
    images = gallery.pictures(zoo.load("mobilenet_v3_small", "marked-things", 32), 3)
    assert images.source.startswith("Marked Things val") and images.classes == known.CLASSES


def test_things16_exists_for_two_models_only(shipped):
    with pytest.raises(UsageError, match="no Things-16 checkpoint of resnet18"):
        zoo.load("tv:resnet18", "things16")
    with pytest.raises(ModelFileError, match=r"mobilenet_v3_large\.safetensors"):
        zoo.load("mobilenet_v3_large", "things16")


def test_a_foreign_onnx_file_has_no_preprocessing_but_a_shape(small_onnx):
    model = zoo.load(small_onnx(17))
    assert model.module is None
    assert model.file == small_onnx(17)
    assert model.preprocessing is None
    assert model.input_shape == (1, 3, 64, 64)
    assert len(model.classes) == 16
    assert "states no preprocessing" in model.note
    with pytest.raises(UsageError, match="takes 64 px"):
        zoo.load(small_onnx(17), size=128)
    with pytest.raises(UsageError, match="its own weights"):
        zoo.load(small_onnx(17), "random")


def test_bad_model_files(small_onnx, tmp_path):
    (tmp_path / "cut.onnx").write_bytes(small_onnx(17).read_bytes()[:50_000])
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.pt2").write_text("not a model")
    for name in ("cut.onnx", "text.onnx", "empty.onnx", "none.onnx", "text.pt2", "none.pt2"):
        with pytest.raises(ModelFileError, match=name.replace(".", r"\.")):
            zoo.load(tmp_path / name)
    with pytest.raises(UsageError, match="weights without an architecture"):
        zoo.load(tmp_path / "x.safetensors")


@pytest.fixture(scope="module")
def program():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(4 * 36, 7))
    return torch.export.export(module.eval(), (torch.randn(1, 3, 8, 8),))


def test_an_exported_program_is_loaded_and_can_be_exported(program, tmp_path):
    torch.export.save(program, tmp_path / "x.pt2")
    model = zoo.load(tmp_path / "x.pt2")
    assert model.preprocessing is None
    assert model.input_shape == (1, 3, 8, 8)
    assert len(model.classes) == 7
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(model.module.eval()(x), program.module()(x))
    assert export.to_onnx(model, tmp_path / "x.onnx").nodes["HardSwish"] == 1


def test_an_exported_program_that_carries_a_pickle_is_refused(program, tmp_path):
    torch.export.save(program, tmp_path / "good.pt2")
    ran, bomb = tmp_path / "ran", pickle.dumps(Bomb(tmp_path / "ran"))

    def with_members(name, **changed):
        with zipfile.ZipFile(tmp_path / "good.pt2") as good, zipfile.ZipFile(name, "w") as bad:
            root = good.namelist()[0].partition("/")[0]
            for member in good.namelist():
                key = member.rpartition("/")[2].partition(".")[0]
                bad.writestr(member, changed.pop(key, None) or good.read(member))
            for key, content in changed.items():
                bad.writestr(f"{root}/data/constants/{key}", content)

    marked = json.dumps({"config": {"0.weight": {"path_name": "weight_0", "use_pickle": True}}})
    symbolic = json.dumps({"expr_str": "__import__('os')"})
    for case, changed in {
        "pickled_weight": {"model_weights_config": marked, "weight_0": bomb},
        "opaque_object": {"opaque_obj_0": bomb},
        "symbolic_shape": {"model": symbolic},
    }.items():
        with_members(tmp_path / f"{case}.pt2", **changed)
        with pytest.raises(ModelFileError, match="refused"):
            zoo.load(tmp_path / f"{case}.pt2")
    assert not ran.exists()


def test_sample_inputs_of_an_exported_program_are_read_as_tensors_only(program, tmp_path):
    torch.export.save(program, tmp_path / "good.pt2")
    torch.save(Bomb(tmp_path / "ran"), tmp_path / "bomb.pt")
    with (
        zipfile.ZipFile(tmp_path / "good.pt2") as good,
        zipfile.ZipFile(tmp_path / "bad.pt2", "w") as bad,
    ):
        for member in good.namelist():
            hit = "sample_inputs" in member
            bad.writestr(member, (tmp_path / "bomb.pt").read_bytes() if hit else good.read(member))
    with pytest.raises(ModelFileError, match=r"torch\.export\.load"):
        checkpoint.exported_program(tmp_path / "bad.pt2")
    assert not (tmp_path / "ran").exists()


def test_the_shipped_large_checkpoint_is_the_one_on_its_card(checkpoints):
    path = checkpoints / "mobilenet_v3_large.safetensors"
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]
    model = zoo.load("mobilenet_v3_large", "things16")
    assert model.classes == tuple(card["classes"])
    assert metrics.accuracy(logits(model, 64), data.load("val", 64, 128).labels).value > 0.85
