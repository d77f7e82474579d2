"""Networks of one function in spellings that ONNX allows, beyond those of `cases`.

Each entry of `SPELLINGS` builds one; those of `STAY` keep a branch that the network decides on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from cases.draft import CLASSES, Draft
from onnx import TensorProto, helper, numpy_helper

DOMAIN = "my"
FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def _value(name, shape=None, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def _branch(name, *nodes, weights=()):
    made = [_value(nodes[-1].output[0])]
    return helper.make_graph(list(nodes), name, [], made, list(weights))


def _passed_on(source, name="else"):
    return _branch(name, helper.make_node("Identity", [source], [f"{name}.y"], f"{name}/same"))


def _function(draft, nodes, opset=17, attributes=()):
    imports = [helper.make_opsetid("", opset)]
    made = helper.make_function(DOMAIN, "F", ["x"], ["y"], nodes, imports, list(attributes))
    draft.functions.append(made)


def function_of_another_opset():
    draft = Draft()
    _function(draft, [helper.make_node("HardSwish", ["x"], ["y"], "act")], opset=15)
    draft.head(draft.node("F", [draft.stem()], "f", domain=DOMAIN))
    return draft.finish(domains=[DOMAIN])


def function_with_an_attribute():
    draft = Draft()
    act = helper.make_node("LeakyRelu", ["x"], ["a"], "act")
    slope = act.attribute.add()
    slope.name, slope.ref_attr_name, slope.type = "alpha", "slope", onnx.AttributeProto.FLOAT
    two = helper.make_node("Constant", [], ["two"], "two", value_float=2.0)
    nodes = [act, two, helper.make_node("Mul", ["a", "two"], ["y"], "double")]
    _function(draft, nodes, attributes=["slope"])
    draft.head(draft.node("F", [draft.stem()], "f", domain=DOMAIN, slope=0.3))
    return draft.finish(domains=[DOMAIN])


def function_in_a_branch():
    draft = Draft()
    stem, holds = draft.stem(), draft.weight("holds", np.array(True))
    _function(draft, [helper.make_node("Elu", ["x"], ["y"], "act")])
    then = _branch("then", helper.make_node("F", [stem], ["then.y"], "f", domain=DOMAIN))
    branches = {"then_branch": then, "else_branch": _passed_on(stem)}
    draft.head(draft.node("If", [holds], "chosen", **branches))
    return draft.finish(domains=[DOMAIN])


def branch_in_a_function():
    draft = Draft()
    holds = numpy_helper.from_array(np.array(False), "holds")
    then = _branch("then", helper.make_node("Elu", ["x"], ["then.y"], "elu"))
    branches = {"then_branch": then, "else_branch": _passed_on("x")}
    constant = helper.make_node("Constant", [], ["holds"], "holds", value=holds)
    _function(draft, [constant, helper.make_node("If", ["holds"], ["y"], "if", **branches)])
    x = draft.node("F", [draft.stem()], "f", domain=DOMAIN)
    draft.head(draft.node("F", [x], "g", domain=DOMAIN))
    return draft.finish(domains=[DOMAIN])


def branches_with_the_same_names():
    draft = Draft()
    x, holds = draft.stem(), draft.weight("holds", np.array(True))

    def branch(name, op, source):
        factor = helper.make_node("Constant", [], ["k"], "k", value_float=1.5)
        product = helper.make_node("Mul", [source, "k"], ["m"], "m")
        return _branch(name, factor, product, helper.make_node(op, ["m"], ["o"], "o"))

    for number, (first, second) in enumerate((("Elu", "Tanh"), ("Sigmoid", "Tanh"))):
        then, otherwise = branch(f"a{number}", first, x), branch(f"b{number}", second, x)
        branches = {"then_branch": then, "else_branch": otherwise}
        x = draft.node("If", [holds], f"chosen{number}", **branches)
    draft.head(x)
    return draft.finish()


def branch_in_a_branch():
    draft = Draft()
    stem, holds = draft.stem(), draft.weight("holds", np.array(False))
    inner = helper.make_node(
        "If", ["holds"], ["then.y"], "inner",
        then_branch=_branch("a", helper.make_node("Elu", [stem], ["a.y"], "a")),
        else_branch=_branch("b", helper.make_node("Tanh", ["abs"], ["b.y"], "b")),
    )  # fmt: skip
    then = _branch("then", helper.make_node("Abs", [stem], ["abs"], "abs"), inner)
    opposite = draft.node("Not", [holds], "opposite")
    branches = {"then_branch": then, "else_branch": _passed_on(stem)}
    draft.head(draft.node("If", [opposite], "chosen", **branches))
    return draft.finish()


def branch_at_the_end(holds=True):
    draft = Draft()
    raw = draft.head(draft.stem(), output="raw")
    condition = draft.weight("holds", np.array(holds))
    more = numpy_helper.from_array(np.arange(CLASSES, dtype=np.float32), "more")
    then = _branch("then", helper.make_node("Add", [raw, "more"], ["then.y"], "a"), weights=[more])
    branches = {"then_branch": then, "else_branch": _passed_on(raw)}
    draft.node("If", [condition], "scores", **branches)
    return draft.finish()


def sparse_by_coordinates_and_in_a_constant():
    draft = Draft()
    whole = draft.draw(8, 8, 3, 3)
    whole[np.abs(whole) < 0.3] = 0
    places = np.argwhere(whole).astype(np.int64)
    weight = helper.make_sparse_tensor(
        numpy_helper.from_array(whole[tuple(places.T)], "w1"),
        numpy_helper.from_array(places, "w1_places"), whole.shape,
    )  # fmt: skip
    x = draft.node("Conv", [draft.stem(), "w1"], "c1", pads=[1] * 4)
    bias = helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32([1, 2, 3]), "values"),
        numpy_helper.from_array(np.int64([1, 3, 6]), "places"), [8],
    )  # fmt: skip
    draft.constant("b2", sparse_value=bias)
    draft.head(draft.node("Conv", [x, draft.weight("w2", draft.draw(8, 8, 1, 1)), "b2"], "c2"))
    return draft.finish(sparse=[weight])


def _half(kind, at_the_ends):
    """Return a network whose weights and tensors are of half precision, perhaps its ends, too."""
    draft = Draft()
    x = "image" if at_the_ends else draft.node("Cast", ["image"], "image_half", to=kind)
    x = draft.node("Relu", [draft.convolution(x, "c0", 3, strides=[2, 2])], "relu")
    ends = draft.weight("low", np.float32(0)), draft.weight("high", np.float32(6))
    x = draft.node("Clip", [x, *ends], "clip")
    if at_the_ends:
        draft.head(x)
    else:
        draft.node("Cast", [draft.head(x, output="raw")], "scores", to=FLOAT)
    draft.weights = {name: np.asarray(array, np.float16) for name, array in draft.weights.items()}
    model = draft.finish(kind=FLOAT) if not at_the_ends and kind == FLOAT16 else _unchecked(draft)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(helper.make_tensor(tensor.name, kind, array.shape, array.ravel().tolist()))
    if at_the_ends:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = kind
    return model


def _unchecked(draft):
    """Return a draft's model before its types fit."""
    weights = [numpy_helper.from_array(array, name) for name, array in draft.weights.items()]
    ends = [_value("image", draft.shape)], [_value("scores", (1, CLASSES))]
    graph = helper.make_graph(draft.nodes, "half", *ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _gemm(c_shape=None, c_computed=False, b_computed=False, classes=CLASSES, **attributes):
    draft = Draft()
    flat = draft.node("Flatten", [draft.node("GlobalAveragePool", [draft.stem()], "p")], "flat")
    if b_computed:
        ones = draft.weight("ones", np.ones((8, 1), np.float32))
        b, width = draft.node("MatMul", [ones, flat], "b"), 8
    else:
        b, width = draft.weight("b", draft.draw(8, classes)), classes
    inputs = [flat, b]
    if c_computed:
        inputs.append(draft.node("MatMul", [flat, draft.weight("w2", draft.draw(8, width))], "c"))
    elif c_shape is not None:
        inputs.append(draft.weight("c", draft.draw(*c_shape, scale=1.0)))
    if b_computed:
        y = draft.node("Gemm", inputs, "y", **attributes)
        draft.node("MatMul", [y, draft.weight("w3", draft.draw(8, CLASSES))], "scores")
    else:
        draft.node("Gemm", inputs, "scores", **attributes)
    return draft.finish()


def gemms_that_share_weights():
    draft = Draft()
    flat = draft.node("Flatten", [draft.node("GlobalAveragePool", [draft.stem()], "p")], "flat")
    shared = draft.weight("w", draft.draw(8, 8)), draft.weight("b", draft.draw(8))
    x = draft.node("Relu", [draft.node("Gemm", [flat, *shared], "g1", beta=0.5)], "r1")
    x = draft.node("Relu", [draft.node("Gemm", [x, *shared], "g2", beta=2.0, alpha=3.0)], "r2")
    draft.node("MatMul", [x, draft.weight("w2", draft.draw(8, CLASSES))], "scores")
    return draft.finish()


def outputs_that_repeat_each_other():
    draft = Draft()
    raw = draft.head(draft.stem(), output="raw")
    for output, source in (("scores", raw), ("again", raw), ("third", "scores")):
        draft.node("Identity", [source], output)
    return draft.finish([(name, (1, CLASSES)) for name in ("scores", "again", "third")])


def normalized_weight():
    draft = Draft()
    v, g = draft.weight("v", draft.draw(128, 8, 3, 3)), draft.draw(128, 1, 1, 1)
    length = draft.node("ReduceL2", [v], "length", axes=[1, 2, 3], keepdims=1)
    unit = draft.node("Div", [v, length], "unit")
    w = draft.node("Mul", [unit, draft.weight("g", np.abs(g))], "w")
    draft.head(draft.node("Conv", [draft.stem(), w], "c", pads=[1] * 4), channels=128)
    return draft.finish()


def one_weight_in_many_places():
    draft = Draft()
    w, b = draft.weight("w", draft.draw(8, 8, 1, 1)), draft.weight("b", draft.draw(8))
    x = draft.node("Conv", [draft.stem(), w, b], "c")
    x = draft.node("ConvTranspose", [x, w, b], "d")
    column = draft.node("Reshape", [b, draft.weight("shape", np.int64([1, 8, 1, 1]))], "column")
    draft.head(draft.node("Add", [x, column], "sum"))
    return draft.finish()


def strings():
    draft = Draft()
    draft.constant("label", value_string="cat")
    draft.constant("labels", value_strings=["cat", "dog"])
    draft.head(draft.stem())
    return draft.finish()


def names_of_the_ends():
    """Return a network where the quantizer would name what it makes of the ends so, too."""
    draft = Draft()
    w = draft.weight("image_quantized", draft.draw(8, 3, 3, 3))
    x = draft.node("Conv", ["image", w], "scores_scale", pads=[1] * 4, strides=[2, 2])
    draft.head(draft.node("Relu", [x], "image_QuantizeLinear_Output"))
    return draft.finish()


def softmax_of_two_meanings():
    """Return a network of opset 11, whose Softmax sums over all axes from 1 on."""
    draft = Draft(opset=11)
    draft.head(draft.node("Softmax", [draft.stem()], "softmax", axis=1))
    return draft.finish()


def decided_while_it_runs():
    draft = Draft()
    stem = draft.stem()
    mean = draft.node("ReduceMean", [stem], "mean", keepdims=0)
    holds = draft.node("Greater", [mean, draft.weight("least", np.float32(0.1))], "holds")
    two = helper.make_node("Constant", [], ["two"], "two", value_floats=[2.0])
    then = _branch("then", two, helper.make_node("Mul", [stem, "two"], ["then.y"], "double"))
    branches = {"then_branch": then, "else_branch": _passed_on(stem)}
    draft.head(draft.node("Identity", [draft.node("If", [holds], "chosen", **branches)], "same"))
    return draft.finish()


def repeated_while_it_runs():
    draft = Draft()
    stem = draft.stem()
    nodes = [
        helper.make_node("Identity", ["holds"], ["holds_still"], "same"),
        helper.make_node("Abs", ["x"], ["y"], "abs"),
    ]
    once = _value("i", (), TensorProto.INT64)
    holds = [_value(name, (), TensorProto.BOOL) for name in ("holds", "holds_still")]
    body = helper.make_graph(nodes, "body", [once, holds[0], _value("x")], [holds[1], _value("y")])
    inputs = [draft.weight("times", np.int64(3)), draft.weight("go", np.array(True)), stem]
    draft.head(draft.node("Loop", inputs, "repeated", body=body))
    return draft.finish()


SPELLINGS: dict[str, Callable[[], onnx.ModelProto]] = {
    made.__name__: made
    for made in (
        function_of_another_opset, function_with_an_attribute, function_in_a_branch,
        branch_in_a_function, branches_with_the_same_names, branch_in_a_branch, branch_at_the_end,
        sparse_by_coordinates_and_in_a_constant, gemms_that_share_weights,
        outputs_that_repeat_each_other, normalized_weight, one_weight_in_many_places, strings,
        names_of_the_ends, softmax_of_two_meanings,
    )
}  # fmt: skip
SPELLINGS |= {
    "branch_at_the_end_passed_on": lambda: branch_at_the_end(False),
    "float16_inside": lambda: _half(FLOAT16, False),
    "float16_everywhere": lambda: _half(FLOAT16, True),
    "bfloat16_inside": lambda: _half(BFLOAT16, False),
    "bfloat16_everywhere": lambda: _half(BFLOAT16, True),
    "gemm_of_a_row": lambda: _gemm((1, CLASSES), alpha=0.5, beta=2.0),
    "gemm_of_one_number": lambda: _gemm((1, 1), beta=0.5),
    "gemm_without_c": lambda: _gemm(alpha=2.5),
    "gemm_with_a_computed_c": lambda: _gemm(c_computed=True, alpha=0.7, beta=0.3),
    "gemm_with_a_computed_b": lambda: _gemm((8,), b_computed=True, alpha=0.7, beta=0.5),
}
STAY = {"If": decided_while_it_runs, "Loop": repeated_while_it_runs}
