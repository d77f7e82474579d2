"""Surgery on real models at every level: what is replaced, what is kept, what is said."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
import pickle
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from labutils import _torchvision, surgery
from labutils.errors import ModelFileError, SurgeryError, UnknownNameError, UsageError
from labutils.layers import CustomHardsigmoid, CustomHardswish
from labutils.surgery.rules.book import ONNX_ONLY

_torchvision.load()  # timm imports torchvision
HARD = {"HardSwish", "HardSigmoid"}
IMAGE = (1, 3, 64, 64)


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def outputs(model, x):
    with torch.no_grad():
        return model(x)


def classes(model):
    return Counter(type(module).__name__ for module in model.modules())


def exported(model, opset, x=None):
    x = seeded(*IMAGE) if x is None else x
    if opset >= 18:
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        return torch.onnx.export(
            model, (x,), dynamo=True, opset_version=opset, verbose=False
        ).model_proto
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, opset_version=opset, dynamo=False)
    return onnx.load_from_string(file.getvalue())


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


def run(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.asarray(x)})[0]


# --- modules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, hardswish, hardsigmoid", [("large", 21, 8), ("small", 19, 9)], ids=["large", "small"]
)
def test_torchvision_modules(size, hardswish, hardsigmoid, request):
    model = request.getfixturevalue(size)
    x = seeded(*IMAGE)
    expected = outputs(model, x)
    report = surgery.replace_(model)
    assert report.counts == {"hardsigmoid": hardsigmoid, "hardswish": hardswish}
    assert classes(model)["CustomHardswish"] == hardswish
    assert classes(model)["CustomHardsigmoid"] == hardsigmoid
    assert not {"Hardswish", "Hardsigmoid"} & set(classes(model))
    assert (outputs(model, x) - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert report.parameters[0] == report.parameters[1] > 1e6
    assert any("not looked for" in note for note in report.notes)


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "tf_mobilenetv3_small_100"])
def test_timm_models_and_their_se_gates(name):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=16).eval()
    x = seeded(*IMAGE)
    report = surgery.replace_(copy.deepcopy(model), example_inputs=x)
    assert report.counts == {"hardsigmoid": 9, "hardswish": 19} and report.check.max_error == 0
    assert sum(match.where.endswith(".se.gate") for match in report.matches) == 9
    graph = exported(model, 13)
    report = surgery.replace_(graph)
    assert report.counts == {"hardsigmoid": 9, "hardswish": 19}
    assert not HARD & set(operators(graph)) and report.check.rounding


def test_timms_own_activation_classes():
    from timm.layers import activations, activations_me

    model = nn.Sequential(
        activations.HardSwish(), activations.HardSigmoid(inplace=True),
        activations_me.HardSwishMe(), activations_me.HardSigmoidMe(),
    )  # fmt: skip
    report = surgery.replace_(model, example_inputs=seeded(2, 5))
    assert report.counts == {"hardsigmoid": 2, "hardswish": 2} and report.check.rounding


def test_vendor_rule_is_approximate_and_says_so(large):
    x = seeded(*IMAGE)
    report = surgery.replace_(large, ["hardsigmoid-0.167", "hardswish"], example_inputs=x)
    assert report.counts == {"hardsigmoid-0.167": 8, "hardswish": 21}
    assert 0 < report.check.relative_error < 0.02 and not report.exact
    assert "APPROXIMATE" in str(report) and "WARNING" not in str(report)


def test_shared_instance_stays_shared_and_hooks_move():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            act = nn.Hardswish(inplace=True)
            self.a, self.b = (
                nn.Sequential(nn.Linear(4, 4), act),
                nn.Sequential(nn.Linear(4, 4), act),
            )

        def forward(self, x):
            return self.b(self.a(x))

    model, heard = Net(), []
    handle = model.a[1].register_forward_hook(lambda *_: heard.append(1))
    report = surgery.replace_(model)
    assert [match.where for match in report.matches] == ["a.1", "b.1"]
    assert model.a[1] is model.b[1] and isinstance(model.a[1], CustomHardswish)
    model(seeded(1, 4))
    assert len(heard) == 2
    handle.remove()
    model(seeded(1, 4))
    assert len(heard) == 2


def test_training_state_is_kept_per_module(small):
    small.train()
    small.features[0].eval()
    small.features[0][2].train()
    before = {path: module.training for path, module in small.named_modules()}
    statistics = small.features[1].block[0][1].running_mean.clone()
    surgery.replace_(small, example_inputs=seeded(*IMAGE))
    assert {path: module.training for path, module in small.named_modules()} == before
    assert torch.equal(small.features[1].block[0][1].running_mean, statistics)


def test_a_replaced_model_copies_saves_and_trains(small):
    surgery.replace_(small)
    twin = copy.deepcopy(small)
    twin.load_state_dict(small.state_dict())
    x = seeded(2, 3, 64, 64)
    assert torch.equal(outputs(twin, x), outputs(small, x))
    twin.train()(x).sum().backward()
    assert all(p.grad is not None for p in twin.parameters())


def test_subclass_is_left_with_a_reason():
    class MySwish(nn.Hardswish):
        pass

    report = surgery.replace_(nn.Sequential(nn.Hardswish(), MySwish()), level="module")
    assert len(report.matches) == 1
    assert report.left[0].where == "1" and "subclass of Hardswish" in report.left[0].why
    report = surgery.replace_(nn.Sequential(nn.Hardswish(), MySwish()), example_inputs=seeded(1, 4))
    assert report.level == "module+function", "its functional is reached"


def test_the_model_itself_cannot_be_replaced():
    with pytest.raises(SurgeryError, match=r"itself is a Hardswish.*nn\.Sequential"):
        surgery.replace_(nn.Hardswish())


def test_compiled_torchscript_is_refused():
    with pytest.raises(SurgeryError, match="TorchScript"):
        surgery.replace_(torch.jit.script(nn.Sequential(nn.Hardswish())))


# --- functions -----------------------------------------------------------------------------------


def gate(x):
    return torch.nn.functional.hardsigmoid(x.mean((2, 3), keepdim=True))


class Functional(nn.Module):
    """Calls instead of modules: nested, in place, by keyword, as an aten operator."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.inner = nn.ModuleDict({"norm": nn.BatchNorm2d(8)})

    def forward(self, image):
        x = F.hardswish(self.conv(image), inplace=True)
        x = self.inner["norm"](x)
        x = x * gate(x)
        x = torch.ops.aten.hardswish(F.hardswish(input=x))
        return F.hardsigmoid(x, True).flatten(1)


