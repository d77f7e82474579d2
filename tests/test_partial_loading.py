"""Weights that fit are loaded, renamed where asked, and the rest is named."""

import pytest
import torch
from torch import nn

from labutils.errors import ModelFileError, UsageError
from labutils.models import checkpoint


class Network(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, classes)


def test_another_head_keeps_its_own_weights():
    source, target = Network(4), Network(6)
    before = target.head.weight.clone()
    report = checkpoint.load_partly_(target, source.state_dict(), "old.pth")
    assert torch.equal(target.body[0].weight, source.body[0].weight)
    assert torch.equal(target.head.weight, before)
    assert set(report.other_shape) == {"head.weight", "head.bias"}
    assert report.other_shape["head.weight"] == ((4, 8), (6, 8))
    assert not report.missing
    assert "7 of 9 tensors loaded" in str(report)
    assert "head.weight (4, 8) for (6, 8)" in str(report)


def test_renames_are_regular_expressions_in_order():
    source, target = Network(), Network()
    state = {f"backbone.{k}".replace("body", "trunk"): v for k, v in source.state_dict().items()}
    state["ema.decay"] = torch.tensor(0.9)
    del state["backbone.head.bias"]
    renames = {r"^backbone\.": "", r"^trunk\.(\d)": r"body.\1"}
    report = checkpoint.load_partly_(target, state, renames=renames)
    assert torch.equal(target.body[1].running_var, source.body[1].running_var)
    assert report.renamed["backbone.trunk.0.weight"] == "body.0.weight"
    assert report.missing == ("head.bias",)
    assert report.unexpected == ("ema.decay",)
    assert report.to_dict()["missing"] == ["head.bias"]


def test_half_precision_is_widened():
    target = Network()
    state = {k: v.half() if v.is_floating_point() else v for k, v in Network().state_dict().items()}
    checkpoint.load_partly_(target, state)
    assert target.head.weight.dtype == torch.float32


def test_nothing_that_fits_and_faulty_patterns_are_errors():
    with pytest.raises(ModelFileError, match=r"it has x\.weight.* wants body\.0\.weight"):
        checkpoint.load_partly_(Network(), {"x.weight": torch.zeros(2)})
    state = Network().state_dict()
    with pytest.raises(UsageError, match="changes no name"):
        checkpoint.load_partly_(Network(), state, renames={"^backbone": ""})
    with pytest.raises(UsageError, match="not a valid regular expression"):
        checkpoint.load_partly_(Network(), state, renames={"(": ""})
    with pytest.raises(ModelFileError, match="would both be called"):
        checkpoint.load_partly_(Network(), state, renames={"weight|bias": "w"})
