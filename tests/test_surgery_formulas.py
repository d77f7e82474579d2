"""What surgery recognizes, and up to where: the limits in the conditions of rules."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from labutils import surgery
from labutils.errors import SurgeryError
from labutils.surgery.layers import convolution, normalization
from labutils.surgery.torch_level import gates


def graph(nodes, constants=None, shape=(1, 4, 5, 6), opset=17, kind=TensorProto.FLOAT):
    """A checked model from "x" to "y"."""
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tensors,
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(made, opset_imports=imports, ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(), [output], name=f"/{op}/{output}", **attributes)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- gates of channels


class Scaling(nn.Module):
    """Multiplies by constant factors, as a gate does."""

    def __init__(self, factors):
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors).reshape(1, 4, 1, 1))

    def forward(self, x):
        return x * self.factors


@pytest.mark.parametrize("factors, gate", [
    ([0.0, 0.2, 0.7, 1.0], True),
    ([-0.0005, 0.2, 0.7, 1.0], True),  # to within a thousandth: a gate in half precision
    ([-0.0015, 0.2, 0.7, 1.0], False),
    ([0.0, 0.2, 0.7, 1.0005], True),
    ([0.0, 0.2, 0.7, 1.0015], False),
    ([0.5, 0.5, 0.5, 0.5], False),  # one factor for all: no gate of channels
])  # fmt: skip
def test_a_gate_has_a_factor_between_0_and_1_for_each_channel(factors, gate):
    assert gates._scales_channels(Scaling(factors), 4) == gate


class Heads(nn.Module):
    """Scales its channels by what two layers say that do not lead there and back."""

    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Conv2d(8, width, 1), nn.Conv2d(6, 8, 1)

    def forward(self, x):
        mean = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.last(torch.cat([self.first(mean), mean], 1)[:, :6]))


@pytest.mark.parametrize("width, found", [(6, True), (4, False)])
def test_a_squeeze_excitation_goes_there_and_back(width, found):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 1), Heads(width), nn.ReLU6()).eval()
    rules = ["se-to-identity", "relu6-to-relu"]
    report = surgery.replace_(model, rules, example_inputs=noise(1, 3, 6, 6))
    assert report.counts["se-to-identity"] == found and report.counts["relu6-to-relu"] == 1


class Inline(nn.Module):
    """The gate is written in a forward that does more."""

    def __init__(self, pool, channels=4):
        super().__init__()
        self.pool, self.up = pool, nn.Conv2d(channels, channels, 1)
        self.act = nn.ReLU6()

    def forward(self, x):
        x = self.act(x)
        return x * torch.sigmoid(self.up(self.pool(x))) + 1


POOLS = {
    "mean": (lambda x: x.mean((2, 3), keepdim=True), 4, True),
    "mean from behind": (lambda x: x.mean((-1, -2), True), 4, True),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, 1), 4, True),
    "another adaptive": (lambda x: F.adaptive_avg_pool2d(x, (1, 1)), 4, True),
    "over channels": (lambda x: x.mean((1, 3), keepdim=True), 1, False),
    "by axis": (lambda x: x.mean(axis=(1, 3), keepdim=True), 1, False),
    "by axis alone": (lambda x: x.mean(axis=(2, 3))[:, :, None, None], 4, False),
    "of one axis": (lambda x: x.mean(3, keepdim=True), 4, False),
}


@pytest.mark.parametrize("pool, channels, gate", POOLS.values(), ids=POOLS)
def test_only_a_pool_of_the_whole_plane_makes_a_gate_of_channels(pool, channels, gate):
    model, x = Inline(pool, channels).eval(), noise(2, 4, 5, 4)
    if not gate:
        with pytest.raises(SurgeryError, match="matched nothing"):
            surgery.replace_(model, "se-to-identity", level="graph", example_inputs=x)
        return
    report = surgery.replace_(model, "se-to-identity", level="graph", example_inputs=x)
    assert report.counts == {"se-to-identity": 1}
    assert torch.equal(model(x), x.clamp(0, 6) + 1)


# ---------------------------------------------------------------- how near is the same


@pytest.mark.parametrize("slope, same", [
    (1 / 6, True), (1 / 6 + 9e-7, True), (1 / 6 - 9e-7, True),  # printed with six digits
    (1 / 6 + 1.2e-6, False), (0.16667, False), (0.2, False),
])  # fmt: skip
def test_a_slope_within_a_millionth_of_a_sixth_is_a_hardswish(slope, same):
    nodes = [node("HardSigmoid", "x", "g", alpha=slope), node("Mul", "x g", "y")]
    model = graph(nodes)
    if same:
        assert surgery.replace_(model, "hardswish").counts == {"hardswish": 1}
        return
    with pytest.raises(SurgeryError, match="matched nothing"):
        surgery.replace_(model, "hardswish")


# ---------------------------------------------------------------- what a report says


def test_outputs_that_are_not_finite_are_said_not_to_be_compared():
    model = nn.Sequential(nn.Hardswish())
    report = surgery.replace_(model, "hardswish", example_inputs=torch.full((1, 4), torch.nan))
    assert report.check is None
    assert any("not finite, so they were not compared" in note for note in report.notes)
    other = nn.Sequential(nn.Hardswish())
    compared = surgery.replace_(other, "hardswish", example_inputs=noise(1, 4))
    assert compared.check and not any("not finite" in note for note in compared.notes)
    unseen = surgery.replace_(nn.Sequential(nn.Hardswish()), "hardswish")
    assert any("without example_inputs nothing was run" in note for note in unseen.notes)


def test_a_graph_of_integers_is_compared_on_zeros():
    """Random integers would be indices out of range."""
    nodes = [
        node("Gather", "table x", "e"), node("HardSwish", "e", "y"),
    ]  # fmt: skip
    table = {"table": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
    model = graph(nodes, table, (5,), kind=TensorProto.INT64)
    report = surgery.replace_(model, "hardswish")
    assert report.counts == {"hardswish": 1} and report.check.rounding


def test_macs_are_printed_in_millions_with_two_decimals():
    model = nn.Sequential(nn.Conv2d(3, 8, 6, bias=False), nn.ReLU6())
    report = surgery.replace_(model, "lite", example_inputs=noise(1, 3, 40, 40))
    before, after = report.macs
    assert before == 8 * 3 * 36 * 35 * 35
    assert f"{before / 1e6:.2f} M -> {after / 1e6:.2f} M" in str(report)
    assert before % 1_000_000 and after % 1_000_000


# ---------------------------------------------------------------- attributes at their defaults


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ops(model):
    return sorted(n.op_type for n in model.graph.node if n.op_type != "Constant")


NORM = {"g": normal(4), "b": normal(4, seed=1), "m": normal(4, seed=2), "v": normal(4) ** 2}


def test_branches_that_state_no_attribute_are_merged_as_what_they_are():
    """Stride 1, no padding; a BatchNorm of the input is a 1x1 kernel, too."""
    nodes = [
        node("Conv", "x w0", "c0"), node("Conv", "x w1", "c1"),
        node("BatchNormalization", "x g b m v", "n"),
        node("Add", "c0 c1", "a"), node("Add", "a n", "y"),
    ]  # fmt: skip
    constants = {"w0": normal(4, 4, 1, 1), "w1": normal(4, 4, 1, 1, seed=1), **NORM}
    model = graph(nodes, constants)
    assert surgery.replace_(model, "merge-branches").check.rounding
    assert ops(model) == ["Conv"]


def test_a_normalization_whose_scale_is_computed_is_no_branch():
    nodes = [
        node("ReduceMean", "x", "s", axes=[0, 2, 3], keepdims=0),
        node("BatchNormalization", "x s b m v", "n"),
        node("Conv", "x w0", "c0"), node("Add", "c0 n", "y"),
    ]  # fmt: skip
    model = graph(nodes, {"w0": normal(4, 4, 1, 1), **NORM})
    with pytest.raises(SurgeryError, match="matched nothing"):
        surgery.replace_(model, "merge-branches")


@pytest.mark.parametrize("op, rule", [("MaxPool", "large-maxpool"),
                                      ("AveragePool", "large-avgpool")])  # fmt: skip
def test_a_pool_that_states_its_kernel_alone_moves_by_one(op, rule):
    model = graph([node(op, "x", "y", kernel_shape=[4, 5])], shape=(1, 4, 9, 8))
    assert surgery.replace_(model, rule).check.rounding
    kernels = [a.ints for n in model.graph.node for a in n.attribute if a.name == "kernel_shape"]
    assert op == "AveragePool" or max(map(max, kernels)) <= 3


def test_an_even_kernel_that_states_no_attribute_is_widened():
    model = graph([node("Conv", "x w", "y")], {"w": normal(3, 4, 2, 4)}, (1, 4, 9, 8))
    assert surgery.replace_(model, "even-kernel").check.rounding
    sizes = {t.name: list(t.dims) for t in model.graph.initializer}
    assert sizes[model.graph.node[0].input[1]] == [3, 4, 3, 5]


@pytest.mark.parametrize("attributes, mine", [
    ({"transB": 1}, False), ({}, True), ({"transB": 1, "alpha": 2.0}, True),
    ({"transB": 1, "beta": 0.5}, True), ({"alpha": 0.5, "beta": 3.0}, True),
])  # fmt: skip
def test_a_product_with_factors_or_untransposed_weights_is_written_plainly(attributes, mine):
    shape = (3, 4) if attributes.get("transB") else (4, 3)
    nodes = [node("Relu", "x", "r"), node("Gemm", "r w b", "y", **attributes)]
    model = graph(nodes, {"w": normal(*shape), "b": normal(3)}, (2, 4))
    rule = next(name for name, rule in surgery.RULES.items() if "Gemm" in name or "gemm" in name)
    if not mine:
        with pytest.raises(SurgeryError, match="matched nothing"):
            surgery.replace_(model, rule)
        return
    assert surgery.replace_(model, rule).check.rounding
    (found,) = (n for n in model.graph.node if n.op_type == "Gemm")
    assert {a.name: a.i for a in found.attribute} == {"transB": 1}


# ---------------------------------------------------------------- activations in parts

PARTS = {
    "product first": (lambda x: x * F.relu6(x + 3.0) / 6.0, True),
    "quotient first": (lambda x: x * (F.relu6(x + 3.0) / 6.0), True),
    "by its gate": (lambda x: x * F.hardsigmoid(x), True),
    "shifted, product first": (lambda x: x * F.relu6(x + 6.0) / 6.0, False),
    "shifted, quotient first": (lambda x: x * (F.relu6(x + 6.0) / 6.0), False),
    "twice as steep": (lambda x: x * (F.relu6(x + 3.0) / 3.0), False),
}


class Written(nn.Module):
    """Two convolutions with a function between them."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
        self.function, self.act = function, nn.Hardswish()

    def forward(self, x):
        return self.act(self.last(self.function(self.first(x))))


