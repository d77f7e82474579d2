"""What each group of channels costs, widths within a budget, and recovery by training."""

import copy
import dataclasses
import functools
import re

import numpy as np
import pruned_networks as nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruned_networks import SIDE, made
from torch import nn

from labutils import metrics, pipeline, prune, train
from labutils.errors import LabError, PruningError, UnknownNameError, UsageError
from labutils.pipeline.sparse_speed import SparseTime
from labutils.prune import criteria, masks, planning, report, widths
from labutils.show import figures


@pytest.fixture(scope="module")
def network():
    return made(nets.Mobile)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(32, 3, SIDE, SIDE, generator=generator).numpy()


@pytest.fixture(scope="module")
def labels(network, images):
    """What the network itself answers: right in all."""
    return network(torch.from_numpy(images)).argmax(1).numpy()


def rated(network):
    return planning.Rated(network, criteria.l1, (1, 3, SIDE, SIDE))


def test_a_scan_masks_one_group_at_a_time(network, images, labels):
    before = {name: values.clone() for name, values in network.state_dict().items()}
    scan = prune.sensitivity(network, images, labels, ratios=(0.5, 0.25))
    assert scan.n == 32 and scan.top1 == 1.0 and scan.ratios == (0.25, 0.5)
    assert scan.groups == tuple(g.name for g in rated(network).groups)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    one = made(nets.Mobile)  # a reading is what the plan of that group alone computes
    plan = prune.plan(one, ratio={"last*": 0.5}, multiple=1, size=SIDE)
    prune.apply_masks_(one, plan)
    logits = one(torch.from_numpy(images)).detach().numpy()
    reading = scan.of("last.0")[1]
    assert reading.top1 == pytest.approx(np.mean(logits.argmax(1) == labels))
    assert reading.ratio == 0.5 and reading.agreement == reading.top1
    assert scan.at(0.5).of("last.0") == (reading,) and scan.at(0.25, 0.5) == scan
    with pytest.raises(UsageError, match=r"no reading at \[0.75\], only at \[0.25, 0.5\]"):
        scan.at(0.75)
    assert "last.0" in str(scan) and "32 images" in str(scan) and "100.0 %" in str(scan)
    alt = figures.channel_costs(scan).alt
    assert "32 images" in alt and "Top-1" in alt


def test_no_group_of_a_scan_is_measured_with_the_masks_of_another(network, images):
    """Each reading is that of a network in which this group alone is masked."""
    scan = prune.sensitivity(network, images, ratios=(0.5,))
    reference = network(torch.from_numpy(images)).detach().numpy()
    for group in scan.groups:
        one = made(nets.Mobile)
        plan = prune.plan(one, ratio={group: 0.5}, multiple=1, size=SIDE)
        prune.apply_masks_(one, plan)
        logits = one(torch.from_numpy(images)).detach().numpy()
        expected = metrics.sqnr_db(reference, logits)
        assert scan.of(group)[0].sqnr_db == pytest.approx(expected, abs=0.01), group


def test_a_mask_is_a_copy_of_what_it_is_made_from():
    network, keep = nn.Linear(4, 2), {"weight": torch.ones(2, 4, dtype=torch.uint8)}
    prune.set_masks_(network, keep)
    prune.set_masks_(network, {"weight": torch.zeros(2, 4, dtype=torch.uint8)})
    assert keep["weight"].all() and not prune.masks_of(network)["weight"].keep.any()


def test_a_scan_without_labels_measures_agreement(network, images):
    scan = prune.sensitivity(network, images[:8], ratios=(0.5,))
    assert scan.top1 is None and all(r.top1 is None for r in scan.readings)
    assert "agreement" in str(scan) and "Agreement" in figures.channel_costs(scan).alt


@pytest.mark.parametrize(
    ("options", "words"),
    (
        ({"ratios": (1.0,)}, "below 1"),
        ({"ratios": ()}, "below 1"),
        ({"labels": np.zeros(3, int)}, "3 labels for 32"),
        ({"inputs": np.zeros((0, 3, SIDE, SIDE), np.float32)}, "no|none"),
    ),
)
def test_mistakes_in_a_scan_are_explained(network, images, options, words):
    with pytest.raises(UsageError, match=words):
        prune.sensitivity(network, **({"inputs": images} | options))


@functools.cache
def kinds():
    return {k: rated(made(k)) for k in (nets.Mobile, nets.Grouped, nets.Concatenated, nets.Split,
                                        nets.Flattened, nets.Upsampled)}  # fmt: skip


