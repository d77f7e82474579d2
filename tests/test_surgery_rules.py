"""How a rule is written: its forms, what a check answers, what is refused and with which words."""

import doctest
import importlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import nn

from labutils import surgery
from labutils.errors import SurgeryError, UsageError
from labutils.surgery.naming import resolve


def layers():
    return nn.Sequential(nn.GELU(), nn.GELU("tanh"), nn.SiLU())


def rule(**fields):
    return surgery.Rule(name="mine", exact=False, error="unknown", source="a test", **fields)


def one_gelu(opset=20):
    made = helper.make_graph(
        [helper.make_node("Gelu", ["x"], ["y"], "/act/Gelu")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4))],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def named(form):
    """Everything of a form that a string may name, but classes, which are matched by name."""
    for name, value in vars(form).items():
        if name in ("replacement", "build", "recognizes", "check", "pattern"):
            yield value
    yield from getattr(form, "functions", ())


@pytest.mark.parametrize("name", surgery.RULES)
def test_what_the_book_names_by_strings_exists(name):
    chosen = surgery.RULES[name]
    for form in (*chosen.modules, *chosen.functions, *chosen.graph):
        assert all(callable(resolve(value)) for value in named(form) if value is not None)


@pytest.mark.parametrize(
    "module",
    ["surgery.rules", "surgery.forms", "surgery.naming", "surgery.replacing"],
)
def test_the_examples_run(module):
    result = doctest.testmod(importlib.import_module(f"labutils.{module}"))
    assert result.attempted and not result.failed


# --- answers of checks


def leave_tanh(site):
    return surgery.Leave("tanh") if site.module.approximate == "tanh" else None


def not_tanh(site):
    return surgery.NOT_MINE if site.module.approximate == "tanh" else None


def test_what_a_check_leaves_is_reported_with_its_reason():
    form = surgery.ModuleForm((nn.GELU,), nn.ReLU, check=leave_tanh)
    report = surgery.replace_(layers(), rule(modules=(form,)))
    assert [(left.where, left.why) for left in report.left] == [("1", "tanh")]
    assert [match.where for match in report.matches] == ["0"]


def test_what_a_rule_is_not_meant_for_is_left_out_of_the_report():
    form = surgery.ModuleForm((nn.GELU,), nn.ReLU, check=not_tanh)
    model = layers()
    report = surgery.replace_(model, rule(modules=(form,)))
    assert not report.left and type(model[1]) is nn.GELU


class Calls(nn.Module):
    def forward(self, x):
        return F.gelu(x) * torch.sigmoid(x)


TEXT = {
    "module": lambda: (
        rule(modules=(surgery.ModuleForm((nn.GELU,), nn.ReLU, check=lambda site: "no"),)),
        layers(),
        torch.zeros(1, 4),
    ),
    "function": lambda: (
        rule(functions=(surgery.FunctionForm((F.gelu,), F.relu, lambda *_, **__: "no"),)),
        Calls(),
        torch.zeros(1, 4),
    ),
    "graph": lambda: (
        rule(
            graph=(
                surgery.GraphForm(
                    "x * sigmoid(y)",
                    lambda x, y: x * torch.sigmoid(y),
                    torch.mul,
                    check=lambda found: "",
                ),
            )
        ),
        Calls(),
        torch.zeros(1, 4),
    ),
    "onnx": lambda: (
        rule(
            onnx=(surgery.OnnxForm.of_node("Gelu", lambda g, x, n: x, lambda node, active: "no"),)
        ),
        one_gelu(),
        None,
    ),
}


@pytest.mark.parametrize("level", TEXT)
def test_a_check_that_answers_text_is_refused_with_what_to_return(level):
    chosen, model, inputs = TEXT[level]()
    with pytest.raises(UsageError, match=r"Return surgery\.Leave\(reason\).*None to replace"):
        surgery.replace_(model, chosen, level, inputs)


# --- rules that cannot be meant


@pytest.mark.parametrize(
    "field, advice",
    [
        ("module", r"modules=\(surgery\.ModuleForm\(\(nn\.GELU,\), build=make_layer\)"),
        ("recognizes", r"surgery\.ModuleForm\(recognizes=is_mine"),
        ("module_check", r"surgery\.ModuleForm\(.*check=check\)"),
        ("function", r"functions=\(surgery\.FunctionForm\(\(F\.gelu,\), my_gelu\)"),
        ("function_check", r"surgery\.FunctionForm\(.*check=check\)"),
        ("onnx_pass", r"onnx_passes=\(surgery\.OnnxPass\(rewrite_graph, ops\)"),
        ("onnx_ops", r"onnx_passes=\(surgery\.OnnxPass\(rewrite_graph, ops\)"),
    ],
)
def test_a_rule_with_the_fields_of_an_earlier_version_says_what_to_write(field, advice):
    with pytest.raises(UsageError, match=f"no field '{field}' any more. Write .*{advice}"):
        rule(**{field: nn.ReLU})


