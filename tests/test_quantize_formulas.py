"""The formulas of quantization, each held to the sentence that states it."""

import dataclasses
import itertools
import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quant_utils

from labutils import compare, quantize, runtime
from labutils.errors import ModelFileError, UsageError
from labutils.quantize import equalize, insertion, mixed, rounding_noise, weight_scales
from labutils.quantize import ranges as quantize_ranges
from labutils.quantize.prepare import prepared
from labutils.quantize.recipe import Weights
from labutils.quantize.training import corrections, qat
from labutils.quantize.training import graph as qat_graph
from labutils.quantize.training.fake_quant import GAIN, FakeQuant, Grid

BITS = st.integers(2, 16)
ENDS = st.floats(0.01, 1e4)


def model_of(nodes, constants, path=None, shape=(1, 3, 6, 6)):
    """A model from "x" to "y"; every constant is float32."""
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(v), k) for k, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    if path:
        onnx.save(model, path)
    return model


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(), [output], name=output, **attributes)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---------------------------------------------------------------- activations: scale, zero, range


@given(ENDS, ENDS, BITS)
def test_the_scale_of_n_bits_has_2_to_the_n_minus_1_steps(low, high, bits):
    scale, zero = insertion.scale_of((-low, high), bits, symmetric=False, power_of_two=False)
    assert (high + low) / scale == pytest.approx(2**bits - 1)
    assert zero == round(low / scale)  # the code of 0
    scale, zero = insertion.scale_of((-low, high), bits, symmetric=True, power_of_two=False)
    assert 2 * max(low, high) / scale == pytest.approx(2**bits - 1)
    assert zero == 2 ** (bits - 1)


@given(ENDS, ENDS, BITS)
def test_a_power_of_two_scale_is_the_least_that_reaches(low, high, bits):
    free, _ = insertion.scale_of((-low, high), bits, symmetric=False, power_of_two=False)
    scale, _ = insertion.scale_of((-low, high), bits, symmetric=False, power_of_two=True)
    assert math.frexp(scale)[0] == 0.5
    assert free * 2**-1.01e-4 <= scale < 2 * free  # a hair beyond a power of two is that power


@given(st.floats(0.01, 100), BITS)
def test_zero_belongs_to_every_range(end, bits):
    for limits, wanted in [((end / 2, end), 0), ((-end, -end / 2), 2**bits - 1)]:
        scale, zero = insertion.scale_of(limits, bits, symmetric=False, power_of_two=False)
        assert (scale * (2**bits - 1), zero) == (pytest.approx(end, rel=1e-2), wanted)


@given(st.integers(1, 49))
def test_so_many_images_in_a_hundred_are_left_out_on_either_side(count):
    high = np.arange(101, dtype=np.float32)[:, None]
    found = quantize_ranges.Ranges(("a",), -high, high)
    assert found.limits(count / 100)["a"] == pytest.approx((count - 100, 100 - count))


@given(st.floats(80, 99.9))
def test_a_percentile_cuts_half_of_the_rest_off_at_either_end(percent):
    edges = np.linspace(-1, 1, quantize_ranges.BINS + 1)
    counts = np.full(quantize_ranges.BINS, 1000)
    low, high = quantize_ranges._percentile(counts, edges, percent)
    width = edges[1] - edges[0]
    assert (low + 1) / 2 == pytest.approx((100 - percent) / 200, abs=width)
    assert (1 - high) / 2 == pytest.approx((100 - percent) / 200, abs=width)


# ---------------------------------------------------------------- weights


CARRIERS = [
    ("Conv", {}, (4, 3, 3, 3), 0),
    ("ConvTranspose", {}, (3, 4, 3, 3), 1),
    ("Gemm", {"transB": 1}, (4, 3), 0),
    ("Gemm", {}, (3, 4), 1),
]


