"""Layers in place while a network is trained: out of place, unless that were another function."""

import copy

import pytest
import torch
from torch import nn

from labutils import train
from labutils.train import in_place

HOW = {"steps": 2, "size": 16, "images": 16, "batch_size": 8}


class Network(nn.Module):
    """A residual sum over a ReLU that may work in place, and a dropout behind a ReLU."""

    def __init__(self, again=True, inplace=True):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.act, self.last = nn.ReLU(inplace), nn.ReLU(inplace)
        self.drop, self.fc = nn.Dropout(0.3, inplace), nn.Linear(8, 16)
        self.again = again

    def forward(self, x):
        x = self.norm(self.a(x))
        y = self.act(x)
        y = self.b(y) + (x if self.again else y)
        return self.fc(self.drop(self.last(y)).mean((2, 3)))


class WrittenOut(Network):
    """The same function without anything in place."""

    def __init__(self):
        super().__init__(again=False, inplace=False)


@pytest.mark.parametrize("again", [True, False])
def test_the_network_that_is_trained_is_the_one_that_was_given(again):
    model, twin = Network(again), WrittenOut()
    twin.load_state_dict(model.state_dict())
    seen = []

    def look(step, steps, trained):
        seen.append((trained.act.inplace, trained.last.inplace, trained.drop.inplace))

    done = train.fine_tune(model, on_step=look, **HOW)
    assert seen == [(again, False, False)] * 2
    assert done.losses == train.fine_tune(twin, **HOW).losses
    for name, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model.act.inplace and model.last.inplace and model.drop.inplace


@pytest.mark.parametrize("shift", [-9.0, 0.0, 9.0])  # a ReLU of zeros, and one that does nothing
def test_a_second_reader_is_found_whatever_the_weights_are(shift):
    model, x = Network(), torch.randn(2, 3, 16, 16)
    model.norm.bias.data.fill_(shift)
    before = copy.deepcopy(model.state_dict())
    assert in_place.read_again(model, x) == {"act"}
    assert in_place.read_again(Network(again=False), x) == set()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert model.act.inplace and model.training
