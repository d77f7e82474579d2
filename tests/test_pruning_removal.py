"""Pruning: masks that train, removal that is compared, and real networks."""

import copy

import pruned_networks as nets
import pytest
import torch
from pruned_networks import SIDE, close, inputs, made, planned
from torch import nn

from labutils import _torchvision, prune, surgery
from labutils.errors import PruningError, UnknownNameError, UsageError
from labutils.images.data import Preprocessing
from labutils.models import architectures, random_weights, zoo
from labutils.prune import masks
from labutils.prune import removal as removing

# ------------------------------------------------------------ masks


def test_masks_are_in_the_state_dict_and_in_a_copy():
    network = made(nets.Mobile)
    prune.apply_masks_(network, planned(network))
    expected = network(inputs())
    copied = copy.deepcopy(network)
    assert torch.equal(copied(inputs()), expected)
    prune.remove_(copied)  # what is done to a copy leaves the original as it is
    assert torch.equal(network(inputs()), expected) and close(copied(inputs()), expected)
    assert not masks.masks_of(copied) and type(copied.stem[0]) is nn.Conv2d
    other = made(nets.Mobile)
    with torch.no_grad():
        other.stem[0].weight.copy_(torch.randn_like(other.stem[0].weight))
    prune.apply_masks_(other, planned(other))  # other channels
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(inputs()), expected)
    assert prune.removed(other, size=SIDE).widths == prune.removed(network, size=SIDE).widths


def test_taking_masks_off_returns_the_weights_or_their_zeros():
    network = made(nets.Mobile)
    before = copy.deepcopy(network.state_dict())
    prune.apply_masks_(network, planned(network))
    assert prune.remove_(copy.deepcopy(network)) == len(masks.masks_of(network))
    prune.remove_(network, zeros=False)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_an_optimizer_from_before_trains_what_lies_below():
    network = made(nets.Mobile)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    prune.apply_masks_(network, planned(network))
    network.train()(inputs()).square().sum().backward()
    before = masks.weights_of(network)["stem.0.weight"].clone()
    keep = masks.masks_of(network)["stem.0.weight"].keep.bool()
    optimizer.step()
    after = masks.weights_of(network)["stem.0.weight"]
    assert torch.equal(after[~keep], before[~keep]) and not torch.equal(after[keep], before[keep])


def test_masks_are_exported():
    network = made(nets.Mobile)
    prune.apply_masks_(network, planned(network))
    program = torch.export.export(network, (inputs(),)).module()
    assert close(program(inputs()), network(inputs()))
    smaller = prune.removed(network, size=SIDE).network
    program = torch.export.export(smaller, (inputs(),)).module()
    assert close(program(inputs()), network(inputs()))


def test_masks_of_another_network_are_refused():
    network = made(nets.Mobile)
    plan = planned(network)
    with pytest.raises(UsageError, match=r"has the shape .* Plan again"):
        prune.set_masks_(made(nets.Mobile, width=24), plan.masks(network))
    with pytest.raises(UnknownNameError, match="parameter"):
        prune.apply_masks_(made(nets.Grouped), plan)
    with pytest.raises(UsageError, match="strength"):
        prune.set_masks_(network, plan.masks(network), strength=2)


# ------------------------------------------------------------ removal


def test_removal_asks_for_hard_masks():
    network = made(nets.Mobile)
    with pytest.raises(UsageError, match="apply_masks_"):
        prune.removed(network, size=SIDE)
    plan = planned(network)
    prune.set_masks_(network, plan.masks(network), strength=0.5)
    with pytest.raises(PruningError, match="soft"):
        prune.removed(network, size=SIDE)


def test_removal_refuses_a_network_that_computes_something_else(monkeypatch):
    network = made(nets.Mobile)
    prune.apply_masks_(network, planned(network))
    real_cut = removing.cut_

    def wrong(network, example, removed):
        real_cut(network, example, {root: [c - 1 for c in removed[root]] for root in removed})

    monkeypatch.setattr(removing, "cut_", wrong)
    network.stem[1].bias.data += 1
    with pytest.raises(PruningError, match=r"departs|verified|does not run"):
        prune.removed(network, size=SIDE)


