"""Checking ONNX files against the operator tables: order, modules, limits, bad files."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from labutils.errors import ModelFileError, UnknownNameError
from labutils.targets import onnx_nodes, partition, table
from labutils.targets.limits import CHECKS


def model_of(nodes, shape=(1, 8, 8, 8), weights=None, opset=17, outputs=None, imports=()):
    """A model with one input "x"; its output is the last node's unless named."""
    outputs = outputs or [nodes[-1].output[0]]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid(d, v) for d, v in (("", opset), *imports)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def chain(*ops, **kw):
    names = ["x", *(f"t{i}" for i in range(len(ops)))]
    nodes = [
        helper.make_node(op, [names[i]], [names[i + 1]], name=f"{op}_{i}")
        for i, op in enumerate(ops)
    ]
    return model_of(nodes, **kw)


@pytest.fixture
def saved(tmp_path):
    def save(model, name="m.onnx"):
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return save


def test_verdicts_counts_and_first_blocker(saved):
    report = table.check(saved(chain("Relu", "Selu", "HardSwish", "HardSigmoid")), "snpe-2.7")
    assert [n.verdict for n in report.nodes] == [
        "supported",
        "unknown",
        "unsupported",
        "unsupported",
    ]
    assert report.counts == {"supported": 1, "constrained": 0, "unsupported": 2, "unknown": 1}
    assert report.first_blocker.node == "HardSwish_2"
    assert [n.action for n in report.nodes] == [
        "taken",
        "unknown",
        "the tool stops here",
        "not reached",
    ]
    assert report.opset == 17 and report.target == "snpe-2.7" and not report.ok


def test_unknown_operator_warns_and_blocks_nothing(saved):
    report = table.check(saved(chain("Relu", "Selu", "Selu")), "snpe-2.7")
    assert report.ok and report.first_blocker is None
    assert report.unknown == {"Selu": 2}
    assert any("Selu (2 nodes) is unknown" in warning for warning in report.warnings)
    assert "every node that the table knows" in str(report)


def test_half_known_operator_stays_unknown_but_says_what_is_known(saved):
    (node,) = table.check(saved(chain("Softmax")), "snpe-2.7").nodes
    assert node.verdict == "unknown" and "very likely supported (inferred)" in node.evidence


def test_operator_of_another_domain_is_unknown_even_with_a_known_name(saved):
    node = helper.make_node("Relu", ["x"], ["y"], name="odd", domain="com.acme")
    report = table.check(saved(model_of([node], imports=[("com.acme", 1)])), "snpe-2.7")
    assert report.nodes[0].verdict == "unknown" and "com.acme" in report.nodes[0].evidence


def test_text_html_and_data_say_the_same(saved):
    model = chain("Relu", "HardSwish")
    model.graph.node[1].name = "<b>&evil</b>"
    report = table.check(saved(model), "snpe-2.7")
    page = report._repr_html_()
    assert "<b>&evil" not in page and "&lt;b&gt;&amp;evil" in page
    data = json.loads(json.dumps(report.to_dict()))
    for text in (str(report), page):
        assert "The tool would stop at HardSwish" in text
        assert "this check does not run the tool" in text
    assert data["first_blocker"]["op_type"] == "HardSwish" and data["ok"] is False
    assert data["counts"] == report.counts and data["sources"]["qidk"]["repo"] == "quic/qidk"


def test_opset_above_the_range_is_the_first_blocker_of_a_tool_that_rejects_it(saved):
    report = table.check(saved(chain("Relu", opset=13)), "rdk-x5")
    assert report.first_blocker.op_type == "opset 13"
    assert "The opset version of the model is 13" in report.first_blocker.evidence
    assert report.counts["supported"] == 1 and not report.ok
    assert {n.action for n in report.nodes} == {"not reached"}
    assert table.check(saved(chain("Relu", opset=11)), "rdk-x5").ok


@pytest.mark.parametrize(("version", "warned"), [(7, False), (9, False), (10, True)])
def test_the_ir_version_that_a_tool_stops_at_is_said_as_the_tool_says_it(saved, version, warned):
    model = chain("Relu", opset=11)
    model.ir_version = version
    report = table.check(saved(model), "rdk-x5")
    words = "The ir version of the model is 10, which is greater than the maximum supported"
    assert any(words in warning for warning in report.warnings) == warned


