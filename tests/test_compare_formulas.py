"""The figures of comparisons, each held to the sentence that states it."""

import dataclasses
import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from labutils import compare, metrics, quantize, runtime
from labutils.compare import fidelity, layerwise, qdq_edit, reasons
from labutils.images import data
from labutils.onnxfile.graph import read
from labutils.quantize.recipe import Calibration

RENAMED = "_QuantizeLinear_Input"  # ONNX Runtime's quantizer: an output's float tensor
QUIET = reasons.Facts(
    "Conv", -1, 1, -1, 1, 0.01, 8, 40, 1, 0, 0.9, 0, 1.5, 1.2, 45, math.nan, math.nan, math.nan,
    False, False,
)  # fmt: skip


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """A convolution, and one of its pool at 1x1: the float file, and int8 that clips a tenth."""
    folder = tmp_path_factory.mktemp("gated")
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(4, 3, 3, 3)), "v": rng.normal(size=(4, 4, 1, 1))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="wide"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Conv", ["p", "v"], ["y"], name="gate"),
    ]
    graph = helper.make_graph(
        nodes, "gated",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 1, 1])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "float.onnx")
    recipe = quantize.Recipe(calibration=Calibration("percentile", percentile=90.0))
    quantize.static(folder / "float.onnx", folder / "int8.onnx", pictures(32), recipe)
    return folder


def pictures(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3, 8, 8)).astype(np.float32)


# ---------------------------------------------------------------- one tensor


def layer(reference, candidate):
    """The figures of one tensor, from the sums that `measure` collects."""
    a, b = np.float64(reference), np.float64(candidate)
    pair = layerwise.Twins("t", "t", "Conv", "Conv", "m")
    return layerwise._layer(pair, (a @ a, b @ b, a @ b, ((a - b) ** 2).sum()), -1, 1, 0)


def test_a_tensors_figures_are_those_of_the_metrics():
    rng = np.random.default_rng(1)
    a = rng.normal(size=50)
    b = a + rng.normal(0, 0.1, 50)
    assert layer(a, b).cosine == pytest.approx(metrics.cosine(a, b))
    assert layer(a, b).sqnr_db == pytest.approx(metrics.sqnr_db(a, b))
    none = np.zeros(50)
    for x, y in [(a, a), (none, none), (none, a), (a, none)]:
        found = layer(x, y)
        assert (found.cosine, found.sqnr_db) == (metrics.cosine(x, y), metrics.sqnr_db(x, y))


