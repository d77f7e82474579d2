"""Pruning: plans, criteria, single weights, and what is refused by name."""

import re

import numpy as np
import pruned_networks as nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruned_networks import SIDE, close, inputs, made, planned
from torch import nn

from labutils import prune
from labutils.errors import LabError, PruningError, UnknownNameError, UsageError
from labutils.prune import masks, planning, single_weights

KINDS = (
    nets.Mobile, nets.Grouped, nets.Concatenated, nets.Ghost, nets.Split, nets.Shuffled, nets.Tied,
    nets.Attention, nets.Multihead, nets.Flattened, nets.Upsampled, nets.Sigmoids,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("multiple", (1, 4))
def test_what_is_removed_computes_what_was_masked(kind, multiple):
    network = made(kind)
    before = network(inputs())
    plan = planned(network, multiple=multiple)
    assert torch.equal(network(inputs()), before)  # a plan changes nothing
    prune.apply_masks_(network, plan)
    masked = network(inputs())
    assert not close(masked, before)
    removal = prune.removed(network, size=SIDE)
    smaller = removal.network(inputs())
    assert masked.std() > 1e-2
    assert close(smaller, masked) and torch.equal(network(inputs()), masked)
    assert removal.departure < 1e-10
    count = sum(p.numel() for p in removal.network.parameters())
    assert count == removal.after.total()[1] == plan.cost.total(plan.stays)[1]
    assert removal.after.total()[0] == plan.cost.total(plan.stays)[0]
    assert count < sum(p.numel() for p in made(kind).parameters())
    for part in plan.parts:
        assert removal.widths[part.group.name] == (part.group.channels, part.kept)
        if part.removed:
            assert part.kept % multiple == 0


REFUSED = {
    nets.Mobile: {"classifier.3": "the network's outputs"},
    nets.Tied: {"first": "one tied weight", "second": "one tied weight"},
    nets.Attention: {"qkv": "does not run|another shape|other values", "stem.0": "normalizes"},
    nets.Multihead: {"stem.0": "attention"},
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_what_cannot_go_is_refused_by_name(kind):
    plan = planned(made(kind))
    reasons = {layer: refusal.reason for refusal in plan.left for layer in refusal.layers}
    for layer, reason in REFUSED[kind].items():
        assert re.search(reason, reasons[layer]), reasons
    assert all(layer in str(plan) for layer in REFUSED[kind])


def test_a_network_of_which_nothing_can_go_says_why():
    class Only(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.head(x).mean((2, 3))

    with pytest.raises(PruningError, match="the network's outputs"):
        planned(Only())


@pytest.mark.slow
@settings(max_examples=8)
@given(
    width=st.integers(2, 5).map(lambda n: 4 * n), groups=st.sampled_from((1, 2, 4)),
    ratio=st.floats(0.05, 0.95), multiple=st.sampled_from((1, 2, 4, 8)),
    scope=st.sampled_from(planning.SCOPES),
)  # fmt: skip
def test_any_width_group_ratio_and_multiple(width, groups, ratio, multiple, scope):
    network = made(nets.Grouped, groups=groups, width=width, out=width)
    try:
        plan = planned(network, ratio=ratio, multiple=multiple, scope=scope)
    except PruningError as error:
        assert "Nothing" in str(error) and (ratio < 0.5 or multiple == 8)
        return
    prune.apply_masks_(network, plan)
    masked = network(inputs())
    for part in plan.parts:
        assert part.kept > 0 and part.kept % part.group.parts == 0
        assert not part.removed or part.kept % multiple == 0
    assert close(prune.removed(network, size=SIDE).network(inputs()), masked)


@given(units=st.integers(2, 200), parts=st.sampled_from((1, 2, 3, 4)), data=st.data())
def test_widths_are_the_nearest_multiple(units, parts, data):
    multiple = data.draw(st.sampled_from((1, 4, 8, 16)))
    wanted = data.draw(st.floats(0, units - 1))
    group = prune.Group("conv", "conv", units * parts, parts, ())
    gone = planning.rounded(group, wanted, multiple)
    assert 0 <= gone < units
    if gone:
        stay = (units - gone) * parts
        step = np.lcm(multiple, parts)
        assert stay % step == 0
        nearest = abs(stay - (units - wanted) * parts)
        assert nearest <= step / 2 + 1e-6 or stay == step


# ------------------------------------------------------------ criteria


@pytest.mark.parametrize("criterion", sorted({*prune.CRITERIA} - {"fpgm"}))
def test_every_criterion_keeps_what_matters(criterion):
    """Channels that are all but absent go first, whatever rates them by size."""
    network = made(nets.Mobile)
    with torch.no_grad():
        for layer, dim in ((network.last[0], 0), (network.classifier[0], 1)):
            layer.weight.index_fill_(dim, torch.tensor([3, 17, 30]), 0)
        network.last[1].weight[[3, 17, 30]] = 0
    part = next(p for p in planned(network, criterion=criterion).parts if p.group.name == "last.0")
    assert set(part.order[:3]) == {3, 17, 30}


def test_fpgm_removes_what_others_can_replace():
    network = made(nets.Mobile)
    with torch.no_grad():
        network.last[0].weight[1:40] = network.last[0].weight[:1]
    part = next(p for p in planned(network, criterion="fpgm").parts if p.group.name == "last.0")
    assert set(part.order[:40]) == set(range(40))


def test_taylor_rates_by_the_loss_on_data():
    network = made(nets.Mobile)
    with torch.no_grad():  # large weights that nothing reads: magnitude is fooled
        network.classifier[3].weight[:, 5] = 0
        network.classifier[0].weight[5] *= 50
    by = {
        name: next(p for p in planned(network, criterion=c).parts if p.group.name == "classifier.0")
        for name, c in (
            ("l2", "l2"), ("taylor", prune.taylor(network, inputs(16), np.arange(16) % 10)),
        )
    }  # fmt: skip
    assert by["taylor"].order[0] == 5 and by["l2"].order[-1] == 5
    assert all(p.grad is None for p in network.parameters())
    with pytest.raises(UsageError, match="label"):
        prune.taylor(network, inputs(4), [1, 2])
    with pytest.raises(UsageError, match=r"prune\.taylor"):
        planned(network, criterion="taylor")


def test_a_criterion_of_the_users_own():
    network = made(nets.Mobile)

    def last_first(group, weights):
        return -torch.arange(group.units)

    plan = planned(network, criterion=last_first)
    assert all(p.order == tuple(reversed(range(p.group.units))) for p in plan.parts)
    assert plan.settings["criterion"] == "last_first"
    for wrong in (lambda g, w: torch.zeros(3), lambda g, w: torch.full((g.units,), torch.nan)):
        with pytest.raises(UsageError, match="score for each"):
            planned(network, criterion=wrong)


def test_rows_are_what_a_unit_owns():
    network = made(nets.Flattened)
    groups, _ = prune.coupled(network, torch.zeros(1, 3, SIDE, SIDE))
    group = next(g for g in groups if g.name == "stem.0")
    weights = masks.weights_of(network)
    (reader,) = [s for s in group.slices if s.kind == "in"]
    rows = group.rows(reader, weights["fc1.weight"])
    assert rows.shape == (16, 32 * 4)
    assert torch.equal(rows[3].reshape(4, 32), weights["fc1.weight"][:, 12:16].T)


# ------------------------------------------------------------ what is asked for


def test_a_global_scope_takes_more_where_less_matters():
    network = made(nets.Mobile)
    with torch.no_grad():
        network.last[0].weight[:30] *= 1e-3
        network.classifier[0].weight[:, :30] *= 1e-3
    plan = planned(network, scope="global", multiple=1, ratio=0.25)
    share = {p.group.name: 1 - p.kept / p.group.channels for p in plan.parts}
    assert share["last.0"] > 0.5 > max(v for k, v in share.items() if k != "last.0")
    gone = sum(p.group.channels - p.kept for p in plan.parts)
    there = sum(p.group.channels for p in plan.parts)
    assert gone == int(0.25 * there)


def test_ratios_by_layer_and_exclusion_by_glob():
    network = made(nets.Mobile)
    plan = planned(network, ratio={"last*": 0.5, "expand*": 0.25}, multiple=1)
    kept = {p.group.name: p.kept for p in plan.parts}
    assert kept["last.0"] == 24 and kept["expand.0"] == 24 and kept["stem.0"] == 16
    plan = planned(network, exclude=["stem*", "gate.fc2"])
    assert {"stem.0", "expand.0"}.isdisjoint(p.group.name for p in plan.parts)
    assert "excluded by gate.fc2" in str(plan)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    (
        ({"method": "chanels"}, UnknownNameError, "channels"),
        ({"method": "4:2"}, UsageError, "0 < n < m"),
        ({"method": "a:b"}, UsageError, "n:m"),
        ({"criterion": "l3"}, UnknownNameError, "l1"),
        ({"scope": "locally"}, UnknownNameError, "global"),
        ({"ratio": 1.0}, UsageError, "below 1"),
        ({"ratio": -0.1}, UsageError, "below 1"),
        ({"ratio": {"nothing*": 0.3}}, UnknownNameError, "nothing"),
        ({"exclude": ["stme*"]}, UnknownNameError, "stem"),
        ({"exclude": "stem*"}, UsageError, "list of globs"),
        ({"multiple": 0}, UsageError, "multiples"),
        ({"ratio": 0.01}, PruningError, "Raise ratio"),
        ({"method": "unstructured", "ratio": 0.0}, PruningError, "no ratio|Raise"),
        ({"size": (1, 4, 16, 16)}, LabError, "4"),
    ),
)
def test_mistakes_in_a_plan_are_explained(options, error, words):
    with pytest.raises(error, match=words):
        planned(made(nets.Mobile), **options)


def test_a_plan_says_what_goes_where():
    network = made(nets.Mobile)
    plan = planned(network)
    told = plan.to_dict()
    assert told["macs_left"] < told["macs"] and told["groups"][0]["group"] == "stem.0"
    text, page = str(plan), plan._repr_html_()
    for word in ("stem.0", "channels", "MACs", "classifier.3"):
        assert word in text and word in page.replace("<wbr>", "")


# ------------------------------------------------------------ single weights


@given(
    st.integers(1, 3), st.integers(1, 40), st.integers(2, 16), st.data(), st.sampled_from((0, 1))
)
def test_n_of_every_m(rows, length, m, data, dim):
    n = data.draw(st.integers(1, m - 1))
    values = data.draw(st.sampled_from((torch.randn, torch.ones, torch.zeros)))
    torch.manual_seed(length)
    weight = values(rows, length, 2, 3)
    weight = weight.transpose(0, 1) if dim == 0 else weight
    keep = single_weights.pattern_mask(weight.abs(), n, m, dim)
    assert keep.shape == weight.shape
    lines, sizes = (t.movedim(dim, -1).reshape(-1, length) for t in (keep, weight.abs()))
    assert torch.all((lines == 0).sum(1) == single_weights.zeros_of(length, n, m))
    for start in range(0, length, m):
        block, size = lines[:, start : start + m], sizes[:, start : start + m]
        padded = m - block.shape[1]
        zeros = (block == 0).sum(1)
        assert torch.all(zeros + padded >= n)
        assert torch.all(zeros == block.shape[1] * n // m)
        kept = torch.where(block == 1, size, torch.inf).amin(1)
        gone = torch.where(block == 0, size, -torch.inf).amax(1)
        assert torch.all(gone <= kept)


@pytest.mark.parametrize("method", ("2:4", "3:8", "1:4"))
def test_a_pattern_stays_through_training_and_in_the_baked_weights(method):
    network = made(nets.Mobile)
    plan = planned(network, method)
    prune.apply_masks_(network, plan)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network.train()(inputs()).square().sum().backward()
    optimizer.step()
    removal = prune.removed(network.eval(), size=SIDE)
    n, m = single_weights.pattern(method)
    assert close(removal.network(inputs()), network(inputs()))
    for layer in plan.layers:
        weight = removal.network.get_parameter(layer.parameter)
        again = single_weights.pattern_mask(weight.detach().abs(), n, m, layer.dim)
        assert torch.equal(again == 0, weight == 0)
    assert {x.name for x in plan.layers}.isdisjoint({"depthwise.0"})
    assert "depthwise: each filter reads one channel" in str(plan)
    assert sum(removal.zeros.values()) == sum(
        x.weights - plan.stays[x.parameter] for x in plan.layers
    )


@given(st.floats(0, 0.99), st.booleans(), st.sampled_from((torch.randn, torch.ones)))
def test_unstructured_zeros_are_counted_exactly(ratio, together, values):
    torch.manual_seed(0)
    weights = {"a": values(4, 7), "b": 10 * values(3, 2, 5)}
    made_masks = single_weights.magnitude_masks(
        weights, {"a": ratio, "b": ratio}, together=together
    )
    zeros = {name: int((mask == 0).sum()) for name, mask in made_masks.items()}
    if together:
        assert sum(zeros.values()) == round(58 * ratio)
    else:
        assert zeros == {"a": round(28 * ratio), "b": round(30 * ratio)}


def test_unstructured_takes_the_smallest_of_all_layers():
    network = made(nets.Mobile)
    plan = planned(network, "unstructured", ratio=0.8, scope="global", exclude=["classifier.3"])
    prune.apply_masks_(network, plan)
    found = masks.masks_of(network)
    weights = {n: w.detach() for n, w in masks.weights_of(network).items()}
    kept = min(float(weights[n].abs()[m.keep == 1].min()) for n, m in found.items() if m.keep.any())
    gone = max(float(weights[n].abs()[m.keep == 0].max()) for n, m in found.items())
    assert gone <= kept and "classifier.3.weight" not in found
    assert plan.zeros_share == pytest.approx(0.8, abs=1e-3)
