"""GELU and layer normalization are quantized so that QNN takes them, and compute the same."""

import math

import numpy as np
import onnx
import pytest
import torch
from cases.draft import CLASSES, Draft
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from test_onnx_rules import graph, node, ops
from torch import nn

from labutils import quantize
from labutils.onnxfile import gelu
from labutils.onnxfile.canonical_form import raise_opset_
from labutils.onnxfile.session import Session
from labutils.quantize.prepare import prepared
from labutils.quantize.tidl_hints import tidl_hints

ROOT = math.sqrt(2)
STATED = ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"]


def written(order, divides, swapped, halved):
    """Return ``x (1 + erf(x / sqrt(2))) / 2`` with its factors in an order of choice."""
    inner = node("Div", "x root", "i") if divides else node("Mul", "root x", "i")
    constants = {"root": np.float32(ROOT if divides else 1 / ROOT), "half": np.float32(0.5)}
    nodes = [inner, node("Erf", "i", "e")]
    if halved:  # 0.5 erf + 0.5, times x
        constants["one"] = np.float32(0.5)
        nodes += [node("Mul", "e half", "h"), node("Add", "h one", "s")]
        factors = ["x"]
    else:
        constants["one"] = np.float32(1)
        nodes += [node("Add", "one e" if swapped else "e one", "s")]
        factors = {"x first": ["x", "half"], "half first": ["half", "x"]}.get(order, ["hx"])
        if factors == ["hx"]:
            nodes.insert(0, node("Mul", "x half", "hx"))
    value = "s"
    for index, factor in enumerate(factors):
        output = "y" if index == len(factors) - 1 else f"p{index}"
        pair = f"{factor} {value}" if swapped else f"{value} {factor}"
        nodes.append(node("Mul", pair, output))
        value = output
    return graph(nodes, constants, [2, 3, 4])


def contracted(model):
    made = onnx.ModelProto()
    made.CopyFrom(model)
    raise_opset_(made, gelu.SINCE)
    said = gelu.contract_(made)
    onnx.checker.check_model(made, full_check=True)
    return made, said


def values(model, x):
    return Session(model).run({"x": x}, ["y"])[0]


@settings(max_examples=24, deadline=None)
@given(
    order=st.sampled_from(["x first", "half first", "half of x"]),
    divides=st.booleans(), swapped=st.booleans(), halved=st.booleans(),
)  # fmt: skip
def test_a_gelu_in_any_order_is_one_operator(order, divides, swapped, halved):
    before = written(order, divides, swapped, halved)
    after, said = contracted(before)
    assert ops(after) == ["Gelu"] and said == ["1 GELU of several nodes written as one"]
    assert after.graph.node[0].name == before.graph.node[-1].name
    x = np.linspace(-6, 6, 24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_allclose(values(after, x), values(before, x), atol=2e-6)


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"root": 1.5}, "a root"), ({"half": 0.25}, "a factor"), ({"one": 2}, "a sum")],
)  # fmt: skip
def test_what_is_no_gelu_stays(changed, why):
    model = written("x first", True, False, False)
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            array = np.float32(changed[tensor.name])
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    assert contracted(model)[1] == [], why


def test_a_part_that_is_read_elsewhere_keeps_the_gelu_apart():
    model = written("x first", True, False, False)
    model.graph.output.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [2, 3, 4]))
    assert contracted(model)[1] == []


class LastNorm(nn.Module):
    """A layer normalization over the channels of an image."""

    def __init__(self, **settings):
        super().__init__()
        self.norm = nn.LayerNorm(8, **settings)
        for tensor, mean in ((self.norm.weight, 0.5), (self.norm.bias, 0.0)):
            if tensor is not None:
                nn.init.normal_(tensor, mean, 0.5)  # factors of both signs

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


BODIES = {
    "erf": nn.GELU, "tanh": lambda: nn.GELU(approximate="tanh"), "norm": LastNorm,
    "norm without bias": lambda: LastNorm(bias=False),
    "norm without factors": lambda: LastNorm(elementwise_affine=False),
    "both": lambda: nn.Sequential(LastNorm(), nn.Conv2d(8, 8, 1), nn.GELU()),
}  # fmt: skip
EXPORTS = {"legacy 11": (11, False), "legacy 17": (17, False), "dynamo 18": (18, True)}