def test_an_operator_of_another_domain_ends_a_tool_that_says_so(saved):
    node = helper.make_node("Mine", ["x"], ["y"], name="my0", domain="my.domain")
    model = model_of([node], opset=11)
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    report = table.check(saved(model), "rdk-x5")
    assert report.first_blocker.node == "my0" and not report.ok
    assert "nodes:['my0'] are specified as domain:my.domain" in report.first_blocker.evidence
    assert table.check(saved(model), "tidl-11").nodes[0].verdict == "unknown"


def test_what_the_bpu_does_not_compute_the_cpu_does(saved):
    for op, place in (("Det", "CPU"), ("Softplus", "BPU"), ("HardSigmoid", "BPU")):
        (node,) = table.check(saved(chain(op, opset=11)), "rdk-x5").nodes
        assert node.verdict == "supported" and f"on {place}" in node.evidence


def test_opset_outside_the_range_of_another_tool_only_warns(saved):
    report = table.check(saved(chain("Relu", opset=20)), "tidl-11")
    assert report.ok and any("outside the documented range" in w for w in report.warnings)
    assert not table.check(saved(chain("Relu", opset=19)), "tidl-11").warnings


def test_version_of_an_operator_decides_where_the_tool_looks_it_up(saved):
    for opset, verdict in ((13, "supported"), (18, "unsupported")):
        node = helper.make_node("ReduceMean", ["x"], ["y"], name="mean")
        report = table.check(saved(model_of([node], opset=opset)), "onnx-tf-1.10")
        assert report.nodes[0].verdict == verdict
    assert "version 18 of the operator" in report.nodes[0].evidence
    # the same situation where the tool only warns
    assert table.check(saved(chain("Relu")), "qairt-2025").nodes[0].verdict == "constrained"


def test_constant_nodes_are_data_unless_the_table_lists_them(saved):
    value = numpy_helper.from_array(np.float32(2))
    nodes = [
        helper.make_node("Constant", [], ["two"], name="two", value=value),
        helper.make_node("Mul", ["x", "two"], ["y"], name="mul"),
    ]
    path = saved(model_of(nodes))
    rdk, snpe = table.check(path, "tidl-11"), table.check(path, "snpe-2.7")
    assert (len(rdk.nodes), rdk.constants) == (1, 1)
    assert [n.verdict for n in snpe.nodes] == ["constrained", "supported"]  # version 13, known 1, 9
    assert snpe.constants == 0


def _clip(low, high):
    weights = {"low": np.float32(low), "high": np.float32(high)}
    return model_of([helper.make_node("Clip", ["x", "low", "high"], ["y"])], weights=weights)


def _conv(kernel, stride=1, group=1, channels=8, **attributes):
    weights = {"w": np.zeros((channels, 8 // group, kernel, kernel), np.float32)}
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=group, strides=[stride] * 2)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    return model_of([node], (1, 8, 32, 32), weights)


def _gemm(bias, **attributes):
    weights = {"w": np.zeros((4, 8), np.float32), "b": np.zeros(bias, np.float32)}
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], **{"transB": 1, **attributes})
    return model_of([node], (1, 8), weights)


def _pool(side):
    return model_of([helper.make_node("GlobalAveragePool", ["x"], ["y"])], (1, 8, side, side))


def _node(op, shape=(1, 8, 8, 8), **attributes):
    return model_of([helper.make_node(op, ["x"], ["y"], **attributes)], shape)


def _bare_conv(kernel, group=1):
    """Without attributes that may be left out: stride 1, no padding."""
    weights = {"w": np.zeros((8, 8 // group, kernel, kernel), np.float32)}
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=group)
    return model_of([node], (1, 8, 32, 32), weights)


def _clip_by_input():
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Clip", ["x", "", "most"], ["y"]),
    ]
    return model_of(nodes)


def _gelu(factor, op="Div", halved=False):
    nodes = [
        helper.make_node(op, ["x", "root"], ["a"]), helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Mul", ["b", "half"], ["h"]),
        helper.make_node("Add", ["h" if halved else "b", "half" if halved else "one"], ["c"]),
        helper.make_node("Mul", ["x", "c"], ["y"]),
    ]  # fmt: skip
    constants = {"root": np.float32(factor), "one": np.float32(1), "half": np.float32(0.5)}
    return model_of(nodes if halved else [n for n in nodes if "h" not in n.output], None, constants)


@pytest.mark.parametrize("model, whole", [
    (_gelu(2**0.5), True), (_gelu(0.5**0.5, "Mul"), True), (_gelu(1.0), False), (_gelu(2.0), False),
    (_gelu(2**0.5, halved=True), True),
], ids=range(5))  # fmt: skip
def test_an_erf_counts_as_a_gelu_where_it_divides_by_the_root_of_two(saved, model, whole):
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8, 8, 8))
    )
    (erf,) = (n for n in table.check(saved(model), "qnn").nodes if n.op_type == "Erf")
    assert (erf.verdict == "supported") == whole, erf.evidence