@pytest.fixture
def functional():
    torch.manual_seed(0)
    return Functional().eval()


def test_functionals_are_replaced_without_a_trace(functional):
    x = seeded(1, 3, 8, 8)
    expected = outputs(functional, x)
    report = surgery.replace_(functional, example_inputs=x)
    assert report.level == "function"
    assert report.counts == {"hardsigmoid": 2, "hardswish": 3}
    assert torch.equal(outputs(functional, x), expected) and report.check.max_error == 0
    assert all("test_surgery.py:" in match.where for match in report.matches)
    assert Counter(match.was for match in report.matches)["F.hardswish"] == 2


def test_replaced_functions_survive_exporters(functional):
    x = seeded(1, 3, 8, 8)
    expected = outputs(functional, x)
    surgery.replace_(functional, example_inputs=x)
    for opset in (13, 17, 18):
        graph = exported(functional, opset, x)
        assert not HARD & set(operators(graph)), opset
        assert operators(graph)["Clip"] == 5
    program = torch.export.export(functional, (x,), strict=False)
    assert not any("hards" in str(node.target) for node in program.graph.nodes)
    names = [str(spec.arg.name) for spec in program.graph_signature.input_specs]
    assert names[-1] == "image", "the forward keeps its signature"
    assert torch.equal(program.module()(x), expected)
    assert "hardswish" not in str(torch.jit.trace(functional, x).inlined_graph)


def test_replaced_functions_survive_strict_export(functional):
    x = seeded(1, 3, 8, 8)
    expected = outputs(functional, x)
    surgery.replace_(functional, example_inputs=x)
    for twin in (functional, copy.deepcopy(functional)):
        program = torch.export.export(twin, (x,), strict=True)
        assert not any("hards" in str(node.target) for node in program.graph.nodes)
        assert torch.equal(program.module()(x), expected)