@pytest.mark.parametrize("function, hardswish", PARTS.values(), ids=PARTS)
def test_only_a_hardswish_in_parts_becomes_a_relu(function, hardswish):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Written(function).eval()
    x = noise(1, 3, 4, 4)
    wanted = F.relu if hardswish else function
    expected = F.relu(model.last(wanted(model.first(x)))).detach()
    report = surgery.replace_(model, "hardswish-to-relu", level="graph", example_inputs=x)
    assert report.counts == {"hardswish-to-relu": 1 + hardswish}
    assert torch.allclose(model(x), expected, atol=1e-6)


# ---------------------------------------------------------------- layers that replace a convolution


@pytest.mark.parametrize("padding", ["same", "valid", (2, 1)])
@pytest.mark.parametrize("kernel, dilation", [((3, 5), (1, 1)), ((4, 2), (1, 1)), ((3, 4), (2, 3))])
def test_what_a_convolution_pads_in_numbers(padding, kernel, dilation):
    conv = nn.Conv2d(2, 3, kernel, padding=padding, dilation=dilation)
    plain = nn.Conv2d(2, 3, kernel, dilation=dilation)
    plain.load_state_dict(conv.state_dict())
    x = noise(1, 2, 12, 13)
    found = plain(F.pad(x, convolution.pads_of(conv)))
    assert torch.allclose(found, conv(x), atol=1e-6)