def test_how_far_the_codes_of_a_tensor_reach(gated):
    model = onnx.load(gated / "int8.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    activations = [n for n in pairs if n.input[0] not in stored]
    for node in activations:
        scale, zero = (stored[name] for name in node.input[1:3])
        low, high = layerwise.codes_reach(model, node.output[0])
        assert low == pytest.approx((0 - int(zero) - 0.5) * scale)
        assert high == pytest.approx((255 - int(zero) + 0.5) * scale)
    assert len(activations) > 3
    model.graph.initializer.remove(
        next(t for t in model.graph.initializer if t.name == activations[0].input[1])
    )
    for name in (activations[0].output[0], "no tensor", activations[0].input[0]):
        assert np.isnan(layerwise.codes_reach(model, name)).all()  # not known


def test_a_file_of_nothing_but_one_pair_tells_its_reach():
    scale, zero = np.float32(0.5), np.uint8(3)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    constants = [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(zero, "zero")]
    model = helper.make_model(helper.make_graph(nodes, "pair", ends[:1], ends[1:], constants))
    assert layerwise.codes_reach(model, "y") == (-3.5 * 0.5, 252.5 * 0.5)


def test_the_operator_behind_a_tensor_is_found_through_its_codes(gated):
    reference, candidate = onnx.load(gated / "float.onnx"), onnx.load(gated / "int8.onnx")
    pairs = layerwise.twins(reference, candidate)
    assert [(p.reference, p.op) for p in pairs] == [
        ("c", "Conv"), ("p", "GlobalAveragePool"), ("y", "Conv"),
    ]  # fmt: skip
    assert [p.candidate_op for p in pairs] == [p.op for p in pairs]


# ---------------------------------------------------------------- why a layer costs


@pytest.mark.parametrize("contrast", [1.5, 0.2])
def test_facts_of_every_tensor_are_those_of_its_own_codes(gated, contrast):
    """Of the logits too, which have another name before their Q and DQ."""
    quantized, reference = read(gated / "int8.onnx"), read(gated / "float.onnx")
    batch = np.float32(contrast) * pictures(8, 1)
    found = reasons.facts(reference, quantized, qdq_edit.units(quantized), batch)
    stored = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    names = ["c", "p", "y"]
    with layerwise.opened(reference, names) as runner:
        seen = [runner.tensors(image[None]) for image in batch]
    for unit, tensor in [("wide", "c"), ("pool", "p"), ("gate", "y")]:
        # a sample of each image's values, with its extremes once more
        values = np.concatenate(
            [np.r_[t[tensor].ravel(), t[tensor].min(), t[tensor].max()] for t in seen]
        ).astype(np.float64)
        node = next(
            n for n in quantized.graph.node
            if n.op_type == "QuantizeLinear" and n.input[0].removesuffix(RENAMED) == tensor
        )  # fmt: skip
        scale, zero = (stored[name] for name in node.input[1:3])
        exact = np.round(values / scale) + zero
        codes = np.clip(exact, 0, 255)
        rounded = (codes - zero) * np.float64(scale)
        fact = found[unit]
        assert fact.sqnr_db == pytest.approx(metrics.sqnr_db(values, rounded), abs=1e-3)
        assert fact.cosine == pytest.approx(metrics.cosine(values, rounded))
        assert fact.clipped == pytest.approx(np.mean(codes != exact))
        low, high = np.quantile(values, [0.0005, 0.9995])  # of 99.9 % of the values
        assert fact.codes == pytest.approx(min(1, (high - low) / (255 * float(scale))))
        assert (fact.low, fact.high) == pytest.approx((values.min(), values.max()))
        assert fact.code_high - fact.code_low == pytest.approx(255 * float(scale))
    assert (found["wide"].clipped > 0.05) == (found["wide"].codes == 1) == (contrast > 1)
    assert [found[name].gate for name in ("wide", "pool", "gate")] == [False, False, True]


def test_noise_of_weights_is_that_of_their_codes(gated):
    quantized, reference = read(gated / "int8.onnx"), read(gated / "float.onnx")
    found = reasons.facts(reference, quantized, qdq_edit.units(quantized), pictures(2))
    weights = {t.name: numpy_helper.to_array(t) for t in reference.graph.initializer}
    for unit, name in [("wide", "w"), ("gate", "v")]:
        array = weights[name]
        step = np.abs(array).max(axis=(1, 2, 3), keepdims=True) / 127
        rounded = np.round(array / step) * step
        assert found[unit].weights_db == pytest.approx(metrics.sqnr_db(array, rounded), abs=0.01)
        assert not found[unit].depthwise and np.isnan(found[unit].weight_ratio)


def test_reasons_come_weightiest_first_and_only_above_their_limits():
    fewer = dataclasses.replace(QUIET, codes=0.3, image_ratio=3.1)  # a third of the codes: 3.3
    assert [why.split()[0] for why in reasons.sentences(fewer)] == ["99.9", "outlier"]
    fewer = dataclasses.replace(QUIET, codes=0.3, image_ratio=3.5)
    assert [why.split()[0] for why in reasons.sentences(fewer)] == ["outlier", "99.9"]
    fewer = dataclasses.replace(QUIET, channel_ratio=7, image_ratio=3.1)  # half of seven
    assert [why.split()[1].strip(":") for why in reasons.sentences(fewer)] == ["channel", "image"]
    fewer = dataclasses.replace(QUIET, channel_ratio=5, image_ratio=3.1)
    assert [why.split()[1].strip(":") for why in reasons.sentences(fewer)] == ["image", "channel"]
    limits = {
        "codes": (0.5, 0.49), "channel_ratio": (4, 4.1), "image_ratio": (2, 2.1),
        "clipped": (1e-3, 1.1e-3), "weight_ratio": (3, 3.1), "weights_db": (37, 36.9),
    }  # fmt: skip
    for name, (silent, said) in limits.items():
        assert reasons.sentences(dataclasses.replace(QUIET, **{name: silent})) == (), name
        assert len(reasons.sentences(dataclasses.replace(QUIET, **{name: said}))) == 1, name
    only = dataclasses.replace(QUIET, op="Add")
    assert "residual sum" in reasons.sentences(only)[0]


# ---------------------------------------------------------------- tables


def test_shares_are_printed_in_percent():
    assert fidelity._percent(metrics.Proportion(1560, 1600)) == "97.50 [96.6, 98.2]"
    assert fidelity._percent(None) == "unknown"


def test_a_sensitivity_table_prints_what_its_rows_hold(gated):
    report = compare.sensitivity(gated / "float.onnx", gated / "int8.onnx", pictures(4, 1))
    facts = dataclasses.replace(report.rows[0].facts, clipped=0.055)
    row = dataclasses.replace(report.rows[0], facts=facts, share=0.555)
    text = str(dataclasses.replace(report, rows=(row,)))
    line = next(line for line in text.splitlines() if line.split()[-1] == "5.5")
    assert "55.5" in line.split()


def test_more_layers_asked_for_than_there_are_is_all_of_them(gated):
    files = gated / "float.onnx", gated / "int8.onnx"
    every = compare.sensitivity(*files, pictures(2))
    for worst in (len(every.rows), len(every.rows) + 1):
        asked = compare.sensitivity(*files, pictures(2), worst=worst)
        assert (asked.ranked, len(asked.rows)) == (0, len(every.rows))


def test_an_unknown_top_1_is_said_of_a_model_with_other_classes(gated):
    blank = np.zeros((4, 8, 8, 3), np.uint8)
    images = data.ImageSet(blank, np.zeros(4, int), ("a", "b", "c"), "blank")

    class Flat:  # the gate's outputs, without their plane
        name, file, runtime = "flat", None, "test"

        def run(self, batch):
            with runtime.OrtRunner(gated / "float.onnx") as runner:
                return runner.run(batch).reshape(len(batch), -1)

    table = compare.ladder([compare.Stage("one", Flat())], images, data.Preprocessing(8))
    assert table.rows[0].top1 is None and "Top-1 is unknown" in str(table)