def test_replaced_functions_survive_copies_and_pickles(functional):
    x = seeded(1, 3, 8, 8)
    surgery.replace_(functional, example_inputs=x)
    for twin in (copy.deepcopy(functional), pickle.loads(pickle.dumps(functional))):
        with torch.no_grad():
            twin.conv.weight.zero_()  # its own weights, not the original's
        assert not torch.equal(outputs(twin, x), outputs(functional, x))
        assert not HARD & set(operators(exported(twin, 17, x)))


def test_functions_can_be_taken_back(functional):
    x = seeded(1, 3, 8, 8)
    surgery.replace_(functional, "hardswish", example_inputs=x)
    assert set(operators(exported(functional, 17, x))) & HARD == {"HardSigmoid"}
    surgery.replace_(functional, "hardsigmoid", example_inputs=x)  # adds to the first
    assert not HARD & set(operators(exported(functional, 17, x)))
    with pytest.raises(SurgeryError, match="already replaced by: hardswish, hardsigmoid"):
        surgery.replace_(functional, example_inputs=x)
    assert surgery.restore_(functional) and not surgery.restore_(functional)
    assert set(operators(exported(functional, 17, x))) == {
        *operators(exported(Functional().eval(), 17, x))
    }


def test_modules_are_reached_through_their_functional(small):
    report = surgery.replace_(small, level="function", example_inputs=seeded(*IMAGE))
    assert report.counts == {"hardsigmoid": 9, "hardswish": 19} and report.check.max_error == 0
    assert report.matches[0].where.startswith("features.0.2")
    assert classes(small)["Hardswish"] == 19, "the modules themselves stay"


def test_auto_adds_functions_only_where_some_are_left(small):
    model = nn.Sequential(small, Head())
    report = surgery.replace_(model, example_inputs=seeded(*IMAGE))
    assert report.level == "module+function"
    assert Counter(match.level for match in report.matches) == {"module": 28, "function": 1}
    assert (
        surgery.replace_(nn.Sequential(nn.Hardswish()), example_inputs=seeded(1)).level == "module"
    )


class Head(nn.Module):
    def forward(self, x):
        return F.hardswish(x)


def test_level_module_lists_the_calls_that_it_leaves():
    model = nn.Sequential(nn.Hardswish(), Head())
    report = surgery.replace_(model, level="module", example_inputs=seeded(1, 4))
    assert [left.what for left in report.left] == ["F.hardswish"]


def test_a_graph_of_torch_export_is_reached_through_its_aten_operators(small):
    x = seeded(*IMAGE)
    graph = torch.export.export(small, (x,)).module()
    report = surgery.replace_(graph, example_inputs=x)
    assert report.counts == {"hardsigmoid": 9, "hardswish": 19}
    assert {match.was for match in report.matches} <= {
        f"aten.{name}" for name in ("hardswish_", "hardswish", "hardsigmoid", "hardsigmoid_")
    }


def test_tensor_methods_by_a_users_rule():
    rule = surgery.Rule(
        name="sigmoid-by-tanh", exact=True, error="2e-7", source="0.5 * tanh(x / 2) + 0.5",
        functions=(
            surgery.FunctionForm((torch.Tensor.sigmoid, torch.sigmoid), sigmoid_by_tanh),
        ),
    )  # fmt: skip

    class Net(nn.Module):
        def forward(self, x):
            return x.sigmoid() + torch.sigmoid(x)

    model = Net()
    report = surgery.replace_(model, rule, example_inputs=seeded(100))
    assert len(report.matches) == 2 and report.check.rounding
    assert "Sigmoid" not in operators(exported(model, 17, seeded(4)))


def sigmoid_by_tanh(x):
    return 0.5 * torch.tanh(x / 2) + 0.5


