"""Estimated bytes: exact on graphs that can be counted by hand, in proportion on a real network."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from labutils import quantize
from labutils.errors import ModelFileError, UsageError
from labutils.measure import complexity, traffic
from labutils.quantize.recipe import Activations, Override, Recipe, Weights

PIXELS, CHANNELS = 3 * 4 * 4, 5
OUT = CHANNELS * 4 * 4  # elements of each inner tensor


def weight(name, *shape):
    random = np.random.default_rng(0)
    return numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)


@pytest.fixture
def file(tmp_path):
    """Two 1x1 convolutions with a ReLU between, 4 x 4 pixels."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="one"),
        helper.make_node("HardSwish", ["a"], ["b"], name="act"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="two"),
    ]
    value = lambda name, n: helper.make_tensor_value_info(  # noqa: E731
        name, TensorProto.FLOAT, [1, n, 4, 4]
    )
    weights = [
        weight("w1", CHANNELS, 3, 1, 1), weight("b1", CHANNELS),
        weight("w2", CHANNELS, CHANNELS, 1, 1),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [value("x", 3)], [value("y", CHANNELS)], weights)
    path = tmp_path / "float.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture
def inputs():
    return np.random.default_rng(1).normal(size=(4, 3, 4, 4)).astype(np.float32)


def made(file, inputs, recipe):
    path = file.with_name("quantized.onnx")
    quantize.static(file, path, inputs, recipe)
    return traffic.estimate(path)


def test_a_float_graph_moves_each_tensor_at_each_node(file):
    found = traffic.estimate(file)
    assert found.by_bits == {32: 4 * (PIXELS + OUT + OUT + OUT + OUT + OUT)}
    assert found.weights == 4 * (15 + 5 + 25) and found.converts == 0
    assert found.total == found.activations + found.weights


@pytest.mark.parametrize("bits", [8, 16])
def test_codes_count_at_their_width_and_the_ends_as_conversions(file, inputs, bits):
    found = made(file, inputs, Recipe(activations=Activations(bits)))
    ends = PIXELS + OUT
    assert found.by_bits[bits] == bits // 8 * (PIXELS + 5 * OUT + ends)
    assert found.by_bits[32] == 4 * ends
    assert found.converts == (4 + bits // 8) * ends


def test_weights_count_at_their_bits_and_a_bias_has_32(file, inputs):
    found = made(file, inputs, Recipe(weights=Weights(8)))
    assert found.weights == 15 + 25 + 4 * CHANNELS
    narrow = made(file, inputs, Recipe(weights=Weights(4)))
    assert narrow.weights == 15 // 2 + 25 // 2 + 4 * CHANNELS


def test_a_change_of_width_reads_and_writes_the_tensor_once_more(file, inputs):
    wide = Recipe(overrides=(Override(node="act", activations=16),))
    plain, mixed = made(file, inputs, Recipe()), made(file, inputs, wide)
    assert mixed.converts - plain.converts == 2 * (1 + 2) * OUT  # a to 16 bits, b back to 8
    assert mixed.activations - plain.activations == 2 * 3 * OUT + 2 * OUT


def test_a_real_network_needs_a_quarter_of_the_bytes(small_onnx, tmp_path):
    source = small_onnx()
    images = np.random.default_rng(2).normal(size=(2, 3, 64, 64)).astype(np.float32)
    quantize.static(source, tmp_path / "int8.onnx", images)
    whole, narrow = traffic.estimate(source), traffic.estimate(tmp_path / "int8.onnx")
    inner = narrow.activations - narrow.converts
    assert 0.2 < inner / whole.activations < 0.26  # ReLUs are gone: a little under a quarter
    assert str(whole.source) in str(whole) and "upper bound" in whole._repr_html_()
    assert whole.to_dict()["activations"] == whole.activations


def test_macs_of_a_16_bit_file_are_those_of_its_source(file, inputs):
    made(file, inputs, "a16w8")
    counted = complexity.count(file.with_name("quantized.onnx"), (1, 3, 4, 4))
    assert counted.macs == complexity.count(file, (1, 3, 4, 4)).macs == 16 * (15 + 25)


def test_an_open_shape_and_a_missing_file_are_named(file, tmp_path):
    model = onnx.load(file)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, tmp_path / "open.onnx")
    with pytest.raises(UsageError, match=r"'\w' in open.onnx is open"):
        traffic.estimate(tmp_path / "open.onnx")
    with pytest.raises(ModelFileError):
        traffic.estimate(tmp_path / "missing.onnx")
