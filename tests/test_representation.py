"""Networks as YAML of few kinds of layers: there and back, changed by hand, extended."""

import dataclasses
import itertools
import json

import pytest
import torch
from described_networks import Block, assert_equal, pictures, randomized
from torch import nn

from labutils import representation
from labutils.errors import ModelFileError
from labutils.models import zoo
from labutils.representation import Description, Layer

TEXT = """format: 1
name: two
input: [3, 8, 8]
output: head
layers:
- {name: body.conv, op: conv, out: 4, kernel: 3, stride: 2, pad: 1, weights: body.conv}
- {name: body.act, op: hardswish}
- {name: pool, op: global_avg_pool}
- {name: flat, op: flatten}
- {name: head, op: linear, out: 2, bias: true, weights: head}
"""


@pytest.fixture(scope="module")
def block():
    return randomized(Block())


@pytest.fixture(scope="module")
def described(block):
    return representation.import_torch(block, 8, "block")


# --- there and back ---------------------------------------------------------------------------


def test_a_network_comes_back_bit_for_bit(block):
    description, weights = assert_equal(block, 8)
    assert {layer.name for layer in description.layers} >= {"stem", "norm", "gate.1", "head"}
    assert set(weights) == {n for n in block.state_dict() if "num_batches" not in n}


def test_layers_that_are_called_by_numbers_come_back():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).eval()
    description, _ = assert_equal(plain, 8)
    assert "output: '3'" in description.to_yaml()


def test_hyper_parameters_stand_in_the_text(described):
    text = described[0].to_yaml()
    stem = next(line for line in text.splitlines() if "name: stem" in line)
    assert stem == "- {name: stem, op: conv, out: 8, kernel: [3, 5], stride: 2, pad: [1, 2], " \
        "weights: stem}"  # fmt: skip
    assert "- {name: norm, op: batch_norm, eps: 0.001, weights: norm}" in text
    assert "op: shuffle, groups: 2" in text and "from: [" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_large", "fbnet_a"])
def test_the_networks_of_the_lab_come_back_bit_for_bit(name):
    network = zoo.load(name, "random", 64).module
    description, weights = assert_equal(network, 64, n=2)
    assert len(description.to_yaml().encode()) < 30_000
    built = representation.emit_torch(description, weights)
    names = set(network.state_dict())
    assert set(built.state_dict()) == names  # hierarchy and all


# --- changed by hand --------------------------------------------------------------------------


def test_a_layer_that_is_renamed_by_hand_keeps_its_weights(block, described):
    description, weights = described
    text = description.to_yaml().replace("name: stem,", "name: first.layer,")
    made = representation.emit_torch(representation.read(text), weights)
    assert torch.equal(made.get_submodule("first.layer").weight, block.stem.weight)
    assert representation.bit_equal(made, block, pictures(1, 8))


