"""What the anchor, TI's model-optimization toolkit, gets wrong: one test per fault, by its name."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labutils import _torchvision, surgery
from labutils.errors import SurgeryError, UsageError

_torchvision.load()  # timm imports torchvision


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def outputs(model, x):
    with torch.no_grad():
        return model(x)


def kinds(model, *classes):
    return [name for name, module in model.named_modules() if isinstance(module, classes)]


# --- attributes ----------------------------------------------------------------------------------


def test_dropout_keeps_its_probability(large):
    large.classifier[2].p = 0.37
    report = surgery.replace_(large, "lite")
    assert report.counts["dropout-out-of-place"] == 1
    assert (large.classifier[2].p, large.classifier[2].inplace) == (0.37, False)


def test_a_class_for_a_class_keeps_slope_inplace_and_probability():
    model = nn.Sequential(nn.LeakyReLU(0.3, inplace=True), nn.Dropout(0.1), nn.RReLU(inplace=True))
    surgery.replace_(model, {nn.LeakyReLU: nn.LeakyReLU, nn.Dropout: nn.Dropout2d})
    assert (model[0].negative_slope, model[0].inplace) == (0.3, True)
    assert type(model[1]) is nn.Dropout2d and model[1].p == 0.1


def test_a_class_for_a_class_keeps_groups_bias_and_weights():
    class Other(nn.Conv2d):
        pass

    model = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, groups=2, bias=False), nn.Conv2d(8, 2, 1))
    x = seeded(1, 4, 9, 9)
    expected = outputs(model, x)
    surgery.replace_(model, {nn.Conv2d: Other})
    assert type(model[0]) is Other and model[0].groups == 2 and model[0].bias is None
    assert torch.equal(outputs(model, x), expected)


def test_conv6_keeps_groups_bias_dilation_and_its_weights():
    for stride, padding, size in ((2, 2, 32), (1, 0, 17), (1, 3, 17), (2, 0, 32), (3, 1, 20)):
        conv = nn.Conv2d(4, 8, 6, stride, padding, dilation=1, groups=2)
        conv.weight.requires_grad_(False)
        model, x = nn.Sequential(conv), seeded(2, 4, size, size)
        shape = outputs(model, x).shape
        report = surgery.replace_(model, "conv6-to-conv5", example_inputs=x)
        new = model[0]
        assert new.kernel_size == (5, 5) and new.groups == 2 and new.bias is conv.bias
        assert torch.equal(new.weight, conv.weight[..., :5, :5]) and not new.weight.requires_grad
        assert outputs(model, x).shape == shape and not report.exact
    wide = nn.Sequential(nn.Conv2d(4, 4, 6, 2, 5, dilation=2))
    surgery.replace_(wide, "conv6-to-conv5", example_inputs=seeded(1, 4, 30, 30))
    assert wide[0].dilation == (2, 2)


def test_dtype_train_state_and_frozen_weights_are_kept():
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(6)).double().eval()
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    surgery.replace_(model, ["groupnorm-to-batchnorm", "layernorm-to-batchnorm"])
    assert model[0].weight.dtype == torch.float64 and not model[0].training
    assert not model[0].weight.requires_grad and model[1].weight.requires_grad
    assert model[0].running_mean.dtype == torch.float64


def test_user_attributes_and_the_class_are_kept():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.names = nn.Hardswish(), ["cat", "dog"]

        def forward(self, x):
            return self.act(x) * F.relu6(x + 3) / 6 * x

        def top(self, x):
            return self.names[int(self(x).argmax())]

    model = Net()
    surgery.replace_(model, "lite", example_inputs=seeded(2))
    assert type(model) is Net and model.names == ["cat", "dog"] and model.top(seeded(2))


def test_an_aliased_module_is_replaced_under_both_names():
    act = nn.SiLU()
    model = nn.Sequential()
    model.first, model.second = nn.Sequential(act), nn.Sequential(act)
    report = surgery.replace_(model, "lite")
    assert model.first[0] is model.second[0] and type(model.first[0]) is nn.ReLU
    assert len(report.matches) == 2


# --- what a rule set means -----------------------------------------------------------------------


def test_a_plain_dict_works():
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.GELU())
    report = surgery.replace_(model, {nn.GELU: nn.ReLU}, example_inputs=seeded(2, 4))
    assert kinds(model, nn.ReLU) == ["1", "2"] and len(report.matches) == 2
    assert "GELU" in str(report)


def test_an_empty_dict_is_not_the_defaults():
    with pytest.raises(UsageError, match="No rules"):
        surgery.replace_(nn.Sequential(nn.Hardswish()), {})


def test_a_misspelt_set_or_rule_raises_with_the_nearest():
    for wrong, right in (("lit", "lite"), ("gelu-to-rela", "gelu-to-relu"), ("exakt", "exact")):
        with pytest.raises(UsageError, match=f"Did you mean .*{right}"):
            surgery.replace_(nn.Sequential(nn.GELU()), wrong)


def test_a_set_that_matches_nothing_raises():
    with pytest.raises(SurgeryError, match=r"matched nothing.*1 Linear"):
        surgery.replace_(nn.Sequential(nn.Linear(2, 2)), "lite", example_inputs=seeded(1, 2))


@pytest.mark.parametrize(
    "rules",
    [
        {nn.SiLU: lambda old: nn.ReLU(inplace=old.inplace)},
        {nn.SiLU: nn.ReLU(inplace=True)},
        {"torch.nn.modules.activation.SiLU": nn.ReLU},
        {lambda module: isinstance(module, nn.SiLU): nn.ReLU},
        {nn.SiLU: [nn.LeakyReLU, {"negative_slope": 0.0}, "inplace"]},
    ],
    ids=["factory", "instance", "name", "predicate", "constructor, keywords, attribute"],
)
def test_every_form_of_a_users_rule(rules):
    model = nn.Sequential(nn.SiLU(inplace=True), nn.Tanh())
    surgery.replace_(model, rules)
    assert type(model[0]) in (nn.ReLU, nn.LeakyReLU) and model[0].inplace
    assert type(model[1]) is nn.Tanh


def test_a_users_rule_that_is_none_says_what_one_is():
    for wrong in ({3: nn.ReLU}, {nn.ReLU: 3}, {F.gelu: nn.ReLU}):
        with pytest.raises(UsageError, match=r"function|class"):
            surgery.replace_(nn.Sequential(nn.ReLU()), wrong)
    with pytest.raises(SurgeryError, match=r"another nn\.Module"):
        surgery.replace_(nn.Sequential(nn.ReLU()), {nn.ReLU: lambda old: old})


def test_places_by_globs():
    def net():
        return nn.Sequential(nn.Sequential(nn.GELU(), nn.GELU()), nn.Sequential(nn.GELU()))

    model = net()
    report = surgery.replace_(model, surgery.RULES["gelu-to-relu"].only("0.*").without("0.1"))
    assert kinds(model, nn.ReLU) == ["0.0"]
    assert {left.where for left in report.left} == {"0.1", "1.0"}
    with pytest.raises(SurgeryError, match="not among"):
        surgery.replace_(net(), surgery.RULES["gelu-to-relu"].only("head.*"))


def test_places_by_globs_for_functions_and_their_children():
    class Block(nn.Module):
        def forward(self, x):
            return F.gelu(x)

    model = nn.Sequential(Block(), Block(), nn.Sequential(Block()))
    x = seeded(50)
    report = surgery.replace_(model, surgery.RULES["gelu-to-relu"].without("1"), example_inputs=x)
    assert len(report.matches) == 2 and [left.where[0] for left in report.left] == ["1"]
    relu = torch.relu(x)
    assert torch.equal(outputs(model, x), torch.relu(F.gelu(relu)))
    only = nn.Sequential(Block(), Block(), nn.Sequential(Block()))
    surgery.replace_(only, surgery.RULES["gelu-to-relu"].only("0"), example_inputs=x)
    assert torch.equal(outputs(only, x), F.gelu(F.gelu(relu)))
    program = torch.export.export(model, (x,), strict=True)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names == ["aten.relu.default", "aten.gelu.default", "aten.relu.default"]


# --- squeeze-excitation and gates ----------------------------------------------------------------


def se_models():
    import timm
    import torchvision

    small = {"num_classes": 4}
    return {
        "tv mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(**small), 9),
        "tv efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(**small), 16),
        "timm mobilenetv3_small_050": (lambda: timm.create_model("mobilenetv3_small_050"), 9),
        "timm ghostnet_050": (lambda: timm.create_model("ghostnet_050"), 7),
        "timm regnety_002": (lambda: timm.create_model("regnety_002"), 13),
        "timm ese_vovnet19b_slim_dw": (lambda: timm.create_model("ese_vovnet19b_slim_dw"), 4),
    }


@pytest.mark.parametrize("name", ["timm mobilenetv3_small_050", "timm ghostnet_050",
                                  "timm ese_vovnet19b_slim_dw", "tv mobilenet_v3_small",
])  # fmt: skip
def test_squeeze_excitation_is_recognized_in_timm_and_torchvision(name):
    make, blocks = se_models()[name]
    model = make().eval()
    report = surgery.replace_(model, "lite", example_inputs=seeded(1, 3, 64, 64))
    assert report.counts["se-to-identity"] == blocks
    assert report.parameters[1] < report.parameters[0] and report.macs[1] < report.macs[0]


@pytest.mark.parametrize("ran", [True, False], ids=["with inputs", "without"])
@pytest.mark.parametrize("name", ["timm mobilenetv3_small_050", "timm ghostnet_050",
                                  "tv mobilenet_v3_small"])  # fmt: skip
def test_the_gate_of_a_squeeze_excitation_is_never_made_a_relu(name, ran):
    make, blocks = se_models()[name]
    model = make().eval()
    gates = kinds(model, nn.Hardsigmoid)
    assert len(gates) == blocks
    rules = [r for r in surgery.LITE if r != "se-to-identity"]
    report = surgery.replace_(model, rules, example_inputs=seeded(1, 3, 64, 64) if ran else None)
    assert kinds(model, nn.Hardsigmoid) == gates
    assert sum("gate" in left.why for left in report.left) == blocks


def test_a_functional_gate_is_left_and_other_calls_are_not():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.squeeze = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = F.hardsigmoid(self.squeeze(x.mean((2, 3), keepdim=True)), inplace=True)
            return x * y.expand_as(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.se, self.conv = Block(), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return F.hardsigmoid(self.conv(self.se(x)))

    model, x = Net().eval(), seeded(1, 4, 5, 5)
    expected = model.se(x).detach()
    report = surgery.replace_(model, "hardsigmoid-to-relu", example_inputs=x)
    assert len(report.matches) == 1 and "gate" in report.left[0].why
    assert torch.equal(model.se(x), expected), "the block itself is as it was"
    assert outputs(model, x).max() > 1 or outputs(model, 99 * x).max() > 1, "no longer bounded"


def test_relu6_inside_a_decomposed_hardswish_is_left():
    class HSwish(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU6()

        def forward(self, x):
            return x * self.relu(x + 3) / 6

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU6(), HSwish())
    report = surgery.replace_(model, "relu6-to-relu", example_inputs=seeded(2, 4))
    assert kinds(model, nn.ReLU6) == ["2.relu"] and "gate" in report.left[0].why


def test_an_activation_that_a_gate_scales_is_no_gate():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.fc = nn.ReLU6(), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.act(x)
            return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))

    report = surgery.replace_(Net(), "relu6-to-relu", example_inputs=seeded(1, 4, 6, 6))
    assert len(report.matches) == 1 and not report.left


def test_what_only_resembles_a_squeeze_excitation_stays():
    class Scale(nn.Module):
        """Normalizes too."""

        def __init__(self):
            super().__init__()
            self.bn, self.fc = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.bn(x)
            return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))

    class Spatial(nn.Module):
        """A factor per pixel, not per channel."""

        def __init__(self):
            super().__init__()
            self.fc = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return x * torch.sigmoid(self.fc(x))

    model = nn.Sequential(Scale(), Spatial(), nn.SiLU()).eval()
    report = surgery.replace_(model, ["se-to-identity", "silu-to-relu"])
    assert report.counts == {"se-to-identity": 0, "silu-to-relu": 1}


# --- order, functionals, training ----------------------------------------------------------------


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_convnext_block_goes_before_its_gelu(library):
    import timm
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    if library == "timm":
        model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32),
                                  drop_path_rate=0.1, num_classes=4)  # fmt: skip
    else:
        model = ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], 0.1, num_classes=4)
    x = seeded(2, 3, 64, 64)
    report = surgery.replace_(model, ["gelu-to-relu", "convnext-block"], example_inputs=x)
    assert report.counts["convnext-block"] == (4 if library == "timm" else 2)
    assert report.counts["gelu-to-relu"] == 0
    drops = [type(m).__name__ for m in model.modules()]
    assert "DropPath" in drops or "StochasticDepth" in drops, "stochastic depth is kept"


def test_functional_activations_are_replaced():
    class Net(nn.Module):
        def forward(self, x):
            x = F.gelu(F.silu(F.hardswish(x)))
            x = F.leaky_relu(F.relu6(x), 0.2, inplace=True)
            return x if x.sum() > 0 else -x  # cannot be traced

    x = seeded(40)
    report = surgery.replace_(Net(), "lite", example_inputs=x)
    done = {name: n for name, n in report.counts.items() if n}
    assert done == {"hardswish-to-relu": 1, "gelu-to-relu": 1, "silu-to-relu": 1,
                    "relu6-to-relu": 1, "leaky-relu-to-relu": 1}  # fmt: skip


def test_timms_batchnormact_still_trains(monkeypatch):
    import timm

    model = timm.create_model("mobilenetv3_small_050", num_classes=4, drop_rate=0.5)
    surgery.replace_(model, "lite", example_inputs=seeded(2, 3, 64, 64))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    model.train()(seeded(2, 3, 64, 64))
    moved = sum(not torch.equal(n.running_mean, b) for n, b in zip(norms, before, strict=True))
    assert moved == len(norms) > 30
    assert not torch.equal(model(seeded(2, 3, 64, 64)), model(seeded(2, 3, 64, 64))), "dropout"


def test_dropout_and_batchnorm_in_a_traced_forward_still_train():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.p = nn.BatchNorm2d(3), 0.5

        def forward(self, x):
            x = self.bn(x)
            x = x * F.relu6(x + 3) / 6
            return F.dropout(x, self.p, self.training)

    model, x = nn.Sequential(Block()).eval(), seeded(2, 3, 8, 8)
    report = surgery.replace_(model, "hardswish-to-relu", example_inputs=x)
    assert report.level == "graph" and (outputs(model, x) >= 0).all()
    assert (outputs(model, x) == 0).float().mean() < 0.7
    before = model[0].bn.running_mean.clone()
    dropped = (model.train()(x) == 0).float().mean()
    assert dropped > 0.65 and not torch.equal(model[0].bn.running_mean, before)


def test_interleaved_branches_are_all_matched():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.na, self.nb = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            a, b = self.na(a), self.nb(b)
            return F.silu(a) + F.silu(b)

    class ConvNormSilu(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

        def forward(self, x):
            return F.silu(self.norm(self.conv(x)))

    rule = surgery.pattern_rule(ConvNormSilu(), torch.relu, name="drop the block")
    report = surgery.replace_(Two().eval(), rule, example_inputs=None, level="graph")
    assert report.counts == {"drop the block": 2}


def test_neighbours_in_the_list_that_are_not_connected_do_not_match():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.conv(x), self.norm(x)

    class ConvNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

        def forward(self, x):
            return self.norm(self.conv(x))

    rule = surgery.pattern_rule(ConvNorm(), torch.relu, name="conv and norm")
    with pytest.raises(SurgeryError, match="matched nothing"):
        surgery.replace_(Apart().eval(), rule, level="graph")


# --- pools and kernels ---------------------------------------------------------------------------


def test_a_pool_that_no_chain_equals_is_left_with_the_reason():
    model = nn.Sequential(
        nn.MaxPool2d(5, 1, 2), nn.MaxPool2d(5, ceil_mode=True), nn.MaxPool2d(5, dilation=2),
        nn.AvgPool2d(5, 1, 2, count_include_pad=False), nn.MaxPool2d(3, 2, 1),
    )  # fmt: skip
    report = surgery.replace_(model, ["large-maxpool", "large-avgpool"])
    assert [match.where for match in report.matches] == ["0"]
    assert {left.where for left in report.left} == {"1", "2", "3"}, "3x3 is none of its business"


def test_an_average_pool_is_no_chain_of_averages():
    model, x = nn.Sequential(nn.AvgPool2d(5, 2, 1)), seeded(2, 3, 21, 20)
    report = surgery.replace_(model, "lite", example_inputs=x)
    assert report.check.rounding and not kinds(model, nn.AvgPool2d)


def test_an_even_kernel_is_promoted_with_zeros():
    model, x = nn.Sequential(nn.Conv2d(3, 4, (4, 5), 2, 1)), seeded(2, 3, 21, 20)
    report = surgery.replace_(model, "even-kernel", example_inputs=x)
    assert model[0].kernel_size == (5, 5) and report.check.rounding
    assert not model[0].weight[:, :, 0].any() and model[0].weight[:, :, 1:].all()


def test_a_large_kernel_gives_the_same_stack_every_time():
    x = seeded(1, 16, 24, 24)
    models = [nn.Sequential(nn.Conv2d(16, 16, 13, 1, 6, groups=16)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        report = surgery.replace_(model, "large-kernel-to-stack", example_inputs=x)
        assert [m.kernel_size[0] for m in model.modules() if isinstance(m, nn.Conv2d)] == [
            3, 3, 3, 7,
        ]  # fmt: skip
        assert report.macs[1] < report.macs[0]
    assert torch.equal(outputs(models[0], x), outputs(models[1], x))


def test_upsampling_to_a_size_is_handled_bilinear_and_nearest():
    for mode in ("nearest", "bilinear", "bicubic"):
        model, x = nn.Sequential(nn.Upsample((24, 30), mode=mode)), seeded(1, 3, 12, 10)
        report = surgery.replace_(model, "lite", example_inputs=x)
        assert report.check.rounding and report.counts["resize-to-scale"] == 1


def test_more_replacements_than_dynamos_recompile_limit():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.SiLU()) for _ in range(60)))
    report = surgery.replace_(model, "lite", level="module")
    assert report.counts["silu-to-relu"] == 60


def test_the_original_is_not_kept_inside_and_no_weight_counts_twice(large):
    parameters = sum(p.numel() for p in large.parameters())
    report = surgery.replace_(large, example_inputs=seeded(1, 3, 64, 64))
    assert sum(p.numel() for p in large.parameters()) == parameters == report.parameters[1]


def test_an_untraceable_part_does_not_stop_the_rest():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.SiLU()

        def forward(self, x):
            return self.act(x) if x.mean() > 0 else x

    class Parts(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    model, x = nn.Sequential(Branches(), Parts()), seeded(8).abs()
    report = surgery.replace_(model, "silu-to-relu", example_inputs=x)
    assert report.level == "module+graph" and len(report.matches) == 2
    assert torch.equal(outputs(model, x), x)


def test_an_error_leaves_the_model_as_it_was():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return torch.sigmoid(self.fc(x)) * x + F.gelu(x)

    def wrong(x):
        return F.gelu(x)[..., :2]

    model, x = nn.Sequential(Block(), nn.SiLU()), seeded(2, 4)
    before, names = outputs(copy.deepcopy(model), x), list(model.state_dict())
    shrink = surgery.pattern_rule(lambda x: F.gelu(x), lambda x: torch.cat([x, x]), name="grow")
    with pytest.raises((SurgeryError, RuntimeError)):
        surgery.replace_(model, [shrink, "silu-to-relu"], example_inputs=x)
    assert torch.equal(outputs(model, x), before) and list(model.state_dict()) == names
    assert type(model[1]) is nn.SiLU
