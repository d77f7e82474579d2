"""Editing ONNX graphs: what is changed computes what it did, and what is asked is so."""

import math
import re

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from labutils import metrics, paths
from labutils.errors import ModelFileError
from labutils.onnxfile import edit
from labutils.onnxfile.session import Session

IMAGE = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)


def value(name, shape=(2, 3), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name, *values):
    tensor = numpy_helper.from_array(np.array(values, np.float32), f"{name}.value")
    return helper.make_node("Constant", [], [name], name=f"/{name}", value=tensor)


@pytest.fixture
def model():
    """Two uses of one Constant, a third in the branches of an If, a dead node and a dead weight."""
    branches = {
        f"{word}_branch": helper.make_graph(
            [helper.make_node(op, ["sum", "c"], [f"{word}.out"], f"/{word}")],
            word, [], [value(f"{word}.out")],
        )
        for word, op in (("then", "Add"), ("else", "Sub"))
    }  # fmt: skip
    nodes = [
        constant("c", 1.5, -2.0, 0.25),
        helper.make_node("Mul", ["x", "c"], ["scaled"], "/mul"),
        helper.make_node("Add", ["scaled", "c"], ["sum"], "/add"),
        helper.make_node("Relu", ["scaled"], ["dead"], "/dead"),
        helper.make_node("ReduceSum", ["sum"], ["total"], "/total", keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["yes"], "/greater"),
        helper.make_node("If", ["yes"], ["chosen"], "/if", **branches),
        helper.make_node("Add", ["chosen", "w"], ["y"], "/end"),
    ]
    weights = [
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.float32([3, 4, 5]), "w"),
        numpy_helper.from_array(np.float32([9]), "unused"),
    ]
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(model, feeds=None):
    return Session(model, optimize="none", threads=1).run(feeds or {"x": IMAGE})[0]


def test_who_makes_and_who_reads_a_tensor(model):
    made, read = edit.producers(model.graph.node), edit.readers(model.graph.node)
    assert made["sum"].name == "/add" and "x" not in made and "w" not in made
    assert [node.name for node in read["c"]] == ["/mul", "/add"]
    assert [node.name for node in read["scaled"]] == ["/add", "/dead"]
    twice = [
        helper.make_node("Mul", ["a", "a"], ["b"], "twice"),
        helper.make_node("Clip", ["a", ""], ["c"]),
    ]
    assert [node.name for node in edit.readers(twice)["a"]] == ["twice", "twice", ""]
    assert "" not in edit.readers(twice)


def test_nodes_within_are_those_of_the_branches_too(model):
    names = [node.name for node in edit.nodes_within(model.graph)]
    at = names.index("/if")
    assert set(names[at + 1 : at + 3]) == {"/then", "/else"} and names[at + 3] == "/end"


@given(st.sampled_from("ab"), st.sets(st.sampled_from(["a", "b", "a_1", "a_2", "b_1", "a_1_1"])))
def test_a_free_name_is_free_and_then_taken(name, taken):
    before = set(taken)
    found = edit.free_name(name, taken)
    assert found not in before and taken == before | {found}
    assert found == name or name in before


def test_renamed_tensors_have_the_new_name_everywhere(model):
    expected = run(model)
    edit.rename_tensors_(model.graph, {"x": "image", "sum": "s", "c": "k", "w": "bias", "y": "z"})
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, {"image": IMAGE}), expected)
    assert not {"x", "sum", "c", "w", "y"} & {
        name for node in edit.nodes_within(model.graph) for name in (*node.input, *node.output)
    }


def test_nodes_read_another_tensor_and_no_other_node_does(model):
    edit.redirect_([n for n in model.graph.node if n.name == "/add"], {"scaled": "x"})
    read = edit.readers(model.graph.node)
    assert [node.name for node in read["x"]] == ["/mul", "/add"]
    assert [node.name for node in read["scaled"]] == ["/dead"]


def test_what_no_output_needs_is_removed_and_nothing_else(model):
    expected = run(model)
    edit.remove_unused_(model)
    assert "/dead" not in {node.name for node in model.graph.node}
    assert [tensor.name for tensor in model.graph.initializer] == ["zero", "w"]
    assert len(model.graph.node) == 7
    np.testing.assert_array_equal(run(model), expected)


def test_a_graph_that_is_held_stays_the_models(model):
    graph = model.graph
    edit.lift_constants_(model)
    edit.remove_unused_(model)
    graph.name = "held"
    assert model.graph.name == "held" and len(graph.node) == 6


@pytest.mark.parametrize("per_use", [False, True])
def test_constants_become_weights_of_the_same_values(model, per_use):
    expected = run(model)
    edit.lift_constants_(model, per_use)
    names = {tensor.name for tensor in model.graph.initializer}
    assert not any(node.op_type == "Constant" for node in model.graph.node)
    assert ({"c./mul.1", "c./add.1"} <= names) == per_use
    assert "c" in names, "the branches read it"
    np.testing.assert_array_equal(run(model), expected)


