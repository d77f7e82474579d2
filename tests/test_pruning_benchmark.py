"""benchmarks/pruning.py: rows with what they are compared with, TI's tables, cards, the peer."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from labutils import metrics, paths, prune
from labutils.images import data
from labutils.models import zoo

sys.path.insert(0, str(paths.ROOT / "benchmarks"))

import pruning
import pruning_rows as rows
import pruning_tables as tables

SHORT = rows.Schedule(steps=2, size=32, judged=32, batch_size=16, images=64)


def test_networks_that_are_trained_here_have_a_smaller_side_everywhere():
    schedules = {row.architecture: rows.Schedule().of(row.architecture) for row in rows.rows()}
    sides = {name: (schedule.size, schedule.judged) for name, schedule in schedules.items()}
    assert sides == {rows.LARGE: (96, 128), rows.SMALL: (96, 128), rows.V2: (96, 128),
                     rows.RESNET: (64, 64)}  # fmt: skip
    bench = pruning.Bench("marked-things", "val", 48, rows.Schedule())
    row = next(row for row in rows.rows() if row.architecture == rows.RESNET)
    assert bench.preprocessing(row).size == bench.schedule_of(row).size == 64
    assert bench.shipped(rows.RESNET) is None and bench.shipped(rows.LARGE) is not None


@pytest.mark.slow
def test_a_row_is_made_with_its_controls_and_has_a_card(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pruning, "gate_word", lambda *_: "0.99999")
    monkeypatch.setattr(pruning, "LATENCY_SIDE", 32)
    monkeypatch.setattr(rows, "RATED_ON", 8)
    bench = pruning.Bench("marked-things", "val", 48, SHORT)
    by_id, name, out = pruning.BY_ID, "mobilenet_v3_small/ti30", tmp_path / "out"
    asked = pruning.with_controls([name])
    assert asked == ["mobilenet_v3_small/original", "mobilenet_v3_small/long", name]
    head = ["Recorded 2026-12-01 with: a test"]
    for each in asked:
        assert pruning.kept(bench, out, each) is None
        bench.card(by_id[each], head).write(out)
    cards = {each: pruning.kept(bench, out, each) for each in asked}
    assert cards[name].found["widths"]["classifier.0"] == [1024, 720]
    assert cards[name].facts["schedule"]["steps"] == 2 and cards[name].facts["checkpoint"]
    measured = {each: pruning.measured(cards, each) for each in asked}
    channels, original = measured[name], measured[asked[0]]
    assert channels.macs < 0.6 and channels.side == 32 and 0 <= channels.agreement <= 1
    assert original.agreement == 1.0 and original.n == 48
    right = metrics.correct(bench.answers(by_id[name]), np.arange(48) % 112)
    assert np.array_equal(cards[name].correct(), right) and channels.hits == right.sum()
    best = max(original.top1, measured[asked[1]].top1)
    assert channels.points == pytest.approx(100 * (channels.top1 - best), abs=1e-9)
    tables.write([*measured.values()], head, SimpleNamespace(**vars(bench), steps=2), out)
    text = (out / "pruning.txt").read_text("utf-8")
    assert "Pruned Model Accuracy" in text and "76.13" in text and "70.37" in text
    assert f"{100 * channels.top1:.2f}" in text and "not made" in text  # of the other networks
    assert "2026-12-01" in pruning.listed(bench, out)
    longer = pruning.Bench("marked-things", "val", 48, dataclasses.replace(SHORT, steps=3))
    assert all(pruning.kept(longer, out, each) is None for each in asked[1:])  # of another training


@pytest.mark.slow
def test_every_way_of_the_peer_cuts_to_multiples_of_8(monkeypatch):
    monkeypatch.setattr(rows, "RATED_ON", 6)
    network = zoo.load(rows.SMALL, "marked-things").module
    task = rows.Task(network, "marked-things", SHORT, None, print)
    slopes = rows.gradients(task)
    plain = zoo.load(rows.SMALL, "marked-things").module.eval().requires_grad_(True)
    inputs, labels = map(torch.from_numpy, task.rated())
    nn.functional.cross_entropy(plain(inputs), labels).backward()
    for name, parameter in plain.named_parameters():
        assert torch.allclose(slopes["Taylor"][name], parameter.grad, atol=1e-5), name
        assert torch.all(slopes["Hessian"][name] >= slopes["Taylor"][name].square() - 1e-6)
    whole = prune.cost.measured(network, task.shape).total()[0]
    ways = [("Taylor", scope) for scope in rows.PEER_SCOPES]
    for criterion, scope in [*ways, *((name, "global") for name in rows.PEER_CRITERIA)]:
        smaller = rows._cut(task, 0.4, criterion, scope, slopes)
        widths = {len(m.weight) for m in smaller.modules() if isinstance(m, nn.Conv2d)}
        assert all(width % 8 == 0 for width in widths), (criterion, scope)
        assert prune.cost.measured(smaller, task.shape).total()[0] < whole


def test_norms_are_measured_again_after_every_training(monkeypatch):
    """As `prune.recover_` does: ours and the peers' are trained alike."""
    monkeypatch.setattr(rows, "RATED_ON", 8)
    seen = []
    monkeypatch.setattr(rows.prune, "reestimate_", lambda network, batches: seen.append(batches))
    done = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(rows.train, "fine_tune", lambda *_, **__: done)
    task = rows.Task(nn.Linear(1, 1), "marked-things", SHORT, None, seen.append)
    task.train_(nn.Linear(1, 1))
    images = data.load("train", rows.RATED_ON, 32, "marked-things")
    assert np.array_equal(np.concatenate(seen[0]), data.Preprocessing(32)(images.images))
