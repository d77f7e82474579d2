"""Net widening: the weights of a narrower network in a wider one, its function kept or not."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from labutils.errors import ModelFileError, UsageError
from labutils.models import architectures, widening

EXAMPLE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Convolutions, a shortcut, a depthwise convolution, a gate, and a head over pixels."""

    def __init__(self, width, hidden, classes=5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.PReLU())
        self.deep = nn.Sequential(
            nn.Conv2d(width, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden),
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, hidden, 1), nn.Sigmoid()
        )
        self.back = nn.Conv2d(hidden, width, 1)
        self.up = nn.ConvTranspose2d(width, width, 2, 2)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x):
        x = self.stem(x)
        y = self.deep(x)
        x = self.up(x + self.back(y * self.gate(y)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def seeded(make, *arguments, **settings):
    torch.manual_seed(0)
    network = make(*arguments, **settings)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it had been trained
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(0, 9), st.integers(0, 9),
)  # fmt: skip
def test_copied_channels_keep_the_function(width, hidden, more, further):
    narrow, wide = seeded(Residual, width, hidden), Residual(width + more, hidden + further).eval()
    report = widening.load_wider_(wide, narrow.state_dict())
    assert widening.function_error(narrow, wide, EXAMPLE) < 1e-5
    assert bool(report.widened) == bool(more or further)
    assert len(report.copied) + len(report.widened) == len(wide.state_dict())


@pytest.mark.parametrize(
    ("name", "widths"),
    [("mobilenet_v3_small", (0.75, 1.0)), ("mobilenet_v2", (0.35, 0.5)), ("mnasnet0_5", None)],
)
def test_networks_of_torchvision_keep_their_function(name, widths):
    tv = architectures._models()
    if widths:
        narrow, wide = (
            seeded(getattr(tv, name), weights=None, num_classes=7, width_mult=w) for w in widths
        )
    else:
        narrow, wide = (seeded(getattr(tv, n), weights=None) for n in ("mnasnet0_5", "mnasnet0_75"))
    before = widening.function_error(narrow, wide, EXAMPLE)
    widening.load_wider_(wide, narrow.state_dict())
    assert widening.function_error(narrow, wide, EXAMPLE) < 1e-4 < before


def test_the_function_is_lost_where_the_wider_network_has_another_shortcut():
    tv = architectures._models()
    narrow, wide = (
        seeded(tv.mobilenet_v3_small, weights=None, num_classes=7, width_mult=w)
        for w in (0.5, 0.85)
    )
    widening.load_wider_(wide, narrow.state_dict())
    assert widening.function_error(narrow, wide, EXAMPLE) > 1e-3


def test_a_slice_is_the_narrow_tensor_and_the_rest_stays():
    narrow, wide = seeded(Residual, 4, 3), Residual(6, 5)
    before = copy.deepcopy(wide.state_dict())
    report = widening.load_wider_(wide, narrow.state_dict(), "small.pth", how="slice")
    after, small = wide.state_dict(), narrow.state_dict()
    assert torch.equal(after["deep.0.weight"][:3, :4], small["deep.0.weight"])
    assert torch.equal(after["deep.0.weight"][3:], before["deep.0.weight"][3:])
    assert torch.equal(after["deep.0.weight"][:3, 4:], before["deep.0.weight"][:3, 4:])
    assert "small.pth" in str(report) and "leading channels" in str(report)
    assert report.to_dict()["widened"]["deep.0.weight"] == ((3, 4, 1, 1), (5, 6, 1, 1))


def test_noise_tells_copies_apart_and_is_the_same_in_every_run():
    narrow = seeded(Residual, 4, 3)
    plain, noisy, again = (Residual(8, 6).eval() for _ in range(3))
    widening.load_wider_(plain, narrow.state_dict())
    for wide in (noisy, again):
        widening.load_wider_(wide, narrow.state_dict(), noise=0.01)
    key = "deep.0.weight"
    assert torch.equal(plain.state_dict()[key][:3, :4], noisy.state_dict()[key][:3, :4])
    assert not torch.equal(plain.state_dict()[key][3:], noisy.state_dict()[key][3:])
    assert torch.equal(noisy.state_dict()[key], again.state_dict()[key])
    assert widening.function_error(narrow, noisy, EXAMPLE) < 0.2


def test_another_number_of_classes_leaves_the_last_layer():
    narrow, wide = seeded(Residual, 4, 3), Residual(6, 5, classes=9)
    before = wide.head.weight.detach().clone()
    report = widening.load_wider_(wide, narrow.state_dict())
    assert set(report.kept) == {"head.weight", "head.bias"}
    assert torch.equal(wide.head.weight, before) and "other classes" in str(report)


def test_what_cannot_be_widened_is_refused_by_name_and_changes_nothing():
    wide = Residual(8, 6)
    before = copy.deepcopy(wide.state_dict())
    with pytest.raises(ModelFileError, match=r"stem.0.weight is \(9, 3, 3, 3\) in big.pth"):
        widening.load_wider_(wide, Residual(9, 6).state_dict(), "big.pth")
    with pytest.raises(ModelFileError, match="Nothing in"):
        widening.load_wider_(wide, {"other": torch.zeros(1)})
    grouped = [nn.Sequential(nn.Conv2d(4, n, 3, groups=2), nn.Conv2d(n, 2, 1)) for n in (4, 8)]
    with pytest.raises(ModelFileError, match="Conv2d of 2 groups"):
        widening.load_wider_(grouped[1], grouped[0].state_dict())
    for wrong in ({"how": "tile"}, {"noise": -1}):
        with pytest.raises(UsageError):
            widening.load_wider_(wide, Residual(4, 3).state_dict(), **wrong)
    assert all(torch.equal(before[name], now) for name, now in wide.state_dict().items())