@settings(max_examples=20)
@given(st.sampled_from(range(6)), st.data())
def test_costs_of_widths_are_those_of_the_masks(kind, data):
    found = list(kinds().values())[kind]
    costs = widths.Costs(found)
    parts = []
    for group in found.groups:
        gone = data.draw(st.integers(0, group.units - 1))
        costs.take_(group, gone)
        parts.append(report.Channels(group, tuple(range(group.units)), gone))
    made_masks = report.channel_masks(parts, found.weights)
    stays = {name: int(mask.sum()) for name, mask in made_masks.items()}
    macs, parameters = found.cost.total(stays)
    assert costs.parameters == pytest.approx(parameters, rel=1e-6)
    assert costs.macs == pytest.approx(macs, rel=1e-3)


def test_the_descent_takes_what_costs_least(network, images):
    scan = prune.sensitivity(network, images)
    free = dataclasses.replace(
        scan,
        readings=tuple(
            dataclasses.replace(r, sqnr_db=90.0 if r.group == "last.0" else 10.0)
            for r in scan.readings
        ),
    )
    states = list(widths.path(rated(network), free, 4))
    macs = [state.macs for state in states]
    assert macs == sorted(macs, reverse=True) and len(set(macs)) == len(macs)
    first = [s.removed for s in states[1:10]]
    assert all({k for k, v in r.items() if v} == {"last.0"} for r in first)
    assert all(v < 48 for v in states[-1].removed.values())


@pytest.mark.parametrize(
    "budget",
    (
        prune.Budget(macs=0.5), prune.Budget(parameters=0.6), prune.Budget(megabytes=0.012),
        prune.Budget(macs=0.7, parameters=0.5),
    ),
    ids=str,
)  # fmt: skip
def test_a_budget_is_kept(network, images, labels, budget):
    search = prune.search(network, budget, images, labels, multiple=4)
    chosen = search.points[search.chosen]
    (macs, parameters), whole = search.plan.cost.total(search.plan.stays), search.whole
    assert (chosen.macs, chosen.parameters) == (macs, parameters)
    assert macs <= (budget.macs or 1) * whole.macs
    assert parameters <= (budget.parameters or 1) * whole.parameters
    assert parameters * 4 <= (budget.megabytes or 1) * 1e6
    copy = made(nets.Mobile)
    prune.apply_masks_(copy, search.plan)
    removal = prune.removed(copy, size=SIDE)
    assert removal.after.total() == (macs, parameters)
    logits = copy(torch.from_numpy(images)).argmax(1).numpy()
    assert chosen.top1 == pytest.approx(np.mean(logits == labels))
    assert all(p.macs < whole.macs for p in search.points)
    front = search.front
    assert front and all(
        not (q.macs < p.macs and q.top1 >= p.top1) for p in front for q in search.points
    )
    assert "chosen" in str(search) and str(budget) in str(search)
    assert "of the MACs" in figures.pruning_front(search).alt


@pytest.mark.slow
def test_a_latency_is_measured_on_onnx_runtime(network, images):
    try:
        search = prune.search(network, prune.Budget(latency=0.97), images[:4], multiple=4)
    except PruningError as error:  # a busy machine: a tiny network's time is noise
        assert re.search(r"takes \d+ % of the time", str(error))
        return
    assert search.points[search.chosen].latency is not None
    assert all(point.latency > 0 for point in search.points)


def test_a_budget_that_already_holds_prunes_nothing(network, images):
    for budget in (prune.Budget(macs=1.0), prune.Budget(megabytes=1), prune.Budget(latency=1.0)):
        search = prune.search(network, budget, images[:4])
        assert not search.short and search.points[search.chosen].macs == search.whole.macs
        assert not search.plan.stays and not any(p.removed for p in search.plan.parts)
        assert "chosen" in str(search) and figures.pruning_front(search).alt


@pytest.mark.parametrize(
    ("options", "error", "words"),
    (
        ({"exclude": ["stme*"]}, UnknownNameError, "stem"),
        ({"exclude": "stem*"}, UsageError, "list of globs"),
        ({"multiple": 0}, UsageError, "multiples"),
        ({"multiple": -8}, UsageError, "multiples"),
    ),
)
def test_a_search_and_a_scan_refuse_what_a_plan_does(network, images, options, error, words):
    for search in (prune.search, prune.nearest):
        with pytest.raises(error, match=words):
            search(network, prune.Budget(macs=0.9), images[:4], **options)
    if "exclude" in options:
        with pytest.raises(error, match=words):
            prune.sensitivity(network, images[:4], **options)


