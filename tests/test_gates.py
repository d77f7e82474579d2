"""Equalized gates and flat ends: the same function, finer steps, and nothing where nothing pays."""

import copy

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from labutils import compare, export, quantize, surgery
from labutils.errors import UsageError
from labutils.images import data
from labutils.models import zoo
from labutils.onnxfile.session import Session
from labutils.quantize import flat_ends, gates, ranges, recipe
from labutils.quantize.prepare import prepared

SIDE = 8
KINDS = ("HardSwish", "HardSigmoid", "SiLU", "written out", "divided after", "divided before",
         "of Min and Max", "numbers first")  # fmt: skip
EQUAL = recipe.Recipe("equal", equalize_gates=True, flat_ends=True)


def gate(kind):
    """The nodes from the tensor "z" to the tensor "y"."""
    make = helper.make_node
    if kind == "HardSwish":
        return [make("HardSwish", ["z"], ["y"], "swish")]
    if kind == "HardSigmoid":
        first = [make("HardSigmoid", ["z"], ["g"], "g", alpha=1 / 6, beta=0.5)]
    elif kind == "SiLU":
        first = [make("Sigmoid", ["z"], ["g"], "g")]
    else:
        return written_out(kind)
    return [*first, make("Mul", ["z", "g"], ["y"], "swish")]


def written_out(kind):
    """z * clip(z + 3, 0, 6) / 6, as converters and people spell it."""
    make = helper.make_node
    first = [
        make("Add", ["z", "three"], ["up"], "up"),
        make("Clip", ["up", "zero", "six"], ["clip"], "clip"),
    ]
    product = make("Mul", ["z", "clip"], ["whole"], "product")
    if kind == "divided after":  # as our own surgery writes it
        return [*first, product, make("Div", ["whole", "six"], ["y"], "swish")]
    if kind == "of Min and Max":
        first[1:] = [make("Max", ["up", "zero"], ["low"], "low"),
                     make("Min", ["low", "six"], ["clip"], "clip")]  # fmt: skip
        return [*first, product, make("Div", ["whole", "six"], ["y"], "swish")]
    if kind == "numbers first":
        first[0] = make("Add", ["three", "z"], ["up"], "up")
        product = make("Mul", ["clip", "z"], ["whole"], "product")
        return [*first, product, make("Mul", ["sixth", "whole"], ["y"], "swish")]
    if kind == "divided before":
        return [make("Div", ["z", "six"], ["part"], "part"), *first,
                make("Mul", ["part", "clip"], ["y"], "swish")]  # fmt: skip
    return [*first, make("Div", ["clip", "six"], ["g"], "g"),
            make("Mul", ["z", "g"], ["y"], "swish")]  # fmt: skip


def network(tmp_path, kind="HardSwish", loud=20.0, skip=True, seed=0, channels=6, ends=False):
    """A stem whose last channel is `loud` times as far as the others, and all that may read it."""
    chance = np.random.default_rng(seed)
    make = helper.make_node
    shapes = {"w": (channels, 3, 3, 3), "b": (channels,), "dw": (channels, 1, 3, 3),
              "pw": (channels, channels, 1, 1), "pb": (channels,), "fc": (5, channels)}  # fmt: skip
    values = {n: 0.4 * chance.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    values["w"][-1] *= loud
    values["dw"][-1] /= loud  # it says no more than the others
    values |= {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6),
               "sixth": np.float32(1 / 6)}  # fmt: skip
    conv = {"pads": [1] * 4}
    nodes = [
        make("Conv", ["image", "w", "b"], ["z"], "stem", **conv),
        *gate(kind),
        make("Conv", ["y", "dw"], ["d"], "depthwise", group=channels, **conv),
        make("Relu", ["d"], ["r"], "relu"),
        make("Conv", ["r", "pw", "pb"], ["p"], "project"),
        *([make("Add", ["p", "y"], ["sum"], "add")] if skip else []),
        make("GlobalAveragePool", ["sum" if skip else "p"], ["pool"], "pool"),
        make("Flatten", ["pool"], ["flat"], "flat"),
        make("Gemm", ["flat", "fc"], ["scores"], "fc", transB=1),
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, 5))]
    if ends:
        shape = (1, channels, SIDE, SIDE)
        outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape))
    graph = helper.make_graph(
        nodes, "gated",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, SIDE, SIDE))],
        outputs, [numpy_helper.from_array(np.asarray(v), n) for n, v in values.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, tmp_path / "gated.onnx")
    return tmp_path / "gated.onnx"


