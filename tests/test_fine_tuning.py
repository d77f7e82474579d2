"""Fine-tuning brings a changed network back, says what it did, and leaves no trace but weights."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from labutils import train
from labutils.errors import TrainingError, UsageError
from labutils.images import data
from labutils.models import zoo

SIZE = 96
SHORT = {"size": 48, "batch_size": 16, "images": 128}


@pytest.fixture(scope="module")
def original():
    return zoo.load("mobilenet_v3_small", "things16").module


def damaged(model):
    """A copy with ReLU where hard-swish was: the classifier's in-place dropout follows one."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Hardswish):
                setattr(parent, name, nn.ReLU(inplace=True))
    return model


def top1(model):
    images = data.load("val", 160, SIZE)
    return (train.logits_of(model, images).argmax(1) == images.labels).mean()


def same(a, b):
    return all(torch.equal(v, b[name]) for name, v in a.items())


@pytest.mark.slow
@pytest.mark.parametrize("taught", [False, True])
def test_it_brings_a_damaged_network_back(original, taught):
    model, before = damaged(original), copy.deepcopy(original.state_dict())
    assert top1(model) < 0.3
    report = train.fine_tune(
        model, teacher=original if taught else None, steps=12, batch_size=32, images=512
    )
    assert top1(model) > 0.6
    assert report.last_loss < report.first_loss
    assert same(before, original.state_dict()), "the teacher changed"


def test_the_same_steps_give_the_same_weights(small):
    twice = [copy.deepcopy(small) for _ in range(2)]
    torch.manual_seed(1)
    first = train.fine_tune(twice[0], steps=3, **SHORT)
    torch.manual_seed(2)
    drawn = torch.rand(3)
    torch.manual_seed(2)
    second = train.fine_tune(twice[1], steps=3, **SHORT)
    assert first.losses == second.losses
    assert same(twice[0].state_dict(), twice[1].state_dict())
    assert not same(twice[0].state_dict(), small.state_dict())
    assert torch.equal(torch.rand(3), drawn), "the caller's random numbers were used up"
    other = copy.deepcopy(small)
    train.fine_tune(other, steps=3, seed=1, **SHORT)
    assert not same(twice[0].state_dict(), other.state_dict())


def test_another_set_is_learned_by_a_network_with_its_classes(small):
    known = data.drawn("marked-things")
    wide = train.network("mobilenet_v3_small", len(known.CLASSES))
    options = SHORT | {"images": 32, "image_set": "marked-things"}
    report = train.fine_tune(wide, steps=1, **options)
    assert report.settings["image_set"] == "marked-things"
    with pytest.raises(UsageError, match=r"Marked Things needs logits of shape \(16, 112\)"):
        train.fine_tune(small, steps=1, **options)


def test_only_weights_and_statistics_change(small):
    small.requires_grad_(False)
    small.features[0].train()
    before = {name: (m.training, vars(m).get("inplace")) for name, m in small.named_modules()}
    train.fine_tune(small, teacher=copy.deepcopy(small).train(), steps=1, **SHORT)
    assert before == {n: (m.training, vars(m).get("inplace")) for n, m in small.named_modules()}
    assert {m.momentum for m in small.modules() if isinstance(m, nn.BatchNorm2d)} == {None}
    assert not any(p.requires_grad or p.grad is not None for p in small.parameters())


def test_parameters_that_the_caller_froze_stay(small):
    small.features.requires_grad_(False)
    before = copy.deepcopy(small.state_dict())
    train.fine_tune(small, steps=2, weight_decay=0.5, **SHORT)
    after = small.state_dict()
    names = [name for name, _ in small.named_parameters()]
    changed = {n for n in names if not torch.equal(before[n], after[n])}
    assert changed == {n for n in names if n.startswith("classifier")}


@pytest.mark.parametrize(("share", "moved"), [(0, 0), (0.5, 2), (None, 4)])
def test_batch_norm_keeps_its_statistics_from_the_share_on(small, share, moved):
    norm, means = small.features[0][1], []
    means.append(norm.running_mean.clone())
    train.fine_tune(
        small,
        steps=4,
        freeze_batch_norm_at=share,
        on_step=lambda step, steps, model: means.append(norm.running_mean.clone()),
        **SHORT,
    )
    assert sum(not torch.equal(a, b) for a, b in itertools.pairwise(means)) == moved


def test_on_step_counts_and_may_change_modes(small):
    seen = []

    def freeze_the_classifier(step, steps, model):
        seen.append((step, steps, model.classifier.training))
        model.classifier.eval()

    train.fine_tune(small, steps=3, on_step=freeze_the_classifier, **SHORT)
    assert seen == [(1, 3, True), (2, 3, False), (3, 3, False)]


def test_the_clock_ends_the_run_and_the_report_says_when(small):
    seen = []
    report = train.fine_tune(
        small, seconds=0.5, on_step=lambda step, steps, _: seen.append((step, steps)), **SHORT
    )
    assert report.steps == len(seen) == len(report.losses)
    assert all(step <= steps for step, steps in seen)
    assert report.seconds >= 0.5
    assert report.images == report.steps * 16
    assert train.fine_tune(small, seconds=600, steps=2, **SHORT).steps == 2