def test_a_budget_that_cannot_be_kept_says_what_is_least(network, images):
    with pytest.raises(PruningError, match=r"no widths keep to it.*narrowest.*% of the MACs"):
        prune.search(network, prune.Budget(macs=0.01), images[:4])


@pytest.mark.parametrize(
    "text", ("", "macs", "macs=", "macs=0", "macs=1.5", "flops=0.5", "macs=-1", "latency=abc")
)
def test_mistakes_in_a_budget_are_explained(text):
    with pytest.raises(UsageError, match=r"macs|share"):
        prune.Budget.parse(text)


def test_a_budget_is_read_from_text():
    assert prune.Budget.parse("macs=0.5, megabytes=2") == prune.Budget(macs=0.5, megabytes=2)
    with pytest.raises(UsageError, match="at least one"):
        prune.Budget()


# ------------------------------------------------------------ recovery


@pytest.mark.parametrize("method", ("channels", "2:4"))
def test_recovery_trains_under_masks_and_measures_norms_again(method):
    network, teacher = (made(nets.Mobile, classes=16) for _ in range(2))
    plan = prune.plan(network, method, size=SIDE)
    done = prune.recover_(
        network, plan, teacher=teacher, steps=4, size=32, images=64, batch_size=16
    )
    assert done.steps == 4 and done.settings["teacher"] == "Mobile"
    found = masks.masks_of(network)
    assert {n: int(m.keep.sum()) for n, m in found.items()} == dict(plan.stays)
    assert not network.training and network.stem[1].momentum == 0.1
    removal = prune.removed(network, size=SIDE)
    assert removal.departure < 1e-8
    batch = torch.from_numpy(np.random.default_rng(0).normal(size=(16, 3, 32, 32)).astype("f4"))
    prune.reestimate_(network, [batch.numpy()] * 2)
    seen = network.stem[0](batch).mean((0, 2, 3))
    assert torch.allclose(network.stem[1].running_mean, seen, atol=1e-5)


@pytest.mark.parametrize("schedule", ("one-shot", "cubic"))
def test_a_recovered_network_has_the_widths_of_its_plan_and_was_trained(schedule):
    network = made(nets.Mobile, classes=16)
    before = {name: values.clone() for name, values in network.state_dict().items()}
    plan = prune.plan(network, size=SIDE)
    settings = {"steps": 4, "size": 32, "images": 64, "batch_size": 16}
    removal, done = prune.recovered(
        network, plan, input_size=SIDE, teacher=network, schedule=schedule, **settings
    )
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert done.steps == 4 and done.settings["teacher"] == "Mobile" and removal.departure < 1e-8
    smaller = removal.network
    assert sum(p.numel() for p in smaller.parameters()) == removal.after.total()[1]
    prune.apply_masks_(network, plan)
    untrained = prune.removed(network, size=SIDE).network.state_dict()
    assert {k: v.shape for k, v in untrained.items()} == {
        k: v.shape for k, v in smaller.state_dict().items()
    }
    moved = [k for k, v in smaller.named_parameters() if not torch.equal(v, untrained[k])]
    assert len(moved) == len([*smaller.parameters()])
    assert not smaller.training and not masks.masks_of(smaller)


def test_one_shot_trains_the_smaller_network_as_any_other():
    network = made(nets.Mobile, classes=16)
    plan = prune.plan(network, size=SIDE)
    settings = {"steps": 3, "size": 32, "images": 64, "batch_size": 16}
    removal, done = prune.recovered(network, plan, input_size=SIDE, **settings)
    masked = copy.deepcopy(network)
    prune.apply_masks_(masked, plan)
    by_hand = prune.removed(masked, size=SIDE).network
    assert train.fine_tune(by_hand, **settings).losses == done.losses
    for name, values in removal.network.named_parameters():
        assert torch.equal(values, by_hand.get_parameter(name))


def test_a_schedule_is_the_on_step_of_fine_tuning():
    network = made(nets.Mobile, classes=16)
    plan = prune.plan(network, size=SIDE)
    schedule = prune.Schedule(network, plan, "blend", end=0.5)
    train.fine_tune(network, steps=4, size=32, images=64, batch_size=16, on_step=schedule)
    assert schedule.taken == 4
    assert all(mask.strength == 1 for mask in masks.masks_of(network).values())
    with pytest.raises(LabError, match="on_step"):
        prune.recover_(network, plan, steps=1, on_step=schedule)


