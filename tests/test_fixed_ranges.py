"""Ranges that a recipe states: one grid in quantization after training and in training."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from small_networks import SIDE, crossing, inputs
from torch import nn

from labutils import export, quantize
from labutils.errors import UsageError
from labutils.quantize import insertion, recipe, weight_scales
from labutils.quantize.presets import PRESETS
from labutils.quantize.recipe import Activations, Override, Recipe, Weights
from labutils.quantize.training import graph as qat_graph
from labutils.quantize.training import qat
from labutils.quantize.training.fake_quant import FakeQuant, Grid

LOW = st.floats(-100, 0, width=32)
HIGH = st.floats(0.0625, 100, width=32)
CONV = "/layer/layer.0/conv1/Conv"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The float ONNX file of the small network."""
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    export.to_onnx(crossing(), path, size=SIDE)
    return path


def grids(path):
    """Tensor -> (scale, zero point), of the QuantizeLinear or DequantizeLinear that names it."""
    model = onnx.load(path)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {
        node.input[0]: (values[node.input[1]], values[node.input[2]])
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }


# --- the grid -------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    LOW, HIGH, st.sampled_from([8, 16]), st.booleans(), st.booleans(),
    st.floats(-500, 500, width=32), st.floats(0, 500, width=32),
)  # fmt: skip
def test_a_fixed_grid_is_the_same_in_training_and_without_and_holds_its_ends(
    low, high, bits, symmetric, pow2, seen, more
):
    grid = Grid(bits, symmetric=symmetric, power_of_two=pow2, range=(low, high))
    quantizer = FakeQuant(grid, learned=True).eval()
    quantizer.observe_()
    quantizer(torch.tensor([[seen, seen + more]]))  # whatever it is
    quantizer.settle_()
    quantizer.freeze_()
    assert not quantizer.exponent.requires_grad
    step, point = quantizer.step.item(), quantizer.zero_point.item()
    assert quantizer(torch.zeros(1)).item() == 0
    last = (grid.highest - point) * step
    first = -point * step
    room = 1.001 * step * (2 if pow2 else 1)  # the zero point is rounded; powers spare one step
    assert first <= low + room and last >= high - room
    if symmetric and low < 0:
        assert point == 1 << bits - 1
    if not symmetric:
        share = 1 - 2.0**-bits if pow2 else 1.0
        scale, zero = insertion.scale_of((share * low, share * high), bits, False, pow2)
        assert step == pytest.approx(scale, rel=1e-5)
        assert abs(zero - point) <= 1


@settings(max_examples=60, deadline=None)
@example(1.00001, 4, True, True, 0)  # a hair beyond a power of two: both take the same
@given(
    st.floats(0.05, 50), st.sampled_from([4, 8, 16]), st.booleans(), st.booleans(),
    st.integers(0, 999),
)  # fmt: skip
def test_weights_keep_their_limit_and_their_own_range(magnitude, bits, pow2, own, seed):
    array = np.random.default_rng(seed).standard_t(3, (4, 30)).astype(np.float32)
    chosen = Recipe(weights=Weights(bits, power_of_two=pow2, limit=None if own else magnitude))
    rows = weight_scales.scale_rows(chosen, array, bits, 0, magnitude if own else None)
    fixed = (-magnitude, magnitude) if own else None
    grid = Grid(bits, True, True, 0, pow2, fixed, limit=None if own else magnitude)
    quantizer = FakeQuant(grid, 4, learned=True).eval()
    quantizer.fit_weight_(torch.from_numpy(array), 40 if bits < 8 else 1)
    reach = quantizer.step.detach().numpy() * grid.highest
    stored = np.array([scale for scale, _ in rows]) * grid.highest
    if own:
        assert reach == pytest.approx(stored, rel=1e-5)
        assert ((reach >= 0.4 * magnitude) & (reach <= 2.001 * magnitude)).all()
        assert not pow2 or (np.frexp(quantizer.step.detach().numpy())[0] == 0.5).all()
    else:
        assert (reach <= magnitude * 1.0001).all() and (stored <= magnitude * 1.0001).all()
    with torch.no_grad():  # the optimizer cannot pass the limit either
        quantizer.exponent.add_(1)
    if not own:
        assert (quantizer.step.detach().numpy() * grid.highest <= magnitude * 1.0001).all()