def images(n=48, seed=1):
    return np.random.default_rng(seed).normal(size=(n, 3, SIDE, SIDE)).astype(np.float32)


def answers(model, inputs):
    session = Session(model, threads=1)
    return np.concatenate([session.run({"image": x[None]}, ["scores"])[0] for x in inputs])


def decibels(exact, found):
    return 10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum())


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(KINDS), st.booleans(), st.integers(0, 99), st.floats(8, 60), st.integers(4, 9)
)  # fmt: skip
def test_apart_the_network_computes_what_it_computed(tmp_path, kind, skip, seed, loud, channels):
    model = prepared(network(tmp_path, kind, loud, skip, seed, channels))
    exact = answers(model, images(6))
    found = gates.factors(model, images())
    assert set(found) == {"stem"}
    gates.equalize_(model, found)
    onnx.checker.check_model(model, full_check=True)
    assert np.abs(answers(model, images(6)) - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_loud_channel_no_longer_takes_the_codes_of_the_others(tmp_path, kind):
    source, inputs = network(tmp_path, kind, loud=40.0, skip=False), images()
    exact, noise = answers(onnx.load(source), inputs), {}
    for made in (EQUAL.replaced(equalize_gates=False), EQUAL):
        report = quantize.static(source, tmp_path / "q.onnx", inputs, made)
        assert report.function.error <= 1e-5
        noise[made.equalize_gates] = decibels(exact, answers(onnx.load(report.file), inputs))
    assert noise[True] > noise[False] + 3


def test_without_a_loud_channel_nothing_changes(tmp_path):
    source, files = network(tmp_path, loud=1.0), []
    assert gates.factors(prepared(source), images()) == {}
    for equalized in (False, True):
        made = EQUAL.replaced(equalize_gates=equalized)
        files.append(tmp_path / f"{equalized}.onnx")
        quantize.static(source, files[-1], images(), made)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_who_cannot_take_the_factors_reads_what_it_read(tmp_path):
    """An Add and the network's own output; the names that stay stand for the values that stay."""
    source, inputs = network(tmp_path, ends=True), images(4)
    before, model = prepared(source), prepared(source)
    gates.equalize_(model, gates.factors(model, images()))
    names = {out for node in model.graph.node for out in node.output}
    assert {"z", "y", f"z{gates.DERIVED}", f"y{gates.DERIVED}", "sum"} <= names
    reads = {node.name: list(node.input) for node in model.graph.node}
    assert reads["add"] == ["p", "y"]
    assert reads["depthwise"][0] == f"y{gates.DERIVED}"
    for graph in (before.graph, model.graph):
        graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    for name in ("z", "y"):
        found = [Session(m, threads=1).run({"image": inputs[:1]}, [name])[0]
                 for m in (before, model)]  # fmt: skip
        np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_repaired_network_has_the_gates_that_it_had(tmp_path):
    """Surgery divides by 6 after the product, and residuals and poolings read the quotient."""
    model, found = zoo.load("mobilenet_v3_large", "marked-things"), []
    inputs = model.preprocessing(data.load("calib", 32, 128, "marked-things").images)
    repaired = copy.deepcopy(model.module)
    surgery.replace_(repaired)
    for network in (model.module, repaired):
        export.to_onnx(network, tmp_path / "float.onnx", size=128)
        found.append(gates.factors(prepared(tmp_path / "float.onnx"), inputs))
    assert len(found[0]) == 3 and found[0].keys() == found[1].keys()
    for name, own in found[0].items():
        np.testing.assert_allclose(found[1][name], own, rtol=1e-3)


def test_pools_pass_factors_on_and_a_layer_that_does_not_take_them_leaves_all_as_it_was(tmp_path):
    source = network(tmp_path, skip=False)
    model = onnx.load(source)
    nodes = {node.name: node for node in model.graph.node}
    nodes["pool"].input[0] = "y"  # the last layer reads the pool of the gate
    for name in ("depthwise", "relu", "project"):
        model.graph.node.remove(nodes[name])
    onnx.save(model, tmp_path / "last.onnx")
    last = prepared(tmp_path / "last.onnx")
    exact = answers(last, images(4))
    gates.equalize_(last, gates.factors(last, images()))
    assert {f"pool{gates.DERIVED}", f"flat{gates.DERIVED}"} <= {
        out for node in last.graph.node for out in node.output
    }
    np.testing.assert_allclose(answers(last, images(4)), exact, rtol=1e-5, atol=1e-5)
    model.graph.node.remove(nodes["pool"])
    model.graph.node.insert(2, helper.make_node("ReduceMax", ["y"], ["pool"], "max", axes=[2, 3]))
    onnx.save(model, tmp_path / "max.onnx")
    assert gates.factors(prepared(tmp_path / "max.onnx"), images()) == {}


def test_no_range_grows(tmp_path):
    source, inputs = network(tmp_path), images()
    limits = quantize.measure_ranges(source, inputs).limits()
    for name in ("z", "y"):
        ends = limits[f"{name}/equalized"], limits[name]
        reach, whole = (max(-low, high) for low, high in ends)
        assert reach <= 1.5 * whole  # some images reach farther than those that factors came from


def test_ranges_serve_recipes_with_equalized_gates_and_without(tmp_path):
    source, inputs = network(tmp_path), images()
    plain = quantize.measure_ranges(source, inputs, equalize_gates=False)
    with pytest.raises(UsageError, match=r"equalizes the channels.*pass calibration images"):
        quantize.static(source, tmp_path / "q.onnx", plain, EQUAL)
    ranges = quantize.measure_ranges(source, inputs)
    assert set(plain.tensors) < set(ranges.tensors)
    for wish in (EQUAL, quantize.load_recipe("int8@1"), quantize.load_recipe("pow2")):
        files = [tmp_path / "from_ranges.onnx", tmp_path / "from_images.onnx"]
        for file, given_ in zip(files, (ranges, inputs), strict=True):
            quantize.static(source, file, given_, wish)
        assert files[0].read_bytes() == files[1].read_bytes()


# --- flat ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "ends"),
    [("HardSwish", (-3, np.inf)), ("HardSigmoid", None), ("written out", None), ("SiLU", None)],
)
def test_a_value_that_is_multiplied_is_looked_at_everywhere(tmp_path, kind, ends):
    found = flat_ends.flat_ends(prepared(network(tmp_path, kind)))
    assert found.get("z") == ends