def test_removal_keeps_modes_gradients_and_types():
    network = made(nets.Mobile).train()
    network.stem[1].eval()
    network.head_only = "kept"
    network.expand[0].weight.requires_grad_(False)
    prune.apply_masks_(network, planned(network))
    smaller = prune.removed(network, size=SIDE).network
    assert smaller.training and not smaller.stem[1].training
    assert not smaller.expand[0].weight.requires_grad and smaller.project.weight.requires_grad
    assert smaller.head_only == "kept" and smaller.stem[0].weight.dtype == torch.float32
    assert smaller.depthwise[0].groups == smaller.depthwise[0].weight.shape[0]


def test_removal_of_a_network_whose_outputs_have_faded():
    """Statistics never measured: the logits are all but 0, and would hide any difference."""
    torch.manual_seed(0)
    network = nets.Mobile().eval()
    with torch.no_grad():
        network.classifier[3].weight.mul_(1e-6)
        network.classifier[3].bias.zero_()
    prune.apply_masks_(network, planned(network))
    assert network(inputs()).abs().max() < 1e-3
    removal = prune.removed(network, size=SIDE)
    assert removal.departure < 1e-8 and not removal.own_weights
    assert "seeded weights" in str(removal)


def test_a_network_that_gives_one_answer_is_compared_with_seeded_weights():
    network = made(nets.Mobile)
    with torch.no_grad():
        network.classifier[3].weight.mul_(1e-9)
        network.classifier[3].bias.fill_(2.0)
    prune.apply_masks_(network, planned(network))
    removal = prune.removed(network, size=SIDE)
    assert removal.departure < 1e-8 and not removal.own_weights


def test_a_network_without_finite_outputs_cannot_be_verified():
    network = made(nets.Mobile)
    prune.apply_masks_(network, planned(network))
    with torch.no_grad():
        network.classifier[3].bias.fill_(torch.nan)
    with pytest.raises(PruningError, match="cannot be verified"):
        prune.removed(network, size=SIDE)


@pytest.mark.parametrize("kind", (torch.float64, torch.float16, torch.bfloat16), ids=str)
def test_networks_of_any_precision_are_pruned(kind):
    for method in ("channels", "2:4", "unstructured"):
        network = made(nets.Mobile).to(kind)
        plan = planned(network, method)
        prune.Schedule(network, plan, steps=4)
        prune.apply_masks_(network, plan)
        removal = prune.removed(network, size=SIDE)
        assert removal.departure < 1e-8
        assert removal.network.stem[0].weight.dtype is kind
    network, images = made(nets.Mobile).to(kind), inputs(8).numpy()
    for criterion in (*prune.CRITERIA, prune.taylor(network, images)):
        planned(network, criterion=criterion)
    assert prune.sensitivity(network, images, ratios=(0.5,)).n == 8
    prune.reestimate_(network, [images])


def test_channels_that_are_masked_and_cannot_go_are_an_error():
    """Masks that were set by hand, in a network whose channels are refused."""
    network = made(nets.Tied)
    keep = torch.ones(16, dtype=torch.uint8)
    keep[:4] = 0
    filters = keep[:, None, None, None].expand_as(network.first.weight)
    prune.set_masks_(network, {"first.weight": filters, "first.bias": keep})
    with pytest.raises(PruningError, match=r"Channels of first are masked.*one tied weight"):
        prune.removed(network, size=SIDE)


def test_a_network_that_keeps_what_it_computed_is_copied_after_the_cut():
    """LeViT keeps its attention's biases, as computed under autograd."""

    class Keeping(nets.Mobile):
        def forward(self, x):
            self.kept = {"cpu": self.classifier[3].bias * 2}
            return super().forward(x)

    network = made(nets.Mobile)
    network.__class__ = Keeping
    prune.apply_masks_(network, planned(network))
    removal = prune.removed(network, size=SIDE)
    assert removal.departure < 1e-8 and copy.deepcopy(removal.network)


# ------------------------------------------------------------ real networks


def real(name):
    if name == "after surgery":
        network = zoo.load("mobilenet_v3_small", "things16").module
        network.requires_grad_(True)
        surgery.replace_(network, "lite")
        return network
    if name.startswith("mobilenet_v3"):
        return zoo.load(name, "things16").module
    torch.manual_seed(0)
    network = architectures.find(name).build(10).eval()
    random_weights.condition_(network)
    zoo.calibrate_(network, Preprocessing(32))
    return network


REST = ("mobilenet_v3_small", "tv:efficientnet_b0", "timm:mobilenetv3_large_100",
        "timm:mobilenetv3_small_100")  # fmt: skip


