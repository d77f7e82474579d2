"""Exact ONNX rules for what Qualcomm's HTP lacks, and the rule that lowers any opset."""

import numpy as np
import onnx
import pytest
from cases.draft import Draft
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from test_onnx_rules import QUICK, RNG, graph, node, ops, replaced

from labutils import surgery, targets
from labutils.errors import SurgeryError

NEWEST = min(onnx.defs.onnx_opset_version(), 23)  # what this ONNX Runtime reads


# --- pad-to-concat


@QUICK
@given(data=st.data())
def test_any_constant_pad_is_a_concatenation(data):
    rank = data.draw(st.integers(2, 5))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    pads[rank - 1], pads[-1] = 0, data.draw(st.integers(1, 3))
    constants = {"pads": np.array(pads), "value": np.float32(data.draw(st.sampled_from([0, 1.5])))}
    nodes = [node("Relu", "x", "r"), node("Pad", "r pads value", "y")]
    before = graph(nodes, constants, shape)
    after, report = replaced(before, "pad-to-concat")
    assert set(ops(after)) == {"Relu", "Concat"} and report.check.max_error == 0
    axes = sum(bool(pads[a] or pads[a + rank]) for a in range(rank))
    assert ops(after).count("Concat") == axes


@pytest.mark.parametrize(
    ("pads", "mode"),
    [([0, 0, 1, 1, 0, 0, 1, 1], "constant"), ([0, 0, 0, 0, 0, 0, 0, 1], "edge"),
     ([0, 0, 0, 1, 0, 0, 0, 0], "constant")],
)  # fmt: skip
def test_a_pad_that_the_htp_writes_is_left(pads, mode):
    nodes = [node("Relu", "x", "r"), node("Pad", "r pads", "y", mode=mode)]
    with pytest.raises(SurgeryError, match="matched nothing"):
        surgery.replace_(graph(nodes, {"pads": np.array(pads)}, [1, 2, 4, 4]), "pad-to-concat")


