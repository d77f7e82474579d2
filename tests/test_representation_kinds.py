"""What each kind of layers keeps of a network, and what is refused by name."""

import pytest
import torch
from described_networks import (
    PARTS,
    SIZE,
    Block,
    F,
    Odd,
    Part,
    assert_equal,
    own_kinds,
    randomized,
)
from torch import nn

from labutils import representation
from labutils.errors import ExportError, ModelFileError, TranslationError, UnknownNameError
from labutils.representation import KINDS, Operator, operator
from labutils.representation.operator import MOST_KINDS, find


def test_there_are_few_kinds_and_none_is_pytorchs_own():
    assert len(KINDS) <= MOST_KINDS
    assert not any("aten" in kind or "." in kind for kind in KINDS)
    assert all(made.kind == kind for kind, made in KINDS.items())
    with pytest.raises(UnknownNameError, match="conv"):
        find("convv")


# --- kept -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARTS)
def test_a_part_comes_back_bit_for_bit(name):
    assert_equal(randomized(PARTS[name]), SIZE)


def test_the_parts_have_every_kind():
    networks = [randomized(network) for network in (Block(), *PARTS.values())]
    described = [representation.import_torch(network, SIZE)[0] for network in networks]
    assert {layer.operator.kind for made in described for layer in made.layers} == set(KINDS)


def test_stored_tensors_keep_their_names_and_stand_before_their_users():
    network = randomized(PARTS["convnext"])
    description, weights = representation.import_torch(network, SIZE)
    assert set(weights) == set(network.state_dict())
    names = [layer.name for layer in description.layers]
    assert names.index("scale") == names.index("mul") - 1
    assert "name: scale, op: parameter, from: [], tensor: scale, shape: [3, 1, 1]}" in (
        description.to_yaml()
    )


def test_weights_that_are_called_otherwise_are_named_by_a_pattern():
    """As in nn.MultiheadAttention, whose weights are in_proj_weight and in_proj_bias."""

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            tokens = x.flatten(1).view(len(x), -1, 8)
            return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)

    description, weights = assert_equal(randomized(Attending()), SIZE)
    assert "weights: attention.in_proj_*}" in description.to_yaml()
    assert "attention.in_proj_bias" in weights


def test_parts_of_a_network_that_are_frozen_stay_so():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    network[1].eval()
    representation.import_torch(network, SIZE)
    assert [part.training for part in network.modules()] == [True, True, False]


def test_names_that_a_text_cannot_have_are_written_otherwise():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("conv-1", nn.Conv2d(3, 4, 1))
            self.description = nn.Conv2d(4, 4, 1)
            self.input = nn.ReLU()

        def forward(self, x):
            return self.input(self.description(self.get_submodule("conv-1")(x)))

    description, weights = assert_equal(Odd().eval(), SIZE)
    assert [layer.name for layer in description.layers] == ["conv_1", "description", "input_2"]
    assert "conv-1.weight" in weights


# --- refused ----------------------------------------------------------------------------------


def _writes_through_a_view(m, x):
    x = x * 2
    x[:, 0].relu_()
    return x


def _in_another_precision(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        return x @ x


REFUSED = (
    (lambda m, x: F.hardtanh(x, -1, 1), "hardtanh"),
    (lambda m, x: F.max_pool2d(x, 3, dilation=2), "max_pool2d"),
    (lambda m, x: F.avg_pool2d(x, 3, ceil_mode=True), "avg_pool2d"),
    (lambda m, x: F.adaptive_avg_pool2d(x, 2), "adaptive_avg_pool2d"),
    (lambda m, x: torch.add(x, x, alpha=2), "add"),
    (lambda m, x: F.pad(x, (1, 1, 1, 1), value=3.0), "pad"),
    (lambda m, x: F.conv2d(x, m.even, padding="same"), "conv2d"),
    (lambda m, x: F.layer_norm(x, (8,)), "layer_norm"),
    (lambda m, x: x.mean((2, 3), dtype=torch.float64), "mean with a result of float64"),
    (lambda m, x: x.softmax(1, dtype=torch.float64), "softmax with a result of float64"),
    (lambda m, x: F.scaled_dot_product_attention(x, x, x, is_causal=True), "scaled_dot_product"),
    (lambda m, x: x.max(1)[0], "max"),
    (lambda m, x: x[:1], "slice"),
    (lambda m, x: x + len(x), "add by the number of pictures"),
    (lambda m, x: x * torch.arange(float(len(x))).view(-1, 1, 1, 1), "arange"),
    (_in_another_precision, "autocast"),
    (_writes_through_a_view, "relu_ .* in place"),
)


@pytest.mark.parametrize("function, words", REFUSED)
def test_variants_that_a_kind_cannot_say_are_refused(function, words):
    variant = Part(function, even=nn.Parameter(torch.ones(4, 3, 2, 2))).eval()
    with pytest.raises(TranslationError, match=words) as told:
        representation.import_torch(variant, 8)
    assert told.value.op_type and told.value.node


def test_a_network_has_one_result():
    with pytest.raises(TranslationError, match="has 2 results"):
        representation.import_torch(Part(lambda m, x: (x + 1, x)), SIZE)
    with pytest.raises(ExportError, match="cannot take mine"):
        representation.import_torch(Part(lambda m, x: x.numpy()), SIZE, "mine")


def test_the_first_operator_without_a_kind_is_refused_by_its_name_and_place():
    network = nn.Sequential(Odd(), nn.Tanh()).eval()
    with pytest.raises(TranslationError, match=r"stands for mish, in 0\.inner") as told:
        representation.import_torch(network, 4)
    assert (told.value.op_type, told.value.module) == ("mish", "0.inner")


# --- one's own --------------------------------------------------------------------------------


class Mish(Operator):
    def torch(self):
        return nn.Mish()


def test_a_kind_can_be_registered_twice():
    """As by a cell of a notebook that is run again."""
    with own_kinds():
        first = operator("mish", "mish")(Mish)
        assert operator("mish", "mish", "mish_")(Mish) is first and first.aten == ("mish", "mish_")
        assert_equal(Odd().eval(), 4)


def test_a_kind_of_ones_own_that_does_not_build_is_named():
    class Function(Operator):
        def torch(self):
            return torch.tanh

    with own_kinds():
        operator("mish", "mish")(Function)
        description, _ = representation.import_torch(Odd().eval(), 4)
        with pytest.raises(ModelFileError, match=r"line 6: .*torch\(\) of mish returns no module"):
            representation.read(description.to_yaml())