def test_a_kernel_that_is_a_product_becomes_two_convolutions_exactly():
    conv = nn.Conv2d(5, 4, (3, 2), stride=(2, 1), padding=(1, 0))
    column, kernel = noise(4, 5), noise(5, 3, 2, seed=1)
    with torch.no_grad():
        conv.weight.copy_(column[:, :, None, None] * kernel)
    x = noise(2, 5, 9, 8)
    assert torch.allclose(convolution.make_separable(conv)(x), conv(x), atol=1e-5)


def test_a_stack_of_small_kernels_holds_the_middle_of_the_large_one():
    conv = nn.Conv2d(4, 6, 11, padding=5, stride=2)
    with torch.no_grad():
        conv.weight.copy_(F.pad(noise(6, 4, 7, 7), (2, 2, 2, 2)))
    x = noise(1, 4, 20, 20).abs()  # ReLUs between identities change nothing
    stack = convolution.make_small_kernels(conv).eval()
    assert [m.kernel_size for m in stack if isinstance(m, nn.Conv2d)] == [(3, 3), (3, 3), (7, 7)]
    assert torch.allclose(stack(x), conv(x), atol=1e-3)


@pytest.mark.parametrize("settings, made", [
    ((16, 4, 3), True), ((15, 4, 3), False), ((16, 4, 1), False), ((16, 4, (1, 3)), True),
    ((16, 16, 3, 1, 0, 1, 2), False),
])  # fmt: skip
def test_only_a_dense_convolution_of_many_channels_is_split(settings, made):
    model = nn.Sequential(nn.Conv2d(*settings), nn.ReLU6())
    report = surgery.replace_(model, ["conv-to-separable", "relu6-to-relu"])
    assert report.counts["conv-to-separable"] == made
    assert not [left for left in report.left if "Conv" in left.what]