def test_the_report_says_the_same_everywhere(small, read):
    shown = []

    def progress(iterable, description):
        shown.append(description)
        return iterable

    report = train.fine_tune(
        small, teacher=copy.deepcopy(small), steps=2, progress=progress, **SHORT
    )
    assert shown == ["fine-tuning (steps)"]
    assert str(report) in read(report._repr_html_())
    assert "2 steps" in str(report)
    assert "MobileNetV3" in str(report)
    content = json.loads(json.dumps(report.to_dict()))
    assert content["settings"]["learning_rate"] == 5e-4
    assert content["last_loss"] == report.last_loss


def test_distillation_weighs_the_teacher(small):
    """Weight 1 and the network as its own teacher: in eval mode there is nothing to learn."""
    teacher = copy.deepcopy(small.eval())
    exported = torch.export.export(small, (torch.zeros(16, 3, 48, 48),)).module()
    options = {"steps": 1, "distillation_weight": 1.0, **SHORT}
    assert train.fine_tune(exported, teacher=teacher, **options).losses[0] < 1e-4
    halved = train.fine_tune(exported, teacher=teacher, **options | {"distillation_weight": 0.5})
    assert halved.losses[0] > 0.5


def test_an_exported_program_is_trained(small):
    """Fake-quantized graphs come like this: no modules, no modes, reshapes on contiguous data."""
    program = torch.export.export(small, (torch.zeros(16, 3, 48, 48),))
    model = program.module()
    before = copy.deepcopy(model.state_dict())
    train.fine_tune(model, steps=2, **SHORT)
    assert not same(before, model.state_dict())
    with pytest.raises(UsageError, match="same batch_size"):
        train.fine_tune(program.module(), steps=1, size=48, batch_size=8, images=128)


class InPlace(nn.Module):
    def __init__(self, wide):
        super().__init__()
        self.fc = nn.Linear(48 * 48 * 3, wide)

    def forward(self, x):
        return self.fc(x.flatten(1)).sigmoid().mul_(2).add_(1).sigmoid().mul_(3)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"steps": 0}, "steps: 0 is below 1"),
        ({"steps": 2.5}, "steps: expected a whole number or nothing, found 2.5"),
        ({"seconds": 0}, "seconds: 0 must be above 0"),
        ({"size": 1}, "size: 1 is below 16"),
        ({"size": 5000}, "size: 5000 is above 4,096"),
        ({"batch_size": 1}, "batch_size: 1 is below 2"),
        ({"images": 10**5000}, "images: a number with more digits"),
        ({"seed": -1}, "seed: -1 is below 0"),
        ({"seed": 9 * 10**18}, "seed: 9000000000000000000 is above 4,294,967,295"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is not a finite number"),
        ({"label_smoothing": 2}, "label_smoothing: 2 is above 1"),
        ({"temperature": 0.0}, "temperature: 0.0 must be above 0"),
        ({"freeze_batch_norm_at": 1.5}, "freeze_batch_norm_at: 1.5 is above 1"),
        ({"augmentation": {"flip": False}}, r"augmentation: expected Augmentation\("),
    ],
)
def test_a_setting_is_checked_whichever_way_it_comes(setting, words, small):
    (name, value) = next(iter(setting.items()))
    no_folder = data.ImageSet  # reading it would fail in another way
    with pytest.raises(UsageError, match=f"^{words}"):
        train.fine_tune(small, image_set=no_folder, **{"steps": 1} | setting)
    with pytest.raises(UsageError, match=f"^{words}"):
        train.FineTuningConfig(**{name: value})


def test_numbers_of_numpy_are_numbers():
    config = train.FineTuningConfig(steps=np.int64(3), learning_rate=np.float64(0.5))
    assert json.dumps(train.config.stored(config))
    with pytest.raises(UsageError, match=r"^smallest_crop: -1\.0 must be above 0"):
        train.Augmentation(smallest_crop=-1.0)
    with pytest.raises(UsageError, match=r"^seed: 1099511627776 is above"):
        train.TrainConfig(seed=2**40)


def test_errors_name_the_cure(small):
    for options, cure in [
        ({}, "seconds=30"),
        ({"steps": 1, "images": 8}, "at most images"),
        ({"steps": 1, "teacher": small}, "deepcopy"),
    ]:
        with pytest.raises(UsageError, match=cure):
            train.fine_tune(small, **SHORT | options)
    with pytest.raises(UsageError, match="Things-16"):
        train.fine_tune(InPlace(10), steps=1, **SHORT)
    with pytest.raises(UsageError, match="no parameters"):
        train.fine_tune(nn.Flatten(), steps=1, **SHORT)
    with pytest.raises(TrainingError, match="in place"):
        train.fine_tune(InPlace(16), steps=1, **SHORT)
    small.classifier[0].weight.data.fill_(np.nan)
    with pytest.raises(TrainingError, match="nan at step 0"):
        train.fine_tune(small, steps=1, **SHORT)
    assert not small.training
