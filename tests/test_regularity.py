"""Names, order, stated shapes, tied weights and fused operators of files as others write them."""

import random

import cases
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cases.draft import Draft
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from labutils.onnxfile import contrib_operators
from labutils.onnxfile.regularity import is_regular, regularize_

LOOSE = [
    "nodes_of_one_name", "unsorted_nodes", "input_left_out", "other_name_of_the_domain",
    "stale_shapes", "negative_batch", "tied_weights", "fused_by_onnxruntime",
    "bias_read_elsewhere", "group_normalization",
]  # fmt: skip


def copied(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def scores(model):
    """Return the first output for seeded noise; names of nodes are of no account."""
    unnamed = copied(model)
    for node in unnamed.graph.node:
        node.name = ""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    session = ort.InferenceSession(
        unnamed.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    image = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    return session.run(None, {session.get_inputs()[0].name: image})[0]


def regular(model):
    """Make a copy regular, and check all that must hold; return it, and what was said."""
    expected = scores(model)
    made = copied(model)
    changes = regularize_(made)
    onnx.checker.check_model(made, full_check=True)
    assert is_regular(made)
    assert regularize_(copied(made)) == []
    np.testing.assert_allclose(scores(made), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    return made, changes


@pytest.mark.parametrize("kind", LOOSE)
@settings(max_examples=3, derandomize=True, database=None, deadline=None)
@given(chosen=st.data())
def test_a_loose_file_becomes_regular_and_computes_the_same(kind, chosen):
    model = cases.KINDS[kind].build(**chosen.draw(cases.KINDS[kind].others))
    assert not is_regular(model)
    made, changes = regular(model)
    assert len(changes) == (2 if kind == "fused_by_onnxruntime" else 1)
    assert [v.name for v in made.graph.output] == [v.name for v in model.graph.output]
    assert [v.name for v in made.graph.input] == [v.name for v in model.graph.input]


def test_a_regular_file_stays_as_it_is():
    draft = Draft()
    draft.head(draft.convolution(draft.stem(), "c"))
    model = draft.finish()
    before = model.SerializeToString()
    assert is_regular(model)
    assert regularize_(model) == []
    assert model.SerializeToString() == before


@settings(max_examples=20, derandomize=True, database=None, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_any_order_of_the_nodes_is_sorted(seed):
    model = cases.KINDS["constant_condition"].build()
    nodes = list(model.graph.node)
    random.Random(seed).shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    regularize_(model)
    onnx.checker.check_model(model, full_check=True)


def test_a_branch_is_sorted_too_and_may_read_what_is_outside():
    model = cases.KINDS["constant_condition"].build()
    attributes = next(node for node in model.graph.node if node.op_type == "If").attribute
    branch = next(a.g for a in attributes if a.name == "then_branch")
    expected = scores(model)
    nodes = list(branch.node)[::-1]  # which ONNX Runtime does not sort: it is inside
    del branch.node[:]
    branch.node.extend(nodes)
    assert len(nodes) > 1
    assert "order" in regularize_(model)[0]
    np.testing.assert_array_equal(scores(model), expected)


def test_a_circle_is_left_to_the_checker():
    model = cases.KINDS["unsorted_nodes"].build()
    first = next(node for node in model.graph.node if "image" in node.input)
    first.input[0] = "pooled"
    assert not any("order" in change for change in regularize_(model))


ACTIVATIONS = {
    "Relu": (), "Tanh": (), "Sigmoid": (), "LeakyRelu": (0.3,), "HardSigmoid": (0.3, 0.4),
    "Clip": (-0.5, 0.75),
}  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("summed", [False, True])
def test_a_fused_convolution_is_written_out(activation, summed):
    draft = Draft()
    x = draft.stem()
    inputs = [x, draft.weight("w", draft.draw(8, 8, 3, 3)), draft.weight("b", draft.draw(8))]
    given = {"activation_params": ACTIVATIONS[activation]} if ACTIVATIONS[activation] else {}
    draft.node(
        "FusedConv", [*inputs, x] if summed else inputs, "y", domain=contrib_operators.DOMAIN,
        activation=activation, pads=[1] * 4, **given,
    )  # fmt: skip
    draft.head("y")
    made, changes = regular(finished(draft))
    assert changes == ["1 FusedConv of ONNX Runtime written out"]
    operators = [node.op_type for node in made.graph.node]
    assert operators[2:].index(activation) == 1 + summed
    assert [entry.domain for entry in made.opset_import] == [""]


def finished(draft):
    """Return the model of a draft that ONNX's own shape inference cannot follow."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, draft.shape)
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, 16))
    weights = [numpy_helper.from_array(a, name) for name, a in draft.weights.items()]
    graph = helper.make_graph(draft.nodes, "fused", [image], [scores], weights)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(contrib_operators.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize("op", ["Gelu", "BiasGelu", "QuickGelu"])
def test_a_fused_activation_is_written_out(op):
    draft = Draft()
    pooled = draft.node("GlobalAveragePool", [draft.stem()], "pooled")
    flat = draft.node("Flatten", [pooled], "flat")
    inputs = [flat, draft.weight("b", draft.draw(8))] if op == "BiasGelu" else [flat]
    draft.node(op, inputs, "gelu", domain=contrib_operators.DOMAIN)
    draft.node("Gemm", ["gelu", draft.weight("fc", draft.draw(8, 16))], "scores")
    made, _ = regular(finished(draft))
    assert all(not node.domain for node in made.graph.node)


def test_an_operator_of_onnxruntime_that_is_not_known_stays():
    draft = Draft()
    x = draft.node("NotThere", [draft.stem()], "y", domain=contrib_operators.DOMAIN)
    draft.head(x)
    model = finished(draft)
    assert contrib_operators.expand_(model) == []
    assert [entry.domain for entry in model.opset_import] == ["", contrib_operators.DOMAIN]