def test_a_plan_comes_back_from_its_file(network, tmp_path):
    plan = prune.plan(network, ratio=0.4, criterion="l2", size=SIDE)
    file = prune.write_plan(plan, tmp_path / "plan.yaml")
    again = prune.read_plan(file, made(nets.Mobile))
    told = [[(p.group.name, p.order, p.removed) for p in x.parts] for x in (again, plan)]
    gone = [[order[:removed] for _, order, removed in parts] for parts in told]
    assert gone[0] == gone[1] and again.stays == plan.stays
    ours, theirs = again.masks(network), plan.masks(network)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert prune.Schedule(made(nets.Mobile), again, steps=4).progress(1.0) == 1.0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    (
        ("group: stem.0", "group: steam.0", r"line 11: groups.0.group: the network has no group"),
        ("channels: 16", "channels: 17", r"line 12: groups.0.channels: stem.0 has 16 channels"),
        ("channels: 16", "channels: many", r"line 12.*whole number"),
        ("removed: ", "removed: x ", r"line 13: groups.0.removed: .*whole numbers"),
        ("removed: ", "removed: 99 ", r"line 13: groups.0.removed: stem.0 has 16 units"),
        ("format: 1", "format: 2", "newer version"),
        ("network: Mobile", "netwerk: Mobile", "the key 'network' is missing"),
        ("network: Mobile", "network: [", "not readable as a pruning plan"),
    ),
)
def test_a_plan_that_does_not_fit_is_refused_with_its_line(network, old, new, words, tmp_path):
    file = tmp_path / "plan.yaml"
    prune.write_plan(prune.plan(network, ratio=0.5, size=SIDE), file)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=words):
        prune.read_plan(file, network)


def test_the_nearest_widths_say_what_would_help(network, images, labels):
    found = prune.nearest(network, prune.Budget(macs=0.01), images, labels)
    assert "no widths keep to it" in found.short and "no widths keep to it" in str(found)
    assert found.points[found.chosen].macs == min(p.macs for p in found.points)
    assert not prune.nearest(network, prune.Budget(macs=0.7), images, labels).short


def test_a_budget_of_macs_and_size_buys_both(network, images):
    """Where both are wanted, fewer MACs go than where MACs are bought until the size fits."""
    scan = prune.sensitivity(network, images[:8], ratios=(0.5,))
    rated_ = rated(network)
    macs, parameters = rated_.cost.total()

    def first(states):
        return next(s for s in states if s.macs <= 0.8 * macs and s.parameters <= 0.6 * parameters)

    by_macs = first(widths.path(rated_, scan, 4))
    both = first(widths.path(rated_, scan, 4, limits=(0.8 * macs, 0.6 * parameters)))
    assert both.macs > by_macs.macs and both.noise <= by_macs.noise
    found = prune.search(network, prune.Budget(macs=0.9, parameters=0.6), images[:8], multiple=4)
    chosen = found.points[found.chosen]
    assert chosen.macs <= 0.9 * macs and chosen.parameters <= 0.6 * parameters
    assert found.steps[found.within(0.5)].macs <= 0.5 * macs and len(found.steps) > 3
    assert found.within(0.0) == len(found.steps) - 1 and found.within(1.0) == 0


def test_the_runtimes_that_profit_from_zeros_are_named(network):
    with pytest.raises(UsageError, match="no masks"):
        pipeline.measure_sparse_speed(network, size=SIDE)
    masked = made(nets.Mobile)
    prune.apply_masks_(masked, prune.plan(masked, "unstructured", ratio=0.5, size=SIDE))
    speed = pipeline.measure_sparse_speed(masked, size=SIDE, turns=1)
    assert [row.runtime for row in speed.rows] == [
        "PyTorch", "ONNX Runtime, float32", "ONNX Runtime, int8",
    ]  # fmt: skip
    assert speed.zeros_share == pytest.approx(0.5, abs=0.01)
    assert speed.verdict in " ".join(str(speed).split())  # a busy machine makes it two lines
    assert set(prune.masks_of(masked)) == set(prune.masks_of(copy.deepcopy(masked)))
    rows = (SparseTime("dense", 0.97, 1.0), SparseTime("even", 1.3, 0.95))
    none = dataclasses.replace(speed, rows=rows)
    assert none.verdict.startswith("None of these runtimes profits")
    some = dataclasses.replace(speed, rows=(*rows, SparseTime("sparse", 0.5, 1.02)))
    assert some.verdict == "The zeros make these faster: sparse."
    busy = dataclasses.replace(speed, rows=(*some.rows, SparseTime("noisy", 0.5, 0.7)))
    assert [row["profits"] for row in busy.to_dict()["rows"]] == ["no", "no", "yes", "unclear"]
    assert busy.verdict.endswith("Unclear, because the machine was busy: noisy.")
