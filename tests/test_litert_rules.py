"""Recipes and QDQ files on their way to LiteRT: rules of the quantizer, ranges, what is left."""

import numpy as np
import onnx
import pytest
import tflite_files
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from labutils import export, litert, metrics, quantize, runtime
from labutils.errors import UnknownNameError, UsageError
from labutils.litert import Seen, onnx_network, places
from labutils.onnxfile.file import OnnxFile
from labutils.quantize import litert_rules
from labutils.quantize.recipe import Activations, Calibration, Override, Recipe, Weights


@pytest.fixture(scope="module")
def relu_file(tmp_path_factory):
    """A float ONNX file with a ReLU, which the quantizer leaves to the range."""
    file = tmp_path_factory.mktemp("relu") / "net.onnx"
    export.to_onnx(tflite_files.relu_network(), file, size=16)
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
    # where the quantizer left it to the range, it came back
    assert kinds.count("Relu") + kinds.count("Clip") == 1
    assert "" in found.codes  # the image's
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds) and not found.in_float


LIMITS = [(0, 6), (0, 1), (-1, 1), (0, 4), (-2, 2), (0, 20), (0, None)]


def limited_file(file, opset, low, high):
    """Two convolutions with a Clip between them, or a ReLU; values go far beyond its ends."""
    rng = np.random.default_rng(0)
    kernels = {"a": 4 * rng.normal(size=(8, 3, 3, 3)), "b": rng.normal(size=(8, 8, 3, 3))}
    stored = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in kernels.items()]
    if high is None:
        limit = helper.make_node("Relu", ["x"], ["y"])
    elif opset < 11:
        limit = helper.make_node("Clip", ["x"], ["y"], min=float(low), max=float(high))
    else:
        limit = helper.make_node("Clip", ["x", "low", "high"], ["y"])
        stored += [helper.make_tensor(n, 1, (), [v]) for n, v in (("low", low), ("high", high))]
    first = helper.make_node("Conv", ["image", "a"], ["x"], "first", pads=[1] * 4)
    second = helper.make_node("Conv", ["y", "b"], ["out"], "second", pads=[1] * 4)
    image, out = (helper.make_tensor_value_info(name, 1, [1, n, 16, 16])
                  for name, n in (("image", 3), ("out", 8)))  # fmt: skip
    graph = helper.make_graph([first, limit, second], "g", [image], [out], stored)
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), file)


@pytest.mark.parametrize("opset", [10, 17])
@pytest.mark.parametrize(("low", "high"), LIMITS)
def test_both_ends_of_a_clip_come_back_from_the_range(opset, low, high, tmp_path):
    file, rounded, apart = (tmp_path / name for name in ("x.onnx", "q.onnx", "apart.onnx"))
    limited_file(file, opset, low, high)
    quantize.static(file, rounded, tflite_files.noise(64, 16), "int8_trim")
    onnx.save(litert.take_apart(OnnxFile.of(rounded)).model, apart)
    images = tflite_files.noise(4, 16, seed=5)
    with runtime.connect(file) as whole, runtime.connect(apart) as ours:
        wanted, found = whole.tensors(images)["out"], ours.tensors(images)["out"]
    assert metrics.sqnr_db(wanted, found) > 25


@pytest.mark.parametrize("name", ["", "twice"])
def test_nodes_without_names_of_their_own_keep_their_codes_apart(relu_file, tmp_path, name):
    quantize.static(relu_file, tmp_path / "q.onnx", tflite_files.noise(16, 16), "int8_trim")
    named = litert.take_apart(OnnxFile.of(tmp_path / "q.onnx"))
    model = onnx.load(tmp_path / "q.onnx")
    for node in model.graph.node:
        node.name = name
    onnx.save(model, tmp_path / "n.onnx")
    found = litert.take_apart(OnnxFile.of(tmp_path / "n.onnx"))
    assert found.codes[""] == named.codes[""] and len(found.codes) == len(named.codes)
    assert set(found.codes.values()) == set(named.codes.values())
    steps = {step.call.node for step in onnx_network.read(tmp_path / "n.onnx").children()}
    assert set(found.codes) - {""} <= steps


def test_a_node_that_makes_several_tensors_has_a_range_for_all(tmp_path):
    def rounding(name, scale):
        inputs = [name, f"{name}_s", f"{name}_z"]
        stored = [
            numpy_helper.from_array(np.float32(scale), inputs[1]),
            numpy_helper.from_array(np.uint8(128), inputs[2]),
        ]
        codes = helper.make_node("QuantizeLinear", inputs, [f"{name}_c"])
        return [codes, helper.make_node("DequantizeLinear", [f"{name}_c", *inputs[1:]],
                                        [f"{name}_r"])], stored  # fmt: skip

    parts = [rounding("a", 0.1), rounding("b", 2.0)]
    split = helper.make_node("Split", ["x"], ["a", "b"], axis=1, name="split")
    total = helper.make_node("Add", ["a_r", "b_r"], ["y"], name="total")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 8, 8])
            for n, c in (("x", 4), ("y", 2))]  # fmt: skip
    graph = helper.make_graph(
        [split, *(n for nodes, _ in parts for n in nodes), total], "g", ends[:1], ends[1:],
        [t for _, stored in parts for t in stored],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "s.onnx")
    codes = litert.take_apart(OnnxFile.of(tmp_path / "s.onnx")).codes["split"]
    assert (codes.low, codes.high) == (pytest.approx(-256), pytest.approx(254))


def test_a_layer_that_was_left_in_float_is_left_again(relu_file, tmp_path):
    recipe = Recipe(exclude=("/2/Conv",))
    quantize.static(relu_file, tmp_path / "q.onnx", tflite_files.noise(16, 16), recipe)
    found = litert.take_apart(OnnxFile.of(tmp_path / "q.onnx"))
    assert found.in_float == {"/2/Conv"}


# --- recipes -------------------------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(size=(6, 4, 3, 3)).astype(np.float32)
DEEP = RANDOM.normal(size=(4, 1, 3, 3)).astype(np.float32)
VECTOR = RANDOM.normal(size=4).astype(np.float32)
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
