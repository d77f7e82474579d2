"""The function of a quantized file without its rounding: right files pass, wrong ones do not."""

import json

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from labutils import quantize
from labutils.errors import WrongFunctionError
from labutils.onnxfile.file import OnnxFile
from labutils.quantize import float_function, insertion, prepare, ptq, recipe

RECIPES = [
    "int8", "int8_minmax", "int8_tensor", "a16w8", "a16w8_room", "w4a8", "w4a16", "w4a8_adaptive",
    "pow2", "pow2_channel", "equalized", "wide inside",
]  # fmt: skip
SIDE = 8


def recipe_of(name):
    int8 = quantize.load_recipe("int8")
    wide = recipe.Override(node="/second", activations=16)
    own = {
        "equalized": int8.replaced(name="equalized", equalize=True),
        "wide inside": int8.replaced(name="wide", overrides=(wide,)),
    }
    return own.get(name) or quantize.load_recipe(name)


def node(op, inputs, output, name="", **attributes):
    return helper.make_node(op, inputs.split(), [output], name or f"/{output}", **attributes)


def network(tmp_path, beta=1.0):
    """Every kind of place where something can be lost: rectifiers, attributes, square weights."""
    chance = np.random.default_rng(0)
    shapes = {
        "w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (8, 8, 3, 3),
        "b3": (8,), "w4": (8, 8), "b4": (8,), "w5": (8, 4), "b5": (4,), "shift": (1, 8, 1, 1),
    }  # fmt: skip
    weights = {name: 0.5 * chance.normal(size=shape) for name, shape in shapes.items()}
    weights |= {"zero": np.array(0.0), "six": np.array(0.5)}
    nodes = [
        node("Conv", "image w1 b1", "first", pads=[1] * 4),
        node("Relu", "first", "relu"),
        node("Conv", "relu w2 b2", "second", pads=[1] * 4),
        node("Clip", "second zero six", "clip"),
        node("Conv", "clip w3 b3", "third", pads=[1] * 4),
        node("LeakyRelu", "third", "leaky", alpha=0.3),
        node("Add", "leaky shift", "moved"),
        node("HardSigmoid", "moved", "gate", alpha=0.3, beta=0.4),
        node("Mul", "relu gate", "gated"),
        node("Sub", "gated moved", "difference"),
        node("GlobalAveragePool", "difference", "pooled"),
        node("Flatten", "pooled", "flat"),
        node("Gemm", "flat w4 b4", "hidden", transB=1),
        node("Relu", "hidden", "rectified"),
        node("Gemm", "rectified w5 b5", "scores", beta=beta),
    ]
    graph = helper.make_graph(
        nodes, "places",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, SIDE, SIDE))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, 4))],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "places.onnx")
    return tmp_path / "places.onnx"


def images(n=32):
    return np.random.default_rng(1).normal(size=(n, 3, SIDE, SIDE)).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Recipe -> (quantized, float, as handed to the quantizer), not compared with anything."""
    file = network(tmp_path_factory.mktemp("places"))
    floating = prepare.prepared(file)
    ranges = quantize.measure_ranges(floating, images(), histograms=True)
    found = {}
    for name in ("int8", "a16w8", "int8_tensor", "wide inside"):
        copy = prepare.prepared(file)
        found[name] = insertion.insert(copy, recipe_of(name), ranges).quantized, floating
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_what_every_recipe_makes_computes_what_the_source_computes(name, tmp_path):
    report = quantize.static(network(tmp_path), tmp_path / "q.onnx", images(64), recipe_of(name))
    assert report.function.error <= float_function.LIMIT
    assert report.function.images == 32
    assert not report.function.drawn
    assert (name == "equalized") == any("equalized" in said for said in report.repairs)
    assert recipe_of(name).correct_bias == bool(report.function.on_purpose)
    # the quantizer removes no rectifier before symmetric codes, which reach below 0, and none whose
    # output is converted to another width
    kept = {n.name for n in onnx.load(report.file).graph.node if n.op_type in ("Relu", "Clip")}
    every, wide = {"/relu", "/clip", "/rectified"}, {"/relu", "/clip"}
    expected = {"pow2": every, "pow2_channel": every, "wide inside": wide}
    assert kept == expected.get(name, set())
    assert sorted([*kept, *report.function.put_back]) == ["/clip", "/rectified", "/relu"]


def test_a_clip_that_no_range_can_stand_for_stays(tmp_path):
    """Up to the next power of two a range reaches over the Clip's end."""
    int8 = quantize.load_recipe("int8")
    activations = recipe.Activations(power_of_two=True)
    rounded_up = int8.replaced(name="rounded up", activations=activations)
    report = quantize.static(network(tmp_path), tmp_path / "q.onnx", images(), rounded_up)
    assert [n.name for n in onnx.load(report.file).graph.node if n.op_type == "Clip"] == ["/clip"]
    assert report.function.put_back == ()


