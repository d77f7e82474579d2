"""The schedule of a loop of one's own: what stops following the data, when, and after a stop."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from labutils.errors import UsageError
from labutils.quantize.presets import PRESETS
from labutils.quantize.recipe import Qat
from labutils.quantize.training import qat
from labutils.quantize.training.fake_quant import quantizers

SIZE = 12
OBSERVED = PRESETS["int8"].replaced(qat=Qat(scales="observed", freeze_at=0.5))
LEARNED = PRESETS["int8"].replaced(qat=Qat(scales="learned"))


class Network(nn.Module):
    """A BatchNorm that folds, and one after an addition that does not."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.twin, self.loose = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * (SIZE - 2) ** 2, 3)

    def forward(self, x):
        return self.fc(self.loose(self.norm(self.conv(x)).relu() + self.twin(x)).flatten(1))


def images(seed):
    return torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * (1 + seed)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


def prepared(network, recipe):
    model = qat.prepare(network, recipe, size=SIZE)
    qat.calibrate_(model, images(0).numpy())
    return model


def take_steps(model, schedule, steps, start=0):
    """A loop that calls train() before every step, as one that evaluates in between would."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for step in range(start, start + steps):
        model.train()
        optimizer.zero_grad()
        model(images(step)).square().mean().backward()
        optimizer.step()
        yield schedule.step()


def ranges(model):
    followers = [q for q in quantizers(model).values() if not q.grid.signed]
    return torch.stack([torch.cat([q.low, q.high]) for q in followers])


def moved(values):
    return [not torch.equal(a, b) for a, b in itertools.pairwise(values)]


def test_observers_stop_first_and_then_batch_norm(network):
    model = prepared(network, OBSERVED)
    schedule = qat.Schedule(model, 8)
    seen, means, frozen = [ranges(model)], [model.loose.running_mean.clone()], []
    for done in take_steps(model, schedule, 8):
        frozen.append(done)
        seen.append(ranges(model))
        means.append(model.loose.running_mean.clone())
    assert frozen == [(), (), (), ("observers",), (), ("BatchNorm",), (), ()]
    assert moved(seen) == [True] * 4 + [False] * 4
    assert moved(means) == [True] * 6 + [False] * 2
    assert repr(schedule) == (
        "Schedule: 8 of 8 steps; observers frozen at step 4, BatchNorm frozen at step 6"
    )


def test_a_network_after_surgery_has_batch_norm_alone(network):
    schedule = qat.Schedule(network, 4, freeze_batch_norm_at=0.5)
    assert repr(schedule) == "Schedule: 0 of 4 steps; BatchNorm freeze at step 2"
    assert list(take_steps(network, schedule, 4)) == [(), ("BatchNorm",), (), ()]
    assert not network.norm.training and network.training


def test_learned_ranges_are_the_optimizers_from_calibration_on(network):
    model = prepared(network, LEARNED)
    schedule = qat.Schedule(model, 4)
    assert not any("observers" in done for done in take_steps(model, schedule, 4))
    assert "observers" not in repr(schedule)


@pytest.mark.parametrize("late", [False, True])
def test_what_was_learned_of_a_range_survives_another_freeze(network, late):
    """To fit a frozen grid to its range again would take back what the optimizer did."""
    model = prepared(network, LEARNED)
    list(take_steps(model, qat.Schedule(model, 4), 4))
    steps = {name: q.step.detach().clone() for name, q in quantizers(model).items()}
    start = {name: q.step.detach() for name, q in quantizers(prepared(network, LEARNED)).items()}
    activations = [name for name, q in quantizers(model).items() if not q.grid.signed]
    assert any((steps[name] != start[name]).any() for name in activations)
    if late:
        qat.Schedule(model, 1, freeze_observers_at=0.0)
    qat.freeze_(model)
    for name, quantizer in quantizers(model).items():
        assert torch.equal(quantizer.step, steps[name]), name


def test_a_share_of_zero_freezes_at_once_and_none_never(network):
    qat.Schedule(network, 5, freeze_batch_norm_at=0.0)
    assert not network.train().norm.training
    other = Network()
    list(take_steps(other, qat.Schedule(other, 2, freeze_batch_norm_at=None), 2))
    assert other.norm.training


@given(share=st.floats(0, 1), steps=st.integers(1, 10_000))
def test_what_freezes_does_so_at_the_first_step_that_reaches_the_share(share, steps):
    norm = nn.BatchNorm2d(2)
    schedule = qat.Schedule(norm, steps, freeze_batch_norm_at=share)
    at = math.ceil(share * steps - 1e-9)
    frozen = [bool(schedule.reach(done)) for done in (max(0, at - 1), at)]
    assert frozen == ([False, False] if at == 0 else [False, True])
    assert not norm.train().training


def test_an_estimate_of_the_steps_that_changes_skips_nothing(network):
    """A run by the clock knows how many steps it has only as it goes."""
    model = prepared(network, OBSERVED)
    schedule = qat.Schedule(model, 1)
    lasts = [20, 9, 9, 30, 4]  # half of the run: 10, 5, 5, 15, 2
    assert qat.describe(model).phase["following"]
    done = [schedule.reach(step, last) for step, last in enumerate(lasts, start=1)]
    assert "observers" in itertools.chain(*done) and not qat.describe(model).phase["following"]


@pytest.mark.parametrize("stop", [2, 4, 7])
@pytest.mark.parametrize("recipe", [OBSERVED, LEARNED], ids=["observed", "learned"])
def test_a_stopped_loop_resumes_to_the_same_weights(network, tmp_path, recipe, stop):
    whole = prepared(network, recipe)
    list(take_steps(whole, qat.Schedule(whole, 8), 8))

    model = prepared(network, recipe)
    schedule = qat.Schedule(model, 8)
    list(take_steps(model, schedule, stop))
    state = {"model": model.state_dict(), "schedule": schedule.state_dict()}
    torch.save(state, tmp_path / "stopped.pt")

    again = qat.prepare(network, recipe, size=SIZE)
    state = torch.load(tmp_path / "stopped.pt", weights_only=True)
    again.load_state_dict(state["model"])
    schedule = qat.Schedule(again, 8)
    schedule.load_state_dict(state["schedule"])
    list(take_steps(again, schedule, 8 - stop, stop))
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_copy_for_an_average_is_frozen_like_its_network(network):
    model = prepared(network, OBSERVED)
    list(take_steps(model, qat.Schedule(model, 4), 3))
    twin = copy.deepcopy(model)
    assert qat.describe(twin).phase == {"frozen": len(quantizers(twin))}
    assert not twin.train().loose.training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "how many steps"),
        ({"freeze_batch_norm_at": 1.5}, "freeze_batch_norm_at is a share"),
        ({"freeze_observers_at": -0.1}, "freeze_observers_at is a share"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(network, options, words):
    with pytest.raises(UsageError, match=words):
        qat.Schedule(network, **{"steps": 4} | options)


def test_a_network_without_ranges_is_refused(network):
    model = qat.prepare(network, OBSERVED, size=SIZE)
    with pytest.raises(UsageError, match="call calibrate_"):
        qat.Schedule(model, 4)


@pytest.mark.parametrize("state", [{}, {"done": 3}, [1, 2], {"last_epoch": 3, "base_lrs": [0.1]}])
def test_the_state_of_something_else_is_refused(network, state):
    schedule = qat.Schedule(network, 4)
    with pytest.raises(UsageError, match="not the state of a schedule"):
        schedule.load_state_dict(state)
    assert schedule.done == 0
