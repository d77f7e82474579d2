"""Quantization-aware training: the same numbers in PyTorch, in the file, and on two processes."""

import copy
import json
import re
from collections import Counter

import forked
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import distributed, nn

from labutils import compare, export, metrics, quantize, runtime, surgery
from labutils.errors import (
    LabError,
    StaleOptimizerError,
    SurgeryError,
    UnknownNameError,
    UsageError,
)
from labutils.images import data
from labutils.models import zoo
from labutils.quantize import tidl_hints
from labutils.quantize.presets import PRESETS
from labutils.quantize.recipe import Activations, Override, Qat, Recipe, Weights
from labutils.quantize.training import corrections, qat, qdq_export, tracing
from labutils.quantize.training import graph as qat_graph

SIZE = 64
PREPROCESSING = data.Preprocessing(SIZE)
# 4 bits and one step per tensor: nothing is left of the network, and much is to be won back
CRUDE = Recipe("crude", weights=Weights(4, per_channel=False, mse=True))


@pytest.fixture(scope="module")
def network():
    """The shipped mobilenet_v3_small: figures of a random one mean nothing here."""
    return zoo.load("mobilenet_v3_small", weights="things16").module


@pytest.fixture(scope="module")
def calibration():
    return PREPROCESSING(data.calibration(32, SIZE).images)


@pytest.fixture(scope="module")
def batch():
    return PREPROCESSING(data.load("val", 40, SIZE).images)


@pytest.fixture(scope="module")
def made(network, calibration):
    """A function recipe -> prepared and calibrated network (a copy)."""
    kept = {}

    def make(recipe):
        if recipe not in kept:
            kept[recipe] = qat.prepare(network, recipe, size=SIZE)
            qat.calibrate_(kept[recipe], calibration)
        return copy.deepcopy(kept[recipe])

    return make


def logits(model, images):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(images)).numpy()


def stored(path):
    model = onnx.load(path)
    return model, {t.name: t for t in model.graph.initializer}


# ---------------------------------------------------------------- places


def test_quantizers_stand_where_static_quantization_puts_them(network, made, tmp_path):
    source = tmp_path / "float.onnx"
    export.to_onnx(network, source, size=SIZE)
    quantize.static(source, tmp_path / "static.onnx", data.calibration(4, SIZE),
                    "int8@1", preprocessing=PREPROCESSING)  # fmt: skip
    qat.to_qdq(made("int8"), tmp_path / "trained.onnx", size=SIZE)
    static, trained = (onnx.load(tmp_path / f"{n}.onnx") for n in ("static", "trained"))

    def rounded(model):
        return {n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}

    count = [Counter(n.op_type for n in m.graph.node) for m in (static, trained)]
    assert count[0] == count[1]
    assert rounded(static) == rounded(trained)
    found = compare.per_layer(source, tmp_path / "trained.onnx", PREPROCESSING(
        data.load("val", 4, SIZE).images))  # fmt: skip
    assert len(found.rows) == 108  # every tensor has its twin in the float file


def test_exceptions_by_node_and_conversions_between_widths(network, calibration, tmp_path):
    recipe = Recipe(
        "mixed",
        overrides=(
            Override("/features/features.1/*", activations=16),
            Override("classifier.3", weights=4),  # a module path serves as well
        ),
        exclude=("/features/features.0/features.0.0/Conv",),
    )
    model = qat.prepare(network, recipe, size=SIZE)
    qat.calibrate_(model, calibration)
    found = qat.describe(model)
    assert found.weights == {8: 52, 4: 1}
    assert found.left == ("features.0.0",)
    assert found.activations[16] == 8
    report = qat.to_qdq(model, tmp_path / "mixed.onnx", size=SIZE)
    assert report.activations["uint16"] == found.activations[16]
    assert report.sqnr_db > 35
    onnx_model, values = stored(report.path)
    kinds = {n.input[0]: values[n.input[2]].data_type for n in onnx_model.graph.node
             if n.op_type == "QuantizeLinear"}  # fmt: skip
    mul = "/features/features.1/block/block.1/Mul_output_0"
    assert kinds[mul] == TensorProto.UINT16
    assert kinds["/features/features.2/block/block.0/block.0.2/Relu_output_0"] == TensorProto.UINT8
    assert report.to_dict()["weights"]["int4"] == 1