@pytest.mark.parametrize("kind", KINDS)
def test_what_only_a_gate_reads_ends_where_the_gate_is_flat(tmp_path, kind):
    model = prepared(network(tmp_path, kind))
    gates.equalize_(model, gates.factors(model, images()))
    found = flat_ends.flat_ends(model).get("z")
    assert found == pytest.approx((-3, 3)) if kind != "SiLU" else found is None


def test_flat_ends_are_a_value_of_the_recipe(tmp_path):
    source, inputs = network(tmp_path, loud=10.0), images()
    steps = {}
    for flat in (False, True):
        made = recipe.Recipe(flat_ends=flat)
        file = quantize.static(source, tmp_path / "q.onnx", inputs, made).file
        stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}
        steps[flat] = float(stored["z_scale"])
    assert steps[True] < 0.7 * steps[False]
    assert recipe.Recipe(flat_ends=True).sha256 != recipe.Recipe().sha256


def test_costs_of_layers_are_asked_with_the_float_file_that_was_rounded(tmp_path):
    file, quantized = network(tmp_path), tmp_path / "equal_int8.onnx"
    quantize.static(file, quantized, images(), EQUAL)
    with pytest.raises(UsageError, match=r"has equalized gates .* and gated.onnx has not"):
        compare.sensitivity(file, quantized, images(4))
    equal = ranges.equalized_gates(file, tmp_path / "equal.onnx", images(), None)
    report = compare.sensitivity(equal, quantized, images(4))
    assert report.whole_db > 10
