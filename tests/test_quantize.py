"""Static quantization of real exports: what is quantized, how well, and what is refused."""

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from labutils import compare, metrics, paths, quantize, runtime
from labutils.errors import LabError, ModelFileError, UnknownNameError, UsageError
from labutils.images import data
from labutils.models import zoo
from labutils.quantize import equalize, insertion, ptq, rounding, stored
from labutils.quantize import ranges as quantize_ranges
from labutils.quantize.recipe import Calibration, Override, Weights

SIZE = 64
PREPROCESSING = data.Preprocessing(SIZE)
OPSETS = {"torchscript": 17, "dynamo": 18}


@pytest.fixture(scope="module")
def calibration():
    return data.calibration(128, SIZE)


@pytest.fixture(scope="module")
def ranges(small_onnx, calibration):
    return quantize.measure_ranges(small_onnx(17), calibration, PREPROCESSING)


def tiny(tmp_path, weight=None, shape=(1, 3, 8, 8), name="tiny.onnx", node_name=""):
    """A convolution, a HardSwish and a global pool, without node names unless asked."""
    if weight is None:
        weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "w"], ["a"], pads=[1] * 4, name=node_name),
            helper.make_node("HardSwish", ["a"], ["b"]),
            helper.make_node("GlobalAveragePool", ["b"], ["c"]),
            helper.make_node("Flatten", ["c"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"mean": "0.5", "layout": "NCHW"})
    onnx.save(model, tmp_path / name)
    return tmp_path / name


def noise(n=8, size=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3, size, size)).astype(np.float32)


def operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


# ---------------------------------------------------------------- both exporters