def test_replaced_activations_are_quantized_with_their_constants(network, calibration, tmp_path):
    model = copy.deepcopy(network)
    surgery.replace_(model, ["hardswish", "hardsigmoid"])
    prepared = qat.prepare(model, "int8@1", size=SIZE)
    qat.calibrate_(prepared, calibration)
    report = qat.to_qdq(prepared, tmp_path / "replaced.onnx", size=SIZE)
    assert report.sqnr_db > 40
    onnx_model, values = stored(report.path)
    floats = {n for n, t in values.items() if t.data_type == TensorProto.FLOAT}
    for node in onnx_model.graph.node:
        if node.op_type in ("Add", "Mul", "Div"):
            assert not floats & set(node.input)  # no float constant is left on a data path


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize("name", ["int8", "w4a8", "a16w8"])
def test_the_file_computes_what_the_trained_network_computes(name, made, batch, tmp_path):
    model = made(name)
    report = qat.to_qdq(model, tmp_path / "q.onnx", size=SIZE, images=batch)
    assert report.sqnr_db > 39
    onnx_model, values = stored(report.path)
    bits = {"int8": 3, "w4a8": TensorProto.INT4, "a16w8": 3}[name]
    maker = {o: n for n in onnx_model.graph.node for o in n.output}
    for conv in (n for n in onnx_model.graph.node if n.op_type in ("Conv", "Gemm")):
        weight, bias = (maker[i] for i in conv.input[1:3])
        assert {weight.op_type, bias.op_type} == {"DequantizeLinear"}
        assert values[weight.input[0]].data_type == bits  # integers, not a float and a Q
        assert values[bias.input[0]].data_type == TensorProto.INT32
    assert report.weights == {"int4" if name == "w4a8" else "int8": 54}
    assert report.bytes < {"int8": 1.95e6, "w4a8": 1.2e6, "a16w8": 1.95e6}[name]
    assert str(report.biases) in str(report)
    json.dumps(report.to_dict())


def test_powers_of_two_are_bit_exact(made, batch, tmp_path):
    report = qat.to_qdq(made("pow2"), tmp_path / "q.onnx", size=SIZE, images=batch)
    assert report.max_error == 0
    _, values = stored(report.path)
    scales = [numpy_helper.to_array(t).ravel() for n, t in values.items() if n.endswith("_scale")]
    assert (np.frexp(np.concatenate(scales))[0] == 0.5).all()
    assert "bit-equal" in str(report)


def test_a_file_that_rounds_elsewhere_is_refused(made, batch, tmp_path):
    model = made("int8")
    report = qat.to_qdq(model, tmp_path / "q.onnx", size=SIZE, images=batch)
    assert report.bit_equal > len(batch) / 2
    onnx_model, values = stored(report.path)
    scale = next(n.input[1] for n in onnx_model.graph.node if n.op_type == "QuantizeLinear")
    changed = numpy_helper.to_array(values[scale]) * np.float32(1.02)
    values[scale].CopyFrom(numpy_helper.from_array(changed, scale))
    onnx.save(onnx_model, tmp_path / "changed.onnx")
    with pytest.raises(LabError, match=f"for the best {len(batch) // 4} images of {len(batch)}"):
        qdq_export.compared(model, tmp_path / "changed.onnx", batch, "changed.onnx")