def test_a_constant_that_every_reader_has_a_copy_of_is_gone(model):
    kept = [node for node in model.graph.node if node.name in ("/c", "/mul", "/add")]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.output[0].name = "sum"
    edit.lift_constants_(model, per_use=True)
    assert {t.name for t in model.graph.initializer} == {
        "zero",
        "w",
        "unused",
        "c./mul.1",
        "c./add.1",
    }
    edit.lift_constants_(model, per_use=True)  # nothing is left to lift
    assert len(model.graph.initializer) == 5


def test_weights_leave_the_list_of_inputs(model):
    model.ir_version = 3
    model.graph.input.extend([value("w", (3,)), value("zero", ()), value("unused", (1,))])
    expected = run(model)
    assert edit.unlist_weights_(model) == 3 and edit.unlist_weights_(model) == 0
    assert [entry.name for entry in model.graph.input] == ["x"] and model.ir_version == 4
    np.testing.assert_array_equal(run(model), expected)


def test_a_part_computes_what_the_whole_does(model):
    before = model.SerializeToString()
    part = edit.cut(model, ["chosen", "scaled"])
    chosen, scaled = Session(part, optimize="none").run({"x": IMAGE})
    np.testing.assert_array_equal(scaled, IMAGE * np.float32([1.5, -2.0, 0.25]))
    np.testing.assert_array_equal(chosen + np.float32([3, 4, 5]), run(model))
    assert [tensor.name for tensor in part.graph.initializer] == ["zero"]
    assert model.SerializeToString() == before, "the model is as it was"
    again = edit.cut(model, ["chosen", "scaled"])
    assert again.SerializeToString(deterministic=True) == part.SerializeToString(deterministic=True)


def test_a_part_begins_where_it_is_told_to(model):
    shaped = onnx.shape_inference.infer_shapes(model)
    part = edit.cut(shaped, ["sum"], ["scaled"])
    assert [node.name for node in part.graph.node] == ["/c", "/add"]
    found = run(part, {"scaled": IMAGE})
    np.testing.assert_array_equal(found, IMAGE + np.float32([1.5, -2.0, 0.25]))


@pytest.mark.parametrize(("outputs", "inputs"), [(["nothing"], None), (["y"], ["w"]), (["y"], [])])
def test_a_part_that_cannot_be_is_refused_in_words(model, outputs, inputs):
    with pytest.raises(ModelFileError, match="onnx_ir cannot cut the graph 'g'"):
        edit.cut(model, outputs, inputs)


def test_a_sparse_constant_is_refused_in_words(model):
    indices = numpy_helper.from_array(np.int64([0]), "i")
    sparse = helper.make_sparse_tensor(numpy_helper.from_array(np.float32([1]), "v"), indices, [4])
    lone = helper.make_node("Constant", [], ["s"], name="/sparse", sparse_value=sparse)
    model.graph.node.append(lone)
    with pytest.raises(ModelFileError, match=r"does not read the graph 'g'.*Sparse"):
        edit.lift_constants_(model)


def test_a_damaged_graph_is_refused_in_words(model):
    model.graph.initializer[1].data_type = 999
    with pytest.raises(ModelFileError, match="does not read the graph 'g'"):
        edit.remove_unused_(model)


# --- figures from sums ----------------------------------------------------------------------------

FLOATS = arrays.arrays(
    np.float64, 6, elements=st.floats(-100, 100).filter(lambda x: x == 0 or abs(x) > 1e-3)
)


@settings(deadline=None)
@given(FLOATS, FLOATS)
def test_figures_of_sums_are_those_of_the_whole(a, b):
    sums, noise = (a @ a, b @ b, a @ b), ((a - b) ** 2).sum()
    assert metrics.sqnr_of_sums(sums[0], noise) == pytest.approx(metrics.sqnr_db(a, b), abs=1e-6)
    found = metrics.cosine_of_sums(*sums, equal=noise == 0)
    assert found == pytest.approx(metrics.cosine(a, b), abs=1e-9)
    assert (
        metrics.sqnr_of_sums(0.0, 1.0) == -math.inf and metrics.sqnr_of_sums(0.0, 0.0) == math.inf
    )


# --- no copies ------------------------------------------------------------------------------------

ONCE = {
    "who makes a tensor": (
        r"\{\w+: \w+ for \w+ in [\w.]+ for \w+ in \w+\.output",
        {"onnxfile/edit.py"},
    ),
    "data of other files": (r"load_external_data_for_model", {"onnxfile/graph.py"}),
    "parsing a file": (
        r"ModelProto\.FromString\(|\bonnx\.load\(",
        {  # the lab is not in the environments of programs
            "onnxfile/graph.py",
            "litert/onnx_tf_program.py",
            "litert/onnx2tf_program.py",
        },
    ),
    "checking a file": (r"check_model\(.*\bstr\(", {"onnxfile/graph.py"}),
}


@pytest.mark.parametrize("what", ONCE)
def test_it_is_written_once(what):
    pattern, home = ONCE[what]
    package = paths.ROOT / "labutils"
    found = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if "exercises" not in file.parts  # what learners write
        and file.name != "vendor_program.py"  # runs where the lab is not
        and re.search(pattern, file.read_text("utf-8"))
    }
    assert found == home