@pytest.mark.parametrize(
    "field, given",
    [
        ("modules", (nn.GELU,)),  # as it was written once
        ("functions", (F.gelu,)),
        ("modules", surgery.ModuleForm((nn.GELU,), nn.ReLU)),  # the comma of a tuple of one
        ("graph", (surgery.ModuleForm((nn.GELU,), nn.ReLU),)),
    ],
)
def test_another_thing_in_the_place_of_a_form_is_refused(field, given):
    with pytest.raises(UsageError, match=rf"{field}= of the rule 'mine' takes a tuple of surgery"):
        rule(**{field: given})


def test_a_form_says_either_what_or_how():
    for form in (surgery.ModuleForm, lambda *a, **k: surgery.GraphForm("x", F.gelu, *a, **k)):
        with pytest.raises(UsageError, match="either replacement= or build="):
            form()
        with pytest.raises(UsageError, match="either replacement= or build="):
            form(replacement=nn.ReLU, build=lambda old: nn.ReLU())


def test_a_name_that_nothing_has_is_an_error_of_the_rule():
    wrong = rule(modules=(surgery.ModuleForm((nn.GELU,), "torch.nn.NoSuchLayer"),))
    model = layers()
    with pytest.raises(UsageError, match=r"'torch\.nn\.NoSuchLayer', and it cannot be imported"):
        surgery.replace_(model, wrong)
    assert type(model[0]) is nn.GELU


# --- another layer for a rule of the book


class Mine(nn.Module):
    def forward(self, x):
        return x.relu()


@pytest.mark.parametrize("layer", [Mine, lambda old: Mine()], ids=["class", "function"])
def test_a_rule_of_the_book_takes_another_layer(layer):
    chosen = surgery.RULES["gelu"].with_layer(layer, error="measured below")
    model = layers()
    report = surgery.replace_(model, chosen, level="module")
    assert type(model[0]) is type(model[1]) is Mine and "measured below" in str(report)
    assert surgery.RULES["gelu"].with_layer(Mine).error == surgery.RULES["gelu"].error


# --- who did surgery


def test_reports_are_collected_at_every_level():
    x = torch.zeros(1, 4)
    with surgery.collect_reports() as outer:
        surgery.replace_(layers(), "gelu")
        with surgery.collect_reports() as inner:
            surgery.replace_(Calls(), "gelu", "function", x)
            surgery.replace_(one_gelu(), "gelu", example_inputs=np.zeros((1, 4), np.float32))
        with pytest.raises(SurgeryError):
            surgery.replace_(nn.Sequential(nn.ReLU()), "gelu")
    surgery.replace_(layers(), "gelu")
    assert [report.level for report in outer] == ["module", "function", "onnx"]
    assert inner == outer[1:]


# --- functions whose arguments come in another order


def test_instance_norm_of_aten_takes_its_weight_second():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)  # holds a weight and a bias

        def forward(self, x):
            w, b = self.norm.weight, self.norm.bias
            return torch.instance_norm(x, w, b, None, None, True, 0.1, 1e-3, False)

    model, x = Net().eval(), torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
        model.norm.bias.copy_(torch.tensor([1.0, 0.0, 3.0]))
        expected = model(x)
        report = surgery.replace_(model, "instance-norm", example_inputs=x)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert len(report.matches) == 1 and report.check.rounding and report.check.peak > 3


# --- what an ONNX file costs


def test_large_pools_of_a_file_are_replaced_without_torch(tmp_path):
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("MaxPool", ["x"], ["y"], "/p", kernel_shape=[5, 5])], "g",
        [value("x", 1, (1, 2, 9, 9))], [value("y", 1, None)],
    )  # fmt: skip
    file = tmp_path / "pool.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]), file)
    code = (
        "import sys; from labutils import surgery; "
        f"surgery.preview({str(file)!r}, 'large-maxpool')['large-maxpool'] == 1 or sys.exit(1); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_strict_export_follows_a_check():
    class Pools(nn.Module):
        def forward(self, x):
            return F.avg_pool2d(F.avg_pool2d(x, 5, 1), 5, ceil_mode=True)

    model, x = Pools(), torch.ones(1, 3, 20, 20)
    surgery.replace_(model, "large-avgpool", example_inputs=x)
    program = torch.export.export(model, (x,), strict=True)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.full.default", "aten.conv2d.default", "aten.avg_pool2d.default"]
