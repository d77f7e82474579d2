"""Adaptive rounding aims at what a layer gives in the float network, not at its float weights."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from labutils import metrics, quantize
from labutils.onnxfile.session import Session
from labutils.quantize import Weights, rounding

W4 = quantize.Recipe("w4", weights=Weights(4, mse=True), rounding="adaptive")


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999), groups=st.integers(1, 4), count=st.integers(1, 12),
    size=st.floats(0.01, 0.3),
)  # fmt: skip
def test_fitted_weights_make_of_what_arrives_what_was_meant(seed, groups, count, size):
    chance = np.random.default_rng(seed)
    exact = chance.normal(size=(groups, 600, count))
    change = np.eye(count) + size * chance.normal(size=(count, count)) / np.sqrt(count)
    arriving, weights = exact @ change, chance.normal(size=(groups, 5, count))
    fitted = rounding._fitted(weights, arriving, exact)

    def error(found):
        meant = exact @ weights.transpose(0, 2, 1)
        return np.square(meant - arriving @ found.transpose(0, 2, 1)).sum()

    assert error(fitted) < 0.5 * error(weights)


def test_where_nothing_changed_or_little_was_seen_weights_stay():
    chance = np.random.default_rng(0)
    exact, weights = chance.normal(size=(2, 300, 6)), chance.normal(size=(2, 4, 6))
    np.testing.assert_array_equal(rounding._fitted(weights, exact, exact), weights)
    shifted = rounding._fitted(weights, exact + 3.0, exact)  # that is the biases' work
    np.testing.assert_allclose(shifted, weights)
    few = chance.normal(size=(1, 2, 40))
    found = rounding._fitted(np.ones((1, 1, 40)), few + chance.normal(size=few.shape), few)
    assert np.abs(found - 1).max() < 0.2
    silent = rounding._fitted(weights, np.zeros_like(exact), exact)
    np.testing.assert_array_equal(silent, weights)


@pytest.fixture
def chain(tmp_path):
    """Five convolutions in a row, none of which sees what the float network sees."""
    chance = np.random.default_rng(3)
    nodes, weights, last = [], [], "image"
    for i in range(5):
        shape = (12, 3 if i == 0 else 12, 3, 3)
        values = chance.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{i}"))
        nodes += [helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4),
                  helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}")]  # fmt: skip
        last = f"r{i}"
    nodes += [helper.make_node("GlobalAveragePool", [last], ["pool"], "pool"),
              helper.make_node("Flatten", ["pool"], ["scores"], "flat")]  # fmt: skip
    ends = [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 10, 10)),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, 12))]  # fmt: skip
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "chain.onnx")
    return tmp_path / "chain.onnx"


def test_later_layers_take_back_what_earlier_ones_lost(chain, monkeypatch):
    chance = np.random.default_rng(1)
    images = chance.normal(size=(224, 3, 10, 10)).astype(np.float32)
    unseen, noise = images[160:], {}

    def answers(path):
        session = Session(onnx.load(path))
        return np.concatenate([session.run({"image": image[None]})[0] for image in unseen])

    for way in ("fitted", "as they were"):
        if way == "as they were":
            monkeypatch.setattr(rounding, "_fitted", lambda weights, *_: weights)
        made = quantize.static(chain, chain.with_name("q.onnx"), images[:160], W4)
        noise[way] = metrics.sqnr_db(answers(chain), answers(made.file))
    assert noise["fitted"] > noise["as they were"] + 0.4
