"""`labutils train`: weights that fit are taken, renamed where asked; QAT by two routes."""

import json

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from labutils import __main__, manifests, runtime
from labutils.commands import training
from labutils.errors import ModelFileError
from labutils.images import data
from labutils.models import checkpoint, zoo

SHORT = ("--steps", "2", "--size", "32", "--images", "64")


@pytest.fixture
def lab(capsys):
    def call(*arguments):
        code = __main__.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A checkpoint as another project would write it: other names and classes, one tensor more."""
    state = zoo.load("mobilenet_v3_small", "things16").module.state_dict()
    state = {f"backbone.{name}": values for name, values in state.items()}
    state["backbone.classifier.3.weight"] = torch.zeros(7, 1024)
    state["backbone.classifier.3.bias"] = torch.zeros(7)
    state["ema.decay"] = torch.tensor(0.9)
    path = tmp_path_factory.mktemp("foreign") / "foreign.pth"
    torch.save(state, path)
    return path


@pytest.mark.slow
def test_weights_that_fit_are_taken_and_what_happened_is_said(lab, foreign, tmp_path, few_pictures):
    out = tmp_path / "tuned.safetensors"
    renames = ("--rename", r"^backbone\.=")
    code, said, err = lab(
        "train", "mobilenet_v3_small", "--from", foreign, *renames, *SHORT, "-o", out
    )
    assert code == 0, err
    said += err
    assert "242 of 244 tensors loaded" in said and "242 renamed" in said
    assert "of another shape, not taken: classifier.3.weight (7, 1024) for (16, 1024)" in said
    assert "1 in the file only: ema.decay" in said and "Fine-tuned for 2 steps" in said
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["n"] == data.VALIDATION_IMAGES == 64 and card["from"]["unexpected"] == ["ema.decay"]
    tuned, origin = checkpoint.state_dict(out), torch.load(foreign)
    name = "features.4.block.0.0.weight"
    assert torch.allclose(tuned[name], origin[f"backbone.{name}"], atol=0.05)
    assert zoo.load("mobilenet_v3_small", out).classes[0] == "mug"


@pytest.mark.slow
@pytest.mark.parametrize("route", ["lab", "pt2e"])
def test_qat_by_either_route_writes_a_file_that_passed_the_gate(route, lab, tmp_path, few_pictures):
    if route == "pt2e":
        pytest.importorskip("torchao")
    out = tmp_path / "q.onnx"
    asked = ["--weights", "things16", "--recipe", "int8_qat", "--route", route, *SHORT, "-o", out]
    if route == "pt2e":
        code, _, err = lab("train", "mobilenet_v3_small", *asked)
        assert code == 2 and "takes 128 px only" in err and not out.exists()
        asked[asked.index("--size") + 1] = "128"
    code, said, err = lab("train", "mobilenet_v3_small", *asked)
    assert code == 0, said + err
    assert "Parity gate (ort_int8): passed" in said
    assert {node.op_type for node in onnx.load(out).graph.node} >= {"QuantizeLinear"}
    with runtime.connect(out) as runner:
        assert runner.run(np.zeros((1, 3, 128, 128), np.float32)).shape == (1, 16)
    assert manifests.read(out)["route"] == route
    assert f"wrote {out}" in said


@pytest.mark.slow
def test_a_trained_file_that_misses_the_gate_is_kept_under_another_name(
    lab, tmp_path, few_pictures
):
    out, config = tmp_path / "q.onnx", tmp_path / "steep.yaml"
    config.write_text("format: 1\nlearning_rate: 0.5\n")
    asked = ["--weights", "things16", "--recipe", "int8_qat", *SHORT, "--config", config]
    code, said, err = lab("train", "mobilenet_v3_small", *asked, "-o", out)
    assert code == 1 and "ParityError" in err and not out.exists(), said + err
    kept = tmp_path / "q.failed.onnx"
    assert f"kept as {kept}" in err and "--steps" in err
    assert {file.name for file in tmp_path.iterdir()} == {kept.name, config.name}
    with runtime.connect(kept) as runner:
        assert runner.run(np.zeros((1, 3, 128, 128), np.float32)).shape == (1, 16)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-o", "x.onnx"), "writes a .safetensors file"),
        (("-o", "x.safetensors", "--rename", "a=b"), "--from"),
        (("-o", "x.safetensors", "--route", "pt2e"), "--recipe"),
        (("-o", "x.safetensors", "--steps", "0"), "--steps must be at least 1"),
        (("-o", "x.onnx", "--recipe", "int8_qat", "--from", "a.pth"), "in float first"),
        (("-o", "x.safetensors", "--from", "a.pth", "--rename", "a"), "OLD=NEW"),
    ],
)
def test_a_call_that_contradicts_itself_is_refused_before_anything_runs(arguments, words, lab):
    code, _, err = lab("train", "mobilenet_v3_small", *arguments)
    assert code == 2 and words in err


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("/proc/x.safetensors", "Cannot write /proc/x.safetensors"),
        ("file/x.safetensors", "is a file, not a folder"),
        ("taken.safetensors", "taken.json: it is a folder"),
    ],
)
def test_where_the_result_goes_is_tried_before_the_training(output, words, lab, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.json").mkdir()
    # the weights, which come next, would be refused otherwise
    asked = ("--weights", "no-such-file", "-o", tmp_path / output)
    code, _, err = lab("train", "mobilenet_v3_small", *asked)
    assert code == 2 and words in err


@pytest.mark.parametrize(
    ("option", "words"),
    [(("--size", "0"), "size: 0 is below 16"), (("--images", "0"), "images: 0 is below 1")],
)
def test_an_option_is_checked_as_its_setting_is(option, words, lab, tmp_path):
    asked = ("--weights", "no-such-file", *option, "-o", tmp_path / "x.safetensors")
    code, _, err = lab("train", "mobilenet_v3_small", *asked)
    assert code == 2 and words in err


def test_weights_are_an_ordinary_file_and_the_card_of_earlier_ones_goes_first(tmp_path):
    out, card = tmp_path / "w.safetensors", tmp_path / "w.json"
    card.write_text("{}")
    training._write_weights(torch.nn.Linear(2, 3), out)
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
    (tmp_path / "plain").write_text("")
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_card_of_other_weights_is_refused(tmp_path):
    known = zoo.load("mobilenet_v3_small", "things16").module.state_dict()
    out, card = tmp_path / "w.safetensors", tmp_path / "w.json"
    save_file(known, out)
    card.write_text(json.dumps({"classes": [f"old {i}" for i in range(16)], "sha256": "0" * 64}))
    with pytest.raises(ModelFileError, match=r"w\.json describes another file than w\.safetensors"):
        zoo.load("mobilenet_v3_small", out)
    card.write_text(json.dumps({"classes": [f"own {i}" for i in range(16)]}))
    assert zoo.load("mobilenet_v3_small", out).classes[3] == "own 3"