def test_a_batch_norm_over_the_last_dimension_normalizes_each_of_its_entries():
    norm = normalization.BatchNormLast(5).train()
    x = 3 * noise(4, 6, 7, 5) + 2
    y = norm(x)
    assert y.shape == x.shape
    assert y.mean((0, 1, 2)).abs().max() < 1e-5
    assert (y.var((0, 1, 2), correction=0) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("layer", [nn.Hardswish(), nn.Sigmoid(), nn.ReLU6(), nn.SiLU()])
def test_a_layer_and_its_function_are_one_spelling(layer):
    """A pattern written with functions finds layers, too."""
    function = {nn.Hardswish: F.hardswish, nn.Sigmoid: torch.sigmoid, nn.ReLU6: F.relu6,
                nn.SiLU: F.silu}[type(layer)]  # fmt: skip

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = layer

        def forward(self, x):
            return self.act(x) + self.act(x)

    rule = surgery.pattern_rule(
        lambda x: function(x) + function(x), lambda x: x * 2, name="doubled"
    )
    model, x = Doubled().eval(), noise(2, 3)
    assert surgery.replace_(model, rule, example_inputs=x).counts == {"doubled": 1}
    assert torch.equal(model(x), 2 * x)


def test_a_resize_of_some_axes_only_is_left_with_the_reason():
    sizes = {"sizes": np.array([10, 12])}
    nodes = [node("Resize", "x   sizes", "y", axes=[2, 3], mode="nearest"), node("Relu", "x", "z")]
    nodes[0].input[:] = ["x", "", "", "sizes"]
    model = graph(nodes[:1], sizes, opset=18)
    with pytest.raises(SurgeryError, match="resizes some axes only"):
        surgery.replace_(model, "resize-to-scale")


def test_edits_say_of_which_network_they_are():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish())
    edits = surgery.edits_of(surgery.replace_(model, "hardswish"))
    assert "made with a network of" in str(edits)
    assert "made with my net of" in str(dataclasses.replace(edits, model="my net"))