@pytest.mark.slow
@pytest.mark.parametrize("exporter", OPSETS)
@pytest.mark.parametrize("bits", ["int8", "a16w8"])
def test_both_exports_are_quantized_whole(
    exporter, bits, small_onnx, calibration, ranges, inputs, tmp_path
):
    source, opset = small_onnx(OPSETS[exporter]), OPSETS[exporter]
    known = ranges if opset == 17 else calibration
    report = quantize.static(source, tmp_path / "q.onnx", known, bits, preprocessing=PREPROCESSING)
    before, after = operators(source), operators(report.file)
    apart = before["HardSwish"] - after["HardSwish"]  # each then has convolutions for its factors
    assert before["Conv"] == 52 and apart <= after["Conv"] - 52 <= 2 * apart
    assert report.quantized["Conv"] == after["Conv"]
    assert after["HardSwish"] > 15 and (apart == 0 or bits == "int8")
    assert report.quantized["Gemm"] == 2
    assert report.left == ()
    assert report.opset == opset
    assert report.bytes_after < report.bytes_before / 2.5
    assert report.images == 128
    names = [node.name for node in onnx.load(report.file).graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    reference, candidate = runtime.connect(source), runtime.connect(report.file)
    batch = inputs(32, SIZE)
    found = compare.parity(reference.run(batch), candidate.run(batch))
    assert found.sqnr_db > {"int8": 4, "a16w8": 12}[bits]


def test_types_scales_and_zero_points_are_those_of_the_name(small_onnx, ranges, tmp_path):
    kinds = {"int8": TensorProto.UINT8, "a16w8": TensorProto.UINT16}
    for bits, activation in kinds.items():
        report = quantize.static(small_onnx(17), tmp_path / f"{bits}.onnx", ranges, bits)
        model = onnx.load(report.file)
        values = {t.name: t for t in model.graph.initializer}
        points = [n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear"]
        assert {values[name].data_type for name in points} == {activation}
        maker = {o: n for n in model.graph.node for o in n.output}
        for conv in (n for n in model.graph.node if n.op_type == "Conv"):
            weight = maker[conv.input[1]]
            assert weight.op_type == "DequantizeLinear"
            stored = numpy_helper.to_array(values[weight.input[0]])
            assert stored.dtype == np.int8
            assert numpy_helper.to_array(values[weight.input[1]]).shape == (stored.shape[0],)
            assert not numpy_helper.to_array(values[weight.input[2]]).any()  # symmetric


def test_per_tensor_weights_have_one_scale(small_onnx, ranges, tmp_path):
    report = quantize.static(small_onnx(17), tmp_path / "t.onnx", ranges, "int8_tensor")
    model = onnx.load(report.file)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    scales = [n.input[1] for n in model.graph.node if n.op_type == "DequantizeLinear"]
    assert {values[name].size for name in scales} == {1}
    assert "per tensor" in str(report)


# ---------------------------------------------------------------- ranges


def test_ranges_are_those_of_every_image(tmp_path):
    source, images = tiny(tmp_path), noise(40)
    found = quantize.measure_ranges(source, images)
    assert found.tensors == ("input", "a", "b", "c", "logits")
    assert found.low.shape == found.high.shape == (40, 5)
    assert found.low[:, 0] == pytest.approx(images.reshape(40, -1).min(axis=1))
    assert found.high[:, 0] == pytest.approx(images.reshape(40, -1).max(axis=1))
    logits = runtime.connect(source).run(images)
    assert found.high[:, -1] == pytest.approx(logits.max(axis=1), rel=1e-5)


@given(st.integers(2, 300), st.floats(0, 0.49))
def test_outliers_only_narrow_a_range(n, share):
    rng = np.random.default_rng(n)
    low = -np.abs(rng.normal(size=(n, 3))).astype(np.float32)
    found = ptq.Ranges(("a", "b", "c"), low, -2 * low)
    plain, robust = found.limits(), found.limits(share)
    for i, name in enumerate(found.tensors):
        assert plain[name] == (low[:, i].min(), (-2 * low[:, i]).max())
        assert plain[name][0] <= robust[name][0] <= robust[name][1] <= plain[name][1]


def test_one_odd_calibration_image_does_not_spoil_eight_bits(tmp_path):
    source, images = tiny(tmp_path), noise(128)
    images[17] *= 40  # forty times the contrast: as one image in 256 did to MobileNetV3-Large
    test = noise(64, seed=1)
    reference = runtime.connect(source).run(test)

    def sqnr(**settings):
        report = quantize.static(source, tmp_path / "q.onnx", images, **settings)
        return compare.parity(reference, runtime.connect(report.file).run(test)).sqnr_db

    assert sqnr() > sqnr(outliers=0) + 10
    assert sqnr(recipe="a16w8") > 30  # sixteen bits reach over it: the default there is min-max


def test_sixteen_bits_have_room_for_images_that_calibration_has_not_seen(tmp_path):
    source, images = tiny(tmp_path), noise(64)
    loud = 1.2 * noise(64)  # beyond every range by a fifth
    reference = runtime.connect(source).run(loud)

    def sqnr(recipe):
        report = quantize.static(source, tmp_path / "q.onnx", images, recipe)
        return compare.parity(reference, runtime.connect(report.file).run(loud)).sqnr_db

    assert sqnr("a16w8_room") > sqnr("a16w8") + 6


def test_room_leaves_the_ends_of_a_clip_where_they_are(tmp_path):
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], pads=[1] * 4, name="conv"),
        helper.make_node("Clip", ["a", "zero", "six"], ["c"], name="clip"),
        helper.make_node("Conv", ["c", "w"], ["output"], pads=[1] * 4, name="last"),
    ]
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(3, 3, 3, 3)), "zero": 0.0, "six": 6.0}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 8, 8])
            for n in ("input", "output")]  # fmt: skip
    graph = helper.make_graph(nodes, "clipped", ends[:1], ends[1:], [
        numpy_helper.from_array(np.array(v, np.float32), k) for k, v in constants.items()
    ])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "clipped.onnx")
    images = 4 * noise(16)
    report = quantize.static(tmp_path / "clipped.onnx", tmp_path / "q.onnx", images, "a16w8_room")
    found = runtime.connect(report.file).run(images)
    reference = runtime.connect(tmp_path / "clipped.onnx").run(images)
    assert metrics.sqnr_db(reference, found) > 30