LIMITS = [
    ("qnn", _clip(0, 6), "supported"),
    ("rdk-x5", _conv(3, stride=2), "supported"),  # dilated it would be constrained
    ("tidl-11", _bare_conv(9), "supported"),  # above 7 with stride 2 is not
    ("tidl-11", _bare_conv(5, group=8), "constrained"),  # 5x5s1 is what the document is unclear on
    ("tidl-11", _node("GlobalAveragePool", (1, 8, 1024)), "supported"),
    ("tidl-11", _node("GlobalAveragePool", (1, 8, 1025)), "unsupported"),
    ("tidl-11", _clip(0, 6), "supported"),
    ("tidl-11", _clip(1, 6), "unsupported"),
    ("tidl-11", _clip(-1, 0), "unsupported"),
    ("rknn-2.3", _clip(0, 6), "supported"),
    ("rknn-2.3", _clip(0, 1), "constrained"),  # the CPU takes it
    ("tidl-11", _conv(3), "supported"),
    ("tidl-11", _conv(9, stride=2), "unsupported"),
    ("tidl-11", _conv(5, group=8), "constrained"),  # the document is unclear
    ("tidl-11", _conv(5, 2, group=8), "supported"),
    ("tidl-11", _conv(3, 3), "constrained"),  # depends on the device
    ("tidl-11", _conv(3, 3, group=8), "unsupported"),
    ("tidl-11", _conv(3, stride=4), "unsupported"),
    ("rdk-x5", _conv(31), "supported"),
    ("rdk-x5", _conv(32), "constrained"),
    ("rdk-x5", _conv(3, dilations=[2, 2]), "supported"),
    ("rdk-x5", _conv(3, 2, dilations=[2, 2]), "constrained"),
    ("rknn-2.3", _conv(9, group=8), "constrained"),
    ("rknn-2.3", _conv(9), "supported"),
    ("rknn-2.3", _conv(9, group=2), "supported"),  # grouped, not depthwise
    ("tidl-11", _conv(5, group=2), "supported"),
    ("snpe-2.7", _conv(3, kernel_shape=[3, 3]), "supported"),
    ("snpe-2.7", _conv(3, kernel_shape=[5, 5]), "unsupported"),
    ("snpe-2.7", _gemm([4]), "supported"),
    ("snpe-2.7", _gemm([4], transA=1), "unsupported"),
    ("qnn", _gemm([1, 4]), "supported"),
    ("qnn", _gemm([1]), "unsupported"),
    ("qnn", _gemm([4], alpha=0.5), "unsupported"),
    ("tidl-11", _pool(32), "supported"),
    ("tidl-11", _pool(33), "unsupported"),
    ("rknn-2.3", _pool(7), "supported"),
    ("rknn-2.3", _pool(8), "constrained"),
    ("rknn-2.3", _node("HardSigmoid", alpha=1 / 6), "supported"),
    ("rknn-2.3", _node("HardSigmoid"), "constrained"),  # ONNX's default is 0.2
    ("tidl-11", _node("Softmax", axis=-1), "supported"),
    ("tidl-11", _node("Softmax", axis=2), "supported"),
    ("tidl-11", _node("Softmax", axis=1), "unsupported"),
    ("rdk-x5", _node("ReduceMean", axes=[2, 3]), "supported"),
    ("rdk-x5", _node("ReduceMean", axes=[1, 2]), "constrained"),
    ("rdk-x5", _node("ReduceMean", axes=[2, 3], keepdims=0), "constrained"),
    ("tidl-11", _node("Relu", (2,) * 6), "supported"),
    ("tidl-11", _node("Relu", (2,) * 7), "unsupported"),
    ("tidl-11", _node("Relu", (1, 2, 2, 2, 2, 2, 2)), "supported"),
    ("qnn", _node("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]), "unsupported"),
    ("qnn", _node("AveragePool", kernel_shape=[2, 2]), "supported"),
    ("tidl-11", _node("Cast", to=1), "supported"),
    ("qairt-2025", _node("Erf"), "constrained"),
]


@pytest.mark.parametrize(("target", "model", "verdict"), LIMITS, ids=range(len(LIMITS)))
def test_limits_are_checked_on_the_node_itself(saved, target, model, verdict):
    report = table.check(saved(model), target)
    assert [n.verdict for n in report.nodes if n.op_type != "Constant"] == [verdict], report


def test_bounds_that_are_computed_are_no_constants(saved):
    nodes = table.check(saved(_clip_by_input()), "qnn").nodes
    assert [n.verdict for n in nodes if n.op_type == "Clip"] == ["unsupported"]


def test_unknown_shapes_leave_a_limit_open(saved):
    model = _pool(8)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert table.check(saved(model), "tidl-11").nodes[0].verdict == "constrained"


def test_weights_behind_a_dequantizer_count_as_constants(saved):
    weights = {"q": np.zeros((4, 8, 1, 1), np.int8), "s": np.float32(1), "z": np.int8(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], name="dq"),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    conv = table.check(saved(model_of(nodes, weights=weights)), "tidl-11").nodes[1]
    assert conv.verdict == "supported", conv.evidence


def test_every_check_that_a_table_may_name_is_used_by_one():
    used = {
        check
        for name in table.TARGETS
        for op in table.load(name).ops.values()
        for c in op.constraints
        for check in c.check or ()
    }
    assert used == set(CHECKS)


@given(order=st.permutations(range(6)))
def test_nodes_come_in_topological_order_whatever_the_file_says(tmp_path_factory, order):
    model = chain("Relu", "Selu", "HardSwish", "Relu", "HardSigmoid", "Selu")
    wanted = [node.name for node in model.graph.node]
    nodes = [model.graph.node[i] for i in order]
    shuffled = model_of(nodes, outputs=["t5"])
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    onnx.save(shuffled, path)
    report = table.check(path, "snpe-2.7")
    assert [n.node for n in report.nodes] == wanted
    assert report.first_blocker.node == "HardSwish_2"


def test_a_sorted_file_keeps_its_order(saved):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="left"),
        helper.make_node("Relu", ["x"], ["b"], name="right"),
        helper.make_node("HardSwish", ["b"], ["c"], name="right2"),
        helper.make_node("HardSigmoid", ["a"], ["d"], name="left2"),
        helper.make_node("Add", ["c", "d"], ["y"], name="join"),
    ]
    report = table.check(saved(model_of(nodes)), "snpe-2.7")
    assert [n.node for n in report.nodes] == ["left", "right", "right2", "left2", "join"]
    assert report.first_blocker.node == "right2"


