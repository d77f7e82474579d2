"""Rules for operators that ONNX defines by others: the same function, at every opset."""

import numpy as np
import onnx
import pytest
from cases.draft import Draft
from hypothesis import given, settings
from hypothesis import strategies as st
from test_onnx_rules import graph, node, ops, replaced

from labutils import surgery, targets
from labutils.errors import SurgeryError

PLAIN = {
    "Softsign": ("softsign", {}), "Sinh": ("hyperbolic", {}), "Cosh": ("hyperbolic", {}),
    "Shrink": ("shrink", {"lambd": 0.4, "bias": 0.3}),
    "MeanVarianceNormalization": ("mean-variance", {"axes": [0, 2, 3]}),
}  # fmt: skip
REDUCTIONS = ["ReduceL1", "ReduceSumSquare", "ReduceLogSum"]
STATED = ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"]


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("op", PLAIN)
def test_an_operator_is_written_by_others(op, opset):
    rule, attributes = PLAIN[op]
    after, report = replaced(
        graph([node(op, "x", "y", **attributes)], {}, [1, 3, 5, 6], opset), rule
    )
    assert op not in ops(after) and report.counts == {rule: 1}
    assert report.check.relative_error < 1e-5


@settings(max_examples=20, deadline=None)
@given(
    op=st.sampled_from(REDUCTIONS), keep=st.booleans(), opset=st.sampled_from([11, 13, 18]),
    axes=st.none() | st.sets(st.integers(-4, 3), min_size=1, max_size=2),
)  # fmt: skip
def test_a_reduction_is_written_as_a_sum(op, keep, opset, axes):
    axes = axes and sorted({axis % 4 for axis in axes})
    constants, more = {}, {"keepdims": int(keep)}
    given_axes = "a"
    if axes and opset >= 18:
        constants["axes"], given_axes = np.array(axes), "a axes"
    elif axes:
        more["axes"] = axes
    nodes = [node("Abs", "x", "a"), node(op, given_axes, "y", **more)]
    after, report = replaced(graph(nodes, constants, [2, 3, 4, 5], opset), "reduction-to-sum")
    assert "ReduceSum" in ops(after) and op not in ops(after)
    assert report.check.relative_error < 1e-5


def test_a_reduction_over_computed_axes_stays():
    nodes = [node("Relu", "x", "r"), node("Shape", "r", "s"), node("Slice", "s zero one", "n"),
             node("Sub", "n n", "axes"), node("ReduceL1", "x axes", "l"),
             node("Reshape", "l all", "y")]  # fmt: skip
    constants = {"zero": np.array([0]), "one": np.array([1]), "all": np.array([-1])}
    model = graph(nodes, constants, [2, 3, 4, 5], 18)
    with pytest.raises(SurgeryError, match="its axes are computed"):
        surgery.replace_(model, "reduction-to-sum")


def network(op, attributes, folder):
    draft = Draft()
    x = draft.node(op, [draft.stem("Tanh")], "o", **attributes)
    if op in REDUCTIONS:
        x = draft.node("Add", ["stem_act", x], "sum")
    draft.head(x)
    onnx.save(draft.finish(), folder / "net.onnx")
    return folder / "net.onnx"


@pytest.mark.parametrize("op", [*PLAIN, *REDUCTIONS])
def test_the_table_of_qnn_names_it_and_the_repair_takes_it_away(op, lab, tmp_path):
    attributes = PLAIN[op][1] if op in PLAIN else {"axes": [2, 3]}
    path = network(op, attributes, tmp_path)
    assert [n.op_type for n in targets.check(path, "qnn").blockers] == [op]
    code, out, err = lab("repair", path, "--target", "qnn", "-o", tmp_path / "made.onnx")
    assert code == 0, out + err
    assert not targets.check(tmp_path / "made.onnx", "qnn").blockers


@pytest.mark.htp
@pytest.mark.parametrize("op", ["Softsign", "Shrink", "MeanVarianceNormalization", "ReduceL1"])
def test_it_is_converted(op, lab, tmp_path):
    path = network(op, PLAIN[op][1] if op in PLAIN else {"axes": [2, 3]}, tmp_path)
    code, out, err = lab(
        "convert", path, "--target", "qnn", "--repair", *STATED, "-o", tmp_path / "net.dlc"
    )
    assert code == 0, out + err


@pytest.mark.htp
@pytest.mark.parametrize("bounds", ["low", "high", "both", "one"])
def test_a_clip_of_computed_bounds_is_written_exactly(bounds, lab, tmp_path):
    draft = Draft()
    x = draft.stem("Tanh")
    draft.node("ReduceMax", [x], "most", axes=[0, 1, 2, 3], keepdims=0)
    draft.node("Mul", ["most", draft.weight("half", np.float32(0.5))], "high")
    draft.node("Neg", ["high"], "low")
    draft.weight("zero", np.float32(0))
    ends = {"low": ["low"], "high": ["", "high"], "both": ["low", "high"], "one": ["zero", "high"]}
    draft.head(draft.node("Clip", [x, *ends[bounds]], "clipped"))
    file = tmp_path / "net.onnx"
    onnx.save(draft.finish(), file)
    code, out, err = lab(
        "convert", file, "--target", "qnn", "--repair", *STATED, "-o", tmp_path / "net.dlc"
    )
    assert code == 0, out + err
    assert "clip-of-computed-bounds" in out
    assert "allow-approximate" not in out


def test_crossed_bounds_of_a_clip_give_the_upper_one():
    nodes = [node("ReduceMax", "x", "low", axes=[0, 1, 2, 3], keepdims=0),
             node("Sub", "low one", "high"), node("Clip", "x low high", "y")]  # fmt: skip
    model = graph(nodes, {"one": np.float32(1)}, [1, 3, 5, 6])
    after, report = replaced(model, "clip-of-computed-bounds")
    assert ops(after)[-2:] == ["Max", "Min"]
    assert report.check.max_error == 0


@pytest.mark.htp
@pytest.mark.parametrize(
    "more", [{"dilations": [2, 2]}, {"dilations": [1, 3], "group": 2},
             {"dilations": [2, 2], "strides": [2, 2], "output_padding": [1, 1], "group": 2}]
)  # fmt: skip
def test_a_dilated_transposed_convolution_has_its_zeros_written(more, lab, tmp_path):
    draft = Draft(shape=(1, 3, 16, 16))
    w = draft.weight("w", draft.draw(8, 8 // more.get("group", 1), 3, 3))
    draft.head(draft.node("ConvTranspose", [draft.stem(), w], "wide", pads=[1] * 4, **more))
    file = tmp_path / "net.onnx"
    onnx.save(draft.finish(), file)
    assert [n.op_type for n in targets.check(file, "qnn").blockers] == ["ConvTranspose"]
    code, out, err = lab(
        "convert", file, "--target", "qnn", "--repair", *STATED, "-o", tmp_path / "net.dlc"
    )
    assert code == 0, out + err
    assert "spread-kernel" in out and "equal" in out