@pytest.mark.parametrize("op, attributes, shape, axis", CARRIERS)
def test_every_output_channel_has_a_scale_of_its_own(op, attributes, shape, axis):
    made = node(op, "x w", "y", **attributes)
    sizes = 10.0 ** np.arange(4)
    array = normal(*shape) * sizes.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    scale, zero = weight_scales.weight_scales(quantize.Recipe(), made, array, 8)
    largest = np.abs(np.moveaxis(array, axis, 0)).reshape(4, -1).max(axis=1)
    assert scale.shape == tuple(4 if i == axis else 1 for i in range(len(shape)))
    assert 127 * scale.ravel() == pytest.approx(largest)
    assert not zero.any()


@given(st.integers(0, 99), st.sampled_from([3, 4, 5]), st.sampled_from([1.0, 3.0, 100.0]))
def test_weights_below_eight_bits_take_the_range_that_errs_least(seed, bits, outlier):
    values = normal(512, seed=seed).astype(np.float64)
    values[0] = outlier * np.abs(values).max()
    most, whole = 2 ** (bits - 1) - 1, np.abs(values).max()

    def error(high):
        scale = high / most
        kept = np.clip(np.round(values / scale), -most - 1, most) * scale
        return ((values - kept) ** 2).sum()

    made = node("Conv", "x w", "y")
    scale, _ = weight_scales.weight_scales(
        quantize.Recipe(weights=Weights(bits=4, per_channel=False)), made, values, bits
    )
    chosen = most * float(scale.ravel()[0])
    assert 0.5 * whole - 1e-9 <= chosen <= whole + 1e-9
    best = min(error(whole * share) for share in np.linspace(0.5, 1, 41))
    assert error(chosen) == pytest.approx(best)


@given(
    st.integers(0, 999), st.sampled_from([8, 16]), st.sampled_from([0, 1]),
    st.sampled_from([1.0, 1e-4, 1e-30, 0.0]),
)  # fmt: skip
def test_usual_scales_are_those_of_onnx_runtime_to_the_bit(seed, bits, axis, small):
    """Which chooses them too, channel by channel and slowly."""
    array = np.random.default_rng(seed).standard_t(2, (5, 6, 3)).astype(np.float32)
    array[1, 2] *= small
    array[0] = np.abs(array[0])
    kind = {8: TensorProto.INT8, 16: TensorProto.INT16}[bits]
    theirs = [
        quant_utils.compute_data_quant_params(row.ravel(), kind, True, min_real_range=1e-4)
        for row in np.moveaxis(array, axis, 0)
    ]
    scales = weight_scales.channel_scales(array, axis, bits)
    assert scales.tolist() == [float(scale) for _, scale in theirs]
    assert not any(zero for zero, _ in theirs)


@pytest.mark.parametrize("settings", [Weights(4), Weights(mse=True), Weights(8, limit=0.7)])
def test_a_row_is_scaled_the_same_alone_and_among_many(settings, monkeypatch):
    array = np.random.default_rng(1).standard_t(2, (64, 50)).astype(np.float32)
    array[3] = 0
    recipe = quantize.Recipe("x", weights=settings)
    together = weight_scales.scale_rows(recipe, array, settings.bits, 0)
    assert together == [
        weight_scales.scale_rows(recipe, row[None], settings.bits, 0)[0] for row in array
    ]
    monkeypatch.setattr(weight_scales, "_VALUES", 120)  # the rows of a large layer come in parts
    assert weight_scales.scale_rows(recipe, array, settings.bits, 0) == together


@given(st.integers(0, 99))
def test_asymmetric_weights_reach_from_the_least_to_the_greatest(seed):
    values = normal(256, seed=seed) + 2
    recipe = quantize.Recipe(weights=Weights(symmetric=False, per_channel=False))
    scale, zero = weight_scales.weight_scales(recipe, node("Conv", "x w", "y"), values, 8)
    low, high = min(values.min(), 0), max(values.max(), 0)
    assert float(scale.ravel()[0]) == pytest.approx((high - low) / 255, rel=1e-5)
    codes = np.clip(np.round(values / scale) + zero, -128, 127)
    assert np.abs((codes - zero) * scale - values).max() <= 0.51 * scale.max()


