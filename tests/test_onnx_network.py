"""ONNX files as PyTorch networks: every operator beside ONNX Runtime, and what is refused."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from labutils import runtime
from labutils.errors import LabError, TranslationError, UsageError
from labutils.litert import converter, onnx_network
from labutils.litert.onnx_operators import OPERATORS

SHAPE = (1, 4, 8, 8)


def node(op, *inputs, outputs=("y",), **attributes):
    return helper.make_node(op, inputs, list(outputs), name=f"/{op}", **attributes)


def graph(path, nodes, constants=None, *, opset=17, shape=SHAPE, outputs=("y",)):
    """Write an ONNX file with one image "x" and constants by name."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


# --- single nodes beside ONNX Runtime -------------------------------------------------------------

RANDOM = np.random.default_rng(0)


def floats(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


def scales(*values):
    return np.array(values, np.float32)


X, LEFT_OUT = "x", ""
KERNEL, DEEP, VECTOR, MATRIX = floats(6, 4, 3, 3), floats(4, 1, 3, 3), floats(4), floats(8, 5)
STATISTICS = [VECTOR, VECTOR, VECTOR, np.abs(VECTOR)]
CORNERS = {"coordinate_transformation_mode": "align_corners"}
ODD, LONG = (1, 4, 7, 7), (1, 4, 10, 10)
AROUND = ints(0, 0, 1, 2, 0, 0, 0, 1)
WINDOW, STRIDE, EVEN, UNEVEN = [3, 3], [2, 2], [1, 1, 1, 1], [0, 1, 1, 0]
# operator, inputs (the image, constants, or left out), attributes; "opset", "shape" of the image
CASES = [
    *(
        (op, [X], {"opset": opset})
        for op, opset in (
            ("Relu", 17), ("Sigmoid", 17), ("Tanh", 17), ("HardSwish", 17), ("Softsign", 17),
            ("Softplus", 17), ("Mish", 18), ("Exp", 17), ("Abs", 17), ("Neg", 17), ("Floor", 17),
            ("Ceil", 17), ("Erf", 17), ("Sin", 17), ("Cos", 17), ("Identity", 17), ("Dropout", 17),
            ("GlobalAveragePool", 17), ("GlobalMaxPool", 17), ("Reciprocal", 17), ("Sqrt", 17),
            ("Log", 17),
        )
    ),
    *((op, [X, floats(4, 1, 1)], {}) for op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum")),
    *((op, [X, X, floats(8)], {}) for op in ("Min", "Max", "Sum")),
    *((op, [X], {"axis": 1}) for op in ("Softmax", "LogSoftmax")),
    *((op, [X], {"axis": -2, "opset": 11}) for op in ("Softmax", "LogSoftmax")),
    *(
        (op, [X, ints(-1, 1)], {"keepdims": 0, "noop_with_empty_axes": 1, "opset": 18})
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
    ),
    *((op, [X], {"axes": [-1], "keepdims": 0, "opset": 11}) for op in ("ReduceMean", "ReduceL2")),
    ("ReduceSum", [X, ints()], {"noop_with_empty_axes": 1}),
    ("ReduceSum", [X, ints()], {}),
    ("Pow", [X, np.int64(2)], {}),
    ("Pow", [X, np.float32(3)], {}),
    ("Where", [RANDOM.random(SHAPE) > 0.5, X, np.float32(-5)], {}),
    ("MatMul", [X, MATRIX], {}),
    ("Cast", [X], {"to": 1}),
    ("Clip", [X, np.float32(-0.3), np.float32(0.4)], {}),
    ("Clip", [X, np.float32(0), np.float32(6)], {}),
    ("Clip", [X], {"min": -0.3, "max": 0.4, "opset": 6}),
    ("HardSigmoid", [X], {"alpha": 0.3, "beta": 0.4}),
    ("HardSigmoid", [X], {"alpha": 1 / 6}),
    ("LeakyRelu", [X], {"alpha": 0.2}),
    ("Elu", [X], {"alpha": 0.7}),
    ("PRelu", [X, VECTOR.reshape(4, 1, 1)], {}),
    ("Gelu", [X], {"approximate": "tanh", "opset": 20}),
    ("BatchNormalization", [X, *STATISTICS], {"epsilon": 0.01}),
    ("LayerNormalization", [X, floats(8), floats(8)], {"axis": -1, "epsilon": 0.01}),
    ("LayerNormalization", [X, floats(8, 8)], {"axis": 2}),
    ("InstanceNormalization", [X, VECTOR, VECTOR], {"epsilon": 0.01}),
    ("GroupNormalization", [X, VECTOR, VECTOR], {"num_groups": 2, "epsilon": 0.01, "opset": 21}),
    ("Gemm", [X, MATRIX, floats(5)], {"alpha": 0.5, "beta": 2.0, "shape": (3, 8)}),
    ("Gemm", [X, floats(5, 3), floats(8, 1)], {"transA": 1, "transB": 1, "shape": (3, 8)}),
    ("Gemm", [X, MATRIX, floats(1)], {"shape": (3, 8)}),
    *(("Flatten", [X], {"axis": axis}) for axis in (-1, -4, 0, 2, 4)),
    ("Reshape", [X, ints(0, -1, 4)], {}),
    ("Reshape", [X, ints(4, 64)], {"allowzero": 1}),
    ("Transpose", [X], {"perm": [0, 2, 3, 1]}),
    ("Squeeze", [X, ints(-4)], {}),
    ("Squeeze", [X], {"axes": [0], "opset": 11}),
    ("Unsqueeze", [X, ints(-1, 1)], {}),
    ("Unsqueeze", [X], {"axes": [1], "opset": 11}),
    ("Concat", [X, floats(1, 2, 8, 8), X], {"axis": -3}),
    ("Einsum", [X, floats(3, 4)], {"equation": "nchw,oc->nohw"}),
    ("Split", [X, ints(3, 5)], {"axis": -1, "results": 2}),
    ("Split", [X], {"axis": 2, "num_outputs": 3, "results": 3, "opset": 18}),
    ("Split", [X], {"axis": 1, "split": [1, 3], "results": 2, "opset": 11}),
    ("Slice", [X, ints(1, -5), ints(99, -1), ints(1, 3), ints(2, 1)], {}),
    ("Slice", [X], {"starts": [1, 2], "ends": [-1, 5], "axes": [3, 2], "opset": 9}),
    ("Gather", [X, np.array([[2, -1], [0, 0]])], {"axis": 1}),
    ("Gather", [X, np.int64(-2)], {"axis": -1}),
    ("Expand", [X, ints(3, 1, 1, 1)], {"shape": (1, 4, 1, 8)}),
    ("Tile", [X, ints(1, 2, 1, 3)], {}),
    ("Pad", [X, AROUND, np.float32(0.7)], {}),
    ("Pad", [X, ints(1, -1), np.float32(0.7), ints(-2)], {"opset": 18}),
    ("Pad", [X], {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 0.7, "opset": 10}),
    *(("Pad", [X, AROUND], {"mode": mode}) for mode in ("reflect", "edge")),
    ("DepthToSpace", [X], {"blocksize": 2}),
    ("DepthToSpace", [X], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [X], {"blocksize": 2}),
    ("Conv", [X, KERNEL, floats(6)], {"strides": STRIDE, "pads": EVEN, "kernel_shape": WINDOW}),
    ("Conv", [X, KERNEL], {"strides": STRIDE, "pads": UNEVEN}),
    ("Conv", [X, DEEP], {"group": 4, "dilations": [2, 2]}),
    ("Conv", [X, floats(6, 4, 3)], {"pads": [1, 0], "shape": (1, 4, 9)}),
    *(
        (op, [X, *more], {"auto_pad": auto, "strides": STRIDE, **said})
        for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for op, more, said in (("Conv", [KERNEL], {}), ("MaxPool", [], {"kernel_shape": WINDOW}))
    ),
    ("ConvTranspose", [X, floats(4, 6, 3, 3), floats(6)],
     {"strides": STRIDE, "output_padding": [1, 1], "pads": EVEN, "kernel_shape": WINDOW}),
    ("ConvTranspose", [X, floats(4, 3, 3, 3)],
     {"group": 2, "dilations": [2, 2], "auto_pad": "VALID"}),
    ("MaxPool", [X], {"kernel_shape": WINDOW, "strides": STRIDE, "pads": EVEN, "ceil_mode": 1}),
    ("MaxPool", [X], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "dilations": [2, 1]}),
    ("AveragePool", [X], {"kernel_shape": WINDOW, "strides": STRIDE, "pads": EVEN,
                          "count_include_pad": 1, "ceil_mode": 1}),
    ("AveragePool", [X], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}),
    ("AveragePool", [X], {"kernel_shape": WINDOW, "auto_pad": "SAME_LOWER", "strides": STRIDE}),
    ("Resize", [X, LEFT_OUT, scales(1, 1, 1.5, 2)], {"mode": "linear"}),
    *(
        ("Resize", [X, LEFT_OUT, scales(1, 1, factor, factor)], {"mode": mode, "shape": shape})
        for mode in ("linear", "cubic") for factor, shape in ((1.5, ODD), (2.3, LONG), (0.6, ODD))
    ),
    ("Resize", [X, LEFT_OUT, LEFT_OUT, ints(1, 4, 5, 11)], {"mode": "linear", **CORNERS}),
    ("Resize", [X, LEFT_OUT, scales(2, 1.5)], {"mode": "cubic", "axes": [-2, -1],
                                               "cubic_coeff_a": -0.75, "opset": 18}),
    ("Resize", [X, LEFT_OUT, LEFT_OUT, ints(4, 3)],
     {"mode": "linear", "axes": [2, 3], "coordinate_transformation_mode": "pytorch_half_pixel",
      "opset": 18}),
    ("Resize", [X, LEFT_OUT, scales(1, 1, 2, 3)], {"mode": "nearest"}),
    ("Resize", [X, LEFT_OUT, scales(1, 1, 1, 3)],
     {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}),
    ("Upsample", [X, scales(1, 1, 2, 3)], {"mode": "nearest", "opset": 9}),
]  # fmt: skip
REFUSED = [
    ("Cast", [X], {"to": 7}, "whole numbers"),
    ("GridSample", [X, floats(1, 8, 8, 2)], {}, "not among the"),
    ("Slice", [X, ints(-1), ints(-9), ints(3), ints(-1)], {}, "backwards"),
    ("MaxPool", [X], {"kernel_shape": [2, 2], "strides": STRIDE, "pads": [0, 0, 1, 1],
                      "ceil_mode": 1}, "partial window"),
    ("AveragePool", [X], {"kernel_shape": [2, 2], "strides": STRIDE, "pads": [0, 0, 1, 1],
                          "ceil_mode": 1}, "partial window"),
    ("AveragePool", [X], {"kernel_shape": [2, 2], "dilations": [2, 2], "opset": 19}, "dilated"),
    ("MaxPool", [X], {"kernel_shape": [2, 2], "dilations": [2, 2], "auto_pad": "SAME_UPPER"},
     "dilated window with automatic"),
    ("ConvTranspose", [X, floats(4, 6, 3, 3)], {"output_shape": [8, 8]}, "uneven padding"),
    ("GroupNormalization", [X, floats(2), floats(2)], {"num_groups": 2, "opset": 18}, "per group"),
    ("Pad", [X, AROUND], {"mode": "wrap", "opset": 19}, "wrap"),
    ("Resize", [X, LEFT_OUT, scales(1, 1, 2, 2)], {"nearest_mode": "ceil"}, "ceil"),
    *(
        ("Resize", [X, LEFT_OUT, scales(1, 1, factor, factor)],
         {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}, "whole numbers")
        for factor in (1.5, 0.5, 2.05)
    ),
    ("Resize", [X, LEFT_OUT, scales(1, 1, 0.5, 0.5)],
     {"mode": "linear", "antialias": 1, "opset": 18}, "antialias"),
    ("Resize", [X, LEFT_OUT, scales(1, 1, 2, 2)],
     {"mode": "cubic", "exclude_outside": 1}, "exclude_outside"),
    ("Resize", [X, LEFT_OUT, scales(1, 1, 2, 2)], {"mode": "cubic", "cubic_coeff_a": -0.5},
     "coefficient"),
    ("Resize", [X, LEFT_OUT, LEFT_OUT, ints(4, 2)],
     {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": "not_larger", "opset": 18},
     "ratio"),
    ("Resize", [X, scales(0, 0, 0, 0, 1, 1, 0.5, 0.5), scales(1, 1, 2, 2)],
     {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize",
      "extrapolation_value": 1.0}, "tf_crop"),
    ("Upsample", [X, scales(1, 1, 2, 2)], {"mode": "linear", "opset": 9}, "asymmetric"),
]  # fmt: skip
WITHOUT_EFFECT = {"saturate", "stash_type", "momentum", "seed", "storage_order", "training_mode"}
"""Attributes of training, of types that are not taken, and of results that are not given."""


def written(path, op, inputs, said):
    """Write the file of a case; the constants are called after their positions."""
    said = dict(said)
    opset, shape = said.pop("opset", 17), said.pop("shape", SHAPE)
    results = [f"y{i}" for i in range(said.pop("results", 1))]
    stored = {f"c{i}": value for i, value in enumerate(inputs) if not isinstance(value, str)}
    names = [value if isinstance(value, str) else f"c{i}" for i, value in enumerate(inputs)]
    made = node(op, *names, outputs=results, **said)
    graph(path, [made], stored, opset=opset, shape=shape, outputs=results)
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return made, stored, opset, np.abs(image) + 0.1 if op in ("Log", "Sqrt") else image


def by_onnx_runtime(file, image):
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # of sizes that shape inference rounds otherwise
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(
        None, {"x": image}
    )


def as_arrays(found):
    found = found.values() if isinstance(found, dict) else found
    return [t.detach().numpy() for t in (found if not isinstance(found, torch.Tensor) else [found])]


def assert_same(found, wanted, what):
    for ours, theirs in zip(as_arrays(found), wanted, strict=True):
        assert ours.shape == theirs.shape, what
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5, err_msg=what)


