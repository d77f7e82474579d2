"""`targets.convert`: a DLC gets its name only after it was executed and compared."""

import dataclasses
import json

import known_wrong
import numpy as np
import onnx
import pytest
from cases.draft import CLASSES, Draft
from onnx import TensorProto, helper, numpy_helper

from labutils import dlc, manifests, pipeline, quantize, runtime, surgery, targets
from labutils.errors import (
    ConvertError,
    ParityError,
    TranslationError,
    UnknownNameError,
    UsageError,
)
from labutils.images import data
from labutils.models import zoo

pytestmark = pytest.mark.htp


@pytest.fixture(scope="module")
def patched_onnx(small_onnx, tmp_path_factory):
    path = tmp_path_factory.mktemp("patched") / "patched.onnx"
    surgery.replace_file(small_onnx(17), path)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def two_headed(file, names):
    """Write a classifier of two outputs, whose values are nowhere near each other."""
    draft = Draft(shape=(1, 3, 16, 16))
    draft.head(draft.stem(), output=names[0])
    draft.node("Mul", [names[0], draft.weight("times", np.float32(-5))], names[1])
    onnx.save(draft.finish([(name, (1, CLASSES)) for name in names]), file)


@pytest.mark.parametrize(
    "pair", [("a/b", "a_b"), ("größe", "gr____e"), ("出", "1"), ("s:0", "s.0")]
)
def test_a_dlcs_outputs_have_the_names_of_the_file(pair, tmp_path):
    file, inputs = tmp_path / "m.onnx", np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    two_headed(file, pair)
    dlc.writing.write(file, tmp_path / "m.dlc")
    with runtime.connect(file) as ours, runtime.connect(tmp_path / "m.dlc") as theirs:
        expected, found = ours.tensors(inputs), theirs.tensors(inputs)
    assert set(found) == set(pair)
    for name in pair:
        peak = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=0.02 * peak)


@pytest.mark.parametrize("recipe", ["int8", "a16w8"])
def test_a_file_that_is_quantized_already_becomes_a_dlc_of_its_integers(recipe, lab, tmp_path):
    stated = ["--mean", ".5", ".5", ".5", "--std", ".5", ".5", ".5"]
    file, made = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    two_headed(file, ("scores", "more"))
    quantize.static(file, made, np.random.default_rng(1).random((8, 3, 16, 16), np.float32), recipe)
    code, out, err = lab("convert", made, *stated, "--target", "qnn", "-o", tmp_path / "m.dlc")
    assert code == 0, err
    assert f"m.dlc: {recipe} DLC for qnn" in out


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_float_dlc_is_run_and_recorded(precision, small, patched_onnx, inputs, tmp_path):
    lines = []
    with runtime.connect(small) as reference:
        made = dlc.convert(
            patched_onnx,
            "snpe-2.7",
            tmp_path / "m.dlc",
            dlc.Gate(reference, inputs(4, 64), check_top1=False),
            dlc.Device(precision=precision),
            echo=lines.append,
        )
    assert names(tmp_path) == ["m.dlc", "m.dlc.json", "m.dlc.manifest.json"]
    assert made.gate.passed
    assert "DLC on HTP simulator" in made.gate.candidate  # the DLC itself was executed
    assert any("INFO_CONVERSION_SUCCESS" in line for line in lines)
    assert "not tested on an SNPE 2.7 runtime" in made.claim
    manifest = json.loads(made.manifest.read_text())
    assert manifest["opset"] == 17
    assert manifest["gate"]["passed"] is True
    assert manifest["claim"] == made.claim
    assert made.info.precision.startswith(precision)


def test_an_integer_dlc(small, patched_onnx, inputs, tmp_path):
    quantized = tmp_path / "q.onnx"
    quantize.static(patched_onnx, quantized, inputs(16, 64), "a16w8")
    with runtime.connect(small) as reference:
        made = dlc.convert(
            patched_onnx,
            "qnn",
            tmp_path / "q.dlc",
            dlc.Gate(reference, inputs(4, 64), min_cosine=0.9, check_top1=False),  # random weights
            dlc.Device(precision="a16w8"),
            quantized=quantized,
        )
    assert made.gate.overridden == {"cosine": (0.9, 0.99)}
    assert "OVERRIDDEN" in str(made)
    assert json.loads(made.manifest.read_text())["gate"]["overridden"] == {"cosine": [0.9, 0.99]}


