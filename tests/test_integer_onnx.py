"""The second export: operators on integers, run beside the QDQ file, and what stays in float."""

import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from small_networks import SIDE, crossing, inputs, vision_transformer

from labutils import export, quantize, runtime
from labutils.errors import ModelFileError, ParityError, UsageError
from labutils.quantize import integer

ACTIVATIONS = (
    "HardSwish",
    "HardSigmoid",
    "Sigmoid",
    "Tanh",
    "Elu",
    "LeakyRelu",
    "Relu",
    "Softplus",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(network, recipe) -> its QDQ file, and a report of the integer file made of it."""
    folder, kept = tmp_path_factory.mktemp("integer"), {}

    def make(name, recipe="int8"):
        if (name, recipe) not in kept:
            source = folder / f"{name}.onnx"
            network = {"crossing": crossing, "vit": vision_transformer}[name]()
            export.to_onnx(network, source, size=SIDE)
            quantized = folder / f"{name}.{recipe}.onnx"
            quantize.static(source, quantized, inputs(), recipe)
            file = folder / f"{name}.{recipe}.integer.onnx"
            kept[name, recipe] = quantize.write_integer(quantized, file, inputs(), check_top1=False)
        return kept[name, recipe]

    return make


def test_a_network_becomes_integer_operators_but_for_what_is_named(made):
    found = made("crossing")
    nodes = onnx.load(found.file).graph.node
    assert found.integer["QLinearConv"] == 6 and found.integer["QGemm"] == 1
    assert found.tables["HardSwish"] == 4 and found.tables["HardSigmoid"] == 2
    assert found.floating == ("ReduceMean '/ReduceMean'",) and not found.whole
    assert sum(node.op_type == "Conv" for node in nodes) == 0
    assert found.ends["DequantizeLinear"] == sum(n.op_type == "DequantizeLinear" for n in nodes)
    assert sum(found.integer.values()) + len(found.floating) + sum(found.ends.values()) == len(
        nodes
    )
    assert "ReduceMean '/ReduceMean'" in str(found) and "HardSwish" in str(found)
    json.dumps(found.to_dict())


def test_it_computes_what_the_qdq_file_computes(made):
    found = made("crossing")
    with runtime.OrtRunner(found.source) as rounded, runtime.OrtRunner(found.file) as whole:
        images = inputs(16, seed=5)
        assert np.abs(rounded.run(images) - whole.run(images)).max() <= 1e-6
    assert found.gate.passed and found.gate.candidate.startswith("crossing.int8.integer.onnx")
    domains = {entry.domain for entry in onnx.load(found.file).opset_import}
    assert domains <= {"", "ai.onnx", "com.microsoft"}


def test_a_network_without_a_mean_or_a_norm_is_integer_from_end_to_end(tmp_path):
    import torch
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.Hardswish(), nn.Conv2d(8, 8, 1), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    export.to_onnx(network, tmp_path / "f.onnx", size=SIDE)
    whole = quantize.PRESETS["int8"].replaced(input="quantized", output="quantized")
    quantize.static(tmp_path / "f.onnx", tmp_path / "ends.onnx", inputs(), whole)
    quantize.static(tmp_path / "f.onnx", tmp_path / "q.onnx", inputs())
    found = quantize.write_integer(
        tmp_path / "q.onnx", tmp_path / "i.onnx", inputs(), check_top1=False
    )
    assert found.whole and found.tables == {"HardSwish": 1, "Gelu": 1}
    assert found.ends == {"QuantizeLinear": 1, "DequantizeLinear": 1}  # at the ends


def test_attention_keeps_its_normalizations_in_float_and_sixteen_bits_stay_pairs(made):
    found = made("vit")
    assert {part.split()[0] for part in found.floating} == {"LayerNormalization"}
    assert found.integer["QLinearMatMul"] == 6 and found.integer["QLinearSoftmax"] == 1
    assert found.tables == {"Gelu": 1}
    wide = made("crossing", "a16w8")
    assert wide.integer["QLinearConv"] == 0 and len(wide.floating) > 10


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(ACTIVATIONS), st.floats(1e-3, 0.2), st.integers(0, 255),
    st.floats(1e-3, 0.2), st.integers(0, 255),
)  # fmt: skip
def test_a_table_is_the_function_for_every_code(kind, scale, zero, after, point):
    codes = TensorProto.UINT8
    values = {
        "s": np.float32(scale), "z": np.uint8(zero), "t": np.float32(after), "p": np.uint8(point)
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["a"], "dq"),
        helper.make_node(kind, ["a"], ["b"], "act"),
        helper.make_node("QuantizeLinear", ["b", "t", "p"], ["y"], "q"),
    ]
    ends = [helper.make_tensor_value_info(name, codes, [256]) for name in "xy"]
    graph = helper.make_graph(
        nodes, "one", ends[:1], ends[1:],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    before = run(model)
    assert integer._write_tables_(model, frozenset({kind})) == {kind: 1}
    assert [node.op_type for node in model.graph.node] == ["Cast", "Gather"]
    assert np.array_equal(run(model), before)


def run(model):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": np.arange(256, dtype=np.uint8)})[0]


def test_what_is_not_a_qdq_file_is_refused_and_nothing_is_written(made, tmp_path, monkeypatch):
    found, out = made("crossing"), tmp_path / "i.onnx"
    with pytest.raises(ModelFileError, match="not quantized"):
        quantize.write_integer(found.source.with_name("crossing.onnx"), out, inputs())
    with pytest.raises(UsageError, match="there were none"):
        quantize.write_integer(found.source, out, inputs()[:0])
    with pytest.raises(UsageError, match="is the QDQ file itself"):
        quantize.write_integer(found.source, found.source, inputs())
    ours = integer._table

    def wrong(*arguments):
        table = ours(*arguments)
        return None if table is None else 255 - table

    monkeypatch.setattr(integer, "_table", wrong)  # a table that is wrong does not pass the gate
    with pytest.raises(ParityError):
        quantize.write_integer(found.source, out, inputs(), check_top1=False)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_both_and_says_what_stays_in_float(lab, made, tmp_path):
    float_file = made("crossing").source.with_name("crossing.onnx")
    stated = ("--mean", 0.5, 0.5, 0.5, "--std", 0.5, 0.5, 0.5, "--images", 8, "--held-out", 16)
    asked = ("quantize", float_file, *stated, "--integer", tmp_path / "i.onnx")
    code, _, err = lab(*asked)
    assert code == 2 and "-o FILE.onnx" in err
    code, out, err = lab(*asked, "-o", tmp_path / "q.onnx", "--json")
    facts = json.loads(out)
    assert facts["integer"]["floating"] == ["ReduceMean '/ReduceMean'"], err
    assert {"q.onnx", "i.onnx", "i.onnx.manifest.json"} <= {p.name for p in tmp_path.iterdir()}
    assert str(tmp_path / "i.onnx") in facts["written"]