def test_a_call_for_its_effect_is_refused_and_the_model_restored():
    class Effect(nn.Module):
        def forward(self, x):
            x = x + 1
            F.hardswish(x, inplace=True)
            return x

    model = Effect()
    with pytest.raises(SurgeryError, match=r"in place.*test_surgery\.py"):
        surgery.replace_(model, example_inputs=seeded(8))
    assert "forward" not in vars(model)


def test_function_level_needs_example_inputs(functional):
    with pytest.raises(UsageError, match="example_inputs"):
        surgery.replace_(functional, level="function")


# --- ONNX ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graphs(_small):
    made = {}

    def graph(opset):
        if opset not in made:
            made[opset] = exported(_small, opset)
        return copy.deepcopy(made[opset])

    return graph


@pytest.mark.parametrize("opset", [11, 13, 17, pytest.param(18, marks=pytest.mark.slow)])
def test_real_exports(opset, graphs):
    graph = graphs(opset)
    original = copy.deepcopy(graph)
    report = surgery.replace_(graph)
    assert report.counts == {"hardsigmoid": 9, "hardswish": 19}
    label = "HardSwish" if opset >= 14 else "x * HardSigmoid(x)"
    assert Counter(match.was for match in report.matches) == {label: 19, "HardSigmoid": 9}
    assert not HARD & set(operators(graph)) and operators(graph)["Clip"] == 28
    x = seeded(*IMAGE).numpy()
    np.testing.assert_allclose(
        run(graph, x), run(original, x), rtol=0, atol=1e-5 * np.abs(run(original, x)).max()
    )
    assert graph.graph.input == original.graph.input
    assert graph.graph.output == original.graph.output
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", opset)]
    assert report.parameters[0] == report.parameters[1] > 1e6


def test_new_nodes_keep_the_place_of_the_old(graphs):
    for opset in (13, 17):
        graph = graphs(opset)
        kept = {node.name for node in graph.graph.node} - {
            node.name for node in graph.graph.node if node.op_type in HARD
        }
        surgery.replace_(graph)
        names = [node.name for node in graph.graph.node]
        here = [name for name in names if name.startswith("/features/features.0/features.0.2/")]
        assert sorted(name.rsplit("/")[-1] for name in here) == ["Add", "Clip", "Div", "Mul"]
        assert len(set(names)) == len(names) and kept <= set(names)


@pytest.mark.slow
def test_metadata_of_a_dynamo_export_is_kept(graphs):
    graph = graphs(18)
    surgery.replace_(graph)
    first = next(node for node in graph.graph.node if node.op_type == "Clip")
    scopes = {entry.key: entry.value for entry in first.metadata_props}
    assert "'features.0.2'" in scopes["pkg.torch.onnx.name_scopes"]


def test_rules_keep_to_their_own_at_opset_13(graphs):
    """`x * HardSigmoid(x)` is a Hardswish at every level; the gates are the hardsigmoids."""
    graph = graphs(13)
    report = surgery.replace_(graph, "hardsigmoid")
    assert report.counts == {"hardsigmoid": 9} and operators(graph)["HardSigmoid"] == 19
    assert all("add the rule 'hardswish'" in left.why for left in report.left)
    assert len(report.left) == 19
    graph = graphs(13)
    surgery.replace_(graph, "hardswish")
    assert operators(graph)["HardSigmoid"] == 9
    graph = graphs(13)
    report = surgery.replace_(graph, ("hardsigmoid-0.167", "hardswish"))
    assert report.counts == {"hardsigmoid-0.167": 9, "hardswish": 19}
    assert 1e-5 < report.check.relative_error < 0.05


