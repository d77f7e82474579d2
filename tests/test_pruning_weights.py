"""Masks of single weights on every kind of layer, the MACs under them, and plans as files."""

import pruned_networks as nets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pruned_networks import SIDE, Body, close, inputs, made, planned
from torch import nn
from torch.nn import functional as F

from labutils import prune
from labutils.errors import PruningError, UsageError
from labutils.measure import complexity
from labutils.models import architectures
from labutils.prune import cost, masks, single_weights
from labutils.train import network as untrained


class Cross(Body):
    """Attention whose keys and values have other widths: three weights instead of one."""

    def __init__(self):
        super().__init__(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, kdim=12, vdim=8, batch_first=True)

    def middle(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens[..., :12], tokens[..., :8])[0].transpose(1, 2)


class Functional(Body):
    """As Swin has it: a layer's weight is read by a function, and the layer is never called."""

    def __init__(self):
        super().__init__(16, 16)
        self.qkv = nn.Linear(16, 32)

    def middle(self, x):
        a, b = F.linear(x.flatten(2).transpose(1, 2), self.qkv.weight, self.qkv.bias).chunk(2, 2)
        return (a @ b.transpose(1, 2) @ a).transpose(1, 2)


class Standardized(nn.Conv2d):
    """Computes its weight from its parameter."""

    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class Mixed(Body):
    def __init__(self):
        super().__init__(16, 16)
        self.conv, self.mix = Standardized(16, 16, 3, padding=1), nn.Parameter(torch.eye(16))

    def middle(self, x):
        return torch.einsum("nchw,cd->ndhw", self.conv(x), self.mix)


@pytest.mark.parametrize(
    ("kind", "names"),
    (
        (nets.Multihead, {"attention.in_proj_weight"}),
        (Cross, {f"attention.{x}_proj_weight" for x in "qkv"}),
    ),
)
def test_the_projections_of_attention_are_masked(kind, names):
    network = made(kind)
    plan = planned(network, "2:4")
    prune.apply_masks_(network, plan)
    assert names | {"attention.out_proj.weight"} <= set(masks.masks_of(network)) and not plan.left
    expected = network(inputs())
    removal = prune.removed(network, size=SIDE)
    assert close(removal.network(inputs()), expected)
    for name in names:
        rows = removal.network.get_parameter(name).unflatten(1, (-1, 4))
        assert torch.all((rows == 0).sum(-1) == 2)


def test_macs_are_counted_where_a_weight_is_read():
    """Of a layer that is never called, of a computed weight, of a bare parameter; twice if tied."""
    places = SIDE * SIDE
    found = cost.measured(made(Functional), (1, 3, SIDE, SIDE))
    assert found.of("qkv") == places * 16 * 32 and found.rest == 2 * places * places * 16
    found = cost.measured(made(Mixed), (1, 3, SIDE, SIDE))
    assert found.of("conv") == 9 * places * 16 * 16 and found.rest == 0
    assert found.macs["mix"] == places * 16 * 16
    found = cost.measured(made(nets.Tied), (1, 3, SIDE, SIDE))
    assert found.of("first") == 2 * 9 * places * 16 * 16 and found.rest == 0
    for kind in (Functional, Mixed, nets.Tied, nets.Multihead, nets.Upsampled):
        whole = complexity.count(made(kind), (1, 3, SIDE, SIDE))
        assert cost.measured(made(kind), (1, 3, SIDE, SIDE)).total() == (
            whole.macs, whole.parameters,
        )  # fmt: skip


def test_what_no_mask_covers_is_said():
    plan = planned(made(Functional), "2:4")
    assert plan.masked_macs_share < 0.8 and not plan.left
    said = " ".join(str(plan).split())
    assert "Less than 80 % of the MACs are under a mask" in said and "(attention)" in said
    plan = planned(made(Mixed), "2:4")
    assert "Stays: mix: its weight is none of a convolution" in " ".join(str(plan).split())
    assert "Less than 80 %" not in str(plan)


@pytest.mark.parametrize("method", ("2:4", "unstructured"))
def test_a_tied_weight_keeps_all_and_is_named(method):
    network = made(nets.Tied)
    plan = planned(network, method)
    reasons = {layer: refusal.reason for refusal in plan.left for layer in refusal.layers}
    assert set(reasons) == {"first", "second"} and "one tied weight" in reasons["first"]
    prune.apply_masks_(network, plan)
    assert torch.equal(network.first.weight, network.second.weight)
    assert close(prune.removed(network, size=SIDE).network(inputs()), network(inputs()))


