"""Attention quantized: a vision transformer, with the same places after training and in it."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from small_networks import SIDE, inputs, vision_transformer
from torch import nn
from torch.nn import functional

from labutils import export, metrics, quantize, runtime
from labutils.errors import SurgeryError, UsageError
from labutils.quantize.presets import PRESETS
from labutils.quantize.recipe import Override, Recipe
from labutils.quantize.training import graph as qat_graph
from labutils.quantize.training import qat


@pytest.fixture(scope="module")
def network():
    return vision_transformer()


@pytest.fixture(scope="module")
def static(network, tmp_path_factory):
    """The QDQ file that quantization after training writes."""
    folder = tmp_path_factory.mktemp("static")
    export.to_onnx(network, folder / "float.onnx", size=SIDE)
    quantize.static(folder / "float.onnx", folder / "static.onnx", inputs(), "int8")
    return folder / "static.onnx"


def trained(network, recipe, path, images=8):
    model = qat.prepare(network, recipe, size=SIDE)
    qat.calibrate_(model, inputs(32))
    return model, qat.to_qdq(model, path, size=SIDE, images=inputs(images))


def places(path):
    model = onnx.load(path)
    return {n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}, Counter(
        n.op_type for n in model.graph.node
    )


def test_grids_stand_where_the_qdq_file_has_them(network, static, tmp_path):
    model, report = trained(network, "int8", tmp_path / "q.onnx")
    assert report.bit_equal > report.n / 2 and report.opset == 20  # the first with a Gelu
    assert places(report.path) == places(static)
    found = places(static)[1]
    assert found["MatMul"] == 6 and found["Softmax"] == found["Gelu"] == 1
    assert found["LayerNormalization"] == 3
    described = qat.describe(model)
    assert described.left == () and described.biases == 5  # of Conv, Gemm and 3 normalizations


def test_stored_types_are_those_of_the_static_file(network, static, tmp_path):
    trained(network, "int8", tmp_path / "q.onnx")
    kinds = []
    for path in (tmp_path / "q.onnx", static):
        model = onnx.load(path)
        stored = {t.name: t.data_type for t in model.graph.initializer}
        maker = {n.output[0]: n for n in model.graph.node}
        kinds.append(
            sorted(
                (node.name, index, stored[maker[name].input[0]])
                for node in model.graph.node
                if node.op_type in ("Conv", "Gemm", "MatMul", "LayerNormalization")
                for index, name in enumerate(node.input)
                if name in maker and maker[name].input[0] in stored
            )
        )
    assert kinds[0] == kinds[1] and len(kinds[0]) == 4 + 4 + 6


@pytest.mark.parametrize("recipe", ["a16w8", "w4a8", "pow2"])
def test_other_widths_are_written_as_they_are_trained(recipe, network, tmp_path):
    _, report = trained(network, recipe, tmp_path / "q.onnx")
    assert report.bit_equal >= report.n / 2, str(report)


def test_one_softmax_can_have_16_bits(network, tmp_path):
    wide = Override("/blocks/blocks.0/attn/*", activations=16)
    _, report = trained(network, Recipe(overrides=(wide,)), tmp_path / "q.onnx")
    assert report.bit_equal > report.n / 2, str(report)
    assert report.activations["uint16"] >= 10 and report.activations["uint8"] > 10


def test_training_moves_every_part_and_brings_four_bits_nearer(network, tmp_path):
    model, _ = trained(network, "w4a8@1", tmp_path / "before.onnx")
    images = torch.from_numpy(inputs(32))
    with torch.no_grad():
        wanted = network(images)
        before = metrics.sqnr_db(wanted.numpy(), model(images).numpy())
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-4)
    model.train()
    for _ in range(30):
        loss = (model(images) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    still = [n for n, p in model.named_parameters() if torch.equal(start[n], p)]
    assert still == [] or all("quantizers.x" in name for name in still)
    report = qat.to_qdq(model, tmp_path / "after.onnx", size=SIDE, images=inputs(8))
    assert report.bit_equal > report.n / 2, str(report)
    with runtime.OrtRunner(report.path, optimize=False) as runner:
        after = metrics.sqnr_db(wanted.numpy(), runner.run(images.numpy()))
    assert after > before + 3


class Mixture(nn.Module):
    """SiLU as a function, attention that is scaled by hand, a sum with a parameter, a split."""

    def __init__(self):
        super().__init__()
        self.embed, self.shift = nn.Conv2d(3, 16, 8, 8), nn.Parameter(0.1 * torch.randn(1, 4, 16))
        self.norm, self.pairs = nn.LayerNorm(16), nn.Linear(16, 32)
        self.out, self.head = nn.Linear(16, 16, bias=False), nn.Linear(16, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2) + self.shift
        gate, value = self.pairs(self.norm(x)).chunk(2, dim=-1)
        weights = (gate * 0.25) @ value.transpose(-2, -1)
        x = x + functional.silu(self.out(weights.softmax(dim=-1) @ value))
        return self.head(functional.gelu(x, approximate="tanh").mean(1))


def test_the_same_parts_in_another_order(tmp_path):
    torch.manual_seed(0)
    network = Mixture().eval()
    export.to_onnx(network, tmp_path / "float.onnx", size=SIDE)
    quantize.static(tmp_path / "float.onnx", tmp_path / "static.onnx", inputs(), "int8")
    _, report = trained(network, "int8", tmp_path / "q.onnx")
    assert report.bit_equal > report.n / 2, str(report)
    assert places(report.path) == places(tmp_path / "static.onnx")


def test_what_hides_its_products_is_refused_with_the_reason():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attend = nn.Conv2d(3, 16, 8, 8), nn.MultiheadAttention(16, 2)

        def forward(self, x):
            x = self.embed(x).flatten(2).permute(2, 0, 1)
            return self.attend(x, x, x)[0].mean(0)

    with pytest.raises(SurgeryError, match="'attend' is a MultiheadAttention"):
        qat.prepare(Hidden(), "int8", size=SIDE)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 16, 8, 8)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            return functional.scaled_dot_product_attention(x, x, x, is_causal=True).mean(1)

    with pytest.raises(SurgeryError, match="has a mask"):
        qat.prepare(Masked(), "int8", size=SIDE)


def test_the_official_route_says_that_it_does_not_take_attention(network, tmp_path):
    pytest.importorskip("torchao")
    from labutils.quantize import pt2e

    with pytest.raises(UsageError, match=r"convolutional networks.*--route lab"):
        pt2e.write_qdq(network, tmp_path / "q.onnx", inputs(), PRESETS["int8"])
    assert not list(tmp_path.iterdir())


def test_a_parameter_that_is_an_operand_keeps_its_whole_range(network):
    model = qat.prepare(network, "int8", size=SIDE)
    qat.calibrate_(model, inputs(32))
    constants = {n: q for n, q in qat_graph.activations_of(model).items() if q.constant}
    position = constants["quantizers.pos_embed"]
    values = network.pos_embed.detach()
    assert position.low.item() == pytest.approx(values.min().item())
    assert position.high.item() == pytest.approx(values.max().item())
    assert sum("offset" in name for name in constants) == 4
    factors = constants["norm.parametrizations.weight.0"]
    assert factors.grid.bits == 8 and not factors.grid.signed
    assert np.isfinite(factors.step.item())


@pytest.mark.htp
@pytest.mark.slow
def test_the_htp_runs_trained_attention_whole(network, tmp_path):
    _, report = trained(network, "int8", tmp_path / "q.onnx")
    on_ort = runtime.OrtRunner(report.path, optimize=False).run(inputs(2))
    with runtime.connect(report.path, "htp") as runner:  # strict: no node on the CPU
        found = runner.run(inputs(2))
    assert metrics.sqnr_db(on_ort, found) > 10
