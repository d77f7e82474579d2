"""Exact rules for ONNX graphs: the network before and after computes the same, on any shapes."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from labutils import surgery
from labutils.errors import SurgeryError
from labutils.surgery.onnx_level.check import compare_outputs
from labutils.surgery.rules import onnx_operators

RNG = np.random.default_rng(3)
QUICK = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def weights(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def graph(nodes, constants, shape, opset=17):
    """A checked model from "x" to "y"."""
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in
            (("x", shape), ("y", None))]  # fmt: skip
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(made, opset_imports=imports, ir_version=8)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(" "), [output], name=f"/{op}/{output}", **attributes)


def ops(model):
    return [n.op_type for n in model.graph.node if n.op_type != "Constant"]


def replaced(model, *rules):
    """Replace in a copy; the report's check is of the rules' own run, so check again here."""
    after = onnx.ModelProto()
    after.CopyFrom(model)
    report = surgery.replace_(after, rules)
    check, _ = compare_outputs(model, after, None)
    assert check.rounding, str(check)
    onnx.checker.check_model(after, full_check=True)
    return after, report


# --- fold-constants


def test_shape_arithmetic_is_folded_and_what_depends_on_the_input_stays():
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s zero", "n", axis=0),
        node("Unsqueeze", "n first", "n1"), node("Concat", "n1 rest", "shape", axis=0),
        node("Relu", "x", "r"), node("Reshape", "r shape", "y"),
    ]  # fmt: skip
    constants = {"zero": np.int64(0), "first": np.array([0]), "rest": np.array([-1])}
    after, report = replaced(graph(nodes, constants, [2, 3, 4, 5]), "fold-constants")
    assert ops(after) == ["Relu", "Reshape"]
    assert report.counts == {"fold-constants": 4}
    assert {match.was for match in report.matches} == {"Shape", "Gather", "Unsqueeze", "Concat"}


def test_a_dynamic_shape_is_not_folded():
    nodes = [node("Shape", "x", "s"), node("Expand", "one s", "y")]
    with pytest.raises(SurgeryError, match="matched nothing"):
        surgery.replace_(graph(nodes, {"one": np.float32(1)}, ["n", 3]), "fold-constants")


def test_nothing_to_fold_is_not_a_silent_success(small_onnx):
    with pytest.raises(SurgeryError, match="matched nothing"):
        surgery.replace_(onnx.load(small_onnx(17)), "fold-constants")


def test_quantized_weights_are_not_folded():
    nodes = [
        node("DequantizeLinear", "q scale zero", "w"),
        node("Conv", "x w", "c"),
        node("Shape", "c", "s"),
        node("Reshape", "c s", "y"),
    ]
    constants = {
        "q": np.ones((4, 3, 1, 1), np.int8), "scale": np.float32(0.1), "zero": np.int8(0)
    }  # fmt: skip
    model = graph(nodes, constants, [1, 3, 4, 4])
    with pytest.raises(SurgeryError, match="quantized"):
        surgery.replace_(model, "fold-constants")
    assert "DequantizeLinear" in ops(model)


# --- merge-branches


@QUICK
@given(
    kernels=st.lists(st.sampled_from([1, 3, 5]), min_size=2, max_size=4),
    groups=st.sampled_from([1, 2, 4]),
    stride=st.sampled_from([1, 2]),
    identity=st.booleans(),
    start=st.booleans(),
)
def test_parallel_convolutions_become_one(kernels, groups, stride, identity, start):
    nodes, constants, terms = [], {}, ["zero"] if start else []
    constants["zero"] = np.float32(0.5)
    for i, k in enumerate(kernels):
        constants |= {f"w{i}": weights(4, 4 // groups, k, k), f"b{i}": weights(4)}
        attributes = {"pads": [k // 2] * 4, "strides": [stride, stride], "group": groups}
        bias = f" b{i}" if i % 2 == 0 else ""
        nodes.append(node("Conv", f"x w{i}{bias}", f"c{i}", **attributes))
        terms.append(f"c{i}")
    if identity and stride == 1:
        constants |= {"g": weights(4), "b": weights(4), "m": weights(4), "v": weights(4) ** 2}
        nodes.append(node("BatchNormalization", "x g b m v", "n", epsilon=1e-3))
        terms.append("n")
    total = terms[0]
    for i, term in enumerate(terms[1:]):
        nodes.append(node("Add", f"{total} {term}", f"a{i}"))
        total = f"a{i}"
    nodes.append(node("Relu", total, "y"))
    before = graph(nodes, constants, [1, 4, 9, 8])
    after, report = replaced(before, "merge-branches")
    assert ops(after) == ["Conv", "Relu"]
    assert len(report.matches) == 1
    conv = next(n for n in after.graph.node if n.op_type == "Conv")
    sizes = {t.name: list(t.dims) for t in after.graph.initializer}
    assert sizes[conv.input[1]][2:] == [max(kernels)] * 2
    assert len(sizes) == 2  # the kernels that were merged are gone


@pytest.mark.parametrize(
    ("second", "why"),
    [
        ({"strides": [1, 1], "pads": [0, 0, 0, 0]}, "another window"),
        ({"dilations": [2, 2], "pads": [2, 2, 2, 2]}, "dilated"),
    ],
)
def test_branches_that_are_no_one_convolution_stay(second, why):
    nodes = [
        node("Conv", "x w0", "c0", pads=[1, 1, 1, 1]),
        node("Conv", "x w1", "c1", **second),
        node("Add", "c0 p", "y") if why == "another window" else node("Add", "c0 c1", "y"),
    ]
    if why == "another window":  # 3x3 without padding gives a smaller plane; pad it back
        nodes.insert(2, node("Pad", "c1 by", "p"))
    constants = {"w0": weights(4, 4, 3, 3), "w1": weights(4, 4, 3, 3)}
    constants["by"] = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    with pytest.raises(SurgeryError, match="matched nothing"):
        surgery.replace_(graph(nodes, constants, [1, 4, 8, 8]), "merge-branches")


def test_a_window_that_reaches_beyond_the_larger_one_stays():
    """At stride 2 two windows can give planes of one size although neither holds the other."""
    nodes = [
        node("Conv", "x w0", "c0", pads=[2, 2, 0, 0], strides=[2, 2]),  # from 2 before to 0 after
        node("Conv", "x w1", "c1", pads=[0, 0, 0, 0], strides=[2, 2]),  # from 0 to 1 after
        node("Add", "c0 c1", "y"),
    ]
    constants = {"w0": weights(4, 4, 3, 3), "w1": weights(4, 4, 2, 2)}
    with pytest.raises(SurgeryError, match="matched nothing"):
        surgery.replace_(graph(nodes, constants, [1, 4, 8, 8]), "merge-branches")


def test_a_branch_that_is_read_elsewhere_stays():
    nodes = [
        node("Conv", "x w0", "c0"), node("Conv", "x w1", "c1"), node("Add", "c0 c1", "a"),
        node("Mul", "a c1", "y"),
    ]  # fmt: skip
    constants = {"w0": weights(4, 4, 1, 1), "w1": weights(4, 4, 1, 1)}
    with pytest.raises(SurgeryError, match="matched nothing"):
        surgery.replace_(graph(nodes, constants, [1, 4, 8, 8]), "merge-branches")


# --- the others


@QUICK
@given(
    kernel=st.sampled_from([2, 3, 4, 7]),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    side=st.integers(12, 20),
)
def test_a_stride_4_kernel_is_widened_to_11(kernel, pads, side):
    nodes = [node("Conv", "x w b", "y", strides=[4, 4], pads=pads)]
    constants = {"w": weights(5, 3, kernel, kernel), "b": weights(5)}
    before = graph(nodes, constants, [1, 3, side, side + 1])
    after, _ = replaced(before, "widen-kernel")
    sizes = {t.name: list(t.dims) for t in after.graph.initializer}
    assert sizes[after.graph.node[0].input[1]] == [5, 3, 11, 11]


def test_sub_and_clip():
    nodes = [
        node("Relu", "x", "r"),
        node("Sub", "x r", "d"),
        node("Sub", "d one", "e"),
        node("Clip", "e low", "y"),
    ]
    constants = {"one": np.float32(1), "low": np.float32(0.25)}
    after, report = replaced(graph(nodes, constants, [1, 4, 5, 6]), "sub-to-add", "clip-to-max")
    assert report.counts == {"sub-to-add": 1, "clip-to-max": 1}
    assert ops(after) == ["Relu", "Mul", "Add", "Sub", "Max"]
    assert ("Sub", "one operand is a constant") in {(item.what, item.why) for item in report.left}


@QUICK
@given(data=st.data())
def test_any_transposition_of_six_dimensions_gives_the_same(data):
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3]), min_size=6, max_size=6))
    order = data.draw(st.permutations(range(6)))
    size = int(np.prod(shape))
    nodes = [
        node("Reshape", "x six", "a"),
        node("Transpose", "a", "b", perm=list(order)),
        node("Reshape", "b flat", "y"),
    ]
    constants = {"six": np.array(shape), "flat": np.array([size])}
    model = graph(nodes, constants, [size])
    if len(onnx_operators._groups(shape, list(order))) > 5:
        with pytest.raises(SurgeryError, match="move independently"):
            surgery.replace_(model, "five-dimensions")
        return
    after, _ = replaced(model, "five-dimensions")
    wide = [v for v in after.graph.value_info if len(v.type.tensor_type.shape.dim) > 5]
    assert not wide
    assert ops(after) == ["Reshape", "Transpose", "Reshape"]


def test_an_older_opset():
    after, report = replaced(_splitting(), "opset-11")
    assert after.opset_import[0].version == 11
    assert after.ir_version <= 7
    assert report.counts == {"opset-11": 1}


def _splitting():
    constants = {"at": np.array([1]), "halves": np.array([2, 4])}
    split = helper.make_node("Split", ["q", "halves"], ["s", "t"], name="/Split", axis=1)
    nodes = [
        node("Unsqueeze", "x at", "u"),
        node("Squeeze", "u at", "q"),
        split,
        node("Softmax", "t", "y"),
    ]
    return graph(nodes, constants, [3, 6])


def test_what_opset_11_cannot_say_keeps_the_opset(small_onnx):
    model = onnx.load(small_onnx(17))
    with pytest.raises(SurgeryError, match="HardSwish: opset 11 has no such operator"):
        surgery.replace_(model, "opset-11")
    assert model.opset_import[0].version == 17


def test_a_rule_can_be_kept_from_nodes():
    nodes = [node("Sub", "x r", "d"), node("Sub", "d r", "y")]
    nodes.insert(0, node("Relu", "x", "r"))
    rule = surgery.RULES["sub-to-add"].without("/Sub/d")
    after, report = replaced(graph(nodes, {}, [2, 3]), rule)
    assert report.counts == {"sub-to-add": 1}
    assert ops(after).count("Sub") == 1
    assert any("excluded by /Sub/d" in item.why for item in report.left)
