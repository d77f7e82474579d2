"""Replacements where a layer or a call works in place, and rules that do not do what they say."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labutils import export, surgery
from labutils.errors import SurgeryError
from labutils.onnxfile.session import Session
from labutils.surgery.layers.in_place import InPlace


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def outputs(model, x):
    with torch.no_grad():
        return model(x.clone())


class ReadAgain(nn.Module):
    """A residual written as ``y = act(x); x + y``, where the activation overwrites x."""

    def __init__(self, act, through=nn.Identity):
        super().__init__()
        self.act, self.through = act, through()

    def forward(self, x):
        return x + self.through(self.act(self.through(x)))


def network(act, through=nn.Identity):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), ReadAgain(act, through), nn.Conv2d(8, 4, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


IMAGE = seeded(2, 3, 16, 16)
EXACT = {"hardswish": nn.Hardswish, "silu": nn.SiLU, "hardsigmoid": nn.Hardsigmoid, "mish": nn.Mish}
LITE = {
    "hardswish-to-relu": nn.Hardswish, "silu-to-relu": nn.SiLU, "mish-to-relu": nn.Mish,
    "relu6-to-relu": nn.ReLU6, "leaky-relu-to-relu": nn.LeakyReLU,
}  # fmt: skip
EVERY = [*EXACT.values(), nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.RReLU]


@pytest.mark.parametrize("inputs", [IMAGE, None], ids=["run", "traced"])
@pytest.mark.parametrize("rule", EXACT)
def test_an_exact_replacement_of_a_layer_in_place_works_in_place(rule, inputs):
    model = network(EXACT[rule](inplace=True))
    expected = outputs(model, IMAGE)
    report = surgery.replace_(model, rule, "module", example_inputs=inputs)
    assert report.counts[rule] == 1
    assert type(model[1].act) is InPlace and report.matches[0].became.endswith(", in place")
    torch.testing.assert_close(outputs(model, IMAGE), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", LITE)
def test_an_approximate_one_changes_the_layer_and_not_what_reads_it(rule):
    model = network(LITE[rule](inplace=True))
    expected = outputs(network(nn.ReLU(inplace=True)), IMAGE)
    surgery.replace_(model, rule, example_inputs=IMAGE)
    assert torch.equal(outputs(model, IMAGE), expected)


@pytest.mark.parametrize("activation", EVERY)
@pytest.mark.parametrize("inputs", [IMAGE, None], ids=["run", "traced"])
def test_a_rule_of_ones_own_is_guarded_too(activation, inputs):
    """The rule replaces any of them by one out of place; what it computes stays."""

    def out_of_place(old):
        made = copy.deepcopy(old)
        made.inplace = False
        return nn.Sequential(made)

    form = surgery.ModuleForm((activation,), build=out_of_place)
    rule = surgery.Rule("mine", exact=True, error="none", source="here", modules=(form,))
    model = network(activation(inplace=True))
    expected = outputs(model, IMAGE)
    surgery.replace_(model, rule, "module", example_inputs=inputs)
    assert type(model[1].act) is InPlace
    assert torch.equal(outputs(model, IMAGE), expected)


@pytest.mark.parametrize("inputs", [IMAGE, None], ids=["run", "traced"])
def test_a_rule_that_only_takes_it_out_of_place_leaves_it(inputs):
    model = network(nn.ReLU(inplace=True))
    model.append(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)))
    expected = outputs(model, IMAGE)
    report = surgery.replace_(model, "relu-out-of-place", example_inputs=inputs)
    assert model[1].act.inplace and not model[-1][1].inplace
    assert [(left.where, left.why) for left in report.left] == [
        ("1.act", "it works in place, and its input is read again")
    ]
    assert torch.equal(outputs(model, IMAGE), expected)


@pytest.mark.parametrize("inputs", [IMAGE, None], ids=["run", "traced"])
def test_what_is_read_through_another_view_is_seen(inputs):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.Hardswish(inplace=True)

        def forward(self, x):
            self.act(x.flatten(1).view(x.shape))
            return x * 2

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Views())
    expected = outputs(model, IMAGE)
    surgery.replace_(model, "hardswish", "module", example_inputs=inputs)
    torch.testing.assert_close(outputs(model, IMAGE), expected, rtol=1e-5, atol=1e-5)


VIEWS = {
    "view": lambda x: x.view(x.shape),
    "reshape": lambda x: torch.reshape(x, (x.shape[0], -1)),
    "transpose": lambda x: x.transpose(1, 2),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "slice": lambda x: x[:, :4],
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: torch.split(x, 4, dim=1)[0],
    "unbind": lambda x: x.unbind(0)[0],
    "detach": lambda x: x.detach(),
    "flatten": lambda x: torch.flatten(x, 1),
    "a flatten layer": lambda x: nn.Flatten()(x),
    "unsqueeze": lambda x: x.unsqueeze(0),
    "squeeze": lambda x: x.squeeze(-1),
    "movedim": lambda x: torch.movedim(x, 1, -1),
    "attribute": lambda x: x.mT,
    "data": lambda x: x.data,
    "the same type": lambda x: x.float(),
    "dropout while evaluated": lambda x: F.dropout(x, 0.5, training=False),
    "view of a view": lambda x: x.flatten(2).transpose(1, 2)[:, 1:],
}


class ViewRead(nn.Module):
    """A view is taken before the activation overwrites its memory, and is read after it."""

    def __init__(self, act, view, of_input):
        super().__init__()
        self.act, self.view, self.of_input = act, view, of_input

    def forward(self, x):
        if self.of_input:
            x = x.view(x.shape)
        seen = self.view(x)
        self.act(x)
        return seen + 1


@pytest.mark.parametrize("of_input", [False, True], ids=["", "both are views"])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_that_is_read_after_the_layer_is_seen(name, of_input):
    act = [*EXACT.values()][len(name) % len(EXACT)](inplace=True)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), ViewRead(act, VIEWS[name], of_input)).eval()
    expected = outputs(model, IMAGE)
    surgery.replace_(model, "exact", "module")
    assert type(model[1].act) is InPlace
    torch.testing.assert_close(outputs(model, IMAGE), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", LITE)
def test_an_approximate_rule_is_guarded_behind_a_view(rule):
    def net(act):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), ViewRead(act, VIEWS["view"], False)).eval()

    model = net(LITE[rule](inplace=True))
    surgery.replace_(model, rule, "module")
    assert torch.equal(outputs(model, IMAGE), outputs(net(nn.ReLU(inplace=True)), IMAGE))


def test_a_model_that_cannot_be_traced_keeps_its_layers_in_place():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.SiLU(inplace=True)

        def forward(self, x):
            seen = x.view(x.shape)
            if x.sum() > 1e9:
                return x
            self.act(x)
            return seen * 2

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Branching()).eval()
    expected = outputs(model, IMAGE)
    surgery.replace_(model, "silu", "module")
    torch.testing.assert_close(outputs(model, IMAGE), expected, rtol=1e-5, atol=1e-5)


def test_a_view_that_is_only_read_before_leaves_a_plain_layer():
    class Before(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.SiLU(inplace=True)

        def forward(self, x):
            y = x.flatten(1) * 2
            return self.act(x).flatten(1) + y

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Before()).eval()
    surgery.replace_(model, "silu", "module")
    assert not isinstance(model[1].act, InPlace)


@pytest.mark.parametrize("inputs", [IMAGE, None], ids=["run", "traced"])
def test_a_plain_chain_gets_plain_layers(inputs):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(inplace=True), nn.SiLU(inplace=True))
    surgery.replace_(model, ("hardswish", "silu"), "module", example_inputs=inputs)
    assert not any(isinstance(module, InPlace) for module in model.modules())


def test_a_layer_in_place_is_trained_and_exported(tmp_path):
    model = network(nn.Hardswish(inplace=True))
    surgery.replace_(model, example_inputs=IMAGE)
    image = IMAGE[:1].clone().requires_grad_()
    model(image).sum().backward()
    assert image.grad.abs().max() > 0
    original = network(nn.Hardswish(inplace=True))
    other = IMAGE[:1].clone().requires_grad_()
    original(other).sum().backward()
    torch.testing.assert_close(image.grad, other.grad, rtol=1e-4, atol=1e-6)
    for exporter, opset in (("torchscript", 17), ("dynamo", 18)):
        file = tmp_path / f"{exporter}.onnx"
        export.to_onnx(model, file, size=16, opset=opset, exporter=exporter)
        session = Session(file)
        found = session.run({session.inputs[0][0]: IMAGE[:1].numpy()})[0]
        np.testing.assert_allclose(found, outputs(model, IMAGE[:1]).numpy(), atol=1e-5)


@pytest.mark.parametrize("rule", ["hardswish", "hardswish-to-relu"])
def test_a_call_in_place_whose_argument_is_read_again_is_refused(rule):
    class Calls(nn.Module):
        def forward(self, x):
            x = x + 1
            y = F.hardswish(x, inplace=True)
            return x + y

    model = Calls()
    with pytest.raises(SurgeryError, match=r"in place.*read again.*test_surgery_in_place\.py"):
        surgery.replace_(model, rule, "function", example_inputs=IMAGE)
    assert "forward" not in vars(model)


# ---------------------------------------------------------------- rules that are wrong


def _half(x, inplace=False):
    return F.relu(x) * 0.5


WRONG = {
    "module": surgery.Rule(
        "wrong", exact=True, error="none", source="a mistake",
        modules=(surgery.ModuleForm((nn.Hardswish,), replacement=nn.Softplus),),
    ),
    "function": surgery.Rule(
        "wrong", exact=True, error="none", source="a mistake",
        functions=(surgery.FunctionForm((F.hardswish,), _half),),
    ),
}  # fmt: skip
WRONG["graph"] = WRONG["function"]


@pytest.mark.parametrize("level", WRONG)
def test_a_wrong_rule_leaves_the_model_as_it_was_bit_for_bit(level):
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 3), nn.Hardswish()

        def forward(self, x):
            return F.hardswish(self.act(self.conv(x)))

    torch.manual_seed(0)
    model = Calls().train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before, kept, layers = outputs(model, IMAGE), set(vars(model)), list(model.modules())
    with pytest.raises(SurgeryError, match=r"'wrong' promises.*DIFFERENT.*left as it was"):
        surgery.replace_(model, WRONG[level], level, example_inputs=IMAGE)
    assert list(model.modules()) == layers and set(vars(model)) == kept and model.training
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert torch.equal(outputs(model, IMAGE), before)


def test_a_wrong_rule_leaves_an_exported_program_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish())
    program = torch.export.export(model, (IMAGE,))
    code, before = program.graph_module.code, outputs(program.module(), IMAGE)
    with pytest.raises(SurgeryError, match="'wrong' promises"):
        surgery.replace_(program, WRONG["graph"], example_inputs=IMAGE)
    assert program.graph_module.code == code
    assert torch.equal(outputs(program.module(), IMAGE), before)


def test_two_rules_are_to_be_tried_one_by_one():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.SiLU())
    with pytest.raises(SurgeryError, match=r"'wrong', 'silu' promise .* one by one"):
        surgery.replace_(model, (WRONG["module"], "silu"), "module", example_inputs=IMAGE)