def test_a_range_of_four_in_powers_of_two_ends_one_step_below_four():
    grid = Grid(8, symmetric=True, power_of_two=True, range=(-4.0, 4.0), whole=False)
    for seen, step, point in (((-0.1, 9.0), 2**-5, 128), ((0.0, 9.0), 2**-6, 0)):
        quantizer = FakeQuant(grid).eval()
        quantizer.observe_()
        quantizer(torch.tensor([seen]))
        quantizer.settle_()
        assert (quantizer.step.item(), quantizer.zero_point.item()) == (step, point)


# --- whole networks -------------------------------------------------------------------------------


def test_a_stated_range_holds_after_training_and_without(source, tmp_path):
    chosen = Recipe(
        overrides=(
            Override("/act/HardSwish", range=(-1, 3)),
            Override("/layer/layer.0/*", range=(0, 2)),
            Override(CONV, weight_range=0.5),
        )
    )
    quantize.static(source, tmp_path / "static.onnx", inputs(), chosen)
    model = qat.prepare(crossing(), chosen, size=SIDE)
    qat.calibrate_(model, inputs())
    fixed = {n for n, q in qat_graph.activations_of(model).items() if q.grid.range}
    assert len(fixed) == 4  # two Relus, the second convolution, and the activation
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.from_numpy(inputs())).square().mean().backward()
    optimizer.step()
    report = qat.to_qdq(model, tmp_path / "trained.onnx", size=SIDE, images=inputs())
    assert report.bit_equal > report.n / 2, str(report)
    for name in ("static", "trained"):
        found = grids(tmp_path / f"{name}.onnx")
        scale, zero = found["/act/HardSwish_output_0"]
        assert scale == pytest.approx(4 / 255, rel=1e-6) and zero == 64
        scale, zero = found["/layer/layer.0/relu_1/Relu_output_0"]
        assert scale == pytest.approx(2 / 255, rel=1e-6) and zero == 0
        weights = [
            g for tensor, g in found.items() if "layer.0.conv1" in tensor and "weight" in tensor
        ]
        weights = weights or [
            g for t, g in found.items() if g[0].shape == (8,) and g[1].dtype == np.int8
        ]
        assert any(np.allclose(scale, 0.5 / 127) for scale, _ in weights)


def test_a_range_that_reaches_below_zero_keeps_the_rectifier(source, tmp_path):
    chosen = Recipe(overrides=(Override("/narrow/narrow.1/Clip", range=(-1, 9)),))
    quantize.static(source, tmp_path / "static.onnx", inputs(), chosen)
    model = qat.prepare(crossing(), chosen, size=SIDE)
    qat.calibrate_(model, inputs())
    qat.to_qdq(model, tmp_path / "trained.onnx", size=SIDE, images=inputs())
    for name in ("static", "trained"):
        nodes = onnx.load(tmp_path / f"{name}.onnx").graph.node
        assert [node.op_type for node in nodes].count("Clip") == 1, name


def test_the_work_of_a_relu6_is_left_to_the_codes_whatever_training_does(source, tmp_path):
    model = qat.prepare(crossing(), "int8", size=SIDE)
    qat.calibrate_(model, 3 * inputs())
    (clip,) = (q for q in qat_graph.activations_of(model).values() if q.grid.limit)
    with torch.no_grad():
        clip.exponent.add_(0.5)  # sixteen times as long a step
    assert clip.step.item() == pytest.approx(6 / 255)
    report = qat.to_qdq(model, tmp_path / "q.onnx", size=SIDE, images=3 * inputs())
    assert report.bit_equal > report.n / 2, str(report)
    assert "Clip" not in {node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}