def titled(case):
    return f"{case[0]} {', '.join(f'{k}={v}' for k, v in case[2].items())}"


@pytest.mark.parametrize("case", CASES, ids=titled)
def test_a_node_computes_in_pytorch_what_onnx_runtime_computes(case, tmp_path):
    file = tmp_path / "n.onnx"
    *_, image = written(file, *case)
    assert_same(onnx_network.read(file)(torch.from_numpy(image)), by_onnx_runtime(file, image), "")


@pytest.mark.parametrize("case", CASES, ids=titled)
def test_what_is_left_out_of_a_node_is_taken_for_its_default_or_refused(case, tmp_path):
    op, inputs, said = case
    attributes = said.keys() - {"opset", "shape", "results"}
    variants = [(inputs, {k: v for k, v in said.items() if k != key}) for key in attributes]
    schema = onnx.defs.get_schema(op, said.get("opset", 17))
    needed = onnx.defs.OpSchema.FormalParameterOption.Single  # ONNX Runtime dies without these
    for i, parameter in list(enumerate(schema.inputs))[1 : len(inputs)]:
        if parameter.option != needed:
            variants.append((inputs[:i], said))
            if i + 1 < len(inputs):
                variants.append(([*inputs[:i], LEFT_OUT, *inputs[i + 1 :]], said))
    for changed, still in variants:
        file, what = tmp_path / "n.onnx", f"{changed}, {still}"
        try:
            *_, image = written(file, op, changed, still)
            wanted = by_onnx_runtime(file, image)
        except Exception:  # it cannot be left out
            continue
        try:
            found = onnx_network.read(file)(torch.from_numpy(image))
        except TranslationError:
            continue
        assert_same(found, wanted, what)


