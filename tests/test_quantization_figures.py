"""Figures of quantization: what is drawn is what the quantizer does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from labutils.errors import UsageError
from labutils.show import figures


def test_clipping_counts_what_lies_outside():
    values = np.concatenate([np.linspace(-1, 1, 990), np.full(10, 5.0)])
    picture = figures.clipping_histogram(values, -1, 1, 8)
    assert "1.0 % of the values lie outside" in picture.alt
    assert f"steps of {2 / 255:.3g}" in picture.alt
    hatched = [p for p in picture.axes[0].patches if p.get_hatch()]
    assert len(hatched) == 2
    whole = figures.clipping_histogram(values, -1, 5, 8)  # nothing is cut off: nothing is hatched
    assert not [p for p in whole.axes[0].patches if p.get_hatch()]


def test_few_bits_show_every_code_and_where_the_values_went():
    values = np.random.default_rng(0).uniform(-3, 3, 2000)
    for bits in (2, 4, 6):
        picture = figures.clipping_histogram(values, -1, 1, bits)
        axes = picture.axes[0]
        ticks, stems = axes.collections[:2]
        assert len(ticks.get_segments()) == 2**bits
        (points,) = (line for line in axes.lines if line.get_label() == "values on a code")
        places, counts = points.get_data()
        expected = np.unique(figures.quantized(values, -1, 1, bits)[1], return_counts=True)
        np.testing.assert_allclose(places, expected[0], atol=1e-12)
        np.testing.assert_array_equal(counts, expected[1])
        assert [segment[1, 1] for segment in stems.get_segments()] == list(counts)
        assert f"all lie on {2**bits} of the {2**bits} codes" in picture.alt
    assert not figures.clipping_histogram(values, -1, 1, 8).axes[0].collections


def test_few_steps_are_drawn_one_by_one():
    values = np.linspace(-1, 1, 500)
    picture = figures.clipping_histogram(values, -128, 127, 8, "quiet")
    assert "lie on 3 of the 256 codes" in picture.alt
    assert len(picture.axes) == 2
    assert len(figures.clipping_histogram(values, -1, 1, 8).axes) == 1


@pytest.mark.parametrize(("low", "high", "bits"), [(0.1, 1, 8), (0, 0, 8), (-1, 1, 1), (1, -1, 8)])
def test_impossible_ranges_are_refused(low, high, bits):
    with pytest.raises(UsageError, match="contains 0"):
        figures.clipping_histogram([0.0, 1.0], low, high, bits)


@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=30),
    st.floats(-8, -0.1),
    st.floats(0.1, 8),
    st.integers(2, 16),
)
def test_quantized_values_are_near_and_zero_is_exact(values, low, high, bits):
    values = np.asarray(values)
    step, kept = figures.quantized(values, low, high, bits)
    assert len(np.unique(kept)) <= 2**bits
    inside = (values > low + step) & (values < high - step)
    assert np.all(np.abs(kept - values)[inside] <= 0.5 * step + 1e-9)
    assert np.all(kept >= low - step) and np.all(kept <= high + step)
    assert figures.quantized(np.zeros(1), low, high, bits)[1][0] == 0.0


def test_quantized_is_what_onnx_runtime_computes():
    import onnxruntime

    values = np.random.default_rng(0).normal(size=200).astype(np.float32)
    step, kept = figures.quantized(values.astype(np.float64), -1.5, 2.0, 8)
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [step])
    zero = helper.make_tensor("z", TensorProto.UINT8, [], [round(1.5 / step)])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [200]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [scale, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert np.allclose(session.run(None, {"x": values})[0], kept, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(1e-3, 0.1), st.integers(0, 255)
)
def test_the_number_line_is_the_quantizer(values, scale, zero_point):
    picture = figures.quantization_grid(values, scale, zero_point)
    low, high = -zero_point * scale, (255 - zero_point) * scale
    outside = sum(not low - scale / 2 <= v <= high + scale / 2 for v in values)
    many = "value" if len(values) == 1 else "values"
    assert f"of {len(values)} {many} {outside} beyond the ends" in picture.alt
    # the same as the quantizer over that range
    kept = figures.quantized(np.array(values), low, high, 8)[1]
    rows = picture.axes[2].texts[0].get_text().splitlines()[1:]
    shown = [float(row.split()[2]) for row in rows]
    assert shown == pytest.approx(kept, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize(
    ("scale", "zero_point", "values"),
    [(0, 0, [1]), (1, -1, [1]), (1, 256, [1]), (1, 0.5, [1]), (1, 0, []), (1, 0, range(9))],
)
def test_impossible_number_lines_are_refused(scale, zero_point, values):
    with pytest.raises(UsageError, match="zero point"):
        figures.quantization_grid(list(values), scale, zero_point)


def test_the_u_curve_says_where_it_is_lowest_and_what_that_saves():
    alt = figures.u_curve([1, 2, 4], [6, 1, 0], [0, 1, 8], {"mse": 2.1}, "a").alt
    assert "an end of 2, 4.0 times less" in alt and "mse 2.1." in alt


@pytest.mark.parametrize("given", [((), (), ()), ((1, 2), (1,), (1, 2)), ((0, 1), (1, 2), (3, 4))])
def test_a_u_curve_of_nothing_is_an_error(given):
    with pytest.raises(UsageError, match="two errors for each"):
        figures.u_curve(*given, {}, "a")


def test_filters_that_round_to_nothing_are_counted():
    layer = np.array([7.0, -1.0, 0.4, 0.2])[:, None]
    alt = figures.filter_reach({"a": layer}, 4).alt
    assert "the smallest of 4 filters reaches 0.2 of 7 codes" in alt and "50.0 % round" in alt
    assert "0.0 % round to nothing" in figures.filter_reach({"a": layer}, 8).alt


@pytest.mark.parametrize(("layers", "bits"), [({}, 8), ({"a": np.zeros((2, 3))}, 8),
                                              ({"a": np.ones((2, 3))}, 1)])  # fmt: skip
def test_filters_of_nothing_are_an_error(layers, bits):
    with pytest.raises(UsageError, match="one to three layers"):
        figures.filter_reach(layers, bits)
