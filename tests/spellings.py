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
    model = draft.finish(kind=FLOAT) if not at_the_ends and kind == FLOAT16 else unchecked(draft)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(helper.make_tensor(tensor.name, kind, array.shape, array.ravel().tolist()))
    if at_the_ends:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = kind
    return model


def unchecked(draft):
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


def _dropouts(opset, flag=None, mask=False):
    """Return a network with Dropout before its scores: `flag` is training_mode, as array."""
    draft = Draft(opset=opset)
    extra, given = [], {"ratio": 0.3} if opset < 12 else {}
    if flag is not None:
        extra = [draft.weight("ratio", np.float32(0.3)), draft.weight("training", flag)]
    outputs = ["kept", "mask"] if mask else "kept"
    x = draft.node("Dropout", [draft.stem(), *extra], outputs, **given)
    draft.node("Dropout", [draft.head(x, output="raw")], "scores", **given)
    return draft.finish()


def squeeze_decided_by_a_size():
    """Return what torch's legacy exporter makes of ``squeeze(3).squeeze(2)``."""
    draft = Draft()
    x = draft.node("GlobalAveragePool", [draft.stem()], "pooled")
    for axis, start in ((3, 3), (2, -2)):
        size = draft.node("Shape", [x], f"size{axis}")
        if axis == 3:
            one = draft.node("Gather", [size, draft.weight("three", np.int64(start))], "one")
        else:
            ends = [draft.weight(f"end{i}", np.int64([i])) for i in (2, 3)]
            one = draft.node("Slice", [size, *ends], "last")
        is_one = draft.node("Equal", [one, draft.weight("1", np.int64(1))], f"is_one{axis}")
        which = numpy_helper.from_array(np.int64([axis]), f"axis{axis}")
        squeeze = helper.make_node("Squeeze", [x, which.name], [f"then{axis}.y"], f"squeeze{axis}")
        then = _branch(f"then{axis}", squeeze, weights=[which])
        otherwise = _passed_on(x, f"else{axis}")
        branches = {"then_branch": then, "else_branch": otherwise}
        x = draft.node("If", [is_one], f"squeezed{axis}", **branches)
    draft.node("Gemm", [x, draft.weight("fc", draft.draw(8, CLASSES))], "scores")
    return draft.finish()


def view_by_sizes():
    """Return ``x.view(x.size(0), -1)``, and the same by Size and by a Shape of part of the axes."""
    draft = Draft()
    pooled = draft.node("GlobalAveragePool", [draft.stem()], "pooled")
    batch = draft.node("Shape", [pooled], "batch", start=0, end=-3)
    whole = draft.node("Size", [pooled], "whole")
    row = draft.node("Unsqueeze", [whole, draft.weight("0", np.int64([0]))], "row")
    size = draft.node("Concat", [batch, row], "size", axis=0)
    flat = draft.node("Reshape", [pooled, size], "flat")
    draft.node("Gemm", [flat, draft.weight("fc", draft.draw(8, CLASSES))], "scores")
    return draft.finish()


def _pad(pads, axes, *value, opset=18, **attributes):
    draft = Draft(opset=opset)
    inputs = [draft.stem(), draft.weight("pads", np.int64(pads))]
    inputs += [draft.weight("value", np.float32(value[0])) if value else ""]
    x = draft.node("Pad", [*inputs, draft.weight("axes", np.int64(axes))], "padded", **attributes)
    draft.head(draft.convolution(x, "c"))
    return draft.finish()


def _normalized_while_training(opset):
    """Return a network whose normalizations use the image's own statistics."""
    draft, x = Draft(opset=opset), "stem_act"
    draft.stem()
    for name in ("n1", "n2"):
        given = [draft.weight(f"{name}.{i}", np.abs(draft.draw(8, scale=1.0)) + 1) for i in "gbmv"]
        made = [f"{name}.{i}" for i in ("y", "m2", "v2", *(("m3", "v3") if opset < 14 else ()))]
        flags = {"training_mode": 1} if opset >= 14 else {}
        normal = draft.node("BatchNormalization", [x, *given], made, epsilon=1e-3, **flags)
        x = draft.convolution(normal, f"{name}.c")
    draft.head(draft.node("Relu", [x], "relu"))
    return draft.finish()


def output_without_a_shape():
    draft = Draft()
    draft.head(draft.stem())
    model = draft.finish()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def graph_without_a_name():
    draft = Draft()
    draft.head(draft.stem())
    model = draft.finish()
    model.graph.name = ""
    return model


def idle_outputs():
    """Return a network that also gives a weight, a Constant, what follows from both, the image."""
    draft = Draft()
    draft.head(draft.stem())
    draft.node("Identity", [draft.weight("anchors", draft.draw(4, 4))], "again")
    draft.tensor_node("strides", np.float32([8, 16]))
    draft.node("ReduceSum", ["anchors"], "total", keepdims=0)
    draft.node("Shape", ["stem_act"], "sizes")
    draft.node("Dropout", ["image"], "same")
    shapes = {"again": (4, 4), "anchors": (4, 4), "strides": (2,), "total": (),
              "same": draft.shape, "image": draft.shape}  # fmt: skip
    model = draft.finish([("scores", (1, CLASSES)), *shapes.items()])
    model.graph.output.append(_value("sizes", (4,), TensorProto.INT64))
    return model


def casts_that_saturate():
    """Return a network of opset 19, whose Casts have an attribute before `to`."""
    draft = Draft(opset=19)
    half = draft.node("Cast", ["image"], "half", to=FLOAT16, saturate=1)
    draft.weights["w"] = draft.draw(8, 3, 3, 3).astype(np.float16)
    x = draft.node("Relu", [draft.node("Conv", [half, "w"], "c", strides=[2, 2])], "relu")
    x = draft.node("Cast", [x], "full", to=FLOAT, saturate=1)
    whole = draft.node("Cast", [x], "whole", to=TensorProto.INT32, saturate=1)
    whole = draft.node("Cast", [whole], "rounded", to=FLOAT, saturate=1)
    draft.head(draft.node("Sub", [x, whole], "rest"))
    return draft.finish()


def reductions_over_no_axis():
    draft = Draft(opset=18)
    x = draft.node("ReduceSum", [draft.stem()], "sum", noop_with_empty_axes=1)
    none = draft.weight("none", np.zeros(0, np.int64))
    x = draft.node("ReduceMean", [x, none], "mean", keepdims=0, noop_with_empty_axes=1)
    draft.head(x)
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
        names_of_the_ends, softmax_of_two_meanings, squeeze_decided_by_a_size, view_by_sizes,
        output_without_a_shape, graph_without_a_name, reductions_over_no_axis,
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
SPELLINGS |= {
    "dropout_7": lambda: _dropouts(7),
    "dropout_11_with_a_mask": lambda: _dropouts(11, mask=True),
    "dropout_13_without_a_flag": lambda: _dropouts(13),
    "dropout_17_with_a_flag": lambda: _dropouts(17, np.array(False), mask=True),
    "pad_of_some_axes": lambda: _pad([1, 2, 1, 0], [3, -2]),
    "pad_of_one_axis": lambda: _pad([1, 2], [2], 0.5),
    "pad_of_some_axes_reflecting": lambda: _pad([1, 2, 3, 0], [-1, 2], mode="reflect"),
    "normalized_while_training_9": lambda: _normalized_while_training(9),
    "normalized_while_training_15": lambda: _normalized_while_training(15),
}
SPELLINGS["float16_casts_that_saturate"] = casts_that_saturate
STAY = {"If": decided_while_it_runs, "Loop": repeated_while_it_runs}