@pytest.mark.parametrize("case", [c for c in CASES if len(c[1]) > 1], ids=titled)
def test_a_constant_that_is_computed_instead_is_not_taken_for_a_missing_one(case, tmp_path):
    file = tmp_path / "n.onnx"
    made, stored, opset, image = written(file, *case)
    wanted = by_onnx_runtime(file, image)
    for name in stored:
        known = {n: np.asarray(value) for n, value in stored.items() if n != name}
        given = {"x": torch.from_numpy(image), name: torch.from_numpy(np.array(stored[name]))}
        step = onnx_network._step(made, known, opset, "n.onnx")
        try:
            found = step(*(given[n] for n in made.input if n in given))
        except TranslationError as error:
            assert "computed" in str(error) and error.op_type == case[0]
            continue
        assert_same(found, wanted, name)


def test_every_operator_is_compared_with_each_of_its_attributes():
    assert {case[0] for case in CASES} == set(OPERATORS)
    for op in OPERATORS:
        newest = 9 if op == "Upsample" else 21
        known = set(onnx.defs.get_schema(op, newest).attributes) - WITHOUT_EFFECT
        told = {key for case in (*CASES, *REFUSED) if case[0] == op for key in case[2]}
        assert known <= told, op


@pytest.mark.parametrize("case", REFUSED, ids=titled)
def test_what_is_not_taken_is_refused_by_node_and_operator(case, tmp_path):
    *case, words = case
    *_, image = written(tmp_path / "n.onnx", *case)
    with pytest.raises(TranslationError, match=words) as caught:
        onnx_network.read(tmp_path / "n.onnx")(torch.from_numpy(image))
    assert caught.value.op_type == case[0] and f"/{case[0]}" in str(caught.value)