def test_noise_of_asymmetric_weights_is_that_of_half_the_step(tmp_path):
    """Weights of one sign waste half of the symmetric codes: a quarter of the noise is saved."""
    weight = np.abs(normal(64, 3, 3, 3)) + 0.1
    nodes = [node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "y")]
    model = model_of(nodes, {"w": weight})
    images = normal(4, 3, 6, 6, seed=1)
    known = quantize.measure_ranges(model, images)
    found = {}
    for symmetric in (True, False):
        settings = Weights(symmetric=symmetric, per_channel=False)
        meter = rounding_noise.Meter(model, quantize.Recipe(weights=settings), known, images)
        found[symmetric] = meter.of_weights(model.graph.node[0], 8)
    assert found[False] == pytest.approx(found[True] / 4, rel=0.5)
    assert found[False] < 1e-4


@given(st.integers(0, 99))
def test_asymmetric_power_of_two_weights_keep_their_zero(seed):
    """The least code stands for the least value, to half a step, and 0 has a code of its own."""
    values = normal(256, seed=seed).astype(np.float64) + 1.5
    settings = Weights(symmetric=False, per_channel=False, power_of_two=True)
    found = weight_scales.weight_scales(
        quantize.Recipe(weights=settings), node("Conv", "x w", "y"), values, 8
    )
    scale, zero = (float(array.ravel()[0]) for array in found)
    assert np.frexp(scale)[0] == 0.5 and -128 <= zero <= 127
    assert (-128 - zero) * scale == pytest.approx(min(values.min(), 0), abs=0.51 * scale)


def test_noise_of_weights_is_that_of_the_very_codes():
    """Clipped to -8 to 7 where four bits clip; measured by running the rounded network."""
    weight = normal(6, 3, 3, 3)
    nodes = [node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "y")]
    model, images = model_of(nodes, {"w": weight}), normal(4, 3, 6, 6, seed=1)
    recipe = quantize.Recipe(weights=Weights(bits=4))
    meter = rounding_noise.Meter(model, recipe, quantize.measure_ranges(model, images), images)
    scale, _ = weight_scales.weight_scales(recipe, model.graph.node[0], weight, 4)
    codes = np.round(weight / scale)
    assert codes.max() > 7  # some are clipped
    rounded = model_of(nodes, {"w": np.clip(codes, -8, 7) * scale})
    exact, found = (run(m, images) for m in (model, rounded))
    wanted = ((found - exact) ** 2).sum() / (exact**2).sum()
    assert meter.of_weights(model.graph.node[0], 4) == pytest.approx(wanted, rel=1e-4)


def run(model, images):
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": image[None]})[0] for image in images])


TRAINED = {
    "Conv2d": (lambda: torch.nn.Conv2d(3, 5, 3, bias=False), 0),
    "ConvTranspose2d": (lambda: torch.nn.ConvTranspose2d(3, 5, 3, bias=False), 1),
    "grouped": (lambda: torch.nn.Conv2d(3, 6, 3, groups=3, bias=False), 0),
}


@pytest.mark.parametrize("make, axis", TRAINED.values(), ids=TRAINED)
def test_every_output_channel_trains_a_step_of_its_own(make, axis):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(make(), torch.nn.ReLU()).eval()
    outputs = network[0].weight.movedim(axis, 0) if axis == 0 else network[0].weight.movedim(1, 0)
    largest = outputs.flatten(1).abs().amax(1).detach()
    prepared = qat.prepare(network, "int8", size=6)
    qat.calibrate_(prepared, normal(4, 3, 6, 6))
    ((_, quantizer),) = qat_graph.weights_of(prepared).values()
    assert quantizer.step.detach().numpy() == pytest.approx(largest.numpy() / 127, rel=1e-4)


def test_a_linear_layer_trains_a_step_for_each_output():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 36, 4)).eval()
    prepared = qat.prepare(network, "int8", size=6)
    ((_, quantizer),) = qat_graph.weights_of(prepared).values()
    assert quantizer.step.numel() == 4 and quantizer.grid.axis == 0


