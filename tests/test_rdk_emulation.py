"""The BPU's quantizer emulated from documented properties: exact forms, one rounding, tables."""

import numpy as np
import onnx
import pytest
import torch
from colour_network import preprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from labutils import compare, export, quantize, runtime
from labutils.errors import UnknownNameError, UsageError
from labutils.images import data
from labutils.models import zoo
from labutils.onnxfile.file import OnnxFile
from labutils.onnxfile.session import Session
from labutils.pipeline import rdk_emulation, steps
from labutils.quantize.recipe import Activations, Calibration, Override, Recipe, Weights
from labutils.rdk import bpu_form, hb_mapper, placement, vendor_log

SIDE = 16


class Gated(nn.Module):
    """What MobileNetV3 is made of: hard-swish, a gate, a depthwise layer, a ReLU, a shortcut."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.act, self.gate = nn.Hardswish(), nn.Hardsigmoid()
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.squeeze, self.excite = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.relu, self.project = nn.ReLU(), nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.act(self.stem(x))
        y = self.relu(self.depth(x))
        s = self.gate(self.excite(self.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = self.project(y * s) + x
        return self.head(torch.flatten(x.mean((2, 3), keepdim=True), 1))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = Gated().eval()
    path = tmp_path_factory.mktemp("gated") / "gated.onnx"
    export.to_onnx(module, path, opset=11, size=SIDE)
    return OnnxFile(path)


def pictures(n=12):
    pixels = np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE, 3)).astype(np.uint8)
    return data.ImageSet(pixels, np.full(n, data.NO_LABEL), (), f"{n} of noise")


PRE = preprocessing(SIDE)


@pytest.fixture(scope="module")
def emulation(network, tmp_path_factory):
    recipe = quantize.load_recipe("int8_minmax")
    return rdk_emulation.emulate(
        network, tmp_path_factory.mktemp("emulated"), pictures(), recipe, PRE
    )


def answers(file, inputs):
    session = Session(OnnxFile.of(file), optimize="none")
    name = session.inputs[0][0]
    return np.concatenate([session.run({name: x[None]})[0] for x in inputs])


# ---------------------------------------------------------------- the form


def test_the_joined_network_computes_the_same_with_one_node_per_hard_swish(network, tmp_path):
    model, done = bpu_form.joined(network)
    assert done["HardSwish"] == 1 and done["GlobalAveragePool"] == 2
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("HardSwish") == 1 and ops.count("HardSigmoid") == 1  # of the gate
    before = {node.name for node in network.proto.graph.node}
    assert {node.name for node in model.graph.node} <= before
    made = OnnxFile.write(tmp_path / "joined.onnx", model)
    inputs = PRE(pictures(4).images)
    np.testing.assert_allclose(answers(made, inputs), answers(network, inputs), atol=1e-5)
    assert network.opset == 11  # the file is not changed


@pytest.mark.parametrize(
    ("slope", "shift", "other", "is_one"),
    [(1 / 6, 0.5, "x", True), (0.2, 0.5, "x", False), (1 / 6, 0.4, "x", False),
     (1 / 6, 0.5, "y", False)],
)  # fmt: skip
def test_only_hard_swish_is_joined(tmp_path, slope, shift, other, is_one):
    nodes = [
        helper.make_node("Abs", ["x"], ["y"], "abs"),
        helper.make_node("HardSigmoid", ["x"], ["g"], "gate", alpha=slope, beta=shift),
        helper.make_node("Mul", [other, "g"], ["m"], "mul"),
        helper.make_node("Add", ["m", "y"], ["z"], "add"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xz"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 11)], ir_version=7,
    )  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    made, done = bpu_form.joined(OnnxFile(tmp_path / "m.onnx"))
    assert bool(done["HardSwish"]) == is_one
    values = np.linspace(-5, 5, 4, dtype=np.float32)
    file = OnnxFile.write(tmp_path / "j.onnx", made)
    np.testing.assert_allclose(
        answers(file, [values]), answers(tmp_path / "m.onnx", [values]), atol=1e-6
    )


@settings(max_examples=20)
@given(
    sums=st.lists(st.integers(-4000, 4000), min_size=4, max_size=4),
    own=st.integers(1, 100), behind=st.integers(1, 100),
)  # fmt: skip
def test_a_convolution_and_its_relu_round_once(tmp_path_factory, sums, own, behind):
    """Whatever the scales were: round(relu(sum) / scale of the ReLU), as one operator has it."""
    place = tmp_path_factory.mktemp("relu")
    kernel = np.ones((1, 1, 1, 1), np.float32)
    names = {"own": own / 100, "behind": behind / 100}
    stored = [numpy_helper.from_array(np.float32(v), n) for n, v in names.items()]
    stored += [numpy_helper.from_array(np.uint8(128), "zero"), numpy_helper.from_array(kernel, "w")]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("QuantizeLinear", ["c", "own", "zero"], ["cq"], "q1"),
        helper.make_node("DequantizeLinear", ["cq", "own", "zero"], ["cd"], "d1"),
        helper.make_node("Relu", ["cd"], ["r"], "relu"),
        helper.make_node("QuantizeLinear", ["r", "behind", "zero"], ["rq"], "q2"),
        helper.make_node("DequantizeLinear", ["rq", "behind", "zero"], ["rd"], "d2"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 2, 2]) for n in ("x", "rd")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], stored),
        opset_imports=[helper.make_opsetid("", 13)], ir_version=7,
    )  # fmt: skip
    done = bpu_form.round_as_the_bpu_(model)
    assert done["clamped convolutions"] == 1
    file = OnnxFile.write(place / "m.onnx", model)
    values = (np.array(sums) / 99).astype(np.float32).reshape(1, 2, 2)
    step = np.float32(behind / 100)
    codes = np.clip(np.rint(np.maximum(values, 0) / step), 0, 127)
    np.testing.assert_array_equal(answers(file, [values])[0], codes * step)


# ---------------------------------------------------------------- the emulation


def test_scales_have_no_zero_point_and_the_output_keeps_its_sums(emulation):
    model = emulation.qdq.proto
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert stored[node.input[2]] == 128 and stored[node.input[2]].dtype == np.uint8
    made = {name: node for node in model.graph.node for name in node.output}
    assert made[model.graph.output[0].name].op_type == "Gemm"
    assert emulation.integers.floating == ()


def test_the_integers_compute_what_the_qdq_file_computes(emulation):
    inputs = PRE(pictures(4).images)
    ours, theirs = answers(emulation.integer, inputs), answers(emulation.qdq, inputs)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_tables_hold_every_node_but_what_a_convolution_absorbs(network, emulation):
    named = {line.node for line in emulation.checker}
    gone = {node.name for node in network.proto.graph.node if node.name not in named}
    kinds = {node.name: node.op_type for node in network.proto.graph.node}
    assert sorted(kinds[name] for name in gone if kinds[name] != "Constant") == [
        "HardSigmoid", "Relu", "Relu",
    ]  # fmt: skip
    by = {line.node: line for line in emulation.nodes}
    assert by["/act/Mul"].kind == "HzLut" and by["/head/Gemm"].kind == "HzSQuantizedConv"
    *inner, last = emulation.checker
    assert {(line.on, line.subgraph) for line in inner} == {("BPU", "id(0)")}
    assert inner[-1].node == "/head/Gemm" and inner[-1].bits == "int8/int32"
    # as the tool's own tables have it behind a last Gemm
    assert last == vendor_log.NodeLine(
        "/head/Gemm_reshape_output", "CPU", "--", "Reshape", None, None, "float/float"
    )
    assert all(0.9 < line.cosine <= 1 for line in emulation.nodes)


def test_a_threshold_is_that_of_what_the_node_reads(network, emulation):
    inputs = PRE(pictures().images)
    by = {line.node: line for line in emulation.nodes}
    assert by["/stem/Conv"].threshold == pytest.approx(np.abs(inputs).max(), rel=0.02)
    swish = by["/depth/Conv"].threshold  # reads hard-swish
    model, _ = bpu_form.joined(network)
    made = {name: node for node in model.graph.node for name in node.output}
    source = next(n for n in model.graph.node if n.name == "/depth/Conv").input[0]
    assert made[source].op_type == "HardSwish" and by["/act/Mul"].threshold != swish


def test_every_line_says_that_it_is_an_emulation(emulation):
    lines = str(emulation).splitlines()
    assert len(lines) > 20 and all(line.startswith("emulation | ") for line in lines)
    assert emulation.to_dict()["emulation"] is True


def test_node_info_widens_a_node_and_its_rows_say_so(network, tmp_path):
    recipe = Recipe("wide", overrides=(Override(node="/act/Mul", activations=16),))
    made = rdk_emulation.emulate(network, tmp_path, pictures(), recipe, PRE)
    by = {line.node: line for line in made.checker}
    assert by["/act/Mul"].bits == "int16/int16" and by["/depth/Conv"].bits == "int8/int8"
    assert made.report.wide


def test_an_exception_for_half_of_a_hard_swish_is_of_the_whole_and_one_for_nothing_is_refused(
    network, tmp_path
):
    gate = "/act/HardSigmoid"
    assert gate in {node.name for node in network.proto.graph.node}
    wide = Recipe("wide", overrides=(Override(node=gate, activations=16),))
    made = rdk_emulation.emulate(network, tmp_path, pictures(), wide, PRE)
    by = {line.node: line for line in made.checker}
    assert by["/act/Mul"].bits == "int16/int16" and made.report.wide
    made = rdk_emulation.emulate(network, tmp_path, pictures(), Recipe("f", exclude=(gate,)), PRE)
    assert {line.node for line in made.checker if line.on == "CPU"} >= {"/act/Mul"}
    for wrong in (Recipe(overrides=(Override("nosuch", activations=16),)), Recipe(exclude=("no",))):
        with pytest.raises(UnknownNameError, match=r"no node in gated\.onnx "):
            rdk_emulation.emulate(network, tmp_path, pictures(), wrong, PRE)


def test_the_checkers_table_follows_patterns_and_the_two_ends_of_a_node(network, tmp_path):
    recipe = Recipe("wide", overrides=(Override(node="/s*", activations=16),))
    made = rdk_emulation.emulate(network, tmp_path, pictures(), recipe, PRE)
    assert {n.node for n in made.checker if n.bits == "int16/int16"} == {
        "/stem/Conv", "/squeeze/Conv",
    }  # fmt: skip
    said = {"/stem/Conv": hb_mapper.Node(each=((0, 16),)), "/depth/Conv": hb_mapper.Node(output=16)}
    by = {line.node: line.bits for line in placement.lines(network, made.form, said)}
    assert (by["/stem/Conv"], by["/depth/Conv"]) == ("int16/int8", "int8/int16")


def test_nodes_without_names_have_their_rows(network, tmp_path):
    model = network.copy()
    for node in model.graph.node:
        node.name = ""
    file = OnnxFile.write(tmp_path / "n.onnx", model)
    made = rdk_emulation.emulate(file, tmp_path, pictures(), Recipe("r"), PRE)
    assert len(made.nodes) == len(made.checker) > 8
    assert all(line.cosine > 0.9 for line in made.nodes)


def test_only_a_convolution_ends_in_32_bits(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("HardSigmoid", ["c"], ["h"], "gate"),
        helper.make_node("Add", ["c", "h"], ["y"], "add"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 8, 8])
            for n, c in (("x", 3), ("y", 4))]  # fmt: skip
    kernel = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [kernel])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7),
        tmp_path / "m.onnx",
    )
    file = OnnxFile(tmp_path / "m.onnx")
    form = OnnxFile.write(tmp_path / "form.onnx", bpu_form.joined(file)[0])
    assert [line.bits for line in placement.lines(file, form)] == ["int8/int8"] * 3


def test_what_misses_a_limit_runs_on_the_cpu_and_splits_the_graph(tmp_path):
    """A kernel of 33 pixels is above the documented 31."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 33, padding=16, groups=4),
            nn.Conv2d(4, 4, 1), nn.Flatten(),
        ).eval()  # fmt: skip
    export.to_onnx(net, tmp_path / "n.onnx", opset=11, size=SIDE)
    file = OnnxFile(tmp_path / "n.onnx")
    model, _ = bpu_form.joined(file)
    form = OnnxFile.write(tmp_path / "form.onnx", model)
    found = placement.lines(file, form)
    convolutions = [line for line in found if "Conv" in line.node]
    assert [line.on for line in convolutions] == ["BPU", "CPU", "BPU"]
    assert convolutions[1].bits == "float/float" and convolutions[1].subgraph == "--"
    assert convolutions[0].subgraph != convolutions[2].subgraph
    asked = placement.lines(file, form, {convolutions[0].node: hb_mapper.Node("CPU")})
    assert [line.on for line in asked if "Conv" in line.node] == ["CPU", "CPU", "BPU"]
    assert vendor_log.table(found, pairs=True)[0].split()[:4] == ["Node", "ON", "Subgraph", "Type"]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe("w4", weights=Weights(4)), "weights of 4 bits"),
        (Recipe("o", overrides=(Override(node="*", weights=16),)), "weights of 16 bits"),
        (Recipe("p", activations=Activations(8, True, True)), "powers of two"),
    ],
)
def test_what_the_bpu_does_not_have_is_refused(recipe, words):
    with pytest.raises(UsageError, match=words):
        rdk_emulation.bpu_recipe(recipe)


@pytest.mark.slow
def test_the_emulation_is_as_near_to_float_as_the_vendors_simulator_was(tmp_path):
    """D-Robotics' own gave a mean cosine of 0.986 on 160 images (by max, 16 for calibration)."""
    model = zoo.load("mobilenet_v3_large", "things16")
    source = steps.as_onnx(model, tmp_path / "large.onnx", 11)
    recipe = Recipe("max", calibration=Calibration("minmax", 16))
    images = data.calibration(16, 128)
    made = rdk_emulation.emulate(source, tmp_path, images, recipe, model.preprocessing)
    inputs = model.preprocessing(data.load("val", 48, 128).images)
    with runtime.connect(source) as floats, runtime.connect(made.integer) as integers:
        found = compare.parity(floats.run(inputs), integers.run(inputs))
    assert found.cosine_mean == pytest.approx(0.986, abs=0.012)
    assert found.agreement.value > 0.93 and len(made.integers.floating) == 0