def test_a_refusal_stays_one_when_torch_exports_the_network(tmp_path):
    """It knows the node and the operator; a failure of torch.export does not."""
    op, inputs, said, words = REFUSED[2]
    *_, image = written(tmp_path / "n.onnx", op, inputs, said)
    network = onnx_network.read(tmp_path / "n.onnx")
    with pytest.raises(TranslationError, match=words) as caught:
        converter._export(network, image.shape, "nchw", tmp_path / "n.pt2", "n.onnx")
    assert caught.value.op_type == "Slice"
    with pytest.raises(LabError, match=r"torch\.export cannot take n"):
        converter._export(torch.nn.Linear(3, 3), image.shape, "nchw", tmp_path / "n.pt2", "n")


# --- whole files ----------------------------------------------------------------------------------


def test_shapes_that_a_file_computes_are_known_beforehand(tmp_path):
    nodes = [
        node("Shape", "x", outputs=["s"]), node("Gather", "s", "i", outputs=["c"], axis=0),
        node("Concat", "c", "m", outputs=["n"], axis=0), node("Reshape", "x", "n"),
    ]  # fmt: skip
    file = graph(tmp_path / "n.onnx", nodes, {"i": np.array([0, 1]), "m": np.array([-1])})
    network, image = onnx_network.read(file), floats(*SHAPE)
    with runtime.connect(file) as runner:
        (wanted,) = runner.tensors(image).values()
    assert_same(network(torch.from_numpy(image)), [wanted], "")
    torch.export.export(network, (torch.from_numpy(image),))  # what the converter does with it


def test_several_outputs_keep_their_names(tmp_path):
    nodes = [node("Relu", "x", outputs=["a"]), node("Neg", "a", outputs=["b"])]
    network = onnx_network.read(graph(tmp_path / "n.onnx", nodes, outputs=("b", "a")))
    assert list(network(torch.zeros(SHAPE))) == ["b", "a"]


def test_a_file_on_integers_is_refused(tmp_path):
    nodes = [node("MatMulInteger", "x", "w")]
    file = graph(tmp_path / "q.onnx", nodes, {"w": np.zeros((8, 8), np.uint8)})
    with pytest.raises(UsageError, match="computes on integers"):
        onnx_network.read(file)