def test_the_table_stops_what_snpe_cannot_translate(small, small_onnx, inputs, tmp_path):
    with runtime.connect(small) as reference, pytest.raises(TranslationError, match="hardswish"):
        dlc.convert(
            small_onnx(17),
            "snpe-2.7",
            tmp_path / "m.dlc",
            dlc.Gate(reference, inputs(2, 64)),
        )
    assert names(tmp_path) == []


UNTOLD = [build for build in known_wrong.ALL if build not in known_wrong.TOLD]


@pytest.mark.parametrize("build", UNTOLD, ids=lambda build: build.__name__)
def test_conversions_that_succeed_and_are_wrong_write_nothing(build, tmp_path):
    source, batch = build(tmp_path)
    out = tmp_path / "out"
    with runtime.connect(source) as reference, pytest.raises(ParityError) as caught:
        gate = dlc.Gate(reference, batch, check_top1=False)
        dlc.convert(source, "qnn", out / "m.dlc", gate)
    assert caught.value.report.parity.cosine_min < 0.9
    assert names(out) == []


def test_an_output_that_no_dlc_can_hold_is_refused_by_the_users_name(tmp_path):
    """QNN leaves an output out that is a weight."""
    source, _ = known_wrong.hardswish_of_opset_13(tmp_path)
    model = onnx.load(source)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 4), np.float32), "anchors"))
    model.graph.node.append(helper.make_node("Identity", ["anchors"], ["boxes"], name="/boxes"))
    model.graph.output.append(helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 4]))
    onnx.save(model, source)
    with pytest.raises(ConvertError, match=r"^mine\.dlc does not hold the graph of ") as caught:
        dlc.write(source, tmp_path / "mine.dlc")
    assert "remove it from the graph" in str(caught.value)
    assert "QNNExecutionProvider" not in str(caught.value)
    assert not (tmp_path / "mine.dlc").exists()


