"""Static quantization of real exports: what is quantized, how well, and what is refused."""

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from labutils import compare, data, paths, quantize, runtime, zoo
from labutils.errors import LabError, ModelFileError, UnknownNameError, UsageError
from labutils.quantize import insertion, ptq

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
    assert after["Conv"] == before["Conv"] == report.quantized["Conv"] == 52
    assert after["HardSwish"] == before["HardSwish"] > 15  # not taken apart
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
    report = quantize.static(small_onnx(17), tmp_path / "t.onnx", ranges, per_channel=False)
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
    assert sqnr(bits="a16w8") > 30  # sixteen bits reach over it: the default there is min-max


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
    for words in ("per channel", "99 % of 8 calibration images", "1 Conv", "opset 17"):
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
        ((good, images, "int4"), UnknownNameError, "Did you mean int8?"),
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
    ranges = quantize.measure_ranges(source, data.calibration(128, 128), model.preprocessing)
    batch = inputs(200, 128)
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
