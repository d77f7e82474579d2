"""What each layer costs and why, and mixed precision that spends bits where they buy most."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from labutils import compare, quantize, runtime
from labutils.compare import qdq_edit, reasons
from labutils.errors import UnknownNameError, UsageError
from labutils.onnxfile.graph import read, with_shapes
from labutils.quantize import mixed, rounding_noise
from labutils.quantize.prepare import prepared
from labutils.show import figures

SIZE = 64


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Four 1x1 convolutions with ReLUs; the second has one channel forty times as wide."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "input"
    channels = [3, 8, 8, 8, 4]
    for i in range(4):
        weight = rng.normal(size=(channels[i + 1], channels[i], 1, 1)).astype(np.float32)
        weight /= np.sqrt(channels[i])
        if i == 1:
            weight[5] *= 40
        if i == 2:
            weight[:, 5] = 0  # and nobody needs it
        weights += [numpy_helper.from_array(weight, f"w{i}")]
        weights += [numpy_helper.from_array(np.full(channels[i + 1], 0.1, np.float32), f"b{i}")]
        nodes.append(helper.make_node("Conv", [last, f"w{i}", f"b{i}"], [f"c{i}"], name=f"conv{i}"))
        last = f"c{i}"
        if i < 3:
            nodes.append(helper.make_node("Relu", [last], [f"r{i}"], name=f"relu{i}"))
            last = f"r{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["p"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["p"], ["logits"], name="flat"))
    graph = helper.make_graph(
        nodes, "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, 3, 6, 6))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 4))], weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("chain") / "chain.onnx"
    onnx.save(model, path)
    return path


def pictures(n=32, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def eight(chain):
    file = chain.with_name("eight.onnx")
    quantize.static(chain, file, pictures(), "int8_minmax")
    return file


# ---------------------------------------------------------------- units of a QDQ graph


def test_all_units_in_float_compute_what_the_float_file_computes(chain, eight, tmp_path):
    quantized, reference = read(eight), read(chain)
    units = qdq_edit.units(quantized)
    assert [u.name for u in units] == ["input", *(f"conv{i}" for i in range(4)), "pool", "flat"]
    back = qdq_edit.in_float(quantized, reference, units)
    assert not {n.op_type for n in back.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    onnx.save(back, tmp_path / "back.onnx")  # the ReLUs that the codes replaced are there again
    batch = pictures(4, 1)
    exact = runtime.OrtRunner(chain).run(batch)
    assert runtime.OrtRunner(tmp_path / "back.onnx").run(batch) == pytest.approx(exact, abs=1e-5)
    none = qdq_edit.in_float(quantized, reference, [])
    onnx.save(none, tmp_path / "none.onnx")
    assert np.array_equal(
        runtime.OrtRunner(tmp_path / "none.onnx", optimize=False).run(batch),
        runtime.OrtRunner(eight, optimize=False).run(batch),
    )
    with pytest.raises(UsageError, match="quantized"):
        qdq_edit.units(reference)


def test_the_wide_channel_is_found_named_and_explained(chain, eight):
    report = compare.sensitivity(chain, eight, pictures(8, 1))
    first = report.costliest(1)[0]
    assert first.name == "conv1"
    assert first.facts.channel == 5
    assert first.facts.channel_ratio > 10
    assert any("outlier channel 5" in why for why in first.why)
    assert sum(row.share for row in report.rows) == pytest.approx(1)
    assert first.gain_db > 3  # sparing it helps
    others = [row for row in report.rows if row.name in ("conv0", "conv3")]
    assert all(abs(row.gain_db) < first.gain_db for row in others)
    assert "outlier channel 5" in str(report)
    assert "outlier channel 5" in report._repr_html_()
    assert len(report.to_frame()) == len(report.rows) == len(report.to_dict()["rows"])
    picture = figures.layer_costs(report, worst=2)
    assert picture.png()[:4] == b"\x89PNG"
    assert "conv1" in picture.alt
    with pytest.raises(UnknownNameError, match="Did you mean conv"):
        compare.sensitivity(chain, eight, pictures(2), layers=["conv9"])


def test_long_reasons_stay_on_the_picture(chain, eight):
    report = compare.sensitivity(chain, eight, pictures(2, 1))
    why = "99.9 % of its values use 0.5 % of the codes, which reach from -33.8 to 34.7 for a few"
    rows = tuple(dataclasses.replace(row, why=(why,)) for row in report.rows)
    picture = figures.layer_costs(dataclasses.replace(report, rows=rows))
    picture.png()
    box = picture.axes[-1].texts[0].get_window_extent()
    assert box.x1 < picture.bbox.x1 and box.y0 > 0


def test_a_graph_written_for_the_htp_computes_the_same(chain, eight, tmp_path):
    quantized, reference, batch = read(eight), read(chain), pictures(4, 1)
    known = qdq_edit.units(quantized)
    for unit in known:
        for floats in ([unit], [u for u in known if u is not unit]):
            model = with_shapes(qdq_edit.in_float(quantized, reference, floats))
            written = qdq_edit.for_htp(model)
            onnx.checker.check_model(written)
            onnx.save(model, tmp_path / "a.onnx")
            onnx.save(written, tmp_path / "b.onnx")
            asked, found = (
                runtime.OrtRunner(tmp_path / name, optimize=False).run(batch)
                for name in ("a.onnx", "b.onnx")
            )
            assert found == pytest.approx(asked, abs=1e-5), unit.name
    others = [unit for unit in known if unit.name != "conv1"]
    alone = with_shapes(qdq_edit.in_float(quantized, reference, others))
    kinds = [n.op_type for n in qdq_edit.for_htp(alone).graph.node]
    assert kinds.count("MaxPool") == 1  # its rounding lies between two float nodes
    dequantized = [n for n in qdq_edit.for_htp(alone).graph.node if n.op_type == "DequantizeLinear"]
    assert not {t.name for t in alone.graph.initializer} & {n.input[0] for n in dequantized}


def test_only_the_worst_are_asked_twice_and_keep_their_share(chain, eight):
    every = compare.sensitivity(chain, eight, pictures(8, 1))
    few = compare.sensitivity(chain, eight, pictures(8, 1), worst=2)
    assert [r.name for r in few.costliest(2)] == [r.name for r in every.costliest(2)]
    assert few.ranked == len(every.rows) and len(few.rows) == 2 and every.ranked == 0
    for ours, theirs in zip(few.costliest(2), every.costliest(2), strict=True):
        assert ours.share == pytest.approx(theirs.share)
        assert ours.without_db == pytest.approx(theirs.without_db)
    assert f"the costliest of {len(every.rows)}" in str(few) and "These two layers" in str(few)
    with pytest.raises(UsageError, match="one layer or more"):
        compare.sensitivity(chain, eight, pictures(2), worst=0)


def test_sentences_need_figures():
    quiet = reasons.Facts(
        "Conv", -1, 1, -1, 1, 0.01, 8, 40, 1, 0, 0.9, 0, 1.5, 1.2, 45, float("nan"),
        float("nan"), float("nan"), False, False,
    )  # fmt: skip
    assert reasons.sentences(quiet) == ()
    depthwise = dataclasses.replace(quiet, weight_ratio=9.0, depthwise=True)
    assert "depthwise, one scale for all filters" in reasons.sentences(depthwise)[0]
    swish = dataclasses.replace(quiet, op="HardSwish", flat=0.8, negative_codes=2)
    assert "80 % of its inputs lie below -3" in reasons.sentences(swish)[0]
    gate = dataclasses.replace(quiet, gate=True, clipped=0.04)
    assert reasons.sentences(gate)[0] == "4 % of its values are clipped"
    assert "SE gate" in reasons.sentences(gate)[1]


def test_layers_tell_range_and_clipping(chain, tmp_path):
    clipping = quantize.Recipe(calibration=quantize.recipe.Calibration("percentile", 32, 0, 90.0))
    report = quantize.static(chain, tmp_path / "clip.onnx", pictures(), clipping)
    rows = {r.tensor: r for r in compare.per_layer(chain, report.file, pictures(8, 1)).rows}
    assert 0.02 < rows["r0"].clipped < 0.2
    assert rows["r0"].low == 0 < rows["r0"].high
    plain = quantize.static(chain, tmp_path / "plain.onnx", pictures(), "int8_minmax")
    assert compare.per_layer(chain, plain.file, pictures()).rows[0].clipped == 0


# ---------------------------------------------------------------- mixed precision


def test_the_search_widens_what_costs_most(chain, tmp_path):
    report = mixed.search(chain, pictures(), mixed.Budget(mac_share=0.7), "int8_minmax", judged=32)
    assert {"conv1", "conv2"} <= set(report.point.wide)  # the wide tensor lies between them
    assert report.point.mac_share <= 0.7
    front = [p.predicted_db for p in report.front]
    assert front == sorted(front)
    assert [p.mac_share for p in report.front] == sorted(p.mac_share for p in report.front)
    assert report.front[-1].mac_share == pytest.approx(1)
    gained = report.point.measured.sqnr_db - report.front[0].measured.sqnr_db
    predicted = report.point.predicted_db - report.front[0].predicted_db
    assert gained > 3
    assert gained == pytest.approx(predicted, abs=4)
    # the recipe is a file that makes the very point
    saved = quantize.load_recipe(report.recipe.save(tmp_path / "mixed.yaml"))
    made = quantize.static(chain, tmp_path / "mixed.onnx", pictures(), saved)
    assert set(made.wide) == set(report.point.wide)
    written = report.write(tmp_path / "written.onnx")
    assert written.file.read_bytes() == made.file.read_bytes()
    assert "conv1" in str(report)
    assert figures.front(report).png()[:4] == b"\x89PNG"
    assert report.to_dict()["recipe"]["name"] == "int8_minmax_mixed"


def test_the_conversions_of_a_point_are_those_of_its_file(chain, tmp_path):
    report = mixed.search(chain, pictures(), mixed.Budget(mac_share=0.7), "int8_minmax", judged=8)
    counts = []
    for index, point in enumerate(report.front):
        graph = onnx.load(report.write(tmp_path / "point.onnx", index).file).graph
        read = {out for n in graph.node if n.op_type == "DequantizeLinear" for out in n.output}
        again = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] in read]
        assert point.converts == len(again)
        counts.append(point.converts)
    assert counts[0] == counts[-1] == 0 < max(counts)


def test_a_wanted_quality_takes_the_first_point_that_has_it(chain):
    report = mixed.search(chain, pictures(), mixed.Budget(sqnr_db=25), "int8_minmax", judged=32)
    assert report.reached
    assert report.point.measured.sqnr_db >= 25
    if report.chosen:
        assert report.front[report.chosen - 1].predicted_db < report.point.predicted_db
    never = mixed.search(chain, pictures(), mixed.Budget(sqnr_db=200), "int8_minmax", judged=8)
    assert not never.reached
    assert "not reached" in str(never)


def test_a_wanted_agreement_is_reached_or_said_to_be_missed(chain):
    report = mixed.search(chain, pictures(), mixed.Budget(agreement=0.9), "int8_minmax", judged=32)
    assert report.reached
    assert report.point.measured.agreement.value >= 0.9
    assert "top-1 agreement of at least 90 %" in str(report)


def test_bytes_are_saved_where_they_cost_least(chain):
    whole = mixed.search(chain, pictures(), mixed.Budget(megabytes=1), "int8_minmax", judged=8)
    assert whole.narrow == ()
    size = whole.point.bytes
    less = mixed.search(
        chain, pictures(), mixed.Budget(megabytes=(size - 20) / 1e6), "int8_minmax", judged=8
    )
    assert less.narrow
    assert less.point.bytes <= size - 20
    assert less.point.predicted_db < whole.point.predicted_db
    with pytest.raises(UsageError, match="All weights at 4 bits"):
        mixed.search(chain, pictures(), mixed.Budget(megabytes=1e-5), "int8_minmax", judged=8)


def test_budgets_are_checked():
    for wrong in ({}, {"mac_share": 0.1, "sqnr_db": 10}, {"mac_share": 15}):
        with pytest.raises(UsageError):
            mixed.Budget(**wrong)
    assert "15 %" in str(mixed.Budget(mac_share=0.15))


def test_edges_of_a_real_export(small_onnx):
    model = prepared(small_onnx(17))
    names = tuple(o for n in model.graph.node for o in n.output)
    ranges = quantize.Ranges(("input", *names), np.zeros((1, 1)), np.zeros((1, 1)))
    found = rounding_noise.edges(model, ranges, quantize.Recipe())
    # a ReLU behind a convolution rounds nothing of its own
    relu = next(n for n in model.graph.node if n.op_type == "Relu")
    assert not [e for e in found if e.tensor == relu.input[0]]
    assert [e for e in found if e.tensor == relu.output[0]]
    add = next(n for n in model.graph.node if n.op_type == "Add")
    assert len([e for e in found if e.reader == add.name]) == 2
    assert [e for e in found if e.reader == rounding_noise.END]


@pytest.mark.htp
@pytest.mark.slow
def test_mixed_widths_run_whole_on_the_htp(small_onnx, inputs, tmp_path):
    source, batch = small_onnx(17), inputs(2, SIZE)
    nodes = [n for n in onnx.load(source).graph.node if "features.8" in n.name]
    overrides = tuple(quantize.recipe.Override(n.name, activations=16) for n in nodes)
    recipe = quantize.Recipe("mixed", overrides=overrides)
    report = quantize.static(source, tmp_path / "m.onnx", inputs(16, SIZE), recipe)
    assert len(report.wide) > 5
    on_ort = runtime.OrtRunner(report.file, optimize=False).run(batch)
    on_htp = runtime.connect(report.file, "htp").run(batch)  # strict: converts are legal
    assert compare.parity(on_ort, on_htp).sqnr_db > 5


@pytest.mark.htp
@pytest.mark.slow
def test_costs_on_the_htp_are_those_of_onnx_runtime(small_onnx, inputs, tmp_path):
    """Without `for_htp` the compiler refuses the convolution and takes the Add's rounding away."""
    report = quantize.static(small_onnx(17), tmp_path / "q.onnx", inputs(16, SIZE))
    nodes = onnx.load(report.file).graph.node
    add = next(n for n in nodes if n.op_type == "Add")
    conv = next(n for n in nodes if n.op_type == "Conv" and "features.9" in n.name)
    asked = {"layers": [add.name, conv.name]}
    on_ort = compare.sensitivity(small_onnx(17), report.file, inputs(2, SIZE), **asked)
    on_htp = compare.sensitivity(small_onnx(17), report.file, inputs(2, SIZE), "htp", **asked)
    assert "HTP" in on_htp.runtime
    for ours, theirs in zip(on_ort.rows, on_htp.rows, strict=True):
        assert theirs.refused == ""
        assert theirs.alone_db == pytest.approx(ours.alone_db, abs=3)
        assert np.isfinite(theirs.without_db)


@pytest.mark.htp
@pytest.mark.slow
def test_a_chip_without_floats_says_why_it_takes_no_float_layer(small_onnx, inputs, tmp_path):
    report = quantize.static(small_onnx(17), tmp_path / "q.onnx", inputs(16, SIZE))
    add = next(n.name for n in onnx.load(report.file).graph.node if n.op_type == "Add")
    asked = {"layers": [add], "soc": "SM8350"}
    found = compare.sensitivity(small_onnx(17), report.file, inputs(2, SIZE), "htp", **asked)
    row = found.rows[0]
    assert np.isfinite(found.whole_db)
    assert np.isnan(row.alone_db) and np.isnan(row.share)
    assert "does not compile" in row.refused and "What to do" not in row.refused
    assert "Refused, features.3 Add: " in str(found)
