"""Random weights that float16 can hold: what is set, and what is left as it was."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from labutils import _torchvision, metrics
from labutils.errors import UsageError
from labutils.images import data
from labutils.models import random_weights, zoo

_torchvision.load()  # timm imports torchvision
from timm import layers  # noqa: E402
from timm.models import _efficientnet_blocks, convnext  # noqa: E402
from torchvision.ops import SqueezeExcitation  # noqa: E402


def test_batchnorms_are_shifted_and_nothing_else_of_them_changes():
    norms = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.LayerNorm(4))
    before = copy.deepcopy(norms.state_dict())
    random_weights.condition_(norms)
    changed = {n for n, t in norms.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"0.bias"}
    assert torch.equal(norms[0].bias, torch.full((4,), random_weights.SHIFT))


@pytest.mark.parametrize(
    ("gate", "last"),
    [
        (SqueezeExcitation(16, 4), "fc2"),
        (layers.SEModule(16), "fc2"),
        (_efficientnet_blocks.SqueezeExcite(16), "conv_expand"),
    ],
    ids=("torchvision", "timm", "timm's EfficientNets"),
)
def test_the_gates_of_every_squeeze_excitation_begin_open(gate, last):
    random_weights.condition_(gate)
    assert torch.all(getattr(gate, last).bias == random_weights.GATE_BIAS)
    passed = gate(torch.full((1, 16, 2, 2), 1e-6)).mean() / 1e-6  # the bias alone decides
    assert 0.8 < passed <= 1


def test_layer_scales_are_one():
    block = convnext.ConvNeXtBlock(8, ls_init_value=1e-6)
    random_weights.condition_(block)
    assert torch.all(block.gamma == 1)


def test_the_shape_of_a_network_and_its_generator_are_left_alone():
    network = zoo.architectures.find("timm:rexnet_100").build(None)
    shapes, state = {n: t.shape for n, t in network.state_dict().items()}, torch.get_rng_state()
    random_weights.condition_(network)
    assert {n: t.shape for n, t in network.state_dict().items()} == shapes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_with_such_weights_says_so():
    assert random_weights.NOTE in zoo.load("mobilenet_v3_small", "random", size=32).note


def least_cosine_at_half_precision(name):
    """The worst of four images, with weights and all that layers put out rounded to float16."""
    model = zoo.load(f"timm:{name}", "random", size=64)
    inputs = torch.from_numpy(model.preprocessing(np.asarray(data.load("val", 4, 64).images)))
    with torch.no_grad():
        exact = model.module(inputs).numpy()
        for parameter in model.module.parameters():
            parameter.copy_(parameter.half().float())
        for part in model.module.modules():
            if not next(part.children(), None):
                part.register_forward_hook(lambda module, given, made: made.half().float())
        return min(map(metrics.cosine, exact, model.module(inputs).numpy()))


@pytest.mark.parametrize("name", ["fbnetc_100", "rexnet_100", "mobileone_s0", "efficientnet_b0"])
def test_half_precision_holds_sound_networks(name):
    assert least_cosine_at_half_precision(name) > 0.9999  # the gate of float16 asks for 0.999


def test_without_the_conditioning_half_precision_does_not(monkeypatch):
    monkeypatch.setattr(random_weights, "condition_", lambda module: None)
    assert least_cosine_at_half_precision("mobileone_s0") < 0.999


def test_a_size_that_a_network_does_not_take_is_told():
    said = r"takes no images of 96 px: .*\(224\).* Leave out --size: its own is 224 px"
    with pytest.raises(UsageError, match=said):
        zoo.load("timm:vit_tiny_patch16_224", "random", size=96)