def test_ti_presets_with_fixed_ranges_map_without_leftovers(source, tmp_path):
    for name in ("WC8SYMP2_AT8SYMP2R4", "WC4M4_AT8", "WT8M4_AT8R4"):
        found = quantize.imported(name)
        assert found.unmapped == ()
        assert recipe.parse(found.recipe.to_yaml()) == found.recipe
        minmax = dataclasses.replace(found.recipe.calibration, method="minmax")
        chosen = found.recipe.replaced(calibration=minmax)
        quantize.static(source, tmp_path / "q.onnx", inputs(), chosen)
        model = qat.prepare(crossing(), chosen, size=SIDE)
        qat.calibrate_(model, inputs())
        assert qat.to_qdq(model, tmp_path / "t.onnx", size=SIDE, images=inputs()).bit_equal > 4
        if "R4" not in name:
            assert found.recipe.weights.limit == 4 and found.recipe.activations.range is None
            continue
        assert found.recipe.activations.range == (-4, 4)
        scale, _ = grids(tmp_path / "q.onnx")["input"]
        assert scale == pytest.approx(2**-5 if "P2" in name else 8 / 255, rel=1e-6)


def test_weights_beyond_the_limit_are_clipped_to_it(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = 20.0
    export.to_onnx(network, tmp_path / "float.onnx", size=8)
    chosen = Recipe(weights=Weights(limit=4.0))
    report = quantize.static(tmp_path / "float.onnx", tmp_path / "q.onnx", inputs(8, 8), chosen)
    assert sum(report.function.clipped.values()) == 1
    reach = [127 * s.max() for s, z in grids(tmp_path / "q.onnx").values() if z.dtype == np.int8]
    assert max(reach) == pytest.approx(4, rel=1e-5)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [(1, 2), (-2, -1), (2, -2), (0, 0), (-1, float("inf")), (float("nan"), 1), (-4,), 4, "4",
     (False, True), (-1, 1, 2), ("a", "b")],
)  # fmt: skip
def test_a_range_without_zero_or_end_is_refused(wrong):
    for make in (Override, Activations):
        with pytest.raises(UsageError, match="zero between them"):
            make(range=wrong)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("activations:\n  range: [1, 4]", "line 2: activations.range: expected two numbers"),
        ("overrides:\n  - node: a\n    range: [4, -4]", "line 3: overrides.0.range: expected two"),
        ("overrides:\n  - node: a\n    range: 4", "line 3: overrides.0.range: expected two"),
        ("weights:\n  limit: 0", "line 2: weights.limit: 0 must be above 0"),
        ("overrides:\n  - weight_range: -1", "line 2: overrides.0.weight_range: -1 must be above"),
    ],
)
def test_mistakes_in_a_file_name_the_line(text, words):
    with pytest.raises(UsageError) as caught:
        recipe.parse(text)
    assert words in str(caught.value)


def test_ranges_stand_in_the_file_as_they_are_given():
    made = recipe.parse("activations: {range: [-4, 4]}\noverrides: [{node: a, range: [0, 6]}]\n")
    assert made.activations.range == (-4.0, 4.0) and made.overrides[0].range == (0.0, 6.0)
    assert recipe.parse(made.to_yaml()) == made
    assert recipe.parse(str(made)) == made
    assert Override(range=[-1, 1]) == Override(range=(-1.0, 1.0))


def test_a_range_that_nothing_is_rounded_to_is_refused(source, tmp_path):
    idle = Recipe(overrides=(Override(CONV, range=(-1, 1)),))
    with pytest.raises(UsageError, match="rounded after the Relu"):
        quantize.static(source, tmp_path / "q.onnx", inputs(), idle)
    with pytest.raises(UsageError, match="rounded after the Relu"):
        qat.prepare(crossing(), idle, size=SIDE)
    assert not (tmp_path / "q.onnx").exists()
    assert PRESETS["int8"].activations.range is None