def test_flips_of_the_order_of_summation_are_no_other_rounding():
    """Of a large network with 4-bit weights, trained for long: 4 images of 10 have such a flip."""
    own = [np.inf] * 9 + [35.0] * 7
    qdq_export._refuse_departure([np.inf] * 7 + [36.7] * 9, own, "q.onnx")
    for found in ([np.inf] * 3 + [36.7] * 13, [np.inf] * 5 + [18.0] * 11):
        with pytest.raises(LabError, match=r"q\.onnx does not compute"):
            qdq_export._refuse_departure(found, own, "q.onnx")
    qdq_export._refuse_departure([30.0] * 16, [33.0] * 16, "q.onnx")  # it departs from itself, too


@pytest.mark.slow
def test_the_dynamo_exporter_writes_the_same_numbers(made, batch, tmp_path):
    model = made("w4a8")
    report = qat.to_qdq(model, tmp_path / "q.onnx", size=SIZE, opset=21, images=batch[:8])
    assert report.opset == 21
    assert report.sqnr_db > 40
    domains = {n.domain for n in onnx.load(report.path).graph.node}
    assert domains == {""}  # opset 21 has 4 bits of its own


# ---------------------------------------------------------------- training


def test_a_few_steps_bring_four_bits_nearer_to_the_teacher(network, made, batch):
    model, reference = made(CRUDE), logits(network, batch)
    before = metrics.sqnr_db(reference, logits(model, batch))
    weight = model.get_submodule("features.4.block.1.0").parametrizations.weight
    start, step = weight.original.detach().clone(), weight[0].step.detach().clone()
    done = qat.fit_(model, teacher=network, steps=8, size=SIZE, batch_size=32, images=256,
                    learning_rate=1e-3)  # fmt: skip
    assert done.steps == 8
    assert metrics.sqnr_db(reference, logits(model, batch)) > before + 1
    assert not torch.equal(start, weight.original)
    assert not torch.equal(step, weight[0].step)  # learned
    assert not model.training


def test_observed_ranges_follow_and_then_stay(network, calibration):
    recipe = PRESETS["int8"].replaced(qat=Qat(scales="observed", freeze_at=0.5))
    model = qat.prepare(network, recipe, size=SIZE)
    qat.calibrate_(model, calibration)
    watched = qat_graph.activations_of(model)["quantizers.features_12_2"]
    high = [watched.high.item()]

    def look(step, last, trained):
        high.append(watched.high.item())

    qat.fit_(model, steps=4, size=SIZE, batch_size=8, images=64, on_step=look)
    assert high[0] != high[1] != high[2]
    assert high[2] == high[3] == high[4]
    assert qat.describe(model).phase == {"frozen": 162}


def test_copies_and_state_dicts_compute_the_same(network, made, batch):
    model = made("w4a8")
    with torch.no_grad():
        model.get_submodule("classifier.0").parametrizations.weight[0].exponent.add_(0.01)
    expected = logits(model, batch)
    twin = copy.deepcopy(model)
    other = qat.prepare(network, "w4a8", size=SIZE)
    other.load_state_dict(model.state_dict())
    assert np.array_equal(logits(twin, batch), expected)
    assert np.array_equal(logits(other, batch), expected)
    assert qat.describe(other).phase == {"frozen": 162}
    with torch.no_grad():  # a copy is a copy: the rounding of biases follows its own quantizers
        twin.get_submodule("quantizers.x").exponent.add_(0.2)
    assert np.array_equal(logits(model, batch), expected)
    bias = twin.get_submodule("features.0.0").parametrizations.bias[0]
    assert bias._sources[0] is twin.get_submodule("quantizers.x")


def test_an_optimizer_from_before_is_detected(calibration):
    float_network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                                  nn.Linear(144, 2))  # fmt: skip
    stale = torch.optim.SGD(float_network.parameters(), lr=0.1)
    images = calibration[:4, :, :8, :8]
    model = qat.prepare(float_network, "int8", size=8)
    qat.calibrate_(model, images)
    model(torch.from_numpy(images)).sum().backward()
    with pytest.raises(StaleOptimizerError, match=r"SGD was built before.*0.weight") as caught:
        stale.step()
    assert caught.value.parameters == tuple(n for n, _ in float_network.named_parameters())
    assert caught.value.exit_code == 2
    fresh = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model.get_submodule("0").parametrizations.weight.original
    before = weight.detach().clone()
    fresh.step()
    assert not torch.equal(before, weight)
    float_network(torch.from_numpy(images)).sum().backward()
    stale.step()  # training the float network itself is nobody's mistake


