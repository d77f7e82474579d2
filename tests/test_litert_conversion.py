"""Conversion to .tflite: ONNX files as PyTorch networks, and the way through Google's tools.

What calls the converter is skipped where its tool environment is not installed.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tflite_files
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from labutils import export, litert, manifests, metrics, paths, pipeline, quantize, runtime
from labutils.__main__ import main
from labutils.errors import ToolError, TranslationError, UnknownNameError, UsageError
from labutils.images import data
from labutils.litert import Seen, onnx_network, places
from labutils.models import zoo
from labutils.onnxfile.file import OnnxFile
from labutils.pipeline import batch
from labutils.quantize import litert_rules
from labutils.quantize.recipe import Activations, Calibration, Override, Recipe, Weights
from labutils.runtime.litert import contents as litert_contents
from labutils.tools import calling, environment

PREPROCESSING = data.Preprocessing(16, (0.5,) * 3, (0.25,) * 3, "a test")


def graph(path, nodes, constants=None, *, opset=17, size=8, outputs=("y",)):
    """Write an ONNX file with one image "x" and constants by name."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, size, size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def node(op, *inputs, outputs=("y",), **attributes):
    return helper.make_node(op, inputs, list(outputs), name=f"/{op}", **attributes)


RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(size=(6, 4, 3, 3)).astype(np.float32)
DEEP = RANDOM.normal(size=(4, 1, 3, 3)).astype(np.float32)
VECTOR = RANDOM.normal(size=4).astype(np.float32)
I64 = np.int64
CASES = {
    "conv": ([node("Conv", "x", "w", strides=[2, 2], pads=[1, 1, 1, 1])], {"w": KERNEL}),
    "conv, uneven": ([node("Conv", "x", "w", strides=[2, 2], pads=[0, 1, 1, 0])], {"w": KERNEL}),
    "conv, same": ([node("Conv", "x", "w", strides=[2, 2], auto_pad="SAME_UPPER")], {"w": KERNEL}),
    "conv, same lower": ([node("Conv", "x", "w", auto_pad="SAME_LOWER")], {"w": KERNEL}),
    "conv, depthwise": ([node("Conv", "x", "w", group=4, dilations=[2, 2])], {"w": DEEP}),
    "transposed": ([node("ConvTranspose", "x", "w", strides=[2, 2], output_padding=[1, 1])],
                   {"w": KERNEL.transpose(1, 0, 2, 3).copy()}),
    "max": ([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], {}),
    "max, uneven": ([node("MaxPool", "x", kernel_shape=[2, 2], pads=[0, 0, 1, 1])], {}),
    "mean": ([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], {}),
    "mean, uneven": ([node("AveragePool", "x", kernel_shape=[2, 2], pads=[0, 0, 1, 1])], {}),
    "mean, counted": ([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1],
                            count_include_pad=1)], {}),
    "mean, ceil": ([node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2],
                         ceil_mode=1)], {}),
    "clip": ([node("Clip", "x", "a", "b")], {"a": np.float32(-0.3), "b": np.float32(0.4)}),
    "clip, above": ([node("Clip", "x", "", "b")], {"b": np.float32(0.4)}),
    "hard sigmoid": ([node("HardSigmoid", "x")], {}),
    "leaky": ([node("LeakyRelu", "x", alpha=0.2)], {}),
    "slope": ([node("PRelu", "x", "s")], {"s": VECTOR.reshape(4, 1, 1)}),
    "norm": ([node("BatchNormalization", "x", "a", "b", "m", "v", epsilon=0.01)],
             {"a": VECTOR, "b": VECTOR, "m": VECTOR, "v": np.abs(VECTOR)}),
    "layer norm": ([node("LayerNormalization", "x", "a", axis=-1)],
                   {"a": RANDOM.normal(size=8).astype(np.float32)}),
    "instance norm": ([node("InstanceNormalization", "x", "a", "b")], {"a": VECTOR, "b": VECTOR}),
    "softmax": ([node("Softmax", "x", axis=1)], {}),
    "slice": ([node("Slice", "x", "a", "b", "d", "e")],
              {"a": np.array([1, -5]), "b": np.array([99, -1]), "d": np.array([1, 3]),
               "e": np.array([2, 1])}),
    "pad": ([node("Pad", "x", "p", "v")],
            {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "v": np.float32(0.7)}),
    "pad, mirrored": ([node("Pad", "x", "p", mode="reflect")],
                      {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1])}),
    "gather": ([node("Gather", "x", "i", axis=1)], {"i": np.array([[2, -1], [0, 0]])}),
    "gather, one": ([node("Gather", "x", "i", axis=1)], {"i": I64(-2)}),
    "mean of axes": ([node("ReduceMean", "x", axes=[-1], keepdims=0)], {}),
    "space": ([node("DepthToSpace", "x", blocksize=2)], {}),
    "space, CRD": ([node("DepthToSpace", "x", blocksize=2, mode="CRD")], {}),
    "depth": ([node("SpaceToDepth", "x", blocksize=2)], {}),
    "resize": ([node("Resize", "x", "", "s", mode="linear")],
               {"s": np.array([1, 1, 1.5, 2], np.float32)}),
    "resize, corners": ([node("Resize", "x", "", "", "s", mode="linear",
                              coordinate_transformation_mode="align_corners")],
                        {"s": np.array([1, 4, 5, 11])}),
    "resize, nearest": ([node("Resize", "x", "", "s", mode="nearest", nearest_mode="floor",
                              coordinate_transformation_mode="asymmetric")],
                        {"s": np.array([1, 1, 1.5, 3], np.float32)}),
    "resize, nearest half": ([node("Resize", "x", "", "s", mode="nearest")],
                             {"s": np.array([1, 1, 2, 3], np.float32)}),
    "tile": ([node("Tile", "x", "r")], {"r": np.array([1, 2, 1, 3])}),
    "einsum": ([node("Einsum", "x", "w", equation="nchw,oc->nohw")],
               {"w": RANDOM.normal(size=(3, 4)).astype(np.float32)}),
    "gemm": ([node("Flatten", "x", outputs=["f"]),
              node("Gemm", "f", "w", "b", alpha=0.5, beta=2.0, transB=1)],
             {"w": RANDOM.normal(size=(5, 256)).astype(np.float32),
              "b": RANDOM.normal(size=5).astype(np.float32)}),
    "computed shape": ([node("Shape", "x", outputs=["s"]),
                        node("Gather", "s", "i", outputs=["c"], axis=0),
                        node("Concat", "c", "m", outputs=["n"], axis=0),
                        node("Reshape", "x", "n")],
                       {"i": np.array([0, 1]), "m": np.array([-1])}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_onnx_node_computes_in_pytorch_what_onnx_runtime_computes(case, tmp_path):
    nodes, constants = CASES[case]
    file = graph(tmp_path / "n.onnx", nodes, constants)
    image = RANDOM.normal(size=(1, 4, 8, 8)).astype(np.float32)
    network = onnx_network.read(file)
    with torch.no_grad():
        found = network(torch.from_numpy(image)).numpy()
    with runtime.connect(file) as runner:
        (wanted,) = runner.tensors(image).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    if case in ("slice", "computed shape", "mean, uneven", "gather"):
        torch.export.export(network, (torch.from_numpy(image),))  # what the converter does with it


def test_several_outputs_keep_their_names(tmp_path):
    nodes = [node("Relu", "x", outputs=["a"]), node("Neg", "a", outputs=["b"])]
    network = onnx_network.read(graph(tmp_path / "n.onnx", nodes, outputs=("b", "a")))
    assert list(network(torch.zeros(1, 4, 8, 8))) == ["b", "a"]


@pytest.mark.parametrize(
    ("nodes", "constants", "words"),
    [
        ([node("GridSample", "x", "g")], {"g": np.zeros((1, 8, 8, 2), np.float32)}, "GridSample"),
        ([node("Cast", "x", to=7)], {}, "whole numbers"),
        ([node("Slice", "x", "a", "b", "d", "e")],
         {"a": np.array([-1]), "b": np.array([-9]), "d": np.array([3]), "e": np.array([-1])},
         "backwards"),
        ([node("Resize", "x", "", "s", mode="nearest", nearest_mode="ceil")],
         {"s": np.array([1, 1, 2, 2], np.float32)}, "ceil"),
    ],
)  # fmt: skip
def test_what_is_not_taken_is_refused_by_node_and_operator(nodes, constants, words, tmp_path):
    file = graph(tmp_path / "n.onnx", nodes, constants)
    with pytest.raises(TranslationError, match=words) as caught:
        onnx_network.read(file)(torch.zeros(1, 4, 8, 8))
    assert caught.value.op_type == nodes[0].op_type and f"/{nodes[0].op_type}" in str(caught.value)


def test_a_file_on_integers_is_refused(tmp_path):
    nodes = [node("MatMulInteger", "x", "w")]
    file = graph(tmp_path / "q.onnx", nodes, {"w": np.zeros((8, 8), np.uint8)})
    with pytest.raises(UsageError, match="computes on integers"):
        onnx_network.read(file)


@pytest.fixture(scope="module")
def relu_file(tmp_path_factory):
    """A float ONNX file with a ReLU, which the quantizer leaves to the range."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3),
        torch.nn.Hardswish(), torch.nn.Flatten(), torch.nn.Linear(144, 5),
    )  # fmt: skip
    file = tmp_path_factory.mktemp("relu") / "net.onnx"
    export.to_onnx(net.eval(), file, size=16)
    return file


@pytest.fixture(scope="module", params=["int8_trim", "w4a8_adaptive", "a16w8", "pow2"])
def rounded_file(request, relu_file, tmp_path_factory):
    file = tmp_path_factory.mktemp("rounded") / f"{request.param}.onnx"
    images = tflite_files.noise(64, 16)
    quantize.static(relu_file, file, images, request.param)
    return file


def test_a_qdq_file_is_taken_apart_into_floats_and_ranges(rounded_file):
    found = litert.take_apart(OnnxFile.of(rounded_file))
    images = tflite_files.noise(4, 16, seed=5)
    with runtime.connect(rounded_file) as runner, torch.no_grad():
        wanted = runner.run(images)
        network = onnx_network.read(rounded_file)
        ours = np.concatenate([network(torch.from_numpy(x[None])).numpy() for x in images])
    assert metrics.sqnr_db(wanted, ours) > 15  # the rounding of activations is all that differs
    wide = "a16" in rounded_file.name
    assert {codes.bits for codes in found.codes.values()} == {16 if wide else 8}
    kinds = [n.op_type for n in found.model.graph.node]
    assert kinds.count("Relu") == 1  # where the quantizer left it to the range, it came back
    assert "" in found.codes  # the image's
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds) and not found.in_float


def test_a_layer_that_was_left_in_float_is_left_again(relu_file, tmp_path):
    recipe = Recipe(exclude=("/2/Conv",))
    quantize.static(relu_file, tmp_path / "q.onnx", tflite_files.noise(16, 16), recipe)
    found = litert.take_apart(OnnxFile.of(tmp_path / "q.onnx"))
    assert found.in_float == {"/2/Conv"}


# --- recipes -------------------------------------------------------------------------------------

END = "torch.export.unflatten.InterpreterModule"
HEAD = f"torch.export.unflatten.UnflattenedModule/{END}_network"


def float_file(path):
    """Write a file of a convolution, a depthwise one and a linear layer, named as converted."""
    w = tflite_files.Writer((1, 8, 8, 3))
    x = w.conv(w.input, KERNEL[:4, :3], VECTOR, 6)
    w.graph.tensors[x].name = f"{HEAD}/{END}_stem;".encode()
    x = w.conv(x, DEEP, VECTOR, 4, depthwise=True)
    w.graph.tensors[x].name = f"{HEAD}/{END}_body/{END}_0;{HEAD}/{END}_body/{END}_1;".encode()
    x = w.mean(x, 4)
    w.graph.tensors[x].name = f"{HEAD}/{END}_pool;".encode()
    out = w.linear(x, RANDOM.normal(size=(2, 4)).astype(np.float32), VECTOR[:2])
    return w.write(path, out)


NODES = [litert_rules.Node("/stem/Conv", "Conv", "stem"),
         litert_rules.Node("/body/0/Conv", "Conv", "body.0"),
         litert_rules.Node("/body/1/Relu", "Relu", "body.1"),
         litert_rules.Node("/pool/ReduceMean", "ReduceMean", "pool"),
         litert_rules.Node("/head/Gemm", "Gemm", "head")]  # fmt: skip


def rules_of(recipe, folder):
    asked = litert_rules.carried(recipe, NODES, np.zeros((2, 3, 8, 8), np.float32))
    return asked, asked.rules(runtime.litert.contents(float_file(folder / "f.tflite")))


def bits(rule):
    config = rule["op_config"]
    return [config[f"{kind}_tensor_config"]["num_bits"] for kind in ("activation", "weight")]


@pytest.mark.litert
def test_a_recipe_becomes_rules(tmp_path):
    recipe = Recipe(
        "mine", weights=Weights(4, per_channel=False), exclude=("/head/*",),
        overrides=(Override("/body/*", activations=16, weights=8, per_channel=True),),
    )  # fmt: skip
    _, rules = rules_of(recipe, tmp_path)
    assert bits(rules[0]) == [8, 8]  # what has no 4-bit kernel
    kept = [rule for rule in rules if rule["algorithm_key"] == "no_quantize"]
    assert [rule["operation"] for rule in kept[:2]] == ["INPUT", "OUTPUT"]  # float32 ends
    four = [rule["operation"] for rule in rules if "op_config" in rule and bits(rule)[1] == 4]
    assert four == ["CONV_2D", "FULLY_CONNECTED"]
    (own,) = [rule for rule in rules if "op_config" in rule and bits(rule)[0] == 16]
    assert own["operation"] == "DEPTHWISE_CONV_2D" and "body" in own["regex"]
    assert own["op_config"]["weight_tensor_config"]["granularity"] == "CHANNELWISE"
    assert kept[2]["operation"] == "*" and kept[2] is rules[-1]  # the last operator: the head


@pytest.mark.litert
def test_exceptions_and_methods_reach_the_ranges(tmp_path):
    recipe = Recipe(
        calibration=Calibration(outliers=0.25, room=1.5),
        overrides=(Override("/stem/*", range=(-1, 3)), Override("/pool/*", activations=16)),
    )  # fmt: skip
    asked, _ = rules_of(recipe, tmp_path)
    tensors = runtime.litert.contents(tmp_path / "f.tflite").tensors
    names = tuple(t.name for t in tensors if not t.is_constant)
    low = np.tile(np.array([-4, -3, -2, -1, -9], np.float32)[:, None], (1, len(names)))
    seen = Seen(names, low, -low, np.zeros((0, 0)))
    found = {n: asked.ranges(seen)[n] for n in names}
    ours = quantize.Ranges(names, low, -low).limits(0.25)
    stem, body, pool = (next(n for n in names if word in n) for word in ("stem", "body", "pool"))
    assert found[stem] == (-1, 3)
    assert found[body] == ours[body] == (-4, 4)  # the trimmed one
    assert found[pool] == (-13.5, 13.5)  # 16 bits: all images, and the room


@settings(max_examples=30)
@given(
    # nothing a calibration finds lies between 0 and 1e-30, where floats lose their digits
    low=st.floats(-100, -1e-30) | st.just(0.0),
    high=st.floats(0.01, 100),
    symmetric=st.booleans(),
)
def test_powers_of_two_are_carried_by_the_range(low, high, symmetric):
    recipe = Recipe(activations=Activations(8, symmetric, power_of_two=True))
    carrier = litert_rules._Carrier(recipe, [])
    a, b = carrier._settled((low, high), [], 8)
    step = (2 * max(-a, b) if symmetric else b - a) / 255
    assert abs(np.log2(step) - round(np.log2(step))) < 1e-6
    assert a <= low * 0.999 and b >= high * 0.999


def test_an_exception_that_fits_nothing_is_refused():
    images = np.zeros((1, 3, 8, 8), np.float32)
    for recipe in (Recipe(exclude=("/stem/Cov",)), Recipe(overrides=(Override("/stem/Cov"),))):
        with pytest.raises(UnknownNameError, match="Did you mean /stem/Conv"):
            litert_rules.carried(recipe, NODES, images)


def test_what_is_not_carried_is_said():
    assert litert_rules.not_carried(quantize.PRESETS["int8_trim"]) == ()
    said = " ".join(litert_rules.not_carried(quantize.PRESETS["w4a8_adaptive"]))
    assert "adaptive" in said and "correct_bias" in said and "4-bit" in said
    with pytest.raises(UsageError, match="qat"):
        litert_rules.carried(quantize.PRESETS["int8_qat"], [], np.zeros((1, 3, 8, 8)))


def test_places_are_module_paths():
    assert places(f"{HEAD}/{END}_a/{END}_0;;{HEAD}/{END}_b;2") == ("a.0", "b")
    assert places("serving_default_output_0_output") == ()


# --- the whole way -------------------------------------------------------------------------------


def test_without_the_converter_one_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "empty"))
    if not runtime.litert.probe().ok:
        pytest.skip("LiteRT's runtime is asked for first")
    call = ["convert", "mobilenet_v3_small", "--target", "litert", "-o", str(tmp_path / "x.tflite")]
    assert main(call) == 1
    assert "labutils tools install litert" in capsys.readouterr().err
    assert not (tmp_path / "x.tflite").exists()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["--target", "litert", "-o", "x.dlc"], "output is a .tflite file"),
        (["--target", "qnn", "-o", "x.tflite"], "output is a .dlc file"),
        (["--target", "qnn", "-o", "x.dlc", "--layout", "nchw"], "--layout is for a .tflite"),
        (["--target", "litert", "-o", "x.tflite", "--quantize", "int8", "--precision", "fp16"],
         "--precision is for a float file"),
        (["--target", "litert"], "Pass -o FILE.tflite"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused_before_any_work(call, words, capsys):
    assert main(["convert", "mobilenet_v3_small", *call]) == 2
    assert words in capsys.readouterr().err


@pytest.fixture(scope="module")
def converter():
    if not runtime.litert.probe().ok:
        pytest.skip(runtime.litert.probe().reason)
    if environment.survey("litert").state != "installed":
        pytest.skip("`labutils tools install litert` was not run")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A .pt2 of the small network."""
    file = tmp_path_factory.mktemp("program") / "small.pt2"
    example = (torch.zeros(1, 3, 16, 16),)
    torch.export.save(torch.export.export(tflite_files.small_network(), example), file)
    return file


@pytest.mark.slow
def test_a_program_is_converted_quantized_and_run(converter, program, tmp_path, capsys):
    model = dataclasses.replace(zoo.load(program), preprocessing=PREPROCESSING)
    comparison = pipeline.Comparison(tflite_files.noise(32, 16))
    file = tmp_path / "x.tflite"
    made = pipeline.convert_to_litert(model, file, recipe="dynamic", comparison=comparison)
    assert made.gate.passed and made.contents.precision == "w8"
    stated = manifests.read(file)
    assert stated["precision"] == "w8" and stated["layout"] == "nhwc"
    assert stated["float_gate"]["kind"] == "litert_fp32"
    assert main(["run", str(file), "--images", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]


@pytest.mark.slow
def test_what_a_max_pool_is_padded_with_is_in_no_range(converter, tmp_path):
    """Minus infinity: a range that reached there made a file that ended LiteRT's process."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1),
        torch.nn.Conv2d(8, 8, 3, 1, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    ).eval()  # fmt: skip
    export.to_onnx(network, tmp_path / "pool.onnx", size=32, preprocessing=data.Preprocessing(32))
    model = zoo.load(tmp_path / "pool.onnx")
    for recipe in ("int8", "int8_minmax"):
        made = pipeline.convert_to_litert(model, tmp_path / f"{recipe}.tflite", recipe=recipe)
        assert made.gate.passed and made.gate.parity.sqnr_db > 25, recipe


@pytest.mark.slow
def test_exceptions_by_node_reach_the_file(converter, tmp_path):
    file, recipe = tmp_path / "small.onnx", tmp_path / "mine.yaml"
    export.to_onnx(tflite_files.small_network(), file, size=16)
    model = dataclasses.replace(zoo.load(file), preprocessing=PREPROCESSING)
    images = tflite_files.noise(32, 16)
    comparison = pipeline.Comparison(images, calibration=tflite_files.noise(16, 16, seed=2))
    mine = Recipe(
        "mine", exclude=("/stem/*",),
        overrides=(Override("/depthwise/*", activations=16), Override("/head/*", range=(-8, 8))),
    )  # fmt: skip
    mine.save(recipe)
    made = pipeline.convert_to_litert(
        model, tmp_path / "x.tflite", recipe=recipe, comparison=comparison
    )
    found = made.contents
    written = {o.type: found.tensors[o.outputs[0]] for o in found.operators}
    assert written["CONV_2D"].type == "float32"
    assert written["DEPTHWISE_CONV_2D"].type == "int16"
    head = written["FULLY_CONNECTED"]
    assert head.type == "int8" and head.scales[0] == pytest.approx(16 / 255, rel=1e-3)


@pytest.mark.slow
def test_a_qdq_file_keeps_its_ranges(converter, relu_file, tmp_path):
    rounded_file = tmp_path / "q.onnx"
    quantize.static(relu_file, rounded_file, tflite_files.noise(64, 16), "int8_trim")
    model = dataclasses.replace(zoo.load(rounded_file), preprocessing=PREPROCESSING)
    comparison = pipeline.Comparison(tflite_files.noise(16, 16, seed=3))
    form = litert.Form("nchw")
    made = pipeline.convert_to_litert(
        model, tmp_path / "x.tflite", form=form, comparison=comparison
    )
    assert made.contents.image == ("nchw", (3, 16, 16))
    assert made.gate.passed and made.not_carried
    codes = litert.take_apart(OnnxFile.of(rounded_file)).codes
    first = next(o for o in made.contents.operators if o.type == "QUANTIZE")
    (scale,) = made.contents.tensors[first.outputs[0]].scales
    span = codes[""].high - codes[""].low
    assert scale == pytest.approx(span / 255, rel=1e-3)


@pytest.mark.slow
def test_an_operator_without_a_translation_is_named(converter, tmp_path):
    class Determinant(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.det(x)

    with runtime.connect(Determinant()) as reference:
        gate = litert.Gate(reference, tflite_files.noise(2, 8))
        with pytest.raises(TranslationError, match="_linalg_det") as caught:
            litert.convert(Determinant(), tmp_path / "x.tflite", gate, name="determinant")
    assert caught.value.op_type.startswith("aten.") and not list(tmp_path.iterdir())


class Pooled(torch.nn.Sequential):
    """A mean over the picture, which two exporters write as two operators."""

    def __init__(self):
        super().__init__(
            torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )


@pytest.mark.slow
def test_onnx_tf_refuses_what_one_exporter_writes_and_takes_the_other(tmp_path):
    if environment.survey("onnx-tf").state != "installed":
        pytest.skip("`labutils tools install onnx-tf` was not run")
    network, images = Pooled().eval(), tflite_files.noise(1, 16)
    files = {name: tmp_path / f"{name}.onnx" for name in ("torchscript", "dynamo")}
    for name, opset in (("torchscript", 13), ("dynamo", 18)):
        export.to_onnx(network, files[name], size=16, opset=opset, exporter=name)
    with torch.no_grad():
        exact = network(torch.from_numpy(images)).numpy()
    with calling.opened("onnx-tf", litert.ONNX_TF_PROGRAM) as tool:
        with pytest.raises(ToolError, match="ReduceMean version 18 is not implemented") as caught:
            tool.ask("run", file=files["dynamo"], images=images)
        assert caught.value.kind == "BackendIsNotSupposedToImplementIt"
        made = tmp_path / "x.tflite"
        road = litert.take_road(
            "onnx-tf", made,
            lambda file: tool.ask("convert", file=files["torchscript"], made=file),
            images, exact,
        )  # fmt: skip
    assert road.difference < 1e-5 and road.to_dict()["TRANSPOSE"] >= 1


# --- onnx2tf ------------------------------------------------------------------------------------

ONNX2TF = """
import os, sys
import numpy as np

def convert(input_onnx_file_path, output_folder_path, **how):
    print("\\x1b[33mWARNING:\\x1b[0m something is old")
    with open(input_onnx_file_path, "rb") as file:
        way = file.read().decode()
    if way == "exit":
        print("\\x1b[31mERROR:\\x1b[0m Use another option.")
        sys.exit(1)
    if way == "unknown":
        print("\\x1b[31mERROR:\\x1b[0m Det OP is not yet implemented.")
        import onnx2tf_ops_Det
    if way == "raise":
        raise ValueError("Dimensions must be equal")
    if way == "lost":
        print("Full INT8 Quantization tflite output failed.")
        return
    os.mkdir(output_folder_path)
    samples = np.load("calibration_image_sample_data_20x128x128x3_float32.npy")
    assert samples.shape == (20, 128, 128, 3) and samples.dtype == np.float32
    with open(input_onnx_file_path, "w") as file:
        file.write("changed")
    with open(output_folder_path + "/network_float32.tflite", "w") as file:
        file.write("float, signatures: %(output_signaturedefs)s" % how)
"""


@pytest.fixture
def onnx2tf_stand_in(tmp_path):
    """The program of the lab beside a package that is called as onnx2tf, and behaves as it does."""
    (tmp_path / "onnx2tf.py").write_text(ONNX2TF, encoding="utf-8")
    program = tmp_path / "program.py"
    program.write_text(litert.ONNX2TF_PROGRAM.read_text("utf-8"), encoding="utf-8")
    tool = calling.Called("onnx2tf", Path(sys.executable), program)
    yield tool
    tool.close()


def test_onnx2tf_fetches_nothing_and_gets_a_copy_of_the_file(onnx2tf_stand_in, tmp_path):
    file, made = tmp_path / "x.onnx", tmp_path / "x.tflite"
    file.write_text("good")
    onnx2tf_stand_in.ask("convert", file=file, made=made)
    assert made.read_text() == "float, signatures: True" and file.read_text() == "good"


@pytest.mark.parametrize(
    ("way", "kind", "words"),
    [
        ("exit", "Onnx2TfError", "Use another option."),
        ("unknown", "Onnx2TfError", "Det OP is not yet implemented."),
        ("raise", "ValueError", "Dimensions must be equal"),
        ("lost", "Onnx2TfError", "Full INT8 Quantization tflite output failed."),
    ],
)
def test_what_onnx2tf_says_before_it_gives_up_is_the_reason(
    onnx2tf_stand_in, tmp_path, way, kind, words
):
    (tmp_path / "x.onnx").write_text(way)
    with pytest.raises(ToolError) as caught:
        onnx2tf_stand_in.ask("convert", file=tmp_path / "x.onnx", made=tmp_path / "x.tflite")
    assert (caught.value.kind, caught.value.reason) == (kind, words)
    assert not (tmp_path / "x.tflite").exists()


@pytest.mark.sweep
def test_onnx2tf_is_installed_and_converts_what_onnx_tf_refuses(tmp_path):
    """A minute and 1.5 GB where it is not installed; it stays in the cache."""
    environment.install("onnx2tf", echo=print)
    network, images, file = Pooled().eval(), tflite_files.noise(8, 16), tmp_path / "x.onnx"
    export.to_onnx(network, file, size=16, opset=18, exporter="dynamo")
    with torch.no_grad():
        exact = network(torch.from_numpy(images)).numpy()
    with calling.opened("onnx2tf", litert.ONNX2TF_PROGRAM) as tool:
        road = litert.take_road(
            "onnx2tf", tmp_path / "x.tflite",
            lambda made: tool.ask("convert", file=file, made=made), images, exact,
        )  # fmt: skip
        tool.ask("quantize", file=file, made=tmp_path / "q.tflite", images=images)
    assert road.difference < 1e-5 and road.to_dict()["TRANSPOSE"] == 0
    assert road.contents.image == ("nhwc", (3, 16, 16))
    with runtime.connect(tmp_path / "q.tflite") as runner:
        assert litert.difference(exact, runner.run(images)) < 0.05
    whole = litert_contents(tmp_path / "q.tflite")
    assert not whole.in_float and {t.type for t in whole.tensors} <= {"int8", "int32"}


@pytest.mark.slow
def test_a_batch_for_litert_has_a_row_for_each_model(converter, program, tmp_path):
    known = "--mean .5 .5 .5 --std .25 .25 .25"
    (tmp_path / "list.txt").write_text(f"{program} {known}\nnobody\n")
    made = batch.run(tmp_path / "list.txt", "litert", tmp_path / "out")
    good, bad = made.rows
    assert good.outcome == "converted" and good.file.endswith(".tflite") and good.cosine > 0.9999
    assert bad.outcome == "failed" and not made.ok
    again = batch.run(tmp_path / "list.txt", "litert", tmp_path / "out", echo=print)
    assert again.rows[0] == good
    assert (tmp_path / "out" / good.file).is_file()
    assert paths.manifest(tmp_path / "out" / good.file).is_file()


# --- recipes that change weights and biases -------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "whole"),
    [("int8", True), ("int8_corrected", True), ("int8@1", False), ("int8_trim", False),
     ("a16w8", False), ("w4a8", False), ("pow2", False), ("int8_qat", False)],
)  # fmt: skip
def test_what_does_more_than_choose_ranges_is_carried_as_a_qdq_file(recipe, whole):
    chosen = quantize.load_recipe(recipe)
    assert litert_rules.is_carried_as_qdq(chosen) == whole
    for other in (
        {"weights": Weights(per_channel=False)}, {"input": "quantized"}, {"output": "quantized"},
        {"overrides": (Override("/a", weights=4),)},
    ):  # fmt: skip
        assert not litert_rules.is_carried_as_qdq(chosen.replaced(**other))


class Excited(torch.nn.Module):
    """A loud channel before a hard-swish, and a gate whose hard-sigmoid the converter fuses."""

    def __init__(self, channels=8):
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, channels, 3, 1, 1), torch.nn.Hardswish())
        self.squeeze = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(channels, channels, 1),
            torch.nn.Hardsigmoid(),
        )  # fmt: skip
        self.project = torch.nn.Conv2d(channels, channels, 3, 1, 1)
        self.head = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 5)
        )
        with torch.no_grad():
            self.stem[0].weight[-1] *= 30
            self.project.weight[:, -1] /= 30
            self.squeeze[1].weight *= 6

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.project(x * self.squeeze(x)).relu())


@pytest.mark.slow
def test_equalized_gates_and_fused_ranges_reach_the_file(converter, tmp_path):
    network, images = Excited().eval(), tflite_files.noise(32, 16)
    with torch.no_grad():
        exact = network(torch.from_numpy(images)).numpy()
    example = (torch.zeros(1, 3, 16, 16),)
    torch.export.save(torch.export.export(network, example), tmp_path / "excited.pt2")
    model = dataclasses.replace(zoo.load(tmp_path / "excited.pt2"), preprocessing=PREPROCESSING)
    comparison = pipeline.Comparison(images, calibration=tflite_files.noise(64, 16, seed=2))
    noise = {}
    for recipe in ("int8", "int8_trim"):
        file = tmp_path / f"{recipe}.tflite"
        made = pipeline.convert_to_litert(model, file, recipe=recipe, comparison=comparison)
        with runtime.connect(file) as runner:
            noise[recipe] = metrics.sqnr_db(exact, runner.run(images))
        assert made.gate.passed
        told = json.loads(paths.manifest(file).read_text("utf-8"))
        assert told["recipe"]["name"] == quantize.load_recipe(recipe).name
    assert noise["int8"] > max(25, noise["int8_trim"] + 3)
    assert not any("equalize_gates" in note for note in made.not_carried)