def test_the_report_and_the_manifest_say_it(tmp_path):
    report = quantize.static(network(tmp_path), tmp_path / "q.onnx", images(), "int8")
    line = next(line for line in str(report).splitlines() if line.startswith("  function "))
    assert "without its rounding, the file computes what the source computes: " in line
    assert "of the largest logit, 32 images; changed on purpose" in line
    facts = json.loads(json.dumps(report.facts()))["function"]
    assert facts["error"] <= facts["limit"] == 1e-5
    assert facts["ranges_that_rectify"] == ["/rectified", "/clip", "/relu"]


def test_a_file_that_computes_in_half_precision_is_no_reference(tmp_path):
    """It rounds by more than the limit; then the model as it was prepared is the reference."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    halved = convert_float_to_float16(onnx.load(network(tmp_path)), keep_io_types=True)
    onnx.save(halved, tmp_path / "half.onnx")
    assert ptq._has_another_precision(OnnxFile(tmp_path / "half.onnx"))
    assert not ptq._has_another_precision(OnnxFile(tmp_path / "places.onnx"))


def test_ranges_keep_images_to_compare_on_and_without_them_inputs_are_drawn(tmp_path):
    file = network(tmp_path)
    ranges = quantize.measure_ranges(file, images(40))
    np.testing.assert_array_equal(ranges.examples, images(40))
    assert "32 images" in str(quantize.static(file, tmp_path / "q.onnx", ranges).function)
    bare = quantize.Ranges(ranges.tensors, ranges.low, ranges.high)
    report = quantize.static(file, tmp_path / "q.onnx", bare, "int8@1")
    assert report.function.drawn
    assert str(report.function).endswith("32 random inputs")


def test_a_beta_that_the_quantizer_loses_is_an_error(tmp_path):
    """ONNX Runtime's quantizer drops beta without a word; here nothing folds it before."""
    floating = OnnxFile(network(tmp_path, beta=0.6)).copy(shaped=True)
    ranges = quantize.measure_ranges(floating, images())
    copy = onnx.ModelProto()
    copy.CopyFrom(floating)
    quantized = insertion.insert(copy, recipe_of("int8"), ranges).quantized
    with pytest.raises(WrongFunctionError, match=r"departs is Gemm '/scores': exclude it") as error:
        float_function.compare_functions(quantized, floating, floating, images(), "q.onnx")
    assert "q.onnx does not compute what its source computes" in str(error.value)


def test_a_wrong_function_writes_nothing(tmp_path, monkeypatch):
    def wrong(*arguments, **settings):
        inserted = insertion.insert(*arguments, **settings)
        del named(inserted.quantized, "/second").input[2:]
        return inserted

    file = network(tmp_path)
    monkeypatch.setattr(ptq, "insert", wrong)
    with pytest.raises(WrongFunctionError, match=r"q\.onnx does not .* Conv '/second'") as error:
        quantize.static(file, tmp_path / "q.onnx", images())
    assert "tmp" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["places.onnx"]


# ---------------------------------------------------------------- mutations of the quantized graph


def named(model, name):
    return next(n for n in model.graph.node if n.name == name)


def maker(model, name):
    return next(n for n in model.graph.node if name in n.output)


def stored(model, name):
    return next(t for t in model.graph.initializer if t.name == name)


def put_(tensor, array):
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def codes_of(model, name, which=1):
    """Return the node that dequantizes a weight (1) or bias (2), and its stored codes."""
    dequantize = maker(model, named(model, name).input[which])
    return dequantize, stored(model, dequantize.input[0])


LAYERS = ["/first", "/second", "/third", "/hidden", "/scores"]


def drop_bias(model, draw):
    del named(model, draw(st.sampled_from(LAYERS))).input[2:]


def swap_weights(model, draw):
    which = draw(st.sampled_from([1, 2]))
    one, other = (codes_of(model, name, which) for name in ("/second", "/third"))
    if draw(st.booleans()):
        one[0].input[0], other[0].input[0] = other[0].input[0], one[0].input[0]
    else:
        second, third = named(model, "/second"), named(model, "/third")
        second.input[which], third.input[which] = third.input[which], second.input[which]


def transpose_square(model, draw):
    name = draw(st.sampled_from(["/second", "/third", "/hidden"]))
    _, codes = codes_of(model, name)
    put_(codes, np.ascontiguousarray(numpy_helper.to_array(codes).swapaxes(0, 1)))


def lose_attribute(model, draw):
    name, attribute = draw(st.sampled_from([
        ("/leaky", "alpha"), ("/gate", "alpha"), ("/gate", "beta"), ("/hidden", "transB"),
    ]))  # fmt: skip
    place = named(model, name).attribute
    kept = [a for a in place if a.name != attribute]
    assert len(kept) < len(place)
    del place[:]
    place.extend(kept)