def _rank_of_two(both_scales):
    """What one of two processes does, with each kind of scales."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for scales in both_scales:
        _train_as_rank(distributed.get_rank(), scales)
    distributed.destroy_process_group()


def _train_as_rank(rank, scales):
    torch.manual_seed(rank)
    recipe = PRESETS["int8"].replaced(qat=Qat(scales=scales, freeze_at=0.5))
    network = zoo.load("mobilenet_v3_small", weights="things16").module
    images = torch.from_numpy(data.Preprocessing(32)(data.load("calib", 16, 32).images))
    model = qat.prepare(network, recipe, size=32)
    qat.calibrate_(model, images.numpy())
    model.train()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(4):
        loss = wrapped(images[rank * 8 : rank * 8 + 8] * (1 + rank)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1:
            qat.freeze_(model)
    state = {k: v.double() for k, v in model.state_dict().items()}
    digest = torch.stack([v.sum() for v in state.values()])
    both = [torch.empty_like(digest) for _ in range(2)]
    distributed.all_gather(both, digest)
    assert torch.isfinite(digest).all()
    assert torch.equal(*both), [k for k, a, b in zip(state, *both, strict=True) if a != b][:5]
    print("equal", scales, len(state))
    del wrapped  # before its process group: as the group's last owner it could wait for ever


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path):
    codes, said = forked.two(_rank_of_two, (["learned", "observed"],), tmp_path)
    assert codes == [0, 0], said
    for text in said:
        assert re.findall(r"^equal (\w+)", text, re.M) == ["learned", "observed"]


# ---------------------------------------------------------------- corrections, hints, refusals


def test_bias_calibration_gives_back_the_means(network, made, calibration, batch):
    model, reference = made(CRUDE), logits(network, batch)
    before = metrics.sqnr_db(reference, logits(model, batch))
    report = corrections.calibrate_bias_(model, calibration)
    assert (report.layers, report.gates) == (36, 18)  # two convolutions in each of nine gates
    assert report.after < report.before / 3
    assert metrics.sqnr_db(reference, logits(model, batch)) > before + 1
    assert "channel means" in str(report)


def test_weights_are_constrained_and_reported(network):
    model = qat.prepare(network, "int8_tensor", size=SIZE)
    name = "features.12.0"
    weight = model.get_submodule(name).parametrizations.weight.original
    with torch.no_grad():
        weight[0, 0] = 90.0
    report = corrections.constrain_weights_(model, 32)
    rows = {row[0]: row for row in report.layers}
    assert rows[name][2] == 90
    assert weight.abs().max().item() == pytest.approx(rows[name][3])
    assert report.looked_at == 54
    assert name in str(report)
    again = corrections.constrain_weights_(model, 33)
    assert again.layers == ()


def test_tidl_is_told_what_it_cannot_guess(made, tmp_path):
    plain, pow2 = tmp_path / "a.onnx", tmp_path / "b.onnx"
    qat.to_qdq(made("a16w8"), plain, size=SIZE)
    qat.to_qdq(made("pow2"), pow2, size=SIZE)
    hints = json.loads(tidl_hints.write_tidl_hints(plain).read_text())
    assert hints["options"]["advanced_options:prequantized_model"] == 1
    assert hints["options"]["tensor_bits"] == 16
    assert any("asymmetric" in w for w in hints["warnings"])
    assert tidl_hints.tidl_hints(pow2)["warnings"] == []
    assert (tmp_path / "a.tidl.json").exists()


def test_what_cannot_be_trained_is_refused(network, made, calibration, tmp_path):
    cases = [
        (Recipe(calibration=PRESETS["int8"].calibration.__class__("mse")), UsageError, "by mse"),
        (PRESETS["w4a8_adaptive"], UsageError, "adaptive"),
        (Recipe(equalize=True), UsageError, "equalize"),
        (PRESETS["a16w8_room"], UsageError, "room"),
        (Recipe(weights=Weights(symmetric=False)), UsageError, "asymmetric"),
        (Recipe(input="quantized"), UsageError, "integer input"),
        (Recipe(exclude=("/features/features.99/*",)), UnknownNameError, "features.99"),
        (Recipe(overrides=(Override("no.such", weights=4),)), UnknownNameError, "no.such"),
        ("int9", UnknownNameError, "int8"),
    ]
    for recipe, error, words in cases:
        with pytest.raises(error, match=words):
            qat.prepare(network, recipe, size=SIZE)

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(SurgeryError, match="Branching cannot be traced"):
        qat.prepare(Branching(), "int8", size=8)
    with pytest.raises(UsageError, match="not calibrated"):
        qat.fit_(qat.prepare(network, "int8", size=SIZE), steps=1)
    with pytest.raises(UsageError, match="there were none"):
        qat.calibrate_(made("int8"), calibration[:0])
    with pytest.raises(UsageError, match=r"call qat.prepare"):
        qat.to_qdq(network, tmp_path / "x.onnx", size=SIZE)
    with pytest.raises(UsageError, match="opset 13"):
        qat.to_qdq(made("int8"), tmp_path / "x.onnx", size=SIZE, opset=11)
    assert not (tmp_path / "x.onnx").exists()


# ---------------------------------------------------------------- other routes and the HTP


@pytest.mark.slow
def test_torchao_takes_the_same_recipe_and_passes_the_same_gate(
    network, calibration, batch, tmp_path
):
    from labutils.quantize import pt2e

    report = pt2e.write_qdq(network, tmp_path / "ao.onnx", calibration, "int8@1")
    assert report.biases == 54
    assert report.weights == {"int8": 54}
    assert set(report.activations) == {"uint8"}
    assert report.bit_equal > report.n / 2, str(report)
    assert report.ignored == ("leaving out 1 % of the images",)
    assert "IGNORED" in str(report)
    found = compare.parity(logits(network, batch), runtime.connect(report.path).run(batch))
    assert found.sqnr_db > 7, str(found)


@pytest.mark.htp
@pytest.mark.slow
def test_trained_files_run_whole_on_the_htp(made, network, calibration, batch, tmp_path):
    mixed = Recipe("mixed", overrides=(Override("/features/features.1/*", activations=16),))
    prepared = qat.prepare(network, mixed, size=SIZE)
    qat.calibrate_(prepared, calibration)
    models = {name: made(name) for name in ("int8", "w4a8", "int8_tensor")} | {"mixed": prepared}
    for name, model in models.items():
        report = qat.to_qdq(model, tmp_path / f"{name}.onnx", size=SIZE)
        on_ort = runtime.OrtRunner(report.path, optimize=False).run(batch[:2])
        with runtime.connect(report.path, "htp") as runner:  # strict: no node on the CPU
            assert compare.parity(on_ort, runner.run(batch[:2])).sqnr_db > 5, name


def test_activations_can_be_narrowed_by_recipe():
    assert Recipe(activations=Activations(16)).kind == "a16w8"
    assert PRESETS["w4a8_qat"].qat.steps == 1000


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnet18"])
def test_other_networks_are_folded_and_traced(name):
    model = zoo.load(f"timm:{name}", weights="random", size=32).module
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.eval()(x)
        graph = tracing.trace(model, x[:1])
        assert torch.allclose(graph(x), expected, atol=1e-4 * expected.abs().max())
    assert not [m for m in graph.modules() if isinstance(m, nn.BatchNorm2d)]
    prepared = qat.prepare(model, "int8", size=32)
    qat.calibrate_(prepared, x.numpy())
    assert qat.describe(prepared).left == ()
