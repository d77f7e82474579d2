"""BatchNorm frozen and re-estimated, weights averaged: with PyTorch's own tools."""

import copy

import pytest
import torch
from torch import nn

from labutils import train
from labutils.errors import UsageError
from labutils.images import data


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5), nn.Flatten(), nn.LazyLinear(16),
    )  # fmt: skip


@pytest.fixture
def made():
    model = network()
    model(torch.zeros(2, 3, 32, 32))
    return model


def statistics(model):
    return torch.cat([b.flatten().float() for n, b in model.named_buffers() if "running" in n])


def test_frozen_statistics_stay_through_train(made):
    report = train.freeze_batch_norm_(made, weights=True)
    assert report.layers == ("1", "5")
    twin = copy.deepcopy(made)
    for model in (made, twin):
        before = statistics(model).clone()
        model.train()
        model(torch.randn(4, 3, 32, 32))
        assert model[3].training
        assert not model[1].training
        assert torch.equal(statistics(model), before)
        assert not model[1].weight.requires_grad
    train.unfreeze_batch_norm_(twin)
    twin(torch.randn(4, 3, 32, 32))
    assert twin[1].training
    assert twin[1].weight.requires_grad
    assert not made[1].training  # a copy's layers are its own
    assert list(twin.state_dict()) == list(network().state_dict())[: len(twin.state_dict())]


def test_statistics_are_those_of_the_images_without_dropout(made):
    images, preprocessing = data.calibration(64, 32), data.Preprocessing(32)
    made.train()
    made[1].momentum = 0.3
    report = train.estimate_batch_norm_(made, images, preprocessing)
    x = torch.from_numpy(preprocessing(images.images))
    with torch.no_grad():
        first = made[0](x)
    assert torch.allclose(made[1].running_mean, first.mean((0, 2, 3)), atol=1e-4)
    with torch.no_grad():
        normal = made.eval()[:5](x)  # without dropout
    assert torch.allclose(made[5].running_mean, normal.mean((0, 2, 3)), atol=1e-3)
    assert report.images == 64
    assert report.largest_shift > 0
    assert made[1].momentum == 0.3


def test_modes_come_back(made):
    made.train()
    made[3].eval()
    train.estimate_batch_norm_(made, data.calibration(64, 32), data.Preprocessing(32))
    assert made.training
    assert made[1].training
    assert not made[3].training
    assert "train" not in vars(made)


def test_no_batch_norm_is_an_error():
    with pytest.raises(UsageError, match="no BatchNorm"):
        train.freeze_batch_norm_(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UsageError, match="is frozen"):
        train.unfreeze_batch_norm_(nn.Sequential(nn.BatchNorm2d(2)))


@pytest.mark.parametrize("decay", [None, 0.5])
def test_averages(decay):
    model = nn.Linear(1, 1, bias=False)
    average, update = train.averaged(model, decay)
    for step, value in enumerate((1.0, 2.0, 4.0), start=1):
        nn.init.constant_(model.weight, value)
        update(step, 3, model)
    expected = 7 / 3 if decay is None else 0.5 * (0.5 * (1 + 2)) + 0.5 * 4
    assert average.module.weight.item() == pytest.approx(expected)
    with pytest.raises(UsageError, match="decay=2"):
        train.averaged(model, 2)