def test_a_channel_of_almost_zeros_has_a_256th_of_the_largest_step():
    quantizer = FakeQuant(Grid(8, signed=True, symmetric=True, axis=0), channels=3)
    quantizer.fit_weight_(torch.tensor([[1.27, 0.0], [1e-9, 0.0], [0.0127, 0.0]]))
    assert quantizer.step.detach().numpy() == pytest.approx([1e-2, 1e-2 / 256, 1e-4], rel=1e-4)


@given(st.integers(0, 99))
def test_ranges_follow_the_batches_of_training_by_their_momentum(seed):
    """Toward the 1 % and 99 % quantiles of the images' ends, and by five hundredths."""
    quantizer = FakeQuant(Grid(), momentum=0.05)
    quantizer.observe_()
    quantizer(torch.from_numpy(normal(8, 4, seed=seed)))
    quantizer.settle_()
    low, high = float(quantizer.low), float(quantizer.high)
    batch = 3 * torch.from_numpy(normal(8, 4, seed=seed + 1))
    quantizer.train()(batch)
    ends = torch.quantile(batch.amin(1), 0.01), torch.quantile(batch.amax(1), 0.99)
    assert float(quantizer.low) == pytest.approx(low + 0.05 * (float(ends[0]) - low), rel=1e-5)
    assert float(quantizer.high) == pytest.approx(high + 0.05 * (float(ends[1]) - high), rel=1e-5)
    quantizer.eval()(10 * batch)
    assert float(quantizer.high) == pytest.approx(high + 0.05 * (float(ends[1]) - high), rel=1e-5)


@given(st.integers(2, 8), st.integers(1, 5), st.integers(1, 7))
def test_the_gradient_of_a_step_shrinks_with_the_values_that_share_it(bits, channels, width):
    """By 1 / sqrt(n q), n values for each step, q the greatest integer (Esser et al. 2020, 2.2)."""
    grid = Grid(bits, signed=True, symmetric=True, axis=0)
    quantizer = FakeQuant(grid, channels, learned=True)
    x = torch.linspace(-1, 1, channels * width).reshape(channels, width)
    quantizer.fit_weight_(x)
    quantizer.freeze_()
    quantizer(x).sum().backward()
    step = quantizer.step.detach()[:, None]
    scaled = x / step
    inside = (scaled >= grid.lowest) & (scaled <= grid.highest)
    error = torch.where(inside, scaled.round() - scaled, scaled.clamp(grid.lowest, grid.highest))
    to_step = error.sum(1) / math.sqrt(width * grid.highest)
    wanted = to_step * step[:, 0] * math.log(2) * GAIN  # the step is stored as log2(step) / GAIN
    assert quantizer.exponent.grad.numpy() == pytest.approx(wanted.numpy(), rel=1e-3, abs=1e-6)