def test_measured_ranges_give_the_same_file_as_images(tmp_path):
    source, images = tiny(tmp_path), noise()
    ranges = quantize.measure_ranges(source, images)
    first = quantize.static(source, tmp_path / "a.onnx", images)
    second = quantize.static(source, tmp_path / "b.onnx", ranges)
    assert first.file.read_bytes() == second.file.read_bytes()
    alien = ptq.Ranges(("other",), np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32))
    with pytest.raises(UsageError, match="another model"):
        quantize.static(source, tmp_path / "c.onnx", alien)


# ---------------------------------------------------------------- the file, and nothing else


def test_no_output_no_leftovers_and_the_same_bytes_in_every_process(tmp_path):
    source = tiny(tmp_path)
    np.save(tmp_path / "images.npy", noise())
    script = (
        "import numpy as np, sys, logging; from labutils import quantize;"
        "quantize.static('tiny.onnx', sys.argv[1], np.load('images.npy'));"
        "quantize.static('tiny.onnx', sys.argv[1] + '16.onnx', np.load('images.npy'), 'a16w8');"
        "assert not logging.root.handlers and logging.root.manager.disable == 0"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for seed, name in (("1", "a.onnx"), ("2", "b.onnx")):
        environment = {
            **os.environ, "PYTHONHASHSEED": seed, "TMPDIR": str(scratch),
            "PYTHONPATH": str(paths.ROOT), "PYTHONWARNINGS": "default",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", script, name], cwd=tmp_path, env=environment, capture_output=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    made = {p.name for p in tmp_path.iterdir()} - {source.name, "images.npy", "scratch"}
    assert made == {"a.onnx", "b.onnx", "a.onnx16.onnx", "b.onnx16.onnx"}
    assert {p.name for p in scratch.iterdir()} <= {".ses"}  # ONNX Runtime's own, at import
    for end in ("", "16.onnx"):
        files = tmp_path / f"a.onnx{end}", tmp_path / f"b.onnx{end}"
        assert files[0].read_bytes() == files[1].read_bytes()


def test_metadata_names_and_shapes_survive(tmp_path):
    source = tiny(tmp_path)
    report = quantize.static(source, tmp_path / "q.onnx", noise())
    model = onnx.load(report.file)
    assert {p.key: p.value for p in model.metadata_props} == {"mean": "0.5", "layout": "NCHW"}
    assert [i.name for i in model.graph.input] == ["input"]
    assert [o.name for o in model.graph.output] == ["logits"]
    assert all(node.name for node in model.graph.node)  # the source had none
    assert not onnx.load(source).graph.node[0].name  # and was left alone


def test_excluded_nodes_stay_in_float_and_are_reported(tmp_path):
    source = tiny(tmp_path, node_name="first")
    report = quantize.static(source, tmp_path / "q.onnx", noise(), exclude=["first"])
    conv = next(n for n in onnx.load(report.file).graph.node if n.op_type == "Conv")
    assert conv.input[1] == "w"
    assert report.excluded == ("first",)
    assert "Conv" not in report.quantized
    assert "first" in str(report)
    with pytest.raises(UnknownNameError, match="Did you mean first"):
        quantize.static(source, tmp_path / "q.onnx", noise(), exclude=["frist"])


def test_report_as_text_and_html_say_the_same(tmp_path):
    report = quantize.static(tiny(tmp_path), tmp_path / "q.onnx", noise())
    text, markup = str(report), report._repr_html_()
    trimmed = "8 calibration images, 5 % of them left out on either side (1 % for vectors)"
    for words in ("per channel", trimmed, "1 Conv", "opset 17"):
        assert words in text
        assert words in markup


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_quantized_is_refused_and_nothing_is_written(tmp_path):
    good = tiny(tmp_path)
    quantized = quantize.static(good, tmp_path / "q.onnx", noise()).file
    dynamic = tiny(tmp_path, shape=("n", 3, 8, 8), name="dynamic.onnx")
    four = tiny(tmp_path, shape=(4, 3, 8, 8), name="four.onnx")
    broken = np.full((4, 3, 3, 3), np.nan, np.float32)
    poisoned = tiny(tmp_path, weight=broken, name="nan.onnx")
    huge = tiny(tmp_path, weight=np.full((4, 3, 3, 3), 3e38, np.float32), name="huge.onnx")
    images = noise()
    holed = images.copy()
    holed[5, 0, 0, 0] = np.nan
    pixels = data.ImageSet(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, int), ("a",), "blank")
    cases = [
        ((quantized, images), ModelFileError, "quantized already"),
        ((dynamic, images), ModelFileError, "fixed shape with batch 1"),
        ((four, images), ModelFileError, "fixed shape with batch 1"),
        ((poisoned, images), ModelFileError, "'w' of nan.onnx"),
        ((huge, images), ModelFileError, "Tensor 'a'"),
        ((tmp_path / "none.onnx", images), ModelFileError, "no model file"),
        ((good, images[:0]), UsageError, "there were none"),
        ((good, holed), UsageError, "image 5 holds NaN"),
        ((good, noise(size=9)), UsageError, "takes float32"),
        ((good, images.astype(np.float64)), UsageError, "float64"),
        ((good, pixels), UsageError, "preprocessing="),
        ((good, images, "int4"), UnknownNameError, "Did you mean int8"),
    ]
    for arguments, error, words in cases:
        with pytest.raises(error) as caught:
            quantize.static(arguments[0], tmp_path / "out.onnx", *arguments[1:])
        assert words in str(caught.value), words
    with pytest.raises(UsageError, match="share of images"):
        quantize.static(good, tmp_path / "out.onnx", images, outliers=0.5)
    assert not (tmp_path / "out.onnx").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_convolution_left_in_float_is_an_error(tmp_path):
    model = onnx.load(tiny(tmp_path, node_name="first"))
    with pytest.raises(LabError, match="Conv 'first' was not quantized"):
        insertion.verify(model, "x.onnx", ())
    assert insertion.verify(model, "x.onnx", ("first",))[0] == {}


# ---------------------------------------------------------------- the trained network, and the HTP


@pytest.mark.slow
@pytest.mark.skipif(
    not (paths.CHECKPOINTS / "mobilenet_v3_large.safetensors").exists(),
    reason="the trained checkpoint is not in data/checkpoints",
)
def test_the_shipped_network_keeps_its_classes(tmp_path, inputs):
    from labutils import export

    model = zoo.load("mobilenet_v3_large", weights="things16")
    source = tmp_path / "float.onnx"
    export.to_onnx(model.module, source, size=128, opset=17)
    ranges = quantize.measure_ranges(source, data.calibration(64, 128), model.preprocessing)
    batch = inputs(96, 128)
    reference = runtime.connect(source).run(batch)
    for bits, least in (("int8", 0.96), ("a16w8", 0.99)):
        report = quantize.static(source, tmp_path / f"{bits}.onnx", ranges, bits)
        found = compare.parity(reference, runtime.connect(report.file).run(batch))
        assert found.agreement.interval[1] >= least, str(found)
        assert found.sqnr_db > 10


@pytest.mark.htp
@pytest.mark.slow
def test_quantized_files_run_whole_on_the_htp(small_onnx, ranges, inputs, tmp_path):
    batch = inputs(2, SIZE)
    for bits in ("int8", "a16w8"):
        report = quantize.static(small_onnx(17), tmp_path / f"{bits}.onnx", ranges, bits)
        on_ort = runtime.OrtRunner(report.file, optimize=False).run(batch)
        on_htp = runtime.connect(report.file, "htp").run(batch)  # strict: no node on the CPU
        assert compare.parity(on_ort, on_htp).sqnr_db > {"int8": 5, "a16w8": 20}[bits]


# ---------------------------------------------------------------- recipes


def test_power_of_two_scales_are_powers_of_two_and_bias_scales_too(tmp_path):
    report = quantize.static(tiny(tmp_path), tmp_path / "q.onnx", noise(), "pow2")
    model = onnx.load(report.file)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    pairs = ("QuantizeLinear", "DequantizeLinear")
    for node in (n for n in model.graph.node if n.op_type in pairs):
        mantissa, _ = np.frexp(values[node.input[1]])
        assert (mantissa == 0.5).all(), node.name
        zero = values[node.input[2]]
        assert (zero == (128 if zero.dtype == np.uint8 else 0)).all()
    assert "power-of-two" in str(report)


def test_four_bit_weights_are_stored_in_four_bits(small_onnx, ranges, tmp_path):
    eight = quantize.static(small_onnx(17), tmp_path / "8.onnx", ranges)
    four = quantize.static(small_onnx(17), tmp_path / "4.onnx", ranges, "w4a8")
    kinds = Counter(t.data_type for t in onnx.load(four.file).graph.initializer)
    assert kinds[TensorProto.INT4] > 2 * 50  # codes and zero points of 54 layers
    assert four.bytes_after < 0.65 * eight.bytes_after


def mixed_recipe(*overrides, **settings):
    return quantize.Recipe("mine", overrides=tuple(overrides), **settings)


def test_a_wide_node_reads_and_writes_sixteen_bits(small_onnx, ranges, inputs, tmp_path):
    model = onnx.load(small_onnx(17))
    node = next(n for n in model.graph.node if n.op_type == "Add")
    recipe = mixed_recipe(Override(node.name, activations=16))
    report = quantize.static(small_onnx(17), tmp_path / "m.onnx", ranges, recipe)
    assert report.wide == (node.name,)
    made = onnx.load(report.file)
    values = {t.name: t for t in made.graph.initializer}
    maker = {o: n for n in made.graph.node for o in n.output}
    for other in made.graph.node:
        if other.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        kinds = {
            values[maker[i].input[2]].data_type
            for i in other.input
            if i in maker and maker[i].op_type == "DequantizeLinear"
        } & {TensorProto.UINT8, TensorProto.UINT16}
        wanted = TensorProto.UINT16 if other.name == node.name else TensorProto.UINT8
        assert kinds == {wanted}, other.name
    runtime.OrtRunner(report.file).run(inputs(1, SIZE))
    plain = quantize.static(small_onnx(17), tmp_path / "p.onnx", ranges, mixed_recipe())
    names = [n.name for n in made.graph.node if n.op_type == "QuantizeLinear"]
    assert len(names) > operators(plain.file)["QuantizeLinear"]


def test_onnxruntimes_own_converts_work_on_a_named_graph(small_onnx, ranges, inputs, tmp_path):
    """`init_overrides` with `add_qtype_converts` failed on a graph whose nodes had no names."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    from labutils.quantize.prepare import prepared

    model = prepared(small_onnx(17))
    tensor = next(n.output[0] for n in model.graph.node if n.op_type == "Add")
    limits = ranges.limits()
    pairs = {k: tuple(np.array([v], np.float32) for v in pair) for k, pair in limits.items()}
    with insertion.no_log():
        qnn = get_qnn_qdq_config(
            model, None, init_overrides={tensor: [{"quant_type": QuantType.QUInt16}]},
            add_qtype_converts=True, weight_type=QuantType.QInt8, per_channel=True,
        )  # fmt: skip
        quantizer = QDQQuantizer(
            model, True, False, QuantType.QInt8, QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, pairs), [], [],
            sorted(qnn.op_types_to_quantize), qnn.extra_options,
        )  # fmt: skip
        quantizer.quantize_model()
    quantizer.model.topological_sort()
    onnx.save(quantizer.model.model, tmp_path / "theirs.onnx")
    assert any("_convert" in n.name for n in quantizer.model.model.graph.node)
    runtime.OrtRunner(tmp_path / "theirs.onnx").run(inputs(1, SIZE))


def test_an_exception_that_fits_no_node_is_refused(tmp_path):
    source = tiny(tmp_path, node_name="first")
    with pytest.raises(UnknownNameError, match="Did you mean first"):
        quantize.static(source, tmp_path / "q.onnx", noise(), mixed_recipe(Override("frist")))
    with pytest.raises(UnknownNameError, match="Did you mean Conv"):
        quantize.static(source, tmp_path / "q", noise(), mixed_recipe(Override(op_type="Convv")))
    with pytest.raises(UnknownNameError, match="first"):
        quantize.static(source, tmp_path / "q.onnx", noise(), mixed_recipe(exclude=("frist*",)))


def test_integer_ends_take_and_give_the_codes(tmp_path):
    import onnxruntime as ort

    source, images = tiny(tmp_path), noise()
    plain = quantize.static(source, tmp_path / "f.onnx", images, mixed_recipe())
    ends = mixed_recipe(input="quantized", output="quantized")
    report = quantize.static(source, tmp_path / "q.onnx", images, ends)
    model = onnx.load(report.file)
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.UINT8
    floats = onnx.load(plain.file)
    values = {t.name: numpy_helper.to_array(t) for t in floats.graph.initializer}
    first = next(n for n in floats.graph.node if n.input and n.input[0] == "input")
    last = next(n for n in floats.graph.node if "logits" in n.output)
    scale, zero = (values[name] for name in first.input[1:])
    codes = np.clip(np.round(images[:1] / scale) + zero, 0, 255).astype(np.uint8)
    plain_session = ort.SessionOptions()
    plain_session.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found = ort.InferenceSession(report.file, plain_session).run(None, {"input": codes})[0]
    scale, zero = (values[name] for name in last.input[1:])
    exact = runtime.OrtRunner(plain.file, optimize=False).run(images[:1])
    assert ((found.astype(float) - zero) * scale) == pytest.approx(exact, abs=1e-6)


# ---------------------------------------------------------------- ways to choose a range


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 50), st.sampled_from([4, 8]), st.floats(1, 40))
def test_the_least_error_is_not_above_that_of_the_whole_range(seed, bits, reach):
    rng = np.random.default_rng(seed)
    values = np.sort(np.r_[rng.normal(size=500), reach])
    counts = np.ones(len(values))
    low, high = quantize_ranges.least_error(counts, values, bits)

    def error(a, b):
        scale = (b - a) / (2**bits - 1)
        kept = np.clip(np.round((values - a) / scale), 0, 2**bits - 1) * scale + a
        return ((values - kept) ** 2).sum()

    whole = min(values[0], 0), max(values[-1], 0)
    assert whole[0] <= low <= 0 <= high <= whole[1] + 1e-9
    assert error(low, high) <= error(*whole) + 1e-9


def test_methods_clip_what_is_rare(tmp_path):
    source, images = tiny(tmp_path), noise(64)
    ranges = quantize.measure_ranges(source, images, histograms=True)
    assert sum(ranges.histograms["a"]) == 64 * 4 * 8 * 8
    whole = ranges.limits()["a"]
    for method in ("percentile", "mse", "entropy"):
        calibration = Calibration(method, percentile=99.0)
        low, high = ranges.chosen(calibration, bits=4)["a"]  # a normal tail costs 4 bits too much
        assert whole[0] - 1e-3 <= low <= 0 <= high <= whole[1] + 1e-3
        if method != "entropy":
            assert high - low < 0.9 * (whole[1] - whole[0]), method
        file = tmp_path / f"{method}.onnx"
        report = quantize.static(source, file, ranges, mixed_recipe(calibration=calibration))
        assert f"{report.images}" in str(report)
    with pytest.raises(UsageError, match="histograms"):
        quantize.measure_ranges(source, images).chosen(Calibration("mse"))


def test_entropy_leaves_a_lone_value_out():
    edges = np.linspace(-40, 40, quantize_ranges.BINS + 1)
    counts = np.histogram(np.random.default_rng(0).normal(size=200_000), edges)[0]
    counts[-1] += 1  # at 40 standard deviations
    low, high = quantize_ranges._least_divergence(counts, edges, 8)
    assert -20 < low < -2
    assert 2 < high < 20


# ---------------------------------------------------------------- repairs of the weights


def test_equalization_is_exact_and_levels_the_filters(small_onnx, inputs, tmp_path):
    from labutils.quantize.prepare import prepared

    model = prepared(small_onnx(17))
    batch = inputs(4, SIZE)
    before = runtime.connect(small_onnx(17)).run(batch)
    found = equalize.equalize_(model)
    onnx.save(model, tmp_path / "equal.onnx")
    after = runtime.connect(tmp_path / "equal.onnx").run(batch)
    assert compare.parity(before, after).sqnr_db > 80
    assert len(found.pairs) > 8
    assert found.largest > 1.2
    # through HardSwish nothing passes: the stem's convolution feeds one
    assert "HardSwish" in found.ended["/features/features.0/features.0.0/Conv"]
    gated = next(readers for readers in found.pairs.values() if len(readers) > 1)
    assert any("fc1" in name for name in gated)  # through the squeeze-excitation


def test_bias_correction_takes_the_mean_error_away(tmp_path):
    rng = np.random.default_rng(1)
    source = with_bias(tmp_path, rng.normal(size=(4, 3, 3, 3)).astype(np.float32))
    images = np.abs(noise(64))  # all positive: an error of the weights has a mean
    wanted = runtime.connect(source).run(images).mean(axis=0)
    off = {}
    for correct in (False, True):
        weights = Weights(4, mse=True)
        recipe = mixed_recipe(correct_bias=correct, weights=weights)
        report = quantize.static(source, tmp_path / f"{correct}.onnx", images, recipe)
        off[correct] = np.abs(runtime.connect(report.file).run(images).mean(axis=0) - wanted).max()
    assert off[True] < 0.3 * off[False]
    assert "biases of 1 layer:" in str(report)


def with_bias(tmp_path, weight):
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "w", "b"], ["a"], pads=[1] * 4, name="conv"),
            helper.make_node("GlobalAveragePool", ["a"], ["c"], name="pool"),
            helper.make_node("Flatten", ["c"], ["logits"], name="flat"),
        ],
        "biased",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, len(weight)])],
        [numpy_helper.from_array(weight, "w"),
         numpy_helper.from_array(np.zeros(len(weight), np.float32), "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "biased.onnx")
    return tmp_path / "biased.onnx"


def test_adaptive_rounding_errs_less_at_the_output_than_nearest(tmp_path):
    rng = np.random.default_rng(2)
    source = with_bias(tmp_path, rng.normal(size=(8, 3, 3, 3)).astype(np.float32))
    images = noise(64) + 3 * noise(64, seed=5).mean(axis=(2, 3), keepdims=True) * 8  # correlated
    errors, moved = {}, None
    for way in ("nearest", "adaptive"):
        recipe = mixed_recipe(rounding=way, weights=Weights(4))
        report = quantize.static(source, tmp_path / f"{way}.onnx", images, recipe)
        layer = compare.per_layer(source, report.file, images[:16]).rows[0]
        errors[way], moved = layer.sqnr_db, report.repairs
    assert errors["adaptive"] > errors["nearest"] + 1
    assert "moved" in moved[0]


def test_a_change_that_harms_the_logits_is_put_back(tmp_path):
    rng = np.random.default_rng(3)
    source = with_bias(tmp_path, rng.normal(size=(4, 3, 3, 3)).astype(np.float32))
    quantize.static(source, tmp_path / "q.onnx", noise(8), "int8")
    model, reference = onnx.load(tmp_path / "q.onnx"), onnx.load(source)
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    weight = stored.stored_input(model, conv, 1)
    before, judge = weight.codes.copy(), rounding._Judge(model, reference, noise(8))
    weight.write_(before[::-1])
    assert not judge.keeps(weight)
    assert judge.best == judge.first > 20
    assert (stored.stored_input(model, conv, 1).codes == before).all()


def test_recipes_that_need_images_refuse_ranges(tmp_path):
    source = tiny(tmp_path)
    ranges = quantize.measure_ranges(source, noise())
    for wish in ({"equalize": True}, {"rounding": "adaptive"}):
        with pytest.raises(UsageError, match="images"):
            quantize.static(source, tmp_path / "q.onnx", ranges, mixed_recipe(**wish))
