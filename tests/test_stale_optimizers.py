"""An optimizer from before `qat.prepare` raises, however the loop is written; others do not."""

import pytest
import torch
from torch import nn

from labutils.errors import StaleOptimizerError
from labutils.quantize.training import qat

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).train()


def prepared(network):
    model = qat.prepare(network, "int8_qat", size=8)
    qat.calibrate_(model, X.numpy())
    return model


def closure(model, optimizer):
    def compute():
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    return compute


def test_parameters_of_others_do_not_hide_that_it_is_stale(network):
    weight = nn.Parameter(torch.ones(1))
    stale = torch.optim.AdamW([*network.parameters(), weight], 1e-2)
    (prepared(network)(X).square().mean() * weight).backward()
    with pytest.raises(StaleOptimizerError, match=r"0\.weight"):
        stale.step()


def test_a_gradient_from_before_is_none(network):
    stale = torch.optim.SGD(network.parameters(), 1e-2)
    network(X).square().mean().backward()
    stale.step()
    model = prepared(network)
    model.zero_grad()  # of the prepared network, not of the optimizer
    model(X).square().mean().backward()
    with pytest.raises(StaleOptimizerError):
        stale.step()


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SGD])
def test_a_closure_is_judged_after_it_has_run(network, kind):
    model = prepared(network)
    optimizer = kind(network.parameters(), 1e-2)
    optimizer.step(closure(network, optimizer))  # the float network is trained: nobody's mistake
    optimizer.step(closure=closure(network, optimizer))
    with pytest.raises(StaleOptimizerError):
        optimizer.step(closure(model, optimizer))


def test_training_on_and_the_prepared_network_are_left_alone(network):
    model = prepared(network)
    own = torch.optim.SGD(network.parameters(), 1e-2)
    for keep in (True, False, True):
        for _ in range(2):  # gradients are accumulated
            network(X).square().mean().backward()
        own.step()
        own.zero_grad(set_to_none=keep)
    both = torch.optim.SGD([*model.parameters(), *network.parameters()], 1e-2)
    model(X).square().mean().backward()
    both.step()  # the float one may be its teacher
    network.requires_grad_(False)
    head = nn.Linear(2, 2)
    mixed = torch.optim.SGD([*network.parameters(), *head.parameters()], 1e-2)
    head(network(X)).sum().backward()
    mixed.step()  # frozen on purpose