def exported(body, export, folder):
    """Export a small network from torch, with random weights of a fixed seed."""
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), BODIES[body](), *head).eval()
    opset, dynamo = EXPORTS[export]
    more = {"external_data": False} if dynamo else {}
    path = folder / "net.onnx"
    torch.onnx.export(
        model, (torch.randn(1, 3, 32, 32),), str(path), dynamo=dynamo, opset_version=opset,
        input_names=["image"], output_names=["scores"], verbose=False, **more,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("body", ["erf", "tanh"])
def test_the_gelu_of_an_exporter_is_prepared_as_one_node(body, export, tmp_path):
    path = exported(body, export, tmp_path)
    model = prepared(path)
    found = [n for n in model.graph.node if n.op_type == "Gelu"]
    kinds = [a.s.decode() for n in found for a in n.attribute if a.name == "approximate"]
    assert len(found) == 1 and kinds in ([["tanh"]] if body == "tanh" else [[], ["none"]])
    assert not {"Erf", "Tanh"} & set(ops(model))
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    one, other = (Session(m).run({"image": x})[0] for m in (path, model))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_tidl_is_warned_of_the_one_operator(tmp_path):
    inputs = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    quantize.static(exported("erf", "legacy 17", tmp_path), tmp_path / "q.onnx", inputs, "pow2")
    warnings = tidl_hints(tmp_path / "q.onnx")["warnings"]
    assert any("GELU is one operator here (first /1/Mul_1)" in warning for warning in warnings)


CONVERTED = [("erf", "legacy 17", "int8"), ("tanh", "legacy 11", "a16w8"),
             ("norm", "legacy 17", "a16w8"), ("norm without bias", "dynamo 18", "int8"),
             ("both", "legacy 17", "int8")]  # fmt: skip


def convert(lab, path, recipe):
    made = path.with_suffix(".dlc")
    options = ["--target", "qnn", "--quantize", recipe, *STATED]
    return lab("convert", path, *options, "-o", made)


@pytest.mark.htp
@pytest.mark.parametrize(("body", "export", "recipe"), CONVERTED)
def test_it_is_converted_in_integers(body, export, recipe, lab, tmp_path):
    code, out, err = convert(lab, exported(body, export, tmp_path), recipe)
    assert code == 0, out + err


@pytest.mark.slow
@pytest.mark.htp
@pytest.mark.parametrize("recipe", ["int8", "a16w8"])
@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("body", BODIES)
def test_every_export_is_converted_in_integers(body, export, recipe, lab, tmp_path):
    code, out, err = convert(lab, exported(body, export, tmp_path), recipe)
    assert code == 0, out + err


@pytest.mark.htp
def test_factors_that_normalizations_share_are_quantized(lab, tmp_path):
    draft = Draft()
    x = draft.node("Transpose", [draft.stem()], "t", perm=[0, 2, 3, 1])
    w, b = draft.weight("w", draft.draw(8)), draft.weight("b", draft.draw(8))
    for index, own in enumerate(([w, b], [w, b], [b, w])):
        x = draft.node("LayerNormalization", [x, *own], f"n{index}")
    draft.head(draft.node("Transpose", [x], "back", perm=[0, 3, 1, 2]))
    onnx.save(draft.finish(), tmp_path / "net.onnx")
    code, out, err = convert(lab, tmp_path / "net.onnx", "a16w8")
    assert code == 0, out + err


@pytest.mark.htp
def test_a_quantized_node_that_is_refused_goes_by_its_own_name(lab, tmp_path):
    draft = Draft()
    draft.head(draft.node("Erf", [draft.stem()], "apart"))
    onnx.save(draft.finish(), tmp_path / "net.onnx")
    code, _, err = convert(lab, tmp_path / "net.onnx", "int8")
    assert code == 1 and "Erf '/Erf_apart'" in err and "QuantizeLinear" not in err