def hand_made(nodes, opset, dtype=TensorProto.FLOAT, initializers=(), outputs=("y",)):
    """Return a model x -> y of the given nodes, x of shape (4, 50)."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "hand_made", [value("x", dtype, [4, 50])],
        [value(name, dtype, [4, 50]) for name in outputs], list(initializers),
    )  # fmt: skip
    ir_version = 6 if opset <= 11 else 8
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )


def node(op_type, inputs, output, **attributes):
    name = f"/block/{output}/{op_type}"
    return helper.make_node(op_type, inputs, [output], name=name, **attributes)


X = np.linspace(-6, 6, 200, dtype=np.float32).reshape(4, 50)


def both(model, x=X):
    """Rewrite, and return the report and the outputs before and after."""
    before = run(model, x)
    report = surgery.replace_(model, example_inputs=x)
    onnx.checker.check_model(model, full_check=True)
    return report, before, run(model, x)


@pytest.mark.parametrize("opset", [11, 13, 17, 20])
@pytest.mark.parametrize("order", [["x", "g"], ["g", "x"]])
def test_both_orders_of_the_decomposed_hardswish(order, opset):
    model = hand_made(
        [node("HardSigmoid", ["x"], "g", alpha=1 / 6, beta=0.5), node("Mul", order, "y")], opset
    )
    report, before, after = both(model)
    assert report.counts == {"hardsigmoid": 0, "hardswish": 1} and "NOTHING" in str(report)
    assert operators(model) == {"Add": 1, "Clip": 1, "Mul": 1, "Div": 1}
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"alpha": 0.25},
        {"beta": 0.1},
        {"alpha": 1 / 6, "beta": 0.5},
        {"alpha": -0.3, "beta": 0.6},
    ],
    ids=str,
)
@pytest.mark.parametrize("opset", [10, 11, 17])
def test_hardsigmoid_of_any_alpha_and_beta(attributes, opset):
    model = hand_made([node("HardSigmoid", ["x"], "y", **attributes)], opset)
    report, before, after = both(model)
    assert report.counts["hardsigmoid"] == 1
    np.testing.assert_allclose(after, before, rtol=0, atol=1.2e-7)
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)  # ONNX's defaults
    np.testing.assert_allclose(after, np.clip(alpha * X + beta, 0, 1), rtol=0, atol=1e-6)
    clip = next(n for n in model.graph.node if n.op_type == "Clip")
    assert len(clip.input) == (1 if opset < 11 else 3)


def test_a_product_with_another_slope_is_no_hardswish():
    model = hand_made([node("HardSigmoid", ["x"], "g"), node("Mul", ["x", "g"], "y")], 13)
    report, before, after = both(model)
    assert report.counts == {"hardsigmoid": 1, "hardswish": 0}
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-6)


def test_a_gate_that_is_used_twice_is_not_torn_out():
    model = hand_made(
        [node("HardSigmoid", ["x"], "g", alpha=1 / 6, beta=0.5), node("Mul", ["x", "g"], "y")],
        13, outputs=("y", "g"),
    )  # fmt: skip
    report, before, after = both(model)
    assert report.counts == {"hardsigmoid": 1, "hardswish": 0}
    assert [value.name for value in model.graph.output] == ["y", "g"]
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-6)


@pytest.mark.parametrize("op_type", sorted(HARD))
def test_half_precision_stays_half(op_type):
    model = hand_made([node(op_type, ["x"], "y")], 17, TensorProto.FLOAT16)
    report, before, after = both(model, X.astype(np.float16))
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}
    assert after.dtype == np.float16 and report.check.rounding
    np.testing.assert_allclose(after.astype(float), before.astype(float), rtol=0, atol=1.2e-2)


def test_types_are_inferred_where_the_file_does_not_say():
    model = hand_made(
        [node("Relu", ["x"], "r"), node("HardSwish", ["r"], "y")], 17, TensorProto.FLOAT16
    )
    assert not model.graph.value_info
    both(model, X.astype(np.float16))
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}


def constant(name, value):
    return numpy_helper.from_array(np.float32(value), name)


CONSTANTS = [
    constant("three", 3),
    constant("zero", 0),
    constant("six", 6),
    constant("sixth", 1 / 6),
]
GATE = [node("Add", ["three", "x"], "a"), node("Clip", ["a", "zero", "six"], "c")]
OLD_GATE = [node("Add", ["x", "three"], "a"), node("Clip", ["a"], "c", min=0.0, max=6.0)]


@pytest.mark.parametrize("start, opset", [(GATE, 13), (OLD_GATE, 10)], ids=["inputs", "attributes"])
@pytest.mark.parametrize(
    "end, label",
    [
        ([node("Mul", ["x", "c"], "m"), node("Div", ["m", "six"], "y")], "x * relu6(x + 3) / 6"),
        ([node("Mul", ["c", "sixth"], "m"), node("Mul", ["m", "x"], "y")],
         "x * (relu6(x + 3) * 1/6)"),
        ([node("Div", ["c", "six"], "m"), node("Mul", ["m", "x"], "y")], "x * (relu6(x + 3) / 6)"),
        ([node("Div", ["c", "six"], "y")], "relu6(x + 3) / 6"),
        ([node("Mul", ["sixth", "c"], "y")], "relu6(x + 3) * 1/6"),
    ],
)  # fmt: skip
def test_plain_forms_are_left_and_named(start, end, label, opset):
    """They hold only operators that converters know; beside a HardSigmoid they are reported."""
    plain = [*start, *end]
    plain[-1] = copy.deepcopy(plain[-1])
    plain[-1].output[0] = "z"
    last = node("HardSigmoid", ["z"], "y")
    model = hand_made([*plain, last], opset, initializers=CONSTANTS)
    report, before, after = both(model)
    assert [(left.what, left.why) for left in report.left] == [(label, "already plain")]
    assert len(report.matches) == 1
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)
    alone = hand_made([*start, *end], opset, initializers=CONSTANTS)
    with pytest.raises(SurgeryError, match="already plain"):
        surgery.replace_(alone)


def test_nodes_in_the_branch_of_an_if_are_replaced():
    info = helper.make_tensor_value_info("out", TensorProto.FLOAT, [4, 50])

    def branch(op):
        nodes = [helper.make_node(op, ["r"], ["out"], name=f"/branch/{op}")]
        return helper.make_graph(nodes, op, [], [info])

    model = hand_made(
        [node("Relu", ["x"], "r"),
         helper.make_node("If", ["yes"], ["y"], name="if",
                          then_branch=branch("HardSwish"), else_branch=branch("HardSigmoid"))],
        17, initializers=[numpy_helper.from_array(np.array(True), "yes")],
    )  # fmt: skip
    report, before, after = both(model)
    assert report.counts == {"hardsigmoid": 1, "hardswish": 1}
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-6)


def test_a_quantized_graph_is_refused():
    scale, zero = constant("s", 0.05), numpy_helper.from_array(np.uint8(128), "z")
    model = hand_made(
        [node("QuantizeLinear", ["x", "s", "z"], "q"),
         node("DequantizeLinear", ["q", "s", "z"], "d"),
         node("HardSwish", ["d"], "y")],
        17, initializers=[scale, zero],
    )  # fmt: skip
    before = model.SerializeToString()
    with pytest.raises(SurgeryError, match="quantized"):
        surgery.replace_(model)
    assert model.SerializeToString() == before


def test_files(tmp_path, graphs):
    source, destination = tmp_path / "a.onnx", tmp_path / "b.onnx"
    source.write_bytes(graphs(17).SerializeToString())
    before = source.read_bytes()
    report = surgery.replace_file(source, destination)
    assert len(report.matches) == 28 and source.read_bytes() == before
    assert not HARD & set(operators(onnx.load(destination)))
    with pytest.raises(SurgeryError, match="matched nothing"):
        surgery.replace_file(destination, tmp_path / "c.onnx")
    with pytest.raises(ModelFileError):
        surgery.replace_file(tmp_path / "absent.onnx", tmp_path / "c.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


# --- nothing is silent ---------------------------------------------------------------------------


def test_nothing_matched_says_what_there_is_instead():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU6(), nn.ReLU6())
    with pytest.raises(SurgeryError, match=r"matched nothing.*2 ReLU6.*pass example_inputs"):
        surgery.replace_(model)
    with pytest.raises(SurgeryError, match=r"matched nothing.*1 Relu"):
        surgery.replace_(hand_made([node("Relu", ["x"], "y")], 17))


def test_names_that_do_not_exist():
    model = nn.Sequential(nn.Hardswish())
    with pytest.raises(UnknownNameError, match="Did you mean hardswish"):
        surgery.replace_(model, "hardswich")
    with pytest.raises(UnknownNameError, match="module"):
        surgery.replace_(model, level="modul")
    with pytest.raises(SurgeryError, match="both replace"):
        surgery.replace_(model, ("hardsigmoid", "hardsigmoid-0.167"))
    with pytest.raises(UsageError, match="replace_file"):
        surgery.replace_("model.onnx")
    with pytest.raises(UsageError, match="No rules"):
        surgery.replace_(model, ())


def _wrong(module):
    return CustomHardsigmoid(0.3)


def test_a_wrong_rule_is_undone_and_raised(small):
    wrong = surgery.RULES["hardsigmoid"].with_layer(_wrong)
    weights, before = small.state_dict(), str(small)
    expected = outputs(small, seeded(*IMAGE))
    with pytest.raises(SurgeryError, match=r"'hardsigmoid' promises.*DIFFERENT.*left as it was"):
        surgery.replace_(small, wrong, example_inputs=seeded(*IMAGE))
    assert str(small) == before
    assert all(a is b or torch.equal(a, b) for a, b in
               zip(weights.values(), small.state_dict().values(), strict=True))  # fmt: skip
    assert torch.equal(outputs(small, seeded(*IMAGE)), expected)


def test_a_wrong_onnx_rule_is_undone_and_raised(graphs):
    form = dataclasses.replace(
        surgery.RULES["hardswish"].onnx[0], build=lambda g, x, node: g.clip(x, 0.0, 6.0)
    )
    wrong = surgery.Rule(name="wrong", exact=True, error="none", source="a mistake", onnx=(form,))
    model = graphs(17)
    before = model.SerializeToString(deterministic=True)
    with pytest.raises(SurgeryError, match=r"'wrong' promises.*DIFFERENT"):
        surgery.replace_(model, wrong)
    assert model.SerializeToString(deterministic=True) == before
    report = surgery.replace_(model, dataclasses.replace(wrong, exact=False))
    assert not report.check.rounding and "DIFFERENT" in str(report)


def test_a_changed_shape_raises_and_leaves_the_model():
    rule = surgery.RULES["hardswish"].with_layer(lambda _: nn.Flatten(0))
    model = nn.Sequential(nn.Hardswish())
    with pytest.raises(SurgeryError, match="shapes"):
        surgery.replace_(model, rule, example_inputs=seeded(2, 3))
    assert isinstance(model[0], nn.Hardswish)


def test_text_html_and_dict_say_the_same(small, read):
    report = surgery.replace_(small, example_inputs=seeded(*IMAGE))
    page = read(report._repr_html_())
    for line in str(report).splitlines():
        assert line.split("  ")[-1].strip() in page
    facts = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert facts["counts"] == {"hardsigmoid": 9, "hardswish": 19} and len(facts["matches"]) == 28
    assert facts["check"]["sqnr_db"] is None, "infinite: the outputs are equal"


def test_every_rule_says_what_a_reader_needs():
    for name, rule in surgery.RULES.items():
        assert rule.name == name and rule.error and rule.source and rule.keeps
        assert rule.exact == (name in surgery.EXACT or name in ONNX_ONLY)
    assert surgery.RULES["hardswish"].ops == {"HardSwish", "HardSigmoid"}


def test_importing_surgery_is_light():
    import subprocess
    import sys

    code = "import sys, labutils.surgery; print({'torch', 'onnx', 'timm'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_a_rule_says_what_it_promises():
    assert str(surgery.RULES["hardswish"]).startswith("hardswish: exact; float32: bit-equal")
    told = str(surgery.RULES["hardswish-to-relu"])
    assert told.startswith("hardswish-to-relu: APPROXIMATE;") and told.endswith("trained again")


def test_preview_refuses_what_replacing_refuses():
    """Only rules that match nothing are counted as zero; every other error is an answer."""
    traced = torch.jit.trace(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish()), torch.ones(1, 3, 4, 4)
    )
    for model in (traced, nn.Hardswish()):
        with pytest.raises(SurgeryError) as replacing:
            surgery.replace_(copy.deepcopy(model), "exact")
        with pytest.raises(SurgeryError) as previewing:
            surgery.preview(model, "exact")
        assert str(previewing.value) == str(replacing.value)
    assert not any(surgery.preview(nn.Sequential(nn.ReLU()), "exact").values())