def test_the_table_and_the_rule_mean_the_same_pads(tmp_path):
    pads = {"pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]), "value": np.float32(1)}
    nodes = [node("Relu", "x", "r"), node("Pad", "r pads value", "y")]
    model = graph(nodes, pads, [1, 2, 4, 4])
    onnx.save(model, tmp_path / "before.onnx")
    (blocks,) = targets.check(tmp_path / "before.onnx", "qnn").blockers
    assert (blocks.op_type, blocks.silent) == ("Pad", True)
    assert "pad-to-concat" in blocks.evidence
    onnx.save(replaced(model, "pad-to-concat")[0], tmp_path / "after.onnx")
    assert not targets.check(tmp_path / "after.onnx", "qnn").blockers


@pytest.mark.parametrize(("mode", "blocks"), [("wrap", 1), ("reflect", 0), ("edge", 0)])
def test_the_table_knows_the_modes_of_a_pad(mode, blocks, tmp_path):
    nodes = [node("Relu", "x", "r"), node("Pad", "r pads", "y", mode=mode)]
    model = graph(nodes, {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, [1, 2, 4, 4], 19)
    onnx.save(model, tmp_path / "net.onnx")
    assert len(targets.check(tmp_path / "net.onnx", "qnn").blockers) == blocks


SIDES = st.integers(1, 4)


@QUICK
@given(
    kernel=st.tuples(SIDES, SIDES), before=st.tuples(*[st.integers(0, 4)] * 2),
    stride=st.integers(1, 2), dilation=st.integers(1, 2), apart=st.booleans(),
)  # fmt: skip
def test_a_kernel_gets_longer_than_the_padding_before_it(
    kernel, before, stride, dilation, apart, tmp_path_factory
):
    fills = any(pad >= side > 1 for pad, side in zip(before, kernel, strict=True))
    wrong = fills and stride == dilation == 1
    constants = {"w": RNG.normal(size=(2, 3, *kernel)).astype(np.float32)}
    settings = {"strides": [stride] * 2, "dilations": [dilation] * 2}
    if apart:  # half of them in a Pad, which ONNX Runtime makes a part of the Conv
        constants["pads"] = np.array([0, 0, before[0], 0, 0, 0, 0, 0])
        nodes = [node("Relu", "x", "r"), node("Pad", "r pads", "p"),
                 node("Conv", "p w", "y", pads=[0, before[1], 1, 1], **settings)]  # fmt: skip
    else:
        nodes = [node("Relu", "x", "r"),
                 node("Conv", "r w", "y", pads=[*before, 1, 1], **settings)]  # fmt: skip
    model = graph(nodes, constants, [1, 3, 8, 9])
    path = tmp_path_factory.mktemp("pads") / "net.onnx"
    onnx.save(model, path)
    assert bool(targets.check(path, "qnn").blockers) == wrong
    if not wrong:
        with pytest.raises(SurgeryError, match="matched nothing"):
            surgery.replace_(model, "longer-kernel")
        return
    after, report = replaced(model, "longer-kernel")
    assert ops(after) == ops(model) and report.check.relative_error < 1e-6
    onnx.save(after, path)
    assert not targets.check(path, "qnn").blockers


@pytest.mark.htp
@pytest.mark.parametrize("pads", [[3, 1, 1, 1], [1, 3, 1, 1]])
def test_a_convolution_behind_a_kernel_of_padding_is_repaired(pads, lab, tmp_path):
    draft = Draft(opset=18)
    over = {"ps": np.array([1, pads[0] - 1, 0, 0]), "axes": np.array([3, -2])}
    x = draft.node("Pad", [draft.stem(), *(draft.weight(*a) for a in over.items())], "pad")
    draft.head(draft.node("Relu", [draft.convolution(x, "c2", pads=[1, pads[1] - 1, 1, 1])], "r"))
    draft.nodes[2].input.insert(2, "")
    onnx.save(draft.finish(), tmp_path / "net.onnx")
    stated = ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"]
    command = ("convert", tmp_path / "net.onnx", "--target", "qnn", *stated)
    code, _, err = lab(*command, "-o", tmp_path / "net.dlc")
    assert code == 1 and "--repair" in err and "longer-kernel" in err
    code, out, err = lab(*command, "--repair", "-o", tmp_path / "net.dlc")
    assert code == 0, out + err


# --- softmax-of-three-dimensions


@QUICK
@given(data=st.data())
def test_any_softmax_of_five_dimensions_is_one_of_three(data):
    shape = data.draw(st.lists(st.integers(1, 3), min_size=5, max_size=6))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    nodes = [node("Reshape", "x five", "a"), node("Softmax", "a", "y", axis=axis)]
    model = graph(nodes, {"five": np.array(shape)}, [1, int(np.prod(shape)), 1, 1])
    after, report = replaced(model, "softmax-of-three-dimensions")
    assert ops(after) == ["Reshape", "Softmax", "Reshape"]
    assert report.check.relative_error < 1e-6


def test_a_softmax_of_few_dimensions_is_left():
    model = graph([node("Softmax", "x", "y", axis=1)], {}, [1, 3, 4, 4])
    with pytest.raises(SurgeryError, match="matched nothing"):
        surgery.replace_(model, "softmax-of-three-dimensions")


# --- celu


@pytest.mark.parametrize("alpha", [1.0, 0.3, 2.5])
def test_celu_is_a_scaled_elu(alpha):
    after, _ = replaced(graph([node("Celu", "x", "y", alpha=alpha)], {}, [2, 3, 9]), "celu")
    assert ops(after) == (["Elu"] if alpha == 1 else ["Div", "Elu", "Mul"])


# --- opset-11


def _at_opset(opset, nodes, constants, shape=(1, 5, 6, 6)):
    return graph(nodes, {n: np.asarray(v) for n, v in constants.items()}, list(shape), opset)


LOWERED = {
    "reduce": ([node("ReduceMean", "x axes", "y", keepdims=0)], {"axes": [2, 3]}, 18),
    "reduce all": ([node("ReduceMax", "x", "y")], {}, 18),
    "split": ([helper.make_node("Split", ["x"], ["y", "z", "w"], axis=1, num_outputs=3)], {}, 18),
    "pad": ([node("Pad", "x pads  axes", "y")], {"pads": [1, 0, 0, 2], "axes": [3, 1]}, 18),
    "pool": ([node("AveragePool", "x", "y", kernel_shape=[2, 2], dilations=[1, 1])], {}, 19),
    "resize by sizes": ([node("Resize", "x   sizes", "y", mode="linear", antialias=0)],
                        {"sizes": [1, 5, 9, 5]}, 19),
    "resize by scales": ([node("Resize", "x  scales", "y", keep_aspect_ratio_policy="stretch")],
                         {"scales": np.float32([1, 1, 2, 2])}, 17),
    "resize of some axes": ([node("Resize", "x  scales", "y", axes=[-1, 2], mode="linear")],
                            {"scales": np.float32([2, 1.5])}, 18),
    "resize of some axes by sizes": ([node("Resize", "x   sizes", "y", axes=[3])],
                                     {"sizes": [13]}, 19),
    "antialias that enlarges": ([node("Resize", "x  scales", "y", mode="cubic", antialias=1)],
                                {"scales": np.float32([1, 1, 1.5, 2])}, 18),
    "antialias by sizes": ([node("Resize", "x   sizes", "y", mode="linear", antialias=1)],
                           {"sizes": [1, 5, 6, 9]}, 18),
    "reshape": ([node("Reshape", "x shape", "y")], {"shape": [5, 36]}, 21),
    "reshape that may be empty": ([node("Reshape", "x shape", "y", allowzero=1)],
                                  {"shape": [5, -1]}, 18),
    "chain": ([node("Relu", "x", "a"), node("GlobalAveragePool", "a", "b"),
               node("Flatten", "b", "y")], {}, NEWEST),
}  # fmt: skip


@pytest.mark.parametrize("name", LOWERED)
def test_what_newer_opsets_write_otherwise_is_lowered(name):
    nodes, constants, opset = LOWERED[name]
    for n in nodes:  # "a  b" leaves an input out
        while len(n.input) and n.input[-1] == "":
            n.input.pop()
    if name == "resize by scales":
        del nodes[0].attribute[:]
    model = _at_opset(opset, nodes, constants)
    after, report = replaced(model, "opset-11")
    assert after.opset_import[0].version == 11
    assert report.check.relative_error < 1e-6
    onnx.checker.check_model(after, full_check=True)
    for n in after.graph.node:
        assert n.op_type != "Resize" or all(n.input)  # opset 11 takes no absent input


def branching(*body):
    """A branch that the input decides; the other one passes it on."""
    ends = [helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [1, 5, 6, 6])]
    inner = helper.make_graph(list(body), "inner", [], ends)
    other = helper.make_graph([node("Relu", "x", "b")], "other", [], ends)
    nodes = [node("ReduceMax", "x", "most", keepdims=0), node("Greater", "most zero", "c")]
    return [*nodes, node("If", "c", "y", then_branch=inner, else_branch=other)]


def test_branches_are_lowered_with_what_they_hold():
    body = [node("ReduceMean", "x axes", "m", keepdims=1), node("Add", "x m", "b")]
    constants = {"zero": np.float32(0), "axes": [2, 3]}
    after, report = replaced(_at_opset(18, branching(*body), constants), "opset-11")
    assert after.opset_import[0].version == 11 and report.check.relative_error < 1e-6
    model = _at_opset(20, branching(node("Gelu", "x", "b")), {"zero": np.float32(0)})
    with pytest.raises(SurgeryError, match="Gelu: opset 11 has no such operator"):
        surgery.replace_(model, "opset-11")


def test_a_loop_is_lowered_with_its_body():
    value, kind = helper.make_tensor_value_info, onnx.TensorProto
    ends = [
        value("k", kind.INT64, []),
        value("go", kind.BOOL, []),
        value("a", kind.FLOAT, [1, 5, 6, 6]),
    ]
    nodes = [node("Identity", "go", "on"), node("ReduceMax", "a axes", "m", keepdims=1),
             node("Add", "a m", "n")]  # fmt: skip
    given = [value("on", kind.BOOL, []), value("n", kind.FLOAT, [1, 5, 6, 6])]
    body = helper.make_graph(nodes, "body", ends, given)
    constants = {"trips": np.int64(3), "yes": np.array(True), "axes": [1], "all": [1, 5, 6, 6]}
    nodes = [node("Loop", "trips yes x", "l", body=body), node("Reshape", "l all", "y")]
    model = _at_opset(18, nodes, constants)
    after, report = replaced(model, "opset-11")
    assert after.opset_import[0].version == 11 and report.check.relative_error < 1e-6


@pytest.mark.parametrize(
    ("nodes", "constants", "opset", "why"),
    [
        ([node("Gelu", "x", "y")], {}, 20, "Gelu: opset 11 has no such operator"),
        ([node("Resize", "x  scales", "y", mode="linear", antialias=1)],
         {"scales": np.float32([1, 1, 0.5, 0.5])}, 18, "Resize: antialias = 1"),
        ([node("Relu", "x", "r"), node("Shape", "r", "n"), node("Slice", "n two four", "s"),
          node("Resize", "r   s", "y", axes=[2, 3])], {"two": [2], "four": [4]}, 18,
         "Resize: axes, and its factors are computed"),
        ([node("Resize", "x   sizes", "y", mode="linear", antialias=1)],
         {"sizes": [1, 5, 6, 5]}, 18, "Resize: antialias = 1"),
        ([node("Resize", "x  scales", "y", coordinate_transformation_mode="half_pixel_symmetric")],
         {"scales": np.float32([1, 1, 2, 2])}, 19, "half_pixel_symmetric is of opset 19"),
        ([node("AveragePool", "x", "y", kernel_shape=[2, 2], dilations=[2, 2])], {}, 19,
         "AveragePool: dilations"),
        ([node("Pad", "x pads", "y", mode="wrap")], {"pads": [0, 0, 1, 1, 0, 0, 1, 1]}, 19,
         "Pad: mode = wrap"),
        ([node("ReduceMean", "x", "y", noop_with_empty_axes=1)], {}, 18, "noop_with_empty_axes"),
    ],
)  # fmt: skip
def test_what_stands_in_the_way_is_named(nodes, constants, opset, why):
    model = _at_opset(opset, nodes, constants)
    with pytest.raises(SurgeryError, match=why):
        surgery.replace_(model, "opset-11")
    assert model.opset_import[0].version == opset