def test_nodes_of_a_branch_are_judged_too(saved):
    out = [helper.make_tensor_value_info("i", TensorProto.FLOAT, None)]
    inner = helper.make_graph(
        [helper.make_node("HardSwish", ["a"], ["i"], name="in")], "b", [], out
    )
    nodes = [
        helper.make_node("If", ["flag"], ["y"], name="if", then_branch=inner, else_branch=inner),
        helper.make_node("Relu", ["x"], ["a"], name="before"),
    ]
    model = model_of(nodes, weights={"flag": np.array(True)}, outputs=["y"])
    report = table.check(saved(model), "snpe-2.7")
    assert [n.node for n in report.nodes] == ["before", "if", "in", "in"]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("/features/features.0/features.0.2/HardSwish", "features.0.2"),
        ("/features/features.4/block/block.2/scale_activation/HardSigmoid", None),
        ("/Flatten", ""),
        ("HardSwish_12", ""),
    ],
)
def test_module_of_a_torchscript_name(saved, name, module):
    model = chain("HardSwish")
    model.graph.node[0].name = name
    if module is None:
        module = "features.4.block.2.scale_activation"
    assert table.check(saved(model), "snpe-2.7").nodes[0].module == module


@pytest.mark.slow
def test_module_of_a_real_dynamo_export(tmp_path):
    import torch

    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ModuleDict({"a": torch.nn.Hardswish()})["a"]
    )
    outer = torch.nn.Sequential(net).eval()
    path = tmp_path / "d.onnx"
    example = (torch.zeros(1, 3, 8, 8),)
    torch.onnx.export(outer, example, path, dynamo=True, opset_version=18, verbose=False)
    blocker = table.check(path, "snpe-2.7").first_blocker
    assert (blocker.op_type, blocker.module) == ("HardSwish", "0.1")