@given(
    st.sampled_from((1, 2, 3)), st.integers(1, 12), st.integers(2, 8), st.sampled_from((0, 1)),
    st.data(),
)  # fmt: skip
def test_no_block_reaches_from_one_group_into_the_next(groups, length, m, dim, data):
    n = data.draw(st.integers(1, m - 1))
    torch.manual_seed(length)
    shape = (groups * length, 4, 2) if dim == 0 else (4, groups * length, 2)
    sizes = torch.rand(shape)
    keep = single_weights.pattern_mask(sizes, n, m, dim, groups)
    parts = zip(keep.chunk(groups, dim), sizes.chunk(groups, dim), strict=True)
    assert all(torch.equal(k, single_weights.pattern_mask(s, n, m, dim)) for k, s in parts)


def test_a_grouped_transposed_convolution_is_cut_within_its_groups():
    network = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ConvTranspose2d(12, 8, 1, groups=2))
    plan = planned(network, "2:4")
    (layer,) = [x for x in plan.layers if x.name == "1"]
    assert (layer.inputs, layer.dim, layer.groups) == (6, 0, 2)
    keep = plan.masks(network)["1.weight"]
    assert torch.all((keep.unflatten(0, (2, 6)) == 0).sum(1) == 3)  # 2 of 4, and 1 of the last 2


def test_zeros_of_a_network_that_cannot_be_followed_are_baked_in():
    """As the refusal of its channels says: no trace is needed for single weights."""

    class Halves(Body):
        def middle(self, x):
            a, b = x.chunk(2, 1)
            return torch.cat([a * torch.sigmoid(b), b], 1)

    for method in ("2:4", "unstructured"):
        network = Halves(32, 32).eval()
        with pytest.raises(PruningError, match="cannot be followed"):
            planned(network)
        with torch.no_grad():
            network.stem[0].weight[3] = 0  # a whole filter is among what goes
        prune.apply_masks_(network, planned(network, method, ratio=0.5))
        removal = prune.removed(network, size=SIDE)
        assert removal.widths == {} and sum(removal.zeros.values()) > 100
        assert close(removal.network(inputs()), network(inputs()))


MOST = [(name, method) for name in ("mobilenet_v3_small", "mobilenet_v3_large", "tv:mobilenet_v2",
                                    "tv:resnet18") for method in ("2:4", "41:64")]  # fmt: skip


@pytest.mark.parametrize(("name", "method"), MOST)
def test_most_macs_lie_under_a_pattern(name, method):
    plain = name.startswith("mobilenet")
    network = untrained(name) if plain else architectures.find(name).build(16)
    plan = prune.plan(network, method, size=64)
    assert plan.masked_macs_share > 0.8
    assert plan.zeros_share == pytest.approx({"2:4": 0.5, "41:64": 0.64}[method], abs=0.03)


# ------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("method", "options"),
    (
        ("2:4", {"exclude": ["classifier.*"]}),
        ("unstructured", {"ratio": {"last*": 0.8, "*": 0.5}, "scope": "global"}),
    ),
)
def test_a_plan_of_single_weights_comes_back_from_its_file(method, options, tmp_path):
    network = made(nets.Mobile)
    plan = planned(network, method, **options)
    again = prune.read_plan(prune.write_plan(plan, tmp_path / "plan.yaml"), network)
    assert (again.method, again.stays, again.ratios) == (plan.method, plan.stays, plan.ratios)
    ours, theirs = again.masks(network), plan.masks(network)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    (
        ("layer: stem.0", "layer: steam.0", r"layers.0.layer: the network has no layer"),
        ("zeros: 0.5", "zeros: 1.5", r"layers.0.zeros"),
        ("method: '2:4'", "method: '4:2'", r"method: .*0 < n < m"),
        ("method: '2:4'", "method: channels", "'groups' is missing"),
    ),
)
def test_a_file_of_single_weights_that_does_not_fit_is_refused(old, new, words, tmp_path):
    file = prune.write_plan(planned(made(nets.Mobile), "2:4"), tmp_path / "plan.yaml")
    text = file.read_text()
    assert old in text, text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=words):
        prune.read_plan(file, made(nets.Mobile))


def test_a_plan_for_sequences_comes_back_from_its_file(tmp_path):
    network = nn.Sequential(nn.Conv1d(3, 16, 3), nn.BatchNorm1d(16), nn.Conv1d(16, 4, 1))
    plan = prune.plan(network, ratio=0.5, size=(1, 3, 20))
    again = prune.read_plan(prune.write_plan(plan, tmp_path / "plan.yaml"), network)
    assert again.stays == plan.stays and again.cost.shape == (1, 3, 20)
