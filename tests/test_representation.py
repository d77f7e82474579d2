"""Networks as YAML of few kinds of layers: there and back, changed by hand, extended."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from labutils import paths, representation
from labutils.errors import MissingToolError, ModelFileError, TranslationError, UnknownNameError
from labutils.models import architectures, fbnet
from labutils.representation import KINDS, Operator, keras_program, operator
from labutils.representation.operator import MOST_KINDS, find
from labutils.tools import calling, environment

sys.path.insert(0, str(paths.ROOT / "benchmarks"))

import surgery_coverage

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


def randomized(network, seed=0):
    """The network with statistics and weights that are nobody's defaults."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def assert_equal(network, size, n=3):
    """A network and what its written description builds give the same bits."""
    description, weights = representation.import_torch(network, size)
    again = representation.read(description.to_yaml())
    assert again == description
    images = torch.rand(n, 3, size, size, generator=torch.manual_seed(1))
    with torch.no_grad():
        found, expected = representation.emit_torch(again, weights)(images), network(images)
    assert torch.equal(found, expected)
    return description, weights


class Block(nn.Module):
    """What mobile networks are made of, in one small network."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (3, 5), 2, (1, 2), bias=False)
        self.norm = nn.BatchNorm2d(8, eps=1e-3)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip
        self.shuffle = fbnet.ChannelShuffle(2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16 * 2 * 2, 5)

    def forward(self, x):
        x = nn.functional.hardswish(self.norm(self.stem(x)))
        x = self.shuffle(x * self.gate(x)) + 1.0
        left, right = x.chunk(2, dim=1)
        x = torch.cat([x, nn.functional.relu6(left), torch.sigmoid(right)], 1)
        x = nn.functional.max_pool2d(x, 3, 2, 1)[:, :, :, :2]
        return self.head(self.drop(x).flatten(1))


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
    network = randomized(architectures.find(name).build(16))
    description, weights = assert_equal(network, 64, n=2)
    assert len(description.to_yaml().encode()) < 30_000
    built = representation.emit_torch(description, weights)
    names = set(network.state_dict())
    assert set(built.state_dict()) == names  # hierarchy and all


REFUSED = {
    "tv:convnext_tiny", "tv:vit_b_16", "tv:swin_t", "timm:mobilenetv4_hybrid_medium",
    "timm:fastvit_t8", "timm:levit_128s", "timm:mobilevit_s", "timm:edgenext_xx_small",
    "timm:efficientformer_l1", "timm:deit_tiny_patch16_224", "timm:vit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224", "timm:convnext_atto", "timm:poolformer_s12",
}  # fmt: skip
"""Classifiers with attention, LayerNorm or layer scales, for which there are no kinds yet."""


@pytest.mark.sweep
@pytest.mark.parametrize("name", surgery_coverage.CLASSIFIERS)
def test_classifiers_come_back_bit_for_bit(name):
    size = surgery_coverage.OWN_SIZE.get(name, surgery_coverage.SIZE)
    network = randomized(surgery_coverage.built(name)[0])
    if name in REFUSED:
        with pytest.raises(TranslationError, match="no kind of layers"):
            representation.import_torch(network, size)
    else:
        assert_equal(network, size, n=1)


# --- changed by hand --------------------------------------------------------------------------


def test_a_layer_that_is_renamed_by_hand_keeps_its_weights(block, described):
    description, weights = described
    text = description.to_yaml().replace("name: stem,", "name: first.layer,")
    made = representation.emit_torch(representation.read(text), weights)
    assert torch.equal(made.get_submodule("first.layer").weight, block.stem.weight)
    images = torch.rand(1, 3, 8, 8, generator=torch.manual_seed(0))
    with torch.no_grad():
        assert torch.equal(made(images), block(images))


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
    assert torch.equal(first.head.weight, representation.emit_torch(first.description).head.weight)


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
    ],
)
def test_a_mistake_is_named_with_its_line(change, line, words):
    assert change[0] in TEXT
    with pytest.raises(ModelFileError, match=rf"my\.yaml, line {line}: .*{words}"):
        representation.read(TEXT.replace(*change, 1), "my.yaml")


def test_layers_that_do_not_fit_are_named():
    with pytest.raises(ModelFileError, match=r"body\.conv \(conv\) does not take inputs of shape"):
        representation.emit_torch(representation.read(TEXT.replace("kernel: 3", "kernel: 99")))


# --- kinds ------------------------------------------------------------------------------------


def test_there_are_few_kinds_and_none_is_pytorchs_own():
    assert len(KINDS) <= MOST_KINDS
    assert not any("aten" in kind or "." in kind for kind in KINDS)
    assert all(made.kind == kind for kind, made in KINDS.items())
    with pytest.raises(UnknownNameError, match="conv"):
        find("convv")


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Mish()

    def forward(self, x):
        return self.inner(x).flatten(1)


def test_an_operator_without_a_kind_is_refused_by_its_name():
    with pytest.raises(TranslationError, match="stands for mish, in inner") as told:
        representation.import_torch(Odd(), 4)
    assert (told.value.op_type, told.value.module) == ("mish", "inner")


def test_a_kind_is_added_in_ten_lines(monkeypatch):
    monkeypatch.setattr(sys.modules[operator.__module__], "KINDS", KINDS)
    before = dict(KINDS)

    @operator("mish", "mish", "mish_")
    class Mish(Operator):
        def torch(self):
            return nn.Mish()

        def keras(self, k, x):
            return x * k.ops.tanh(k.ops.softplus(x))

    try:
        description, _ = assert_equal(Odd().eval(), 4)
        assert [layer.operator.kind for layer in description.layers] == ["mish", "flatten"]
    finally:
        KINDS.clear()
        KINDS.update(before)


def test_a_kind_can_be_registered_twice(monkeypatch):
    """As by a cell of a notebook that is run again."""

    class Mish(Operator):
        def torch(self):
            return nn.Mish()

    try:
        first = operator("mish", "mish")(Mish)
        assert operator("mish", "mish", "mish_")(Mish) is first and first.aten == ("mish", "mish_")
    finally:
        KINDS.pop("mish", None)


def test_variants_that_a_kind_cannot_say_are_refused():
    class Variant(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    functional = nn.functional
    for function, name in (
        (lambda x: functional.hardtanh(x, -1, 1), "hardtanh"),
        (lambda x: functional.max_pool2d(x, 3, dilation=2), "max_pool2d"),
        (lambda x: functional.avg_pool2d(x, 3, padding=1), "avg_pool2d"),
        (lambda x: functional.adaptive_avg_pool2d(x, 2), "adaptive_avg_pool2d"),
        (lambda x: x[:, :, ::2], "slice"),
        (lambda x: torch.add(x, x, alpha=2), "add"),
        (lambda x: functional.pad(x, (1, 1, 1, 1), value=3.0), "pad"),
    ):
        with pytest.raises(TranslationError, match=f"stands for .*{name}"):
            representation.import_torch(Variant(function).eval(), 9)


def test_keras_is_asked_for_only_where_it_is_used(described):
    if _has_keras():
        pytest.skip("Keras is installed here")
    with pytest.raises(MissingToolError, match="labutils tools install keras"):
        representation.emit_keras(*described)


def _has_keras():
    import importlib.util

    return importlib.util.find_spec("keras") is not None


@pytest.fixture(scope="module")
def keras():
    """Keras in its own environment, where somebody installed it."""
    if environment.survey("keras").state != "installed":
        pytest.skip("`labutils tools install keras` was not run")
    with calling.opened("keras", Path(keras_program.__file__)) as tool:
        yield tool


@pytest.mark.slow
@pytest.mark.parametrize("name", ["block", "fbnet_a", "mobilenet_v3_small"])
def test_keras_computes_the_same(keras, name, tmp_path):
    size = 8 if name == "block" else 64
    network = randomized(Block() if name == "block" else architectures.find(name).build(16))
    description, weights = representation.import_torch(network, size)
    images = torch.rand(4, 3, size, size, generator=torch.manual_seed(1))
    with torch.no_grad():
        expected = network(images).numpy()
    given = {name: value.numpy() for name, value in weights.items()}
    found = keras.ask("run", text=description.to_yaml(), images=images.numpy(), **given)["logits"]
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    wrong = description.to_yaml().replace("eps: 0.001", "eps: 0.1")
    if wrong != description.to_yaml():
        found = keras.ask("run", text=wrong, images=images.numpy(), **given)["logits"]
        assert np.abs(found - expected).max() > 1e-3 * np.abs(expected).max()


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