@pytest.mark.parametrize("way", ["dynamic", "operators"])
def test_a_file_quantized_in_a_way_that_no_dlc_holds_is_refused_with_the_way_on(way, tmp_path):
    from onnxruntime import quantization

    weights = np.random.default_rng(0).normal(size=(3, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"], name="/a/Conv"),
        helper.make_node("Relu", ["c"], ["pixels"], name="/a/Relu"),
    ]
    source, images = known_wrong.build(
        tmp_path / "f.onnx", nodes, size=16, opset=17, constants={"w": weights}
    )
    made = tmp_path / "q.onnx"
    if way == "dynamic":
        quantization.quantize_dynamic(source, made)
    else:
        quantization.quantize_static(
            source, made, _Images(images), quant_format=quantization.QuantFormat.QOperator
        )
    first = {"dynamic": "DynamicQuantizeLinear 'input", "operators": "QLinearConv '/a/Conv"}[way]
    model = dataclasses.replace(zoo.load(made), preprocessing=data.Preprocessing(16))
    for target in ("qnn", "snpe-2.7"):
        with pytest.raises(TranslationError, match=rf"{first}.*--quantize int8") as caught:
            pipeline.convert_model(model, target, tmp_path / "q.dlc")
        assert "--repair" not in str(caught.value)


class _Images:
    """What ONNX Runtime's calibration reads from."""

    def __init__(self, images):
        self.left = iter([{"input": image[None]} for image in images])

    def get_next(self):
        return next(self.left, None)


def test_a_weight_that_is_dequantized_is_within_its_limits(tmp_path):
    weights = {"w": np.ones((3, 3, 1, 1), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"], name="/w"),
        helper.make_node("Conv", ["input", "v"], ["pixels"], name="/a/Conv"),
    ]
    source, _ = known_wrong.build(tmp_path / "f.onnx", nodes, size=8, opset=17, constants=weights)
    assert {node.verdict for node in targets.check(source, "qnn").nodes} == {"supported"}


def test_an_output_without_a_shape_is_written(tmp_path):
    source, _ = known_wrong.hardswish_of_opset_13(tmp_path)
    model = onnx.load(source)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, source)
    assert dlc.write(source, tmp_path / "m.dlc").outputs[0].shape == (1, 768)


@pytest.mark.parametrize("target", ["qnn", "snpe-2.7"])  # for every target, QNN writes the DLC
@pytest.mark.parametrize("build", known_wrong.TOLD, ids=lambda build: build.__name__)
def test_what_the_htp_is_known_to_compute_otherwise_is_refused(build, target, tmp_path):
    source, batch = build(tmp_path)
    out = tmp_path / "out"
    with runtime.connect(source) as reference, pytest.raises(TranslationError) as caught:
        dlc.convert(source, target, out / "m.dlc", dlc.Gate(reference, batch, check_top1=False))
    assert caught.value.op_type in ("Resize", "Pad")
    assert "silently computes another function" in str(caught.value) and caught.value.node in str(
        caught.value
    )
    assert names(out) == []
    repaired = pipeline.apply(source, "qnn", tmp_path / "repaired.onnx")
    with runtime.connect(source) as reference:
        gate = dlc.Gate(reference, batch, check_top1=False)
        assert dlc.convert(repaired.file, "qnn", out / "m.dlc", gate).gate.passed


def test_what_fails_is_kept_under_another_name_where_it_is_to_be_looked_into(tmp_path):
    source, batch = known_wrong.average_pool_with_ceil_mode(tmp_path)
    out = tmp_path / "out"
    with runtime.connect(source) as reference:
        gate = dlc.Gate(reference, batch, check_top1=False, keep_failed=True)
        made = dlc.convert(source, "qnn", out / "m.dlc", gate)
    assert names(out) == ["m.failed.dlc", "m.failed.dlc.json", "m.failed.dlc.manifest.json"]
    assert made.file == out / "m.failed.dlc" and not made.gate.passed
    entry = manifests.read(made.file)
    assert entry["gate"]["passed"] is False and entry["file"] == "m.failed.dlc"
    assert entry["claim"].startswith("FAILED the parity gate (")
    with runtime.connect(made.file) as runner:  # it can be run, to see what it computes
        assert len(runner.run(batch)) == len(batch)


def test_a_conversion_that_passes_takes_an_earlier_failure_away(
    small, patched_onnx, inputs, tmp_path
):
    for place in ("m.failed.dlc", "m.failed.dlc.manifest.json"):
        (tmp_path / place).write_text("{}")
    with runtime.connect(small) as reference:
        gate = dlc.Gate(reference, inputs(2, 64), check_top1=False)
        dlc.convert(patched_onnx, "snpe-2.7", tmp_path / "m.dlc", gate)
    assert names(tmp_path) == ["m.dlc", "m.dlc.json", "m.dlc.manifest.json"]


def test_opset_13_hardswish_of_a_whole_network_is_caught(small, small_onnx, inputs, tmp_path):
    with runtime.connect(small) as reference, pytest.raises(ParityError, match="departs"):
        dlc.convert(
            small_onnx(13),
            "qnn",
            tmp_path / "m.dlc",
            dlc.Gate(reference, inputs(2, 64), small_onnx(17), check_top1=False),
        )
    assert names(tmp_path) == []


def test_a_wrong_repair_is_caught_by_the_original(small, small_onnx, inputs, tmp_path):
    """The gate compares with what the user brought: an all-too-simple rule does not pass."""
    import onnx

    model = onnx.load(small_onnx(17))
    for node in model.graph.node:
        if node.op_type == "HardSwish":
            node.op_type = "Relu"
    wrong = tmp_path / "wrong.onnx"
    onnx.save(model, wrong)
    surgery.replace_file(wrong, tmp_path / "repaired.onnx", ("hardsigmoid",))
    with runtime.connect(small) as reference, pytest.raises(ParityError) as caught:
        dlc.convert(
            tmp_path / "repaired.onnx",
            "snpe-2.7",
            tmp_path / "m.dlc",
            dlc.Gate(reference, inputs(2, 64), small_onnx(17), check_top1=False),
        )
    assert caught.value.report.divergence.module == "features.0.2"
    assert not (tmp_path / "m.dlc").exists()


def test_what_qnn_refuses_is_an_error_with_its_reason(tmp_path):
    from onnx import helper

    pool = helper.make_node(
        "MaxPool",
        ["input"],
        ["pixels"],
        name="/pool/MaxPool",
        kernel_shape=[2, 2],
        dilations=[2, 2],
    )
    source, batch = known_wrong.build(tmp_path / "pool.onnx", [pool], size=9, opset=17)
    with runtime.connect(source) as reference, pytest.raises(ConvertError, match="dilations"):
        dlc.convert(source, "qnn", tmp_path / "m.dlc", dlc.Gate(reference, batch))
    assert names(tmp_path) == ["pool.onnx"]


@pytest.mark.parametrize(
    ("target", "output", "settings", "error", "words"),
    [
        ("tidl-11", "m.dlc", {}, UsageError, "documented operators only.*not on PyPI"),
        ("snpe-27", "m.dlc", {}, UnknownNameError, "Did you mean snpe-2.7"),
        ("qnn", "m.bin", {}, UsageError, "the output is a .dlc"),
        ("qnn", "m.dlc", {"precision": "int4"}, UsageError, "choose fp32, fp16, int8, a16w8"),
        ("qnn", "m.dlc", {"precision": "int8"}, UsageError, "cannot be combined"),
    ],
)
def test_impossible_calls(target, output, settings, error, words, small_onnx, tmp_path):
    with pytest.raises(error, match=words):
        dlc.convert(
            small_onnx(17),
            target,
            tmp_path / output,
            dlc.Gate(None, np.zeros((1, 3, 64, 64), np.float32)),
            dlc.Device(**settings),
        )
    assert names(tmp_path) == []


def test_the_products_inside_attention_are_counted(tmp_path):
    draft = Draft(opset=23, shape=(1, 3, 16, 16))
    draft.convolution("image", "cells", 3, strides=[4, 4], side=4, pads=[0] * 4)
    draft.node("Reshape", ["cells", draft.weight("flat_shape", np.array([1, 8, 16]))], "rows")
    draft.node("Transpose", ["rows"], "tokens", perm=[0, 2, 1])
    parts = [draft.node("MatMul", ["tokens", draft.weight(f"w{i}", draft.draw(8, 8))], f"p{i}")
             for i in range(3)]  # fmt: skip
    draft.node("Attention", parts, "mixed", q_num_heads=2, kv_num_heads=2)
    draft.node("ReduceMean", ["mixed", draft.weight("axis", np.array([1]))], "mean", keepdims=0)
    draft.node("MatMul", ["mean", draft.weight("fc", draft.draw(8, CLASSES))], "scores")
    onnx.save(draft.finish(), tmp_path / "m.onnx")
    info = dlc.writing.write(tmp_path / "m.onnx", tmp_path / "m.dlc")
    assert "7 heavy operators" in info.notes["verified"]


def test_a_branch_that_no_dlc_holds_is_named(tmp_path):
    file = tmp_path / "m.onnx"
    draft = Draft(shape=(1, 3, 16, 16))
    x = draft.stem()
    draft.node("ReduceMean", [x], "mean", keepdims=0)
    draft.node("Greater", ["mean", draft.weight("most", np.float32(-1))], "wide")
    weight = numpy_helper.from_array(draft.draw(8, 8, 3, 3), "w_in")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "oe"]
    conv = helper.make_node("Conv", [x, "w_in"], ["o"], pads=[1] * 4)
    then = helper.make_graph([conv], "then", [], ends[:1], [weight])
    other = helper.make_graph([helper.make_node("Neg", [x], ["e"])], "else", [], ends[1:])
    draft.node("If", ["wide"], "chosen", then_branch=then, else_branch=other)
    draft.head("chosen")
    onnx.save(draft.finish(), file)
    with pytest.raises(ConvertError, match=r"If '/If_chosen' decides while the network runs"):
        dlc.writing.write(file, tmp_path / "m.dlc")
    assert not (tmp_path / "m.dlc").exists()