def cut(network, plan):
    """Mask, remove, and hold the smaller network against the masked one."""
    prune.apply_masks_(network, plan)
    removal = prune.removed(network, size=32)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    ours, theirs = network(x), removal.network(x)
    assert ours.abs().max() > 1e-3 and removal.own_weights
    assert (ours - theirs).abs().max() <= 1e-4 * ours.abs().max()
    return removal


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    (
        "mobilenet_v3_large", "after surgery", "tv:mobilenet_v2", "tv:resnet18",
        *(pytest.param(name, marks=pytest.mark.sweep) for name in REST),
    ),
)  # fmt: skip
def test_real_networks_lose_channels_everywhere_but_at_their_outputs(name):
    network = real(name)
    plan = prune.plan(network, size=32)
    removal = cut(network, plan)
    assert {refusal.reason for refusal in plan.left} == {"its channels are the network's outputs"}
    assert removal.after.total()[0] < 0.6 * removal.before.total()[0]


def small(kind):
    """A small network of a kind, and why some of its channels stay."""
    models = _torchvision.load().models
    if kind == "shuffle":
        return models.ShuffleNetV2([2, 2, 1], [16, 32, 48, 64, 64], num_classes=10), "out of bounds"
    if kind == "concat":
        return models.DenseNet(8, (2, 2), 16, num_classes=10), ""
    if kind == "attention":
        network = models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)
        return network, "LayerNorm"
    if kind == "windows":  # minutes and all memory, were its windows taken for flattenings
        network = models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2], num_classes=10)
        return network, "cannot be followed"
    import timm

    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8, "img_size": 32}
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes), "invalid for input"


@pytest.mark.parametrize("kind", ("shuffle", "concat", "attention", "windows", "timm"))
def test_shuffles_concatenations_and_attention_lose_what_they_can(kind):
    torch.manual_seed(0)
    network, stays = small(kind)
    random_weights.condition_(network.eval())
    nn.init.normal_([m for m in network.modules() if isinstance(m, nn.Linear)][-1].weight)
    zoo.calibrate_(network, Preprocessing(32))
    plan = prune.plan(network, size=32)
    assert any(stays in refusal.reason for refusal in plan.left)
    removal = cut(network, plan)
    assert removal.after.total() == plan.cost.total(plan.stays) < removal.before.total()


class Answers(nets.Mobile):
    """Its answers are a dictionary."""

    def forward(self, x):
        return {"scores": super().forward(x), "twice": 2 * super().forward(x)}


class Written(nets.Body):
    """Writes to a range of its channels, which must not move."""

    def __init__(self, part):
        super().__init__(16, 16)
        self.layer, self.part = nets.conv(16, 16, 1), part

    def middle(self, x):
        x = self.layer(x)
        x[:, self.part] += 1
        return x


class Halves(nets.Body):
    def __init__(self, cut):
        super().__init__(32, 32)
        self.cut = cut

    def middle(self, x):
        a, b = self.cut(x)
        return torch.cat([a * torch.sigmoid(b), b], 1)


class Pair(nets.Body):
    def forward(self, x, y):
        return self.head((self.stem(x) + self.stem(y)).mean((2, 3)))


class Shape(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def test_a_dictionary_of_answers_is_compared():
    network = made(nets.Mobile)
    network.__class__ = Answers
    plan = planned(network)
    prune.apply_masks_(network, plan)
    assert prune.removed(network, size=SIDE).departure < 1e-8


@pytest.mark.parametrize("part", (slice(0, 4), slice(12, 16)), ids=("first", "last"))
def test_channels_that_are_named_by_their_place_are_refused(part):
    network = Written(part).eval()
    [refusal] = [r for r in planned(network, multiple=1).left if "layer.0" in r.layers]
    assert "computes other values than with zeros" in refusal.reason


def test_a_network_that_cannot_be_followed_is_told_from_one_that_does_not_run():
    with pytest.raises(PruningError, match=r"channels of Halves cannot be followed .* single"):
        planned(Halves(lambda x: x.chunk(2, 1)))
    masked = planned(Halves(lambda x: x.chunk(2, 1)), "unstructured")  # as the message says
    assert masked.zeros_share == pytest.approx(0.4, abs=0.01)
    with pytest.raises(PruningError, match=r"Pair does not run on an input .* one image tensor"):
        planned(Pair(16, 16))
    with pytest.raises(PruningError, match="no convolution and no linear layer"):
        planned(Shape())