def test_partition_of_a_graph_that_leaves_the_accelerator_once(saved):
    report = table.check(saved(chain("Relu", "HardSwish", "Identity", "Relu", "Relu")), "tidl-11")
    assert [n.action for n in report.nodes] == [
        "accelerator, subgraph 1",
        "accelerator, subgraph 1",
        "CPU",
        "accelerator, subgraph 2",
        "accelerator, subgraph 2",
    ]
    assert report.subgraphs == 2
    assert "2 accelerator subgraphs, 1 node on the CPU" in str(report)


def test_partition_never_joins_around_a_cpu_node(saved):
    # a feeds the CPU node and c; c also needs the CPU node: a and c cannot be one subgraph
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="a"),
        helper.make_node("Identity", ["a"], ["b"], name="b"),
        helper.make_node("Add", ["a", "b"], ["c"], name="c"),
    ]
    assert table.check(saved(model_of(nodes)), "tidl-11").subgraphs == 2


@st.composite
def _graphs(draw):
    count = draw(st.integers(1, 12))
    edges = [draw(st.sets(st.integers(0, max(i - 1, 0)), max_size=3)) for i in range(count)]
    on = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return [sorted(e) if i else [] for i, e in enumerate(edges)], on


@given(_graphs())
def test_subgraphs_are_on_one_processor_and_wait_for_each_other_in_one_direction(case):
    edges, on = case
    facts = onnx_nodes._Facts({"": 17}, {}, frozenset(), {}, frozenset())
    nodes = [
        onnx_nodes.Node(helper.make_node("Sum", [f"t{s}" for s in e], [f"t{i}"]), facts, i)
        for i, e in enumerate(edges)
    ]
    groups = partition.subgraphs(nodes, on)
    assert [bool(g) for g in groups] == on
    # each subgraph as one node, each CPU node as itself: the contracted graph has no cycle
    key = [("g", g) if g else ("n", i) for i, g in enumerate(groups)]
    after = {k: set() for k in key}
    for i, sources in enumerate(edges):
        for s in sources:
            if key[s] != key[i]:
                after[key[s]].add(key[i])
    while after:
        free = [k for k in after if all(k not in users for users in after.values())]
        assert free, "two subgraphs wait for each other"
        for k in free:
            del after[k]
    if all(on):  # nothing leaves the accelerator, so only separate pieces stay separate
        assert all(groups[i] == groups[s] for i, e in enumerate(edges) for s in e)


BAD = [
    (b"", "is empty"),
    (b"import torch\nprint('hello')\n", "is text"),
    (b"PK\x03\x04" + b"\0" * 40, "ZIP archive"),
    (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "HDF5"),
    (b"\x1c\0\0\0TFL3" + b"\0" * 40, "TensorFlow Lite"),
    (bytes(range(256)), "does not parse|does not hold"),
]


@pytest.mark.parametrize(("data", "problem"), BAD, ids=[case[1] for case in BAD])
def test_foreign_file(tmp_path, data, problem):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=problem):
        table.check(path, "snpe-2.7")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ModelFileError, match="no model file"):
        table.check(tmp_path / "none.onnx", "snpe-2.7")
    with pytest.raises(ModelFileError, match="Cannot read"):
        table.check(tmp_path, "snpe-2.7")


@given(part=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path_factory, part):
    model = _conv(3)
    data = model.SerializeToString()
    path = tmp_path_factory.mktemp("t") / "m.onnx"
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ModelFileError):
        table.check(path, "snpe-2.7")


def test_weights_in_a_file_that_is_missing_or_short(tmp_path):
    model, path = _conv(3), tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert table.check(path, "snpe-2.7").ok
    whole = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(whole[:-1])
    with pytest.raises(ModelFileError, match="too short"):
        table.check(path, "snpe-2.7")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelFileError, match=r"w\.bin, which is not beside it"):
        table.check(path, "snpe-2.7")


def test_damaged_graphs(saved):
    cycle = model_of(
        [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    )
    with pytest.raises(ModelFileError, match="cycle"):
        table.check(saved(cycle), "snpe-2.7")
    dangling = model_of([helper.make_node("Relu", ["nowhere"], ["y"], name="r")])
    with pytest.raises(ModelFileError, match="reads 'nowhere'"):
        table.check(saved(dangling), "snpe-2.7")
    empty = model_of([helper.make_node("Relu", ["x"], ["y"])])
    del empty.graph.node[:]
    with pytest.raises(ModelFileError, match="no ONNX graph with nodes"):
        table.check(saved(empty), "snpe-2.7")


def test_unknown_target_is_refused_before_the_file_is_read(tmp_path):
    with pytest.raises(UnknownNameError, match="tidl-11"):
        table.check(tmp_path / "none.onnx", "tidl-12")