def add_factor(model, draw):
    attribute = draw(st.sampled_from(["alpha", "beta"]))
    place = named(model, draw(st.sampled_from(LAYERS[3:]))).attribute
    others = [a for a in place if a.name != attribute]
    del place[:]
    place.extend([*others, helper.make_attribute(attribute, draw(st.floats(0.1, 0.99)))])


def scale_weight(model, draw):
    which = draw(st.sampled_from([1, 2]))
    dequantize, _ = codes_of(model, draw(st.sampled_from(LAYERS)), which)
    scale = stored(model, dequantize.input[1])
    factor = draw(st.floats(0.1, 0.9) | st.floats(1.1, 10))
    put_(scale, (numpy_helper.to_array(scale) * factor).astype(np.float32))


def lose_axis(model, draw):
    dequantize, _ = codes_of(model, draw(st.sampled_from(LAYERS[:3])))
    if not dequantize.attribute or stored(model, dequantize.input[1]).dims == []:
        return False
    del dequantize.attribute[:]
    return True


def change_codes(model, draw):
    _, codes = codes_of(model, draw(st.sampled_from(LAYERS)), draw(st.sampled_from([1, 2])))
    array = numpy_helper.to_array(codes).copy()
    place = draw(st.integers(0, array.size - 1))
    array.flat[place] = -array.flat[place] if abs(array.flat[place]) > 3 else 50
    put_(codes, array)


def open_range(model, draw):
    """The range of a rectifier's output reaches below 0 all at once."""
    output = draw(st.sampled_from(["relu", "clip", "rectified"]))
    if maker(model, output).op_type in ("Relu", "Clip"):
        return False  # it stayed, and does its own work
    quantize_ = next(n for n in model.graph.node if output in n.input)
    zero = stored(model, quantize_.input[2])
    array = numpy_helper.to_array(zero)
    put_(zero, np.array(array + draw(st.integers(2, 100)), array.dtype))
    return True


def read_unrounded(model, draw):
    """A node reads what a rectifier was to bound before it is rounded."""
    reader, output = draw(st.sampled_from([("/second", "relu"), ("/third", "clip")]))
    if maker(model, output).op_type in ("Relu", "Clip"):
        return False
    named(model, reader).input[0] = output
    return True


def bypass(model, draw):
    name = draw(st.sampled_from(["/leaky", "/gate", "/moved", "/difference", "/gated"]))
    gone = named(model, name)
    for reader in model.graph.node:
        for index, read in enumerate(reader.input):
            if read == gone.output[0]:
                reader.input[index] = gone.input[0]
    model.graph.node.remove(gone)


def swap_operands(model, draw):
    del draw
    inputs = named(model, "/difference").input
    inputs[0], inputs[1] = inputs[1], inputs[0]


def read_another(model, draw):
    """A node reads another tensor of the same shape."""
    reader = named(model, draw(st.sampled_from(["/third", "/leaky", "/gate"])))
    others = {named(model, n).input[0] for n in ("/second", "/gated", "/difference")}
    reader.input[0] = draw(st.sampled_from(sorted(others - {reader.input[0]})))


def rename_constant(model, draw):
    dequantize, codes = codes_of(model, draw(st.sampled_from(LAYERS)))
    reader = next(n for n in model.graph.node if dequantize.output[0] in n.input)
    codes.name = dequantize.input[0] = "nobody's codes"
    reader.input[1] = dequantize.output[0] = "nobody"


MUTATIONS = [
    drop_bias, swap_weights, transpose_square, lose_attribute, add_factor, scale_weight, lose_axis,
    change_codes, open_range, read_unrounded, bypass, swap_operands, read_another, rename_constant,
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
@settings(
    max_examples=12, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(chosen=st.data())
def test_every_mutation_is_caught(mutation, made, chosen):
    name = chosen.draw(st.sampled_from(sorted(made)))
    quantized, floating = made[name]
    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    float_function.compare_functions(model, floating, floating, images(4), "q.onnx")  # is right
    if mutation(model, chosen.draw) is False:
        return
    try:  # what is not even a graph is not for this check
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        nodes = list(model.graph.node)
        assert mutation in (bypass, read_another), nodes
        return
    with pytest.raises(WrongFunctionError, match=r"q\.onnx.*'"):
        float_function.compare_functions(model, floating, floating, images(4), "q.onnx")


def test_a_constant_without_a_float_weight_is_named(made):
    quantized, floating = made["int8"]
    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    rename_constant(model, lambda options: "/second")
    with pytest.raises(WrongFunctionError, match=r"constant 'nobody's codes'.*no weight"):
        float_function.compare_functions(model, floating, floating, images(1), "q.onnx")
