"""Schedules of masks: what is masked stays so, and a run that was stopped goes on as it would."""

import copy
import re

import forked
import numpy as np
import pruned_networks as nets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pruned_networks import SIDE, made, planned
from torch import nn

from labutils import prune, train
from labutils.errors import ModelFileError, UnknownNameError, UsageError
from labutils.prune import masks

METHODS = ("channels", "2:4", "unstructured")


def moved_(network, step):
    """Move the weights far, as a long training does: the ranks of many of them change."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("kind", prune.KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_schedule_ends_in_the_whole_plan(kind, method):
    network = made(nets.Mobile)
    plan = planned(network, method)
    schedule = prune.Schedule(network, plan, kind, steps=20, start=0.1, end=0.6)
    zeros, gone = [], {}
    for step in range(20):
        moved_(network, step)
        schedule.step()
        found = masks.masks_of(network)
        zeros.append(sum(float(m.strength * (m.keep == 0).sum()) for m in found.values()))
        for name, mask in found.items():  # what is masked stays masked, weight by weight
            assert not (mask.keep.bool() & gone.get(name, torch.tensor(False))).any(), name
            gone[name] = mask.keep == 0
    assert zeros == sorted(zeros)
    found = masks.masks_of(network)
    assert all(mask.strength == 1 for mask in found.values())
    assert {n: int(m.keep.sum()) for n, m in found.items()} == dict(plan.stays)
    if kind != "one-shot":
        assert len(set(zeros)) > 2
    assert prune.removed(network.eval(), size=SIDE).departure < 1e-8


@given(st.sampled_from(tuple(prune.KINDS)), st.floats(0, 1), st.floats(0, 1), st.integers(1, 30))
def test_every_ramp_rises_from_nothing_to_all(kind, a, b, stages):
    start, end = min(a, b), max(a, b)
    schedule = object.__new__(prune.Schedule)
    schedule.kind, schedule.start, schedule.end, schedule.stages = kind, start, end, stages
    found = [schedule.progress(i / 100) for i in range(101)]
    assert found == sorted(found) and found[-1] == 1.0 and 0 <= found[0] <= 1


def test_cubic_is_fast_at_first():
    schedule = prune.Schedule(
        made(nets.Mobile), planned(made(nets.Mobile)), "cubic", steps=10, end=1.0, stages=4
    )
    assert [schedule.progress(x) for x in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(
        [0, 1 - 0.75**3, 1 - 0.5**3, 1 - 0.25**3, 1]
    )


def test_mistakes_in_a_schedule_are_explained():
    network = made(nets.Mobile)
    plan = planned(network)
    with pytest.raises(UnknownNameError, match="cubic"):
        prune.Schedule(network, plan, "qubic")
    with pytest.raises(UsageError, match="ramp"):
        prune.Schedule(network, plan, start=0.8, end=0.2)
    with pytest.raises(UsageError, match="steps="):
        prune.Schedule(network, plan).step()


class _KilledError(Exception):
    pass


def killed_at(step):
    def progress(items, _):
        for item in items:
            if item == step:
                raise _KilledError
            yield item

    return progress


@pytest.mark.parametrize("kind", prune.KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_killed_ends_as_one_that_was_not(kind, method, tmp_path):
    """Killed in the middle of a stage, whose masks are not ranked again then."""
    options = {"steps": 9, "size": 32, "images": 64, "batch_size": 16, "learning_rate": 0.03}
    ends = []
    for state, progress in ((None, None), (tmp_path / "run.pt", killed_at(4))):
        network = made(nets.Mobile, classes=16)
        plan = planned(network, method)

        def fit(network, plan, **how):
            schedule = prune.Schedule(network, plan, kind, end=1.0, stages=3)
            return train.fine_tune(network, on_step=schedule, **options, **how)

        if state:
            kept = train.Resumable(state, every=2)
            with pytest.raises(_KilledError):
                fit(network, plan, state=kept, progress=progress)
            network = made(nets.Mobile, classes=16)
            assert fit(network, plan, state=kept).resumed_at == 4
        else:
            fit(network, plan)
        ends.append(network.state_dict())
    whole, resumed = ends
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_the_state_of_another_plan_is_refused(tmp_path):
    """Both begin with masks that keep all, so that the weights do not tell them apart."""
    options = {"steps": 4, "size": 32, "images": 64, "batch_size": 16, "state": tmp_path / "run.pt"}
    for ratio in (0.4, 0.6):
        network = made(nets.Mobile, classes=16)
        schedule = prune.Schedule(network, planned(network, ratio=ratio))
        if ratio == 0.4:
            train.fine_tune(network, on_step=schedule, **options)
            continue
        with pytest.raises(ModelFileError, match="another pruning plan or schedule"):
            train.fine_tune(network, on_step=schedule, **options)


def test_a_criterion_of_the_users_own_holds_at_every_stage():
    """Also one with the name of ours."""
    calls = []

    def l1(group, weights):
        calls.append(group.name)
        return torch.arange(group.units)

    network = made(nets.Mobile)
    plan = planned(network, criterion=l1, multiple=1)
    assert plan.settings["criterion"] == "own l1"
    calls.clear()
    schedule = prune.Schedule(network, plan, steps=4, end=1.0, stages=4)
    for step in range(4):
        moved_(network, step)
        schedule.step()
    assert len(calls) == 5 * len(plan.parts)
    for part in plan.parts:
        kept = masks.masks_of(network)[f"{part.group.name}.weight"].keep.flatten(1).any(1)
        assert not kept[: part.removed].any() and kept[part.removed :].all()


@pytest.mark.parametrize("kind", ("cubic", "blend"))
@pytest.mark.parametrize("method", METHODS)
def test_another_network_and_a_wrapped_one_are_refused_by_name(kind, method):
    network = made(nets.Mobile)
    plan = planned(network, method)
    with pytest.raises(UnknownNameError, match="There is no parameter named"):
        prune.Schedule(made(nets.Grouped), plan, kind, steps=4)
    with pytest.raises(UsageError, match=r"wrapped.*model\.module"):
        prune.Schedule(nn.DataParallel(network), plan, kind, steps=4)


def test_masks_of_another_plan_stay_hard_while_a_schedule_blends():
    network = made(nets.Mobile)
    prune.apply_masks_(network, planned(network, "2:4", exclude=["last.0", "classifier.*"]))
    plan = planned(network, ratio={"last.0": 0.5})
    schedule = prune.Schedule(network, plan, "blend", steps=4, end=1.0)
    schedule.step()
    soft = {name for name, mask in prune.masks_of(network).items() if mask.strength < 1}
    assert soft == set(plan.stays)
    assert float(prune.masks_of(network)["last.0.weight"].strength) == 1 - 0.75**2  # TI's p = 2


# ------------------------------------------------------------ BatchNorm, ranks


@pytest.mark.parametrize("last", (1, 3))
def test_a_last_batch_that_is_small_goes_with_the_one_before(last):
    network = nn.Sequential(nn.Conv2d(3, 4, SIDE), nn.BatchNorm2d(4))
    images = np.random.default_rng(0).normal(size=(16 + last, 3, SIDE, SIDE)).astype("f4")
    prune.reestimate_(network, [images[:8], images[8:16], images[16:]])
    parts = [network[0](torch.from_numpy(x)).mean((0, 2, 3)) for x in (images[:8], images[8:])]
    assert torch.allclose(network[1].running_mean, torch.stack(parts).mean(0), atol=1e-6)
    assert network[1].momentum == 0.1


@pytest.mark.parametrize("batches", ([], [np.zeros((1, 3, SIDE, SIDE), np.float32)]))
def test_statistics_that_cannot_be_measured_stay_as_they_were(batches):
    network = nn.Sequential(nn.Conv2d(3, 4, SIDE), nn.BatchNorm2d(4)).train()
    network(torch.randn(8, 3, SIDE, SIDE))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UsageError, match="too few to measure"):
        prune.reestimate_(network, batches)
    assert network.training and network[1].training and network[1].momentum == 0.1
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def _rank_of_two():
    """What one of two processes does: recover a network on its half of every batch."""
    torch.set_num_threads(1)
    network, teacher = (made(nets.Mobile, classes=16) for _ in range(2))
    plan = planned(network)
    with train.joined() as ranks:
        prune.recover_(
            network, plan, teacher=teacher, ranks=ranks, steps=4, size=32, images=64, batch_size=16
        )
    removal = prune.removed(network, size=SIDE)
    print("made", train.run_state.digest(removal.network), network.stem[1].momentum)


@pytest.mark.slow
def test_two_processes_recover_one_network(tmp_path):
    codes, said = forked.two(_rank_of_two, (), tmp_path)
    assert codes == [0, 0], said
    first, second = (re.findall(r"^made (\w+) 0\.1", text, re.M) for text in said)
    assert first == second and len(first) == 1