def test_a_kernel_that_is_changed_by_hand_is_built(described):
    description, weights = described
    text = description.to_yaml().replace("kernel: [3, 5], stride: 2, pad: [1, 2]",
                                         "kernel: 5, stride: 2, pad: 2")  # fmt: skip
    changed = representation.read(text)
    made = representation.emit_torch(changed)
    assert made.stem.weight.shape == (8, 3, 5, 5)
    assert made(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    with pytest.raises(ModelFileError, match=r"stem\.weight must have the shape .*5, 5"):
        representation.emit_torch(changed, weights)
    missing = {name: value for name, value in weights.items() if name != "head.bias"}
    with pytest.raises(ModelFileError, match=r"there are no weights head\.bias"):
        representation.emit_torch(description, missing)


def test_more_channels_reach_the_layers_behind_them():
    made = representation.emit_torch(representation.read(TEXT.replace("out: 4", "out: 6")))
    assert made.head.in_features == 6
    first = representation.emit_torch(representation.read(TEXT))
    assert torch.equal(
        first.head.weight, representation.emit_torch(representation.read(TEXT)).head.weight
    )


@pytest.mark.parametrize(
    "change, line, words",
    [
        (("op: hardswish", "op: hardswich"), 7, "did you mean hardswish?"),
        (("op: hardswish", "op: aten.hardswish"), 7, "no kind of layers named 'aten.hardswish'"),
        (("kernel: 3", "kernell: 3"), 6, "unknown key; did you mean kernel?"),
        (("out: 4", "out: four"), 6, "expected a whole number, found 'four'"),
        (("out: 4, ", ""), 6, "'out' is missing"),
        (("name: flat,", "name: pool,"), 9, "two layers are named 'pool'"),
        (("op: flatten", "op: flatten, from: poll"), 9, "did you mean pool?"),
        (("name: flat,", "name: body,"), 9, "body.* is inside body"),
        (("output: head", "output: heads"), 4, "did you mean head?"),
        (("input: [3, 8, 8]", "input: [3, 8]"), 3, "channels, height and width"),
        (("format: 1", "format: 7"), 1, "newer version"),
        (("name: flat,", "name: flat.,"), 9, "expected a name"),
        (("name: flat,", "name: training,"), 9, "has something named 'training' itself"),
        (("name: flat,", "name: a.forward.b,"), 9, "has something named 'forward' itself"),
        (("out: 4", "out: 0"), 6, "0 is below 1"),
        (("kernel: 3", "kernel: [3, 3, 3]"), 6, "kernel: expected a number from 1 on, or two"),
        (("kernel: 3", "kernel: 3, groups: 0"), 6, "groups: 0 is below 1"),
        (("stride: 2", "stride: 0"), 6, "stride: expected a number from 1 on"),
        (("pad: 1", "pad: -1"), 6, "pad: expected a number from 0 on"),
        (("op: flatten", "op: gelu, approximate: none at all"), 9, "is not one of none, tanh"),
        (
            ("op: flatten", "op: parameter, tensor: training, shape: [1]"),
            9,
            "PyTorch does not build it: .*training",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(change, line, words):
    assert change[0] in TEXT
    with pytest.raises(ModelFileError, match=rf"my\.yaml, line {line}: .*{words}"):
        representation.read(TEXT.replace(*change, 1), "my.yaml")


def test_layers_that_do_not_fit_are_named():
    with pytest.raises(ModelFileError, match=r"body\.conv \(conv\) does not take inputs of shape"):
        representation.emit_torch(representation.read(TEXT.replace("kernel: 3", "kernel: 99")))


def test_a_layer_that_was_made_in_python_is_named():
    flatten = representation.KINDS["flatten"]()
    layers = (Layer("training", flatten, ("input",)),)
    with pytest.raises(ModelFileError, match=r"made: the layer training \(flatten\) is not built"):
        representation.emit_torch(Description("made", (3, 8, 8), layers, "training"))


def test_a_deep_network_is_read_again():
    conv = representation.KINDS["conv"](out=3, kernel=3, pad=1, bias=True)
    names = ["input", *(f"features.{number}.conv" for number in range(1000))]
    layers = [Layer(name, conv, (before,), name) for before, name in itertools.pairwise(names)]
    deep = Description("deep", (3, 8, 8), tuple(layers), names[-1])
    assert representation.read(deep.to_yaml()) == deep
    bomb = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    for name, before in zip("bcdefg", "abcdef", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    with pytest.raises(ModelFileError, match="more than 100,000 values, what aliases stand for"):
        representation.read(bomb)


# --- the command line -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_and_builds(lab, tmp_path):
    file = tmp_path / "small.yaml"
    options = ["--weights", "random", "--size", "32", "-o", file]
    code, out, said = lab("represent", "mobilenet_v3_small", *options)
    assert code == 0, said
    assert "bit-equal to PyTorch" in out and file.with_suffix(".safetensors").is_file()
    code, out, _ = lab("represent", file, "--json")
    found = json.loads(out)
    assert code == 0 and found["weights"] and found["kinds"]["conv"] > 40
    file.with_suffix(".safetensors").unlink()
    assert "initial weights" in lab("represent", file)[1]


@pytest.mark.slow
def test_the_command_takes_an_exported_program(lab, tmp_path, block):
    """Also one that takes a single picture, and whose modules are gone."""
    pt2, file = tmp_path / "block.pt2", tmp_path / "block.yaml"
    torch.export.save(torch.export.export(block, (pictures(1, 8),)), pt2)
    code, out, said = lab("represent", pt2, "-o", file)
    assert code == 0, said
    assert "bit-equal to PyTorch on 1 random picture" in out
    weights = representation.import_torch(block, 8)[1]
    made = representation.emit_torch(representation.load(file), weights)
    assert representation.bit_equal(made, block, pictures(1, 8))


@pytest.mark.parametrize(
    "words, said",
    [
        (("mobilenet_v3_small",), "Pass -o FILE.yaml"),
        (("x.yaml", "-o", "y.yaml"), "leave out -o"),
        (("not_there.yaml",), "Cannot read not_there.yaml"),
    ],
)
def test_calls_that_cannot_be_meant(lab, words, said):
    code, _, told = lab("represent", *words)
    assert code == 2 and said in told


def test_a_description_is_plain_data(described):
    assert dataclasses.asdict(described[0].layers[0])["name"] == "stem"
