"""Training: resumable to the bit, deterministic, and it learns."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from labutils import paths, train
from labutils.errors import ModelFileError, UnknownNameError
from labutils.images import data
from labutils.models import zoo
from labutils.train import __main__ as train_command
from labutils.train import loop

TINY = train.TrainConfig(
    architecture="mobilenet_v3_small",
    images=256,
    source_size=48,
    batch_size=32,
    phases=((32, 8), (48, 4)),
    warmup_steps=2,
)


def run(config, folder, **options):
    return list(train.fit(config, folder, **options))


def weights(folder):
    return torch.load(folder / "mobilenet_v3_small.resume.pt", weights_only=True)["ema"]


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_weights(tmp_path):
    run(TINY, tmp_path / "whole")
    run(TINY, tmp_path / "parts", stop_at=5)
    run(TINY, tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_shipping_writes_half_precision_weights_and_a_true_card(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "VALIDATION_IMAGES", 64)
    run(TINY, tmp_path)
    card = train.ship(TINY, tmp_path, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "mobilenet_v3_small.safetensors")
    assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.float16}
    model = train.network("mobilenet_v3_small")
    model.load_state_dict(stored)
    validation = data.load("val", 64, train.EVALUATION_SIZE)
    top1 = (train.logits_of(model, validation).argmax(1) == validation.labels).mean()
    assert card["top1"] == pytest.approx(top1)
    assert card["n"] == 64
    assert card["steps"] == TINY.steps
    assert np.mean(list(card["accuracy_per_class"].values())) == pytest.approx(top1)


@pytest.mark.slow
def test_it_learns(tmp_path):
    config = dataclasses.replace(TINY, images=64, phases=((32, 60),), smallest_crop=1.0)
    lines = run(config, tmp_path)
    assert lines[-1]["loss"] < 2.0  # chance is ln 16 = 2.77


def test_another_configuration_is_not_resumed(tmp_path):
    train.Trainer(TINY).save(tmp_path / "mobilenet_v3_small.resume.pt")
    other = dataclasses.replace(TINY, seed=1)
    with pytest.raises(ModelFileError, match="another configuration"):
        run(other, tmp_path)


def test_a_state_from_before_there_was_a_choice_of_sets_is_resumed(tmp_path):
    before = dataclasses.asdict(TINY)
    del before["image_set"], before["start"]
    path = tmp_path / "mobilenet_v3_small.resume.pt"
    trainer = train.Trainer(TINY)
    trainer.step = 3
    trainer.save(path)
    state = torch.load(path, weights_only=True)
    torch.save(state | {"config": json.dumps(before)}, path)
    again = train.Trainer(TINY)
    again.resume(path)
    assert again.step == 3
    other = train.Trainer(dataclasses.replace(TINY, image_set="marked-things"))
    with pytest.raises(ModelFileError, match="another configuration"):
        other.resume(path)


def test_a_run_on_another_set_has_its_own_state_and_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "WATCHED", 1)
    config = dataclasses.replace(TINY, image_set="marked-things", images=112, batch_size=8)
    (*_, line) = run(config, tmp_path, stop_at=1)
    assert line["step"] == 1
    (state,) = tmp_path.iterdir()
    assert state.name == "mobilenet_v3_small-marked-things.resume.pt"
    head = torch.load(state, weights_only=True)["model"]["classifier.3.weight"]
    assert len(head) == len(data.drawn("marked-things").CLASSES) == 112


def test_the_command_line_trains_on_the_set_that_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "WATCHED", 1)
    tiny = {"format": 1, "images": 112, "source_size": 32, "batch_size": 8, "phases": [[32, 2]]}
    paths.write_text(tmp_path / "tiny.json", json.dumps(tiny))
    words = ["--config", tmp_path / "tiny.json", "--work", tmp_path / "work", "--stop-at", 1]
    arguments = ["mobilenet_v3_small", "--set", "marked-things", *map(str, words)]
    assert train_command.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 1
    assert (tmp_path / "work" / "mobilenet_v3_small-marked-things.resume.pt").is_file()


def test_each_network_has_a_schedule():
    pairs = {(config.architecture, config.image_set) for config in train.CONFIGS.values()}
    assert pairs >= {(a, "marked-things") for a in train.ARCHITECTURES}
    assert pairs >= {(f"mobilenet_v3_{size}", "things16") for size in ("large", "small")}
    assert all(train.CONFIGS[config.name] is config for config in train.CONFIGS.values())


def test_a_network_without_a_schedule_for_a_set_says_which_sets_have_one(capsys):
    assert train_command.main(["fbnet_a"]) == 2
    assert "fbnet_a on things16: pass --set marked-things" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", train.ARCHITECTURES)
def test_what_is_trained_is_the_network_of_that_name(architecture):
    name = architecture if architecture == "fbnet_a" else f"tv:{architecture}"
    known = zoo.architectures.find(name).build(112)
    found = train.network(architecture, 112)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (known, found)]
    assert shapes[0] == shapes[1]


def test_a_run_begins_as_a_shipped_checkpoint_but_for_its_last_layer():
    shipped = load_file(paths.CHECKPOINTS / "mobilenet_v3_small.safetensors")
    config = dataclasses.replace(TINY, image_set="marked-things", start="things16")
    begun = train.Trainer(config).model.state_dict()
    for name, value in begun.items():
        assert name.startswith("classifier.3") or (value == shipped[name].to(value.dtype)).all()
    assert begun["classifier.3.weight"].shape == (112, 1024)


def test_a_missing_starting_point_is_explained(tmp_path):
    with pytest.raises(ModelFileError, match="start: null"):
        loop.begin_as_(train.network("mobilenet_v3_small"), tmp_path / "none.safetensors")


def test_every_image_is_used_once_per_epoch():
    per_epoch = TINY.images // TINY.batch_size
    images = data.ImageSet(np.zeros((256, 1)), np.zeros(256), (), "no picture is looked at")
    batches = train.Batches(images, TINY.batch_size)
    used = np.concatenate([batches.indices(step) for step in range(per_epoch)])
    assert sorted(used) == list(range(TINY.images))
    assert (batches.indices(0) != batches.indices(per_epoch)).any()


@given(step=st.integers(0, train.TrainConfig().steps - 1))
def test_schedule(step):
    config = train.TrainConfig()
    rate = config.learning_rate_at(step)
    assert 0 < rate <= config.learning_rate
    if step > config.warmup_steps:
        assert rate <= config.learning_rate_at(step - 1)
    assert config.size_at(step) in {64, 96, 128}


def test_schedule_follows_the_work():
    config = train.TrainConfig(phases=((64, 400), (128, 100)), warmup_steps=1)
    # 400 steps at 64 px are half the work of 400 * 64^2 + 100 * 128^2
    assert config.learning_rate_at(400) == pytest.approx(
        config.learning_rate * (0.995 * 0.5 + 0.005), rel=1e-6
    )


def test_unknown_architecture_suggests():
    with pytest.raises(UnknownNameError, match="mobilenet_v3_large"):
        train.network("mobilenet_v3_larg")