def test_weights_of_eight_bits_are_never_clipped():
    """Nor where clipping one of fifty thousand would round the others so much finer."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 130 * 130, 1)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.linspace(-1, 1, 3 * 130 * 130))
        network[1].weight[0, 7] = 2.0
    prepared = qat.prepare(network, "int8_tensor", size=130)
    qat.calibrate_(prepared, normal(2, 3, 130, 130))
    ((_, quantizer),) = qat_graph.weights_of(prepared).values()
    assert float(quantizer.step.detach()) == pytest.approx(2 / 127, rel=1e-4)


def test_constrained_weights_are_clipped_at_either_end_and_else_as_they_were():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 4)).eval()
    before = network[1].weight.detach().clone()
    before[0, :2] = torch.tensor([9.0, -8.0])
    with torch.no_grad():
        network[1].weight.copy_(before)
    prepared = qat.prepare(network, "int8_tensor", size=6)
    report = corrections.constrain_weights_(prepared, 16)
    bound = 16 * float(before.abs().median())
    assert report.layers[0][1:] == pytest.approx((2, 9.0, bound))
    ((module, _),) = qat_graph.weights_of(prepared).values()
    found = module.parametrizations.weight.original.detach()
    assert torch.allclose(found, before.clamp(-bound, bound))


# ---------------------------------------------------------------- equalization


def product(*between):
    """Conv, ReLU, what lies between, Conv: the filters of the first differ by a factor of 30."""
    weight = normal(4, 3, 1, 1) * np.array([0.1, 1, 3, 0.3]).reshape(-1, 1, 1, 1)
    nodes = [node("Conv", "x w b", "c"), node("Relu", "c", "r"), *between]
    nodes.append(node("Conv", f"{between[-1].output[0]} v", "y"))
    constants = {"w": weight, "b": normal(4), "v": normal(5, 4, 1, 1), "gain": normal(1, 4, 1, 1)}
    return model_of(nodes, constants)


ENDED = {
    "a square": [node("Mul", "r r", "m")],
    "a pool of the same channels": [node("GlobalAveragePool", "r", "g"), node("Mul", "r g", "m")],
}


@pytest.mark.parametrize("between", ENDED.values(), ids=ENDED)
def test_a_product_of_two_scaled_tensors_ends_the_walk(between, tmp_path):
    model, images = product(*between), normal(4, 3, 6, 6, seed=1)
    onnx.save(model, tmp_path / "before.onnx")
    report = equalize.equalize_(model)
    onnx.save(model, tmp_path / "after.onnx")
    assert report.ended["c"] == "Mul of two scaled tensors"
    before, after = (
        runtime.OrtRunner(tmp_path / name, optimize=False).run(images)
        for name in ("before.onnx", "after.onnx")
    )
    assert after == pytest.approx(before, rel=1e-4, abs=1e-4)


def test_equalized_layers_meet_at_the_same_largest_weight():
    """Nagel et al. 2019, equation 11: afterwards both sides of a channel have one range."""
    model = product(node("MaxPool", "r", "m", kernel_shape=[2, 2]))
    report = equalize.equalize_(model)
    assert report.pairs == {"c": ("y",)} and report.largest > 1.5
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    own = np.abs(weights["w"]).reshape(4, -1).max(axis=1)
    theirs = np.abs(weights["v"]).max(axis=(0, 2, 3))
    assert own == pytest.approx(theirs, rel=1e-4)


# ---------------------------------------------------------------- mixed precision


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0, 1))
def test_the_mixed_search_never_exceeds_its_mac_share_and_uses_what_it_may(shares, most):
    shares = sorted([0.0, *shares])
    front = [mixed.Point(("n",) * i, s, float(i), 100, 0) for i, s in enumerate(shares)]
    exact = np.eye(4, dtype=np.float32)
    index, measured, reached = mixed._choose(
        front,
        mixed.Budget(mac_share=max(most, 1e-6)),
        lambda point: dataclasses.replace(point, measured=compare.parity(exact, exact)),
    )
    assert reached
    assert front[index].mac_share <= max(most, 1e-6)
    assert all(point.mac_share > max(most, 1e-6) for point in front[index + 1 :])
    assert measured[index].measured and measured[0].measured


@given(st.lists(st.floats(1, 60), min_size=1, max_size=12), st.floats(1, 60))
def test_a_wanted_quality_is_the_first_point_that_has_it(gains, wanted):
    gains = sorted(gains)
    front = [mixed.Point(("n",) * i, i / 12, db, 100, 0) for i, db in enumerate(gains)]
    parity = compare.parity(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32))

    def judge(point):
        found = dataclasses.replace(parity, sqnr_db=point.predicted_db)
        return dataclasses.replace(point, measured=found)

    index, _, reached = mixed._choose(front, mixed.Budget(sqnr_db=wanted), judge)
    good = [i for i, db in enumerate(gains) if db >= wanted]
    assert (index, reached) == ((good[0], True) if good else (len(gains) - 1, False))


def test_a_budget_of_bytes_widens_nothing():
    front = [mixed.Point(("n",) * i, i / 2, float(i), 100, 0) for i in range(3)]
    exact = np.eye(4, dtype=np.float32)
    measured = {"measured": compare.parity(exact, exact)}
    chosen = mixed._choose(
        front, mixed.Budget(megabytes=1), lambda point: dataclasses.replace(point, **measured)
    )
    assert chosen[0] == 0


@given(st.lists(st.floats(1e-7, 1), min_size=2, max_size=9))
def test_every_point_of_the_front_saves_a_thousandth_of_the_noise_but_the_last(noises):
    names = [rounding_noise.START, *(f"n{i}" for i in range(len(noises) - 1)), rounding_noise.END]
    edges = {
        rounding_noise.Edge(f"t{i}", *pair): power
        for i, (pair, power) in enumerate(zip(itertools.pairwise(names), noises, strict=True))
    }
    front = mixed._front(edges, dict.fromkeys(names[1:-1], 0.1), 0.0, 100)
    left = [10 ** (-point.predicted_db / 10) for point in front]
    saved = -np.diff(left)
    assert left[0] == pytest.approx(sum(noises))
    assert (saved[:-1] >= 0.9e-3 * sum(noises)).all()
    assert front[0].wide == () and set(front[-1].wide) == set(names[1:-1])
    shares = [point.mac_share for point in front]
    assert shares == sorted(shares)


# ---------------------------------------------------------------- what is taken, what is refused


@pytest.mark.parametrize("shape", [(1, 3, None, 8), (1, 3, 0, 8), ("n", 3, 8, 8), (2, 3, 8, 8)])
def test_only_a_whole_fixed_shape_with_batch_1_can_be_calibrated(shape, tmp_path):
    model_of([node("Relu", "x", "y")], {}, tmp_path / "m.onnx", shape)
    with pytest.raises(ModelFileError, match="fixed shape with batch 1"):
        prepared(tmp_path / "m.onnx")


def test_names_that_nodes_lack_are_made_up_and_given_ones_stay(tmp_path):
    given = [node("Relu", "x", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")]
    given[0].name, given[1].name, given[2].name = "Relu_1", "", "mine"
    model_of(given, {}, tmp_path / "m.onnx")
    assert [n.name for n in prepared(tmp_path / "m.onnx").graph.node] == [
        "Relu_1",
        "Relu_1_1",
        "mine",
    ]


def test_constants_become_weights_of_their_own_for_every_reader(tmp_path):
    """One scale for a constant that two nodes read would serve neither."""
    value = numpy_helper.from_array(np.float32([[[[3.0]]]]))
    constant = helper.make_node("Constant", [], ["k"], name="constant", value=value)
    other = helper.make_node("Constant", [], ["i"], name="ints", value_ints=[2, 3])
    nodes = [constant, node("Mul", "x k", "a"), node("Add", "a k", "y"), other]
    graph = prepared(model_file(nodes, tmp_path)).graph
    assert [n.op_type for n in graph.node] == ["Mul", "Add"]
    names = [n.input[1] for n in graph.node[:2]]
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    assert len(set(names)) == 2 and all(stored[name].item() == 3 for name in names)


def model_file(nodes, folder):
    model_of(nodes, {}, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("share, taken", [(0, True), (0.49, True), (0.5, False), (-0.01, False)])
def test_a_share_of_outliers_lies_below_one_half(share, taken, tmp_path):
    weights = {"w": normal(4, 3, 3, 3)}
    model_of([node("Conv", "x w", "y")], weights, tmp_path / "m.onnx")
    images = normal(8, 3, 6, 6)
    if taken:
        quantize.static(tmp_path / "m.onnx", tmp_path / "q.onnx", images, outliers=share)
        return
    with pytest.raises(UsageError, match=r"0 to below 0\.5"):
        quantize.static(tmp_path / "m.onnx", tmp_path / "q.onnx", images, outliers=share)


def test_a_recipe_takes_whole_numbers_for_fractions_but_no_booleans():
    from labutils.quantize import recipe

    found = recipe.parse("name: mine\ncalibration: {percentile: 99, outliers: 0}\n")
    assert found.calibration.percentile == 99.0
    assert isinstance(found.calibration.percentile, float)
    with pytest.raises(UsageError, match="expected a number, found True"):
        recipe.parse("name: mine\ncalibration: {percentile: true}\n")
    with pytest.raises(UsageError, match=r"expected a whole number, found 3\.5"):
        recipe.parse("name: mine\ncalibration: {images: 3.5}\n")


@pytest.mark.parametrize("count", [2, 5, 9])
def test_every_step_that_saves_is_a_point_of_the_front(count):
    """Nodes in a row with equal noise between them: each that is widened saves a share of it."""
    names = [rounding_noise.START, *(f"n{i}" for i in range(count)), rounding_noise.END]
    edges = {
        rounding_noise.Edge(f"t{i}", *pair): 1.0 for i, pair in enumerate(itertools.pairwise(names))
    }
    front = mixed._front(edges, dict.fromkeys(names[1:-1], 0.1), 0.0, 100)
    # the last two come together: before the logits, either alone would save nothing more
    assert [len(point.wide) for point in front] == [*range(count - 1), count]
    assert front[0].predicted_db == pytest.approx(-10 * math.log10(count + 1))


def test_one_calibration_image_is_enough_for_a_bias(tmp_path):
    constants = {"w": normal(4, 3, 3, 3), "b": normal(4)}
    model_of([node("Conv", "x w b", "y")], constants, tmp_path / "m.onnx")
    recipe = quantize.Recipe("mine", correct_bias=True)
    made = quantize.static(tmp_path / "m.onnx", tmp_path / "q.onnx", normal(1, 3, 6, 6), recipe)
    assert made.images == 1 and "biases" in made.repairs[0]


def test_entropy_keeps_what_256_levels_hold_exactly():
    """One occupied bin in each level: rounding to the levels loses nothing, clipping would.

    Empty bins get no share of a level's mass (Migacz 2017).
    """
    counts = np.zeros(quantize_ranges.BINS, np.int64)
    counts[4::8] = 1 + np.arange(256)[::-1] ** 2  # eight bins make one of 256 levels
    edges = np.linspace(0, 1, quantize_ranges.BINS + 1)
    counts[0] = 10**9  # the bin of 0 has no say
    assert quantize_ranges._least_divergence(counts, edges, 8) == (0.0, 1.0)


@pytest.mark.parametrize("name, least, most", [
    ("freeze_at", 0, 1), ("distillation", 0, 1), ("temperature", 0.1, None), ("steps", 1, None),
    ("batch_size", 1, None), ("learning_rate", 0, None),
])  # fmt: skip
def test_settings_of_training_have_their_limits(name, least, most):
    from labutils.quantize import recipe

    def read(value):
        return getattr(recipe.parse(f"name: mine\nqat: {{{name}: {value}}}\n").qat, name)

    assert read(least) == least and (most is None or read(most) == most)
    with pytest.raises(UsageError, match="is below"):
        read(-1 if least == 0 else 0)
    if most is not None:
        with pytest.raises(UsageError, match="is above"):
            read(1.5)


def test_adaptive_rounding_counts_the_weights_that_it_moved(tmp_path):
    model_of([node("Conv", "x w", "y")], {"w": normal(8, 3, 3, 3)}, tmp_path / "m.onnx")
    images = normal(64, 3, 6, 6) + 3 * normal(64, 3, 1, 1, seed=5)
    codes, said = {}, {}
    for way in ("nearest", "adaptive"):
        recipe = quantize.Recipe("mine", rounding=way, weights=Weights(4))
        made = quantize.static(tmp_path / "m.onnx", tmp_path / f"{way}.onnx", images, recipe)
        stored = {t.name: t for t in onnx.load(made.file).graph.initializer}
        codes[way], said[way] = numpy_helper.to_array(stored["w_quantized"]), made.repairs
    moved = int((codes["nearest"] != codes["adaptive"]).sum())
    assert moved > 0 and f"moved {moved} weights of 1 layers" in said["adaptive"][0]


def test_a_bias_calibration_says_what_it_did():
    report = corrections.BiasReport(52, 2, 64, 0.125, 0.011)
    assert str(report) == repr(report)
    assert "52 layers on 64 images (2 in" in str(report)
    assert "12.5 % of their size, now by 1.1 %" in str(report)
    assert "now by 1.1 %" in report._repr_html_()
